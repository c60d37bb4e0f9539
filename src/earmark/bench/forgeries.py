"""Forgeries as a battery: each before the naive verifier that it fools, and before ours.

Every forgery has a control: a verifier as the literature describes or allows it, which accepts the
forged claim. If the control stopped accepting, the forgery would have lost its teeth, and a refusal
by ours would mean nothing. Ours is then asked as often as wanted, ten thousand times where claims
can be sampled.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earmark import policy, registry, stats
from earmark.attacks import forge, forge_fits
from earmark.errors import HostError
from earmark.hosts import batches, taps
from earmark.hosts.batches import Tree
from earmark.keys.secret import Key
from earmark.records import Layout, Outcome
from earmark.schemes import refit
from earmark.schemes.embedding import fresh_model
from earmark.schemes.mtlsign_paper import MtlSignPaper, accepted
from earmark.schemes.riding import labels_of
from earmark.task import Task

CLAIM = 64.0
"""Bits that a claim needs."""


@dataclass(frozen=True)
class Stage:
    """Where a forgery plays.

    Args:
        task: The task.
        victim: A trained model that bears no mark of the forger's.
        inputs: Inputs and labels that the forger holds.
        surrogates: Models of the forger's own.
        tap: A layer whose features are read.
    """

    task: Task
    victim: nn.Module = field(repr=False)
    inputs: Tree = field(repr=False)
    surrogates: tuple[nn.Module, ...] = field(default=(), repr=False)
    tap: str = "fc"

    def pool(self) -> tuple[Tensor, Tensor]:
        """Return the forger's inputs and their classes."""
        inputs, classes = self.inputs
        return inputs, classes

    def features(self, inputs: Tensor) -> NDArray[np.float64]:
        """Return the victim's features of inputs, (inputs, width)."""
        found: NDArray[np.float64] = self.task.host(self.victim).features(inputs, (self.tap,))[
            self.tap
        ]
        return found


@dataclass(frozen=True)
class Forged:
    """What became of a forgery.

    Args:
        name: Name of the forgery.
        fooled: Forged claims that the naive verifier accepted.
        naive: Forged claims that it saw.
        accepted: Forged claims that ours accepted.
        tries: Forged claims that ours saw.
        best: Most bits that one of them reached before ours, before its tries are charged.
        reason: What refuses it.
    """

    name: str
    fooled: int
    naive: int
    accepted: int
    tries: int
    best: float
    reason: str


class Forgery(ABC):
    """A false claim. Subclasses are frozen dataclasses.

    Class attributes:
        name: Name in the registry.
        family: "forgery", for tables.
        source: Where it was published.
        summary: One sentence.
        fools: The naive verifier of the control.
    """

    name: ClassVar[str]
    family: ClassVar[str] = "forgery"
    source: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    fools: ClassVar[str] = ""

    @abstractmethod
    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, ask the naive verifier, and ask ours `tries` times.

        Args:
            stage: Model, task and inputs; the model is not changed.
            tries: Claims to put before ours, where they can be sampled.
            seed: Seed of everything that is drawn.
        """


def secrets_of(name: str, seed: int, count: int) -> Iterator[bytes]:
    """Yield 32-byte values that follow from a seed: a forger's secrets, or later beacons."""
    for index in range(count):
        yield hashlib.sha256(f"{name}/{seed}/{index}".encode()).digest()


def judged(
    features: NDArray[np.float64], labels: NDArray[np.float64], *, tap: str = "fc"
) -> NDArray[np.float64]:
    """Return the bits that our refitting judge finds for each draw of labels.

    Args:
        features: (inputs, width).
        labels: Signs, (inputs, draws).
        tap: A name for the features.
    """
    found = refit.tally({tap: features}, labels, range(len(features)))
    half = Fraction(1, 2)
    bits = {
        int(hits): -stats.log2_binomial_tail(int(hits), found.trials, half)
        for hits in np.unique(found.hits)
    }
    made: NDArray[np.float64] = np.array([bits[int(hits)] for hits in found.hits])
    return made


