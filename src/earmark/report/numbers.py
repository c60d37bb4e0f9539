"""Write numbers as the report writes them: three significant digits, intervals, no certainty.

Counts stand exactly. A rate that would round to 0 or to the whole says "all", "none", "more than"
or "less than" instead, because no finite test shows certainty.
"""

from __future__ import annotations

import math
from datetime import datetime
from functools import lru_cache

from earmark import stats
from earmark.wording import counted

MINUS = "−"
THIN = "\u202f"  # a narrow no-break space between number and unit


def number(value: float, *, digits: int = 3) -> str:
    """Write a number with so many significant digits, or as a whole one if it needs more.

    Example:
        >>> number(0.012345), number(91.163), number(1017.4), number(-0.5)
        ('0.0123', '91.2', '1,017', '−0.5')
    """
    if value == 0 or not math.isfinite(value):
        return "unknown" if value else "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    written = f"{abs(value):,.{places}f}"
    if "." in written:
        written = written.rstrip("0").rstrip(".")
    return (MINUS if value < 0 and written != "0" else "") + written


def fixed(value: float, places: int) -> str:
    """Write a number with so many decimals, so that a column lines up.

    Example:
        >>> fixed(91.5, 2), fixed(-0.001, 2), fixed(1234.5, 0)
        ('91.50', '0.00', '1,234')
    """
    if not math.isfinite(value):
        return "unknown"
    written = f"{abs(value):,.{places}f}"
    return (MINUS if value < 0 and float(written.replace(",", "")) else "") + written


def bits(value: float) -> str:
    """Write bits of evidence: whole from 100 on, else to the tenth.

    Example:
        >>> bits(1017.4), bits(63.96), bits(0.426)
        ('1,017', '64.0', '0.4')
    """
    return fixed(value, 0 if value >= 99.95 else 1)


def log10_p(value: float) -> str:
    """Write the common logarithm of a probability.

    Example:
        >>> log10_p(-12.64), log10_p(-0.0)
        ('−12.6', '0')
    """
    return "0" if value == 0 else fixed(value, 1)


def signed(value: float) -> str:
    """Write a difference with its sign.

    Example:
        >>> signed(0.42), signed(-6.83), signed(0.0)
        ('+0.42', '−6.83', '0')
    """
    written = number(value)
    return written if value <= 0 or written == "0" else f"+{written}"


def rate(part: int, whole: int) -> str:
    """Write a rate in percent; the ends are words.

    Example:
        >>> rate(1, 3), rate(0, 9), rate(9, 9), rate(99999, 100000)
        ('33.3\u202f%', 'none', 'all', '> 99.9\u202f%')
    """
    if whole == 0:
        return "none tried"
    if part in {0, whole}:
        return "all" if part else "none"
    share = part / whole
    return percent(share) if share > 0.9994 or share < 0.001 else f"{fixed(100 * share, 1)}{THIN}%"


def percent(share: float) -> str:
    """Write a share strictly between 0 and 1 in percent, never as all or nothing.

    Example:
        >>> percent(0.5), percent(0.9999), percent(0.0001)
        ('50\u202f%', '> 99.9\u202f%', '< 0.1\u202f%')
    """
    if share > 0.9994:
        return f"> 99.9{THIN}%"
    if share < 0.001:
        return f"< 0.1{THIN}%"
    return f"{number(100 * share)}{THIN}%"


@lru_cache(maxsize=4096)
def interval(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Clopper-Pearson interval of a rate; a page asks for some of them often."""
    return stats.clopper_pearson(hits, trials)


def rate_interval(hits: int, trials: int) -> str:
    """Write the 95 % Clopper-Pearson interval of a rate, in percent.

    Example:
        >>> rate_interval(507, 512), rate_interval(512, 512), rate_interval(0, 0)
        ('97.7 to 99.7\u202f%', '≥ 99.2\u202f%', 'unknown')
    """
    if trials == 0:
        return "unknown"
    low, high = interval(hits, trials)
    if hits == trials:
        return f"≥ {math.floor(low * 1000) / 10:.1f}{THIN}%"
    if hits == 0:
        return f"≤ {math.ceil(high * 1000) / 10:.1f}{THIN}%"
    ends = (math.floor(low * 1000) / 10, min(99.9, math.ceil(high * 1000) / 10))
    return f"{ends[0]:.1f} to {ends[1]:.1f}{THIN}%"


def probability(value: float) -> str:
    """Write the probability that a test shows what is there.

    Example:
        >>> probability(1.0), probability(0.5), probability(0.0)
        ('> 0.999', '0.5', '< 0.001')
    """
    if value > 0.9994:
        return "> 0.999"
    return "< 0.001" if value < 0.001 else number(value)


def chance(bits: float) -> str:
    """Write bits of evidence as a chance.

    Example:
        >>> chance(42.0), chance(0.0)
        ('1 in 4.4·10¹²', '1 in 1')
    """
    return stats.one_in(-max(0.0, bits), plain=False)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return lowest, median and highest of some values.

    Example:
        >>> spread([3.0, 1.0, 2.0, 9.0])
        (1.0, 2.5, 9.0)
    """
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return ordered[0], median, ordered[-1]


def seconds_of(when: str) -> float:
    """Return a record's time as seconds since 1970."""
    return datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()


def day(when: str) -> str:
    """Write a record's time to the minute, in UTC.

    Example:
        >>> day("2027-02-11T09:30:00Z")
        '2027-02-11 09:30 UTC'
    """
    return f"{when[:10]} {when[11:16]} UTC"


def duration(seconds: float) -> str:
    """Write a length of time in its natural unit.

    Example:
        >>> duration(143 * 86400), duration(90), duration(1), duration(7200)
        ('143 days', '90 seconds', '1 second', '2 hours')
    """
    for unit, size in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 2 * size:
            return counted(int(seconds / size), unit)
    return counted(int(seconds), "second")
