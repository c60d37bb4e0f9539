"""What a lock costs and what it leaves open, measured on the copy that was made.

Near misses are not judged by labels, which a task need not have, but by how often they give what
the right number gives. A lock that answers one label to them agrees where that label is right; a
constant answer agrees at most as often as the commonest one is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from earmark.hosts import batches
from earmark.locks.base import Lock
from earmark.locks.entry import Entry, code_of, one_wrong, try_codes, two_wrong
from earmark.records import Layout
from earmark.task import Task

PROBES, FEW, AGAIN = 256, 16, 32
_PAIRS = 4096
_LOST, _ABSENT, _NEAR = 1.0, 5.0, 10.0  # points that a good lock stays within


@dataclass(frozen=True)
class Cost:
    """What a lock costs, and what works besides the right number; all in percent.

    Args:
        unlocked: Utility of the private model.
        right: Utility with the number.
        absent: Utility without.
        constant: Share of the commonest answer: what one answer to everything agrees.
        one: Agreement with the right number's answers at one wrong bit of the code, at worst.
        two: At two wrong bits, at worst.
    """

    unlocked: float
    right: float
    absent: float
    constant: float
    one: float
    two: float

    @property
    def lost(self) -> float:
        """Points of utility that the lock takes from who has the number."""
        return self.unlocked - self.right

    def warnings(self) -> list[str]:
        """Say in what the lock falls short, with the figures; empty for a good one.

        Example:
            >>> Cost(98.3, 96.8, 10.0, 12.0, 13.0, 14.0).warnings()
            ['the lock takes 1.50 points from who has the number']
        """
        found = []
        if self.lost > _LOST:
            found.append(f"the lock takes {self.lost:.2f} points from who has the number")
        if self.absent > self.constant + _ABSENT:
            found.append(f"without a number it still works: {self.absent:.2f}")
        for name, share in (("one wrong bit", self.one), ("two wrong bits", self.two)):
            if share > self.constant + _NEAR:
                found.append(
                    f"{name} of the code: {share:.1f} % of the right answers, where one constant "
                    f"answer has {self.constant:.1f}"
                )
        return found


@dataclass(frozen=True)
class Measure:
    """Measures copies of one task.

    Args:
        task: The owner's work.
        lock: The lock.
        layout: Its layout.
    """

    task: Task
    lock: Lock
    layout: Layout

    @cached_property
    def probes(self) -> batches.Tree:
        """The samples on which near misses are tried."""
        return self.task.samples(PROBES, seed=0)

    def cost(self, teacher: nn.Module, model: nn.Module, serial: bytes) -> Cost:
        """Measure a locked copy beside its private teacher; neither is changed.

        All numbers with one wrong bit of the code are tried, and those with two, or a sample of
        4,096 of them; on a few samples first, the worst again on more.
        """
        code = code_of(serial, self.layout.message_bits)
        entry = self.lock.entry(self.layout, serial)
        opened = self.lock.opened(model, self.layout, serial)
        right = self._answers(model, entry, self.probes, code[None])[0]
        two = two_wrong(code)
        order = torch.randperm(len(two), generator=torch.Generator().manual_seed(0))
        return Cost(
            unlocked=self.task.evaluate(teacher.eval()),
            right=self.task.evaluate(opened),
            absent=self.task.evaluate(model.eval()),
            constant=100 * float(right.bincount().max()) / len(right),
            one=self._worst(model, entry, one_wrong(code), right),
            two=self._worst(model, entry, two[order[:_PAIRS]], right),
        )

    def _worst(self, model: nn.Module, entry: Entry, codes: Tensor, right: Tensor) -> float:
        """Return in percent how often one of the codes gives the right answers, at most."""
        few = batches.take(self.probes, slice(0, FEW))
        each = len(right) // batches.size(self.probes)  # a generator answers at every position
        quick = self._answers(model, entry, few, codes) == right[: FEW * each]
        best = quick.float().mean(1).argsort(descending=True, stable=True)[:AGAIN]
        whole = self._answers(model, entry, self.probes, codes[best]) == right
        return 100 * float(whole.float().mean(1).max())

    def _answers(
        self, model: nn.Module, entry: Entry, samples: batches.Tree, codes: Tensor
    ) -> Tensor:
        """Return the answers to every code, (codes, answers)."""
        forward = self.task.forward
        return try_codes(
            model, entry, codes, samples, forward=forward, read=lambda scores: scores.argmax(2)
        )
