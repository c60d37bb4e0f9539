"""Exact binomial tails, what follows from them, and intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import accumulate

from earmark.errors import UsageError
from earmark.stats.exact import DECIMALS, LN2, binomial, decimal, log_term, real, upper_tail

_MOST_PRODUCTS = 2 * 10**6  # work allowed to one convolution


def log2_binomial_tail(hits: int, trials: int, chance: Fraction) -> float:
    """Return log2 P[X >= hits] for X ~ Binomial(trials, chance), exactly rounded.

    The term at ``hits`` comes from factorials in 60 digits, the rest of the tail from the ratio
    series in 256-bit fixed point. At or below the mean the other side is summed and complemented,
    so that results close to ``log2(1) = 0`` keep their relative precision too.

    Args:
        hits: Successes seen, 0 to ``trials``.
        trials: Independent trials, at most 10^9.
        chance: Probability of one success under the null, strictly between 0 and 1.

    Returns:
        A finite number, at most 0.0.

    Raises:
        UsageError: A count or the chance is out of range.

    Example:
        >>> log2_binomial_tail(64, 64, Fraction(1, 2))
        -64.0
        >>> round(log2_binomial_tail(719, 1024, Fraction(1, 2)), 3)
        -128.67
    """
    hits, trials, chance = binomial(hits, trials, chance)
    if hits == 0:
        return 0.0
    with localcontext(DECIMALS):
        if hits > trials * chance:
            first, series = upper_tail(hits, trials, chance)
            return float((first + series.ln()) / LN2) + 0.0
        first, series = upper_tail(trials - hits + 1, trials, 1 - chance)
        return math.log1p(-float(first.exp() * series)) / math.log(2) + 0.0


def least_hits(trials: int, chance: Fraction, bits: float) -> int | None:
    """Return the fewest hits that give at least ``bits`` bits of evidence.

    Args:
        trials: Independent trials.
        chance: Probability of one success under the null.
        bits: Evidence wanted, ``-log2(p)``.

    Returns:
        The count, or None where even ``trials`` hits are too little.

    Raises:
        UsageError: An argument is out of range.

    Example:
        >>> least_hits(1024, Fraction(1, 2), 64)
        657
        >>> least_hits(64, Fraction(1, 2), 128) is None
        True
    """
    binomial(0, trials, chance)
    bits = real("bits", bits, 0.0, math.inf)
    if log2_binomial_tail(trials, trials, chance) > -bits:
        return None
    low, high = 0, trials
    while low < high:
        middle = (low + high) // 2
        if log2_binomial_tail(middle, trials, chance) <= -bits:
            high = middle
        else:
            low = middle + 1
    return low


def power(trials: int, rate: Fraction | float, chance: Fraction, bits: float) -> float:
    """Return the probability that a mark with hit rate ``rate`` yields ``bits`` bits of evidence.

    Args:
        trials: Independent trials.
        rate: Probability of one hit where the mark is present, 0 to 1.
        chance: Probability of one hit under the null.
        bits: Evidence wanted, ``-log2(p)``.

    Returns:
        P[Binomial(trials, rate) >= least_hits(trials, chance, bits)]; 0.0 where no count suffices.

    Raises:
        UsageError: An argument is out of range.

    Example:
        >>> round(power(256, Fraction(4, 5), Fraction(1, 2), 64), 4)
        0.7976
    """
    rate = Fraction(real("rate", rate, 0.0, 1.0)) if isinstance(rate, float) else Fraction(rate)
    if not 0 <= rate <= 1:
        raise UsageError(f"The rate is {rate}.", expected="It must lie between 0 and 1.")
    needed = least_hits(trials, chance, bits)
    if needed is None or (rate == 0 and needed > 0):
        return 0.0
    return 1.0 if rate in {0, 1} else 2.0 ** log2_binomial_tail(needed, trials, rate)


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of a rate.

    Each end solves "the tail equals (1 - level) / 2" by Newton's method on the logarithm of the
    exact tail, which is concave in the logarithm of the rate, so that it cannot diverge.

    Args:
        hits: Successes seen.
        trials: Independent trials; with none, the interval is (0, 1).
        level: Coverage guaranteed, strictly between 0 and 1; read as the decimal it prints as.

    Returns:
        The lower and upper end, right to 1e-12.

    Raises:
        UsageError: An argument is out of range.

    Source:
        Clopper and Pearson 1934. Changed: solved on exact binomial tails, without beta functions.

    Example:
        >>> low, high = clopper_pearson(0, 30)
        >>> low, round(high, 4)
        (0.0, 0.1157)
    """
    hits, trials, _ = binomial(hits, trials, Fraction(1, 2))
    level = real("level", level, 0.0, 1.0)
    if level in {0.0, 1.0}:
        raise UsageError(
            f"The level is {level}.", expected="It must lie strictly between 0 and 1, like 0.95."
        )
    with localcontext(DECIMALS):
        target = ((1 - Decimal(repr(level))) / 2).ln()
        low = _rate_at(hits, trials, target) if hits else Decimal(0)
        high = 1 - _rate_at(trials - hits, trials, target) if hits < trials else Decimal(1)
        return float(low), float(high)


