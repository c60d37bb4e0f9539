"""Squeeze out what sets samples of one answer apart: the term, and trainings with it alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.errors import HostError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches, taps
from earmark.hosts.batches import Tree
from earmark.schemes.base import Mark
from earmark.schemes.embedding import fresh_model
from earmark.task import Task
from earmark.training import Recipe, Trained, train

WEIGHT = 40.0
"""Weight at which networks are settled by default."""
_EVERY = 2
_LOOKED_AT = 500

_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001 - the one base of all batch norms
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001 - as above
)


@contextmanager
def answering(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the latest scores of a classifier, (samples, classes), inside the block."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        scores = getattr(output, "logits", output)
        kept[:] = [scores] if isinstance(scores, Tensor) and scores.ndim == 2 else []

    handle = model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def classes_of(batch: Tree) -> Tensor | None:
    """Return a batch's targets if they are classes, one integer a sample."""
    targets = batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return None
    return targets


def within(features: Tensor, groups: Tensor, counted: Tensor) -> Tensor:
    """Return the variance within groups over the whole variance, of the samples counted as 1."""
    rows = features.float()
    member = functional.one_hot(groups) * counted[:, None]
    count = counted.sum().clamp(min=1)
    square = (counted @ rows.square()).sum() / count
    sums = member.T @ rows
    between = (sums.square().sum(1) / member.sum(0).clamp(min=1)).sum() / count
    whole = square - (sums.sum(0) / count).square().sum()
    return (square - between) / whole.clamp(min=1e-6)


@contextmanager
def frozen_norms(model: nn.Module) -> Iterator[None]:
    """Keep normalization layers from taking statistics inside the block."""
    modes = [(layer, layer.training) for layer in model.modules() if isinstance(layer, _NORMS)]
    for layer, _ in modes:
        layer.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


class Settling(Mark):
    """The term that settles a task's samples, beside the task's own loss or a mark's.

    Maths: `weight * (1 - lr / peak) * (2 r - 1) * W / V` at each layer, times a factor of its own;
    W is the variance of the features within the model's answers, V the whole
    one, both of the samples that are answered rightly, and r the share of those. It is left out
    while r is under one half, and comes with every second step, twice as strong.

    Args:
        weight: Its weight, at its largest: it grows as the learning rate falls from its peak.
        layers: Where features are squeezed, with a factor each.
        seen: What flows there, of the latest pass (:func:`earmark.hosts.taps.reading`).
        answers: The scores of the latest pass (:func:`answering`).
    """

    def __init__(
        self,
        weight: float,
        layers: Mapping[str, float],
        seen: Mapping[str, Tensor],
        answers: list[Tensor],
    ) -> None:
        self._weight, self._layers, self._seen, self._answers = weight, layers, seen, answers
        self._classes: Tensor | None = None
        self._length = 0
        self._lr = self._peak = 0.0
        self._turn = 0

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return how far the learning rate has come."""
        return {"turn": self._turn, "lr": self._lr, "peak": self._peak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Go on from there."""
        if state:
            self._turn = int(state["turn"])
            self._lr, self._peak = float(state["lr"]), float(state["peak"])

    @property
    def late(self) -> float:
        """How far the learning rate has fallen from its peak, 0 to 1."""
        return 1 - self._lr / self._peak if self._peak else 0.0

    def after_step(self, lr: float) -> None:
        """Follow the learning rate."""
        self._turn += 1
        self._lr, self._peak = lr, max(lr, self._peak)

    def mix(self, batch: Tree) -> Tree:
        """Return the batch as it is, once its classes are seen."""
        self.see(classes_of(batch), batches.size(batch))
        return batch

    def see(self, classes: Tensor | None, length: int) -> None:
        """Take the classes of a pass's last samples, of `length` samples in all."""
        self._classes, self._length = classes, length

    def loss(self) -> Tensor:
        """Return the term for the latest pass."""
        late, classes = self.late, self._classes
        scores = self._answers[-1] if self._answers else None
        if self._turn % _EVERY or classes is None or scores is None or len(scores) != self._length:
            return torch.zeros(())
        if not late * self._weight > 0:
            return torch.zeros(())
        first = self._length - len(classes)
        groups = scores.detach()[first:].argmax(1)
        right = (groups == classes.to(groups.device)).float()
        weight = _EVERY * self._weight * late * (2 * right.mean() - 1).clamp(min=0)
        squeezed = [
            factor * within(self._seen[name][first:], groups, right)
            for name, factor in self._layers.items()
            if name in self._seen and len(self._seen[name]) == self._length
        ]
        return weight * torch.stack(squeezed).sum() if squeezed else torch.zeros(())


