"""Paths for worker processes, and rows made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from earmark.bench.cells import Cell, Step
from earmark.bench.rows import Row
from earmark.policy import judge
from earmark.records import Evidence, Trial

TOY = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOY))


def make_row(attack="none", seed=0, hits=100, lost=0.0, *, error=None, **subject):
    """Return a row of an invented measurement."""
    evidence = None if error else Evidence.of("demo", hits=hits, trials=100)
    steps = () if attack == "none" else (Step(attack),)
    about = {"network": "net", "data": "set", "seed": seed, "marked": True, **subject}
    trial = Trial(
        scheme="demo",
        host="net" if about["marked"] else "net (unmarked)",
        data="set",
        attack=attack,
        seed=seed,
        utility_before=90.0,
        utility=None if error else 90.0 - lost,
        evidence=evidence,
        bits=None if evidence is None else judge(evidence).bits,
        seconds=1.0,
        cost=None if error else 0.25,
        versions={},
        machine="2 cores",
        error=error,
    )
    return Row(Cell(about, steps, seed), trial)


@pytest.fixture
def row():
    return make_row
