"""Find the interchangeable hidden units of a network: what may be permuted, scaled and added.

A *group* is a set of channels that can be reordered together without changing the function: the
layers that write them, the normalizations they pass, and the layers that read them. Residual
additions tie layers into one group. Within a group, a *stage* is a stretch between two weighted
operations in which the units may be scaled: by positive factors through ReLU, by signs through odd
activations, by both where nothing lies between.

:mod:`earmark.attacks.tracing` finds the groups of a network; this module holds what they can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from earmark.hosts.operations import BATCH_NORMS, CONVS

Weighted: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass
class Stage:
    """A stretch of a group within which units may be scaled.

    Args:
        writers: Layers whose outputs it holds.
        readers: Layers that take them in.
        positive: Whether positive factors cancel exactly.
        sign: Whether sign flips cancel exactly.
    """

    writers: list[nn.Module] = field(default_factory=list)
    readers: list[nn.Module] = field(default_factory=list)
    positive: bool = True
    sign: bool = True


@dataclass
class Group:
    """Channels that are interchangeable.

    Args:
        size: Number of units.
        producers: Layers with the units along axis 0 of their weights.
        passengers: Normalizations and depthwise convolutions that the units pass.
        consumers: Layers with the units along axis 1 of their weights, in equal blocks.
        stages: Where the units may be scaled.
    """

    size: int
    producers: list[Weighted] = field(default_factory=list)
    passengers: list[nn.Module] = field(default_factory=list)
    consumers: list[Weighted] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    def select(self, index: Tensor) -> None:
        """Rebuild the group from the units at `index`: reorder, repeat or drop them.

        Args:
            index: (new size,), int64.
        """
        for module in [*self.producers, *self.passengers]:
            _gather_rows(module, index)
        for module in self.consumers:
            columns = _blocks(module, self.size)[:, index]
            _set(module, "weight", columns.flatten(1, 2))
        self.size = len(index)
        self._tell_sizes()

    def outgoing(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the outgoing weights of every consumer.

        Args:
            change: Given and returning (outputs, units, block, ...).
        """
        for module in self.consumers:
            _set(module, "weight", change(_blocks(module, self.size)).flatten(1, 2))

    def incoming(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the incoming weights of every producer, given as (units, ...)."""
        for module in self.producers:
            _set(module, "weight", change(module.weight.detach().clone()))

    def strength(self) -> Tensor:
        """Return the L1 norm of each unit's incoming weights over its producers, (units,)."""
        norms = [module.weight.detach().flatten(1).abs().sum(1) for module in self.producers]
        return torch.stack(norms).sum(0)

    def _tell_sizes(self) -> None:
        for module in self.producers:
            _name_size(module, "out", self.size)
        for module in self.consumers:
            _name_size(module, "in", module.weight.shape[1])
        for norm in self.passengers:
            for name in ("num_features", "in_channels", "out_channels", "groups"):
                if hasattr(norm, name):
                    setattr(norm, name, self.size)


def _name_size(module: nn.Module, side: str, size: int) -> None:
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    setattr(module, f"{side}_{kind}", size)


def _blocks(module: Weighted, size: int) -> Tensor:
    """View a consumer's weights as (outputs, units, block, ...)."""
    weight = module.weight.detach()
    outer, inner, *rest = weight.shape
    return weight.clone().reshape(outer, size, inner // size, *rest)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by another of maybe another shape."""
    old = getattr(module, name)
    last = value.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last)
    value = value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(module, name, value)


def _gather_rows(module: nn.Module, index: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if isinstance(value, Tensor):
            _set(module, name, value.detach()[index])


def scale(stage: Stage, factors: Tensor) -> None:
    """Multiply what the stage's writers give by factors and let its readers undo it.

    Args:
        stage: A stage that allows such factors.
        factors: (units,), no zeros.
    """
    for module in stage.writers:
        for name in ("weight", "bias"):
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                _set(module, name, value.detach() * _along(factors, value, 0))
    for module in stage.readers:
        if isinstance(module, BATCH_NORMS):
            _absorb(module, factors)
        elif isinstance(module, CONVS) and module.groups > 1:
            _set(module, "weight", module.weight.detach() / _along(factors, module.weight, 0))
        else:
            assert isinstance(module, (nn.Linear, *CONVS))
            blocks = _blocks(module, len(factors))
            _set(module, "weight", (blocks / _along(factors, blocks, 1)).flatten(1, 2))


def _along(factors: Tensor, value: Tensor, axis: int) -> Tensor:
    shape = [1] * value.ndim
    shape[axis] = -1
    return factors.to(value.dtype).view(shape)


def _absorb(norm: nn.Module, factors: Tensor) -> None:
    """Let a batch norm undo factors on its inputs exactly, its epsilon included."""
    assert isinstance(norm, BATCH_NORMS)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    wider = var * factors**2
    gain = ((wider + norm.eps) / (var + norm.eps)).sqrt() / factors
    _set(norm, "running_mean", mean * factors)
    _set(norm, "running_var", wider)
    _set(norm, "weight", norm.weight.detach() * gain)
