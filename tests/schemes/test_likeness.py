"""What keeps a network like what it was: sizes of its weights, spread of its features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.schemes.embedding import fresh_model
from earmark.schemes.likeness import Forces, Sizes, _parts, main_directions
from earmark.schemes.settling import first_samples

LAYERS = {"fc": 0.5}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def spectral(value: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(value.flatten(1), 2)


@pytest.mark.parametrize("shape", [(12, 30), (8, 4, 3, 3), (30, 5)], ids=str)
def test_rows_columns_and_main_direction_are_put_back(generator, shape):
    was = torch.randn(shape, generator=generator) * torch.rand(shape[1:], generator=generator)
    moved = was + 0.2 * torch.randn(shape, generator=generator)
    sizes, found = Sizes({"fc.weight": was}), moved
    for _ in range(20):
        found = sizes.put_back("fc.weight", found)
    assert found.shape == was.shape
    before, after = was.flatten(1), found.flatten(1)
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), rtol=1e-4)
    assert torch.allclose(after.norm(dim=0), before.norm(dim=0), rtol=1e-2)
    assert spectral(found) == pytest.approx(float(spectral(was)), rel=1e-2)
    assert abs(spectral(moved) / spectral(was) - 1) > 0.015, "it was off"
    assert not torch.allclose(found, was, atol=0.05), "only sizes are put back"


def test_rows_and_columns_of_zeros_stay_so(generator):
    was = torch.randn(6, 9, generator=generator)
    was[1], was[:, 2] = 0.0, 0.0
    found = Sizes({"fc.weight": was}).put_back("fc.weight", torch.ones(6, 9))
    assert found.isfinite().all()
    assert not found[1].any()
    assert found[:, 2].abs().max() < 1e-6
    empty = Sizes({"fc.weight": torch.zeros(3, 4)}).put_back("fc.weight", torch.zeros(3, 4))
    assert not empty.any()


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 5, 4)], ids=str)
def test_one_row_or_column_is_free_but_for_its_size(generator, shape):
    was, moved = (torch.randn(shape, generator=generator) for _ in range(2))
    found = Sizes({"it": was}).put_back("it", moved)
    assert torch.allclose(found, moved * was.norm() / moved.norm(), rtol=1e-5)


def test_a_resumed_main_direction_goes_on_where_it_was(generator):
    was = torch.randn(6, 9, generator=generator)
    first, second = Sizes({"fc.weight": was}), Sizes({"fc.weight": was})
    moved = was + torch.randn(6, 9, generator=generator)
    first.put_back("fc.weight", moved)
    second.load_state_dict(first.state_dict())
    again = moved + 0.1
    assert torch.equal(first.put_back("fc.weight", again), second.put_back("fc.weight", again))


def spread_out(generator, main: float, rest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, features around three middles, and the main directions."""
    scores = torch.randn(600, 3, generator=generator)
    groups, along = scores.argmax(1), torch.eye(3, 8).roll(3, dims=1)
    noise = torch.randn(600, 8, generator=generator)
    size = torch.where(along[groups] > 0, main, rest)
    return scores, 5 * torch.eye(3, 8)[groups] + size * noise, along


def test_the_variance_within_answers_is_parted(generator):
    scores, features, along = spread_out(generator, main=2.0, rest=0.1)
    parts = _parts(features, scores.argmax(1), along)
    assert float(parts["main"]) == pytest.approx(4.0, rel=0.2)
    assert float(parts["rest"]) == pytest.approx(7 * 0.01, rel=0.2)


