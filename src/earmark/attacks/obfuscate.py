"""Changes that keep the function and move the parameters: order, scale, sign and dummy units.

They cost nothing and need nothing, and they break every mark that is read at fixed positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earmark.attacks import units
from earmark.attacks.base import Attack, Budget
from earmark.attacks.tracing import groups
from earmark.attacks.units import Group
from earmark.errors import HostError, UsageError

_INVARIANT = (
    "Yan et al. 2022, invariant neuron transforms: permutation, scaling and sign flips. Here "
    "groups behind residual additions move together, and batch norms absorb factors exactly."
)
_DUMMY = "Yan et al. 2023, neural structural obfuscation: dummy units that cancel."


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Permute(Attack):
    """Reorder the hidden units of every group.

    Source:
        Yan et al. 2022. Residual additions are respected.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts, image_task
        >>> model, inputs = tiny_hosts()["mlp"]
        >>> moved = Permute().run(model, Budget(image_task("mlp", "digits")), seed=1)
        >>> bool((moved.fc1.weight == model.fc1.weight).all())
        False
        >>> bool(torch.allclose(moved(inputs), model(inputs), atol=1e-5))
        True
    """

    name: ClassVar[str] = "permute"
    family: ClassVar[str] = "obfuscate"
    needs_data: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    source: ClassVar[str] = _INVARIANT
    summary: ClassVar[str] = "Reorder hidden units."

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Reorder every group."""
        generator = _generator(seed)
        for group in groups(model):
            group.select(torch.randperm(group.size, generator=generator))
        return model


