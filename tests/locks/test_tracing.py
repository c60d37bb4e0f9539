"""Tracing: leakers and colluders are named, innocents are not, and damage does not hide them."""

from __future__ import annotations

import numpy as np
import pytest

from earmark.bench.zoo import Mlp
from earmark.errors import AccessError, CapacityError, CarrierError, KeyLayoutError, UsageError
from earmark.hosts.access import Host
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Key
from earmark.locks import tracing
from earmark.locks.tracing import Tracer, codeword, judge_word, read_word, trace
from earmark.records import Layout, Outcome

NAMES = [f"customer {i}" for i in range(30)]
SHAPES = {
    "a.weight": (256, 200),
    "b.weight": (64, 32, 3, 3),
    "b.bias": (64,),
    "head.weight": (10, 64),
}


@pytest.fixture(scope="module", name="shop")
def fixture_shop():
    rng = np.random.default_rng(0)
    base = {n: (0.05 * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}
    tracer = Tracer(customers=30, colluders=2)
    key = tracer.new_key(ArrayHost(base), secret=bytes(range(32)))
    copies = [tracer.mark(ArrayHost(base), key, name) for name in NAMES[:3]]
    words = {name: codeword(key, name) for name in NAMES}
    return base, key, [{n: c.tensor(n) for n in SHAPES} for c in copies], words


def named(tensors, shop):
    _, key, _, words = shop
    found = judge_word(read_word(ArrayHost(tensors), key), key, words)
    return {item.name for item in found.named}


def each(tensors, act):
    return {name: act(values).astype(np.float32) for name, values in tensors.items()}


def test_one_leaker_is_named_and_the_head_is_untouched(shop):
    base, key, copies, _ = shop
    assert named(copies[0], shop) == {NAMES[0]}
    assert np.array_equal(copies[0]["head.weight"], base["head.weight"])
    found = trace(ArrayHost(copies[1]), key, NAMES)
    assert found.outcome is Outcome.SHOWN
    assert found.ranking[0].name == NAMES[1]
    assert found.ranking[0].bits > 200
    assert found.read == found.length == key.layout.message_bits


def test_damage_does_not_hide_the_leaker(shop):
    rng, copy = np.random.default_rng(1), shop[2][0]
    damaged = {
        "half pruned": each(copy, lambda w: np.where(abs(w) < np.median(abs(w)), 0, w)),
        "int8": each(copy, lambda w: np.round(w / abs(w).max() * 127) * abs(w).max() / 127),
        "int4": each(copy, lambda w: np.round(w / abs(w).max() * 7) * abs(w).max() / 7),
        "noise as large as the weights": each(
            copy, lambda w: w + rng.normal(size=w.shape) * w.std()
        ),
        "scaled and shifted": each(copy, lambda w: 3 * w + 0.01),
        "one tensor lost": {n: w for n, w in copy.items() if n != "b.weight"},
    }
    for name, tensors in damaged.items():
        assert named(tensors, shop) == {NAMES[0]}, name


def test_colluders_are_named_and_nobody_else(shop):
    rng, (a, b, _) = np.random.default_rng(2), shop[2]
    for tensors in (
        {n: (a[n] + b[n]) / 2 for n in a},
        {n: np.where(rng.random(a[n].shape) < 0.5, a[n], b[n]) for n in a},
        {n: np.minimum(a[n], b[n]) for n in a},
        {n: np.where(abs(a[n] - b[n]) < 0.001, a[n], 0) for n in a},
    ):
        found = named(tensors, shop)
        assert found
        assert found <= set(NAMES[:2])


def test_unmarked_models_and_other_owners_copies_name_nobody(shop):
    base, key, _, words = shop
    assert named(base, shop) == set()
    rng = np.random.default_rng(3)
    for seed in range(8):
        other = each(base, lambda w: rng.normal(size=w.shape))
        assert named(other, shop) == set()
        theirs = Tracer(customers=30, colluders=2).new_key(
            ArrayHost(base), secret=bytes([seed]) * 32
        )
        assert named_by(theirs, base, key, words) == set()


def named_by(theirs, base, key, words):
    marked = Tracer(customers=30, colluders=2).mark(ArrayHost(base), theirs, NAMES[0])
    found = judge_word(read_word(marked, key), key, words)
    return {item.name for item in found.named}


def test_scores_of_innocents_are_no_more_extreme_than_their_bound(shop):
    _, key, copies, _ = shop
    word = read_word(ArrayHost({n: (copies[0][n] + copies[1][n]) / 2 for n in SHAPES}), key)
    crowd = {f"innocent {i}": codeword(key, f"innocent {i}") for i in range(300)}
    found = judge_word(word, key, crowd)
    small = sum(2.0**item.log2_p <= 0.05 for item in found.ranking)
    assert small <= 30
    assert not found.named


def test_every_customer_and_form_is_charged(shop):
    _, key, copies, _ = shop
    host = ArrayHost(copies[0])
    few, many = (trace(host, key, NAMES[:count]).ranking[0].bits for count in (2, 16))
    assert few - many == pytest.approx(3.0)
    assert trace(host, key, NAMES[:2], forms=8).ranking[0].bits == pytest.approx(few - 3.0)


def test_codewords_do_not_depend_on_the_serial_and_differ(shop):
    _, key, _, words = shop
    assert codeword(key, NAMES[0]) == words[NAMES[0]]
    assert len(set(words.values())) == len(words)
    assert codeword(key.bind("ab" * 32), NAMES[0]) != words[NAMES[0]]


def test_a_torch_model_is_marked_in_place_of_a_copy():
    model = Mlp((1, 16, 16), 10, hidden=96)
    tracer = Tracer(customers=10, colluders=1)
    key = tracer.new_key(ModuleHost(model), secret=bytes(32))
    before = ModuleHost(model).digest()
    marked = tracer.mark_module(model, key, "acme")
    assert ModuleHost(model).digest() == before
    found = trace(ModuleHost(marked), key, ["acme", "bolt"])
    assert [item.name for item in found.named] == ["acme"]


def test_what_makes_no_sense_is_refused(shop):
    base, key, _, _ = shop
    host = ArrayHost(base)
    with pytest.raises(CapacityError):
        Tracer(customers=1000, colluders=9).new_key(host)
    with pytest.raises(UsageError):
        Tracer(customers=0)
    with pytest.raises(UsageError):
        Tracer(margin=0)
    with pytest.raises(UsageError):
        trace(host, key, [])
    with pytest.raises(UsageError):
        trace(host, key, ["acme", "acme"])
    with pytest.raises(UsageError):
        codeword(key, " ")
    with pytest.raises(KeyLayoutError):
        codeword(Key.generate(Layout("deepwater", 1, ("a",), 16, 1, {})), "acme")
    with pytest.raises(CarrierError):
        trace(ArrayHost({"other": np.zeros((4, 4), np.float32)}), key, ["acme"])
    with pytest.raises(CarrierError):
        Tracer().mark(ArrayHost({"other": np.zeros((4, 4), np.float32)}), key, "acme")
    with pytest.raises(AccessError):
        trace(Host(), key, ["acme"])
    assert tracing.NAMED_BITS == 20


def test_reordered_and_rescaled_neurons_are_undone_against_the_unmarked_parent():
    import torch

    from earmark.hosts.align import align
    from earmark.hosts.graph import channels

    torch.manual_seed(0)
    parent = Mlp((1, 16, 16), 10, hidden=128)
    tracer = Tracer(customers=10, colluders=1)
    key = tracer.new_key(ModuleHost(parent), secret=bytes(32))
    leak = tracer.mark_module(parent, key, "acme")
    order = torch.randperm(128)
    factor = torch.rand(128) * 3 + 0.1
    with torch.no_grad():
        leak.fc1.weight.copy_((leak.fc1.weight * factor[:, None])[order])
        leak.fc1.bias.copy_((leak.fc1.bias * factor)[order])
        leak.fc2.weight.copy_((leak.fc2.weight / factor)[:, order])
    names = ["acme", *NAMES[:9]]
    assert not trace(ModuleHost(leak), key, names).named
    back = align(ModuleHost(leak), ModuleHost(parent), channels(parent))
    assert [item.name for item in trace(back, key, names, forms=2).named] == ["acme"]
    stranger = Mlp((1, 16, 16), 10, hidden=128)
    bent = align(ModuleHost(stranger), ModuleHost(parent), channels(parent))
    assert not trace(bent, key, names, forms=2).named


def test_small_tensors_are_left_alone_unless_the_code_needs_them():
    body = {"a.weight": (32, 64), "b.weight": (64, 128), "c.weight": (256, 256)}
    shapes = body | {"head.weight": (10, 256)}
    host = ArrayHost({name: np.ones(shape, np.float32) for name, shape in shapes.items()})

    def carrier(length, **more):
        return Tracer(length=length, **more).new_key(host, secret=bytes(32)).layout.carrier

    assert carrier(1024) == ("b.weight", "c.weight")
    assert carrier(1024, carrier=("[abc].weight",)) == tuple(body)
    whole = sum(a * b for a, b in body.values()) // tracing.LEAST_WEIGHTS
    assert carrier(whole) == tuple(body)
    with pytest.raises(CapacityError):
        carrier(whole + 1)
