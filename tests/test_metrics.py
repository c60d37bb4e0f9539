"""The eight requirements, measured on a toy task."""

import json

import numpy as np
import pytest

from earmark.attacks.prune import Prune
from earmark.errors import UsageError
from earmark.metrics import REQUIREMENTS, _distance, measure_requirements
from earmark.schemes.deepsigns import DeepSigns
from earmark.testing import tiny_task
from earmark.training import Recipe


@pytest.fixture(scope="module")
def found():
    task = tiny_task("mlp", recipe={"epochs": 8})
    return measure_requirements(
        DeepSigns(bits=64, every=1, margin=1.2),
        task,
        seeds=(0, 1),
        attacks={"pruning by half": Prune(share=0.5)},
        keys=10,
        innocents=1,
        capacities=(16, 100_000),
        fine_tune=Recipe.of(task.recipe, epochs=10),
    )


def test_every_requirement_has_a_figure(found):
    assert {figure.requirement for figure in found.figures} == set(REQUIREMENTS)


def test_figures_say_what_they_should(found):
    (bits, errors) = found.of("reliability")
    assert bits.worst >= 50
    assert errors.worst <= 0.05
    assert "utility" in found.of("robustness")[0].note
    assert all(figure.worst < 16 for figure in found.of("integrity"))
    sixteen, too_many = found.of("capacity")[1:]
    assert sixteen.worst <= 0.1
    assert too_many.worst is None
    assert "dimensions" in too_many.note
    assert found.of("efficiency")[0].worst > 0.5
    assert found.of("generality")[0].worst == 1.0


def test_table_and_json(found):
    table = found.table()
    assert table.count("\n") == len(found.figures) + 1
    assert all(line.count("|") == 7 for line in table.splitlines())
    assert json.loads(json.dumps(found.to_json()))["scheme"] == "deepsigns"


def test_nonsense_is_refused(found):
    with pytest.raises(UsageError):
        found.of("beauty")
    with pytest.raises(UsageError):
        measure_requirements(DeepSigns(), tiny_task("mlp"), seeds=())


def test_distance_of_distributions():
    generator = np.random.default_rng(0)
    normal = generator.normal(size=4000)
    assert _distance(normal, 3 * normal + 1) < 1e-3
    assert _distance(normal, generator.normal(size=4000)) < 0.06
    assert _distance(normal, generator.uniform(size=4000)) > 0.05