def _signs(draws: Iterator[list[int]]) -> NDArray[np.float64]:
    made: NDArray[np.float64] = np.array(list(draws), dtype=float).T
    return made


def _message(count: int, seed: int) -> Tensor:
    return torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed))


def _sampled(stage: Stage, scheme: str, settings: dict[str, object], tries: int, seed: int,
             inputs: Tree | None = None) -> tuple[int, float]:  # fmt: skip
    """Put keys of random secrets before our judge; return accepted ones and the best bits."""
    made = registry.scheme(scheme, **settings)
    host = stage.task.host(stage.victim)
    blank = stage.task.host(fresh_model(stage.task, 0).eval())
    shown, best = 0, 0.0
    for secret in secrets_of(scheme, seed, tries):
        evidence = made.measure(host, made.new_key(blank, inputs=inputs, secret=secret))
        bits = -policy.log2_p(evidence)
        best = max(best, bits)
        # what is charged only lowers the bits, so a verdict is asked for only where it could matter
        shown += bits >= CLAIM and policy.judge(evidence).outcome is Outcome.SHOWN
    return shown, best


@dataclass(frozen=True)
class SignFit(Forgery):
    """Flip rows of a projection until the victim's weights read as a message chosen before.

    Args:
        bits: Bits of the message.
        naive: Forged keys for the naive verifier.
        carrier: Tensors that keys before ours use, as globs; all by default.
        per_bit: Weights for each of their bits.

    Source:
        The ambiguity of every scheme with a free projection (Uchida et al. 2017).
    """

    name: ClassVar[str] = "sign-fit"
    source: ClassVar[str] = "The free projection of Uchida et al. 2017."
    summary: ClassVar[str] = "Flip rows of a projection until the weights read as wanted."
    fools: ClassVar[str] = "takes projection and message from the claimant"

    bits: int = 256
    naive: int = 20
    carrier: tuple[str, ...] = ()
    per_bit: int = 1152

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers."""
        weights = max(
            (item for item in stage.victim.parameters() if item.ndim > 1), key=torch.numel
        )
        flat, fooled = weights.detach().flatten().float(), 0
        for index in range(self.naive):
            message = _message(self.bits, seed + index)
            key = forge_fits.fit_signs(weights, message, seed=seed + index)
            fooled += torch.equal((key.matrix @ flat > 0).int(), message.int())
        settings: dict[str, object] = {
            "most_bits": 96, "carrier": self.carrier, "weights_per_bit": self.per_bit,
        }  # fmt: skip
        shown, best = _sampled(stage, "deepwater", settings, tries, seed)
        reason = "projection and message follow from secret bytes committed before"
        return Forged(self.name, fooled, self.naive, shown, tries, best, reason)


@dataclass(frozen=True)
class HeadFit(Forgery):
    """Fit a private head to the victim's features, for a verifier that takes a submitted head.

    Args:
        samples: Watermark samples of the forged key.
        rounds: Rounds of fitting.
        naive: Forged keys for the naive verifier.

    Source:
        MTL-Sign (Li and Wang 2021) without its commitment before publication; the forgery is ours.
    """

    name: ClassVar[str] = "head-fit"
    source: ClassVar[str] = "Ours, on Li and Wang 2021."
    summary: ClassVar[str] = "Fit the head that a verifier lets the claimant submit."
    fools: ClassVar[str] = "takes the head from the claimant, as published, uncommitted"

    samples: int = 100
    rounds: int = 200
    naive: int = 1

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers."""
        host, fooled = stage.task.host(stage.victim), 0
        published = MtlSignPaper(
            samples=self.samples, mode="func", rounds=self.rounds, head_lr=1e-2
        )
        for secret in secrets_of("head", seed, self.naive):
            key = published.new_key(host, inputs=stage.pool()[0][:64], secret=secret)
            forged = forge.fit_head(published, stage.task, stage.victim, key, seed=seed)
            fooled += accepted(published.measure(host, forged))
        key = _free_key(self.samples)
        labels = _signs(
            labels_of(Key.generate(key.layout, secret=secret).shard(0), self.samples)
            for secret in secrets_of("head labels", seed, tries)
        )
        bits = judged(stage.features(stage.pool()[0][: self.samples]), labels)
        reason = "the judge refits the head himself and scores what he did not fit"
        return _of(self.name, fooled, self.naive, bits, reason)


