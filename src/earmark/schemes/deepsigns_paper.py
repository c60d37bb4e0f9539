"""DeepSigns, white-box, as published: trained centers of activations carry the bits.

For comparison with the literature. Every class has a trained center in each tapped layer; the
activations of a class are pulled to its center, and the centers of some secret classes are pushed
so that a secret Gaussian projection of them decodes to the owner's bits. The error rate is read
from the activations of the key's inputs, never from the centers. Use
:class:`earmark.schemes.deepsigns.DeepSigns` for a mark of your own: it survives more.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from earmark.codec import Json
from earmark.errors import CapacityError, CarrierError, KeyLayoutError, UsageError
from earmark.hosts import batches, taps
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.hosts.module import Forward, ModuleHost, plain_forward
from earmark.keys.secret import Disclosure, Key, tried
from earmark.keys.stream import KeyStream
from earmark.records import Access, Evidence, Layout
from earmark.schemes import groups
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.groups import quiet


@dataclass(frozen=True)
class DeepSignsPaper(Scheme):
    """The published white-box scheme, with the loss of the paper or of the official code.

    The term is, for the paper's variant with secret classes T, centers mu and activations f,
    `pull * (sum_T mean |mu_i - f_i|^2 - separation) + push * BCE(sigmoid(mu_T A), bits)`.
    The official code pulls every class to a center, separates nearest centers by `q d - d` (inner
    product q, squared distance d) and keeps centers at unit length.

    Args:
        taps: Layers that bear the mark, as globs; by default the deepest before the head.
        bits: Bits of each secret class in each layer.
        carriers: Number of secret classes; 0 takes all.
        per_group: Inputs of a class in the key; the paper takes 1 % of the training data in all.
        pull: Weight of the pull to the centers (lambda 1 of the paper).
        push: Weight of the bits' cross-entropy on the centers (lambda 2 of the paper).
        variant: "paper" or "official".
        start: Centers begin at the classes' mean activations ("means") or uniform ("random").
        separate: Push centers apart; off by default because the term has no lower bound.
        center_lr: Learning rate of the centers (Adam).
        samples: Inputs of the key that are run in each step.

    Raises:
        UsageError: A setting out of range.

    Source:
        Rouhani, Chen and Koushanfar 2019 (ASPLOS), equations 1 to 3 and algorithms 1 and 3, and
        their published demonstration. Changed: centers have an optimizer of their own; the pull
        is averaged over the batch; classes come from labels, or from a Gaussian mixture with
        diagonal covariances where there are none.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts
        >>> model, inputs = tiny_hosts()["mlp"]
        >>> scheme = DeepSignsPaper(bits=16, carriers=2)
        >>> key = scheme.new_key(ModuleHost(model), inputs=inputs)
        >>> scheme.measure(ModuleHost(model), key).trials
        32
    """

    name: ClassVar[str] = "deepsigns-paper"
    needs: ClassVar[frozenset[Access]] = frozenset({Access.ACTIVATIONS})
    needs_inputs: ClassVar[bool] = True
    summary: ClassVar[str] = "DeepSigns as published, white-box; for comparison."

    taps: tuple[str, ...] = ()
    bits: int = 16
    carriers: int = 1
    per_group: int = 60
    pull: float = 0.01
    push: float = 0.01
    variant: str = "paper"
    start: str = "means"
    separate: bool = False
    center_lr: float = 1e-2
    samples: int = 64

    def __post_init__(self) -> None:
        if self.variant not in ("paper", "official") or self.start not in ("means", "random"):
            raise UsageError(
                f"Variant {self.variant!r}, start {self.start!r}.",
                expected="Variant 'paper' or 'official'; start 'means' or 'random'.",
            )
        if min(self.bits, self.per_group, self.samples) < 1 or self.carriers < 0:
            raise UsageError("Settings bits, per_group and samples are at least 1.")

    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key; see :meth:`earmark.schemes.base.Scheme.new_key`."""
        given = self.need_inputs(inputs)
        secret = secrets.token_bytes(32) if secret is None else secret
        if not isinstance(host, ModuleHost):
            raise UsageError("A new key needs a host with layers, such as ModuleHost(model).")
        modules = [name for name, _ in host.model.named_modules()]
        names = (
            taps.choose(modules, self.taps, what="tap")
            if self.taps
            else taps.default_taps(host.model, most=1)
        )
        stream = KeyStream(secret, "deepsigns-paper/inputs")
        chosen = groups.choose(
            given, host, names[-1], stream, count=0, size=self.per_group, references=0
        )
        carriers = self.carriers or chosen.count
        if carriers > chosen.count:
            raise CapacityError(
                f"{carriers} secret classes were asked for; there are {chosen.count}.",
                hint=f"Set carriers to at most {chosen.count}.",
            )
        held = {"inputs": chosen.inputs, "group": chosen.group}
        features = host.features(batches.take(chosen.inputs, [0, 1]), names)
        secret_classes: list[Json] = [*sorted(stream.sample(carriers, chosen.count))]
        widths: list[Json] = [int(features[name].shape[1]) for name in names]
        layout = Layout(
            self.name,
            self.version,
            names,
            self.bits * carriers * len(names),
            1,
            {
                "bits": self.bits,
                "classes": chosen.count,
                "widths": widths,
                "carriers": secret_classes,
            },
            batches.tree_digest(held),
        )
        return Key.generate(layout, secret=secret, inputs=held)

    def attach(
        self, model: nn.Module, key: Key, *, forward: Forward = plain_forward
    ) -> AbstractContextManager[CenterMark]:
        """Attach the mark; see :meth:`earmark.schemes.base.Scheme.attach`."""
        self.check_key(key)
        secret = Secret.of(key)
        for name in secret.names:
            taps.layer(model, name)

        @contextmanager
        def attached() -> Iterator[CenterMark]:
            yield CenterMark(model, secret, self, forward)

        return attached()

    def measure(
        self, suspect: Host, key: Key | Disclosure, *, nonce: str | None = None
    ) -> Evidence:
        """Decode the mean activations of the key's inputs: bit j is 1 where `mean . A_j > 0`."""
        self.check_key(key)
        suspect.require(Access.ACTIVATIONS, by=self.name)
        secret = Secret.of(key)
        features = suspect.features(secret.inputs, secret.names)
        hits = secret.right(features)
        return Evidence.of(
            self.name,
            hits=int(hits.sum()),
            trials=hits.size,
            layout=key.layout.digest(),
            suspect=suspect.digest(),
            access=Access.ACTIVATIONS,
            nonce=nonce,
            tried=tried(key),
            shards=tuple(shard.index for shard in key.shards),
            queries=batches.size(secret.inputs),
            details={"bit_error_rate": round(1 - float(hits.mean()), 6)},
        )


