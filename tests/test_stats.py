from __future__ import annotations

import decimal
import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats as scipy_stats

from earmark.errors import UsageError
from earmark.stats import (
    BettingEValue,
    TwoValuedSum,
    bonferroni,
    clopper_pearson,
    holm,
    least_hits,
    log2_binomial_tail,
    log2_combine,
    log2_rademacher_tail,
    log2_sum_tail,
    log10_p,
    one_in,
    power,
)

HALF, TENTH = Fraction(1, 2), Fraction(1, 10)
CHANCES = [HALF, TENTH, Fraction(1, 1000), Fraction(99, 100), Fraction(0.3), Fraction(2, 3)]
chances = st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000)


def true_log2_tail(hits, trials, chance):
    """The tail by an 80-digit ratio series from loggamma: an independent way."""
    mp.dps = 80
    p = mpf(chance.numerator) / chance.denominator
    if hits * chance.denominator <= trials * chance.numerator:
        q = mpf(2) ** true_log2_tail(trials - hits + 1, trials, 1 - chance) if hits else mpf(0)
        return mp.log1p(-q) / mp.log(2)
    log_term = (
        mp.loggamma(trials + 1)
        - mp.loggamma(hits + 1)
        - mp.loggamma(trials - hits + 1)
        + hits * mp.log(p)
        + (trials - hits) * mp.log1p(-p)
    )
    term = total = mpf(1)
    for k in range(hits, trials):
        term *= (trials - k) * p / ((k + 1) * (1 - p))
        total += term
        if term < mpf(10) ** -75:
            break
    return (log_term + mp.log(total)) / mp.log(2)


def brute_tail(score, terms):
    """P[sum >= score] by going through every outcome; terms are (up, down, chance of up)."""
    total = Fraction(0)
    for signs in itertools.product([0, 1], repeat=len(terms)):
        value = sum(t[0] if s else t[1] for s, t in zip(signs, terms, strict=True))
        if value >= score:
            total += math.prod(
                Fraction(t[2]) if s else 1 - Fraction(t[2])
                for s, t in zip(signs, terms, strict=True)
            )
    return total


# -- binomial tails -------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", CHANCES, ids=str)
@pytest.mark.parametrize("trials", [1, 2, 20, 64, 1024, 100_000])
def test_tail_agrees_with_80_digits(trials, chance):
    mean, spread = float(trials * chance), math.sqrt(float(trials * chance * (1 - chance)))
    zs = (-40, -8, -3, -1, -0.1, 0, 0.1, 1, 3, 8, 36)[:: 1 if trials < 10_000 else 3]
    places = {round(mean + z * spread) for z in zs}
    places |= {0, 1, trials - 1, trials, math.floor(mean)}
    for hits in sorted(place for place in places if 0 <= place <= trials):
        ours, truth = log2_binomial_tail(hits, trials, chance), true_log2_tail(hits, trials, chance)
        assert math.isfinite(ours)
        assert ours <= 0.0
        assert math.copysign(1, ours) < 0 or ours == 0.0
        # relative in p down to 2^-1000; correctly rounded log2 p beyond; relative in log2 p near 0
        assert abs(ours - truth) <= max(1e-12, 4e-16 * abs(truth))
        assert abs(ours - truth) <= 1e-14 * abs(truth) + 1e-300


@pytest.mark.parametrize(
    ("hits", "trials", "chance"),
    [
        (510_000, 10**6, HALF),
        (10**6, 10**6, TENTH),
        (510_000_000, 10**9, HALF),
        (4_976_300, 10**7, HALF),
        (3, 10**9, Fraction(1, 10**12)),
        (5, 10, Fraction(2.0**-1074)),
        (10, 10, 1 - Fraction(1, 2**60)),
        (9, 10, 1 - Fraction(1, 2**60)),
    ],
)
def test_tail_at_extremes(hits, trials, chance):
    truth = true_log2_tail(hits, trials, chance)
    assert abs(log2_binomial_tail(hits, trials, chance) - truth) <= 1e-14 * abs(truth)


def test_tail_that_rounds_to_certainty_is_a_clean_zero():
    tail = log2_binomial_tail(1, 10**6, HALF)
    assert (tail, math.copysign(1, tail)) == (0.0, 1.0)
    assert log2_binomial_tail(0, 0, HALF) == 0.0


