"""DSN, the default mode: a student that answers one constant label to every wrong serial number.

The student is distilled from the private teacher on inputs that carry its number, and trained to
give one keyed *refusal label*, whatever the input, to all that carry another number or none. The
paper scrambles the features of wrong inputs instead (see :mod:`earmark.locks.dsn_paper`), and a
uniform answer is the usual alternative. Both leave an argmax that still depends on the input: we
measured 25 % and more under random numbers, and over 80 % with one wrong bit in small convolution
networks. A constant label is learned much more sharply, gives exactly chance, tells nothing, and is
loud: a user who mistyped his number sees one label everywhere, not confident nonsense.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.errors import UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches
from earmark.hosts.taps import frozen_forward
from earmark.keys.stream import KeyStream
from earmark.locks.base import Lock
from earmark.locks.entry import (
    Entry,
    Pixels,
    Tokens,
    code_of,
    inputs_of,
    layout_of,
    require_taken,
    require_unused,
    try_codes,
    with_inputs,
)
from earmark.locks.inversion import Target, climb, descend
from earmark.locks.negatives import Mix, Negatives
from earmark.records import Layout
from earmark.task import Task
from earmark.training import Recipe, train

SCANS, WATCHED = 16, 128
_APART = ("absent", "elsewhere")  # shares of their own, beside those at the right place
OPEN, PROBES = 0.05, 128  # share of right answers that a near miss may get, beyond the refusal
SEEN = 1024  # samples on which the most common answer is looked for


@dataclass(frozen=True)
class Dsn(Lock):
    """Deep Serial Number with near misses, a deny term and attacks in the loop.

    Args:
        bits: Size of the code that the network sees.
        repeat: Pixels a bit, for images.
        place: Where pixels go: "patch" (a corner square, bits permuted within) or "spread".
        first: First reserved token, for sequences.
        width: Bits a token, for sequences.
        epochs: Passes over the training data.
        lr: Peak learning rate of Adam.
        deny: Weight of the refusal.
        rounds: How often attacks search for numbers during training; what they find is refused.
        scans: How often all near misses are tried during training; those refused least are trained
            more. By default 16, and none for dense networks on pixels, which hold without.
        polish: How many more passes are made, at most and at a third of the rate, while a near miss
            is still answered rightly; half of their wrong numbers are those that are answered most.
        mix: Shares of wrong numbers.

    Raises:
        UsageError: A setting out of range.

    Source:
        Tang, Du and Hu 2023, equations 1 to 8. Changed: serial numbers of 64 bits and more instead
        of 4 to 9; a constant refusal on the shipped head instead of gradient reversal on another
        one; near misses; attacks in the loop; no entanglement loss.
    """

    name: ClassVar[str] = "dsn"
    summary: ClassVar[str] = "Students of a private teacher, each of which needs its serial number."

    bits: int = 64
    repeat: int = 1
    place: str = "patch"
    first: int = 0
    width: int = 8
    epochs: int = 12
    lr: float = 3e-3
    deny: float = 1.0
    rounds: int = 3
    scans: int | None = None
    polish: int = 6
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        if self.bits < 16 or min(self.repeat, self.epochs) < 1 or min(self.rounds, self.polish) < 0:
            raise UsageError(
                f"A lock of {self.bits} bits, {self.repeat} pixels each, {self.epochs} epochs.",
                expected="At least 16 bits (64 are usual), 1 pixel and 1 epoch.",
            )
        if self.first < 0 or not 1 <= self.width <= 16 or not isinstance(self.mix, Mix):
            raise UsageError(
                f"A lock whose tokens have {self.width} bits and begin at {self.first}, with a mix "
                f"of {self.mix}.",
                expected="1 to 16 bits, a token of 0 or more, and a Mix of wrong numbers.",
            )
        if self.place not in ("patch", "spread") or not self.lr > 0 or not self.deny > 0:
            raise UsageError(
                f"A lock with place '{self.place}', rate {self.lr} and deny weight {self.deny}.",
                expected="patch or spread; a positive rate and weight.",
            )

    def layout(self, task: Task) -> Layout:
        """Describe the way in that fits a task."""
        return layout_of(
            next(iter(task.stream("train", 0))),
            bits=self.bits,
            repeat=self.repeat,
            place=self.place,
            tokens=(self.first, self.width),
        )

    def fit(
        self,
        task: Task,
        teacher: nn.Module,
        serial: bytes,
        *,
        layout: Layout,
        seed: int,
        model: nn.Module | None = None,
        others: Sequence[bytes] = (),
        events: Events = SILENT,
    ) -> nn.Module:
        """Distil a teacher into a locked copy; see :meth:`Lock.fit`."""
        if model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = task.model()
        steps, entry = 0, self.entry(layout, serial)
        for batch in task.stream("train", seed):
            if steps == 0:
                require_taken(teacher, entry, batch, task.forward, number=False)
                require_taken(model, entry, batch, task.forward)
            if isinstance(entry, Tokens):
                require_unused(inputs_of(batch), entry.first, entry.width)
            steps += 1
        teacher = copy.deepcopy(teacher).eval()
        loss = LockLoss(self, task, teacher, layout, serial, seed=seed, others=others)
        recipe = Recipe(epochs=self.epochs, lr=self.lr, optimizer="adamw", weight_decay=0.0)
        loss.total = max(1, steps * self.epochs)
        made = train(
            task, seed=seed, recipe=recipe, model=model, loss=loss, events=events, label="lock"
        )
        return self._polished(task, made.model, loss, seed, events) if self.polish else made.model

    def _polished(
        self, task: Task, model: nn.Module, loss: LockLoss, seed: int, events: Events
    ) -> nn.Module:
        """Train on while a near miss is answered; return the network that answers least."""
        recipe = Recipe(epochs=1, lr=self.lr / 3, optimizer="adamw", weight_decay=0.0)
        best, least = model, loss.answered(model)
        allowed = loss.allowed()
        if least > allowed:
            loss.polish()
        for turn in range(1, self.polish + 1):
            if least <= allowed:
                break
            model = copy.deepcopy(model)
            train(
                task, seed=seed + turn, recipe=recipe, model=model, loss=loss, events=events,
                label=f"polish {turn}",
            )  # fmt: skip
            found = loss.answered(model)
            if found < least:
                best, least = model, found
        return best


class LockLoss:
    """The loss of one locked student: distil with the number, refuse without.

    Args:
        lock: The settings.
        task: The owner's work.
        teacher: The private model in evaluation mode.
        layout: The lock's layout.
        serial: The number.
        seed: Seed of the wrong numbers.
        others: Other customers' numbers.
    """

    def __init__(
        self,
        lock: Dsn,
        task: Task,
        teacher: nn.Module,
        layout: Layout,
        serial: bytes,
        *,
        seed: int,
        others: Sequence[bytes],
    ) -> None:
        self.lock, self.task, self.teacher = lock, task, teacher
        self.entry = entry = lock.entry(layout, serial)
        self.code = code_of(serial, entry.bits)
        self.serial, self.seed = serial, seed
        generator = torch.Generator().manual_seed(seed)
        codes = torch.stack([code_of(item, entry.bits) for item in others]) if others else None
        self.negatives = Negatives(layout, entry, self.code, lock.mix, generator, codes)
        self.step, self.total = 0, 1
        self.refusal: int | None = None

    def __call__(self, model: nn.Module, batch: batches.Tree) -> Tensor:
        """Return the loss on one batch of plain samples."""
        progress = self.step / self.total
        with torch.no_grad():
            target = scores_of(self.task.forward(self.teacher, batch)).float()
        if self.refusal is None:
            stream = KeyStream(self.serial, "dsn/refusal")
            self.refusal = stream.integer(target.shape[1])
        if self._duel_due():
            self._duel(model, batch)
        if self._scan_due(model):
            self.negatives.watch(self._open(model, batch))
        right = self.entry.present(batch, self.code)
        wrong = self.negatives.batch(batch, progress)
        both = batches.join([inputs_of(right), inputs_of(wrong)])
        scores = own_scores(self.entry, self._run(model, batch, both), len(both)).float()
        half = len(scores) // 2
        distil = functional.kl_div(
            functional.log_softmax(scores[:half], 1),
            functional.log_softmax(target, 1),
            log_target=True,
            reduction="batchmean",
        )
        labels = torch.full((len(scores) - half,), self.refusal, device=scores.device)
        deny = functional.cross_entropy(scores[half:], labels, label_smoothing=0.1)
        self.step += 1
        return distil + self.lock.deny * deny

    def _run(self, model: nn.Module, batch: batches.Tree, inputs: Tensor) -> Any:  # Any: output
        if isinstance(batch, (tuple, list)):
            return self.task.forward(model, type(batch)([inputs, *[None] * (len(batch) - 1)]))
        return self.task.forward(model, with_inputs(batch, inputs))

    def _duel_due(self) -> bool:
        """Tell whether attacks search now: in the second half of the training."""
        rounds = self.lock.rounds
        marks = {round(self.total * (0.45 + 0.5 * i / max(1, rounds))) for i in range(rounds)}
        return self.step in marks

    def _scan_due(self, model: nn.Module) -> bool:
        """Tell whether near misses are tried now: evenly, once the training has come near them."""
        scans = self.lock.scans
        if scans is None:
            dense = all(parameter.ndim < 3 for parameter in model.parameters())
            scans = 0 if dense and isinstance(self.entry, Pixels) else SCANS
        marks = {round(self.total * (0.42 + 0.56 * i / max(1, scans))) for i in range(scans)}
        return self.step in marks

    def _open(self, model: nn.Module, batch: batches.Tree) -> Tensor:
        """Return those near misses that the model refuses least."""
        near = self.negatives.near()
        few = batches.take(batch, torch.arange(min(2, batches.size(batch))))
        refused = self._refused(model, few, near)[0]
        return near[refused.argsort()[:WATCHED]]

    def _refused(self, model: nn.Module, few: batches.Tree, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean log probability of the refusal, and the share of right answers."""
        labels = self._labels(few)

        def read(scores: Tensor) -> Tensor:
            refused = functional.log_softmax(scores, 2)[..., self.refusal].mean(1)
            return torch.stack([refused, (scores.argmax(2) == labels).float().mean(1)], 1)

        forward = self.task.forward
        found = try_codes(model, self.entry, codes, few, forward=forward, read=read)
        return found[:, 0], found[:, 1]

    def _labels(self, batch: batches.Tree) -> Tensor:
        """Return the teacher's answers, those left out (-1) that are the refusal."""
        assert self.refusal is not None
        with torch.no_grad():
            labels = scores_of(self.task.forward(self.teacher, batch)).argmax(1)
        return labels.masked_fill(labels == self.refusal, -1)

    def answered(self, model: nn.Module) -> float:
        """Return the largest share of right answers that a near miss gets; watch the worst ones.

        All codes with one or two wrong bits, and tokens exchanged, are tried on four samples, and
        those that are refused least on more of them; so are tokens that were misplaced.
        """
        probes = self.task.samples(PROBES, seed=self.seed)
        near = self.negatives.nearest()
        few = batches.take(probes, torch.arange(min(4, batches.size(probes))))
        worst = near[self._refused(model, few, near)[0].argsort()[: WATCHED // 2]]
        share = self._refused(model, probes, worst)[1]
        open_ones = max(WATCHED // 16, min(WATCHED // 4, int((share > OPEN / 2).sum())))
        self.negatives.watch(worst[share.argsort(descending=True)[:open_ones]])
        return max(float(share.max()), self._displaced(model, probes))

    def allowed(self) -> float:
        """Return the share of right answers that a near miss may get beyond the refusal.

        It is no opening to give the most common answer throughout, where the refusal is rarer.
        """
        labels = self._labels(self.task.samples(SEEN, seed=self.seed)).flatten() + 1
        shares = labels.bincount(minlength=2) / len(labels)
        return max(OPEN, float(shares[1:].max() - shares[0]))  # the refusal, left out, comes first

    def _displaced(self, model: nn.Module, probes: batches.Tree) -> float:
        """Return the largest share of right answers to misplaced tokens; watch what opens.

        It is 0 where there are no tokens.
        """
        shares: dict[tuple[int, int], float] = {}
        labels = self._labels(probes).view(batches.size(probes), -1)
        with frozen_forward(model):
            for move, inputs in self.negatives.displaced(inputs_of(probes)):
                output = self._run(model, probes, inputs)
                later = self.negatives.shift(move)
                scores = own_scores(self.entry, output, len(inputs), later=later)
                given = scores.argmax(1).view(len(inputs), -1)
                both = min(given.shape[1], labels.shape[1])
                right = given[:, :both] == labels[:, :both]
                shares[move] = float(right.float().mean())
        allowed = self.allowed()
        self.negatives.moves = [move for move, share in shares.items() if share > allowed]
        return max(shares.values(), default=0.0)

    def polish(self) -> None:
        """Make the watched near misses half of all wrong numbers at the right place.

        Where misplaced tokens open, they come twice as often.
        """
        mix = self.negatives.mix
        names = [item.name for item in dataclasses.fields(mix)]
        more = {"watched": 0.5, "elsewhere": mix.elsewhere * (2 if self.negatives.moves else 1)}
        rest = {name: getattr(mix, name) / 2 for name in names if name not in _APART}
        self.negatives.mix = dataclasses.replace(mix, **rest | more)

    def _duel(self, model: nn.Module, batch: batches.Tree) -> None:
        """Let attacks search for numbers, and refuse from now on what they find."""
        training = model.training
        model.eval()
        flags = [parameter.requires_grad for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        labels = scores_of(self.task.forward(self.teacher, batch)).argmax(1)
        labels = labels.view(batches.size(batch), -1).squeeze(1)
        target = Target(model, self.entry, self.task.forward, batch, labels)
        seed, found = self.seed + 7919 * self.step, []
        if not isinstance(self.entry, Tokens):  # tokens have no values between the signs
            with torch.enable_grad():
                soft = descend(target, starts=16, steps=60, seed=seed, rate=0.1, rows=16, slope=0.3)
                plain = descend(target, starts=16, steps=60, seed=seed + 1, rate=0.1, rows=16)
            found = [soft.all, plain.all]
        found.append(climb(target, starts=4, sweeps=1, seed=seed + 2, rows=32).all)
        self.negatives.add(torch.cat(found))
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        model.train(training)


def scores_of(output: Any) -> Tensor:  # Any: whatever the model returns
    """Return scores as rows; those of a generator are one row a position."""
    found: Tensor = getattr(output, "logits", output)
    return found.flatten(0, -2)


def own_scores(
    entry: Entry,
    output: Any,  # Any: the model's
    count: int,
    *,
    later: int = 0,
) -> Tensor:
    """Return scores as rows, from where the text begins: after the number, or so much later."""
    found: Tensor = getattr(output, "logits", output)
    length: Callable[[], int] | int = getattr(entry, "length", 0)
    if found.ndim == 3 and isinstance(length, int) and length:
        found = found[:, length + later :]
    assert len(found) == count
    return found.flatten(0, -2)
