"""Averaging over orders: the bound holds, for one order and for orders that share the triggers."""

from __future__ import annotations

import importlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from earmark import stats
from earmark.schemes import refit

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def averaged_bits(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("mtlsign_orders").averaged_bits


@pytest.mark.parametrize("trials", [56, 896])
def test_the_average_never_claims_more_than_one_orders_exact_tail(averaged_bits, trials):
    for hits in range(trials + 1):
        exact = -stats.log2_binomial_tail(hits, trials, Fraction(1, 2))
        assert averaged_bits(hits / trials, trials) <= exact + 1e-9


def test_an_average_over_orders_of_random_labels_stays_within_the_bound(averaged_bits):
    """Orders of one set of triggers; a reading of b bits comes up at most in 2 ** -b of draws."""
    draw = np.random.default_rng(3)
    features = {"fc": draw.normal(size=(128, 8))}
    labels = draw.choice([-1.0, 1.0], size=(128, 4000))
    tallies = [refit.tally(features, labels, draw.permutation(128)) for _ in range(5)]
    rates = sum(one.hits for one in tallies) / 5 / tallies[0].trials
    bits = np.array([averaged_bits(float(rate), tallies[0].trials) for rate in rates])
    for level in (1, 2, 4, 6):
        assert np.mean(bits >= level) <= 2.0**-level
