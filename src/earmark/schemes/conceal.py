"""Mark a finished network so that it looks like any other.

A mark that is trained in shows: random labels take room, layers grow, answers are less sure, and
who trains networks of both kinds learns to tell them apart. What a mark needs is small, though.
Here a network is trained without one, and then moved by a few percent of its weights: norms and
biases stay as they are, every layer keeps its size, answers and the hidden features of the task's
own samples are held to what they were. Only the triggers' features move. Nobody who lacks the
network from before has anything to compare with.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earmark.errors import UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches, taps
from earmark.hosts.batches import Tree
from earmark.keys.secret import Key
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.riding import OWN_PASS
from earmark.schemes.settling import frozen_norms
from earmark.task import Task
from earmark.training import Recipe, Trained, distillation_loss, train

SETTINGS: Mapping[str, Any] = {"triggers": 512, "share": 0.25, "weight": 0.5, "settle": 0.0}
"""Settings of MTL-Sign that hide well."""
REACH = 0.06
_GENTLE = 0.4
_ROUNDS = 32
_TINY = 1e-12


def conceal(
    task: Task,
    scheme: MtlSign,
    key: Key,
    *,
    model: nn.Module,
    seed: int,
    reach: float = REACH,
    hold: float = 2.0,
    recipe: Recipe | None = None,
    checkpoint: str | Path | None = None,
    events: Events = SILENT,
) -> Trained:
    """Mark a finished network without leaving its neighborhood; no labels are used.

    Maths: beside the mark's term, the loss is the distillation from the network as it was plus
    `hold * |z - z0|^2 / var(z0)` over the features z, at the key's taps, of the samples that are no
    triggers. After each step every weight tensor W of two and more dimensions is put back to
    `|W - W0| <= reach * |W0|` and to the size of W0. Smaller tensors and the norms' statistics are
    left as they are.

    Args:
        task: The user's work; a classifier's.
        scheme: The settings; `settle` must be 0.
        key: The key.
        model: The trained network, changed in place.
        seed: Seed of the batches' order.
        reach: How far a weight tensor may move, as a share of its size. Less hides better and holds
            fewer bits.
        hold: Weight of holding the features of the task's own samples.
        recipe: Settings; by default the task's own with what :func:`gentle` changes.
        checkpoint: As in :func:`earmark.training.train`; start again from the same network.
        events: Who hears of the progress.

    Returns:
        The marked network.

    Raises:
        UsageError: A reach or hold that makes no sense, or a scheme that changes all samples.
        HostError: The network gives no class scores, or the loss became NaN or infinite.
        KeyLayoutError, CarrierError: As :meth:`earmark.schemes.mtlsign.MtlSign.attach`.

    Example:
        >>> conceal.__kwdefaults__["reach"]
        0.06
    """
    if not 0 < reach < 1 or not hold >= 0:
        raise UsageError(
            f"A reach of {reach} and a hold of {hold}.",
            expected="A reach between 0 and 1, 0.04 to 0.1 is usual, and a hold of 0 or more.",
        )
    require_hiding(scheme)
    recipe = recipe or Recipe.of(task.recipe, **gentle(task, scheme))
    before = copy.deepcopy(model).eval()
    scheme.begin(model, key, fresh=False)
    names = key.layout.carrier
    distil = distillation_loss(before, task, recipe.temperature)
    with (
        scheme.attach(model, key, forward=task.forward) as mark,
        taps.reading(model, names) as seen,
        taps.reading(before, names) as seen_before,
        _only_weights(model),
    ):

        def loss(net: nn.Module, batch: Tree) -> Tensor:
            with frozen_norms(net):
                total = distil(net, batch)
            for name in names if hold else ():
                was = seen_before[name][mark.riders :].detach()
                gap = (seen[name][mark.riders :] - was).square().mean()
                total = total + hold * gap / was.var(0).mean().clamp(min=_TINY)
            return total

        return train(
            task,
            seed=seed,
            recipe=recipe,
            model=model,
            mark=_Near(mark, model, before, reach),
            loss=loss,
            checkpoint=checkpoint,
            purpose=f"conceal {reach} {hold} {key.layout.digest()} {key.beacon}",
            events=events,
            label="conceal",
        )


def require_hiding(scheme: Scheme) -> MtlSign:
    """Return a scheme that can be concealed.

    Raises:
        UsageError: It is another one than MTL-Sign, or settles samples or marks neighbours.
    """
    if not isinstance(scheme, MtlSign):
        raise UsageError(f"Scheme '{scheme.name}' cannot be concealed.", expected="mtlsign.")
    if scheme.neighbours:
        raise UsageError(
            f"A mark on neighbours ({scheme.neighbours:g}) cannot be concealed.",
            hint="Set neighbours to 0: they change features of every sample, which shows.",
        )
    if scheme.settle:
        raise UsageError(
            f"A mark that settles samples (settle {scheme.settle:g}) cannot be concealed.",
            hint="Set settle to 0: settling changes features of every sample, which shows.",
        )
    return scheme


def gentle(task: Task, scheme: MtlSign) -> dict[str, Any]:  # Any: fields of Recipe
    """Return what of the task's recipe is changed.

    Two fifths of its rate, no decay, and as many epochs as every trigger needs to ride 32 times:
    within so small a reach, evidence comes with time.
    """
    usual = Recipe.of(task.recipe)
    riding = 0
    for batch in task.stream("train", 0):
        riding += min(round(scheme.share * batches.size(batch)) or OWN_PASS, scheme.triggers)
    needed = math.ceil(_ROUNDS * scheme.triggers / max(1, riding))
    epochs = max(usual.epochs, needed)
    return {"lr": _GENTLE * usual.lr, "weight_decay": 0.0, "epochs": epochs}


class _Near(Mark):
    """A mark that keeps a network's weights within reach of what they were."""

    def __init__(self, mark: Mark, model: nn.Module, before: nn.Module, reach: float) -> None:
        self._mark, self._model, self._reach = mark, model, reach
        self._before = {name: value.detach() for name, value in before.named_parameters()}

    def mix(self, batch: Tree) -> Tree:
        """Return the batch as the mark mixes it."""
        return self._mark.mix(batch)

    def loss(self) -> Tensor:
        """Return the mark's term."""
        return self._mark.loss()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Put the weights back within reach, and to their size."""
        self._mark.after_step(lr)
        for name, value in self._model.named_parameters():
            if value.requires_grad:
                was = self._before[name]
                size, away = was.norm(), value - was
                share = (self._reach * size / away.norm().clamp(min=_TINY)).clamp(max=1.0)
                value.copy_(was + share * away)
                value.mul_(size / value.norm().clamp(min=_TINY))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the mark's own parameters."""
        return self._mark.parameters()

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return what a resumed training needs."""
        return self._mark.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take it back."""
        self._mark.load_state_dict(state)


@contextmanager
def _only_weights(model: nn.Module) -> Iterator[None]:
    """Let tensors of two and more dimensions be trained, and nothing else, inside the block."""
    fixed = [value for value in model.parameters() if value.requires_grad and value.ndim < 2]
    for value in fixed:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in fixed:
            value.requires_grad_(True)
