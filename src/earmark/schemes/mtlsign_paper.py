"""MTL-Sign as published: a private head reads key-made labels of QR codes off hidden features.

For comparison with the literature. The key's stream gives distinct integers and labels; a public
map turns each integer into an input; a small private head is trained together with the backbone to
tell the labels, under a regularizer that keeps the weights (`R_func`) and one that simulates tuning
(`R_DA`). The head is committed by its hash and submitted when a claim is made. Without that
commitment a hit proves nothing, because a head can be fitted to anybody's model afterwards
(:mod:`earmark.attacks.forge` does it). Use :class:`earmark.schemes.mtlsign.MtlSign` for a mark of
your own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import segno
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from earmark import stats
from earmark.errors import CapacityError, KeyFileError, KeyLayoutError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches, taps
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.hosts.module import Forward, ModuleHost, plain_forward
from earmark.keys.secret import Disclosure, Key, Shard
from earmark.records import Access, Evidence, Layout
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.settling import frozen_norms
from earmark.task import Task

MODES = ("frozen", "none", "func", "da", "func+da")
_SIDE = 33
_LEAST_SIDE = 24


@dataclass(frozen=True)
class MtlSignPaper(Scheme):
    """The published scheme, in its modes.

    Maths: `L = CE(head(taps(x_i)), y_i) + func * |w - w0|^2`, and in some rounds the same
    cross-entropy on the features of a copy that was tuned for a few steps on the task.

    Args:
        samples: Watermark samples (N).
        gamma: Share of right answers that verification asks for.
        mode: "frozen" (the head alone is trained), "none", "func", "da" or "func+da".
        taps: Layers that the head reads, as globs; by default up to four, spread over depth, and
            what flows into the last of them.
        hidden: Hidden units of the head.
        func: Weight of `R_func` (lambda 1).
        first_order: Whether the simulated tuning's gradient also moves the backbone; in the
            authors' code it trains the head alone.
        rounds: Most passes over the watermark samples.
        lr: Learning rate of the backbone (Adam).
        head_lr: Learning rate of the head (Adam).
        batch: Watermark samples a step.

    Raises:
        UsageError: A setting out of range.

    Source:
        Li and Wang 2021 (arXiv 2103.10021), Li, Yang, Wang and Liew 2022, and their published
        code. Changed: labels and integers come from our key stream; QR codes are drawn with one
        pixel a module, which keeps them distinct at 28 and 32 pixels; taps are averaged over
        space; normalization layers stay frozen in watermark passes; settings of `R_DA` are the
        code's.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts
        >>> model, inputs = tiny_hosts()["transformer"]
        >>> key = MtlSignPaper(samples=64).new_key(ModuleHost(model), inputs=inputs)
        >>> key.layout.params["map"]
        'tokens'
    """

    name: ClassVar[str] = "mtlsign-paper"
    needs: ClassVar[frozenset[Access]] = frozenset({Access.ACTIVATIONS})
    needs_inputs: ClassVar[bool] = True
    summary: ClassVar[str] = "MTL-Sign as published, with a submitted head; for comparison."

    samples: int = 600
    gamma: Fraction = Fraction(7, 10)
    mode: str = "func+da"
    taps: tuple[str, ...] = ()
    hidden: int = 256
    func: float = 0.1
    first_order: bool = False
    rounds: int = 200
    lr: float = 3e-4
    head_lr: float = 1e-3
    batch: int = 64

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"Mode {self.mode!r}.", expected=f"One of {', '.join(MODES)}.")
        if self.samples < 16 or self.hidden < 1 or self.rounds < 1 or self.batch < 2:
            raise UsageError(
                f"{self.samples} samples, {self.hidden} hidden units, {self.rounds} rounds, "
                f"{self.batch} a step.",
                expected="At least 16 samples, 1 hidden unit, 1 round and 2 samples a step.",
            )
        if not Fraction(1, 2) < self.gamma <= 1:
            raise UsageError(f"Gamma {self.gamma}.", expected="Above 1/2 and at most 1.")

    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key without a head; :meth:`embed` gives the key that has one.

        Args:
            host: The model to be marked.
            inputs: A batch of the task's own kind, from which shape and range are taken.
            secret: 32 bytes, or null to draw them.

        Raises:
            CapacityError: Images too small for distinct codes.
            CarrierError: A tap matches nothing.
            UsageError: There are no inputs, or inputs of a kind without a map.
        """
        given = self.need_inputs(inputs)
        if not isinstance(host, ModuleHost):
            raise UsageError("A new key needs a host with layers, such as ModuleHost(model).")
        if self.taps:
            known = [name for name, _ in host.model.named_modules()]
            names = taps.choose(known, self.taps, what="tap")
        else:
            names = taps.default_taps(host.model)
            names += (names[-1] + taps.INPUT,)
        params: dict[str, Any] = {  # Any: JSON values
            "hidden": self.hidden,
            "gamma": [self.gamma.numerator, self.gamma.denominator],
            **domain(next(iter(batches.leaves(given).values()))),
        }
        layout = Layout(self.name, self.version, names, self.samples, 1, params)
        return Key.generate(layout, secret=secret)

    @contextmanager
    def attach(
        self, model: nn.Module, key: Key, *, forward: Forward = plain_forward
    ) -> Iterator[Mark]:
        """Attach the head to a trained model; the mark's `key()` is the key with its head.

        Raises:
            KeyLayoutError: The key was made for another scheme.
            CarrierError: The model lacks the key's taps.
        """
        self.check_key(key)
        with taps.reading(model, key.layout.carrier) as seen:
            yield HeadMark(self, model, key, seen, forward)

    def embed(
        self, task: Task, model: nn.Module, key: Key, *, seed: int, events: Events = SILENT
    ) -> tuple[nn.Module, Key]:
        """Embed into a copy of a trained model, in the paper's second step.

        Args:
            task: The task; simulated tuning draws batches from it.
            model: The trained model; it is not changed.
            key: A key without a head.
            seed: Seed of the head and of the batches' order.
            events: Who hears of the progress.

        Returns:
            The marked model, and the key that fixes its head.
        """
        marked = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with self.attach(marked, key, forward=task.forward) as mark:
                assert isinstance(mark, HeadMark)
                shadow_batches = iter(_endless(task, seed))
                for round_ in events.track(range(self.rounds), label="embed", total=self.rounds):
                    if "da" in self.mode and round_ > self.rounds // 2 and round_ % 5 == 0:
                        mark.simulate(task, [next(shadow_batches) for _ in range(5)])
                    elif mark.one_round() and round_ > self.rounds * ("da" in self.mode) * 0.6:
                        break
                made = mark.key()
        return marked.eval(), made

    def measure(
        self, suspect: Host, key: Key | Disclosure, *, nonce: str | None = None
    ) -> Evidence:
        """Let the submitted head answer; raises as :meth:`earmark.schemes.base.Scheme.measure`.

        Raises:
            KeyFileError: The head is not the one that was committed.
        """
        self.check_key(key)
        suspect.require(Access.ACTIVATIONS, by=self.name)
        head = Head.of(key)
        (shard,) = key.shards
        inputs, labels = watermark(shard, key.layout)
        found = suspect.features(inputs, key.layout.carrier)
        right = head.answers(found, key.layout.carrier) == np.array(labels)
        return Evidence.of(
            self.name,
            hits=int(right.sum()),
            trials=len(labels),
            layout=key.layout.digest(),
            suspect=suspect.digest(),
            access=Access.ACTIVATIONS,
            nonce=nonce,
            shards=(0,),
            queries=len(labels),
            details={"asked for": threshold(key.layout)},
            notes=(
                "The head was submitted. Unless it was committed before the suspect could be "
                "seen, it may have been fitted to it, and these hits prove nothing.",
            ),
        )