@dataclass(frozen=True)
class Scale(Attack):
    """Multiply hidden units by positive factors that the next layer undoes.

    Args:
        spread: Factors lie between 1 / spread and spread, uniform in their logarithm.

    Source:
        Yan et al. 2022.
    """

    name: ClassVar[str] = "scale"
    family: ClassVar[str] = "obfuscate"
    needs_data: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    source: ClassVar[str] = _INVARIANT
    summary: ClassVar[str] = "Scale hidden units; the next layer undoes it."

    spread: float = 4.0

    def __post_init__(self) -> None:
        if not self.spread > 1:
            raise UsageError(f"A spread of {self.spread} scales nothing.", expected="Above 1.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Scale every stage that allows it."""
        generator = _generator(seed)
        for group in groups(model):
            for stage in group.stages:
                if stage.positive:
                    drawn = 2 * torch.rand(group.size, generator=generator) - 1
                    units.scale(stage, self.spread**drawn)
        return model


@dataclass(frozen=True)
class FlipSigns(Attack):
    """Flip signs of hidden units where that is exact: before batch norm, around odd activations.

    Args:
        share: Share of the units that flip.

    Source:
        Yan et al. 2022.
    """

    name: ClassVar[str] = "flip-signs"
    family: ClassVar[str] = "obfuscate"
    needs_data: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    source: ClassVar[str] = _INVARIANT
    summary: ClassVar[str] = "Flip signs of hidden units where that is exact."

    share: float = 0.5

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Flip in every stage that allows it.

        Raises:
            HostError: No stage does.
        """
        if not self.flip(model, seed=seed):
            raise HostError(
                f"No sign can be flipped exactly in {type(model).__name__}.",
                expected="Batch norm or odd activations between its layers.",
            )
        return model

    def flip(self, model: nn.Module, *, seed: int) -> int:
        """Flip in place in every stage that allows it, and return how many there are."""
        generator = _generator(seed)
        stages = [(g.size, stage) for g in groups(model) for stage in g.stages if stage.sign]
        for size, stage in stages:
            flips = torch.rand(size, generator=generator) < self.share
            units.scale(stage, torch.where(flips, -1.0, 1.0))
        return len(stages)


@dataclass(frozen=True)
class Dummies(Attack):
    """Add hidden units that change nothing.

    Args:
        kind: "zero" (nothing reads them), "clique" (alike units whose outgoing weights cancel),
            "split" (a unit and its twin share the outgoing weights) or "active" (units of their
            own with small outgoing weights; not exact).
        width: New units as a share of the group's size.
        size: Outgoing weights of active units, relative to the layer's spread.

    Raises:
        UsageError: Another kind.

    Source:
        Yan et al. 2023 for zero, clique and split; the active ones are ours: they are not
        redundant, so that elimination of redundant units does not find them.
    """

    name: ClassVar[str] = "dummies"
    family: ClassVar[str] = "obfuscate"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = _DUMMY
    summary: ClassVar[str] = "Add hidden units that change nothing."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "zero": {"kind": "zero"},
        "clique": {"kind": "clique"},
        "split": {"kind": "split"},
        "active": {"kind": "active"},
        "wide": {"kind": "clique", "width": 0.8},
    }

    kind: str = "clique"
    width: float = 0.25
    size: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in _ADD:
            raise UsageError(
                f"There are no '{self.kind}' dummies.", expected=f"One of {', '.join(_ADD)}."
            )
        if not self.width > 0:
            raise UsageError(f"A width of {self.width} adds nothing.", expected="Above 0.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Widen every group."""
        generator = _generator(seed)
        for group in groups(model):
            count = max(2, round(self.width * group.size))
            _ADD[self.kind](group, count, generator, self.size)
        return model


def _copies(group: Group, count: int, generator: torch.Generator) -> Tensor:
    """Append copies of random units and return which were copied."""
    chosen = torch.randint(group.size, (count,), generator=generator)
    group.select(torch.cat([torch.arange(group.size), chosen]))
    return chosen


def _shake(group: Group, count: int, generator: torch.Generator) -> None:
    """Draw the incoming weights of the last units anew, with the spread of the others."""

    def change(weight: Tensor) -> Tensor:
        spread = weight[:-count].std()
        weight[-count:] = spread * torch.randn(weight[-count:].shape, generator=generator)
        return weight

    group.incoming(change)


def _zero(group: Group, count: int, generator: torch.Generator, _size: float) -> None:
    _copies(group, count, generator)
    _shake(group, count, generator)

    def change(weight: Tensor) -> Tensor:
        weight[:, -count:] = 0
        return weight

    group.outgoing(change)


def _clique(group: Group, count: int, generator: torch.Generator, _size: float) -> None:
    start = torch.randint(group.size, (1,), generator=generator)
    group.select(torch.cat([torch.arange(group.size), start.expand(count)]))

    def shake(weight: Tensor) -> Tensor:
        row = weight[:-count].std() * torch.randn(weight[-1:].shape, generator=generator)
        weight[-count:] = row
        return weight

    def cancel(weight: Tensor) -> Tensor:
        spread = weight[:, :-count].std()
        drawn = spread * torch.randn(weight[:, -count:].shape, generator=generator)
        weight[:, -count:] = drawn - drawn.mean(1, keepdim=True)
        return weight

    group.incoming(shake)
    group.outgoing(cancel)


def _split(group: Group, count: int, generator: torch.Generator, _size: float) -> None:
    count = min(count, group.size)
    chosen = torch.randperm(group.size, generator=generator)[:count]
    group.select(torch.cat([torch.arange(group.size), chosen]))
    share = 0.2 + 0.6 * torch.rand(count, generator=generator)

    def change(weight: Tensor) -> Tensor:
        part = share.view(1, -1, *[1] * (weight.ndim - 2)).to(weight.dtype)
        weight[:, chosen] = weight[:, chosen] * part
        weight[:, -count:] = weight[:, -count:] * (1 - part)
        return weight

    group.outgoing(change)


def _active(group: Group, count: int, generator: torch.Generator, size: float) -> None:
    _copies(group, count, generator)
    _shake(group, count, generator)

    def change(weight: Tensor) -> Tensor:
        spread = size * weight[:, :-count].std()
        weight[:, -count:] = spread * torch.randn(weight[:, -count:].shape, generator=generator)
        return weight

    group.outgoing(change)


_Add = Callable[[Group, int, torch.Generator, float], None]
_ADD: dict[str, _Add] = {"zero": _zero, "clique": _clique, "split": _split, "active": _active}


@dataclass(frozen=True)
class Obfuscate(Attack):
    """Do all of it: dummy units of the named kinds, then permutation, scaling and sign flips.

    Args:
        kinds: Kinds of dummies, in order; see :class:`Dummies`.
        width: New units of each kind as a share of the group's size.
        spread: See :class:`Scale`.

    Source:
        Yan et al. 2023, their composed attack.
    """

    name: ClassVar[str] = "obfuscate"
    family: ClassVar[str] = "obfuscate"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = _DUMMY
    summary: ClassVar[str] = "Dummy units, permutation, scaling and sign flips together."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "exact": {},
        "active": {"kinds": ("zero", "clique", "split", "active")},
        "wide": {"width": 0.8},
    }

    kinds: tuple[str, ...] = ("zero", "clique", "split")
    width: float = 0.1
    spread: float = 4.0

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Run the parts in order."""
        parts: list[Attack] = [Dummies(kind=kind, width=self.width) for kind in self.kinds]
        parts += [Permute(), Scale(spread=self.spread)]
        for index, part in enumerate(parts):
            model = part.change(model, budget, seed=seed + 7919 * index)
        FlipSigns().flip(model, seed=seed)
        return model