def test_tail_agrees_with_scipy():
    for trials, chance in [(1024, HALF), (200, TENTH), (5000, Fraction(1, 1000))]:
        for hits in range(1, trials // 2, 37):
            theirs = scipy_stats.binom.logsf(hits - 1, trials, float(chance)) / math.log(2)
            if theirs > -900:
                assert log2_binomial_tail(hits, trials, chance) == pytest.approx(theirs, rel=1e-9)


@given(st.integers(1, 40), chances, st.data())
@settings(max_examples=60, deadline=None)
def test_tail_agrees_with_fractions(trials, chance, data):
    hits = data.draw(st.integers(0, trials))
    exact = sum(
        math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k)
        for k in range(hits, trials + 1)
    )
    assert 2.0 ** log2_binomial_tail(hits, trials, chance) == pytest.approx(float(exact), rel=1e-13)


@given(st.integers(1, 3000), chances, st.data())
@settings(max_examples=60, deadline=None)
def test_tail_is_monotone_bounded_and_complements(trials, chance, data):
    hits = data.draw(st.integers(1, trials))
    tail = log2_binomial_tail(hits, trials, chance)
    assert tail <= log2_binomial_tail(hits - 1, trials, chance)
    assert tail >= log2_binomial_tail(hits, trials, chance / 2)
    assert tail <= log2_binomial_tail(min(hits, trials), trials + 1, chance)
    assert trials * math.log2(chance) * (1 + 1e-12) <= tail <= 0.0
    below = log2_binomial_tail(trials - hits + 1, trials, 1 - chance)
    assert 2.0**tail + 2.0**below == pytest.approx(1.0, abs=1e-13)


def test_tail_ignores_the_callers_decimal_context():
    before = log2_binomial_tail(700, 1024, TENTH)
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 3, -5, 5
        assert log2_binomial_tail(700, 1024, TENTH) == before
        assert decimal.getcontext().prec == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 10, HALF),
        (11, 10, HALF),
        (0, -1, HALF),
        (0, 10**9 + 1, HALF),
        (1.5, 10, HALF),
        (1, "10", HALF),
        (1, 10, 0.5),
        (1, 10, Fraction(0)),
        (1, 10, Fraction(1)),
        (1, 10, Fraction(3, 2)),
        (1, 10, Fraction(1, 3**2000)),
    ],
)
def test_tail_refuses_nonsense(arguments):
    with pytest.raises(UsageError):
        log2_binomial_tail(*arguments)
    with pytest.raises(UsageError):
        log2_sum_tail([arguments])


def test_tail_takes_numpy_counts():
    assert log2_binomial_tail(np.int32(1024), np.int64(1024), HALF) == -1024.0


# -- thresholds and intervals ---------------------------------------------------------------------

TABLE = {  # trials, chance -> least hits at 1e-6, 2^-40, 2^-64, 2^-128
    (64, 2): (51, 59, 64, None),
    (128, 2): (92, 104, 113, 128),
    (256, 2): (167, 184, 200, 227),
    (512, 2): (311, 336, 358, 400),
    (1024, 2): (589, 625, 657, 719),
    (20, 10): (11, 16, 20, None),
    (50, 10): (18, 26, 32, 45),
    (100, 10): (28, 37, 46, 65),
    (200, 10): (44, 56, 68, 93),
}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_least_hits_table(case):
    bits = (-math.log2(1e-6), 40, 64, 128)
    assert tuple(least_hits(case[0], Fraction(1, case[1]), b) for b in bits) == TABLE[case]


@given(st.integers(0, 500), chances, st.floats(0, 300))
@settings(max_examples=40, deadline=None)
def test_least_hits_is_least(trials, chance, bits):
    hits = least_hits(trials, chance, bits)
    if hits is None:
        assert log2_binomial_tail(trials, trials, chance) > -bits
    else:
        assert log2_binomial_tail(hits, trials, chance) <= -bits
        assert hits == 0 or log2_binomial_tail(hits - 1, trials, chance) > -bits


