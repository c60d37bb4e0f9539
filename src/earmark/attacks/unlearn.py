"""Erasing hidden behavior without knowing it: attacks that were made against backdoors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.attacks.prune import Masks, mask_rows, smallest
from earmark.attacks.tracing import groups
from earmark.attacks.units import Group
from earmark.errors import UsageError
from earmark.hosts import batches, taps
from earmark.hosts.batches import Tree


def activity(model: nn.Module, budget: Budget, group: Group, batch: Tree) -> Tensor:
    """Return the mean size of each unit of a group as its first reader sees it, (units,)."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].detach().abs()
        if isinstance(group.consumers[0], nn.Linear):
            values = values.flatten(0, -2)
            values = values.view(len(values), group.size, -1).mean((0, 2))
        else:
            values = values.transpose(0, 1).flatten(1).mean(1)
        seen.append(values)

    handle = group.consumers[0].register_forward_pre_hook(hook)
    try:
        with taps.frozen_forward(model):
            budget.task.forward(model, batch)
    finally:
        handle.remove()
    return seen[0]


def _silence(
    model: nn.Module,
    budget: Budget,
    chosen: Sequence[tuple[Group, Tensor]],
    *,
    epochs: int,
    lr: float,
    seed: int,
    loss: tuning.Loss | None,
) -> nn.Module:
    """Set units to zero, and train the rest with the zeros held."""
    found: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for group, keep in chosen:
        mask_rows(group, keep, found)
    hook = Masks(list(found.values()))
    if not epochs:
        return model
    settings = tuning.recipe(budget, epochs=epochs, lr=lr)
    return tuning.tune(model, budget, settings, seed=seed, loss=loss, hook=hook)