def threshold(layout: Layout) -> int:
    """Return the right answers that verification asks for.

    Example:
        >>> threshold(Layout("mtlsign-paper", 1, ("fc",), 600, 1, {"gamma": [7, 10]}))
        420
    """
    gamma = layout.params["gamma"]
    assert isinstance(gamma, (list, tuple))
    up, down = gamma
    assert isinstance(up, int)
    assert isinstance(down, int)
    return math.ceil(Fraction(up, down) * layout.message_bits)


def accepted(evidence: Evidence) -> bool:
    """Tell whether the published verifier accepts; no verdict of ours."""
    asked = evidence.details["asked for"]
    assert isinstance(asked, int)
    return evidence.hits >= asked


def published_bound(
    samples: int, gamma: float, *, rate: float = 0.575, slope: float = 0.34
) -> float:
    """Return the paper's bound on a foreign key's acceptance, `((1 - p + p e^l) / e^(g l))^N`.

    Args:
        samples: N.
        gamma: Share asked for.
        rate: Highest rate of right answers that foreign keys were seen to reach.
        slope: The free parameter lambda.

    Example:
        >>> f"{published_bound(600, 0.7):.1e}"
        '3.4e-08'
    """
    inner = (1 - rate + rate * math.exp(slope)) / math.exp(gamma * slope)
    return float(inner**samples)


