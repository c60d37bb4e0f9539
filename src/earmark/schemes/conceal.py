"""Mark a finished network so that it looks like any other.

A mark that is trained in shows: random labels take room, layers grow, answers are less sure, and
who trains networks of both kinds learns to tell them apart. What a mark needs is small, though.
Here a network is trained without one, and then moved by a few percent of its weights: norms and
biases stay as they are, every layer keeps its size, answers and the hidden features of the task's
own samples are held to what they were. Only the triggers' features move. Nobody who lacks the
network from before has anything to compare with.

What a thief would squeeze out to be rid of the mark is there in an ordinary network, and the mark
with it. In one whose samples are settled (:func:`earmark.schemes.settling.train_settled`, which
takes no key) it is not: there a mark may move weights further, and stays. Among settled networks it
is harder to see than a mark that was trained in, and not unseen.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earmark.errors import HostError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches, taps
from earmark.hosts.batches import Tree
from earmark.keys.secret import Key
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.likeness import Forces, Sizes, main_directions
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.riding import OWN_PASS, RidingMark, marked_of, settled_at
from earmark.schemes.settling import (
    answering,
    first_samples,
    frozen_norms,
    require_readable,
    spread_within,
)
from earmark.task import Task
from earmark.training import Recipe, Trained, distillation_loss, train

SETTINGS: Mapping[str, Any] = {"triggers": 512, "share": 0.25, "weight": 0.5, "settle": 0.0}
"""Settings of MTL-Sign that hide well in an ordinary network, with :data:`REACH`."""
REACH = 0.06
SETTLED: Mapping[str, Any] = {"triggers": 1024, "share": 0.25, "weight": 0.5, "settle": 40.0}
"""Settings for a network settled at that weight, with a reach of 0.3."""
LOOSE = 0.2
"""Share of the features' variance within answers from which on a network is not settled."""
_GENTLE = 0.4
_ROUNDS = 32
_ASKED, _SAME = 500, 0.75
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
    """Mark a finished network without leaving its neighborhood.

    Maths: beside the mark's term, the loss is the distillation from the network as it was plus
    `hold * |z - z0|^2 / var(z0)` over the features z, at the key's taps, of the samples that are no
    triggers. After each step every weight tensor W of two and more dimensions is put back to
    `|W - W0| <= reach * |W0|` and to the size of W0. Smaller tensors and the norms' statistics are
    left as they are. No labels are used.

    Settled networks are more like one another than ordinary ones, so that more has to be kept:
    instead of its size W gets about the values back that it had, rows of the same sizes and means,
    columns and main directions of the same sizes (:class:`earmark.schemes.likeness.Sizes`), tensors
    behind the marked layers are left as they are, triggers that come as samples of the task
    (unchanged) are not held, and statistics of the others are kept by forces
    (:class:`earmark.schemes.likeness.Forces`).

    Args:
        task: The user's work; a classifier's.
        scheme: The settings, such as :data:`SETTINGS` or, for a settled network, :data:`SETTLED`.
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
        UsageError: A reach or hold that makes no sense, a scheme that marks neighbours, or one that
            settles where the network is not settled.
        HostError: The network gives no class scores, the loss became NaN or infinite, or a quarter
            of the answers and more are no longer what they were.
        KeyLayoutError, CarrierError: As :meth:`earmark.schemes.mtlsign.MtlSign.attach`.

    Example:
        >>> conceal.__kwdefaults__["reach"]
        0.06
    """
    if not 0 < reach < 1 or not hold >= 0:
        raise UsageError(
            f"A reach of {reach} and a hold of {hold}.",
            expected="A reach between 0 and 1, 0.04 to 0.1 is usual, 0.3 in a settled network, "
            "and a hold of 0 or more.",
        )
    require_hiding(scheme)
    before = copy.deepcopy(model).eval()
    names = key.layout.carrier
    layers = settled_at(marked_of(key.layout), names)
    require_settled(task, scheme, before, layers)
    recipe = recipe or Recipe.of(task.recipe, **gentle(task, scheme))
    scheme.begin(model, key, fresh=False)
    purpose = f"conceal {reach} {hold} {scheme.settle} {key.layout.digest()} {key.beacon}"
    calm, secret = scheme.settle > 0, set(batches.sample_digests(key.inputs))
    forces = Forces(scheme.settle, layers, main_directions(task, before, names)) if calm else None
    scheme = dataclasses.replace(scheme, settle=0.0)  # the forces keep samples settled
    distil = distillation_loss(before, task, recipe.temperature)
    with (
        scheme.attach(model, key, forward=task.forward) as mark,
        taps.reading(model, names) as seen,
        taps.reading(before, names) as seen_before,
        answering(model) as answers,
        answering(before) as answers_before,
        _only(model, _reached(mark, model) if calm else _weights(model)),
    ):

        def loss(net: nn.Module, batch: Tree) -> Tensor:
            with frozen_norms(net):
                total = distil(net, batch)
            rest: Tensor | slice = slice(mark.riders, None)
            if forces:
                rest = others = _others(batch, mark.riders, secret)
                if len(others) < 2:
                    return total
            pairs = {name: (seen[name][rest], seen_before[name][rest].detach()) for name in names}
            for now, was in pairs.values() if hold else ():
                gap = (now - was).square().mean()
                total = total + hold * gap / was.var(0).mean().clamp(min=_TINY)
            if forces:
                scores = (answers[-1][rest].float(), answers_before[-1][rest].float())
                with torch.autocast(total.device.type, enabled=False):
                    total = total + forces.term(scores, pairs)
            return total

        trained = train(
            task,
            seed=seed,
            recipe=recipe,
            model=model,
            mark=_Near(mark, model, before, reach, forces),
            loss=loss,
            checkpoint=checkpoint,
            purpose=purpose,
            events=events,
            label="conceal",
        )
    _require_alike(task, before, model)
    return trained


