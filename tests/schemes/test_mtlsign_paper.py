"""MTL-Sign as published: maps, modes, the committed head, the bound, and its known hole."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from earmark import stats
from earmark.bench.data import load
from earmark.bench.zoo import accuracy, image_task, tiny_hosts
from earmark.errors import CapacityError, KeyFileError, KeyLayoutError, UsageError
from earmark.hosts import batches
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Key
from earmark.schemes import mtlsign_paper as paper
from earmark.schemes.mtlsign_paper import MtlSignPaper
from earmark.training import train

SMALL = MtlSignPaper(samples=64, mode="func", rounds=60, hidden=64, lr=3e-4, func=0.1)


@pytest.fixture(scope="module")
def task():
    """Digits as rows of 64 floats: the map for columns."""
    made = image_task("mlp", load("digits"), batch=64, recipe={"epochs": 10})
    stream = made.batches

    def flat(split, seed=0):
        return [(images.flatten(1), labels) for images, labels in stream(split, seed=seed)]

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def evaluate(model) -> float:
        return accuracy(model, flat("test"))

    return replace(made, model=model, batches=flat, evaluate=evaluate)


@pytest.fixture(scope="module")
def clean(task) -> nn.Module:
    return train(task, seed=0).model


@pytest.fixture(scope="module")
def start(task, clean) -> Key:
    inputs = next(iter(task.stream("train", 0)))[0]
    return SMALL.new_key(task.host(clean), inputs=inputs, secret=bytes(range(32)))


@pytest.fixture(scope="module")
def embedded(task, clean, start) -> tuple[nn.Module, Key]:
    return SMALL.embed(task, clean, start, seed=1)


# --- the public maps ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [28, 32])
def test_codes_are_distinct(side: int) -> None:
    numbers = [*range(150), *(n * 1234567 % (1 << 30) for n in range(1, 150))]
    seen = {paper.qr(number, side, side).tobytes() for number in numbers}
    assert len(seen) == len(set(numbers))


def test_codes_scale_and_pad() -> None:
    code = paper.qr(5, 112, 112)
    assert code.shape == (112, 112)
    assert set(np.unique(code)) == {0.0, 1.0}
    assert (code[0] == 1).all()
    inner = paper.qr(5, 99, 99)
    assert (inner[::3, ::3] == paper.qr(5, 33, 33)).all()


def test_inputs_and_labels_follow_from_the_key() -> None:
    images = torch.rand(8, 1, 28, 28) * 3 - 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 2))
    key = MtlSignPaper(samples=100).new_key(ModuleHost(model), inputs=images, secret=bytes(32))
    inputs, labels = paper.watermark(key.shard(0), key.layout)
    again, same = paper.watermark(key.shard(0), key.layout)
    assert inputs.shape == (100, 1, 28, 28)
    assert torch.equal(inputs, again)
    assert labels == same
    assert len(torch.unique(inputs.flatten(1), dim=0)) == 100
    assert inputs.min() == images.min()
    assert float(inputs.max()) == pytest.approx(float(images.max()), abs=1e-5)
    other = Key.generate(key.layout, secret=bytes(31) + b"1")
    assert paper.watermark(other.shard(0), key.layout)[1] != labels


def test_tokens_and_columns_stay_in_range() -> None:
    model, tokens = tiny_hosts()["transformer"]
    key = MtlSignPaper(samples=32).new_key(ModuleHost(model), inputs=tokens)
    made, _ = paper.watermark(key.shard(0), key.layout)
    assert made.shape == (32, 12)
    assert made.dtype == torch.int64
    assert 0 <= int(made.min()) <= int(made.max()) <= int(tokens.max())
    rows = torch.tensor([[0.0, -5.0], [1.0, 5.0]])
    host = ModuleHost(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    key = MtlSignPaper(samples=32).new_key(host, inputs=rows)
    made, _ = paper.watermark(key.shard(0), key.layout)
    assert ((made >= rows[0]) & (made <= rows[1])).all()


def test_refuses_what_has_no_map() -> None:
    with pytest.raises(CapacityError, match="8 x 8"):
        paper.domain(torch.zeros(2, 1, 8, 8))
    with pytest.raises(UsageError, match="no map"):
        paper.domain(torch.zeros(2, 3, 4))
    for bad in ({"mode": "both"}, {"samples": 3}, {"gamma": Fraction(1, 2)}):
        with pytest.raises(UsageError):
            MtlSignPaper(**bad)


# --- embedding and verification -------------------------------------------------------------------


def test_marked_model_is_accepted_and_keeps_its_task(task, clean, embedded) -> None:
    marked, key = embedded
    evidence = SMALL.measure(task.host(marked), key)
    assert paper.accepted(evidence)
    assert evidence.hits >= 60
    assert evidence.trials == 64
    assert "committed before" in evidence.notes[0]
    assert task.evaluate(marked) >= task.evaluate(clean) - 5
    assert list(marked.state_dict()) == list(clean.state_dict())
    assert not any(module._forward_hooks for module in marked.modules())


def test_frozen_mode_leaves_every_weight(task, clean, start) -> None:
    scheme = replace(SMALL, mode="frozen", head_lr=1e-2, rounds=100)
    marked, key = scheme.embed(task, clean, start, seed=1)
    assert task.host(marked).digest() == task.host(clean).digest()
    assert paper.accepted(scheme.measure(task.host(marked), key))


@pytest.mark.parametrize("first_order", [False, True])
def test_simulated_tuning_runs(task, clean, start, first_order: bool) -> None:
    scheme = replace(SMALL, mode="func+da", rounds=30, first_order=first_order)
    marked, key = scheme.embed(task, clean, start, seed=1)
    assert paper.accepted(scheme.measure(task.host(marked), key))
    assert not any(module._forward_hooks for module in marked.modules())


def test_the_head_is_fixed_by_its_hash(task, embedded, start) -> None:
    marked, key = embedded
    changed = key.inputs.clone()
    changed[0, 0] += 1
    with pytest.raises(KeyFileError, match="not the one"):
        SMALL.measure(task.host(marked), replace(key, inputs=changed))
    with pytest.raises(KeyLayoutError, match="no head"):
        SMALL.measure(task.host(marked), start)
    assert key.opening("0" * 64).commitment() != start.opening("0" * 64).commitment()


def test_foreign_keys_follow_the_binomial_law(task, embedded) -> None:
    marked, key = embedded
    host = task.host(marked)
    secrets = [hashlib.sha256(bytes([i])).digest() for i in range(60)]
    foreign = [Key.generate(key.layout, secret=s, inputs=key.inputs) for s in secrets]
    hits = [SMALL.measure(host, other).hits for other in foreign]
    assert abs(np.mean(hits) - 32) < 4 * 4 / np.sqrt(60)
    assert max(hits) < 56


def test_bounds() -> None:
    assert paper.published_bound(600, 0.7, slope=0.35) == pytest.approx(2.6e-8, rel=0.02)
    assert 2 ** paper.exact_tail(600, Fraction(7, 10)) == pytest.approx(2.2e-23, rel=0.05)
    tail = stats.log2_binomial_tail(420, 600, Fraction(23, 40))
    assert 2**tail == pytest.approx(1.9e-10, rel=0.05)


def test_own_loop_with_the_mark(task, clean, start) -> None:
    model = task.model()
    with SMALL.attach(model, start, forward=task.forward) as mark:
        loss = mark.loss()
        loss.backward()
        mark.after_step(0.1)
        assert len(list(mark.parameters())) == 4
        key = mark.key()
    assert SMALL.measure(task.host(model), key).trials == 64
    assert batches.size(key.inputs) == 1
