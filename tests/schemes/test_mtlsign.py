"""MTL-Sign in sound mode: embedding, measuring, keys in parts, invariances, nulls."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from earmark import stats
from earmark.bench.data import load
from earmark.bench.zoo import SmallCnn, image_task, tiny_hosts
from earmark.errors import (
    CapacityError,
    CarrierError,
    HostError,
    KeyFileError,
    KeyLayoutError,
    UsageError,
)
from earmark.hosts import batches
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Disclosure, Key
from earmark.policy import log2_p
from earmark.records import Access
from earmark.schemes import refit, settling
from earmark.schemes.mtlsign import MtlSign, far_apart
from earmark.schemes.riding import labels_of
from earmark.training import train

OWNER = "ab" * 32
SCHEME = MtlSign(triggers=512, share=0.25, settle=0)


@pytest.fixture(scope="module")
def task():
    return image_task("small-cnn", load("digits"), batch=64, recipe={"epochs": 14, "lr": 0.05})


@pytest.fixture(scope="module")
def candidates(task):
    return batches.join(list(task.stream("train", 0))[:16])


@pytest.fixture(scope="module")
def key(task, candidates) -> Key:
    return SCHEME.new_key(task.host(task.model()), inputs=candidates, secret=bytes(range(32)))


@pytest.fixture(scope="module")
def marked(task, key) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = task.model()
    with SCHEME.attach(model, key) as mark:
        return train(task, seed=1, model=model, mark=mark).model


@pytest.fixture(scope="module")
def innocents(task) -> list[nn.Module]:
    fresh = [train(task, seed=9, recipe=replace_epochs(task, 2)).model]
    for seed in (3, 4):
        torch.manual_seed(seed)
        fresh.append(task.model().eval())
    return fresh


def replace_epochs(task, epochs: int):
    from earmark.training import Recipe

    return replace(Recipe.of(task.recipe), epochs=epochs)


def bits(task, model: nn.Module, key, **more) -> float:
    return -log2_p(SCHEME.measure(task.host(model), key, **more))


def test_marked_model_bears_the_mark_and_keeps_its_task(task, key, marked) -> None:
    evidence = SCHEME.measure(task.host(marked), key)
    assert -log2_p(evidence) >= 128
    assert task.evaluate(marked) >= 93
    assert evidence.trials == 448
    assert evidence.chance == Fraction(1, 2)
    assert evidence.access is Access.ACTIVATIONS
    assert evidence.queries == 512
    assert len(evidence.weights) == evidence.trials
    assert evidence.shards == (0, 1, 2, 3)
    sums = evidence.details["hits and trials by direction"]
    assert [sum(part) for part in zip(*sums.values(), strict=True)] == [evidence.hits, 448]


def test_innocents_do_not(task, key, innocents) -> None:
    for model in innocents:
        assert bits(task, model, key) < 20


def test_attach_leaves_no_trace(task, key) -> None:
    model = task.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    with SCHEME.attach(model, key) as mark:
        batch = next(iter(task.stream("train", 5)))
        mixed = mark.mix(batch)
        assert batches.size(mixed) == batches.size(batch)
        assert not torch.equal(mixed[0][:16], batch[0][:16])
        assert torch.equal(mixed[0][16:], batch[0][16:])
        task.loss(model, mixed)
        loss = mark.loss()
        assert loss.dtype == torch.float32
        assert loss.requires_grad
    assert type(model) is SmallCnn
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items() if "weight" in n)
    assert all(not module._forward_hooks for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_loop_without_mixing_works_too(task, key) -> None:
    model = task.model()
    running = model.bn1.running_mean.clone()
    with SCHEME.attach(model, key) as mark:
        model.train()
        loss = mark.loss()
        loss.backward()
    assert torch.equal(model.bn1.running_mean, running)
    assert model.fc.weight.grad is not None
    assert model.bn1.training


def test_every_trigger_rides_once_a_round(task, key) -> None:
    with SCHEME.attach(task.model(), key) as mark:
        batch = next(iter(task.stream("train", 5)))
        rows = torch.cat([mark.mix(batch)[0][:16].flatten(1) for _ in range(32)])
    assert len(torch.unique(rows, dim=0)) == len(torch.unique(key.inputs[0].flatten(1), dim=0))


def test_resumed_order_is_the_same(task, key) -> None:
    batch = next(iter(task.stream("train", 5)))
    with SCHEME.attach(task.model(), key) as mark:
        for _ in range(35):
            mark.mix(batch)
        state = mark.state_dict()
        expected = [mark.mix(batch)[0] for _ in range(40)]
    with SCHEME.attach(task.model(), key) as other:
        other.load_state_dict(state)
        for wanted in expected:
            assert torch.equal(other.mix(batch)[0], wanted)


def test_inputs_of_layers_can_be_marked(task, candidates) -> None:
    scheme = MtlSign(triggers=128, shards=2, directions=1, taps=("fc:in", "head"))
    key = scheme.new_key(task.host(task.model()), inputs=candidates)
    assert key.layout.carrier == ("fc:in", "head", "head:in")
    assert key.layout.params["marked"] == 2
    assert scheme.measure(task.host(task.model()), key).trials == 112
    with scheme.attach(task.model(), key) as mark:
        assert mark.loss().requires_grad


def test_loss_wants_a_pass_first(task, key) -> None:
    model = task.model()
    with SCHEME.attach(model, key) as mark:
        batch = mark.mix(next(iter(task.stream("train", 5))))
        with pytest.raises(HostError, match="did not run"):
            mark.loss()
        mark.mix(batch)
        model(batch[0][:7])
        with pytest.raises(HostError, match="rows for a batch"):
            mark.loss()


def settled(model: nn.Module, key: Key, settle: float, batch, turn: int = 0) -> list[float]:
    """Return the mark's loss at the peak of the learning rate, halfway down, and at its end."""
    scheme = replace(SCHEME, settle=settle)
    found = []
    with scheme.attach(model, key) as mark:
        for lr in (0.1, 0.05, 0.0):
            mark.load_state_dict({"round": 0, "step": 0, "turn": turn, "lr": lr, "peak": 0.1})
            model(mark.mix(batch)[0])
            found.append(float(mark.loss().detach()))
    return found


