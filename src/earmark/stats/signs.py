"""Tails of weighted sums of signs and of other independent two-valued variables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from earmark.errors import UsageError
from earmark.stats.exact import integer

_MOST_PACKED_BITS = 1 << 33


def log2_rademacher_tail(score: int, weights: Sequence[int]) -> float:
    """Bound log2 P[sum of weight times sign >= score] over independent fair signs from above.

    Small cases are counted exactly, by multiplying the polynomials 1 + x^weight packed into one
    integer; beyond that the bound is that of ``TwoValuedSum``, some 4 bits off at 64.

    Args:
        score: The weighted sum seen.
        weights: Non-negative integers, fixed without knowledge of the signs.

    Returns:
        A number at most 0.0 and never below the true value.

    Raises:
        UsageError: A weight is negative, or no signs can give that score.

    Example:
        >>> log2_rademacher_tail(16, [1] * 16)
        -16.0
        >>> log2_rademacher_tail(4, [3, 1])
        -2.0
    """
    score = integer("score", score)
    steps = sorted(weight for weight in (integer("weight", w) for w in weights) if weight)
    if steps and steps[0] < 0:
        raise UsageError(f"A weight is {steps[0]}.", expected="Weights must not be negative.")
    total, unit = sum(steps), math.gcd(*steps) or 1
    needed = -((score + total) // -2)  # the weights of positive sign must reach this sum
    if needed > total:
        raise UsageError(f"No signs give a score of {score}.", expected=f"At most {total}.")
    if needed <= 0:
        return 0.0
    slot = len(steps) + 1
    if slot * slot * (total // unit) > _MOST_PACKED_BITS:
        half = Fraction(1, 2)
        return TwoValuedSum((step, -step, half) for step in steps).log2_tail(score)
    counts = 1
    for step in steps:
        counts += counts << (step // unit * slot)
    reached = (counts >> (-(needed // -unit) * slot)) % ((1 << slot) - 1)
    everything = 1 << len(steps)
    if 2 * reached > everything:
        return math.log1p(-((everything - reached) / everything)) / math.log(2) + 0.0
    return math.log2(reached) - len(steps)


class TwoValuedSum:
    """The upper tail of a sum of independent two-valued variables, bounded from above.

    Every term is ``up`` with its own chance and ``down`` otherwise. The bound is Chernoff's,
    P[S >= s] <= min over t > 0 of E[exp(t (S - s))], which holds for every t; t is searched on a
    geometric grid, and the rounding of floats is added on top, so that the result stays a bound.

    Args:
        terms: One (up, down, chance of up) per variable; integers of any size, chance in (0, 1).

    Raises:
        UsageError: A chance is out of range.

    Example:
        >>> law = TwoValuedSum([(1, -1, Fraction(1, 2))] * 100)
        >>> law.most, round(law.log2_tail(60), 2)
        (100, -27.8)
    """

    def __init__(self, terms: Iterable[tuple[int, int, Fraction | float]]) -> None:
        shapes: Counter[tuple[int, float]] = Counter()
        self._least = 0
        for up, down, raw in terms:
            chance = float(raw)
            if not 0.0 < chance < 1.0:
                raise UsageError(f"A chance is {raw}.", expected="It must lie between 0 and 1.")
            self._least += min(up, down)
            if up != down:
                shapes[abs(up - down), chance if up > down else float(1 - raw)] += 1
        self.most = self._least + sum(gap * count for (gap, _), count in shapes.items())
        self._unit = max((gap for gap, _ in shapes), default=1)
        self._shapes = [(gap / self._unit, p, count) for (gap, p), count in shapes.items()]
        variance = math.fsum(count * p * (1 - p) * gap * gap for gap, p, count in self._shapes)
        self._first = 2.0**-30 / math.sqrt(variance) if variance else 1.0
        self._cumulants: dict[int, float] = {}

    def log2_tail(self, score: int) -> float:
        """Return an upper bound on log2 P[sum >= score].

        Args:
            score: The sum seen; at most ``most``.

        Raises:
            UsageError: No outcome gives that score.

        Example:
            >>> law = TwoValuedSum([(5, 0, Fraction(1, 4)), (0, 7, Fraction(1, 4))])
            >>> round(law.log2_tail(12), 6)
            -2.415037
        """
        if score > self.most:
            raise UsageError(f"No outcome gives {score}.", expected=f"At most {self.most}.")
        if score <= self._least:
            return 0.0
        if score == self.most:
            sure = math.fsum(count * math.log2(p) for _, p, count in self._shapes)
            return sure * (1 - 1e-15)
        above = (score - self._least) / self._unit
        low, high = 0, 1120  # t from 2^-30 to 2^40 over the standard deviation, 16 an octave
        while low < high:
            middle = (low + high) // 2
            if self._exponent(middle + 1, above) < self._exponent(middle, above):
                low = middle + 1
            else:
                high = middle
        return min(0.0, self._exponent(low, above) / math.log(2))

    def _exponent(self, step: int, above: float) -> float:
        """Return ln E[exp(t (S - s))] at a grid step, rounding errors added."""
        t = self._first * math.pow(2.0, step / 16)
        if step not in self._cumulants:
            self._cumulants[step] = math.fsum(
                count * _log_moment(t * gap, p) for gap, p, count in self._shapes
            )
        return self._cumulants[step] - t * above * (1 - 1e-15)


def _log_moment(x: float, p: float) -> float:
    """Return ln(1 - p + p exp(x)) for x >= 0, raised by more than its rounding error.

    The derivatives by x and by ln p are at most 1, and exp and log err by a few units of 1.1e-16.
    """
    if x > 30.0:
        value = x + math.log(p) + math.log1p((1.0 - p) / p * math.exp(-x))
    else:
        value = math.log1p(p * math.expm1(x))
    return value + 1e-15 * (x - math.log(p) + 2.0)