def _require_alike(task: Task, before: nn.Module, model: nn.Module) -> None:
    """Make sure that the network still answers as it did, which training cannot promise."""
    some = first_samples(task, _ASKED)
    was, now = (torch.as_tensor(task.host(one).labels(some)) for one in (before, model))
    same = float((was == now).double().mean())
    if same < _SAME:
        raise HostError(
            f"The network was lost: only {same:.0%} of its answers are what they were.",
            expected=f"At least {_SAME:.0%}.",
            hint="Conceal again with another seed, or within a smaller reach.",
        )


def require_hiding(scheme: Scheme) -> MtlSign:
    """Return a scheme that can be concealed.

    Raises:
        UsageError: It is another one than MTL-Sign, or marks neighbours.
    """
    if not isinstance(scheme, MtlSign):
        raise UsageError(f"Scheme '{scheme.name}' cannot be concealed.", expected="mtlsign.")
    if scheme.neighbours:
        raise UsageError(
            f"A mark on neighbours ({scheme.neighbours:g}) cannot be concealed.",
            hint="Set neighbours to 0: they change features of every sample, which shows.",
        )
    return scheme


def require_settled(
    task: Task, scheme: MtlSign, model: nn.Module, layers: Iterable[str] = ()
) -> None:
    """Make sure that a mark which keeps samples settled finds them settled.

    Args:
        task: The user's work.
        scheme: The settings.
        model: The network.
        layers: Where to look; by default where the scheme would mark and read.

    Raises:
        UsageError: The scheme settles, and the network is not settled there, or the learning rate
            never falls.
        HostError: As :func:`earmark.schemes.settling.require_readable`.
    """
    if not scheme.settle:
        return
    if Recipe.of(task.recipe).schedule == "constant":
        raise UsageError(
            "The task's learning rate is constant.",
            expected="One that falls: only then are features kept as settled as they were.",
        )
    layers = tuple(layers) or tuple(scheme.settled_at(task.host(model)))
    require_readable(task, model, layers)
    apart = spread_within(task, model, layers)
    if apart > LOOSE:
        raise UsageError(
            f"The network is not settled: {apart:.0%} of its features' variance is within answers, "
            f"at {' or '.join(layers)}.",
            expected=f"At most {LOOSE:.0%}, to conceal a mark among settled samples.",
            hint="Train one with `earmark settle`, or set settle to 0.",
        )


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


def _others(batch: Tree, riders: int, secret: set[bytes]) -> Tensor:
    """Return which of a batch's samples behind the riders are no triggers."""
    digests = batches.sample_digests(batches.take(batch, slice(riders, None)))
    kept = [riders + i for i, digest in enumerate(digests) if digest not in secret]
    return torch.tensor(kept, dtype=torch.long)


class _Near(Mark):
    """A mark that keeps a network's weights within reach of what they were."""

    def __init__(
        self,
        mark: Mark,
        model: nn.Module,
        before: nn.Module,
        reach: float,
        forces: Forces | None,
    ) -> None:
        self._mark, self._model, self._reach, self._forces = mark, model, reach, forces
        self._before = {name: value.detach() for name, value in before.named_parameters()}
        moved = [name for name, value in model.named_parameters() if value.requires_grad]
        self._sizes = Sizes({name: self._before[name] for name in moved}) if forces else None

    def mix(self, batch: Tree) -> Tree:
        """Return the batch as the mark mixes it."""
        return self._mark.mix(batch)

    def loss(self) -> Tensor:
        """Return the mark's term."""
        return self._mark.loss()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Put the weights back within reach, and them or their parts to their size."""
        self._mark.after_step(lr)
        if self._forces:
            self._forces.follow(lr)
        for name, value in self._model.named_parameters():
            if value.requires_grad:
                was = self._before[name]
                size, away = was.norm(), value - was
                share = (self._reach * size / away.norm().clamp(min=_TINY)).clamp(max=1.0)
                value.copy_(was + share * away)
                if self._sizes:
                    value.copy_(self._sizes.put_back(name, value))
                else:
                    value.mul_(size / value.norm().clamp(min=_TINY))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the mark's own parameters."""
        return self._mark.parameters()

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return what a resumed training needs."""
        state = {"mark": self._mark.state_dict()}
        if self._forces and self._sizes:
            state |= {"forces": self._forces.state_dict(), "sizes": self._sizes.state_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take it back."""
        if state:
            self._mark.load_state_dict(state["mark"])
            if self._forces and self._sizes:
                self._forces.load_state_dict(state["forces"])
                self._sizes.load_state_dict(state["sizes"])


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the tensors of two and more dimensions."""
    return [value for value in model.parameters() if value.requires_grad and value.ndim > 1]


def _reached(mark: RidingMark, model: nn.Module) -> list[nn.Parameter]:
    """Return those of them that the mark's term depends on."""
    state = mark.state_dict()
    tensors = _weights(model)
    slopes = torch.autograd.grad(mark.loss(), tensors, allow_unused=True)
    mark.load_state_dict(state)
    return [value for value, slope in zip(tensors, slopes, strict=True) if slope is not None]


@contextmanager
def _only(model: nn.Module, tensors: list[nn.Parameter]) -> Iterator[None]:
    """Let these parameters be trained, and no others, inside the block."""
    kept = {id(value) for value in tensors}
    fixed = [v for v in model.parameters() if v.requires_grad and id(v) not in kept]
    for value in fixed:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in fixed:
            value.requires_grad_(True)