@dataclass(frozen=True)
class Secret:
    """What a key says.

    Args:
        names: Tapped layers.
        inputs: Inputs of the key.
        group: (inputs,) class of each.
        classes: Number of classes.
        carriers: The secret classes.
        projections: One (width, bits) Gaussian matrix a layer.
        bits: (layers, carriers, bits) booleans.
    """

    names: tuple[str, ...]
    inputs: Tree
    group: NDArray[np.int64]
    classes: int
    carriers: tuple[int, ...]
    projections: tuple[NDArray[np.float64], ...]
    bits: NDArray[np.bool_]

    @classmethod
    def of(cls, key: Key | Disclosure) -> Secret:
        """Derive it from a key with its inputs."""
        layout, held = key.layout, groups.checked(key)
        params: Any = layout.params  # Any: JSON that new_key wrote
        if len(key.shards) != 1:
            raise KeyLayoutError(
                f"A key of '{layout.scheme}' has one shard; {len(key.shards)} came.",
                expected="One: of several, the best could be put first.",
            )
        (shard,) = key.shards
        carriers = tuple(int(item) for item in params["carriers"])
        raw = np.array(shard.stream("message").bits(layout.message_bits), dtype=bool)
        stream = shard.stream("projection")
        return cls(
            layout.carrier,
            held["inputs"],
            held["group"].numpy(),
            int(params["classes"]),
            carriers,
            tuple(normal(stream, (int(width), int(params["bits"]))) for width in params["widths"]),
            raw.reshape(len(layout.carrier), len(carriers), int(params["bits"])),
        )

    def right(self, features: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Return which bits a host's activations decode rightly; NaN never does.

        Raises:
            CarrierError: A layer has another width than the key's.
        """
        found = np.zeros(self.bits.shape, dtype=bool)
        for i, (name, projection) in enumerate(zip(self.names, self.projections, strict=True)):
            if features[name].shape[1] != len(projection):
                raise CarrierError(
                    f"Layer '{name}' has {features[name].shape[1]} units; the key's had "
                    f"{len(projection)}."
                )
            for k, carrier in enumerate(self.carriers):
                score = features[name][self.group == carrier].mean(axis=0) @ projection
                found[i, k] = np.isfinite(score) & ((score > 0) == self.bits[i, k])
        return found


def normal(stream: KeyStream, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return keyed standard normal numbers (Box and Muller)."""
    count = shape[0] * shape[1]
    raw = np.frombuffer(stream.bytes(16 * count), np.uint64) >> np.uint64(11)
    u, v = (raw.astype(np.float64) + 0.5).reshape(2, count) / 2.0**53
    made: NDArray[np.float64] = (np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)).reshape(shape)
    return made