def log2_sum_tail(groups: Sequence[tuple[int, int, Fraction]]) -> float:
    """Return log2 P[all hits together >= those seen] over independent groups of trials.

    Groups of equal chance are pooled into one binomial. For mixed chances the laws of the groups
    are convolved with positive 60-digit numbers, so that nothing cancels.

    Args:
        groups: One (hits, trials, chance) per group.

    Returns:
        A finite number, at most 0.0; 0.0 for no groups.

    Raises:
        UsageError: A group is out of range, or the convolution is too large to be worth while.

    Example:
        >>> log2_sum_tail([(10, 10, Fraction(1, 2)), (20, 20, Fraction(1, 2))])
        -30.0
        >>> round(log2_sum_tail([(10, 10, Fraction(1, 2)), (3, 3, Fraction(1, 10))]), 6)
        -19.965784
    """
    pooled: Counter[Fraction] = Counter()
    hits = 0
    for group in groups:
        seen, trials, chance = binomial(*group)
        pooled[chance] += trials
        hits += seen
    sizes = sorted((trials, chance) for chance, trials in pooled.items() if trials)
    if hits == 0:
        return 0.0
    if len(sizes) == 1:
        return log2_binomial_tail(hits, *sizes[0])
    products, length = sum(trials for trials, _ in sizes), 1
    for trials, _ in sizes[:-1]:
        products += length * (trials + 1)
        length += trials
    if products > _MOST_PRODUCTS:
        raise UsageError(
            f"Convolving {len(sizes)} chances takes {products} products.",
            expected=f"At most {_MOST_PRODUCTS} are allowed.",
            hint="Combine the p-values of the groups with log2_combine.",
        )
    with localcontext(DECIMALS):
        law = [Decimal(1)]
        for trials, chance in sizes[:-1]:
            law = _convolve(law, _binomial_law(trials, chance))
        return min(0.0, float(_sum_tail(law, _binomial_law(*sizes[-1]), hits).ln() / LN2)) + 0.0


def _rate_at(hits: int, trials: int, target: Decimal) -> Decimal:
    """Return the rate at which ln P[X >= hits] equals ``target``, a number below ln 1/2."""
    if hits == trials:
        return (target / trials).exp()
    log_rate, step = (Decimal(hits) / trials).ln(), Decimal(1)
    while abs(step) > Decimal("1e-25"):
        rate = Fraction(Decimal(f"{log_rate.exp():.40e}"))
        first, series = upper_tail(hits, trials, rate)
        step = (first + series.ln() - target) * series / hits
        log_rate -= step
    return log_rate.exp()


def _binomial_law(trials: int, chance: Fraction) -> list[Decimal]:
    """Return P[X = 0], ..., P[X = trials]."""
    odds = decimal(chance / (1 - chance))
    law = [log_term(0, trials, chance).exp()]
    for k in range(trials):
        law.append(law[-1] * (trials - k) * odds / (k + 1))
    return law


def _convolve(first: list[Decimal], second: list[Decimal]) -> list[Decimal]:
    """Return the law of the sum of two independent counts."""
    law = [Decimal(0)] * (len(first) + len(second) - 1)
    for i, p in enumerate(first):
        for j, q in enumerate(second):
            law[i + j] += p * q
    return law


def _sum_tail(first: list[Decimal], second: list[Decimal], hits: int) -> Decimal:
    """Return P[X + Y >= hits] from the laws of X and Y."""
    tails = list(accumulate(reversed(second)))[::-1]
    tails[0] = Decimal(1)
    reachable = range(max(0, hits - len(tails) + 1), len(first))
    return sum((first[k] * tails[max(0, hits - k)] for k in reachable), start=Decimal(0))
