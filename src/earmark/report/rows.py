"""Sum up trials by attack: medians with ranges over seeds, failures counted, nothing left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from earmark.policy import Policy, judge
from earmark.records import Trial
from earmark.report.numbers import spread

Spread = tuple[float, float, float]

UNTOUCHED = "none"
"""What a trial calls the attack when there was none."""


@dataclass(frozen=True, slots=True)
class AttackRow:
    """One attack over its seeds.

    Args:
        label: Name and settings of the attack, and what else tells it from other rows.
        runs: Runs that gave evidence.
        errors: Why the other runs failed.
        shown: Runs in which the mark still reached the policy's bits.
        hits: Hits of all runs together.
        trials: Trials of all runs together.
        rate: Lowest, median and highest rate of hits of a run, in percent, or null.
        bits: Lowest, median and highest net bits, or null if no run gave evidence.
        utility: The same of the utility after the attack, or null.
        lost: The same of the utility lost, or null.
        cost: The same of the compute relative to a training, or null.
        untouched: Whether this row is the model before any attack.
    """

    label: str
    runs: int
    errors: tuple[str, ...]
    shown: int
    hits: int
    trials: int
    rate: Spread | None
    bits: Spread | None
    utility: Spread | None
    lost: Spread | None
    cost: Spread | None
    untouched: bool

    @property
    def removed(self) -> int:
        """Runs in which the mark fell below what the policy asks for."""
        return self.runs - self.shown


def summarize(trials: Sequence[Trial], policy: Policy) -> tuple[AttackRow, ...]:
    """Group trials by attack (and by scheme, host and data where these differ), in given order.

    Args:
        trials: The records.
        policy: Says how many bits count as shown.
    """
    parts = ("attack", "scheme", "host", "data")
    telling = [
        part for part in parts if part == "attack" or len({getattr(t, part) for t in trials}) > 1
    ]
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(tuple(str(getattr(trial, part)) for part in telling), []).append(trial)
    return tuple(_row(key, group, policy) for key, group in groups.items())


def _row(key: tuple[str, ...], group: Sequence[Trial], policy: Policy) -> AttackRow:
    label = "no attack" if key[0] == UNTOUCHED else key[0]
    measured = [trial for trial in group if trial.evidence is not None]
    bits = [bits_of(trial, policy) for trial in measured]
    utility = [trial.utility for trial in measured if trial.utility is not None]
    lost = [
        trial.utility_before - trial.utility
        for trial in measured
        if trial.utility is not None and trial.utility_before is not None
    ]
    cost = [trial.cost for trial in measured if trial.cost is not None]
    evidence = [trial.evidence for trial in measured if trial.evidence is not None]
    rates = [100 * item.hits / item.trials for item in evidence if item.trials]
    return AttackRow(
        label=" · ".join((label, *key[1:])),
        runs=len(measured),
        errors=tuple(trial.error for trial in group if trial.error is not None),
        shown=sum(value >= policy.bits for value in bits),
        hits=sum(item.hits for item in evidence),
        trials=sum(item.trials for item in evidence),
        rate=spread(rates) if rates else None,
        bits=spread(bits) if bits else None,
        utility=spread(utility) if utility else None,
        lost=spread(lost) if lost else None,
        cost=spread(cost) if cost else None,
        untouched=key[0] == UNTOUCHED,
    )


def bits_of(trial: Trial, policy: Policy) -> float:
    """Return a trial's net bits: as recorded, or judged anew where none were recorded."""
    if trial.bits is not None:
        return trial.bits
    return 0.0 if trial.evidence is None else judge(trial.evidence, policy).bits