class CenterMark(Mark):
    """The mark while it is embedded: trained centers and the terms around them.

    Args:
        model: The model.
        secret: What the key says.
        scheme: Settings.
        forward: How to run the model.
    """

    def __init__(
        self, model: nn.Module, secret: Secret, scheme: DeepSignsPaper, forward: Forward
    ) -> None:
        self.model, self.secret, self.scheme, self.forward = model, secret, scheme, forward
        device = next(model.parameters()).device
        self._group = torch.from_numpy(secret.group)
        self._carriers = torch.tensor(secret.carriers)
        self._projections = [
            torch.from_numpy(item).float().to(device) for item in secret.projections
        ]
        self._bits = torch.from_numpy(secret.bits).float().to(device)
        self._random = torch.Generator().manual_seed(0)
        self.centers = [nn.Parameter(start.to(device)) for start in self._starts(device)]
        self._optimizer = torch.optim.Adam(self.centers, lr=scheme.center_lr)

    def _starts(self, device: torch.device) -> list[Tensor]:
        if self.scheme.start == "random":
            shapes = [(self.secret.classes, len(item)) for item in self._projections]
            return [torch.rand(shape, generator=self._random) for shape in shapes]
        with taps.frozen_forward(self.model):
            found = self._features(torch.arange(len(self._group)), device)
        classes = range(self.secret.classes)
        return [
            torch.stack([rows[self._group == c].mean(dim=0) for c in classes]) for rows in found
        ]

    def _features(self, index: Tensor, device: torch.device) -> list[Tensor]:
        inputs = batches.take(self.secret.inputs, index)
        with taps.reading(self.model, self.secret.names) as seen:
            self.forward(self.model, batches.transform(inputs, lambda tensor: tensor.to(device)))
        return [seen[name].float() for name in self.secret.names]

    def loss(self) -> Tensor:
        """Return the term on a random part of the key's inputs."""
        device = self.centers[0].device
        drawn = torch.randperm(len(self._group), generator=self._random)[: self.scheme.samples]
        with quiet(self.model):
            found = self._features(drawn, device)
        group = self._group[drawn].to(device)
        total = torch.zeros((), device=device)
        for i, rows in enumerate(found):
            centers = self.centers[i]
            logits = centers[self._carriers.to(device)] @ self._projections[i]
            push = functional.binary_cross_entropy_with_logits(logits, self._bits[i])
            near = (
                self._paper(centers, rows, group)
                if self.scheme.variant == "paper"
                else self._official(centers, rows, group)
            )
            total = total + self.scheme.pull * near + self.scheme.push * push * logits.numel()
        return total

    def _paper(self, centers: Tensor, rows: Tensor, group: Tensor) -> Tensor:
        """Pull the secret classes to their centers; optionally move these from the others."""
        secret = torch.isin(group, self._carriers.to(group.device))
        near = rows.new_zeros(())
        if secret.any():
            gaps = (rows[secret] - centers[group[secret]]).square().sum(dim=1)
            near = gaps.mean() * len(self._carriers)
        if self.scheme.separate:
            mine = torch.zeros(len(centers), dtype=torch.bool, device=group.device)
            mine[self._carriers] = True
            near = near - torch.cdist(centers[mine], centers[~mine]).square().sum()
        return near

    def _official(self, centers: Tensor, rows: Tensor, group: Tensor) -> Tensor:
        """Pull every class to its center; keep centers at unit length; optionally separate."""
        near = 0.5 * (rows - centers[group]).square().sum(dim=1).mean()
        near = near + (1 - centers.square().sum(dim=1)).abs().sum()
        if self.scheme.separate:
            apart = torch.cdist(centers, centers).square()
            rival = (apart + torch.diag(torch.full_like(apart[0], torch.inf))).argmin(dim=1)
            own = centers[group]
            other = centers[rival[group]]
            distance = (own - other).square().sum(dim=1)
            near = near + ((own * other).sum(dim=1) * distance - distance).mean()
        return near

    def after_step(self, lr: float) -> None:  # noqa: ARG002 - the centers have their own
        """Move the centers."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the centers."""
        yield from self.centers

    def state_dict(self) -> Mapping[str, Any]:  # Any: tensors and plain values
        """Return the centers and their optimizer's state."""
        return {
            "centers": [center.detach() for center in self.centers],
            "optimizer": self._optimizer.state_dict(),
            "random": self._random.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take them back."""
        with torch.no_grad():
            for center, kept in zip(self.centers, state["centers"], strict=True):
                center.copy_(kept)
        self._optimizer.load_state_dict(state["optimizer"])
        self._random.set_state(state["random"])