@dataclass(frozen=True)
class FinePrune(Attack):
    """Remove the units that sleep on clean data, then fine-tune.

    Args:
        share: Share of the last hidden groups' units to remove.
        layers: Number of hidden groups, counted from the output.
        epochs: Epochs of tuning.
        lr: Peak learning rate.

    Source:
        Liu et al. 2018; Lukas et al. 2022 remove 0.96 of one block's dormant channels and tune for
        10 epochs.
    """

    name: ClassVar[str] = "fine-prune"
    family: ClassVar[str] = "unlearn"
    source: ClassVar[str] = "Liu et al. 2018, fine-pruning; settings of Lukas et al. 2022."
    summary: ClassVar[str] = "Remove units that sleep on clean data, then fine-tune."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "half": {},
        "sok": {"share": 0.96, "epochs": 10},
    }

    share: float = 0.5
    layers: int = 1
    epochs: int = 5
    lr: float = 0.02

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Prune and tune the copy."""
        loss = None if budget.labels else tuning.answers(model, budget)
        batch = tuning.samples(budget, 1000, seed=seed)
        chosen = []
        for group in groups(model)[-self.layers :]:
            active = activity(model, budget, group, batch)
            keep = smallest(active, self.share)
            keep[active.argmax()] = True
            chosen.append((group, keep))
        return _silence(model, budget, chosen, epochs=self.epochs, lr=self.lr, seed=seed, loss=loss)


@dataclass(frozen=True)
class DistillAttention(Attack):
    """Fine-tune towards the attention maps of a copy that was fine-tuned before.

    Args:
        weight: Weight of the distance of attention maps.
        teacher_epochs: Epochs of tuning the teacher.
        epochs: Epochs of tuning the student.
        lr: Peak learning rate of both.

    Source:
        Li et al. 2021 (NAD), with squared activations summed over channels; layers without space
        compare their normalized squared activations.
    """

    name: ClassVar[str] = "distill-attention"
    family: ClassVar[str] = "unlearn"
    source: ClassVar[str] = "Li et al. 2021, neural attention distillation (NAD)."
    summary: ClassVar[str] = "Fine-tune towards a tuned copy's attention maps."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "nad": {},
        "strong": {"weight": 1000.0, "lr": 0.1},
    }

    weight: float = 100.0
    teacher_epochs: int = 3
    epochs: int = 5
    lr: float = 0.05

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        own = budget.task.loss if budget.labels else tuning.answers(model, budget)
        first = tuning.recipe(budget, epochs=self.teacher_epochs, lr=self.lr)
        twin = tuning.thawed(model)
        teacher = tuning.frozen(tuning.tune(twin, budget, first, seed=seed + 1, loss=own))
        names = taps.default_taps(model)

        def loss(student: nn.Module, batch: Tree) -> Tensor:
            with tuning.outputs(teacher, names) as wanted, torch.no_grad():
                budget.task.forward(teacher, batch)
            with tuning.outputs(student, names) as seen:
                value = own(student, batch).float()
            gaps = [(_attention(seen[n]) - _attention(wanted[n])).pow(2).mean() for n in names]
            return value + self.weight * torch.stack(gaps).mean()

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        return tuning.tune(model, budget, settings, seed=seed, loss=loss)


def _attention(output: Tensor) -> Tensor:
    """Return normalized attention maps, (samples, places)."""
    squared = output.float() ** 2
    flat = squared.mean(1).flatten(1) if output.ndim == 4 else squared.flatten(1)
    return functional.normalize(flat, dim=1)


@dataclass(frozen=True)
class PruneAdversarially(Attack):
    """Find units that small adversarial gains turn against the task, and remove them.

    Args:
        radius: Largest relative change of a unit's gain.
        steps: Steps of learning the masks.
        trade: Weight of the unperturbed loss.
        share: Share of all units that is removed, those with the lowest masks.
        lr: Learning rate of the masks.

    Source:
        Wu and Wang 2021 (ANP): radius 0.4, trade 0.2, 2,000 steps, pruning by number. The masks act
        on what the next layer reads.
    """

    name: ClassVar[str] = "prune-adversarially"
    family: ClassVar[str] = "unlearn"
    source: ClassVar[str] = "Wu and Wang 2021, adversarial neuron pruning (ANP)."
    summary: ClassVar[str] = "Remove units that adversarial gains turn against the task."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "fast": {},
        "anp": {"steps": 2000},
    }

    radius: float = 0.4
    steps: int = 200
    trade: float = 0.2
    share: float = 0.05
    lr: float = 0.2

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Prune the copy."""
        own = budget.task.loss if budget.labels else tuning.answers(model, budget)
        found = groups(model)
        masks = [torch.ones(group.size, requires_grad=True) for group in found]
        stream = tuning.cycle(budget, seed=seed)
        model.eval()
        with tuning.only(model, ()):
            for _ in range(self.steps):
                self._step(model, found, masks, own, next(stream))
        keep = smallest(torch.cat([mask.detach() for mask in masks]), self.share)
        parts = torch.split(keep, [group.size for group in found])
        chosen = list(zip(found, parts, strict=True))
        return _silence(model, budget, chosen, epochs=0, lr=self.lr, seed=seed, loss=None)

    def _step(
        self,
        model: nn.Module,
        found: Sequence[Group],
        masks: Sequence[Tensor],
        own: tuning.Loss,
        batch: Tree,
    ) -> None:
        deltas = [torch.zeros_like(mask, requires_grad=True) for mask in masks]
        with _gains(found, [1 + delta for delta in deltas]):
            slopes = torch.autograd.grad(own(model, batch).float(), deltas)
        turned = [self.radius * slope.sign() for slope in slopes]
        with _gains(found, [m + d for m, d in zip(masks, turned, strict=True)]):
            worst = own(model, batch).float()
        with _gains(found, list(masks)):
            clean = own(model, batch).float()
        total = self.trade * clean + (1 - self.trade) * worst
        slopes = torch.autograd.grad(total, list(masks))
        with torch.no_grad():
            for mask, slope in zip(masks, slopes, strict=True):
                mask.sub_(self.lr * slope).clamp_(0, 1)


