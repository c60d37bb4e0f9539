"""Forgeries: each fools the verifier that it is known to fool, and is refused by ours."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from earmark import stats
from earmark.attacks import forge
from earmark.bench.data import load
from earmark.bench.zoo import accuracy, image_task
from earmark.errors import CapacityError, UsageError
from earmark.hosts import batches
from earmark.keys.secret import Key
from earmark.policy import judge, log2_p
from earmark.records import Outcome
from earmark.schemes import mtlsign_paper as paper
from earmark.schemes import refit
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.mtlsign_paper import MtlSignPaper
from earmark.schemes.riding import labels_of
from earmark.training import train


@pytest.fixture(scope="module")
def task():
    made = image_task("mlp", load("digits"), batch=64, recipe={"epochs": 8})
    stream = made.batches

    def flat(split, seed=0):
        return [(images.flatten(1), labels) for images, labels in stream(split, seed=seed)]

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
        )

    return replace(
        made, model=model, batches=flat, evaluate=lambda net: accuracy(net, flat("test"))
    )


@pytest.fixture(scope="module")
def victim(task) -> nn.Module:
    return train(task, seed=0).model


@pytest.fixture(scope="module")
def pool(task):
    return batches.join(list(task.stream("train", 0)))


def test_a_fitted_head_fools_the_published_verifier_and_not_ours(task, victim, pool) -> None:
    host = task.host(victim)
    published = MtlSignPaper(samples=100, mode="func", rounds=200, head_lr=1e-2)
    start = published.new_key(host, inputs=pool, secret=bytes(32))
    forged = forge.fit_head(published, task, victim, start, seed=1)
    assert host.digest() == task.host(victim).digest()
    assert paper.accepted(published.measure(host, forged))  # the control: it is fooled
    # The same inputs and labels before our judge, who refits and scores what he did not fit:
    inputs, labels = paper.watermark(forged.shard(0), forged.layout)
    features = host.features(inputs, forged.layout.carrier)
    found = refit.tally(features, np.array(labels)[:, None] * 2.0 - 1, range(100))
    tail = stats.log2_binomial_tail(int(found.hits[0]), found.trials, Fraction(1, 2))
    assert -tail < 20
    with pytest.raises(UsageError, match="no submitted head"):
        forge.fit_head(MtlSign(), task, victim, start, seed=1)


def test_grinding_keys_gives_what_the_tries_cost(task, victim, pool) -> None:
    scheme = MtlSign(triggers=64, shards=1, directions=1, deeper=False)
    host = task.host(victim)
    key = scheme.new_key(host, inputs=pool, secret=bytes(32))
    tries = 60
    secrets = [hashlib.sha256(bytes([i])).digest() for i in range(tries)]
    ground = forge.grind_keys(scheme, host, key, secrets, nonce="ab" * 32)
    assert ground.tries == tries
    assert 2 < ground.bits < 18
    assert ground.net < 12
    with pytest.raises(UsageError):
        forge.grind_keys(scheme, host, key, [])


def test_inputs_chosen_after_the_labels_fail_once_a_beacon_draws_them(task, victim, pool) -> None:
    scheme = MtlSign(triggers=256, shards=2, directions=1)
    host = task.host(victim)
    honest = scheme.new_key(host, inputs=pool, secret=bytes(32))
    labels = [sign for i in (0, 1) for sign in labels_of(honest.shard(i), 128)]
    easy = (pool[1] >= 5).int().tolist()  # "dogs under 1, cats under 0"
    chosen = forge.select_inputs(pool, easy, labels)
    forged = recommit(honest, chosen)
    assert -log2_p(scheme.measure(host, forged)) >= 64  # the control: order was not asked for
    bound = forged.bind("5a" * 32)  # inputs committed first, labels drawn by a later beacon
    assert judge(scheme.measure(host, bound)).outcome is not Outcome.SHOWN
    assert -log2_p(scheme.measure(host, bound)) < 20


def recommit(key: Key, inputs) -> Key:
    """Give a key other inputs, as a forger would."""
    digests = batches.sample_digests(inputs)
    each = len(digests) // key.layout.shards
    parts = [
        hashlib.sha256(b"".join(digests[each * i : each * (i + 1)])).hexdigest()
        for i in range(key.layout.shards)
    ]
    params = dict(key.layout.params) | {"inputs": parts}
    layout = replace(key.layout, params=params, inputs=batches.tree_digest(inputs))
    return replace(key, layout=layout, inputs=inputs)


def test_selection_refuses_what_it_cannot_do(pool) -> None:
    few = batches.take(pool, slice(0, 4))
    with pytest.raises(CapacityError, match="too few"):
        forge.select_inputs(few, [0, 0, 1, 1], [1, 1, 1])
    with pytest.raises(UsageError, match="groups"):
        forge.select_inputs(few, [0, 1, 2, 2], [1, -1])


def test_hash_labels_are_ground_in_a_few_tries(task, victim, pool) -> None:
    images = pool[0][:100]
    wanted = (victim(images).argmax(1) >= 5).int().tolist()
    free = sum(
        forge.hash_label(image) == label for image, label in zip(images, wanted, strict=True)
    )
    assert 25 < free < 75
    made, tries = forge.grind_images(images, wanted)
    assert [forge.hash_label(image) for image in made] == wanted  # the control: a perfect claim
    assert tries < 400
    assert float((made - images).abs().max()) < 0.01
    assert torch.equal(victim(made).argmax(1), victim(images).argmax(1))
    # Before our judge the labels come from a key bound to a later beacon: chance.
    scheme = MtlSign(triggers=96, shards=1, directions=1)
    key = scheme.new_key(task.host(victim), inputs=(made,), secret=bytes(32)).bind("77" * 32)
    assert -log2_p(scheme.measure(task.host(victim), key)) < 20
