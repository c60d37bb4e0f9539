"""Nodes with other threads, orders, widths and batches count the same; near the threshold they abstain."""

from __future__ import annotations

import contextlib
import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.hosts import batches, files
from earmark.hosts.module import ModuleHost
from earmark.policy import Policy
from earmark.protocol.messages import Finding
from earmark.protocol.rules import Rules
from earmark.protocol.voting import classify
from earmark.records import Access, Outcome
from earmark.schemes.deepsigns import DeepSigns
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox
from earmark.schemes.deepwater import DeepWater
from earmark.schemes.mtlsign import MtlSign
from earmark.training import train

GUARD = Rules("example.org/log", ()).guard
SCHEMES = {
    "mtlsign": MtlSign(triggers=128, share=0.25, settle=0),
    "deepsigns": DeepSigns(bits=64, every=1, weight=0.2),
    "deepsigns-blackbox": DeepSignsBlackBox(),
    "deepwater": DeepWater(weights_per_bit=64),
}


@pytest.fixture(scope="module")
def task():
    return image_task("small-cnn", load("digits"), batch=64, recipe={"epochs": 2, "lr": 0.05})


@pytest.fixture(scope="module")
def model(task):
    """Trained a little and unmarked: its counts lie near one half, where every change shows."""
    return train(task, seed=1).model.eval()


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def reordered(model):
    """The same model, its tensors written and loaded in the opposite order."""
    made = copy.deepcopy(model)
    made.load_state_dict(dict(reversed(list(model.state_dict().items()))))
    return made


def widened(model):
    """The same weights, computing in float64."""
    made = copy.deepcopy(model).double()
    made.register_forward_pre_hook(lambda _, given: tuple(item.double() for item in given))
    return made


class Batched(torch.nn.Module):
    """The same model, computing one sample at a time: other shapes, other kernels."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        return torch.cat([self.inner(values[i : i + 1]) for i in range(len(values))])


def count(scheme, host, key):
    with threads(1):
        found = scheme.measure(host, key, nonce="ab" * 32)
    return found.hits, found.trials


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_counts_are_equal_whatever_computes_them(task, model, name, tmp_path):
    scheme = SCHEMES[name]
    inputs = batches.join(list(task.stream("train", 0))[:16])
    key = scheme.new_key(task.host(model), inputs=inputs, secret=bytes(range(32)))
    hits, trials = count(scheme, task.host(model), key)
    assert trials > 0
    found = {"again": count(scheme, task.host(model), key)}
    with threads(2):
        two = scheme.measure(task.host(model), key, nonce="ab" * 32)
    found["two threads"] = (two.hits, two.trials)
    found["reversed order"] = count(scheme, task.host(reordered(model)), key)
    wide = task.host(widened(model))
    wide.digest = task.host(model).digest  # the same file: its digest orders MTL-Sign's triggers
    found["float64"] = count(scheme, wide, key)
    if scheme.needs <= {Access.WEIGHTS}:
        weights = {item: tensor.numpy() for item, tensor in model.state_dict().items()}
        for order in (1, -1):
            path = tmp_path / f"{order}.safetensors"
            files.write_tensors(path, dict(list(weights.items())[::order]))
            found[f"file {order}"] = count(scheme, files.FilesHost(path), key)
    assert all(total == trials for _, total in found.values()), found
    off = {what: abs(seen - hits) for what, (seen, _) in found.items()}
    assert max(off.values()) <= GUARD, off
    same = ("again", "reversed order", *(what for what in found if what.startswith("file")))
    assert all(off[what] == 0 for what in same), off


def test_one_sample_at_a_time_counts_the_same(task, model):
    scheme = SCHEMES["deepsigns-blackbox"]
    inputs = batches.join(list(task.stream("train", 0))[:16])
    key = scheme.new_key(task.host(model), inputs=inputs, secret=bytes(range(32)))
    whole = count(scheme, task.host(model), key)
    single = count(scheme, ModuleHost(Batched(model)), key)
    assert abs(whole[0] - single[0]) <= GUARD


@given(
    trials=st.integers(1, 600),
    share=st.floats(0, 1),
    off=st.integers(-GUARD, GUARD),
    keys=st.integers(1, 1 << 30),
    level=st.sampled_from(["trace", "claim", "contested claim"]),
)
@settings(max_examples=100, deadline=None)
def test_counts_within_the_guard_never_lead_to_opposite_votes(trials, share, off, keys, level):
    def say(hits):
        finding = Finding("ab" * 32, "cd" * 32, hits, trials, Fraction(1, 2), 1)
        return classify(finding, Policy.at(level), GUARD, keys=keys, suspects=1)

    hits = round(share * trials)
    said = {say(hits), say(min(trials, max(0, hits + off)))}
    assert said != {Outcome.SHOWN, Outcome.NOT_SHOWN}


def test_the_guard_is_needed_and_wide_enough():
    """At the threshold one hit decides; with the guard, voters who are off abstain instead."""
    policy = Policy.at("claim")

    def say(hits, guard):
        finding = Finding("ab" * 32, "cd" * 32, hits, 256, Fraction(1, 2), 1)
        return classify(finding, policy, guard, keys=1, suspects=1)

    edge = next(hits for hits in range(180, 257) if say(hits, 0) is Outcome.SHOWN)
    assert edge > 180
    assert all(say(edge + i, GUARD) is Outcome.INCONCLUSIVE for i in range(-GUARD, GUARD))
    assert say(edge + GUARD, GUARD) is Outcome.SHOWN
