"""The picture of one count: what chance gives, what was asked for, what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable

from earmark import stats
from earmark.policy import Policy
from earmark.records import Evidence
from earmark.report.labels import text_width
from earmark.report.markup import Markup, tag
from earmark.report.numbers import number

_POINTS = 120


def needed_hits(evidence: Evidence, policy: Policy, pieces: int = 1) -> int | None:
    """Return the least count that the policy would have called shown, or null if none could be.

    Args:
        evidence: A hard reading.
        policy: What is asked for.
        pieces: Pieces of evidence that were judged together.
    """
    tried = evidence.tried
    tests = max(tried.keys, policy.tried_keys) * tried.suspects * tried.forms * pieces
    return stats.least_hits(evidence.trials, evidence.chance, policy.bits + math.log2(tests))


def strip(evidence: Evidence, needed: int | None, *, narrow: bool = False) -> Markup:
    """Draw the picture as inline SVG.

    Args:
        evidence: At least one trial.
        needed: The least count that would have been shown, or null to leave the line out.
        narrow: Draw it for a phone.
    """
    width, left, base = (340.0 if narrow else 840.0), 8.0, 128.0
    span = width - 2 * left
    trials, chance = evidence.trials, float(evidence.chance)

    def x(count: float) -> float:
        return left + count / trials * span

    expected = trials * chance
    parts = [
        tag("path", d=_bell(trials, chance, x, base), class_="bell"),
        tag("line", x1=left, y1=base, x2=left + span, y2=base, class_="axis"),
        _note("0", left, base + 18, "tick", width),
        _note(f"{trials:,}", left + span, base + 18, "tick", width),
        _note(f"by chance about {number(expected)}", x(expected), base + 18, "tick", width),
    ]
    if needed is not None:
        at = x(needed)
        parts += [
            tag("line", x1=at, y1=56, x2=at, y2=base, class_="asked"),
            _note(f"asked for: {needed:,}", at, 50, "levelname asked", width),
        ]
    at = x(evidence.hits)
    parts += [
        tag("line", x1=at, y1=26, x2=at, y2=base, class_="seen"),
        tag("circle", cx=at, cy=base, r=6, class_="dot accent"),
        _note(f"seen: {evidence.hits:,} of {trials:,}", at, 18, "label strong", width),
    ]
    title = f"{evidence.hits} of {trials} answers match; by chance about {number(expected)} would."
    return tag(
        "svg",
        tag("title", title),
        *parts,
        viewBox=f"0 0 {width:g} 152",
        role="img",
        class_="strip",
    )


def _note(words: str, x: float, y: float, kind: str, width: float) -> Markup:
    """Write a centred text, pushed inwards where it would leave the picture."""
    half = text_width(words, 13.0) / 2
    if x - half < 2:
        return tag("text", words, x=2, y=y, class_=kind)
    if x + half > width - 2:
        return tag("text", words, x=width - 2, y=y, class_=f"{kind} end")
    return tag("text", words, x=x, y=y, class_=f"{kind} middle")


def _bell(trials: int, chance: float, x: Callable[[float], float], base: float) -> str:
    """Return the outline of the binomial law, its peak scaled to the picture."""
    spread = math.sqrt(trials * chance * (1 - chance))
    low = max(0.0, trials * chance - 4.5 * spread)
    high = min(float(trials), trials * chance + 4.5 * spread)
    peak = _log_law(trials * chance, trials, chance)
    path = [f"M{x(low):.1f} {base:g}"]
    for i in range(_POINTS + 1):
        count = low + (high - low) * i / _POINTS
        height = 62.0 * min(1.0, math.exp(_log_law(count, trials, chance) - peak))
        path.append(f"L{x(count):.1f} {base - height:.1f}")
    return " ".join([*path, f"L{x(high):.1f} {base:g}Z"])


def _log_law(count: float, trials: int, chance: float) -> float:
    """Return the logarithm of the binomial probability, for drawing only."""
    return (
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(chance)
        + (trials - count) * math.log1p(-chance)
    )
