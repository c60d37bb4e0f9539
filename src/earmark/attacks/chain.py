"""Several attacks in a row: ``Noise() >> Prune(share=0.5) >> FineTune()``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from earmark.attacks.base import Attack, Budget
from earmark.errors import UsageError


@dataclass(frozen=True)
class Chain(Attack):
    """Attacks in a row, each on the model that the one before it left.

    Args:
        steps: The attacks in order.

    Raises:
        UsageError: There is none.

    Example:
        >>> from earmark.attacks.noise import Noise
        >>> from earmark.attacks.prune import Prune
        >>> (Noise() >> Prune(share=0.5)).label()
        'noise >> prune(share=0.5)'
    """

    name: ClassVar[str] = "chain"
    family: ClassVar[str] = "chain"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = (
        "Lukas et al. 2022 combine attacks by hand; here any attacks may follow each other."
    )
    summary: ClassVar[str] = "Several attacks in a row."

    steps: tuple[Attack, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise UsageError("A chain has no attacks.", expected="At least one.")

    def __rshift__(self, after: Attack) -> Chain:
        """Return the chain with more attacks at its end."""
        more = after.steps if isinstance(after, Chain) else (after,)
        return Chain((*self.steps, *more))

    def label(self) -> str:
        """Return the labels of the steps, joined."""
        return " >> ".join(step.label() for step in self.steps)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Run each attack on what the one before it left; each gets a seed of its own."""
        for index, step in enumerate(self.steps):
            model = step.run(model, budget, seed=seed + 7919 * index)
        return model
