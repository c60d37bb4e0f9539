"""What an attack is: a frozen dataclass that turns a stolen model into another one.

Adding one is a class in a family's file and one line in :mod:`earmark.registry`. Hold it to the
house's rules with :func:`earmark.testing.check_attack`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import nn

from earmark.errors import UsageError
from earmark.hosts import batches
from earmark.hosts.batches import Tree

if TYPE_CHECKING:
    from typing_extensions import Self

    from earmark.attacks.chain import Chain
    from earmark.keys.secret import Shard
    from earmark.task import Task


class Knowledge(IntEnum):
    """What the attacker knows besides the stolen model."""

    NOTHING = 0
    SCHEME = 1
    CARRIER = 2
    SHARDS = 3


@dataclass(frozen=True)
class Budget:
    """What the attacker has.

    Args:
        task: Model, loss, batches and evaluation, as the owner has them; the attacker sees only
            `data_fraction` of the training batches.
        data_fraction: Share of the training data, 0 to 1.
        labels: Whether that data is labelled.
        epochs: Most epochs of any training of his, or null for what the attack asks for.
        queries: Queries to the stolen model, or null for any number.
        knowledge: L0 to L3.
        shards: Revealed shards, for knowledge L3.
        models: Other models of the same structure that the attacker holds: siblings, public bases,
            other customers' copies.

    Raises:
        UsageError: The fraction lies outside 0 to 1, or there is no epoch.
    """

    task: Task
    data_fraction: float = 0.5
    labels: bool = True
    epochs: int | None = None
    queries: int | None = None
    knowledge: Knowledge = Knowledge.NOTHING
    shards: tuple[Shard, ...] = field(default=(), repr=False)
    models: tuple[nn.Module, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.data_fraction <= 1:
            raise UsageError(f"A data fraction of {self.data_fraction} lies outside 0 to 1.")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"A budget of {self.epochs} epochs.", expected="At least 1, or null.")

    def granted(self, epochs: int) -> int:
        """Return as many epochs as were asked for and the budget allows."""
        return epochs if self.epochs is None else min(epochs, self.epochs)

    def data(self, *, seed: int) -> Iterator[Tree]:
        """Yield one epoch of the attacker's training batches.

        The attacker's share is the same whatever the seed: the first samples of the first epoch's
        batches in the task's own order for seed 0. The seed only shuffles.
        """
        pool = _attacker_pool(self.task, self.data_fraction)
        count = batches.size(pool)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        step = batches.size(next(iter(self.task.stream("train", 0))))
        for start in range(0, count - min(step, count) + 1, step):
            yield batches.take(pool, order[start : start + step])


_POOLS: dict[tuple[int, float], tuple[Task, Tree]] = {}


def _attacker_pool(task: Task, fraction: float) -> Tree:
    """Join the attacker's share once a task and keep it while the task lives."""
    found = _POOLS.get((id(task), fraction))
    if found is not None and found[0] is task:
        return found[1]
    parts = list(task.stream("train", 0))
    total = sum(batches.size(part) for part in parts)
    wanted = max(1, round(total * fraction))
    taken: list[Tree] = []
    held = 0
    for part in parts:
        if held >= wanted:
            break
        take = min(batches.size(part), wanted - held)
        taken.append(batches.take(part, slice(0, take)))
        held += take
    pool = batches.join(taken)
    _POOLS.clear()
    _POOLS[(id(task), fraction)] = (task, pool)
    return pool


class Attack(ABC):
    """A way to remove or forge a mark. Subclasses are frozen dataclasses and write `change`.

    Class attributes:
        name: Name in the registry.
        family: Name of the family, for tables.
        knowledge: The least knowledge that the attack needs.
        needs_data: Whether it needs training data.
        exact: Whether the model's function stays the same up to rounding.
        source: Where it was published, and what we changed.
        summary: One sentence.
        PRESETS: Published settings by name.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    knowledge: ClassVar[Knowledge] = Knowledge.NOTHING
    needs_data: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    source: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # Any: values of own fields

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the attack with published settings.

        Raises:
            UsageError: No preset has that name.
        """
        if name not in cls.PRESETS:
            near = difflib.get_close_matches(name, cls.PRESETS, n=1)
            raise UsageError(
                f"Attack '{cls.name}' has no preset '{name}'.",
                expected=f"It has: {', '.join(cls.PRESETS) or 'none'}.",
                hint=f"Did you mean '{near[0]}'?" if near else "",
            )
        return cls(**cls.PRESETS[name])

    def settings(self) -> dict[str, Any]:  # Any: values of own fields
        """Return the settings that differ from the defaults, by name."""
        found = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.default_factory is not dataclasses.MISSING:
                usual = item.default_factory()
            else:
                usual = item.default
            if value != usual:
                found[item.name] = value
        return found

    def label(self) -> str:
        """Return name and settings in one short line, such as ``prune(share=0.8)``."""
        inner = ", ".join(f"{name}={value}" for name, value in self.settings().items())
        return f"{self.name}({inner})" if inner else self.name

    def __rshift__(self, after: Attack) -> Chain:
        """Return the chain of this attack and another one after it."""
        from earmark.attacks.chain import Chain

        return Chain((self,)) >> after

    @final
    def run(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Attack a copy of a model.

        Args:
            model: The stolen model; it is not changed.
            budget: What the attacker has.
            seed: Seed of everything that is drawn.

        Returns:
            A new module; its architecture may differ from the stolen one's.

        Raises:
            UsageError: The budget lacks what the attack needs.
            HostError: The model does not fit the attack.
        """
        if self.needs_data and budget.data_fraction == 0:
            raise UsageError(f"Attack '{self.name}' needs training data; the budget has none.")
        if budget.knowledge < self.knowledge:
            raise UsageError(
                f"Attack '{self.name}' needs knowledge L{int(self.knowledge)}; "
                f"the budget grants L{int(budget.knowledge)}."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed = self.change(copy.deepcopy(model), budget, seed=seed)
        changed.eval()
        return changed

    @abstractmethod
    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Change the given copy, or build another module, and return it."""