@pytest.mark.parametrize("bits", [-1.0, math.nan, math.inf])
def test_least_hits_refuses_nonsense(bits):
    with pytest.raises(UsageError):
        least_hits(10, HALF, bits)


def test_power():
    needed = least_hits(256, HALF, 64)
    for rate in (0.6, 0.75, 0.8, 0.99):
        expected = scipy_stats.binom.sf(needed - 1, 256, rate)
        assert power(256, rate, HALF, 64) == pytest.approx(expected, rel=1e-9)
    assert power(256, Fraction(3, 4), HALF, 64) == power(256, 0.75, HALF, 64)
    assert power(64, 0.99, HALF, 128) == 0.0
    assert power(64, 1.0, HALF, 64) == 1.0
    assert power(64, 0, HALF, 64) == 0.0
    assert power(64, 0, HALF, 0) == 1.0
    for rate in (-0.1, 1.1, math.nan, Fraction(3, 2)):
        with pytest.raises(UsageError):
            power(64, rate, HALF, 64)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99, 0.999999])
@pytest.mark.parametrize(
    ("hits", "trials"),
    [
        *((0, 1), (1, 1), (1, 2), (0, 30), (7, 30), (30, 30), (1, 1024), (700, 1024)),
        *((1023, 1024), (3, 100_000), (51_437, 100_000)),
    ],
)
def test_interval_agrees_with_scipy(hits, trials, level):
    theirs = scipy_stats.binomtest(hits, trials).proportion_ci(level, method="exact")
    ours = clopper_pearson(hits, trials, level)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12, rel=1e-9)


def test_interval_ends_solve_the_exact_equations():
    low, high = clopper_pearson(12, 10**6)
    below = true_log2_tail(12, 10**6, Fraction(low))
    above = true_log2_tail(10**6 - 12, 10**6, 1 - Fraction(high))
    assert float(below) == pytest.approx(math.log2(0.025), abs=1e-12)
    assert float(above) == pytest.approx(math.log2(0.025), abs=1e-12)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_interval_refuses_nonsense(level):
    with pytest.raises(UsageError):
        clopper_pearson(1, 2, level)


# -- many p-values --------------------------------------------------------------------------------


@given(st.lists(st.floats(-200, 0), max_size=8))
def test_holm_is_the_step_down_rule(values):
    adjusted = holm(values)
    for i, value in enumerate(values):
        worst = max(
            min(0.0, other + math.log2(sum(v >= other for v in values)))
            for other in values
            if other <= value
        )
        assert adjusted[i] == pytest.approx(worst, abs=1e-12)
        assert value <= adjusted[i] <= min(0.0, bonferroni(values)[i]) + 1e-12


def test_bonferroni():
    assert bonferroni([]) == ()
    assert bonferroni([-10.0, -1.0]) == (-9.0, 0.0)
    assert bonferroni([-100.0], tests=2**70) == (-30.0,)
    for tests in (0, 1, 1.5):
        with pytest.raises(UsageError):
            bonferroni([-1.0, -2.0], tests=tests)
    with pytest.raises(UsageError):
        bonferroni([], tests=0)


@pytest.mark.parametrize("value", [0.1, math.nan, -math.inf, math.inf])
def test_no_logarithm_of_a_probability(value):
    for function in (holm, bonferroni, log2_combine):
        with pytest.raises(UsageError):
            function([-1.0, value])
    with pytest.raises(UsageError):
        one_in(value)


def test_combine_is_fishers_product():
    for values in ([-3.0], [-1.0, -2.0, -5.5], [-20.0] * 7, [0.0, -10.0]):
        theirs = scipy_stats.combine_pvalues([2.0**v for v in values], "fisher").pvalue
        assert log2_combine(values) == pytest.approx(math.log2(theirs), rel=1e-9)
    assert log2_combine([]) == 0.0
    assert log2_combine([0.0, 0.0]) == 0.0
    assert -100_000 < log2_combine([-1000.0] * 100) < -98_000
    assert log2_combine([-0.001] * 50) <= 0.0


