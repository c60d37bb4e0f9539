"""Marking a finished network near what it was: how far it moves, what it bears, what it refuses."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.errors import HostError, UsageError
from earmark.hosts import batches
from earmark.policy import log2_p
from earmark.schemes.conceal import SETTINGS, _others, _require_alike, conceal, gentle
from earmark.schemes.embedding import fresh_model
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.settling import require_readable, spread_within, train_settled
from earmark.training import Recipe, train

SCHEME = MtlSign(**SETTINGS)
REACH = 0.1


@pytest.fixture(scope="module")
def task():
    return image_task("small-cnn", load("digits"), batch=64, recipe={"epochs": 10, "lr": 0.05})


@pytest.fixture(scope="module")
def plain(task) -> nn.Module:
    return train(task, seed=0).model


@pytest.fixture(scope="module")
def key(task):
    inputs = batches.join(list(task.stream("train", 0))[:12])
    return SCHEME.new_key(task.host(fresh_model(task, 0)), inputs=inputs, secret=bytes(range(32)))


def near(task, plain, key, **settings) -> nn.Module:
    recipe = Recipe.of(task.recipe, **gentle(task, SCHEME) | {"epochs": 16})
    own = {"seed": 1, "reach": REACH, "recipe": recipe} | settings
    return conceal(task, SCHEME, key, model=copy.deepcopy(plain), **own).model


@pytest.fixture(scope="module")
def concealed(task, plain, key) -> nn.Module:
    return near(task, plain, key)


def test_the_mark_is_borne_and_the_task_kept(task, plain, key, concealed):
    assert -log2_p(SCHEME.measure(task.host(plain), key)) < 20
    assert -log2_p(SCHEME.measure(task.host(concealed), key)) > 64
    assert task.evaluate(concealed) > task.evaluate(plain) - 1


def test_weights_stay_within_reach_at_their_size_and_nothing_else_moves(plain, concealed):
    was = dict(plain.state_dict())
    moved = 0
    for name, value in concealed.state_dict().items():
        if value.ndim < 2:
            assert torch.equal(value, was[name]), name
            continue
        size = was[name].norm()
        assert (value - was[name]).norm() < 1.05 * REACH * size, name
        assert torch.allclose(value.norm(), size, rtol=1e-4), name
        moved += not torch.equal(value, was[name])
    assert moved >= 4
    assert all(value.requires_grad for value in concealed.parameters())


def test_holding_features_keeps_those_of_other_samples(task, plain, key, concealed):
    free = near(task, plain, key, hold=0.0)
    others = batches.join(list(task.stream("test", 0)))
    names = key.layout.carrier

    def away(model: nn.Module) -> float:
        was = task.host(plain).features(others, names)
        found = task.host(model).features(others, names)
        return sum(float(((found[n] - was[n]) ** 2).mean() / was[n].var()) for n in names)

    assert away(concealed) < 0.8 * away(free)


def test_every_trigger_rides_often_enough(task):
    samples = sum(batches.size(batch) for batch in task.stream("train", 0))
    epochs = gentle(task, SCHEME)["epochs"]
    assert epochs > 10
    rounds = epochs * samples * SCHEME.share / SCHEME.triggers
    assert 32 <= rounds < 32 + samples * SCHEME.share / SCHEME.triggers
    few = MtlSign(triggers=64, share=0.5, settle=0.0)
    assert gentle(task, few)["epochs"] == 10, "no fewer than the task's own"


@pytest.mark.parametrize(
    ("batch", "share", "rides"), [(64, 0.001, 32), (2, 0.2, 32), (1024, 0.25, 64)], ids=str
)
def test_batches_too_small_or_too_large_for_the_share_are_counted_as_they_ride(batch, share, rides):
    data = image_task("small-cnn", load("digits"), batch=batch, recipe={"epochs": 1})
    times = sum(1 for _ in data.stream("train", 0))
    scheme = MtlSign(triggers=64, share=share, settle=0.0)
    assert gentle(data, scheme)["epochs"] == max(1, -(-32 * 64 // (rides * times)))


@pytest.mark.parametrize("wrong", [{"reach": 0.0}, {"reach": 1.0}, {"hold": -1.0}])
def test_refuses_a_reach_that_makes_no_sense(task, plain, key, wrong):
    with pytest.raises(UsageError, match="reach"):
        conceal(task, SCHEME, key, model=plain, seed=1, **wrong)


def test_refuses_a_network_that_was_lost(task, plain):
    other = copy.deepcopy(plain)
    _require_alike(task, plain, other)
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    with pytest.raises(HostError, match="was lost"):
        _require_alike(task, plain, other)


def test_among_settled_samples_a_mark_is_borne_and_they_stay_so(task, key):
    settle = replace(SCHEME, settle=20.0)
    layers = settle.settled_at(task.host(task.model()))
    calm = train_settled(task, layers, seed=0, weight=20.0).model
    recipe = Recipe.of(task.recipe, **gentle(task, settle) | {"epochs": 16})
    own = {"seed": 1, "reach": 0.3, "recipe": recipe}
    marked = conceal(task, settle, key, model=copy.deepcopy(calm), **own).model
    assert -log2_p(settle.measure(task.host(marked), key)) > 64
    was, found = (spread_within(task, model, layers) for model in (calm, marked))
    assert was < 0.2
    assert found == pytest.approx(was, rel=0.25)
    assert task.evaluate(marked) > task.evaluate(calm) - 1
    before = dict(calm.state_dict())
    for name, value in marked.state_dict().items():
        if value.ndim < 2 or name == "head.weight":
            assert torch.equal(value, before[name]), f"no mark reaches {name}"
        else:
            flat = [one.flatten(1) for one in (value, before[name])]
            assert 0.01 < (value - before[name]).norm() / before[name].norm() < 0.31
            assert torch.allclose(*(one.norm(dim=1) for one in flat), rtol=0.02), name
            assert torch.allclose(*(one.norm(dim=0) for one in flat), rtol=0.02), name
            assert torch.allclose(*(torch.linalg.svdvals(one)[:8] for one in flat), rtol=0.02), name
            assert torch.allclose(*(one.mean(1) for one in flat), atol=1e-5), name
            assert torch.allclose(*(one.abs().median() for one in flat), rtol=0.02), name


def test_triggers_are_told_from_the_batchs_other_samples(key):
    some = batches.take(key.inputs, slice(0, 6))
    others = batches.transform(batches.take(key.inputs, slice(6, 10)), lambda value: value + 1)
    batch = batches.join([some, others, some])
    secret = set(batches.sample_digests(key.inputs))
    assert _others(batch, 2, secret).tolist() == [6, 7, 8, 9]
    assert _others(batch, 10, secret).tolist() == []


def test_refuses_scores_that_it_cannot_see(task, plain, key):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(plain)

        def forward(self, images):
            return self.inner(images), None

    hidden = replace(task, model=Two, forward=lambda model, batch: model(batch[0])[0])
    with pytest.raises(HostError, match="own output gives 0 rows"):
        require_readable(hidden, Two(), ["inner.fc"])


def test_refuses_to_settle_a_network_that_is_not(task, plain, key):
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(UsageError, match=r"is not settled: .+ at fc or fc:in"):
        conceal(task, replace(SCHEME, settle=20.0), key, model=plain, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("settle", [0.0, 20.0], ids=str)
def test_a_resumed_training_ends_as_one_in_a_piece(task, key, settle, tmp_path, interrupted_before):
    scheme = replace(SCHEME, settle=settle)
    layers = scheme.settled_at(task.host(task.model()))
    plain = train_settled(task, layers, seed=0, weight=settle).model
    recipe = Recipe.of(task.recipe, epochs=5, lr=0.02, weight_decay=0.0)
    whole = conceal(task, scheme, key, model=copy.deepcopy(plain), seed=1, recipe=recipe).model
    own = {"seed": 1, "recipe": recipe, "checkpoint": tmp_path / "state"}
    with interrupted_before(4):  # forces have been adjusted by then
        conceal(task, scheme, key, model=copy.deepcopy(plain), **own)
    resumed = conceal(task, scheme, key, model=copy.deepcopy(plain), **own).model
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name