def test_forces_wait_for_the_rate_to_fall_and_follow_what_is_off(generator):
    scores, was, along = spread_out(generator, main=2.0, rest=0.1)
    wide = was + 0.05 * torch.randn(was.shape, generator=generator) * (1 - along[scores.argmax(1)])
    forces = Forces(50.0, LAYERS, {"fc": along})

    def squeezed(kept: Forces, now: Tensor) -> float:
        return float(kept.term((scores, scores), {"fc": (now, was)}))

    start = squeezed(forces, wide)
    forces.follow(0.1)
    assert squeezed(forces, wide) == start > 0, "the rate is at its peak"
    forces.follow(0.03)
    first = squeezed(forces, wide)
    assert squeezed(forces, wide) > first > start, "now it grows"
    copied = Forces(50.0, LAYERS, {"fc": along})
    copied.load_state_dict(forces.state_dict())
    assert squeezed(copied, wide) == squeezed(forces, wide)
    for _ in range(500):
        squeezed(forces, wide)
    of = forces.state_dict()["of"]
    assert of["rest fc"] == 3.4, "and has an end"
    assert abs(of["main fc"]) < of["rest fc"], "the main part was hardly off"
    middles = 5 * torch.eye(3, 8)[scores.argmax(1)]
    for _ in range(60):
        squeezed(forces, middles + 0.9 * (was - middles))
    of = forces.state_dict()["of"]
    assert of["rest fc"] < 3.0, "it lets go"
    assert of["main fc"] < 0
    for _ in range(3):
        less_sure = float(forces.term((scores / 2, scores), {"fc": (was, was)}))
    assert forces.state_dict()["of"]["sure"] < 0
    assert math.isfinite(less_sure)


def test_a_force_has_the_weight_that_is_told(generator):
    scores, was, along = spread_out(generator, main=2.0, rest=0.1)
    forces = Forces(50.0, LAYERS, {"fc": along})
    forces.follow(1.0)
    forces.follow(0.1)
    now = 5 * torch.eye(3, 8)[scores.argmax(1)]
    now = now + 1.2 * (was - now)
    term = float(forces.term((scores, scores), {"fc": (now, was)}))
    wholes = [float(v.var(0, correction=0).sum()) for v in (now, was)]
    parts = [_parts(v, scores.argmax(1), along) for v in (now, was)]
    told = 0.0
    for part, gain in (("main", 0.06), ("rest", 0.1)):
        share, before = (float(p[part]) / whole for p, whole in zip(parts, wholes, strict=True))
        off = math.log(share / before)
        told += 0.5 * 50 / 25 * math.exp((gain + 6) * off) * float(parts[0][part]) / wholes[1]
    assert term == pytest.approx(told, rel=1e-4)


def test_a_part_that_was_not_there_pulls_no_more_than_told(generator):
    scores, was, along = spread_out(generator, main=2.0, rest=0.0)
    now = (was + 0.01 * torch.randn(was.shape, generator=generator)).requires_grad_()
    forces = Forces(50.0, LAYERS, {"fc": along})
    forces.follow(1.0)
    forces.follow(0.1)
    forces.term((scores, scores), {"fc": (now, was)}).backward()
    assert now.grad is not None
    assert float(now.grad.norm()) < 1.0


def test_features_that_do_not_vary_are_no_error():
    scores, flat = torch.eye(3), torch.ones(3, 4)
    forces = Forces(50.0, LAYERS, {"fc": torch.zeros(3, 4)})
    forces.follow(1.0)
    forces.follow(0.1)
    assert math.isfinite(float(forces.term((scores, scores), {"fc": (flat, flat)})))


def test_main_directions_are_those_of_each_answers_samples():
    task = image_task("small-cnn", load("digits"), batch=64)
    model = fresh_model(task, 0)
    host, some = task.host(model), first_samples(task, 3000)
    found = main_directions(task, model, ["fc", "fc:in"])
    answers, features = torch.as_tensor(host.labels(some)), host.features(some, ("fc", "fc:in"))
    for name, main in found.items():
        values = torch.as_tensor(features[name]).float()
        assert main.shape == (10, values.shape[1])
        for answer in range(10):
            rows = values[answers == answer]
            if len(rows) < 2:
                assert not main[answer].any()
                continue
            rest = rows - rows.mean(0)
            most = torch.linalg.matrix_norm(rest, 2)
            assert float((rest @ main[answer]).norm()) == pytest.approx(float(most), rel=1e-3)