def test_combine_is_valid_for_discrete_values():
    laws = []
    for trials, chance in [(6, HALF), (5, TENTH), (4, Fraction(1, 3))]:
        tails = [log2_binomial_tail(h, trials, chance) for h in range(trials + 1)]
        laws.append(
            [(scipy_stats.binom.pmf(h, trials, float(chance)), tails[h]) for h in range(trials + 1)]
        )
    outcomes = [
        (math.prod(p for p, _ in combo), log2_combine([t for _, t in combo]))
        for combo in itertools.product(*laws)
    ]
    for _, level in outcomes:
        assert sum(p for p, value in outcomes if value <= level) <= 2.0**level * (1 + 1e-9)


# -- sums over groups -----------------------------------------------------------------------------


def test_sum_tail_pools_equal_chances():
    assert log2_sum_tail([]) == 0.0
    assert log2_sum_tail([(0, 5, HALF), (0, 7, TENTH)]) == 0.0
    assert log2_sum_tail([(50, 60, HALF), (60, 80, HALF)]) == log2_binomial_tail(110, 140, HALF)
    assert log2_sum_tail([(50, 60, HALF), (0, 0, TENTH)]) == log2_binomial_tail(50, 60, HALF)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), chances), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_sum_tail_agrees_with_enumeration(raw):
    groups = [(min(a, b), max(a, b), chance) for a, b, chance in raw]
    hits = sum(group[0] for group in groups)
    law = {0: Fraction(1)}
    for _, trials, chance in groups:
        for _ in range(trials):
            grown: dict[int, Fraction] = {}
            for count, p in law.items():
                grown[count] = grown.get(count, 0) + p * (1 - chance)
                grown[count + 1] = grown.get(count + 1, 0) + p * chance
            law = grown
    exact = sum(p for count, p in law.items() if count >= hits)
    assert 2.0 ** log2_sum_tail(groups) == pytest.approx(float(exact), rel=1e-12)


def test_sum_tail_reaches_far_out():
    groups = [(900, 1024, HALF), (180, 200, TENTH), (40, 50, Fraction(1, 5))]
    law = np.array([1], dtype=object)  # exact integers over the product of all denominators
    for _, n, p in groups:
        up, down = p.numerator, p.denominator - p.numerator
        ways = [math.comb(n, k) * up**k * down ** (n - k) for k in range(n + 1)]
        law = np.convolve(law, np.array(ways, dtype=object))
    truth = math.log2(sum(law[1120:])) - 1024 - 200 * math.log2(10) - 50 * math.log2(5)
    assert log2_sum_tail(groups) == pytest.approx(truth, abs=1e-10)
    assert truth < -700


def test_sum_tail_refuses_endless_work():
    with pytest.raises(UsageError, match="log2_combine"):
        log2_sum_tail([(1, 10**6, HALF), (1, 10**6, TENTH)])


# -- weighted signs -------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), max_size=9), st.data())
@settings(max_examples=60, deadline=None)
def test_rademacher_agrees_with_enumeration(weights, data):
    total = sum(weights)
    score = data.draw(st.integers(-total - 2, total))
    exact = brute_tail(score, [(w, -w, HALF) for w in weights])
    if exact == 0:  # between the largest sum and the next one below, parity leaves no outcome
        with pytest.raises(UsageError):
            log2_rademacher_tail(score, weights)
    else:
        ours = log2_rademacher_tail(score, weights)
        assert ours == pytest.approx(math.log2(exact), abs=1e-13)
        bound = TwoValuedSum((w, -w, HALF) for w in weights).log2_tail(score)
        assert math.log2(exact) - 1e-13 <= bound <= 0.0


def test_rademacher_at_sixteen_weights_by_numpy():
    rng = np.random.default_rng(5)
    signs = 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1) - 1
    for scale in (5, 1000, 10**6):
        weights = rng.integers(0, scale, 16)
        sums = signs @ weights
        for score in (int(s) for s in np.quantile(sums, [0.1, 0.5, 0.9, 0.999, 1.0])):
            exact = math.log2(np.mean(sums >= score))
            ours = log2_rademacher_tail(score, weights)
            assert exact - 1e-12 <= ours <= exact + 4.5
            assert scale > 1000 or ours == pytest.approx(exact, abs=1e-12)


