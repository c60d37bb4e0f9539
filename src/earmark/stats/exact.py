"""Numbers that every exact tail is made of: checked counts, factorials, and the ratio series.

Internal to ``earmark.stats``; everything runs inside ``localcontext(DECIMALS)``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction
from functools import lru_cache

from earmark.errors import UsageError

_FIXED = 1 << 256  # one, in the fixed point of the ratio series
_MOST_TRIALS = 10**9
_MOST_CHANCE_BITS = 1100  # any float is a fraction below this
DECIMALS = Context(
    prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation, DivisionByZero, Overflow]
)
LN2 = DECIMALS.ln(Decimal(2))
_HALF_LN_2PI = Decimal("0.918938533204672741780329736405617639861397473637783412817151540")
_STIRLING = tuple(  # B_2j / (2j (2j - 1)): from n = 256 on the first term left out is below 1e-67
    Fraction(*bernoulli) / (2 * j * (2 * j - 1))
    for j, bernoulli in enumerate(
        (
            *((1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510)),
            *((43867, 798), (-174611, 330), (854513, 138), (-236364091, 2730), (8553103, 6)),
            *((-23749461029, 870), (8615841276005, 14322)),
        ),
        start=1,
    )
)


def integer(name: str, value: int) -> int:
    """Return an integer of any integral type as int, or refuse it."""
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"The {name} is {value!r}.", expected="It must be an integer.") from None


def real(name: str, value: float, low: float, high: float) -> float:
    """Return a finite float inside its range, or refuse it."""
    if not (math.isfinite(value) and low <= value <= high):
        raise UsageError(
            f"The {name} is {value}.", expected=f"It must be finite, from {low:g} to {high:g}."
        )
    return float(value)


def binomial(hits: int, trials: int, chance: Fraction) -> tuple[int, int, Fraction]:
    """Check the arguments that every binomial question shares."""
    hits, trials = integer("hits", hits), integer("trials", trials)
    if not 0 <= hits <= trials <= _MOST_TRIALS:
        raise UsageError(
            f"There are {hits} hits in {trials} trials.",
            expected=f"0 <= hits <= trials <= {_MOST_TRIALS} must hold.",
        )
    if not isinstance(chance, Fraction):
        raise UsageError(
            f"The chance is {chance!r}.",
            expected="It must be an exact fraction.",
            hint="Write Fraction(1, 10), not 0.1.",
        )
    if not 0 < chance < 1 or chance.denominator.bit_length() > _MOST_CHANCE_BITS:
        raise UsageError(
            f"The chance is about {float(chance):.3g}.",
            expected="It must lie strictly between 0 and 1, its denominator below 2^1100.",
        )
    return hits, trials, chance


def checked_log2_ps(values: Sequence[float]) -> list[float]:
    """Check base-2 logarithms of probabilities."""
    for value in values:
        if not (math.isfinite(value) and value <= 0.0):
            raise UsageError(
                f"{value} is no base-2 logarithm of a p-value.",
                expected="It must be finite and at most 0.",
            )
    return [float(value) for value in values]


def decimal(value: Fraction) -> Decimal:
    """Return a fraction in 60 digits."""
    return Decimal(value.numerator) / Decimal(value.denominator)


@lru_cache(maxsize=4096)
def _log_factorial(n: int) -> Decimal:
    """Return ln n! to some 50 digits: from the integer itself, or by Stirling's series."""
    if n < 256:
        return Decimal(math.factorial(n)).ln()
    x = Decimal(n)
    series = sum(
        (decimal(c) / x ** (2 * j + 1) for j, c in enumerate(_STIRLING)),
        start=Decimal(0),
    )
    return (x + Decimal("0.5")) * x.ln() - x + _HALF_LN_2PI + series


def log_term(hits: int, trials: int, chance: Fraction) -> Decimal:
    """Return ln P[X = hits]."""
    ways = _log_factorial(trials) - _log_factorial(hits) - _log_factorial(trials - hits)
    powers = hits * decimal(chance).ln() + (trials - hits) * decimal(1 - chance).ln()
    return ways + powers


def upper_tail(hits: int, trials: int, chance: Fraction) -> tuple[Decimal, Decimal]:
    """Return ln P[X = hits] and P[X >= hits] / P[X = hits], for hits not below the mean."""
    up, down = chance.numerator, chance.denominator - chance.numerator
    term = total = _FIXED
    for k in range(hits, trials):
        term = term * ((trials - k) * up) // ((k + 1) * down)
        if not term:
            break
        total += term
    return log_term(hits, trials, chance), Decimal(total) / _FIXED
