"""Attacks on hidden features do to features what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from earmark.attacks.base import Budget, Knowledge
from earmark.attacks.features import (
    Collapse,
    DistillFeatures,
    EraseRevealed,
    ResetTail,
    Scramble,
    usual_taps,
)
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.errors import HostError, UsageError
from earmark.hosts import batches
from earmark.training import train


@pytest.fixture(scope="module")
def task():
    return image_task("mlp", load("digits"), batch=64, recipe={"epochs": 4})


@pytest.fixture(scope="module")
def stolen(task) -> nn.Module:
    return train(task, seed=0).model


@pytest.fixture(scope="module")
def budget(task) -> Budget:
    return Budget(task, knowledge=Knowledge.SHARDS)


def within(task, model: nn.Module) -> float:
    """Variance within classes over the whole variance, at the last hidden layer."""
    images, labels = batches.join(list(task.stream("test", 0)))
    tap = usual_taps(model)[0]
    z = torch.tensor(task.host(model).features((images,), [tap])[tap])
    means = torch.stack([z[labels == k].mean(0) for k in range(10)])
    return float(((z - means[labels]) ** 2).sum() / ((z - z.mean(0)) ** 2).sum())


@pytest.mark.parametrize("truth", [False, True])
def test_collapse_squeezes_classes(task, stolen, budget, truth) -> None:
    before = within(task, stolen)
    after = Collapse(weight=10.0, truth=truth, epochs=10).run(stolen, budget, seed=1)
    assert within(task, after) < 0.6 * before
    assert task.evaluate(after) > 90
    assert within(task, stolen) == before


@pytest.mark.parametrize("own", [False, True])
def test_scramble_moves_features(task, stolen, budget, own) -> None:
    after = Scramble(weight=10.0, own=own, epochs=2).run(stolen, budget, seed=1)
    gentle = Scramble(weight=1e-6, own=own, epochs=2).run(stolen, budget, seed=1)
    inputs = batches.join(list(task.stream("test", 0)))
    tap = usual_taps(stolen)[0]
    near, far, base = (task.host(m).features(inputs, [tap])[tap] for m in (gentle, after, stolen))
    assert abs(far - base).mean() > 2 * abs(near - base).mean()


def test_distilled_twin_answers_alike(task, stolen, budget) -> None:
    twin = DistillFeatures(epochs=6, lr=0.05).run(stolen, budget, seed=1)
    assert task.evaluate(twin) > 80
    assert not torch.equal(twin.fc1.weight, stolen.fc1.weight)


def test_reset_tail_draws_layers_anew(stolen, budget) -> None:
    after = ResetTail(layers=2, epochs=1, lr=1e-6).run(stolen, budget, seed=1)
    assert torch.allclose(after.fc1.weight, stolen.fc1.weight, atol=1e-3)
    assert not torch.allclose(after.fc2.weight, stolen.fc2.weight, atol=1e-2)
    with pytest.raises(HostError, match="3 of 3"):
        ResetTail(layers=3).run(stolen, budget, seed=1)


def test_erasing_takes_the_revealed_direction(task, stolen, budget) -> None:
    inputs = batches.take(batches.join(list(task.stream("train", 0))), slice(0, 200))
    tap = usual_taps(stolen)[0]
    z = torch.tensor(task.host(stolen).features(inputs, [tap])[tap])
    signs = torch.sign(z[:, 0] - z[:, 0].median()).int().tolist()
    attack = EraseRevealed(inputs=inputs, signs=signs, weight=10.0, epochs=3)
    after = attack.run(stolen, budget, seed=1)

    head = attack._heads(stolen, budget, [tap])[tap].double()

    def read(model: nn.Module) -> float:
        found = torch.tensor(task.host(model).features(inputs, [tap])[tap])
        return float((((found - found.mean(0)) / (found.std(0) + 1e-3)) @ head).std())

    assert read(after) < 0.7 * read(stolen)
    with pytest.raises(UsageError, match="one label each"):
        EraseRevealed().run(stolen, budget, seed=1)