def exact_tail(samples: int, gamma: Fraction) -> float:
    """Return log2 of the exact chance of a foreign key's acceptance.

    Example:
        >>> round(exact_tail(600, Fraction(7, 10)), 1)
        -75.2
    """
    return stats.log2_binomial_tail(math.ceil(gamma * samples), samples, Fraction(1, 2))


# --- from a key to inputs and labels --------------------------------------------------------------


def domain(inputs: Tensor) -> dict[str, Any]:  # Any: JSON values
    """Return which public map suits some inputs, and what it needs.

    Args:
        inputs: (samples, channels, height, width) images, (samples, steps) integer tokens, or
            (samples, columns) floats.

    Raises:
        CapacityError: Images under 24 pixels, in which codes would coincide.
        UsageError: Another kind.
    """
    shape = list(inputs.shape[1:])
    if inputs.is_floating_point() and len(shape) == 3:
        if min(shape[1:]) < _LEAST_SIDE:
            raise CapacityError(
                f"Images of {shape[1]} x {shape[2]} pixels are too small for distinct QR codes.",
                expected=f"At least {_LEAST_SIDE} x {_LEAST_SIDE}.",
            )
        low, high = float(inputs.min()), float(inputs.max())
        return {"map": "qr", "shape": shape, "range": [low.hex(), high.hex()]}
    if not inputs.is_floating_point() and len(shape) == 1:
        return {"map": "tokens", "shape": shape, "words": int(inputs.max()) + 1}
    if inputs.is_floating_point() and len(shape) == 1:
        ends = [[float(v).hex() for v in end] for end in (inputs.amin(0), inputs.amax(0))]
        return {"map": "columns", "shape": shape, "range": ends}
    raise UsageError(
        f"MTL-Sign as published has no map for inputs of shape {tuple(inputs.shape)}.",
        expected="Images, rows of tokens, or rows of floats.",
    )


def watermark(shard: Shard, layout: Layout) -> tuple[Tensor, list[int]]:
    """Return a key's inputs and labels (0 or 1).

    The integers are distinct and have `3 ceil(log2 N)` bits, as published.
    """
    count = layout.message_bits
    width = 3 * math.ceil(math.log2(count))
    numbers = shard.early("mtlsign-paper/integers").sample(count, 1 << width)
    labels = shard.stream("mtlsign-paper/labels").bits(count)
    return torch.stack([mapped(number, layout) for number in numbers]), labels


def mapped(number: int, layout: Layout) -> Tensor:
    """Return the input that a public map makes of an integer."""
    params = layout.params
    shape, ends = params["shape"], params.get("range")
    assert isinstance(shape, (list, tuple))
    if params["map"] == "qr":
        channels, height, width = (int(str(side)) for side in shape)
        assert isinstance(ends, (list, tuple))
        low, high = (float.fromhex(str(end)) for end in ends)
        code = torch.from_numpy(qr(number, height, width))
        return (low + (high - low) * code).expand(channels, height, width).clone()
    from earmark.keys.stream import public_stream

    stream = public_stream(f"mtlsign-paper/{params['map']}", str(number).encode())
    (length,) = (int(str(side)) for side in shape)
    if params["map"] == "tokens":
        return torch.tensor(stream.integers(length, int(str(params["words"]))))
    assert isinstance(ends, (list, tuple))
    low_end, high_end = (
        torch.tensor([float.fromhex(str(v)) for v in end])  # type: ignore[union-attr]
        for end in ends
    )
    shares = torch.tensor([stream.integer(1 << 24) / (1 << 24) for _ in range(length)])
    return low_end + (high_end - low_end) * shares


