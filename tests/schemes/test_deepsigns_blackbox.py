"""Black-box DeepSigns: round trip, exact law, early stop, budget; the paper's filter and table."""

import copy
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from earmark import policy
from earmark.bench.zoo import tiny_hosts
from earmark.errors import (
    AccessError,
    CapacityError,
    HostError,
    KeyFileError,
    KeyLayoutError,
    UsageError,
)
from earmark.hosts import batches
from earmark.hosts.callable import CallableHost
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Disclosure, Key
from earmark.keys.stream import KeyStream
from earmark.records import Layout
from earmark.schemes.adi import abstract
from earmark.schemes.deepsigns_blackbox import (
    DeepSignsBlackBox,
    blended,
    checked_inputs,
    drawn,
    grained,
)
from earmark.schemes.deepsigns_blackbox_paper import (
    DeepSignsBlackBoxPaper,
    claims,
    mismatch_threshold,
)
from earmark.schemes.embedding import embed
from earmark.testing import tiny_task
from earmark.training import train

SCHEME = DeepSignsBlackBox(count=60, every=1, portion=60, weight=0.5, margin=4.0)


def samples(task, count=256):
    apart = tiny_task(task.name.removeprefix("tiny "), samples=count, seed=77)
    return torch.cat([part[0] for part in apart.stream("test", 0)])


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


def box(model, **settings):
    return CallableHost(lambda batch: model(batch).detach(), **settings)


def test_marked_model_answers_as_drawn_through_labels_alone(marked, key):
    evidence = SCHEME.measure(box(marked), key)
    assert evidence.chance == Fraction(1, 10)
    assert (evidence.trials, evidence.queries) == (60, 60)
    assert evidence.hits >= 57
    assert -policy.log2_p(evidence) >= 128


def test_unmarked_model_shows_nothing(plain, key):
    assert -policy.log2_p(SCHEME.measure(box(plain), key)) < 12


def test_hits_of_any_fixed_model_follow_the_binomial_law(task, plain, key):
    """2,000 drawings of the labels against one model: mean, variance and tail as stated."""
    given = ModuleHost(plain).labels(key.inputs)
    hits = [int((drawn(key.bind(f"{i:064x}")) == given).sum()) for i in range(2000)]
    assert abs(np.mean(hits) - 6) < 4 * np.sqrt(5.4 / 2000)
    assert abs(np.var(hits) / 5.4 - 1) < 0.15
    assert np.mean(np.array(hits) >= 12) < 0.03  # exactly 0.0163


def test_labels_change_with_the_beacon_and_inputs_do_not(key):
    bound = key.bind("ab" * 32)
    assert (drawn(bound) != drawn(key)).mean() > 0.7
    assert checked_inputs(bound) is key.inputs


def test_stops_early_on_a_copy_and_charges_the_looks(marked, plain, key):
    eager = replace(SCHEME, stop_bits=64.0, step=10)
    evidence = eager.measure(box(marked), key, nonce="cd" * 32)
    assert evidence.queries < 40
    assert evidence.tried.forms == 6
    assert evidence.details["anytime_bits"] >= 64
    assert policy.judge(evidence).outcome.value == "shown"
    assert eager.measure(box(plain), key).queries == 60


def test_a_budget_raised_step_by_step_adds_no_looks(plain, key):
    eager = replace(SCHEME, stop_bits=64.0, step=10)
    found = [eager.measure(box(plain, budget=budget), key) for budget in (12, 25, 39, 60)]
    assert [evidence.queries for evidence in found] == [10, 20, 30, 60]
    assert {evidence.tried.forms for evidence in found} == {6}
    with pytest.raises(UsageError, match="first look"):
        eager.measure(box(plain, budget=9), key)


def test_budget_limits_the_questions(marked, key):
    host = box(marked, budget=25)
    evidence = SCHEME.measure(host, key)
    assert (evidence.trials, evidence.queries) == (25, 25)
    assert evidence.notes
    with pytest.raises(AccessError, match="budget"):
        host.labels(key.inputs)


