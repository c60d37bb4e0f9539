"""A small trained network with naive marks, for the attacks' tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from earmark import policy
from earmark.attacks.base import Budget, Knowledge
from earmark.bench.zoo import image_task
from earmark.keys.secret import Key
from earmark.schemes.base import Scheme
from earmark.schemes.embedding import embed
from earmark.task import Task

sys.path.insert(0, str(Path(__file__).parents[1] / "toy"))


@dataclass(frozen=True)
class Victim:
    """A marked model and what its attacker has."""

    task: Task
    model: nn.Module
    scheme: Scheme
    key: Key
    budget: Budget
    utility: float

    def bits(self, model: nn.Module, key: Key | None = None) -> float:
        evidence = self.scheme.measure(self.task.host(model), key or self.key)
        return -policy.log2_p(evidence)


def _victim(scheme: Scheme, task: Task) -> Victim:
    inputs = next(iter(task.stream("train", 0)))
    key = scheme.new_key(task.host(task.model()), inputs=inputs, secret=bytes(range(32)))
    model = embed(task, scheme, key, seed=1).model
    if hasattr(scheme, "write"):
        scheme.write(model, key)
    budget = Budget(task, knowledge=Knowledge.SHARDS)
    return Victim(task, model, scheme, key, budget, task.evaluate(model))


@pytest.fixture(scope="session")
def victims() -> dict[str, Victim]:
    """One small network on digits for each naive mark."""
    import toy_mark

    task = image_task("small-cnn", "digits", recipe={"epochs": 6, "lr": 0.05})
    return {
        "sign": _victim(toy_mark.SignMark(carrier="fc.weight"), task),
        "conv-sign": _victim(toy_mark.SignMark(carrier="conv3.weight"), task),
        "fragile": _victim(toy_mark.FragileMark(carrier="fc.weight"), task),
        "conv-fragile": _victim(toy_mark.FragileMark(carrier="conv3.weight"), task),
        "head-fragile": _victim(toy_mark.FragileMark(carrier="head.weight"), task),
        "trigger": _victim(toy_mark.TriggerMark(), task),
    }


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