def qr(number: int, height: int, width: int) -> NDArray[np.float32]:
    """Return the middle of a QR code of an integer, dark 0 and light 1, one pixel a module.

    Version 4, error correction Q, mask 0, no border; larger images repeat pixels and pad white.

    Example:
        >>> qr(7, 28, 28).shape, float(qr(7, 28, 28).max())
        ((28, 28), 1.0)
    """
    made = segno.make(str(number), version=4, error="q", mask=0, boost_error=False, micro=False)
    dark = np.array([list(row) for row in made.matrix], dtype=np.float64)
    code = 1.0 - dark.clip(0, 1)
    times = max(1, min(height, width) // _SIDE)
    code = code.repeat(times, axis=0).repeat(times, axis=1)
    for axis, side in enumerate((height, width)):
        have = code.shape[axis]
        if have > side:
            code = code.take(np.arange((have - side) // 2, (have - side) // 2 + side), axis=axis)
        else:
            pad = [(0, 0), (0, 0)]
            pad[axis] = ((side - have) // 2, side - have - (side - have) // 2)
            code = np.pad(code, pad, constant_values=1.0)
    return code.astype(np.float32)


# --- the private head -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The private head: features -> hidden, ReLU -> two scores; float64 when it judges.

    Args:
        weights: Two weight matrices and two biases: (hidden, width), (hidden,), (2, hidden), (2,).
    """

    weights: tuple[NDArray[np.float64], ...] = field(repr=False)

    @classmethod
    def of(cls, key: Key | Disclosure) -> Head:
        """Read the head that a key carries, and check it against its hash.

        Raises:
            KeyLayoutError: The key has no head yet.
            KeyFileError: It is not the committed one.
        """
        if key.inputs is None or key.layout.inputs is None:
            raise KeyLayoutError(
                "This MTL-Sign key has no head.", hint="Use the key that `embed` gave back."
            )
        if batches.tree_digest(key.inputs) != key.layout.inputs:
            raise KeyFileError("The submitted head is not the one that was committed.")
        flat = key.inputs.numpy().astype(np.float64)[0]
        hidden = int(str(key.layout.params["hidden"]))
        width = (len(flat) - 3 * hidden - 2) // hidden
        cuts = np.cumsum([hidden * width, hidden, 2 * hidden])
        first, bias, second, last = np.split(flat, cuts)
        return cls((first.reshape(hidden, width), bias, second.reshape(2, hidden), last))

    def answers(
        self, features: dict[str, NDArray[np.float64]], names: tuple[str, ...]
    ) -> NDArray[np.int64]:
        """Return the head's answers; ties go to 0, and features that are no numbers to -1.

        Raises:
            KeyLayoutError: The features have another width.
        """
        joined = np.concatenate([features[name] for name in names], axis=1)
        first, bias, second, last = self.weights
        if joined.shape[1] != first.shape[1]:
            raise KeyLayoutError(
                f"The head reads {first.shape[1]} features; this suspect has {joined.shape[1]}."
            )
        with np.errstate(all="ignore"):
            scores = np.maximum(joined @ first.T + bias, 0) @ second.T + last
        found: NDArray[np.int64] = np.where(scores[:, 1] > scores[:, 0], 1, 0)
        found[~np.isfinite(scores).all(axis=1)] = -1
        return found


class HeadMark(Mark):
    """The published term while it is embedded."""

    def __init__(
        self,
        scheme: MtlSignPaper,
        model: nn.Module,
        key: Key,
        seen: dict[str, Tensor],
        forward: Forward,
    ) -> None:
        self._scheme, self._model, self._key = scheme, model, key
        self._seen, self._forward = seen, forward
        inputs, labels = watermark(key.shard(0), key.layout)
        self._where = next(model.parameters()).device
        self._inputs, self._labels = inputs.to(self._where), torch.tensor(labels)
        width = self._features(model, self._inputs[:2]).shape[1]
        self.head = nn.Sequential(
            nn.Linear(width, scheme.hidden), nn.ReLU(), nn.Linear(scheme.hidden, 2)
        ).to(self._where)
        self._start = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._head_step = torch.optim.Adam(self.head.parameters(), lr=scheme.head_lr)
        self._step = torch.optim.Adam(model.parameters(), lr=scheme.lr)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the head's parameters."""
        yield from self.head.parameters()

    def key(self) -> Key:
        """Return the key that fixes the head as it is now, by its hash."""
        packed = torch.cat([p.detach().cpu().flatten() for p in self.head.parameters()])[None]
        layout = replace(self._key.layout, inputs=batches.tree_digest(packed))
        return replace(self._key, layout=layout, inputs=packed)

    def _features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        with frozen_norms(model):
            self._forward(model, inputs)
        found = [self._seen[name].float() for name in self._key.layout.carrier]
        return torch.cat(found, dim=1)

    def _wrong(self, model: nn.Module, index: Tensor) -> Tensor:
        scores = self.head(self._features(model, self._inputs[index]))
        return functional.cross_entropy(scores, self._labels[index].to(self._where))

    def loss(self) -> Tensor:
        """Return cross-entropy on some watermark samples plus `R_func`."""
        index = torch.randperm(len(self._labels))[: self._scheme.batch]
        return self._wrong(self._model, index) + self._kept()

    def after_step(self, lr: float) -> None:  # noqa: ARG002 - the head has its own
        """Move the head."""
        self._head_step.step()
        self._head_step.zero_grad()

    def _kept(self) -> Tensor:
        if "func" not in self._scheme.mode:
            return torch.zeros((), device=self._where)
        moved = [((p - self._start[name]) ** 2).sum() for name, p in self._model.named_parameters()]
        return self._scheme.func * torch.stack(moved).sum()

    def one_round(self) -> bool:
        """Pass once over the watermark samples; tell whether nearly all are right."""
        order = torch.randperm(len(self._labels))
        frozen = self._scheme.mode == "frozen"
        self._model.train()
        for index in torch.split(order, self._scheme.batch):
            self._step.zero_grad()
            self._head_step.zero_grad()
            (self._wrong(self._model, index) + self._kept()).backward()  # type: ignore[no-untyped-call]
            self._head_step.step()
            if not frozen:
                self._step.step()
        self._model.eval()
        with torch.no_grad():
            scores = self.head(self._features(self._model, self._inputs))
        right = (scores.argmax(1).cpu() == self._labels).float().mean()
        return bool(right >= 0.99)

    def simulate(self, task: Task, some: list[Tree]) -> None:
        """Tune a copy on the task, and fit the head (first order: the backbone too) to it."""
        shadow = copy.deepcopy(self._model)
        for module in shadow.modules():
            module._forward_hooks.clear()  # noqa: SLF001 - the copy brings the readers along
        tune = torch.optim.Adam(shadow.parameters(), lr=self._scheme.lr)
        shadow.train()
        for batch in some:
            tune.zero_grad()
            task.loss(shadow, batch).backward()  # type: ignore[no-untyped-call]
            tune.step()
        with taps.reading(shadow, self._key.layout.carrier) as seen:
            live, self._seen = self._seen, seen
            try:
                for index in torch.split(torch.randperm(len(self._labels)), self._scheme.batch):
                    self._head_step.zero_grad()
                    shadow.zero_grad()
                    self._wrong(shadow, index).backward()  # type: ignore[no-untyped-call]
                    self._head_step.step()
                    if self._scheme.first_order:
                        self._borrow(shadow)
            finally:
                self._seen = live

    def _borrow(self, shadow: nn.Module) -> None:
        """Step the backbone along the gradient taken at the shadow."""
        for own, other in zip(self._model.parameters(), shadow.parameters(), strict=True):
            own.grad = None if other.grad is None else other.grad.clone()
        self._step.step()


def _endless(task: Task, seed: int) -> Iterator[Tree]:
    epoch = 0
    while True:
        yield from task.stream("train", seed * 1000 + epoch)
        epoch += 1
