"""Tables of rows, as text and as Markdown, and the sentence that matters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from earmark import stats
from earmark.policy import Policy
from earmark.records import Trial

TIGHT, WIDE = 2.0, 5.0
"""Points of utility that a thief may lose: the tight rule and the usual one of the literature."""


@dataclass(frozen=True, slots=True)
class Line:
    """One attack on one kind of subject, over its seeds.

    Args:
        group: Scheme, host and data.
        attack: Label of the attack.
        runs: Runs that gave evidence.
        failed: Runs that did not.
        lost: Utility lost, lowest, median and highest; null if nothing ran.
        bits: Net bits, the same three.
        shown: Runs in which the mark was still shown.
        interval: Clopper-Pearson interval of the rate of shown, 95 %.
        cost: Median compute relative to training, or null.
    """

    group: tuple[str, str, str]
    attack: str
    runs: int
    failed: int
    lost: tuple[float, float, float] | None
    bits: tuple[float, float, float] | None
    shown: int
    interval: tuple[float, float]
    cost: float | None

    def removed(self, *, within: float = WIDE) -> bool:
        """Tell whether the attack hid the mark in some run at an acceptable loss of utility."""
        return self.runs > self.shown and self.lost is not None and self.lost[1] <= within


def lines(trials: Sequence[Trial], policy: Policy | None = None) -> list[Line]:
    """Group trials by scheme, host, data and attack, in given order.

    Args:
        trials: The records.
        policy: Says how many bits count as shown; by default 64.
    """
    asked = policy or Policy()
    groups: dict[tuple[str, str, str, str], list[Trial]] = {}
    for trial in trials:
        key = (trial.scheme, trial.host, trial.data, trial.attack)
        groups.setdefault(key, []).append(trial)
    return [_line(key, group, asked) for key, group in groups.items()]


def _line(key: tuple[str, str, str, str], group: Sequence[Trial], policy: Policy) -> Line:
    measured = [trial for trial in group if trial.evidence is not None]
    bits = [trial.bits or 0.0 for trial in measured]
    lost = [
        trial.utility_before - trial.utility
        for trial in measured
        if trial.utility is not None and trial.utility_before is not None
    ]
    costs = [trial.cost for trial in measured if trial.cost is not None]
    shown = sum(value >= policy.bits for value in bits)
    return Line(
        group=key[:3],
        attack=key[3],
        runs=len(measured),
        failed=len(group) - len(measured),
        lost=_three(lost),
        bits=_three(bits),
        shown=shown,
        interval=stats.clopper_pearson(shown, len(measured)) if measured else (0.0, 1.0),
        cost=statistics.median(costs) if costs else None,
    )


def _three(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(values), statistics.median(values), max(values)) if values else None


HEAD = ("attack", "utility lost", "bits of evidence", "shown", "95 % interval", "cost")


def _cells(line: Line) -> tuple[str, ...]:
    shown = f"{line.shown}/{line.runs}" + (f", {line.failed} failed" if line.failed else "")
    return (
        line.attack,
        _range(line.lost, 2),
        _range(line.bits, 0),
        shown,
        f"{line.interval[0]:.2f} to {line.interval[1]:.2f}" if line.runs else "",
        "" if line.cost is None else f"{line.cost:.2f}",
    )


def _range(values: tuple[float, float, float] | None, digits: int) -> str:
    if values is None:
        return ""
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return middle if low == high else f"{middle} ({low} to {high})"


def _grouped(found: Sequence[Line]) -> dict[tuple[str, str, str], list[Line]]:
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in found:
        groups.setdefault(line.group, []).append(line)
    return groups


def text(trials: Sequence[Trial], policy: Policy | None = None) -> str:
    """Return tables for a terminal, one for each scheme, host and data set."""
    parts = []
    for group, found in _grouped(lines(trials, policy)).items():
        body = [HEAD, *(_cells(line) for line in found)]
        widths = [max(len(row[i]) for row in body) for i in range(len(HEAD))]
        table = ["  ".join(item.ljust(w) for item, w in zip(row, widths, strict=True)).rstrip()
                 for row in body]  # fmt: skip
        parts.append("\n".join([" · ".join(group), *table, sentence(found)]))
    return "\n\n".join(parts) + "\n"


def markdown(trials: Sequence[Trial], policy: Policy | None = None) -> str:
    """Return the same tables as Markdown."""
    parts = []
    for group, found in _grouped(lines(trials, policy)).items():
        rows = [HEAD, ("---",) * len(HEAD), *(_cells(line) for line in found)]
        table = ["| " + " | ".join(row) + " |" for row in rows]
        parts.append("\n".join([f"### {' · '.join(group)}", "", *table, "", sentence(found)]))
    return "\n\n".join(parts) + "\n"


def sentence(found: Sequence[Line]) -> str:
    """Say which attacks remove the mark, at what cost, or that none of these did."""
    attacks = [line for line in found if line.attack != "none" and line.runs]
    removing = sorted(
        (line for line in attacks if line.removed()),
        key=lambda line: (line.cost is None, line.cost or 0.0, line.attack),
    )
    bare = [line for line in found if line.attack == "none" and line.runs]
    if bare and not any(line.shown for line in bare):
        false = sum(line.shown for line in found)
        runs = sum(line.runs for line in found)
        return f"No mark is shown before any attack; with them, in {false} of {runs} runs."
    if not attacks:
        return "No attack was measured."
    if not removing:
        return (
            f"None of these {len(attacks)} attacks hid the mark while losing at most "
            f"{WIDE:g} points of utility."
        )
    first = removing[0]
    assert first.lost is not None
    price = "" if first.cost is None else f" and {first.cost:.0%} of the training's compute"
    others = f"; {len(removing) - 1} more do" if len(removing) > 1 else ""
    tight = sum(line.removed(within=TIGHT) for line in removing)
    return (
        f"'{first.attack}' hides the mark in {first.runs - first.shown} of {first.runs} runs, for "
        f"{first.lost[1]:.2f} points of utility{price}{others}. "
        f"Within {TIGHT:g} points: {tight} of {len(attacks)} attacks."
    )
