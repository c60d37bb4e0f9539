"""Many p-values: charge for the tries, combine independent ones, and say one aloud."""

from __future__ import annotations

import math
from collections.abc import Sequence

from earmark.errors import UsageError
from earmark.stats.exact import checked_log2_ps, integer

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def holm(log2_ps: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's step-down adjusted p-values, as base-2 logarithms in the order given.

    Rejecting every adjusted value at most log2(alpha) keeps the probability of one or more false
    rejections below alpha, whatever the dependence.

    Args:
        log2_ps: Base-2 logarithms of valid p-values.

    Raises:
        UsageError: A value is positive, infinite or not a number.

    Source:
        Holm 1979.

    Example:
        >>> holm([-20.0, -3.0, -10.0])
        (-18.415037499278846, -3.0, -9.0)
    """
    values = checked_log2_ps(log2_ps)
    adjusted = [0.0] * len(values)
    floor = -math.inf
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        floor = max(floor, min(0.0, values[place] + math.log2(len(values) - rank)))
        adjusted[place] = floor
    return tuple(adjusted)


def bonferroni(log2_ps: Sequence[float], *, tests: int | None = None) -> tuple[float, ...]:
    """Charge every p-value for the number of tests made.

    Args:
        log2_ps: Base-2 logarithms of valid p-values.
        tests: How many keys, suspects and forms were tried, of any size; by default as many as
            there are values.

    Raises:
        UsageError: A value is no logarithm of a probability, or there are fewer tests than values.

    Example:
        >>> bonferroni([-64.0], tests=2**20)
        (-44.0,)
    """
    values = checked_log2_ps(log2_ps)
    count = len(values) if tests is None else integer("tests", tests)
    if count < max(1, len(values)) and (values or tests is not None):
        raise UsageError(f"{count} tests cannot have given {len(values)} p-values.")
    return tuple(min(0.0, value + math.log2(count)) for value in values)


def log2_combine(log2_ps: Sequence[float]) -> float:
    """Combine independent p-values by Fisher's product.

    For continuous p-values the result is exact; for discrete ones, which are never smaller than
    uniform, it is an upper bound, so it may always be used. Where all trials have the same weight,
    ``log2_sum_tail`` is sharper. Independent e-values combine by adding their logarithms.

    Args:
        log2_ps: Base-2 logarithms of independent valid p-values.

    Returns:
        log2 of the combined p-value; 0.0 for no values.

    Raises:
        UsageError: A value is no logarithm of a probability.

    Source:
        Fisher 1932, in the closed form for 2k degrees of freedom.

    Example:
        >>> round(log2_combine([-40.0, -30.0]), 3)
        -64.37
    """
    values = checked_log2_ps(log2_ps)
    product = math.fsum(values)
    if product == 0.0:
        return 0.0
    log_nats = math.log(-product * math.log(2))
    logs = [j * log_nats - math.lgamma(j + 1) for j in range(len(values))]
    top = max(logs)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logs))
    return min(0.0, product + total / math.log(2))


def log10_p(log2_p: float) -> float:
    """Turn a base-2 logarithm into a base-10 one.

    Example:
        >>> round(log10_p(-64.0), 3)
        -19.266
    """
    return log2_p * math.log10(2)


def one_in(log2_p: float, *, plain: bool = True) -> str:
    """Say a probability as "1 in N", with three significant digits at most.

    Args:
        log2_p: Base-2 logarithm of a probability.
        plain: ASCII, for terminals; otherwise with a raised exponent, for print.

    Raises:
        UsageError: The value is no logarithm of a probability.

    Example:
        >>> one_in(-42.0), one_in(-42.0, plain=False), one_in(-3.0)
        ('1 in 4.4e12', '1 in 4.4·10¹²', '1 in 8')
    """
    inverse = -checked_log2_ps([log2_p])[0]
    if inverse < math.log2(999.5):
        return f"1 in {2.0**inverse:.3g}"
    exponent, part = divmod(log10_p(inverse), 1.0)
    digits = f"{10.0**part:.3g}"
    if digits == "10":
        digits, exponent = "1", exponent + 1
    power_of_ten = str(int(exponent))
    if plain:
        return f"1 in {digits}e{power_of_ten}"
    return f"1 in {digits}·10{power_of_ten.translate(_RAISED)}"
