"""Quantization: round the weights to few bits. Tensors keep their type; only the values change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import UsageError

_FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def round_to(weight: Tensor, bits: int, *, per: str = "channel") -> Tensor:
    """Round to a symmetric grid of 2^bits - 1 values, per tensor or per output channel.

    Args:
        weight: Any shape; channels along axis 0.
        bits: 2 to 16.
        per: "tensor" or "channel".

    Example:
        >>> round_to(torch.tensor([[1.0, 0.1, -0.6]]), 2)
        tensor([[ 1.,  0., -1.]])
    """
    top = 2 ** (bits - 1) - 1
    axes = tuple(range(1, weight.ndim)) if per == "channel" and weight.ndim > 1 else ()
    most = weight.abs().amax(axes, keepdim=True) if axes else weight.abs().amax()
    step = (most / top).clamp_min(torch.finfo(weight.dtype).tiny)
    rounded: Tensor = (weight / step).round().clamp(-top, top) * step
    return rounded


@dataclass(frozen=True)
class Quantize(Attack):
    """Round the weights to a grid of integers.

    Args:
        bits: 2 to 16.
        per: "channel" (a step for each output channel) or "tensor".
        epochs: Epochs of training with rounded weights after it; needs data.
        lr: Peak learning rate of that training.

    Raises:
        UsageError: Bits out of range, or another granularity.

    Source:
        Jacob et al. 2018 (symmetric, weights only); Lukas et al. 2022 tune for one epoch.

    Example:
        >>> Quantize.preset("int4").bits
        4
    """

    name: ClassVar[str] = "quantize"
    family: ClassVar[str] = "quantize"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Jacob et al. 2018; Lukas et al. 2022."
    summary: ClassVar[str] = "Round the weights to few bits."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "int8": {},
        "int8-tensor": {"per": "tensor"},
        "int6-tuned": {"bits": 6, "epochs": 1},
        "int4": {"bits": 4},
        "int4-tensor": {"bits": 4, "per": "tensor"},
        "int3": {"bits": 3},
    }

    bits: int = 8
    per: str = "channel"
    epochs: int = 0
    lr: float = 0.01

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16 or self.per not in ("channel", "tensor"):
            raise UsageError(
                f"Quantization to {self.bits} bits per '{self.per}'.",
                expected="2 to 16 bits; per channel or tensor.",
            )

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Round the copy."""
        self._round(model)
        if self.epochs and budget.data_fraction:
            settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
            tuning.tune(model, budget, settings, seed=seed)
            self._round(model)
        return model

    def _round(self, model: nn.Module) -> None:
        with torch.no_grad():
            for _, weight in tuning.weights(model):
                weight.copy_(round_to(weight, self.bits, per=self.per))


@dataclass(frozen=True)
class Cast(Attack):
    """Round all weights to a 16-bit float format and back.

    Args:
        format: "fp16" or "bf16".

    Raises:
        UsageError: Another format.

    Source:
        Common practice. Values beyond the format's range are clamped to it.
    """

    name: ClassVar[str] = "cast"
    family: ClassVar[str] = "quantize"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Common practice."
    summary: ClassVar[str] = "Round all weights to a 16-bit float format."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "fp16": {},
        "bf16": {"format": "bf16"},
    }

    format: str = "fp16"

    def __post_init__(self) -> None:
        if self.format not in _FLOATS:
            raise UsageError(f"No cast to '{self.format}'.", expected="fp16 or bf16.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Round the copy."""
        kind = _FLOATS[self.format]
        limit = torch.finfo(kind).max
        with torch.no_grad():
            for item in (*model.parameters(), *model.buffers()):
                if item.is_floating_point():
                    item.copy_(item.clamp(-limit, limit).to(kind).to(item.dtype))
        return model


class DynamicLinear(nn.Linear):
    """A linear layer whose inputs are rounded to 8 bits with a step drawn from each batch."""

    def forward(self, given: Tensor) -> Tensor:
        """Return the layer's output on rounded inputs."""
        low, high = given.amin().clamp_max(0.0), given.amax().clamp_min(0.0)
        step = ((high - low) / 255).clamp_min(torch.finfo(given.dtype).tiny)
        rounded = ((given - low) / step).round() * step + low
        return functional.linear(rounded, self.weight, self.bias)


@dataclass(frozen=True)
class QuantizeDynamic(Attack):
    """Round linear layers' weights to 8 bits, and their inputs as they come.

    Source:
        The dynamic int8 mode of PyTorch, simulated in floats so that it runs everywhere.
    """

    name: ClassVar[str] = "quantize-dynamic"
    family: ClassVar[str] = "quantize"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "PyTorch's dynamic int8 quantization, simulated."
    summary: ClassVar[str] = "Round linear layers' weights and inputs to 8 bits."

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Swap the copy's linear layers."""
        for module in model.modules():
            if type(module) is nn.Linear:
                with torch.no_grad():
                    module.weight.copy_(round_to(module.weight, 8, per="tensor"))
                module.__class__ = DynamicLinear
        return model