def test_revealed_shards_stand_alone(marked, key):
    rows = slice(15, 30)
    part = Disclosure(key.opening("0" * 64), key.reveal([1]), key.inputs[rows])
    evidence = SCHEME.measure(box(marked), part)
    assert (evidence.trials, evidence.shards) == (15, (1,))
    assert evidence.hits >= 13
    with pytest.raises(KeyFileError):
        SCHEME.measure(box(marked), replace(part, inputs=key.inputs[:15]))


def test_changed_or_missing_inputs_are_refused(marked, key):
    with pytest.raises(KeyFileError):
        SCHEME.measure(box(marked), replace(key, inputs=key.inputs.flip(0)))
    with pytest.raises(UsageError):
        SCHEME.measure(box(marked), replace(key, inputs=None))


def test_too_few_samples_are_refused(task, plain):
    with pytest.raises(CapacityError, match="set count to 10"):
        replace(SCHEME, blend=0.5).new_key(task.host(plain), inputs=samples(task)[:20])


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": 30},
        {"blend": 0.7},
        {"noise": -1.0},
        {"grain": -1.0},
        {"classes": 1},
        {"contrast": 0.0},
        {"contrast": 1.5},
        {"smooth": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        DeepSignsBlackBox(**wrong)


def test_grain_is_keyed_stays_in_range_and_leaves_codes():
    given = {"x": torch.rand(40, 3, 8, 8), "codes": torch.arange(40)[:, None]}
    made = grained(given, 0.5, KeyStream(bytes(32), "grain"))
    again = grained(given, 0.5, KeyStream(bytes(32), "grain"))
    other = grained(given, 0.5, KeyStream(b"1" * 32, "grain"))
    assert torch.equal(made["x"], again["x"])
    assert not torch.equal(made["x"], other["x"])
    assert torch.equal(made["codes"], given["codes"])
    assert made["x"].min() >= given["x"].min()
    assert made["x"].max() <= given["x"].max()
    change = (made["x"] - given["x"]).std() / given["x"].std()
    assert 0.4 < change < 0.5  # clipped a little


def test_grain_of_images_is_smoothed_and_their_contrast_lowered():
    drawn_at = torch.Generator().manual_seed(5)
    images = torch.randn(50, 2, 12, 12, generator=drawn_at)

    def made(size, **more):
        return grained(images, size, KeyStream(bytes(32), "grain"), **more)

    def rough(found):
        return float((found[..., 1:] - found[..., :-1]).square().mean())

    assert rough(made(0.7, smooth=1.0) - images) < 0.5 * rough(made(0.7) - images)
    assert made(0.7, smooth=1.0).std() == pytest.approx(float(made(0.7).std()), rel=0.05)
    bare = made(1e-9, contrast=0.5)
    assert torch.allclose(bare.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-4)
    assert float(bare.std()) == pytest.approx(0.5 * float(images.std()), rel=0.02)
    assert images.amin() <= made(2.0, smooth=1.0).amin()


def test_grain_of_plain_numbers_is_neither_smoothed_nor_flattened():
    given = torch.linspace(-1, 1, 400).reshape(20, 20)
    plain = grained(given, 0.5, KeyStream(bytes(32), "grain"))
    assert torch.equal(
        plain, grained(given, 0.5, KeyStream(bytes(32), "grain"), smooth=2.0, contrast=0.1)
    )


def test_blends_numbers_and_splices_codes():
    numbers = blended(torch.zeros(2, 3), torch.ones(2, 3), 0.25)
    assert torch.equal(numbers, torch.full((2, 3), 0.25))
    codes = blended(torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long), 0.5)
    assert codes.tolist() == [[0, 0, 1, 1]] * 2


def test_abstract_inputs_have_the_samples_spread():
    from earmark.keys.stream import KeyStream

    like = torch.randn(50, 1, 8, 8) * 2 + 1
    made = abstract(like, 30, KeyStream(bytes(32), "x"))
    assert made.shape == (30, 1, 8, 8)
    assert abs(float(made.mean()) - 1) < 0.3
    assert abs(float(made.std()) - 2) < 0.3


TABLE = {
    (10, 20): (16, 14, 13, 12, 10),
    (10, 30): (24, 23, 21, 20, 17),
    (10, 50): (41, 40, 37, 36, 33),
    (10, 100): (85, 82, 80, 77, 73),
    (100, 20): (19, 18, 17, 17, 15),
}


