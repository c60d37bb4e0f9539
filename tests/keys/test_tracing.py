from __future__ import annotations

import math
import random
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from earmark.errors import UsageError
from earmark.keys.stream import KeyStream
from earmark.keys.tracing import (
    Accusation,
    accuse,
    innocent_law,
    tardos_biases,
    tardos_codeword,
    tardos_length,
    tardos_scores,
)
from earmark.stats import log2_binomial_tail

ONE = 2**32
STRATEGIES = ("majority", "minority", "interleave", "average", "all ones", "coin")


def stream(seed):
    return SimpleNamespace(bytes=random.Random(seed).randbytes)


def collude(copies, strategy, rng):
    """What a coalition outputs, and how sure a reader of it can be."""
    count, length = copies.shape
    ones = copies.sum(0)
    coin = rng.integers(0, 2, length)
    agreed = (ones == 0) | (ones == count)
    sure = np.ones(length, dtype=int)
    if strategy == "majority":
        word = np.where(2 * ones == count, coin, 2 * ones > count)
    elif strategy == "minority":
        word = np.where(agreed, ones > 0, np.where(2 * ones == count, coin, 2 * ones < count))
    elif strategy == "interleave":
        word = copies[rng.integers(0, count, length), np.arange(length)]
    elif strategy == "average":  # weights are averaged: the reader sees a weaker, noisy mean
        mean = (2 * ones - count) / count + rng.normal(0, 0.2, length)
        word, sure = mean > 0, np.abs(np.round(8 * mean)).astype(int)
    elif strategy == "all ones":
        word = ones > 0
    else:
        word = np.where(agreed, ones > 0, coin)
    return [int(bit) for bit in word], [int(weight) for weight in sure]


def draw(users, colluders, rng, length=None):
    """Biases by the real function, codewords of the same law by NumPy."""
    length = length or tardos_length(users, colluders)
    biases = tardos_biases(stream(int(rng.integers(2**32))), length, colluders)
    return biases, (rng.integers(0, ONE, (users, length)) < np.array(biases)).astype(int)


def numpy_scores(biases, words, observed, sure):
    p = np.array(biases) / ONE
    one, zero = np.sqrt((1 - p) / p) * sure, np.sqrt(p / (1 - p)) * sure
    for_one = np.where(observed, one, -one)
    for_zero = np.where(observed, -zero, zero)
    return np.where(words, for_one, for_zero).sum(1)


# -- the code -------------------------------------------------------------------------------------


def test_biases_follow_the_cut_arcsine_law():
    biases = np.array(tardos_biases(stream(1), 20_000, 3)) / ONE
    cutoff = 1 / 90
    assert cutoff - 1e-9 <= biases.min()
    assert biases.max() <= 1 - cutoff + 1e-9
    angles = np.sort(np.arcsin(np.sqrt(biases)))
    low = math.asin(math.sqrt(cutoff))
    uniform = (angles - low) / (math.pi / 2 - 2 * low)
    assert np.abs(uniform - (np.arange(20_000) + 0.5) / 20_000).max() < 1.95 / math.sqrt(20_000)


def test_codewords_follow_the_biases():
    biases = tardos_biases(stream(2), 30, 2)
    words = np.array([tardos_codeword(stream(user), biases) for user in range(2000)])
    p = np.array(biases) / ONE
    deviations = (words.mean(0) - p) / np.sqrt(p * (1 - p) / 2000)
    assert np.abs(deviations).max() < 4.5
    assert tardos_codeword(SimpleNamespace(bytes=bytes), [1]) == (1,)
    assert tardos_codeword(SimpleNamespace(bytes=lambda n: b"\0\0\0\1"), [1]) == (0,)
    assert tardos_codeword(SimpleNamespace(bytes=lambda n: b"\xff" * n), [ONE - 1]) == (0,)


