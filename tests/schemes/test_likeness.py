"""What keeps a network like what it was: sizes of its weights, spread of its features."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.errors import HostError
from earmark.schemes.likeness import Forces, Sizes, _order, _parts, main_directions
from earmark.schemes.settling import first_samples
from earmark.training import Recipe, train

LAYERS = {"fc": 0.5}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def largest(value: Tensor) -> Tensor:
    return torch.linalg.svdvals(value.flatten(1))[:8]


@pytest.mark.parametrize(
    ("shape", "most"), [((12, 30), 0.05), ((32, 1, 3, 3), 0.05), ((64, 100), 0.01)], ids=str
)
def test_a_tensor_that_moves_stays_like_what_it_was(generator, shape, most):
    was = torch.randn(shape, generator=generator) * torch.rand(shape[1:], generator=generator)
    sizes, kept, free = Sizes({"fc.weight": was}), was, was
    for _ in range(60):
        step = 0.02 * (0.5 + torch.randn(shape, generator=generator))
        kept, free = sizes.put_back("fc.weight", kept + step), free + step
    assert kept.shape == was.shape

    def apart(moved: Tensor, statistic: Callable[[Tensor], Tensor]) -> float:
        now, before = (statistic(value.flatten(1)) for value in (moved, was))
        return float(((now - before).abs() / before.abs().mean()).max())

    for statistic, least in (
        (lambda flat: flat.mean(1), 1.0),
        (lambda flat: flat.norm(dim=1), 0.1),
        (lambda flat: flat.norm(dim=0), 0.1),
        (lambda flat: torch.linalg.svdvals(flat)[:8], 0.1),
        (lambda flat: flat.abs().median(), 0.07),
        (lambda flat: (flat**4).mean(), 0.1),
    ):
        assert apart(free, statistic) > least, "where nothing puts it back"
        assert apart(kept, statistic) < most
    assert float((kept - was).norm() / was.norm()) > 0.05, "it did move"


def test_rows_and_columns_of_hardly_anything_stay_so(generator):
    was = torch.randn(10, 30, generator=generator)
    was[1], was[:, 2], was[:, 3] = 0.0, 0.0, 1e-6 * was[:, 3]
    sizes, found = Sizes({"fc.weight": was}), was
    for _ in range(20):
        step = 0.02 * torch.randn(10, 30, generator=generator)
        step[1], step[:, 2], step[:, 3] = 0.0, 0.0, 0.0
        found = sizes.put_back("fc.weight", found + step)
    assert found.isfinite().all()
    assert found[1].abs().max() < 1e-6
    assert not found[:, 2].any()
    assert float(found[:, 3].norm() / was[:, 3].norm()) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 5, 4), (20, 7), (9, 12)], ids=str)
def test_few_rows_or_columns_are_free_but_for_their_size(generator, shape):
    was, moved = (torch.randn(shape, generator=generator) for _ in range(2))
    if shape == (9, 12):
        was[:, 7:] = 0.0
    found = Sizes({"it": was}).put_back("it", moved)
    assert torch.allclose(found, moved * was.norm() / moved.norm(), rtol=1e-5)


def test_values_are_ordered_as_numbers_are():
    values = torch.tensor([[0.5, -2.0, 1e-30], [-0.5, 3.0, -torch.inf]])
    assert torch.equal(_order(values), values.flatten().argsort())
    assert torch.equal(_order(values.double()), values.flatten().argsort())


def test_zeros_stay_zeros():
    empty = Sizes({"it": torch.zeros(9, 9)}).put_back("it", torch.zeros(9, 9))
    assert not empty.any()


def test_a_tensor_that_is_not_finite_is_left_to_the_training(generator):
    was = torch.randn(16, 9, generator=generator)
    assert Sizes({"it": was}).put_back("it", was / 0).isinf().all()
    with pytest.raises(HostError, match=r"E\d+.*it are not finite"):
        Sizes({"it": was / 0})


def test_resumed_main_directions_go_on_where_they_were(generator):
    was = torch.randn(64, 100, generator=generator)
    first, second = Sizes({"fc.weight": was}), Sizes({"fc.weight": was})
    moved = was + torch.randn(64, 100, generator=generator)
    first.put_back("fc.weight", moved)
    again = moved + 0.1
    assert not torch.allclose(
        second.put_back("fc.weight", again), expected := first.put_back("fc.weight", again)
    )
    second = Sizes({"fc.weight": was})
    first = Sizes({"fc.weight": was})
    first.put_back("fc.weight", moved)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.put_back("fc.weight", again), expected)


def spread_out(
    generator: torch.Generator, sizes: tuple[float, ...], rest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, features around three middles, and four main directions of each answer."""
    scores = torch.randn(600, 3, generator=generator)
    along = torch.stack([torch.eye(12)[4 * i % 12 :][:4] for i in range(1, 4)])
    spread = torch.full((3, 12), rest)
    for i, size in enumerate(sizes):
        spread = torch.where(along[:, i] > 0, size, spread)
    groups = scores.argmax(1)
    noise = torch.randn(600, 12, generator=generator)
    return scores, 5 * torch.eye(3, 12)[groups] + spread[groups] * noise, along