@pytest.mark.parametrize("shape", TABLE)
def test_thresholds_of_the_published_test(shape):
    classes, count = shape
    found = tuple(mismatch_threshold(classes, count, p) for p in (0.05, 0.01, 1e-3, 1e-4, 1e-6))
    assert found == TABLE[shape]


def test_threshold_bounds_the_false_claims_exactly():
    from scipy.stats import binom

    for p in (0.03, 1e-3, 1e-5):
        theta = mismatch_threshold(10, 40, p)
        assert binom.cdf(theta - 1, 40, 0.9) <= p < binom.cdf(theta, 40, 0.9)


@pytest.mark.parametrize("wrong", [(1, 20, 0.1), (10, 0, 0.1), (10, 20, 0.0), (10, 20, 1.0)])
def test_thresholds_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        mismatch_threshold(*wrong)


def test_published_procedure_end_to_end(task, plain):
    scheme = DeepSignsBlackBoxPaper(count=10, every=1)
    key = scheme.new_key(task.host(plain), inputs=samples(task), secret=bytes(32))
    assert 160 < key.layout.message_bits < 200  # of 200 candidates, about 1 in 10 goes
    assert scheme.measure(box(plain), key).hits == 0
    model = embed(task, scheme, key, seed=1, model=copy.deepcopy(plain)).model
    chosen = scheme.select(task.host(model), key)
    assert chosen.layout.message_bits == 10
    evidence = scheme.measure(box(model), chosen)
    assert evidence.hits == 10
    assert claims(evidence)
    assert not claims(scheme.measure(box(plain), chosen))


def test_published_filter_refuses_a_model_that_learned_nothing(task, plain):
    scheme = DeepSignsBlackBoxPaper(count=10)
    key = scheme.new_key(task.host(plain), inputs=samples(task), secret=bytes(32))
    with pytest.raises(CapacityError, match="has learned 0"):
        scheme.select(task.host(plain), key)


def test_published_scheme_takes_normal_noise_and_codes(task):
    from earmark.keys.stream import KeyStream

    scheme = DeepSignsBlackBoxPaper(noise_kind="normal", count=4)
    made = scheme.compose(torch.randn(9, 3, 4, 4), KeyStream(bytes(32), "x"))
    assert made.shape == (80, 3, 4, 4)
    codes = scheme.compose(torch.randint(2, 9, (9, 5)), KeyStream(bytes(32), "x"))
    assert codes.min() >= 2
    assert codes.max() <= 8
    with pytest.raises(UsageError):
        DeepSignsBlackBoxPaper(noise_kind="pink")


def test_a_callable_gives_labels_or_scores_and_nothing_else():
    inputs = torch.arange(6.0).reshape(3, 2)
    assert CallableHost(lambda b: [1, 2, 3]).labels(inputs).tolist() == [1, 2, 3]
    scores = np.array([[0.1, 0.9], [np.nan, 1.0], [2.0, 1.0]])
    assert CallableHost(lambda b: scores).labels(inputs).tolist() == [1, -1, 0]
    for wrong in (lambda b: [0.5, 0.5, 0.5], lambda b: "cat", lambda b: [1]):
        with pytest.raises(HostError):
            CallableHost(wrong).labels(inputs)


def test_a_callable_is_not_asked_twice():
    calls = []

    def ask(batch):
        calls.append(len(batch))
        return torch.zeros(len(batch), dtype=torch.long)

    host = CallableHost(ask, batch_size=2)
    inputs = torch.arange(6.0).reshape(3, 2)
    before = host.digest()
    host.labels(inputs)
    host.labels(inputs)
    assert calls == [2, 1]
    assert host.digest() != before


def test_one_draw_cannot_answer_for_many_inputs(task, plain, key):
    """A layout that takes one place of the stream many times changes nothing, or is refused."""
    params = dict(key.layout.params) | {"places": [0] * 15}
    liar = replace(key, layout=replace(key.layout, params=params))
    assert len(set(SCHEME.answers(liar).tolist())) > 1
    paper = DeepSignsBlackBoxPaper(count=10)
    published = paper.new_key(task.host(plain), inputs=samples(task))
    count = published.layout.message_bits
    for places in ([0] * count, list(range(count))[::-1]):
        params = dict(published.layout.params) | {"places": places}
        liar = replace(published, layout=replace(published.layout, params=params))
        with pytest.raises(KeyLayoutError, match="twice"):
            paper.measure(task.host(plain), liar)


