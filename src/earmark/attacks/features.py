"""Attacks on hidden features, by somebody who knows that a mark lives there.

They are written against marks that are read from activations (MTL-Sign, DeepSigns): squeeze out
what does not serve the task, drown it, learn it anew without the owner's inputs, or erase what a
claim has revealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.errors import HostError, UsageError
from earmark.hosts import batches, taps
from earmark.hosts.batches import Tree

_SMALL = 1e-6


def usual_taps(model: nn.Module) -> tuple[str, ...]:
    """Return the last hidden features and, behind a dense layer or a block, what flows into it."""
    (last,) = taps.last_features(model)
    return (last,) if last.endswith(taps.INPUT) else (last, last + taps.INPUT)


@dataclass(frozen=True)
class Collapse(Attack):
    """Fine-tune so that features of a class fall together: what sets samples apart is squeezed out.

    Args:
        weight: Weight of the variance within classes over the whole variance, summed over taps.
        taps: Layers; by default the last hidden one, or block, and what flows into it.
        truth: Whether classes are the true targets; else the stolen model's own answers.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Source:
        Ours, after neural collapse (Papyan, Han and Donoho 2020).
    """

    name: ClassVar[str] = "collapse"
    family: ClassVar[str] = "features"
    knowledge: ClassVar[Knowledge] = Knowledge.CARRIER
    source: ClassVar[str] = "Ours, after neural collapse (Papyan, Han and Donoho 2020)."
    summary: ClassVar[str] = "Fine-tune until features of a class fall together."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "light": {"weight": 0.3},
        "heavy": {"weight": 3.0},
        "heaviest": {"weight": 30.0, "epochs": 10},
        "truth": {"weight": 3.0, "truth": True},
    }

    weight: float = 3.0
    taps: tuple[str, ...] = ()
    truth: bool = False
    epochs: int = 5
    lr: float = 0.03

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        names = self.taps or usual_taps(model)
        stolen = tuning.frozen(model)

        def classes(batch: Tree) -> Tensor:
            if self.truth:
                return _targets(batch)
            with torch.no_grad():
                return _scores(budget.task.forward(stolen, batch)).argmax(1)

        def term(batch: Tree, seen: Mapping[str, Tensor]) -> Tensor:
            groups = classes(batch)
            return torch.stack([_within(seen[name].float(), groups) for name in names]).sum()

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        with taps.reading(model, names) as seen:
            hook = _OnFeatures(term, seen, self.weight)
            return tuning.tune(model, budget, settings, seed=seed, hook=hook)


@dataclass(frozen=True)
class Scramble(Attack):
    """Fine-tune so that features follow random targets: on noise inputs, or on the attacker's own.

    Args:
        weight: Weight of the distance to the targets.
        own: Whether the attacker's own samples are scrambled; else noise with the data's moments.
        taps: Layers; by default the last hidden one and what flows into it.
        directions: Random directions along which targets are set, redrawn in every step.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Source:
        Ours; the attack that removed marks from noise triggers in our own pilots.
    """

    name: ClassVar[str] = "scramble"
    family: ClassVar[str] = "features"
    knowledge: ClassVar[Knowledge] = Knowledge.CARRIER
    source: ClassVar[str] = "Ours."
    summary: ClassVar[str] = "Fine-tune features towards random targets, on noise or own samples."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "noise": {},
        "noise-heavy": {"weight": 10.0},
        "own": {"own": True},
        "own-heavy": {"own": True, "weight": 10.0},
    }

    weight: float = 1.0
    own: bool = False
    taps: tuple[str, ...] = ()
    directions: int = 16
    epochs: int = 5
    lr: float = 0.03

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        names = self.taps or usual_taps(model)

        def away(features: Tensor) -> Tensor:
            flat = _standard(features.float())
            toward = functional.normalize(torch.randn(flat.shape[1], self.directions), dim=0)
            target = torch.randint(0, 2, (len(flat), self.directions)) * 2.0 - 1.0
            return ((flat @ toward.to(flat.device) - target.to(flat.device)) ** 2).mean()

        def term(batch: Tree, seen: dict[str, Tensor]) -> Tensor:
            if not self.own:
                noise = batches.transform(batch, _noise)
                with _still_norms(model):
                    budget.task.forward(model, noise)
            return torch.stack([away(seen[name]) for name in names]).sum()

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        with taps.reading(model, names) as seen:
            hook = _OnFeatures(term, seen, self.weight)
            return tuning.tune(model, budget, settings, seed=seed, hook=hook)


@dataclass(frozen=True)
class DistillFeatures(Attack):
    """Train a fresh model to give the stolen one's answers and its hidden features.

    Args:
        weight: Weight of the distance between features.
        taps: Layers; by default the last hidden one and what flows into it.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Source:
        Romero et al. 2015 (hints), on all taps at once and without an adapter.
    """

    name: ClassVar[str] = "distill-features"
    family: ClassVar[str] = "features"
    knowledge: ClassVar[Knowledge] = Knowledge.CARRIER
    source: ClassVar[str] = "Romero et al. 2015 (FitNets)."
    summary: ClassVar[str] = "Train a fresh model on the stolen one's answers and features."

    weight: float = 1.0
    taps: tuple[str, ...] = ()
    epochs: int = 8
    lr: float = 0.1

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Train the twin."""
        names = self.taps or usual_taps(model)
        stolen, twin = tuning.frozen(model), budget.task.model()
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        with taps.reading(stolen, names) as aim, taps.reading(twin, names) as seen:

            def term(batch: Tree, seen: Mapping[str, Tensor]) -> Tensor:
                with torch.no_grad():
                    budget.task.forward(stolen, batch)
                gaps = [
                    (seen[name].float() - aim[name].float()).pow(2).mean()
                    / aim[name].float().var().clamp(min=_SMALL)
                    for name in names
                ]
                return torch.stack(gaps).sum()

            return tuning.tune(
                twin,
                budget,
                settings,
                seed=seed,
                loss=tuning.answers(model, budget),
                hook=_OnFeatures(term, seen, self.weight),
            )


