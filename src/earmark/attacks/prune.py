"""Pruning: set the smallest weights, or whole channels, to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.attacks.tracing import groups
from earmark.attacks.units import Group
from earmark.errors import UsageError
from earmark.hosts.operations import BATCH_NORMS


class Masks(tuning.Hook):
    """Keep chosen entries of parameters at exactly zero while the rest trains.

    Args:
        masks: Parameters with masks of their shape; false entries are zero.
    """

    def __init__(self, masks: list[tuple[nn.Parameter, Tensor]]) -> None:
        self.masks = masks
        self.after_step(0.0)

    def after_step(self, lr: float) -> None:  # noqa: ARG002
        """Set the masked entries to zero again."""
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.masked_fill_(~mask, 0.0)


def smallest(values: Tensor, share: float) -> Tensor:
    """Return a mask that is false at the given share of entries, the smallest ones; ties by place.

    Example:
        >>> smallest(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5)
        tensor([ True, False, False,  True])
    """
    flat = values.flatten()
    mask = torch.ones(len(flat), dtype=torch.bool)
    mask[torch.argsort(flat, stable=True)[: round(share * len(flat))]] = False
    return mask.view(values.shape)


@dataclass(frozen=True)
class Prune(Attack):
    """Set the smallest weights to zero, and train the rest further if asked to.

    Args:
        share: Share of the weights to remove.
        scope: "global" (one threshold for all layers) or "layer" (the same share of each).
        criterion: "magnitude" or "random".
        epochs: Epochs of training after it, with the zeros held; needs data.
        lr: Peak learning rate of that training.

    Raises:
        UsageError: Another scope or criterion, or a share outside 0 to 1.

    Source:
        Han et al. 2015; shares as in Uchida et al. 2017 and Lukas et al. 2022. Biases and norms are
        left alone.

    Example:
        >>> Prune.preset("layer-90").label()
        'prune(share=0.9, scope=layer)'
    """

    name: ClassVar[str] = "prune"
    family: ClassVar[str] = "prune"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Han et al. 2015; Uchida et al. 2017; Lukas et al. 2022."
    summary: ClassVar[str] = "Set the smallest weights to zero."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "50": {"share": 0.5},
        "65": {},
        "80": {"share": 0.8},
        "90": {"share": 0.9},
        "layer-65": {"scope": "layer"},
        "layer-90": {"share": 0.9, "scope": "layer"},
        "random-30": {"share": 0.3, "criterion": "random"},
        "tuned-80": {"share": 0.8, "epochs": 3},
    }

    share: float = 0.65
    scope: str = "global"
    criterion: str = "magnitude"
    epochs: int = 0
    lr: float = 0.01

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)
        if self.scope not in ("global", "layer") or self.criterion not in ("magnitude", "random"):
            raise UsageError(
                f"Pruning with scope '{self.scope}' and criterion '{self.criterion}'.",
                expected="global or layer; magnitude or random.",
            )

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Prune the copy."""
        generator = torch.Generator().manual_seed(seed)
        parameters = [item for _, item in tuning.weights(model)]
        values = [
            item.detach().abs()
            if self.criterion == "magnitude"
            else torch.rand(item.shape, generator=generator)
            for item in parameters
        ]
        if self.scope == "layer":
            masks = [smallest(item, self.share) for item in values]
        else:
            joined = smallest(torch.cat([item.flatten() for item in values]), self.share)
            parts = torch.split(joined, [item.numel() for item in values])
            masks = [part.view(item.shape) for part, item in zip(parts, values, strict=True)]
        return _finish(model, budget, masks, parameters, self.epochs, self.lr, seed)


def _finish(
    model: nn.Module,
    budget: Budget,
    masks: list[Tensor],
    parameters: list[nn.Parameter],
    epochs: int,
    lr: float,
    seed: int,
) -> nn.Module:
    """Apply masks and train with them held."""
    hook = Masks(list(zip(parameters, masks, strict=True)))
    if epochs:
        settings = tuning.recipe(budget, epochs=epochs, lr=lr)
        return tuning.tune(model, budget, settings, seed=seed, hook=hook)
    return model


@dataclass(frozen=True)
class PruneChannels(Attack):
    """Remove the channels with the smallest incoming weights from every hidden group.

    Args:
        share: Share of each group's channels to remove.
        shrink: Whether tensors shrink; else the channels are set to zero and stay so.
        epochs: Epochs of training after it; needs data.
        lr: Peak learning rate of that training.

    Source:
        Li et al. 2017 (L1 norm of filters). Residual groups are pruned together.
    """

    name: ClassVar[str] = "prune-channels"
    family: ClassVar[str] = "prune"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Li et al. 2017, pruning filters by L1 norm."
    summary: ClassVar[str] = "Remove whole channels and train the rest further."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "10": {"share": 0.1, "epochs": 0},
        "30": {},
        "50": {"share": 0.5},
        "30-shrunk": {"shrink": True},
    }

    share: float = 0.3
    shrink: bool = False
    epochs: int = 5
    lr: float = 0.01

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Prune the copy."""
        epochs = self.epochs if budget.data_fraction else 0
        found: dict[int, tuple[nn.Parameter, Tensor]] = {}
        chosen = []
        for group in groups(model):
            keep = smallest(group.strength(), self.share)
            keep[group.strength().argmax()] = True
            chosen.append((group, keep))
        for group, keep in chosen:
            if self.shrink:
                group.select(keep.nonzero().flatten())
            else:
                mask_rows(group, keep, found)
        parameters, masks = [item for item, _ in found.values()], [m for _, m in found.values()]
        return _finish(model, budget, masks, parameters, epochs, self.lr, seed)


def mask_rows(group: Group, keep: Tensor, found: dict[int, tuple[nn.Parameter, Tensor]]) -> None:
    """Add masks that silence channels: incoming weights, biases, gains and shifts of norms."""
    norms = [module for module in group.passengers if isinstance(module, BATCH_NORMS)]
    for module in [*group.producers, *group.passengers]:
        for name in ("weight", "bias"):
            value = getattr(module, name, None)
            if isinstance(value, nn.Parameter):
                shape = (-1, *[1] * (value.ndim - 1))
                before = found.get(id(value), (value, torch.ones_like(value, dtype=torch.bool)))[1]
                found[id(value)] = (value, before & keep.view(shape))
    for norm in norms:
        norm.running_mean.masked_fill_(~keep, 0.0)  # type: ignore[union-attr]
