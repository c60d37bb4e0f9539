"""Other structures for the same function: norms folded away, layers factored, linear gauges."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.attacks.tracing import groups
from earmark.attacks.units import Group
from earmark.errors import HostError
from earmark.hosts.operations import BATCH_NORMS

_SOURCE = "Equivalent structures, as in DeepEclipse (2024); the implementation is ours."


@dataclass(frozen=True)
class FoldNorms(Attack):
    """Fold each batch norm into the layer before it and leave an identity in its place.

    Source:
        Common practice before deployment. A layer without a bias gets one.
    """

    name: ClassVar[str] = "fold-norms"
    family: ClassVar[str] = "refactor"
    needs_data: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    source: ClassVar[str] = _SOURCE
    summary: ClassVar[str] = "Fold batch norms into the layers before them."

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Fold in the copy.

        Raises:
            HostError: No batch norm directly follows a layer that it can be folded into.
        """
        folded = 0
        for group in groups(model):
            for stage in group.stages:
                pair = _pair(stage.writers, stage.readers, group)
                if pair is not None:
                    _fold(*pair)
                    _replace(model, pair[1], nn.Identity())
                    folded += 1
        if not folded:
            raise HostError(f"{type(model).__name__} has no batch norm that can be folded.")
        return model


def _pair(
    writers: list[nn.Module], readers: list[nn.Module], group: Group
) -> tuple[nn.Linear | nn.Conv2d, nn.BatchNorm2d] | None:
    """Return one layer and the one norm that reads it, and nothing else does."""
    if len(writers) != 1 or len(readers) != 1 or not isinstance(readers[0], BATCH_NORMS):
        return None
    writer = writers[0]
    if not any(writer is item for item in (*group.producers, *group.passengers)):
        return None
    if isinstance(writer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return writer, readers[0]  # type: ignore[return-value]
    return None


def _fold(layer: nn.Linear | nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    shape = (-1, *[1] * (layer.weight.ndim - 1))
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros_like(gain)
    layer.weight = nn.Parameter(layer.weight.detach() * gain.view(shape))
    layer.bias = nn.Parameter((bias - norm.running_mean) * gain + norm.bias.detach())


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


class _Factored(nn.Sequential):
    """Two linear layers in the place of one; `weight` and `bias` give what they amount to."""


@dataclass(frozen=True)
class Factor(Attack):
    """Split linear layers into two by singular values, exactly or to a lower rank.

    Args:
        rank: Share of the full rank that is kept; 1 is exact.

    Source:
        Denton et al. 2014; here as an attack on names and shapes.
    """

    name: ClassVar[str] = "factor"
    family: ClassVar[str] = "refactor"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Denton et al. 2014, low-rank factoring."
    summary: ClassVar[str] = "Split linear layers into two by singular values."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "exact": {},
        "half": {"rank": 0.5},
    }

    rank: float = 1.0

    def __post_init__(self) -> None:
        tuning.need_share(self.rank, "rank", self.name)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Factor the copy's hidden linear layers; the last one stays.

        Raises:
            HostError: There are none.
        """
        _, last = tuning.last_layer(model)
        inner = {
            id(part)
            for layer in model.modules()
            if isinstance(layer, (nn.TransformerEncoderLayer, nn.MultiheadAttention))
            for part in layer.modules()
        }
        found = [
            module
            for module in model.modules()
            if type(module) is nn.Linear and module is not last and id(module) not in inner
        ]
        if not found:
            raise HostError(f"{type(model).__name__} has no hidden linear layer to factor.")
        for module in found:
            _replace(model, module, self._split(module))
        return model

    def _split(self, layer: nn.Linear) -> nn.Module:
        left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        keep = max(1, round(self.rank * len(values)))
        root = values[:keep].sqrt()
        inner = nn.Linear(layer.in_features, keep, bias=False)
        outer = nn.Linear(keep, layer.out_features, bias=layer.bias is not None)
        inner.weight = _like(root[:, None] * right[:keep], layer.weight)
        outer.weight = _like(left[:, :keep] * root, layer.weight)
        if layer.bias is not None:
            outer.bias = nn.Parameter(layer.bias.detach().clone())
        return _Factored(inner, outer)


def _like(value: Tensor, old: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(old.dtype).contiguous())


@dataclass(frozen=True)
class MixUnits(Attack):
    """Mix units by invertible matrices wherever nothing nonlinear lies between two layers.

    Args:
        spread: Size of the random part of the matrices, relative to the identity.

    Source:
        Li et al. 2023 (linear functionality equivalence). Only gauges that are exact for the given
        structure are used; where an activation lies between, none is.
    """

    name: ClassVar[str] = "mix-units"
    family: ClassVar[str] = "refactor"
    needs_data: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    source: ClassVar[str] = "Li et al. 2023, linear functionality equivalence attacks."
    summary: ClassVar[str] = "Mix units by invertible matrices where that is exact."

    spread: float = 0.5

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Mix in the copy: values and outputs of attention, factored layers, linear pairs.

        Raises:
            HostError: Nothing can be mixed exactly.
        """
        generator = torch.Generator().manual_seed(seed)
        mixed = 0
        for module in model.modules():
            if isinstance(module, nn.Sequential):
                parts = list(module)
                for one, two in itertools.pairwise(parts):
                    if type(one) is nn.Linear and type(two) is nn.Linear:
                        _mix_pair(one, two, self._matrix(one.out_features, generator))
                        mixed += 1
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                for head in range(module.num_heads):
                    matrix = self._matrix(module.head_dim, generator)
                    mix_values(module, head, matrix)
                    mix_queries(module, head, self._matrix(module.head_dim, generator))
                mixed += 1
        if not mixed:
            raise HostError(
                f"Nothing in {type(model).__name__} can be mixed exactly.",
                expected="Linear layers that follow each other, or attention.",
            )
        return model

    def _matrix(self, size: int, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
        orthogonal, _ = torch.linalg.qr(drawn)
        stretch = 1 + self.spread * torch.rand(size, generator=generator, dtype=torch.float64)
        matrix: Tensor = orthogonal * stretch
        return matrix


def _mix_pair(one: nn.Linear, two: nn.Linear, matrix: Tensor) -> None:
    one.weight = _like(matrix @ one.weight.detach().double(), one.weight)
    if one.bias is not None:
        one.bias = _like(matrix @ one.bias.detach().double(), one.bias)
    two.weight = _like(two.weight.detach().double() @ torch.linalg.inv(matrix), two.weight)


def _rows(attention: nn.MultiheadAttention, part: int, head: int) -> slice:
    start = part * attention.embed_dim + head * attention.head_dim
    return slice(start, start + attention.head_dim)


def _multiply(attention: nn.MultiheadAttention, rows: slice, matrix: Tensor) -> None:
    with torch.no_grad():
        for value in (attention.in_proj_weight, attention.in_proj_bias):
            if value is not None:
                value[rows] = (matrix @ value[rows].double()).to(value.dtype)


def mix_values(attention: nn.MultiheadAttention, head: int, matrix: Tensor) -> None:
    """Multiply a head's values by a matrix and let the output projection undo it, in place."""
    _multiply(attention, _rows(attention, 2, head), matrix)
    columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    weight = attention.out_proj.weight
    with torch.no_grad():
        undone = weight[:, columns].double() @ torch.linalg.inv(matrix)
        weight[:, columns] = undone.to(weight.dtype)


def mix_queries(attention: nn.MultiheadAttention, head: int, matrix: Tensor) -> None:
    """Multiply a head's queries by a matrix and its keys by the inverse transposed, in place."""
    _multiply(attention, _rows(attention, 0, head), matrix)
    _multiply(attention, _rows(attention, 1, head), torch.linalg.inv(matrix).T)


@dataclass(frozen=True)
class TransformerGauge(Attack):
    """Use a transformer's exact freedoms: order of heads, pairs of factors, inner units.

    Source:
        The symmetries are folklore; HuRef (2024) lists them. Rotations of the residual stream are
        left out: layer norms of the post-norm kind do not allow them.
    """

    name: ClassVar[str] = "transformer-gauge"
    family: ClassVar[str] = "refactor"
    needs_data: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    source: ClassVar[str] = "Symmetries as listed in HuRef (2024)."
    summary: ClassVar[str] = "Permute heads, mix queries and values, reorder inner units."

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Move the copy along its symmetries.

        Raises:
            HostError: It has no attention layer of PyTorch's own.
        """
        from earmark.attacks.obfuscate import Permute, Scale

        generator = torch.Generator().manual_seed(seed)
        found = [item for item in model.modules() if isinstance(item, nn.MultiheadAttention)]
        if not found:
            raise HostError(f"{type(model).__name__} has no nn.MultiheadAttention.")
        for attention in found:
            permute_heads(attention, torch.randperm(attention.num_heads, generator=generator))
        model = MixUnits().change(model, budget, seed=seed)
        model = Permute().change(model, budget, seed=seed)
        return Scale().change(model, budget, seed=seed)


def permute_heads(attention: nn.MultiheadAttention, order: Tensor) -> None:
    """Reorder the heads of an attention layer in place."""
    width = attention.head_dim
    index = (order[:, None] * width + torch.arange(width)).flatten()
    with torch.no_grad():
        for part in range(3):
            rows = slice(part * attention.embed_dim, (part + 1) * attention.embed_dim)
            for value in (attention.in_proj_weight, attention.in_proj_bias):
                if value is not None:
                    value[rows] = value[rows][index]
        weight = attention.out_proj.weight
        weight.copy_(weight[:, index].clone())
