"""Noise on the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import UsageError


@dataclass(frozen=True)
class Noise(Attack):
    """Add Gaussian noise to every weight tensor, relative to its own spread.

    Args:
        share: Standard deviation of the noise over that of the tensor.

    Raises:
        UsageError: A negative share.

    Source:
        The modifications of IEEE 3304; biases and norms are left alone.

    Example:
        >>> Noise.preset("30").share
        0.3
    """

    name: ClassVar[str] = "noise"
    family: ClassVar[str] = "noise"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "IEEE 3304-2023, Gaussian noise addition."
    summary: ClassVar[str] = "Add Gaussian noise to the weights."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "1": {"share": 0.01},
        "5": {"share": 0.05},
        "10": {},
        "30": {"share": 0.3},
    }

    share: float = 0.1

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise UsageError(f"Noise of share {self.share}.", expected="Above 0.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Shake the copy."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, weight in tuning.weights(model):
                drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                weight.add_((self.share * weight.float().std() * drawn).to(weight.dtype))
        return model