@dataclass(frozen=True)
class ResetTail(Attack):
    """Draw the last layers anew and train everything: what they held has to be learned again.

    Args:
        layers: Layers with weights that are drawn anew, counted from the last.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Source:
        Ours; re-initialisation of the last layer (Adi et al. 2018), taken further.
    """

    name: ClassVar[str] = "reset-tail"
    family: ClassVar[str] = "features"
    knowledge: ClassVar[Knowledge] = Knowledge.SCHEME
    source: ClassVar[str] = "Ours, after RTAL of Adi et al. 2018."
    summary: ClassVar[str] = "Draw the last layers anew and train everything."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "two": {},
        "three": {"layers": 3},
    }

    layers: int = 2
    epochs: int = 5
    lr: float = 0.05

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Reset and tune the copy."""
        found = [
            module
            for module in model.modules()
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        ]
        if not 1 <= self.layers < len(found):
            raise HostError(
                f"{self.layers} of {len(found)} layers with weights cannot be drawn anew.",
                expected="At least one, and not all.",
            )
        for module in found[-self.layers :]:
            module.reset_parameters()
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        return tuning.tune(model, budget, settings, seed=seed)


@dataclass(frozen=True)
class EraseRevealed(Attack):
    """Erase what a claim has revealed: find its direction, and train it away everywhere.

    Args:
        inputs: The revealed inputs, a batch as the task has it.
        signs: Their revealed labels, +1 or -1.
        weight: Weight of the squared reading along the direction that was found.
        share: Share of each batch that is replaced by revealed inputs.
        taps: Layers; by default the last hidden one and what flows into it.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Raises:
        UsageError: Inputs and signs do not go together.

    Source:
        Ours.
    """

    name: ClassVar[str] = "erase-revealed"
    family: ClassVar[str] = "features"
    knowledge: ClassVar[Knowledge] = Knowledge.SHARDS
    source: ClassVar[str] = "Ours."
    summary: ClassVar[str] = "Find the direction of revealed shards and train it away."

    inputs: Tree = field(default=None, repr=False)
    signs: Sequence[int] = field(default=(), repr=False)
    weight: float = 1.0
    share: float = 0.25
    taps: tuple[str, ...] = ()
    epochs: int = 10
    lr: float = 0.03

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        if self.inputs is None or batches.size(self.inputs) != len(self.signs):
            raise UsageError(
                f"'{self.name}' needs the revealed inputs with one label each.",
                hint="Take them from the claim's disclosure.",
            )
        names = self.taps or usual_taps(model)
        heads = self._heads(model, budget, names)

        def term(_batch: Tree, seen: Mapping[str, Tensor]) -> Tensor:
            reads = [(_standard(seen[name].float()) @ heads[name]) ** 2 for name in names]
            return torch.stack([read.mean() for read in reads]).sum()

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        with taps.reading(model, names) as seen:
            hook = _OnFeatures(term, seen, self.weight, riders=(self.inputs, self.share))
            return tuning.tune(model, budget, settings, seed=seed, hook=hook)

    def _heads(self, model: nn.Module, budget: Budget, names: Sequence[str]) -> dict[str, Tensor]:
        """Fit a ridge head at each tap; return unit directions."""
        signs = torch.tensor(self.signs, dtype=torch.float32)
        found = {}
        with taps.frozen_forward(model), taps.reading(model, names) as seen:
            budget.task.forward(model, self.inputs)
            for name in names:
                z = _standard(seen[name].float())
                gram = z.T @ z / len(z) + 0.1 * torch.eye(z.shape[1])
                found[name] = functional.normalize(
                    torch.linalg.solve(gram, z.T @ signs / len(z)), dim=0
                )
        return found


class _OnFeatures(tuning.Hook):
    """A term on the features of the latest batch.

    Args:
        term: Takes the batch and the features by tap.
        seen: Where the features appear.
        weight: Factor on the term.
        riders: Samples that replace a share of each batch, and the share.
    """

    def __init__(
        self,
        term: Any,  # Any: a function of (batch, features) -> scalar
        seen: dict[str, Tensor],
        weight: float,
        riders: tuple[Tree, float] | None = None,
    ) -> None:
        self.term, self.seen, self.weight, self.riders = term, seen, weight, riders
        self.batch: Tree = None

    def mix(self, batch: Tree) -> Tree:
        """Keep the batch for the term; let samples ride in it."""
        if self.riders is not None:
            pool, share = self.riders
            count = round(batches.size(batch) * share)
            chosen = torch.randint(0, batches.size(pool), (count,))
            rest = batches.take(batch, slice(count, None))
            batch = batches.join([batches.take(pool, chosen), rest])
        self.batch = batch
        return batch

    def loss(self) -> Tensor:
        """Return the weighted term."""
        value: Tensor = self.weight * self.term(self.batch, self.seen)
        return value


def _within(features: Tensor, groups: Tensor) -> Tensor:
    """Return the variance within groups over the whole variance."""
    chosen = functional.one_hot(groups, int(groups.max()) + 1).to(features.dtype)
    means = (chosen.T @ features) / chosen.sum(0).clamp(min=1)[:, None]
    inner = ((features - means[groups]) ** 2).sum(1).mean()
    whole = ((features - features.mean(0)) ** 2).sum(1).mean()
    return inner / whole.clamp(min=_SMALL)


def _standard(features: Tensor) -> Tensor:
    center, deviation = features.mean(0), features.std(0, correction=0)
    return (features - center) / (deviation + 1e-3)


def _noise(tensor: Tensor) -> Tensor:
    """Return noise of a tensor's shape and moments; integers are drawn from its own values."""
    if tensor.is_floating_point():
        return torch.randn_like(tensor) * tensor.std() + tensor.mean()
    flat = tensor.flatten()
    return flat[torch.randint(0, len(flat), flat.shape)].view(tensor.shape)


def _targets(batch: Tree) -> Tensor:
    if not isinstance(batch, (tuple, list)) or not isinstance(batch[-1], Tensor):
        raise HostError("True classes need batches of (inputs, targets).")
    targets = batch[-1]
    if targets.is_floating_point() or targets.ndim != 1:
        raise HostError("True classes need one integer target a sample.")
    return targets


def _scores(output: Any) -> Tensor:  # Any: whatever the model returns
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise HostError("This attack needs a model whose output is (samples, classes).")
    return scores


@contextmanager
def _still_norms(model: nn.Module) -> Iterator[None]:
    """Keep batch norms from taking statistics inside the block."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.train(mode)