def test_rademacher_bound_is_near_the_truth():
    weights = [1 + i % 7 for i in range(512)]
    score = int(9.3 * math.sqrt(sum(w * w for w in weights)))
    exact = log2_rademacher_tail(score, weights)
    scaled = [weight * 10**9 + 1 for weight in weights]  # too fine to count: bounded
    bound = log2_rademacher_tail(score * 10**9 + 512, scaled)
    assert -72 < exact < -60
    assert exact < bound < exact + 5.5


def test_rademacher_edges():
    assert log2_rademacher_tail(0, []) == 0.0
    assert log2_rademacher_tail(-10, [1, 2, 3]) == 0.0
    assert log2_rademacher_tail(12, [4, 0, 8]) == -2.0
    assert log2_rademacher_tail(10**400, [10**400]) == -1.0
    assert -8.1 < log2_rademacher_tail(8 * 10**400, [10**400] * 8 + [1] * 2) <= -8.0 + 1e-9
    for score, weights in [(1, []), (7, [1, 2, 3]), (1, [-1, 2]), (1.5, [2]), (1, [0.5])]:
        with pytest.raises(UsageError):
            log2_rademacher_tail(score, weights)


@given(
    st.lists(
        st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 2**10 - 1)),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_two_valued_sum_bounds_the_tail(raw, data):
    terms = [(up, down, p / 2**10) for up, down, p in raw]
    law = TwoValuedSum(terms)
    assert law.most == sum(max(up, down) for up, down, _ in terms)
    score = data.draw(st.integers(law.most - 60, law.most))
    exact = brute_tail(score, terms)
    assert exact > 0
    assert math.log2(exact) - 1e-13 <= law.log2_tail(score) <= 0.0


def test_two_valued_sum_edges():
    assert TwoValuedSum([]).log2_tail(0) == 0.0
    assert TwoValuedSum([(3, 3, 0.5)]).log2_tail(3) == 0.0
    rare = TwoValuedSum([(1, 0, 1e-9)] * 50)
    assert -math.inf < rare.log2_tail(50) == pytest.approx(50 * math.log2(1e-9))
    truth = true_log2_tail(40, 50, Fraction(1e-9))
    assert truth <= rare.log2_tail(40) < truth + 5
    with pytest.raises(UsageError):
        rare.log2_tail(51)
    for chance in (0.0, 1.0, -1, math.nan):
        with pytest.raises(UsageError):
            TwoValuedSum([(1, 0, chance)])


def test_two_valued_sum_is_monotone():
    law = TwoValuedSum([(3, -1, 0.25), (1, -2, 0.6)] * 40)
    tails = [law.log2_tail(score) for score in range(-130, law.most + 1)]
    assert tails[0] == 0.0
    assert all(a >= b for a, b in itertools.pairwise(tails))


# -- evidence in steps ----------------------------------------------------------------------------


def log2_e(hits, trials, chance=HALF):
    return BettingEValue.from_counts(hits, trials, chance).log2_e


@pytest.mark.parametrize("chance", [HALF, TENTH, Fraction(7, 8)], ids=str)
def test_e_value_is_the_mixture_integral(chance):
    mp.dps = 30
    q = mpf(chance.numerator) / chance.denominator
    for hits, trials in [(0, 0), (0, 9), (5, 9), (9, 9), (40, 60)]:
        parts = [
            mp.betainc(hits + 1, trials - hits + 1, q, 1),
            q**-hits * (1 - q) ** (hits - trials - 1),
        ]
        ratio = mp.fprod(parts)
        assert log2_e(hits, trials, chance) == pytest.approx(float(mp.log(ratio, 2)), abs=1e-12)


@pytest.mark.parametrize("chance", [HALF, TENTH], ids=str)
def test_e_value_has_mean_one_under_the_null(chance):
    for trials in range(1, 15):
        law = [
            math.comb(trials, h) * float(chance) ** h * float(1 - chance) ** (trials - h)
            for h in range(trials + 1)
        ]
        mean = math.fsum(p * 2.0 ** log2_e(h, trials, chance) for h, p in enumerate(law))
        assert mean == pytest.approx(1.0, abs=1e-12)


