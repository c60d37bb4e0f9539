"""The judge: monotone, charged for every try, honest about power."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark import policy, registry
from earmark.errors import UsageError
from earmark.policy import Policy, judge
from earmark.records import Evidence, Layout, Outcome, Tried


def made(hits: int, trials: int, **more: object) -> Evidence:
    return Evidence.of("demo", hits=hits, trials=trials, **more)


@pytest.mark.parametrize(
    ("hits", "trials", "outcome", "level"),
    [
        (64, 64, Outcome.SHOWN, "claim"),
        (128, 128, Outcome.SHOWN, "contested claim"),
        (63, 64, Outcome.INCONCLUSIVE, "trace"),
        (256, 512, Outcome.NOT_SHOWN, "none"),
        (0, 0, Outcome.INCONCLUSIVE, "none"),
        (20, 20, Outcome.INCONCLUSIVE, "trace"),
        (0, 4096, Outcome.NOT_SHOWN, "none"),
    ],
)
def test_outcomes(hits, trials, outcome, level) -> None:
    verdict = judge(made(hits, trials))
    assert verdict.outcome is outcome
    assert verdict.level == level


def test_published_table_of_least_matches() -> None:
    """The hits that 64 bits need, of section 4.2's table: 113 of 128, 200 of 256, 358 of 512."""
    for trials, least in ((64, 64), (128, 113), (256, 200), (512, 358), (1024, 657)):
        assert judge(made(least, trials)).outcome is Outcome.SHOWN
        assert judge(made(least - 1, trials)).outcome is not Outcome.SHOWN


def test_every_try_is_charged() -> None:
    once = judge(made(128, 128))
    often = judge(made(128, 128, tried=Tried(4, 8, 2)))
    assert once.bits - often.bits == 6
    assert once.bits_gross == often.bits_gross
    assert judge([made(128, 128)] * 4).bits == once.bits - 2
    assert judge(made(128, 128), Policy(tried_keys=16)).bits == once.bits - 4


def test_power_is_stated_for_the_raised_threshold() -> None:
    alone = judge(made(90, 160))
    crowded = judge(made(90, 160, tried=Tried(suspects=1 << 20)))
    assert alone.power > crowded.power
    assert judge(made(80, 160), Policy(power_rate=Fraction(99, 100))).power > alone.power


def test_power_pays_for_the_choice_of_a_reading() -> None:
    lower = 0
    for trials in range(100, 120):
        hard = made(trials // 2, trials)
        soft = dataclasses.replace(hard, weights=(1,) * trials, score=0)
        assert judge(soft).power == judge(hard, Policy(bits=65.0)).power
        lower += judge(soft).power < judge(hard).power
    assert lower


def test_a_soft_reading_counts_and_its_choice_is_charged() -> None:
    weights = tuple([8] * 64 + [1] * 192)
    hard = made(64 + 96, 256)
    soft = dataclasses.replace(hard, weights=weights, score=sum(weights[:64]))
    assert policy.log2_p(soft) < policy.log2_p(hard)
    useless = dataclasses.replace(hard, weights=weights, score=0)
    assert policy.log2_p(useless) == min(0.0, policy.log2_p(hard) + 1)


@pytest.mark.parametrize(
    ("score", "better"), [(None, False), (0, False), (60, False), (90, True)], ids=str
)
def test_weighing_is_told_of_where_it_gave_more_than_the_count(score, better) -> None:
    evidence = made(80, 100)
    if score is not None:
        evidence = dataclasses.replace(evidence, weights=(1,) * 100, score=score)
    assert policy.weighed(judge(evidence), evidence) is better


@pytest.mark.parametrize(
    ("trials", "bits", "small"), [(63, 64, True), (64, 64, False), (0, 1, True)]
)
@pytest.mark.parametrize("missed", [0, 1])
def test_a_mark_is_too_small_whatever_was_counted(trials, bits, small, missed) -> None:
    evidence = made(max(0, trials - missed), trials)
    assert policy.too_small(judge(evidence, Policy(bits=bits)), evidence) is small


@given(st.integers(1, 300), st.data())
def test_more_hits_are_never_less_evidence(trials, data) -> None:
    hits = data.draw(st.integers(0, trials - 1))
    assert judge(made(hits + 1, trials)).bits >= judge(made(hits, trials)).bits


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 1000))
def test_a_verdict_is_in_range(hits, more, suspects) -> None:
    verdict = judge(made(hits, hits + more, tried=Tried(suspects=suspects)))
    assert 0 <= verdict.bits <= verdict.bits_gross
    assert verdict.log10_p <= 0
    assert (verdict.outcome is Outcome.SHOWN) == (verdict.bits >= verdict.threshold)
    assert verdict.limits


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match="no evidence"):
        judge([])
    with pytest.raises(UsageError, match="contested claim"):
        Policy.at("proof")
    for bad in ({"bits": 0.0}, {"power": 1.0}, {"power_rate": Fraction(0)}, {"tried_keys": 0}):
        with pytest.raises(UsageError):
            Policy(**bad)


def test_a_policy_is_a_record() -> None:
    assert Policy.from_bytes(Policy.at("trace").canonical()) == Policy.at("trace")


def test_the_choice_of_shards_is_charged() -> None:
    """Whoever reveals the shards that happen to fit gains nothing: all ways to choose count."""
    whole = made(130, 256, shards=tuple(range(256)))
    chosen = made(130, 130, shards=tuple(range(130)), tried=Tried(of_shards=256))
    assert judge(chosen).outcome is not Outcome.SHOWN
    assert judge(chosen).bits <= judge(whole).bits + 20
    one = made(128, 128, shards=(3,), tried=Tried(of_shards=8))
    assert judge(one).bits == 125


@pytest.mark.parametrize(
    ("layout", "shards", "expected"),
    [
        (Layout("mtlsign", 1, ("fc",), 2048, 8), None, (Fraction(1, 2), 2048, 2048)),
        (Layout("deepsigns", 1, ("a",), 10, 4, {"groups": 8}), 1, (Fraction(1, 2), 3, 3)),
        (Layout("deepwater", 2, ("w",), 27, 1, {"groups": 64}), 1, (Fraction(1, 2), 27, 1728)),
        (Layout("adi", 1, (), 100, 4, {"classes": 10}), 2, (Fraction(1, 10), 50, 50)),
        (Layout("theirs", 1, (), 100, 4), 4, (None, 100, 100)),
    ],
)
def test_bounds_follow_from_the_layout(layout, shards, expected) -> None:
    found = policy.bounds(layout, shards)
    assert (found.chance, found.trials, found.signs) == expected


@pytest.mark.parametrize("classes", [0, -1, "10", True, None])
def test_bounds_want_whole_numbers(classes) -> None:
    with pytest.raises(UsageError, match="classes"):
        policy.bounds(Layout("adi", 1, (), 100, 4, {"classes": classes}))


def test_the_policy_knows_which_schemes_have_an_exact_null() -> None:
    for name in registry.SCHEMES:
        assert policy.exact(name) is getattr(registry.load("scheme", name), "exact_null", True)
    assert not policy.exact("third-party")