def _of(name: str, fooled: int, naive: int, bits: NDArray[np.float64], reason: str) -> Forged:
    charged = bits - math.log2(len(bits)) if len(bits) > 1 else bits
    return Forged(
        name, fooled, naive, int((charged >= CLAIM).sum()), len(bits), float(bits.max()), reason
    )


def _free_key(count: int) -> Key:
    return Key.generate(Layout("mtlsign", 1, ("fc",), count, 1), secret=bytes(32))


@dataclass(frozen=True)
class CenterFit(Forgery):
    """Fit a projection to the victim's mean activations, for a message chosen before.

    Args:
        bits: Bits for each group of inputs.
        naive: Forged keys for the naive verifier.

    Source:
        DeepSigns (Rouhani et al. 2019) where the claimant may submit projection and centers.
    """

    name: ClassVar[str] = "center-fit"
    source: ClassVar[str] = "The free projection and centers of Rouhani et al. 2019."
    summary: ClassVar[str] = "Fit a projection to the victim's activation centers."
    fools: ClassVar[str] = "takes projection and centers from the claimant"

    bits: int = 32
    naive: int = 20

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers."""
        inputs, classes = stage.pool()
        features = torch.from_numpy(stage.features(inputs)).float()
        names, fooled = torch.unique(classes), 0
        centers = torch.stack([features[classes == name].mean(0) for name in names])
        for index in range(self.naive):
            wanted = _message(self.bits * len(names), seed + index).view(len(names), self.bits)
            key = forge_fits.fit_centers(features, classes, wanted, seed=seed + index)
            fooled += torch.equal((centers @ key.matrix.T > 0).int(), wanted.int())
        settings: dict[str, object] = {"bits": 128, "per_group": 2, "references": 16}
        shown, best = _sampled(stage, "deepsigns", settings, tries, seed, stage.inputs)
        reason = "projection and bits follow from secret bytes; centers are measured, not taken"
        return Forged(self.name, fooled, self.naive, shown, tries, best, reason)


@dataclass(frozen=True)
class PassportFit(Forgery):
    """Solve for a passport that gives the victim's own scales, and claim with it.

    Args:
        tolerance: Points of utility that the naive verifier lets the submitted passport cost.
        naive: Forged passports.

    Source:
        Chen et al. 2023, the ambiguity attack on passports (Fan, Ng and Chan 2019).
    """

    name: ClassVar[str] = "passport-fit"
    source: ClassVar[str] = "Chen et al. 2023, on the passports of Fan et al. 2019."
    summary: ClassVar[str] = "Solve for a passport under which the model works."
    fools: ClassVar[str] = "takes any passport under which the model keeps its accuracy"

    tolerance: float = 2.0
    naive: int = 3

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers.

        Raises:
            HostError: The model has no batch norm whose scales a passport could give.
        """
        layer, norm = _passport_layer(stage.victim)
        clean, fooled = stage.task.evaluate(stage.victim), 0
        kept = norm.weight.detach().clone()
        for index in range(self.naive):
            passport = forge_fits.fit_passport(layer.weight, kept, seed=seed + index)
            scales = layer.weight.detach().flatten(1) @ passport.flatten()
            fooled += self._utility(stage, norm, scales, kept) >= clean - self.tolerance
        # ours: passport and signature follow from secret bytes; only the signs can agree by chance
        width, best = layer.weight[0].numel(), 0.0
        flat = layer.weight.detach().flatten(1).numpy()
        for secret in secrets_of("passport", seed, tries):
            key = Key.generate(Layout("passport", 1, ("bn",), len(kept), 1), secret=secret)
            drawn = np.frombuffer(key.shard(0).stream("passport").bytes(width), np.uint8)
            read = flat @ (drawn.astype(np.float32) - 127.5) > 0
            wanted = np.array(key.shard(0).stream("signature").signs(len(kept))) > 0
            hits = int((read == wanted).sum())
            best = max(best, -stats.log2_binomial_tail(hits, len(kept), Fraction(1, 2)))
        reason = "nothing of a claim may be learned: passport and signature come from the key"
        shown = int(best - math.log2(max(1, tries)) >= CLAIM)
        return Forged(self.name, fooled, self.naive, shown, tries, best, reason)

    def _utility(self, stage: Stage, norm: nn.BatchNorm2d, scales: Tensor, kept: Tensor) -> float:
        """Return the utility with other scales; the model is left as it was."""
        with torch.no_grad():
            norm.weight.copy_(scales)
            try:
                return stage.task.evaluate(stage.victim)
            finally:
                norm.weight.copy_(kept)


