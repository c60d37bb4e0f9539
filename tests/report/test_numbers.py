from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.report import numbers


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_float_can_be_written(value):
    for write in (numbers.number, lambda v: numbers.fixed(v, 2), numbers.signed):
        assert write(value)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_no_rate_is_ever_said_to_be_certain(hits, more):
    trials = hits + more
    said = numbers.rate(hits, trials) + " " + numbers.rate_interval(hits, trials)
    assert "100" not in said
    assert not said.startswith("0 ")
    assert "nan" not in said


@given(st.floats(0, 1))
def test_no_probability_is_ever_said_to_be_certain(value):
    assert numbers.probability(value) not in {"0", "1"}
    assert not numbers.percent(value).startswith(("0\u202f", "100"))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 300))
def test_an_interval_holds_its_rate_and_is_rounded_outwards(hits, more):
    trials = hits + more
    said = numbers.rate_interval(hits, trials).replace("\u202f%", "")
    if more and " to " in said:
        low, high = (float(part) for part in said.split(" to "))
        assert low <= 100 * hits / trials <= high


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (-0.0004, "−0.0004"),
        (999.6, "1,000"),
        (12345.6, "12,346"),
        (math.inf, "unknown"),
    ],
)
def test_number(value, said):
    assert numbers.number(value) == said


def test_spread_is_lowest_median_highest():
    assert numbers.spread([5.0]) == (5.0, 5.0, 5.0)
    assert numbers.spread([4.0, 1.0, 3.0]) == (1.0, 3.0, 4.0)
