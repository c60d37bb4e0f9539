"""Naive marks for tests, each known to be removed by some attacks, and a third party's plugin."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from earmark.attacks.base import Attack
from earmark.errors import CarrierError
from earmark.keys.secret import Key
from earmark.records import Access, Evidence, Layout
from earmark.schemes.base import Mark, Scheme


class _Term(Mark):
    def __init__(self, term):
        self.term = term

    def loss(self):
        return self.term()


@dataclass(frozen=True)
class SignMark(Scheme):
    """Signs of random projections of one weight tensor, read at fixed positions."""

    name: ClassVar[str] = "toy-sign"
    needs: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})
    summary: ClassVar[str] = "Signs of projections of one tensor."

    carrier: str = ""
    bits: int = 64
    weight: float = 0.2

    def _carrier(self, host):
        shapes = {name: host.tensor_shape(name) for name in host.tensor_names()}
        if self.carrier:
            return self.carrier
        flat = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        return max(flat, key=lambda name: int(np.prod(flat[name])))

    def new_key(self, host, *, inputs=None, secret=None):
        name = self._carrier(host)
        size = int(np.prod(host.tensor_shape(name)))
        layout = Layout(self.name, 1, (name,), self.bits, 1, {"size": size})
        return Key.generate(layout, secret=secret)

    def _secret(self, key):
        size = int(key.layout.params["size"])
        stream = key.shard(0).stream("toy")
        bits = np.array(stream.signs(key.layout.message_bits))
        raw = np.frombuffer(stream.bytes(key.layout.message_bits * size), np.uint8)
        return bits, np.where(raw & 1, 1.0, -1.0).reshape(-1, size).astype(np.float32)

    @contextmanager
    def attach(self, model, key, *, forward=None):
        self.check_key(key)
        parameter = dict(model.named_parameters())[key.layout.carrier[0]]
        bits, matrix = (torch.tensor(item, dtype=torch.float32) for item in self._secret(key))

        def term():
            reads = matrix @ parameter.flatten() / parameter.numel() ** 0.5
            return self.weight * functional.softplus(1 - 10 * bits * reads).mean()

        yield _Term(term)

    def measure(self, suspect, key, *, nonce=None):
        self.check_key(key)
        suspect.require(Access.WEIGHTS, by=self.name)
        bits, matrix = self._secret(key)
        values = suspect.tensor(key.layout.carrier[0]).flatten()
        if len(values) != matrix.shape[1]:
            raise CarrierError(f"The carrier has {len(values)} weights.")
        hits = int((matrix @ values * bits > 0).sum())
        return Evidence.of(
            self.name,
            hits=hits,
            trials=self.bits,
            layout=key.layout.digest(),
            suspect=suspect.digest(),
        )


@dataclass(frozen=True)
class FragileMark(SignMark):
    """Parities of tiny steps in the smallest weights; written after training, not trained."""

    name: ClassVar[str] = "toy-fragile"
    STEP: ClassVar[float] = 2.0**-16

    def write(self, model, key):
        bits, places = self._places(key, model.state_dict()[key.layout.carrier[0]].numpy())
        with torch.no_grad():
            parameter = dict(model.named_parameters())[key.layout.carrier[0]]
            flat = parameter.detach().flatten()
            for bit, place in zip(bits, places, strict=True):
                step = torch.floor(flat[place].abs() / self.STEP)
                step += (step % 2 != (bit > 0)).float()
                sign = torch.where(flat[place] < 0, -1.0, 1.0)
                flat[place] = sign * (step + 0.5) * self.STEP
            parameter.copy_(flat.view(parameter.shape))

    def _places(self, key, values):
        # the smallest weights of the unmarked model lie where its own signs say; here: a fixed set
        stream = key.shard(0).stream("toy")
        bits = np.array(stream.signs(key.layout.message_bits))
        return bits, stream.sample(key.layout.message_bits, values.size)

    def measure(self, suspect, key, *, nonce=None):
        self.check_key(key)
        values = suspect.tensor(key.layout.carrier[0])
        bits, places = self._places(key, values)
        read = np.floor(np.abs(values.flatten()[places]) / self.STEP) % 2
        hits = int(((read > 0) == (bits > 0)).sum())
        return Evidence.of(self.name, hits=hits, trials=self.bits, layout=key.layout.digest())


@dataclass(frozen=True)
class TriggerMark(Scheme):
    """Random labels of noise images, asked for by label: a plain backdoor."""

    name: ClassVar[str] = "toy-trigger"
    needs: ClassVar[frozenset[Access]] = frozenset({Access.LABELS})
    needs_inputs: ClassVar[bool] = True
    summary: ClassVar[str] = "Random labels of noise images."

    triggers: int = 40
    classes: int = 10
    weight: float = 0.5

    def new_key(self, host, *, inputs=None, secret=None):
        like = self.need_inputs(inputs)[0]
        layout = Layout(self.name, 1, ("output",), self.triggers, 1, {})
        key = Key.generate(layout, secret=secret)
        generator = torch.Generator().manual_seed(key.shard(0).stream("noise").integer(2**31))
        noise = torch.randn((self.triggers, *like.shape[1:]), generator=generator)
        return Key(layout, key._secret, None, (noise, torch.zeros(self.triggers)))

    def _labels(self, key):
        return key.shard(0).stream("labels").integers(self.triggers, self.classes)

    @contextmanager
    def attach(self, model, key, *, forward=None):
        labels = torch.tensor(self._labels(key))
        yield _Term(lambda: self.weight * functional.cross_entropy(model(key.inputs[0]), labels))

    def measure(self, suspect, key, *, nonce=None):
        self.check_key(key)
        suspect.require(Access.LABELS, by=self.name)
        found = suspect.labels(key.inputs)
        hits = int((found == np.array(self._labels(key))).sum())
        return Evidence.of(
            self.name,
            hits=hits,
            trials=self.triggers,
            chance=Fraction(1, self.classes),
            access=Access.LABELS,
            layout=key.layout.digest(),
        )


@dataclass(frozen=True)
class LazyMark(SignMark):
    """A broken scheme: it counts a model's own signs, so that everybody looks guilty."""

    name: ClassVar[str] = "toy-lazy"

    def measure(self, suspect, key, *, nonce=None):
        evidence = super().measure(suspect, key)
        return Evidence.of(self.name, hits=evidence.trials, trials=evidence.trials)


@dataclass(frozen=True)
class ToyAttack(Attack):
    """Halve every weight of the last layer."""

    name: ClassVar[str] = "toy-halve"
    family: ClassVar[str] = "toy"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Nobody."
    summary: ClassVar[str] = "Halve the last layer."

    factor: float = 0.5

    def change(self, model, budget, *, seed):
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(self.factor)
        return model


@dataclass(frozen=True)
class RudeAttack(ToyAttack):
    """A broken attack: it draws from the global generator of the caller and does nothing."""

    name: ClassVar[str] = "toy-rude"
    exact: ClassVar[bool] = True

    def change(self, model, budget, *, seed):
        model.train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    torch.rand(1, generator=torch.Generator().manual_seed(torch.seed() % 97))
                )
        return model