def _passport_layer(model: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return the last convolution that feeds a batch norm of as many channels, and the norm."""
    found: tuple[nn.Conv2d, nn.BatchNorm2d] | None = None
    before: nn.Conv2d | None = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            before = module
        if isinstance(module, nn.BatchNorm2d) and before is not None:
            wide = before.weight[0].numel() >= before.out_channels == module.num_features
            found = (before, module) if wide else found
    if found is None:
        raise HostError("This model has no convolution with a batch norm after it.")
    return found


@dataclass(frozen=True)
class TriggerSelection(Forgery):
    """Choose inputs to suit labels that are known: one kind under 1, another under 0.

    Args:
        count: Triggers of the claim.

    Source:
        The free choice that published trigger marks leave (Rouhani et al. 2019 select that way).
    """

    name: ClassVar[str] = "trigger-selection"
    source: ClassVar[str] = "The selection of Rouhani et al. 2019, used by a forger."
    summary: ClassVar[str] = "Choose inputs after the labels are known."
    fools: ClassVar[str] = "does not ask when inputs were fixed"

    count: int = 192

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers."""
        key = _free_key(self.count)
        labels = labels_of(key.shard(0), self.count)
        inputs, classes = stage.pool()
        middle = int(classes.max()) / 2
        chosen = forge.select_inputs(inputs, (classes > middle).int().tolist(), labels)
        assert isinstance(chosen, Tensor)
        features = stage.features(chosen)
        naive = judged(features, np.array(labels, dtype=float)[:, None])
        later = _later(key, self.count, tries, seed)
        fooled = int(naive[0] >= CLAIM)
        reason = "labels are drawn from a ledger value later than the inputs' commitment"
        return _of(self.name, fooled, 1, judged(features, later), reason)


def _later(key: Key, count: int, tries: int, seed: int) -> NDArray[np.float64]:
    """Return the labels of a key bound to each of many later beacons, (count, tries)."""
    return _signs(
        labels_of(key.bind(beacon.hex()).shard(0), count)
        for beacon in secrets_of("beacon", seed, tries)
    )


@dataclass(frozen=True)
class HashGrinding(Forgery):
    """Move images by less than anybody sees until a hash of each gives the label wanted.

    Args:
        count: Triggers of the claim.

    Source:
        Ours, on labels that are a hash of a freely chosen image.
    """

    name: ClassVar[str] = "hash-grinding"
    source: ClassVar[str] = "Ours, on labels that are a hash of the image."
    summary: ClassVar[str] = "Change images until their hash gives the label."
    fools: ClassVar[str] = "takes label = hash(image) for proof that no label was chosen"

    count: int = 192

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers."""
        inputs, classes = stage.pool()
        wanted = (classes > int(classes.max()) / 2).int().tolist()[: self.count]
        made, _ = forge.grind_images(inputs[: self.count], wanted)
        right = all(forge.hash_label(x) == y for x, y in zip(made, wanted, strict=True))
        features = stage.features(made)
        naive = judged(features, np.array(wanted, dtype=float)[:, None] * 2 - 1)
        fooled = int(right and naive[0] >= CLAIM)
        later = _later(_free_key(self.count), self.count, tries, seed)
        reason = "labels are drawn from a ledger value later than the inputs' commitment"
        return _of(self.name, fooled, 1, judged(features, later), reason)


@dataclass(frozen=True)
class KeyGrinding(Forgery):
    """Try many secrets on a known suspect and claim with the best.

    Args:
        count: Triggers of the claim.
        asked: Bits that the naive verifier asks for, uncharged: a p-value of one in a hundred.

    Source:
        Selection after the fact, as old as statistics.
    """

    name: ClassVar[str] = "key-grinding"
    source: ClassVar[str] = "Selection after the fact."
    summary: ClassVar[str] = "Try many secrets on the suspect and claim with the best."
    fools: ClassVar[str] = "asks for p < 0.01 and charges no tries"

    count: int = 192
    asked: float = 6.65

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers."""
        features = stage.features(stage.pool()[0][: self.count])
        layout = _free_key(self.count).layout
        labels = _signs(
            labels_of(Key.generate(layout, secret=secret).shard(0), self.count)
            for secret in secrets_of("grind", seed, max(tries, 4096))
        )
        bits = judged(features, labels)
        reason = "a claim needs 64 bits: some 2^64 tries; keys on record are charged"
        return _of(self.name, int(bits.max() >= self.asked), 1, bits[: max(1, tries)], reason)


@dataclass(frozen=True)
class TransferableTriggers(Forgery):
    """Optimize inputs on surrogates until other models answer as wanted too.

    Args:
        count: Triggers of the claim.
        radius: Largest change of an input's entry.

    Source:
        Liu et al. 2024, false claims.
    """

    name: ClassVar[str] = "transferable-triggers"
    source: ClassVar[str] = "Liu et al. 2024, false claims against model ownership."
    summary: ClassVar[str] = "Optimize inputs on surrogates; strangers answer the same."
    fools: ClassVar[str] = "takes the claimant's inputs and labels"

    count: int = 100
    radius: float = 1.5

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:
        """Forge, and ask both verifiers.

        Raises:
            HostError: The stage has no surrogates.
        """
        if not stage.surrogates:
            raise HostError("This forgery needs surrogates.")
        inputs = stage.pool()[0][: self.count]
        count = int(stage.pool()[1].max()) + 1
        generator = torch.Generator().manual_seed(seed)
        wanted = torch.randint(0, count, (len(inputs),), generator=generator)
        made = forge_fits.fit_triggers(stage.surrogates, inputs, wanted, radius=self.radius)
        with taps.frozen_forward(stage.victim):
            answers = stage.victim(made).argmax(1).numpy()

        def bits(labels: NDArray[np.int64]) -> float:
            hits = int((answers == labels).sum())
            return -stats.log2_binomial_tail(hits, len(labels), Fraction(1, count))

        key = Key.generate(Layout("deepsigns-blackbox", 1, (), len(inputs), 1), secret=bytes(32))
        later = [
            bits(np.array(key.bind(beacon.hex()).shard(0).stream("labels")
                          .integers(len(inputs), count)))
            for beacon in secrets_of("beacon", seed, tries)
        ]  # fmt: skip
        fooled = int(bits(wanted.numpy()) >= CLAIM)
        reason = "answers are drawn from a ledger value later than the inputs' commitment"
        return _of(self.name, fooled, 1, np.array(later), reason)


def run_all(stage: Stage, *, tries: int, seed: int) -> list[Forged]:
    """Run every forgery of the registry.

    Args:
        stage: Model, task and inputs.
        tries: As in :meth:`Forgery.run`.
        seed: Seed of everything that is drawn.
    """
    made = []
    for name in registry.names("forgery"):
        forgery: Forgery = registry.load("forgery", name)()
        made.append(forgery.run(stage, tries=tries, seed=seed))
    return made


def stage_of(task: Task, victim: nn.Module, surrogates: tuple[nn.Module, ...] = ()) -> Stage:
    """Return a stage whose forger holds the task's test inputs."""
    found = batches.join(list(task.stream("test", 0)))
    return Stage(task, victim, found, surrogates)