def test_settling_grows_as_the_learning_rate_falls(task, key, marked) -> None:
    batch = next(iter(task.stream("train", 1)))
    none, some = settled(marked, key, 0.0, batch), settled(marked, key, 6.0, batch)
    gains = [one - other for one, other in zip(some, none, strict=True)]
    assert gains[0] == 0.0
    assert 0 < gains[1] == pytest.approx(gains[2] / 2, rel=1e-3)


def test_settling_takes_turns(task, key, marked) -> None:
    batch = next(iter(task.stream("train", 1)))
    odd = settled(marked, key, 6.0, batch, turn=1)
    assert odd == settled(marked, key, 0.0, batch, turn=1) != settled(marked, key, 6.0, batch)


def test_variance_within_groups_is_what_its_name_says() -> None:
    rng = np.random.default_rng(0)
    rows, groups = rng.normal(3.0, 1.0, (60, 7)), rng.integers(0, 4, 60)
    rows[groups == 2] += 2.0
    counted = rng.random(60) < 0.7
    some, names = rows[counted], groups[counted]
    inner = sum(some[names == g].var(0).sum() * (names == g).sum() for g in range(4)) / len(some)
    found = settling.within(
        torch.tensor(rows), torch.tensor(groups), torch.tensor(counted, dtype=torch.float32)
    )
    assert float(found) == pytest.approx(inner / some.var(0).sum(), rel=1e-4)
    nobody = settling.within(torch.tensor(rows), torch.tensor(groups), torch.zeros(60))
    assert float(nobody) == 0.0


def test_a_task_that_is_not_learned_is_not_settled(task, key) -> None:
    batch = next(iter(task.stream("train", 1)))
    torch.manual_seed(2)
    model = task.model().eval()
    assert settled(model, key, 6.0, batch) == settled(model, key, 0.0, batch)


def test_what_is_no_class_is_not_settled(task, key, marked) -> None:
    images, labels = next(iter(task.stream("train", 1)))
    kept = batches.transform(key.inputs, lambda t: t if t.is_floating_point() else t.float())
    floats = replace(key, inputs=kept)
    batch = (images, labels.float())
    assert settled(marked, floats, 6.0, batch) == settled(marked, floats, 0.0, batch)