def test_the_variance_within_answers_is_parted(generator):
    scores, features, along = spread_out(generator, (2.0, 1.0, 0.5, 0.3), rest=0.1)
    parts = _parts(features, scores.argmax(1), along)
    assert parts.tolist() == pytest.approx([4.0, 1.0, 0.25, 0.09, 8 * 0.01], rel=0.2)


def test_forces_wait_for_the_rate_to_fall_and_follow_what_is_off(generator):
    scores, was, along = spread_out(generator, (2.0,), rest=0.1)
    beside = 1 - along.sum(1)[scores.argmax(1)]
    wide = was + 0.05 * torch.randn(was.shape, generator=generator) * beside
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
    assert of["4 fc"] == 3.4, "and has an end"
    assert abs(of["0 fc"]) < of["4 fc"], "the main part was hardly off"
    middles = 5 * torch.eye(3, 12)[scores.argmax(1)]
    for _ in range(60):
        squeezed(forces, middles + 0.9 * (was - middles))
    of = forces.state_dict()["of"]
    assert of["4 fc"] < 3.0, "it lets go"
    assert of["0 fc"] < 0
    for _ in range(3):
        less_sure = float(forces.term((scores / 2, scores), {"fc": (was, was)}))
    assert forces.state_dict()["of"]["sure"] < 0
    assert math.isfinite(less_sure)


def test_a_force_has_the_weight_that_is_told(generator):
    scores, was, along = spread_out(generator, (2.0,), rest=0.1)
    forces = Forces(50.0, LAYERS, {"fc": along})
    forces.follow(1.0)
    forces.follow(0.1)
    now = 5 * torch.eye(3, 12)[scores.argmax(1)]
    now = now + 1.2 * (was - now)
    term = float(forces.term((scores, scores), {"fc": (now, was)}))
    wholes = [float(v.var(0, correction=0).sum()) for v in (now, was)]
    parts = [_parts(v, scores.argmax(1), along) for v in (now, was)]
    told = 0.0
    for part, gain in enumerate([0.06, 0.06, 0.06, 0.06, 0.1]):
        share, before = (float(p[part]) / whole for p, whole in zip(parts, wholes, strict=True))
        off = math.log(share / before)
        told += 0.5 * 50 / 25 * math.exp((gain + 6) * off) * float(parts[0][part]) / wholes[1]
    assert term == pytest.approx(told, rel=1e-4)


def test_forces_are_bound_where_features_are_still_on_their_way(generator):
    scores, was, along = spread_out(generator, (2.0,), rest=0.1)
    forces = Forces(50.0, LAYERS, {"fc": along})
    forces.follow(1.0)
    forces.follow(0.1)
    now = was + torch.randn(was.shape, generator=generator)
    term = float(forces.term((scores, scores), {"fc": (now, was)}))
    parts = _parts(now, scores.argmax(1), along).sum() / was.var(0, correction=0).sum()
    assert term <= 0.5 * 50 / 25 * math.exp(4) * float(parts) * 1.001
    assert term > 0.5 * 50 / 25 * math.exp(3) * float(parts), "they would go further"


def test_a_part_that_was_not_there_pulls_no_more_than_told(generator):
    scores, was, along = spread_out(generator, (2.0,), rest=0.0)
    now = (was + 0.01 * torch.randn(was.shape, generator=generator)).requires_grad_()
    forces = Forces(50.0, LAYERS, {"fc": along})
    forces.follow(1.0)
    forces.follow(0.1)
    forces.term((scores, scores), {"fc": (now, was)}).backward()
    assert now.grad is not None
    assert float(now.grad.norm()) < 1.0


def test_features_that_do_not_vary_are_no_error():
    scores, flat = torch.eye(3), torch.ones(3, 4)
    forces = Forces(50.0, LAYERS, {"fc": torch.zeros(3, 4, 4)})
    forces.follow(1.0)
    forces.follow(0.1)
    assert math.isfinite(float(forces.term((scores, scores), {"fc": (flat, flat)})))


def test_main_directions_are_those_of_each_answers_samples():
    task = image_task("small-cnn", load("digits"), batch=64)
    model = train(task, seed=0, recipe=Recipe.of(task.recipe, epochs=1)).model
    host, some = task.host(model), first_samples(task, 3000)
    scores = torch.as_tensor(host.scores(some))
    ahead = (scores[:, 0] - scores[:, 1:].amax(1)).sort(descending=True).values
    with torch.no_grad():
        model.get_parameter("head.bias")[0] -= ahead[4:6].mean()
    found = main_directions(task, model, ["fc", "fc:in"])
    answers, features = torch.as_tensor(host.labels(some)), host.features(some, ("fc", "fc:in"))
    counts = answers.bincount(minlength=10).tolist()
    assert sum(count > 50 for count in counts) > 3
    assert counts[0] == 5, "few"
    for name, main in found.items():
        values = torch.as_tensor(features[name]).float()
        assert main.shape == (10, 8, values.shape[1])
        for answer, count in enumerate(counts):
            rows = values[answers == answer]
            rest = rows - rows.mean(0)
            most = torch.linalg.svdvals(rest)[: min(8, count - 1)]
            along = (rest @ main[answer].T).norm(dim=0)
            assert along[: len(most)].tolist() == pytest.approx(most.tolist(), rel=1e-3, abs=1e-3)
            assert not main[answer, len(most) :].any()