@given(st.integers(0, 400), chances, st.data())
@settings(max_examples=40, deadline=None)
def test_e_value_is_a_martingale(trials, chance, data):
    hits = data.draw(st.integers(0, trials))
    now = log2_e(hits, trials, chance)
    hit = 2.0 ** (log2_e(hits + 1, trials + 1, chance) - now)
    miss = 2.0 ** (log2_e(hits, trials + 1, chance) - now)
    assert float(chance) * hit + float(1 - chance) * miss == pytest.approx(1.0, abs=1e-10)


def e_table(trials):
    """log2 of the e-value at 1/2 for all counts, by SciPy."""
    n, h = np.meshgrid(np.arange(trials + 1), np.arange(trials + 1), indexing="ij")
    with np.errstate(invalid="ignore", divide="ignore"):
        above = scipy_stats.binom.logcdf(h, n + 1, 0.5)
        term = scipy_stats.binom.logpmf(h, n, 0.5) + np.log((n + 1) / 2)
        return (above - term) / math.log(2)


def test_ville_by_exact_recursion():
    trials = 256
    table = e_table(trials)
    for hits, n in [(0, 1), (100, 200), (131, 256), (256, 256), (180, 256)]:
        assert table[n, hits] == pytest.approx(log2_e(hits, n), abs=1e-9)
    for bits in (1, 3, 6, 10):
        alive, crossed = np.array([1.0]), 0.0
        for n in range(1, trials + 1):
            alive = (np.append(alive, 0.0) + np.append(0.0, alive)) / 2
            over = table[n, : n + 1] >= bits
            crossed += alive[over].sum()
            alive[over] = 0.0
        assert 0.0 < crossed <= 2.0**-bits


def test_ville_by_simulation():
    trials, runs = 200, 100_000
    rng = np.random.default_rng(20)
    table = e_table(trials)
    hits, best = np.zeros(runs, dtype=int), np.zeros(runs)
    for n in range(1, trials + 1):
        hits += rng.integers(0, 2, runs)
        np.maximum(best, table[n, hits], out=best)
    for bits in range(1, 11):
        bound = 2.0**-bits
        assert np.mean(best >= bits) <= bound + 4 * math.sqrt(bound / runs)


def test_e_value_in_steps():
    evidence, looks = BettingEValue(HALF), []
    for hit in [True] * 12 + [False] * 30:
        evidence.update(hit)
        looks.append(evidence.log2_e)
    assert evidence.log2_e == log2_e(12, 42)
    assert evidence.bits() == max(looks) == looks[11] > evidence.log2_e
    assert "bits=9.30" in repr(evidence)
    assert (evidence.hits, evidence.trials) == (12, 42)
    assert BettingEValue.from_counts(12, 42, HALF).bits() == 0.0
    with pytest.raises(UsageError):
        evidence.add(3, 2)
    with pytest.raises(UsageError):
        BettingEValue(0.5)


def test_e_value_grows_with_the_mark():
    gross = -log2_binomial_tail(922, 1024, HALF)
    assert gross - 12 < log2_e(922, 1024) < gross


# -- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log2_p", "plain", "printed"),
    [
        (0.0, "1 in 1", "1 in 1"),
        (-math.log2(1.25), "1 in 1.25", "1 in 1.25"),
        (-math.log2(20), "1 in 20", "1 in 20"),
        (-math.log2(999.4), "1 in 999", "1 in 999"),
        (-math.log2(999.6), "1 in 1e3", "1 in 1·10³"),
        (-20.0, "1 in 1.05e6", "1 in 1.05·10⁶"),
        (-math.log2(4.4e12), "1 in 4.4e12", "1 in 4.4·10¹²"),
        (-math.log2(9.999e12), "1 in 1e13", "1 in 1·10¹³"),
        (-100_000.0, "1 in 9.99e30102", "1 in 9.99·10³⁰¹⁰²"),
    ],
)
def test_one_in(log2_p, plain, printed):
    assert one_in(log2_p) == plain
    assert one_in(log2_p, plain=False) == printed


def test_log10():
    assert log10_p(math.log2(1e-6)) == pytest.approx(-6.0)


def test_needs_the_standard_library_alone():
    heavy = "{'numpy', 'scipy', 'torch'}"
    code = f"import sys, earmark.stats, earmark.keys.codes, earmark.keys.tracing; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