def test_a_settled_model_has_tighter_classes_beside_its_mark(task, key, marked) -> None:
    scheme = replace(SCHEME, settle=30.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = task.model()
    with scheme.attach(model, key) as mark:
        made = train(task, seed=1, model=model, mark=mark).model
    assert -log2_p(scheme.measure(task.host(made), key)) > 64
    inputs, labels = batches.join(list(task.stream("test", 0)))

    def spread(net: nn.Module) -> float:
        rows = task.host(net).features(inputs, ("fc",))["fc"]
        inner = sum(rows[labels == c].var(0).sum() * int((labels == c).sum()) for c in range(10))
        return float(inner / rows.var(0).sum() / len(rows))

    assert SCHEME.settle == 0  # the other model: same key, seed and training, nothing settled
    assert spread(made) < 0.6 * spread(marked)


def test_tiny_batches_carry_no_triggers(task, key) -> None:
    with SCHEME.attach(task.model(), key) as mark:
        batch = batches.take(next(iter(task.stream("train", 5))), slice(0, 1))
        assert mark.mix(batch) is batch


def test_a_suspect_of_another_build_is_read_where_the_verifier_says(task, key, marked) -> None:
    class Renamed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.trunk = inner

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.trunk(inputs)

    suspect = task.host(Renamed(marked))
    with pytest.raises(CarrierError, match="fc"):
        SCHEME.measure(suspect, key)
    assert -log2_p(replace(SCHEME, read=("trunk.fc",)).measure(suspect, key)) >= 128


# --- shards -------------------------------------------------------------------------------------


def disclose(key: Key, indices: list[int], rows: list[int] | None = None) -> Disclosure:
    each = key.layout.message_bits // key.layout.shards
    rows = indices if rows is None else rows
    chosen = torch.cat([torch.arange(each * i, each * (i + 1)) for i in rows])
    return Disclosure(key.opening(OWNER), key.reveal(indices), batches.take(key.inputs, chosen))


@pytest.mark.parametrize("indices", [[0], [3], [2, 1]])
def test_a_shard_alone_is_a_claim(task, key, marked, indices) -> None:
    evidence = SCHEME.measure(task.host(marked), disclose(key, indices))
    assert -log2_p(evidence) >= 64
    assert evidence.trials == 112 * len(indices)
    assert evidence.shards == tuple(indices)


def test_all_shards_revealed_count_as_the_key(task, key, marked) -> None:
    whole = SCHEME.measure(task.host(marked), key)
    assert SCHEME.measure(task.host(marked), disclose(key, [0, 1, 2, 3])) == whole


def test_foreign_inputs_and_shards_are_refused(task, key, marked) -> None:
    host = task.host(marked)
    with pytest.raises(KeyFileError, match="not those that were committed"):
        SCHEME.measure(host, disclose(key, [0], [1]))
    with pytest.raises(KeyFileError, match="inputs came with"):
        SCHEME.measure(host, disclose(key, [0], [0, 1]))
    foreign = Key.generate(key.layout, secret=bytes(32), inputs=key.inputs)
    mixed = Disclosure(key.opening(OWNER), foreign.reveal([0]), disclose(key, [0]).inputs)
    with pytest.raises(KeyFileError, match="does not belong"):
        SCHEME.measure(host, mixed)
    changed = copy.deepcopy(key.inputs)
    changed[0][0, 0, 0, 0] += 1
    with pytest.raises(KeyFileError, match="shard 0"):
        SCHEME.measure(host, replace(key, inputs=changed))


def test_keys_without_inputs_or_of_another_kind(task, key, marked) -> None:
    host = task.host(marked)
    with pytest.raises(KeyLayoutError, match="without its inputs"):
        SCHEME.measure(host, replace(key, inputs=None))
    other = Key.generate(replace(key.layout, version=9), inputs=key.inputs)
    with pytest.raises(KeyLayoutError, match="version 9"):
        SCHEME.measure(host, other)
    with pytest.raises(KeyLayoutError), SCHEME.attach(marked, other):
        pass
    with pytest.raises(CarrierError):
        SCHEME.measure(ModuleHost(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), key)


def test_new_key_says_what_it_needs(task, candidates) -> None:
    host = task.host(task.model())
    with pytest.raises(UsageError, match="needs inputs"):
        SCHEME.new_key(host)
    with pytest.raises(CapacityError, match="20 inputs"):
        SCHEME.new_key(host, inputs=batches.take(candidates, slice(0, 20)))
    with pytest.raises(CarrierError, match="fc9"):
        MtlSign(taps=("fc9",)).new_key(host, inputs=candidates)
    for bad in ({"shards": 0}, {"directions": 9}, {"triggers": 8}, {"share": 0.9}, {"weight": 0}):
        with pytest.raises(UsageError):
            MtlSign(**bad)


def test_beacon_and_secret_change_the_labels(key) -> None:
    labels = labels_of(key.shard(0), 128)
    assert labels_of(key.bind("cd" * 32).shard(0), 128) != labels
    assert labels_of(key.shard(1), 128) != labels


def test_far_apart_is_greedy_and_distinct() -> None:
    line = np.array([[0.0], [0.1], [5.0], [5.1], [10.0]])
    assert far_apart(line, 3).tolist()[0] in (2, 3)
    assert {int(i) for i in far_apart(line, 3)[1:]} == {0, 4}
    assert len(set(far_apart(np.zeros((6, 2)), 6).tolist())) == 6


# --- what must not change the count ---------------------------------------------------------------


def disguised(model: nn.Module, dummies: int = 0) -> nn.Module:
    """Permute and rescale the hidden layer; add active units that the head cancels."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    width = model.fc.out_features
    order = torch.randperm(width, generator=generator)
    scale = torch.rand(width, generator=generator) * 5 + 0.2
    changed.fc.weight.data = (model.fc.weight * scale[:, None])[order]
    changed.fc.bias.data = (model.fc.bias * scale)[order]
    changed.head.weight.data = (model.head.weight / scale)[:, order]
    if dummies:
        extra = torch.randn(dummies, model.fc.in_features, generator=generator)
        wide = nn.Linear(model.fc.in_features, width + dummies)
        wide.weight.data = torch.cat([changed.fc.weight, extra, extra])[: width + dummies]
        wide.bias.data = torch.cat([changed.fc.bias, torch.zeros(dummies)])
        changed.fc = wide
        head = nn.Linear(width + dummies, model.head.out_features)
        pad = torch.zeros(model.head.out_features, dummies)
        head.weight.data = torch.cat([changed.head.weight, pad], dim=1)
        head.bias.data = model.head.bias.data.clone()
        changed.head = head
    return changed.eval()


def test_permutation_and_scaling_change_nothing(task, key, marked) -> None:
    nonce = "12" * 32
    before = SCHEME.measure(task.host(marked), key, nonce=nonce)
    order = range(256)

    def count(model: nn.Module) -> refit.Tally:
        found = task.host(model).features(key.inputs, key.layout.carrier)
        labels = np.array([s for i in (0, 2) for s in labels_of(key.shard(i), 128)], float)
        rows = np.r_[0:128, 256:384]
        return refit.tally({n: v[rows] for n, v in found.items()}, labels[:, None], order)

    plain, hidden = count(marked), count(disguised(marked))
    assert abs(int(plain.hits[0]) - int(hidden.hits[0])) <= int(plain.close[0])
    assert np.allclose(
        task.host(marked).scores(key.inputs),
        task.host(disguised(marked)).scores(key.inputs),
        atol=1e-3,
    )
    after = SCHEME.measure(task.host(disguised(marked, 40)), key, nonce=nonce)
    assert after.hits >= 0.95 * before.hits


def test_order_of_tensors_and_threads_change_nothing(task, key, marked) -> None:
    shuffled = task.model()
    state = marked.state_dict()
    shuffled.load_state_dict({name: state[name] for name in reversed(list(state))})
    before = SCHEME.measure(task.host(marked), key)
    assert SCHEME.measure(task.host(shuffled.eval()), key) == before
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert SCHEME.measure(task.host(marked), key).hits == before.hits
    finally:
        torch.set_num_threads(threads)


def test_measuring_changes_neither_model_nor_inputs(task, key, marked) -> None:
    digest, inputs = task.host(marked).digest(), batches.tree_digest(key.inputs)
    SCHEME.measure(task.host(marked), key, nonce="34" * 32)
    assert task.host(marked).digest() == digest
    assert batches.tree_digest(key.inputs) == inputs
    assert not any(module._forward_hooks for module in marked.modules())


def test_nonce_decides_the_order(task, key, marked, innocents) -> None:
    host = task.host(innocents[0])
    nonces = [hashlib.sha256(bytes([i])).hexdigest() for i in range(6)]
    counts = {SCHEME.measure(host, key, nonce=nonce).score for nonce in nonces}
    assert len(counts) > 1
    assert SCHEME.measure(host, key, nonce=nonces[0]) == SCHEME.measure(host, key, nonce=nonces[0])
    assert min(bits(task, marked, key, nonce=nonce) for nonce in nonces) >= 128


def test_a_dead_suspect_scores_nothing(task, key, marked) -> None:
    for value in (float("nan"), float("inf"), 0.0):
        broken = copy.deepcopy(marked)
        broken.fc.weight.data.fill_(value)
        broken.fc.bias.data.fill_(value)
        broken.conv3.weight.data.fill_(value)
        evidence = SCHEME.measure(task.host(broken), key)
        assert evidence.hits == 0
        assert log2_p(evidence) == 0


def test_what_flows_in_outlives_a_layer_that_is_wiped(task, key, marked) -> None:
    for value in (float("nan"), 0.0):
        broken = copy.deepcopy(marked)
        broken.fc.weight.data.fill_(value)
        assert bits(task, broken, key) >= 128
        shallow = Key.generate(replace(key.layout, carrier=("fc",)), secret=bytes(range(32)))
        assert bits(task, broken, replace(shallow, inputs=key.inputs)) == 0


# --- null calibration through the full pipeline ---------------------------------------------------


def test_null_calibration(task, candidates, innocents) -> None:
    """2,000 keys against three unmarked networks: p-values never smaller than nominal.

    Keys share inputs and features; labels, order and refit are the pipeline's own. A few keys go
    through `measure` itself and must count the same.
    """
    scheme = MtlSign(triggers=128, shards=2, directions=1)
    draws = 2000
    first = scheme.new_key(task.host(innocents[0]), inputs=candidates, secret=bytes(32))
    secrets = [hashlib.sha256(b"null" + i.to_bytes(2, "big")).digest() for i in range(draws)]
    keys = [Key.generate(first.layout, secret=s, inputs=first.inputs) for s in secrets]
    labels = np.array([[s for i in (0, 1) for s in labels_of(k.shard(i), 64)] for k in keys]).T
    pooled_hard, pooled_soft = [], []
    for model in innocents:
        host = task.host(model)
        features = host.features(first.inputs, first.layout.carrier)
        order = order_of(first, host)
        found = refit.tally(features, labels.astype(float), order)
        for i in (0, 1, 1999):
            evidence = scheme.measure(host, keys[i], nonce="56" * 32)
            assert (evidence.hits, evidence.score) == (found.hits[i], found.score[i])
        pooled_hard += [-stats.log2_binomial_tail(int(h), 112, Fraction(1, 2)) for h in found.hits]
        pooled_soft += [-stats.log2_rademacher_tail(int(s), found.weights) for s in found.score]
        assert abs(found.hits.mean() - 56) < 4 * np.sqrt(28 / draws)
    for pooled in (pooled_hard, pooled_soft):
        for level in (Fraction(1, 20), Fraction(1, 100), Fraction(1, 1000)):
            small = sum(b >= -np.log2(float(level)) - 1e-9 for b in pooled)
            assert stats.log2_binomial_tail(small, len(pooled), level) > -16
        assert max(pooled) < 20 + np.log2(len(pooled))


def order_of(key: Key, host: ModuleHost) -> list[int]:
    from earmark.keys.stream import public_stream

    parts = ("56" * 32, host.digest(), key.layout.digest())
    return public_stream("mtlsign/order/0", *(bytes.fromhex(p) for p in parts)).permutation(128)


# --- other kinds of model -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer"])
def test_tiny_hosts_round_trip(kind: str) -> None:
    model, inputs = tiny_hosts(0)[kind]
    scheme = MtlSign(triggers=256, shards=4, directions=2)
    key = scheme.new_key(ModuleHost(model), inputs=(inputs,), secret=bytes(32))
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with scheme.attach(model, key) as mark:
        for _ in range(150):
            optimizer.zero_grad()
            mark.loss().backward()
            optimizer.step()
    assert -log2_p(scheme.measure(ModuleHost(model), key)) >= 64
