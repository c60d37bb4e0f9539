"""Merging and collusion: several related models made into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import HostError, UsageError


def _others(model: nn.Module, budget: Budget, *, seed: int, count: int) -> list[nn.Module]:
    """Return models to merge with: those of the budget, or siblings that the attacker tunes."""
    if budget.models:
        return list(budget.models)
    found = []
    for index in range(count):
        sibling = tuning.thawed(model)
        settings = tuning.recipe(budget, epochs=2, lr=0.05)
        found.append(tuning.tune(sibling, budget, settings, seed=seed + 1 + index))
    return found


def _states(model: nn.Module, others: list[nn.Module]) -> dict[str, Tensor]:
    """Return each float tensor of all models, stacked, the stolen one first.

    Raises:
        HostError: Names or shapes differ.
    """
    states = [item.state_dict() for item in (model, *others)]
    first = states[0]
    for state in states[1:]:
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in first.items()}:
            raise HostError("Models of different structure cannot be merged.")
    return {
        name: torch.stack([state[name].detach() for state in states])
        for name, value in first.items()
        if value.is_floating_point()
    }


def _write(model: nn.Module, merged: Mapping[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in merged:
                value.copy_(merged[name])
    return model


@dataclass(frozen=True)
class Merge(Attack):
    """Merge the stolen model with siblings of the same start.

    Args:
        how: "average"; "arithmetic" (subtract the siblings' common direction of the stolen model:
            move away from it, towards them); or "ties" (keep the largest changes, agree on signs,
            average what agrees).
        ratio: Weight of the siblings, 0 to 1.
        keep: Share of the changes that "ties" keeps.
        siblings: Models that the attacker tunes if the budget gives him none.

    Raises:
        UsageError: Another way, or a share out of range.

    Source:
        Wortsman et al. 2022 (averaging), Ilharco et al. 2023 (task arithmetic), Yadav et al. 2023
        (TIES). The base of the differences is the stolen model itself, since the attacker has no
        common ancestor; batch norms' statistics are merged like weights.
    """

    name: ClassVar[str] = "merge"
    family: ClassVar[str] = "merge"
    source: ClassVar[str] = "Wortsman et al. 2022; Ilharco et al. 2023; Yadav et al. 2023 (TIES)."
    summary: ClassVar[str] = "Merge with siblings: average, task arithmetic or TIES."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "average": {},
        "quarter": {"ratio": 0.25},
        "three-quarters": {"ratio": 0.75},
        "arithmetic": {"how": "arithmetic", "ratio": 1.0},
        "ties": {"how": "ties"},
    }

    how: str = "average"
    ratio: float = 0.5
    keep: float = 0.2
    siblings: int = 1

    def __post_init__(self) -> None:
        tuning.need_share(self.ratio, "ratio", self.name)
        tuning.need_share(self.keep, "keep", self.name)
        if self.how not in ("average", "arithmetic", "ties") or self.siblings < 1:
            raise UsageError(
                f"Merging by '{self.how}' with {self.siblings} siblings.",
                expected="average, arithmetic or ties; at least one sibling.",
            )

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Merge into the copy."""
        others = _others(model, budget, seed=seed, count=self.siblings)
        merged = {}
        for name, stack in _states(model, others).items():
            changes = stack[1:] - stack[:1]
            if self.how == "average":
                change = self.ratio * changes.mean(0)
            elif self.how == "arithmetic":
                change = self.ratio * changes.sum(0)
            else:
                change = self.ratio * _ties(changes, self.keep)
            # a variance must not become negative
            merged[name] = stack[0] + change
            if name.endswith("running_var"):
                merged[name] = merged[name].clamp_min(1e-8)
        return _write(model, merged)


def _ties(changes: Tensor, keep: float) -> Tensor:
    """Trim, elect signs, and average what agrees; changes are (models, ...)."""
    flat = changes.flatten(1)
    count = max(1, round(keep * flat.shape[1]))
    least = flat.abs().topk(count, dim=1).values[:, -1:]
    kept = torch.where(flat.abs() >= least, flat, torch.zeros_like(flat))
    sign = kept.sum(0).sign()
    agree = (kept.sign() == sign) & (kept != 0)
    mean = (kept * agree).sum(0) / agree.sum(0).clamp_min(1)
    return mean.view(changes.shape[1:])


@dataclass(frozen=True)
class Collude(Attack):
    """Make one model from several customers' copies.

    Args:
        how: "average", "mix" (each weight from a random copy) or "majority" (each weight from the
            copies nearest to the median).

    Raises:
        UsageError: Another way.

    Source:
        The classic collusion attacks on fingerprints (Wu et al. 2004), weight by weight.
    """

    name: ClassVar[str] = "collude"
    family: ClassVar[str] = "merge"
    needs_data: ClassVar[bool] = False
    source: ClassVar[str] = "Wu et al. 2004, collusion on fingerprints."
    summary: ClassVar[str] = "Average, mix or vote over several customers' copies."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "average": {},
        "mix": {"how": "mix"},
        "majority": {"how": "majority"},
    }

    how: str = "average"

    def __post_init__(self) -> None:
        if self.how not in ("average", "mix", "majority"):
            raise UsageError(f"Collusion by '{self.how}'.", expected="average, mix or majority.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Write the joint model into the copy.

        Raises:
            UsageError: The budget holds no other copy.
        """
        if not budget.models:
            raise UsageError(
                "Collusion needs other copies of the model.",
                hint="On the command line run --attack merge, which tunes its own; from Python put "
                "the copies into Budget.models.",
            )
        generator = torch.Generator().manual_seed(seed)
        merged = {}
        for name, stack in _states(model, list(budget.models)).items():
            if self.how == "average":
                merged[name] = stack.mean(0)
            elif self.how == "majority":
                merged[name] = stack.median(0).values
            else:
                chosen = torch.randint(len(stack), stack.shape[1:], generator=generator)
                merged[name] = stack.gather(0, chosen[None])[0]
        return _write(model, merged)
