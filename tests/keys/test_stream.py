"""Keyed streams: frozen vectors, exact uniformity, independence of labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.errors import UsageError
from earmark.keys.stream import KeyStream, derive, public_stream

VECTORS = Path(__file__).with_name("vectors.json")


def current() -> dict:
    secret = bytes(range(32))
    return {
        "derive": derive(secret, "vector", salt=b"salt", size=48).hex(),
        "bytes": KeyStream(secret, "vector").bytes(64).hex(),
        "salted": KeyStream(secret, "vector", salt=bytes(32)).bytes(32).hex(),
        "bits": KeyStream(secret, "bits").bits(37),
        "signs": KeyStream(secret, "signs").signs(11),
        "integers": KeyStream(secret, "integers").integers(12, 1000),
        "wide": KeyStream(secret, "wide").integer(10**30),
        "permutation": KeyStream(secret, "permutation").permutation(20),
        "sample": KeyStream(secret, "sample").sample(8, 10**6),
        "public": public_stream("vector", b"a", b"bc").bytes(32).hex(),
    }


def test_vectors_never_change() -> None:
    assert current() == json.loads(VECTORS.read_text())


def test_reading_in_pieces_gives_the_same_stream() -> None:
    whole = KeyStream(bytes(32), "pieces").bytes(5000)
    stream = KeyStream(bytes(32), "pieces")
    assert b"".join(stream.bytes(n) for n in (0, 1, 7, 300, 2000, 2692)) == whole


def test_large_reads_equal_small_ones() -> None:
    stream = KeyStream(bytes(32), "large")
    large = KeyStream(bytes(32), "large").bytes(3 << 20)
    assert b"".join(stream.bytes(1 << 19) for _ in range(6)) == large


@given(st.integers(1, 300), st.integers(0, 2**32))
def test_integers_stay_below(below, seed) -> None:
    stream = KeyStream(seed.to_bytes(32, "big"), "x")
    assert all(0 <= value < below for value in stream.integers(20, below))


def test_rejection_leaves_no_bias() -> None:
    counts = Counter(KeyStream(bytes(32), "bias").integers(60_000, 6))
    chi = sum((counts[i] - 10_000) ** 2 / 10_000 for i in range(6))
    assert chi < 25  # 5 degrees of freedom; p < 2e-4 beyond


def test_bits_are_fair() -> None:
    ones = sum(KeyStream(bytes(32), "fair").bits(100_000))
    assert abs(ones - 50_000) < 800  # five standard deviations


@given(st.integers(0, 200), st.integers(0, 2**32))
def test_permutations_and_samples(count, seed) -> None:
    secret = seed.to_bytes(32, "big")
    assert sorted(KeyStream(secret, "p").permutation(count)) == list(range(count))
    taken = KeyStream(secret, "s").sample(count // 2, count)
    assert len(set(taken)) == count // 2
    assert all(0 <= item < count for item in taken)


def test_permutations_are_uniform() -> None:
    stream = KeyStream(bytes(32), "uniform")
    counts = Counter(tuple(stream.permutation(3)) for _ in range(6000))
    assert len(counts) == 6
    assert max(counts.values()) - min(counts.values()) < 250


def test_labels_and_salts_separate() -> None:
    secret = bytes(32)
    outputs = {
        KeyStream(secret, label, salt=salt).bytes(16)
        for label in ("a", "b")
        for salt in (b"", b"x", b"y")
    }
    assert len(outputs) == 6


def test_public_parts_cannot_be_confused() -> None:
    assert public_stream("l", b"ab", b"c").bytes(8) != public_stream("l", b"a", b"bc").bytes(8)


@pytest.mark.parametrize(
    "act",
    [
        lambda: derive(b"short", "x"),
        lambda: KeyStream(bytes(32), "x").integer(0),
        lambda: KeyStream(bytes(32), "x").bytes(-1),
        lambda: KeyStream(bytes(32), "x").sample(3, 2),
    ],
)
def test_bad_calls(act) -> None:
    with pytest.raises(UsageError):
        act()


def test_repr_is_silent() -> None:
    assert repr(KeyStream(bytes(32), "x")) == "KeyStream(<secret>)"