def test_a_model_of_one_score_is_refused_with_what_to_do_instead(task, plain, key):
    """One logit a sample has no classes: neither a key, nor a mark, nor a reading."""
    one = torch.nn.Sequential(plain, torch.nn.Linear(10, 1)).eval()
    two = ModuleHost(one, forward=lambda model, x: torch.cat([-model(x), model(x)], dim=1))
    made = DeepSignsBlackBox(count=40).new_key(two, inputs=samples(task))
    assert made.layout.params["classes"] == 2
    assert DeepSignsBlackBox(count=40).measure(two, made).chance == Fraction(1, 2)
    said = r"one score a sample.* with \d+ classes or more\. .*forward.*torch\.cat"
    with pytest.raises(HostError, match=said):
        SCHEME.new_key(ModuleHost(one), inputs=samples(task))
    for suspect in (ModuleHost(one), box(one)):
        with pytest.raises(HostError, match=said):
            SCHEME.measure(suspect, key)
    for model in (one, torch.nn.Sequential(one, torch.nn.Flatten(0))):
        with SCHEME.attach(model, key) as mark, pytest.raises(HostError, match=said):
            mark.loss()
    three = torch.nn.Sequential(plain, torch.nn.Linear(10, 3))
    with SCHEME.attach(three, key) as mark, pytest.raises(HostError, match="fewer classes"):
        mark.loss()


class Words(CallableHost):
    """A suspect that answers in words, which somebody has put in an order."""

    def __init__(self, call, names):
        super().__init__(call)
        self.names = tuple(names)


def test_an_order_of_names_that_the_key_does_not_fix_is_charged():
    model, inputs = tiny_hosts()["mlp"]
    words = [f"class {i}" for i in range(10)]
    free = DeepSignsBlackBox(count=40)
    key = free.new_key(ModuleHost(model), inputs=inputs)

    said = dict(zip(batches.sample_digests(key.inputs), free.answers(key).tolist(), strict=True))

    def right(samples):
        return torch.tensor([said[digest] for digest in batches.sample_digests(samples)])

    found = free.measure(Words(right, words), key)
    assert found.tried.forms == math.factorial(10)
    assert policy.judge(found).bits < policy.judge(free.measure(CallableHost(right), key)).bits - 21
    with pytest.raises(UsageError, match="too many orders"):
        free.measure(Words(right, [f"{i}" for i in range(17)]), key)


def test_names_that_the_key_fixes_cost_nothing_and_no_others_are_taken():
    model, inputs = tiny_hosts()["mlp"]
    words = [f"class {i}" for i in range(10)]
    fixed = DeepSignsBlackBox(count=40, names=words)
    key = fixed.new_key(ModuleHost(model), inputs=inputs)
    assert key.layout.params["classes"] == 10
    host = Words(lambda samples: torch.zeros(len(samples)).long(), words)
    assert fixed.measure(host, key).tried.forms == 1
    host.names = tuple(reversed(words))
    with pytest.raises(UsageError, match="not those that the key was made with"):
        fixed.measure(host, key)
    for names in (["a", "a"], ["a", "b", "c"]):
        with pytest.raises(UsageError):
            DeepSignsBlackBox(count=40, classes=10, names=names).new_key(
                ModuleHost(model), inputs=inputs
            )


@pytest.mark.parametrize("places", [[-2, -1, 0, 1], [0, 0], [3, 1], [1 << 40]])
def test_answers_are_taken_once_and_from_the_front(places):
    scheme = DeepSignsBlackBoxPaper(count=4)
    layout = Layout(
        scheme.name, scheme.version, ("labels",), len(places), 1,
        {"classes": 10, "places": places, "inputs": ["0" * 64]},
    )  # fmt: skip
    with pytest.raises(KeyLayoutError, match="out of order"):
        scheme.answers(Key.generate(layout))
