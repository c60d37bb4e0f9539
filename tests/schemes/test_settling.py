"""Settling without a key: what it does to samples, what it refuses, where it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.errors import CarrierError, UsageError
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.settling import spread_within, train_settled
from earmark.training import Recipe, train

LAYERS = {"fc": 1.0, "fc:in": 1 / 3}


@pytest.fixture(scope="module")
def task():
    return image_task("small-cnn", load("digits"), batch=64, recipe={"epochs": 10, "lr": 0.05})


@pytest.fixture(scope="module")
def plain(task):
    return train(task, seed=0).model


def test_samples_of_one_answer_come_together_and_the_task_is_kept(task, plain):
    settled = train_settled(task, LAYERS, seed=0, weight=40.0).model
    usual, close = spread_within(task, plain, LAYERS), spread_within(task, settled, LAYERS)
    assert close < 0.5 * usual
    assert 0 < close < usual < 1
    assert task.evaluate(settled) > task.evaluate(plain) - 2


def test_no_weight_is_the_usual_training(task, plain):
    same = train_settled(task, LAYERS, seed=0, weight=0.0).model
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, same.state_dict()[name], atol=1e-6), name


def test_layers_are_those_that_a_mark_reads(task):
    host = task.host(task.model())
    assert MtlSign().settled_at(host) == LAYERS
    assert MtlSign(deeper=False).settled_at(host) == {"fc": 1.0}
    assert (
        tuple(MtlSign().settled_at(host))
        == MtlSign(triggers=64)
        .new_key(host, inputs=next(iter(task.stream("train", 0))))
        .layout.carrier
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weight": -1.0}, "weight -1"),
        ({"recipe": Recipe(epochs=1, schedule="constant")}, "constant learning rate"),
    ],
)
def test_refuses_what_would_settle_nothing(task, more, said):
    with pytest.raises(UsageError, match=said):
        train_settled(task, LAYERS, seed=0, **more)


def test_refuses_targets_that_are_no_classes(task):
    def batches_of(split):
        for images, labels in task.batches(split):
            yield images, labels.float()

    with pytest.raises(UsageError, match="no classes"):
        train_settled(replace(task, batches=batches_of), LAYERS, seed=0)


def test_refuses_a_layer_that_is_not_there(task):
    with pytest.raises(CarrierError, match="'nowhere'"):
        train_settled(task, {"nowhere": 1.0}, seed=0)


def test_a_resumed_training_ends_as_one_in_a_piece(task, tmp_path, interrupted_before):
    recipe = Recipe.of(task.recipe, epochs=3)
    whole = train_settled(task, LAYERS, seed=1, recipe=recipe).model
    own = {"seed": 1, "recipe": recipe, "checkpoint": tmp_path / "state"}
    with interrupted_before(2):
        train_settled(task, LAYERS, **own)
    resumed = train_settled(task, LAYERS, **own).model
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name