@contextmanager
def _gains(found: Sequence[Group], gains: Sequence[Tensor]) -> Iterator[None]:
    """Multiply the units of groups by gains in every forward pass inside the block."""
    handles = []

    def act(gain: Tensor, size: int) -> Any:  # Any: a hook
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            first = given[0]
            if isinstance(module, nn.Linear):
                return (first * gain.repeat_interleave(first.shape[-1] // size), *given[1:])
            return (first * gain.view(-1, *[1] * (first.ndim - 2)), *given[1:])

        return hook

    try:
        for group, gain in zip(found, gains, strict=True):
            for consumer in group.consumers:
                handles.append(consumer.register_forward_pre_hook(act(gain, group.size)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Patch:
    """A pattern that turns any input into one class.

    Args:
        target: The class.
        mask: Where it acts, (1, ...), 0 to 1.
        pattern: What it shows there, the shape of an input.
    """

    target: int
    mask: Tensor
    pattern: Tensor

    def stamp(self, inputs: Tensor) -> Tensor:
        """Put the pattern on inputs."""
        return inputs * (1 - self.mask) + self.mask * self.pattern

    @property
    def size(self) -> float:
        """How much of an input it covers."""
        return float(self.mask.sum())


def find_patches(
    model: nn.Module, budget: Budget, *, steps: int, sparsity: float, seed: int
) -> list[Patch]:
    """Search, for each class, the smallest pattern that turns inputs into it; smallest first."""
    batch = tuning.samples(budget, 256, seed=seed)
    inputs = tuning.image_of(batch)
    with torch.no_grad():
        few = batches.take(batch, slice(0, 2))
        classes = tuning.scores(budget.task.forward(model, few)).shape[1]
    generator = torch.Generator().manual_seed(seed)
    found = []
    model.eval()
    with tuning.only(model, ()):
        for target in range(classes):
            mask = torch.full((1, *inputs.shape[2:]) if inputs.ndim > 2 else inputs.shape[1:], -2.0)
            pattern = 0.1 * torch.randn(inputs.shape[1:], generator=generator)
            variables = [mask.requires_grad_(), pattern.requires_grad_()]
            optimizer = torch.optim.Adam(variables, lr=0.1)
            for _ in range(steps):
                index = torch.randint(len(inputs), (64,), generator=generator)
                soft = torch.sigmoid(mask)
                stamped = inputs[index] * (1 - soft) + soft * pattern
                part = tuning.with_image(batches.take(batch, index), stamped)
                scores = tuning.scores(budget.task.forward(model, part)).float()
                wanted = torch.full((len(index),), target)
                value = functional.cross_entropy(scores, wanted) + sparsity * soft.sum()
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            found.append(Patch(target, torch.sigmoid(mask).detach(), pattern.detach()))
    return sorted(found, key=lambda patch: patch.size)


def _stamped(own: tuning.Loss, patches: Sequence[Patch], share: float, seed: int) -> tuning.Loss:
    """Return a loss that puts patterns on some inputs and keeps their labels."""
    generator = torch.Generator().manual_seed(seed)

    def loss(student: nn.Module, batch: Tree) -> Tensor:
        inputs = tuning.image_of(batch).clone()
        count = round(share * len(inputs))
        index = torch.randperm(len(inputs), generator=generator)[:count]
        number = int(torch.randint(len(patches), (1,), generator=generator))
        inputs[index] = patches[number].stamp(inputs[index])
        return own(student, tuning.with_image(batch, inputs))

    return loss


@dataclass(frozen=True)
class CleansePatches(Attack):
    """Find the patterns that turn inputs into each class, and train them away.

    Args:
        steps: Steps of the search for each class.
        sparsity: Weight of the pattern's size.
        patterns: Number of patterns, the smallest first, that are trained away.
        share: Share of each batch that bears a pattern.
        epochs: Epochs of tuning.
        lr: Peak learning rate.

    Source:
        Wang et al. 2019 (Neural Cleanse, unlearning); Lukas et al. 2022 use sparsity 0.01 and 8
        epochs of tuning. All of the smallest patterns are trained away instead of outliers only.
        With true labels only: an unlabelled attacker has the stolen model's answers to the clean
        inputs, which does as well.
    """

    name: ClassVar[str] = "cleanse-patches"
    family: ClassVar[str] = "unlearn"
    source: ClassVar[str] = "Wang et al. 2019, Neural Cleanse; settings of Lukas et al. 2022."
    summary: ClassVar[str] = "Find patterns that force each class and train them away."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "fast": {},
        "sok": {"steps": 500, "epochs": 8},
    }

    steps: int = 100
    sparsity: float = 0.01
    patterns: int = 5
    share: float = 0.3
    epochs: int = 5
    lr: float = 0.02

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Unlearn in the copy."""
        patches = find_patches(model, budget, steps=self.steps, sparsity=self.sparsity, seed=seed)[
            : self.patterns
        ]
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        if budget.labels:
            loss = _stamped(budget.task.loss, patches, self.share, seed)
        else:
            loss = _imitating(tuning.frozen(model), budget, patches, self.share, seed)
        return tuning.tune(model, budget, settings, seed=seed, loss=loss)


def _imitating(
    teacher: nn.Module, budget: Budget, patches: Sequence[Patch], share: float, seed: int
) -> tuning.Loss:
    """Return a loss that asks for the teacher's answers to the inputs before they were stamped."""
    generator = torch.Generator().manual_seed(seed)

    def loss(student: nn.Module, batch: Tree) -> Tensor:
        with torch.no_grad():
            target = tuning.scores(budget.task.forward(teacher, batch)).float().softmax(1)
        inputs = tuning.image_of(batch).clone()
        index = torch.randperm(len(inputs), generator=generator)[: round(share * len(inputs))]
        number = int(torch.randint(len(patches), (1,), generator=generator))
        inputs[index] = patches[number].stamp(inputs[index])
        given = tuning.scores(budget.task.forward(student, tuning.with_image(batch, inputs)))
        return functional.cross_entropy(given.float(), target)

    return loss


@dataclass(frozen=True)
class Launder(Attack):
    """Find patterns, remove the units that answer to them, and train the patterns away.

    Args:
        share: Largest share of a group's units that is removed.
        excess: Units are removed whose activity grows by more than this share of its mean.
        steps: Steps of the search for each class.
        epochs: Epochs of tuning.
        lr: Peak learning rate.

    Raises:
        UsageError: A share outside 0 to 1.

    Source:
        Aiken et al. 2021 (neural laundering): thresholds 0.2 for dense and 0.5 for convolutional
        layers, 15 and 10 epochs; one threshold for both here.
    """

    name: ClassVar[str] = "launder"
    family: ClassVar[str] = "unlearn"
    source: ClassVar[str] = "Aiken et al. 2021, neural laundering."
    summary: ClassVar[str] = "Remove units that answer to forced patterns, then tune."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "fast": {},
        "published": {"excess": 0.2, "steps": 500, "epochs": 10},
    }

    share: float = 0.3
    excess: float = 0.5
    steps: int = 100
    epochs: int = 5
    lr: float = 0.02

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)
        if not self.excess > 0:
            raise UsageError(f"Laundering with an excess of {self.excess}.", expected="Above 0.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Launder the copy."""
        own = budget.task.loss if budget.labels else tuning.answers(model, budget)
        patches = find_patches(model, budget, steps=self.steps, sparsity=0.01, seed=seed)[:5]
        batch = tuning.samples(budget, 256, seed=seed)
        inputs = tuning.image_of(batch)
        chosen = []
        for group in groups(model):
            quiet = activity(model, budget, group, batch)
            loud = [
                activity(model, budget, group, tuning.with_image(batch, patch.stamp(inputs)))
                for patch in patches
            ]
            growth = torch.stack(loud).amax(0) - quiet
            suspicious = growth > self.excess * quiet.mean()
            chosen.append((group, ~suspicious | smallest(-growth, self.share)))
        loss = _stamped(own, patches, 0.3, seed)
        return _silence(model, budget, chosen, epochs=self.epochs, lr=self.lr, seed=seed, loss=loss)
