"""The one place that decides: evidence and a policy go in, a verdict comes out. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from earmark import stats
from earmark.errors import UsageError
from earmark.records import Evidence, Layout, Outcome, Record, Verdict

LEVELS: tuple[tuple[str, float], ...] = (
    ("contested claim", 128.0),
    ("claim", 64.0),
    ("trace", 20.0),
)
"""Names of the levels of evidence and the net bits that each asks for."""

LIMITS: tuple[str, ...] = (
    "A mark that is shown does not say who trained the suspect, or when.",
    "It does not say that the claimant may own the model: rights, licenses and priority are "
    "settled from the ledger and by law.",
    "Marks can be removed by an attacker who spends enough data and compute; a mark not shown "
    "does not prove independence.",
)


@dataclass(frozen=True, slots=True)
class Policy(Record):
    """What a judge asks for.

    Args:
        bits: Net bits of evidence asked for: 20 trace, 64 claim, 128 contested claim.
        power_rate: Rate of hits that a stolen copy is taken to keep, for the power of the test.
        power: Power below which "not shown" is called inconclusive.
        tried_keys: Keys that are charged in any case (live commitments of the claimant).

    Example:
        >>> Policy.at("claim").bits
        64.0
    """

    SCHEMA: ClassVar[str] = "earmark/policy/1"
    bits: float = 64.0
    power_rate: Fraction = Fraction(9, 10)
    power: float = 0.99
    tried_keys: int = 1

    def __post_init__(self) -> None:
        if not self.bits > 0:
            raise UsageError(f"A policy asks for {self.bits} bits.", expected="More than 0.")
        if not 0 < self.power_rate <= 1 or not 0 < self.power < 1:
            raise UsageError("A policy's power and power rate lie between 0 and 1.")
        if self.tried_keys < 1:
            raise UsageError(f"A policy charges {self.tried_keys} keys; at least 1.")

    @classmethod
    def at(cls, level: str) -> Policy:
        """Return the policy that asks for a named level of evidence.

        Raises:
            UsageError: No level has that name.
        """
        for name, bits in LEVELS:
            if name == level:
                return cls(bits=bits)
        raise UsageError(
            f"No level of evidence is called '{level}'.",
            expected="One of " + ", ".join(name for name, _ in LEVELS) + ".",
        )


def log2_p(evidence: Evidence) -> float:
    """Return log2 of the exact probability (or a proven bound) of so much evidence by chance.

    A hard reading uses the binomial tail; a soft one, if the evidence carries weights, uses the
    tail of their signed sum. Where both are there, the better is taken and the choice charged.

    Example:
        >>> log2_p(Evidence.of("demo", hits=64, trials=64))
        -64.0
    """
    hard = -by_count(evidence)
    if evidence.score is None:
        return hard
    soft = stats.log2_rademacher_tail(evidence.score, evidence.weights)
    return min(0.0, min(hard, soft) + 1.0)


def by_count(evidence: Evidence, hits: int | None = None) -> float:
    """Return the bits that the answers give when each counts alike, before charges.

    Args:
        evidence: What was counted.
        hits: Right answers, in place of those that were seen: all of them for what can be reached.

    Example:
        >>> by_count(Evidence.of("demo", hits=8, trials=9), 9)
        9.0
    """
    right = evidence.hits if hits is None else hits
    return -stats.log2_binomial_tail(right, evidence.trials, evidence.chance)


def weighed(verdict: Verdict, evidence: Evidence) -> bool:
    """Tell whether weighing the answers gave more than counting each alike would have.

    Args:
        verdict: The verdict.
        evidence: The evidence that it was judged from.
    """
    return evidence.score is not None and verdict.bits_gross > by_count(evidence)


def too_small(verdict: Verdict, evidence: Evidence) -> bool:
    """Tell whether a mark has too few answers: all of them right would not suffice by count.

    Args:
        verdict: The verdict.
        evidence: The evidence that it was judged from.
    """
    return by_count(evidence, evidence.trials) < verdict.threshold


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no honest measurement with a layout goes beyond.

    Args:
        chance: Probability of a hit without the key; null for schemes of third parties.
        trials: Independent answers that some shards hold.
        signs: Independent fair signs that a soft reading of them can weigh.
    """

    chance: Fraction | None
    trials: int
    signs: int


_ASKING = frozenset({"adi", "deepsigns-blackbox", "deepsigns-blackbox-paper"})
_COUNTING = frozenset(
    {"deepmarks", "deepsigns", "deepsigns-paper", "deepwater", "mtlsign", "mtlsign-paper", "uchida"}
)


_DROPPING = frozenset({"deepsigns-blackbox-paper"})


def exact(scheme: str) -> bool:
    """Tell whether a scheme is one of ours that draws its answers and drops none afterwards.

    Of others this package cannot say that their chance is what the evidence states.

    Example:
        >>> exact("mtlsign"), exact("deepsigns-blackbox-paper")
        (True, False)
    """
    return scheme in (_ASKING | _COUNTING) - _DROPPING


