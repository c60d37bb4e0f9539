"""White-box DeepSigns: round trip, exact law, permutation, payload, capacity; the paper's form."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from earmark import policy
from earmark.attacks.base import Budget
from earmark.attacks.obfuscate import Obfuscate, Permute
from earmark.attacks.prune import Prune
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.errors import CapacityError, CarrierError, KeyFileError, KeyLayoutError, UsageError
from earmark.hosts.access import Host
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Key
from earmark.records import Access
from earmark.schemes.deepsigns import DeepSigns, Plan, codeword
from earmark.schemes.deepsigns_paper import DeepSignsPaper, normal
from earmark.schemes.deepsigns_units import _standard, assignment
from earmark.schemes.embedding import embed, starting_model
from earmark.testing import check_scheme, tiny_task
from earmark.training import train

SCHEME = DeepSigns(bits=128, margin=1.2, every=1, weight=1.0)


def samples(task, count=512):
    apart = tiny_task(task.name.removeprefix("tiny "), samples=count, seed=77)
    parts = list(apart.stream("test", 0))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@pytest.fixture(scope="module")
def task():
    return tiny_task("mlp")


@pytest.fixture(scope="module")
def plain(task):
    return train(task, seed=0).model


@pytest.fixture(scope="module")
def key(task, plain):
    return SCHEME.new_key(task.host(plain), inputs=samples(task), secret=bytes(32))


@pytest.fixture(scope="module")
def marked(task, plain, key):
    return embed(task, SCHEME, key, seed=1, model=copy.deepcopy(plain)).model


def bits(scheme, model, key):
    return -policy.log2_p(scheme.measure(ModuleHost(model), key))


def test_paper_mode_conforms():
    check_scheme(
        DeepSignsPaper(bits=24, carriers=3, push=0.1, samples=200),
        hosts=("mlp",),
        keys=30,
        bits=20,
    )


def test_marked_model_shows_every_bit_and_keeps_its_accuracy(task, plain, marked, key):
    evidence = SCHEME.measure(task.host(marked), key)
    assert evidence.hits == evidence.trials == 128
    assert SCHEME.bit_error_rate(evidence) == 0.0
    assert task.evaluate(marked) >= task.evaluate(plain) - 1.0


def test_unmarked_model_and_other_keys_show_nothing(task, plain, marked, key):
    assert bits(SCHEME, plain, key) < 12
    other = SCHEME.new_key(task.host(plain), inputs=samples(task), secret=bytes([1] * 32))
    assert bits(SCHEME, marked, other) < 12


def test_a_key_bound_to_another_beacon_reads_other_bits(task, marked, key):
    assert bits(SCHEME, marked, key.bind("ab" * 32)) < 12


def aligned(task, plain, key, suspect):
    return SCHEME.measure(SCHEME.align(ModuleHost(suspect), task.host(plain), key), key)


def test_permutation_scaling_and_dummies_are_undone(task, plain, marked, key):
    budget = Budget(task)
    moved = Permute().run(marked, budget, seed=3)
    assert 30 < SCHEME.measure(ModuleHost(moved), key).hits < 98
    evidence = aligned(task, plain, key, moved)
    assert (evidence.hits, evidence.tried.forms) == (128, 2)
    assert evidence.suspect == ModuleHost(moved).digest()
    for width in (0.1, 0.8):
        hidden = Obfuscate(width=width).run(marked, budget, seed=3)
        assert aligned(task, plain, key, hidden).hits >= 125


def test_units_are_matched_by_their_answers_where_there_are_no_weights(task, plain, marked, key):
    class Told(Host):
        access = frozenset({Access.ACTIVATIONS})

        def __init__(self, model):
            self.model = ModuleHost(model)

        def digest(self):
            return self.model.digest()

        def features(self, inputs, names):
            return self.model.features(inputs, names)

    moved = Obfuscate().run(marked, Budget(task), seed=3)
    found = SCHEME.align(Told(moved), task.host(plain), key)
    assert SCHEME.measure(found, key).hits > 115


def test_a_reference_that_bears_the_mark_is_refused(task, plain, marked, key):
    with pytest.raises(UsageError, match="bears the mark"):
        SCHEME.align(task.host(plain), task.host(marked), key)


def test_a_network_marked_from_scratch_is_aligned_to_its_start(task, key):
    made = embed(task, SCHEME, key, seed=5).model
    moved = Obfuscate().run(made, Budget(task), seed=3)
    start = starting_model(task, SCHEME, key, seed=5)
    assert aligned(task, start, key, moved).hits >= 125


def test_a_wider_suspect_needs_alignment_first(task, marked, key):
    hidden = Obfuscate().run(marked, Budget(task), seed=3)
    with pytest.raises(CarrierError, match="align"):
        SCHEME.measure(ModuleHost(hidden), key)


def test_alignment_leaves_the_law_of_innocent_models(task, plain):
    """Several keys, several innocent models: hits stay fair after alignment."""
    innocents = [ModuleHost(train(task, seed=100 + i).model) for i in range(4)]
    shares = []
    for i in range(40):
        key = SCHEME.new_key(task.host(plain), inputs=samples(task), secret=bytes([40 + i] * 32))
        found = [
            SCHEME.measure(SCHEME.align(host, task.host(plain), key), key).hits / 128
            for host in innocents
        ]
        shares.append(np.mean(found))
    error = 0.5 / np.sqrt(128 * len(shares))  # innocents of one key are not independent
    assert abs(np.mean(shares) - 0.5) < 4 * error


def test_naive_alignment_would_make_innocent_models_look_guilty():
    """The control, on real digits: matched by plain activations, innocents show most bits."""
    task = image_task("mlp", "digits", recipe={"epochs": 8})
    scheme = DeepSigns(bits=256, every=4)
    first = train(task, seed=0).model
    key = scheme.new_key(task.host(first), inputs=next(iter(digits(1200))), secret=bytes(32))
    released = task.host(embed(task, scheme, key, seed=1, model=copy.deepcopy(first)).model)
    innocent = task.host(train(task, seed=2).model)
    plan = Plan.of(key)
    own, found = (host.features(plan.inputs, plan.names) for host in (released, innocent))
    bent = {}
    for name, rows in found.items():
        center = [_standard(item) / np.sqrt(len(rows)) for item in (own[name], rows)]
        _, ours, theirs, signs = assignment(*center)
        bent[name] = np.zeros_like(own[name])
        bent[name][:, ours] = rows[:, theirs] * signs
    assert (plan.read(bent) * plan.signs > 0).mean() > 0.7
    fair = scheme.measure(scheme.align(innocent, task.host(first), key), key)
    assert abs(fair.hits - 128) < 40


def digits(count):
    return load("digits").batches("train", size=count, seed=0)


def test_shifting_all_activations_alike_is_no_way_to_lower_the_term(task):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(64, 32)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.body(x.flatten(1)))

    torch.manual_seed(0)
    model = Shifted()
    scheme = DeepSigns(bits=64, margin=1.0, every=1, taps=("body",))
    key = scheme.new_key(ModuleHost(model), inputs=samples(task), secret=bytes(32))
    with scheme.attach(model, key) as mark:
        mark.loss().backward()
    assert model.body.weight.grad.abs().max() > 1e-3
    assert model.body.bias.grad.abs().max() < 1e-6


def test_a_network_without_norms_keeps_its_accuracy_under_plain_sgd(task, plain, key):
    network = copy.deepcopy(plain)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    with SCHEME.attach(network, key) as mark:
        for epoch in range(15):
            for batch in task.stream("train", epoch):
                loss = task.loss(network, batch) + mark.loss()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert task.evaluate(network) > task.evaluate(plain) - 3
    assert bits(SCHEME, network, key) > 80


def test_pruning_leaves_a_claim(task, marked, key):
    pruned = Prune(share=0.5).run(marked, Budget(task), seed=0)
    assert bits(SCHEME, pruned, key) >= 64


def test_one_shard_alone_is_counted_alone(task, marked, key):
    from earmark.keys.secret import Disclosure

    owner = "0" * 64
    revealed = Disclosure(key.opening(owner), key.reveal([1, 3]), key.inputs)
    evidence = SCHEME.measure(task.host(marked), revealed)
    assert (evidence.trials, evidence.hits, evidence.shards) == (64, 64, (1, 3))


def test_payload_is_read_back_without_knowing_it(task, plain):
    scheme = replace(SCHEME, payload="cafe")
    key = scheme.new_key(task.host(plain), inputs=samples(task), secret=bytes([5] * 32))
    model = embed(task, scheme, key, seed=1, model=copy.deepcopy(plain)).model
    assert scheme.measure(task.host(model), key).hits == 128
    decoded = DeepSigns().read_payload(task.host(model), key)
    assert decoded.ok
    assert decoded.message == bytes.fromhex("cafe")
    assert DeepSigns().measure(task.host(model), key).hits == 128  # the key says what it carries
    other = replace(key, layout=replace(key.layout, params=key.layout.params | {"payload": "beef"}))
    assert bits(scheme, model, other) < bits(scheme, model, key) - 20
    with pytest.raises(UsageError, match="no payload"):
        plain_key = SCHEME.new_key(task.host(plain), inputs=samples(task))
        SCHEME.read_payload(task.host(model), plain_key)


def test_payload_that_is_no_hexadecimal_is_refused():
    with pytest.raises(UsageError, match="hexadecimal"):
        codeword("xyz", 64)


def test_too_many_bits_are_refused_before_training(task, plain):
    with pytest.raises(CapacityError, match="at most") as caught:
        DeepSigns(bits=4096).new_key(task.host(plain), inputs=samples(task))
    most = int(str(caught.value).split("at most ")[1].split(" ")[0])
    DeepSigns(bits=most).new_key(task.host(plain), inputs=samples(task))


def test_changed_inputs_are_refused(task, marked, key):
    other = {**key.inputs, "group": key.inputs["group"].roll(1)}
    with pytest.raises(KeyFileError):
        SCHEME.measure(task.host(marked), replace(key, inputs=other))
    with pytest.raises(UsageError, match="missing"):
        SCHEME.measure(task.host(marked), replace(key, inputs=None))


def test_suspect_without_the_layer_is_refused(key):
    with pytest.raises(CarrierError):
        SCHEME.measure(ModuleHost(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), key)


@pytest.mark.parametrize(
    "wrong", [{"bits": 0}, {"margin": 0.0}, {"references": 1}, {"bits": 2}, {"every": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        DeepSigns(**wrong)


def test_units_are_matched_through_permutation_sign_and_extra_units():
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(40, 12))
    order = generator.permutation(12)
    signs = np.where(np.arange(12) < 3, -1.0, 1.0)
    found = np.concatenate([(reference * signs)[:, order], generator.normal(size=(40, 5))], axis=1)
    width, ours, theirs, back = assignment(reference, found)
    assert width == 12
    assert np.allclose(found[:, theirs] * back, reference[:, ours])


def test_paper_mode_reads_activations_not_centers(task, plain):
    scheme = DeepSignsPaper(bits=16, carriers=2, push=0.1, samples=100)
    key = scheme.new_key(task.host(plain), inputs=samples(task), secret=bytes(32))
    model = copy.deepcopy(plain)
    with scheme.attach(model, key) as mark:
        for _ in range(60):
            mark.loss().backward()
            mark.after_step(0.1)
        model.zero_grad()
    assert scheme.measure(ModuleHost(model), key).hits < 30  # centers alone moved


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("separate", [False, True])
def test_paper_losses_are_finite_and_reach_the_network(task, plain, variant, separate):
    scheme = DeepSignsPaper(variant=variant, separate=separate, start="random")
    key = scheme.new_key(task.host(plain), inputs=samples(task), secret=bytes(32))
    model = copy.deepcopy(plain)
    with scheme.attach(model, key) as mark:
        value = mark.loss()
        value.backward()
        state = mark.state_dict()
        mark.load_state_dict(state)
    assert torch.isfinite(value)
    assert model.fc1.weight.grad.abs().sum() > 0
    assert all(center.grad is not None for center in mark.parameters())


def test_keyed_normal_numbers_look_normal():
    from earmark.keys.stream import KeyStream

    found = normal(KeyStream(bytes(32), "x"), (100, 100)).ravel()
    assert abs(found.mean()) < 0.05
    assert abs(found.std() - 1) < 0.05
    assert abs(np.mean(np.abs(found) > 1.96) - 0.05) < 0.01


def test_the_published_form_has_one_shard_so_that_none_can_be_put_first(task, plain):
    scheme = DeepSignsPaper(bits=16, carriers=2, push=0.1, samples=100)
    key = scheme.new_key(task.host(plain), inputs=samples(task), secret=bytes(32))
    several = Key.generate(replace(key.layout, shards=4), inputs=key.inputs)
    with pytest.raises(KeyLayoutError, match="one shard"):
        scheme.measure(ModuleHost(plain), several)