def test_origin_of_the_disc_is_drawn_again():
    draws = iter([bytes(8), b"\xff" * 8, b"\x40\0\0\0\x40\0\0\0"])
    assert tardos_biases(SimpleNamespace(bytes=lambda n: next(draws)), 1, 2) == (ONE // 2,)


def test_same_key_gives_same_code():
    one = tardos_biases(KeyStream(bytes(32), "biases"), 50, 2)
    assert one == tardos_biases(KeyStream(bytes(32), "biases"), 50, 2)
    assert one != tardos_biases(KeyStream(bytes(32), "others"), 50, 2)


def test_length_grows_as_it_should():
    assert tardos_length(100, 1) < 120
    assert tardos_length(100, 4) == pytest.approx(4 * tardos_length(100, 2), rel=0.01)
    assert tardos_length(100, 2, flip_rate=0.25) == pytest.approx(
        4 * tardos_length(100, 2), rel=0.01
    )
    assert tardos_length(10**6, 2) > tardos_length(100, 2)
    assert tardos_length(100, 2, bits=40) > tardos_length(100, 2)


@pytest.mark.parametrize(
    "action",
    [
        lambda: tardos_length(0, 1),
        lambda: tardos_length(1, 0),
        lambda: tardos_length(1, 1001),
        lambda: tardos_length(1, 1, bits=-1),
        lambda: tardos_length(1, 1, bits=math.nan),
        lambda: tardos_length(1, 1, flip_rate=0.5),
        lambda: tardos_length(1, 1, flip_rate=-0.1),
        lambda: tardos_biases(stream(1), 0, 1),
        lambda: tardos_biases(stream(1), 2**25, 1),
        lambda: tardos_biases(stream(1), 5, 0),
        lambda: tardos_codeword(stream(1), [0]),
        lambda: tardos_codeword(stream(1), [ONE]),
        lambda: tardos_scores([5], [1], [1, 0]),
        lambda: tardos_scores([5], [1, 0], [1]),
        lambda: tardos_scores([5], [2], [1]),
        lambda: tardos_scores([5], [1], [2]),
        lambda: tardos_scores([5], [1], [1], confidence=[-1]),
        lambda: tardos_scores([5], [1], [1], confidence=[1, 1]),
        lambda: tardos_scores([0], [1], [1]),
        lambda: innocent_law([5, 6], [1]),
        lambda: accuse([5], {"a": [1], "b": [0]}, [1], tests=1),
    ],
)
def test_refuses_nonsense(action):
    with pytest.raises(UsageError):
        action()


# -- scores and their bound -----------------------------------------------------------------------


def test_scores_are_the_symmetric_ones():
    rng = np.random.default_rng(1)
    biases, words = draw(20, 3, rng, length=200)
    observed, sure = rng.integers(0, 2, 200), rng.integers(0, 5, 200)
    theirs = numpy_scores(biases, words, observed, sure)
    masked = [None if weight == 0 else int(bit) for bit, weight in zip(observed, sure, strict=True)]
    for word, score in zip(words, theirs, strict=True):
        ours = tardos_scores(biases, word, masked, confidence=sure)
        assert ours / 2**16 == pytest.approx(score, abs=0.05)


def test_bound_holds_against_the_exact_tail():
    # at equal biases the score is a binomial count in disguise, whose tail is known exactly
    for bias in (ONE // 2, ONE // 5, ONE - ONE // 30):
        law = innocent_law([bias] * 300, [1] * 300)
        for ones in range(0, 301, 20):
            score = tardos_scores([bias] * 300, [1] * ones + [0] * (300 - ones), [1] * 300)
            exact = log2_binomial_tail(ones, 300, Fraction(bias, ONE))
            assert exact - 1e-9 <= law.log2_tail(score) <= min(0.0, exact + 6)


@pytest.mark.parametrize("strategy", ["majority", "average", "all ones"])
def test_bound_is_calibrated_on_innocents(strategy):
    rng = np.random.default_rng(8)
    biases, words = draw(3, 3, rng)
    observed, sure = collude(words, strategy, rng)
    law = innocent_law(biases, observed, confidence=sure)
    innocents = (rng.integers(0, ONE, (20_000, len(biases))) < np.array(biases)).astype(bool)
    scores = numpy_scores(biases, innocents, np.array(observed), np.array(sure))
    for share in (0.9, 0.99, 0.999, 0.9999):
        score = float(np.quantile(scores, share))
        bound = 2.0 ** law.log2_tail(int(score * 2**16))
        assert 1 - share <= bound * 1.5
        assert bound < 40 * (1 - share)


def test_nothing_read_accuses_nobody():
    biases = tardos_biases(stream(3), 40, 2)
    found = accuse(biases, {"b": [1] * 40, "a": [0] * 40}, [None] * 40)
    assert [(item.name, item.score, item.bits) for item in found] == [("a", 0, 0.0), ("b", 0, 0.0)]
    assert accuse(biases, {}, [None] * 40) == ()


def test_accusation_is_charged():
    words = {"acme": [1] * 30}
    (alone,) = accuse([ONE // 2] * 30, words, [1] * 30)
    (charged,) = accuse([ONE // 2] * 30, words, [1] * 30, tests=1024)
    assert alone.bits == pytest.approx(30)
    assert charged.bits == pytest.approx(20)
    assert Accusation("acme", 1, log2_p=-3.0, tests=16).bits == 0.0


# -- tracing --------------------------------------------------------------------------------------


def caught(colluders, strategy, rng, *, users=100, flip_rate=0.0, bits=20.0):
    """Whether a member is named at 2^-20 over all users, and how many innocents are."""
    biases, words = draw(
        users, colluders, rng, tardos_length(users, colluders, flip_rate=flip_rate)
    )
    observed, sure = collude(words[:colluders], strategy, rng)
    observed = [bit ^ int(rng.random() < flip_rate) for bit in observed]
    scores = numpy_scores(biases, words, np.array(observed), np.array(sure))
    top = [int(user) for user in np.argsort(-scores)[: colluders + 1]]  # the rest scores lower
    found = accuse(
        biases, {str(u): words[u].tolist() for u in top}, observed, tests=users, confidence=sure
    )
    named = [int(item.name) for item in found if item.bits >= bits]
    return any(user < colluders for user in named), sum(user >= colluders for user in named)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("colluders", [2, 3])
def test_coalitions_are_caught(colluders, strategy):
    rng = np.random.default_rng(100 * colluders + STRATEGIES.index(strategy))
    results = [caught(colluders, strategy, rng) for _ in range(20)]
    assert sum(hit for hit, _ in results) >= 19
    assert sum(wrong for _, wrong in results) == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("colluders", "flip_rate"), [(1, 0.15), (2, 0.0), (2, 0.1), (3, 0.0), (3, 0.1)]
)
def test_tracing_at_length(colluders, flip_rate, strategy):
    rng = np.random.default_rng(1000 * colluders + STRATEGIES.index(strategy))
    results = [caught(colluders, strategy, rng, flip_rate=flip_rate) for _ in range(100)]
    assert sum(hit for hit, _ in results) >= (99 if colluders == 1 else 95)
    assert sum(wrong for _, wrong in results) == 0


def test_single_leaks_are_caught_after_damage():
    rng = np.random.default_rng(7)
    results = [caught(1, "majority", rng, flip_rate=0.15) for _ in range(40)]
    assert sum(hit for hit, _ in results) >= 39
    assert sum(wrong for _, wrong in results) == 0


def test_damaged_coalition_is_caught():
    rng = np.random.default_rng(17)
    results = [caught(2, "interleave", rng, flip_rate=0.1) for _ in range(20)]
    assert sum(hit for hit, _ in results) >= 19


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_innocent_of_ten_thousand_is_accused(strategy):
    rng = np.random.default_rng(31 + STRATEGIES.index(strategy))
    biases, words = draw(3, 3, rng, tardos_length(100, 3))
    observed, sure = collude(words, strategy, rng)
    innocents = (rng.integers(0, ONE, (10_000, len(biases))) < np.array(biases)).astype(bool)
    scores = numpy_scores(biases, innocents, np.array(observed), np.array(sure))
    best = innocents[int(np.argmax(scores))].astype(int).tolist()
    (found,) = accuse(biases, {"innocent": best}, observed, confidence=sure)
    assert -found.log2_p < -math.log2(1e-6)


def test_accuse_agrees_with_its_parts_on_real_codewords():
    biases = tardos_biases(KeyStream(bytes(32), "biases"), tardos_length(10, 2), 2)
    words = {
        f"customer {i}": tardos_codeword(KeyStream(bytes([i] * 32), "codeword"), biases)
        for i in range(10)
    }
    found = accuse(biases, words, words["customer 3"])
    law = innocent_law(biases, words["customer 3"])
    assert (found[0].name, found[0].bits > 100, found[1].bits < 20) == ("customer 3", True, True)
    for item in found:
        assert item.score == tardos_scores(biases, words[item.name], words["customer 3"])
        assert item.log2_p == law.log2_tail(item.score)
        assert item.tests == 10