def bounds(layout: Layout, shards: int | None = None) -> Bounds:
    """Return what evidence from some shards of a key may claim at most, from its layout alone.

    Args:
        layout: The key's layout.
        shards: How many shards were used; all if null.

    Example:
        >>> bounds(Layout("mtlsign", 1, ("fc",), 2048, 8), 2).trials
        512
    """
    used = layout.shards if shards is None else shards
    trials = min(layout.message_bits, used * -(-layout.message_bits // layout.shards))
    chance = Fraction(1, 2) if layout.scheme in _COUNTING else None
    if layout.scheme in _ASKING:
        chance = Fraction(1, _whole(layout, "classes"))
    each = _whole(layout, "groups") if layout.scheme == "deepwater" else 1
    return Bounds(chance, trials, trials * each)


def _whole(layout: Layout, name: str) -> int:
    value = layout.params.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(
            f"A layout for '{layout.scheme}' has {name} {value!r}.", expected="A whole number."
        )
    return value


def judge(evidence: Evidence | Sequence[Evidence], policy: Policy | None = None) -> Verdict:
    """Conclude from evidence what a policy allows to be concluded.

    Several pieces of evidence are taken as several attempts: the best one counts and the number
    of pieces is charged beside the multiplicity that each piece states.

    Args:
        evidence: One record or several.
        policy: What is asked for; by default 64 net bits.

    Returns:
        A verdict: shown; not shown, if the test could have shown a copy; else inconclusive.

    Raises:
        UsageError: No evidence.

    Example:
        >>> judge(Evidence.of("demo", hits=1000, trials=1024)).outcome.value
        'shown'
        >>> judge(Evidence.of("demo", hits=510, trials=1024)).outcome.value
        'not shown'
        >>> judge(Evidence.of("demo", hits=9, trials=9)).outcome.value
        'inconclusive'
    """
    policy = policy or Policy()
    pieces = (evidence,) if isinstance(evidence, Evidence) else tuple(evidence)
    if not pieces:
        raise UsageError("There is no evidence to judge.", expected="At least one record.")
    charged = [(-log2_p(piece) - _cost(piece, len(pieces), policy), piece) for piece in pieces]
    net, best = max(charged, key=lambda pair: pair[0])
    cost = _cost(best, len(pieces), policy)
    bits = round(max(0.0, net), 3)
    power = _power(best, policy, policy.bits + cost)
    outcome, reason = _conclude(best, bits, power, policy)
    return Verdict(
        outcome=outcome,
        bits=bits,
        bits_gross=round(max(0.0, -log2_p(best)), 3),
        log10_p=round(-max(0.0, net) * math.log10(2.0), 3),
        threshold=policy.bits,
        level=next((name for name, asked in LEVELS if bits >= asked), "none"),
        power=power,
        power_rate=float(policy.power_rate),
        reason=reason,
        limits=LIMITS,
        policy=policy.digest(),
        evidence=tuple(piece.digest() for piece in pieces),
    )


def _cost(evidence: Evidence, pieces: int, policy: Policy) -> float:
    """Bits charged for everything that was tried."""
    keys = max(evidence.tried.keys, policy.tried_keys)
    choices = 1
    if evidence.shards and evidence.tried.of_shards > len(evidence.shards):
        choices = math.comb(evidence.tried.of_shards, len(evidence.shards))
    return math.log2(keys * evidence.tried.suspects * evidence.tried.forms * pieces * choices)


def _power(evidence: Evidence, policy: Policy, gross: float) -> float:
    """Probability that a copy keeping the policy's rate of hits would have been shown.

    Only the hits count here: how a copy's soft reading would come out cannot be said beforehand.
    """
    if evidence.trials == 0:
        return 0.0
    choice = 0.0 if evidence.score is None else 1.0
    power = stats.power(evidence.trials, policy.power_rate, evidence.chance, gross + choice)
    return round(min(1.0, max(0.0, power)), 6)


def _conclude(evidence: Evidence, bits: float, power: float, policy: Policy) -> tuple[Outcome, str]:
    counted = f"{evidence.hits} of {evidence.trials} answers match"
    if bits >= policy.bits:
        return Outcome.SHOWN, f"{counted}: {bits:.1f} net bits, {policy.bits:g} asked for."
    if power >= policy.power:
        return (
            Outcome.NOT_SHOWN,
            f"{counted}: {bits:.1f} net bits, {policy.bits:g} asked for; a model that gives "
            f"{float(policy.power_rate):.0%} of the key's answers would have been shown.",
        )
    return (
        Outcome.INCONCLUSIVE,
        f"{counted}: too few to tell. A model that gives {float(policy.power_rate):.0%} of "
        f"the key's answers would be shown with probability {power:.3f} only.",
    )