def train_settled(
    task: Task,
    layers: Mapping[str, float],
    *,
    seed: int,
    weight: float = WEIGHT,
    recipe: Recipe | None = None,
    checkpoint: str | Path | None = None,
    events: Events = SILENT,
) -> Trained:
    """Train a network whose samples are settled, without a key and without a mark.

    Args:
        task: The user's work; a classifier's.
        layers: Where features are squeezed, with a factor each; those where a mark is to
            be concealed (:meth:`earmark.schemes.mtlsign.MtlSign.settled_at`).
        seed: Seed of initialization and of the batches' order.
        weight: Weight of :class:`Settling`.
        recipe: Settings; by default the task's own.
        checkpoint: As in :func:`earmark.training.train`.
        events: Who hears of the progress.

    Raises:
        UsageError: The weight is negative, the learning rate never falls, or targets are no
            classes.
        CarrierError: The network lacks a layer.
        HostError: The loss became NaN or infinite, or as :func:`require_readable`.

    Source:
        Wen, Zhang, Li and Qiao 2016 (center loss) squeeze features towards centers that are
        learned; here the variance within answers is taken from the batch itself.

    Example:
        >>> train_settled.__kwdefaults__["weight"]
        40.0
    """
    recipe = recipe or Recipe.of(task.recipe)
    if not weight >= 0 or recipe.schedule == "constant":
        raise UsageError(
            f"Settling at weight {weight:g} with a {recipe.schedule} learning rate.",
            expected="A weight of 0 or more, and a rate that falls, on which the term waits.",
        )
    if classes_of(next(iter(task.stream("train", seed)))) is None:
        raise UsageError(
            "The task's targets are no classes, so that there is nothing to settle.",
            expected="Batches that are tuples and end with one integer a sample.",
        )
    model = fresh_model(task, seed)
    require_readable(task, model, layers)
    with taps.reading(model, tuple(layers)) as seen, answering(model) as answers:
        return train(
            task,
            seed=seed,
            recipe=recipe,
            model=model,
            mark=Settling(weight, layers, seen, answers),
            checkpoint=checkpoint,
            purpose=f"settle {weight:g} {' '.join(layers)}",
            events=events,
            label="settle",
        )


@torch.no_grad()
def require_readable(task: Task, model: nn.Module, layers: Iterable[str]) -> None:
    """Make sure that scores and features can be seen while the task's forward runs.

    Raises:
        CarrierError: The network lacks a layer.
        HostError: It gives no class scores itself, or a layer gives other than one row a sample.
    """
    batch, mode = next(iter(task.stream("train", 0))), model.training
    count = batches.size(batch)
    with taps.reading(model.eval(), tuple(layers)) as seen, answering(model) as answers:
        task.forward(model, batch)
    model.train(mode)
    rows = {name: len(seen[name]) if name in seen else 0 for name in layers}
    rows["the model's own output"] = len(answers[-1]) if answers else 0
    for name, found in rows.items():
        if found != count:
            raise HostError(
                f"For a batch of {count}, {name} gives {found} rows of features or class scores.",
                expected="One row for each sample, and a model that returns (samples, classes).",
            )


def spread_within(task: Task, model: nn.Module, layers: Iterable[str]) -> float:
    """Return how far samples of one answer are apart: variance within answers over all of it.

    The largest over some layers, of the first batches of the training set, five hundred samples and
    more; corrected for the means being of the same samples. Some hundredths where a network is
    settled, tenths where it is not.
    """
    inputs, host = first_samples(task, _LOOKED_AT), task.host(model)
    answers = torch.as_tensor(host.labels(inputs)).long()
    found, every = host.features(inputs, tuple(layers)), torch.ones(len(answers))
    most = max(float(within(torch.as_tensor(f).float(), answers, every)) for f in found.values())
    free = len(answers) - len(set(answers.tolist()))
    return min(1.0, most * len(answers) / max(1, free))


def first_samples(task: Task, count: int) -> Tree:
    """Return the first batches of the training set, so many samples and more if it has them."""
    some: list[Tree] = []
    for batch in task.stream("train", 0):
        some.append(batch)
        if sum(map(batches.size, some)) >= count:
            break
    return batches.join(some)
