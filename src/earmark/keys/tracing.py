"""Tardos codes: name the customers who leaked a copy, even if several mixed theirs.

Every customer's copy carries a random codeword. A coalition can only choose among what its own
copies hold at each position, so that its word stays closer to its members' codewords than chance
allows. The codeword of an innocent customer is independent of that word, whatever the coalition
did, so his score is a sum of independent two-valued variables with known chances, and the
probability that it is as high as the one seen has a bound without any model of the attack.

Biases, codewords and scores are integers: every machine derives the same from the same key. The
biases and the codewords are secrets of the owner; the bound needs them to be unknown to whoever
made the suspect, his own codeword apart.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from earmark.errors import UsageError
from earmark.stats import TwoValuedSum

_ONE = 1 << 32  # a bias of certainty
_CUTOFF = 30  # biases keep 1 / (30 c) away from 0 and 1
_MOST_COLLUDERS = 1000
_MOST_LENGTH = 1 << 24


class ByteStream(Protocol):
    """Whatever yields keyed bytes: ``earmark.keys.stream.KeyStream``."""

    def bytes(self, count: int, /) -> builtins.bytes:
        """Return the next ``count`` bytes."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """What the suspect's word says about one customer; it decides nothing.

    Attributes:
        name: The customer.
        score: His symmetric score, in units of 2^-16.
        log2_p: Upper bound on log2 of the probability that an innocent scores as high.
        tests: How many customers (times forms of the suspect) were looked at.

    Example:
        >>> Accusation("acme", score=40_000_000, log2_p=-60.0, tests=1024).bits
        50.0
    """

    name: str
    score: int
    log2_p: float
    tests: int

    @property
    def bits(self) -> float:
        """Evidence net of ``tests``: some innocent reaches b bits with probability <= 2^-b."""
        return max(0.0, -self.log2_p - math.log2(self.tests))


def tardos_length(users: int, colluders: int, *, bits: float = 20.0, flip_rate: float = 0.0) -> int:
    """Return a code length at which coalitions are caught.

    In simulations with 2, 3, 4 and 6 colluders of 100 users at 20 bits, each of majority, minority,
    interleaving, all-ones, coin and erasure gave a member away in at least 99 of 100 trials at five
    sixths of this length. The bound on accusing an innocent does not rest on this rule.

    Args:
        users: Customers who hold a copy.
        colluders: Largest coalition to be caught.
        bits: An innocent is accused with probability at most 2^-bits, over all users.
        flip_rate: Share of the bits that the carrier loses to damage, below 1/2.

    Raises:
        UsageError: An argument is out of range.

    Source:
        The asymptotic length (pi^2 / 2) c^2 ln(users / error) of Skoric, Katzenbeisser and Celik
        2008. Changed: 0.6 standard deviations on top, so that most coalitions are caught and not
        half of them, and room for damage.

    Example:
        >>> tardos_length(100, 2), tardos_length(100, 3), tardos_length(100, 2, flip_rate=0.1)
        (441, 991, 688)
    """
    if users < 1 or not 1 <= colluders <= _MOST_COLLUDERS:
        raise UsageError(
            f"{colluders} colluders of {users} users make no sense.",
            expected=f"At least one user, and 1 to {_MOST_COLLUDERS} colluders.",
        )
    if not (math.isfinite(bits) and bits >= 0.0 and 0.0 <= flip_rate < 0.5):
        raise UsageError(
            f"{bits} bits at a flip rate of {flip_rate} make no sense.",
            expected="Bits must not be negative; the flip rate lies from 0 to below 1/2.",
        )
    deviations = math.sqrt(2 * (math.log(users) + bits * math.log(2))) + 0.6
    return math.ceil((math.pi * colluders / 2 * deviations / (1 - 2 * flip_rate)) ** 2)


def tardos_biases(stream: ByteStream, length: int, colluders: int) -> tuple[int, ...]:
    """Draw the secret biases of all positions.

    A uniform point of the quarter disc has a squared cosine that follows the arcsine law; points
    outside the disc or the cutoff are drawn again, so that no float is involved.

    Args:
        stream: Keyed bytes; 8 are read for each draw.
        length: Positions of the code.
        colluders: Largest coalition to be caught; sets the cutoff.

    Returns:
        Per position, the chance of a 1 in units of 2^-32.

    Raises:
        UsageError: An argument is out of range.

    Source:
        Tardos 2003. Changed: a cutoff of 1 / (30 c) instead of 1 / (300 c), which shortens codes
        against two and three colluders; our bound on accusing an innocent needs no cutoff.

    Example:
        >>> from earmark.keys.stream import KeyStream
        >>> tardos_biases(KeyStream(bytes(32), "biases"), 2, 3)
        (754331756, 119880262)
    """
    if not (1 <= length <= _MOST_LENGTH and 1 <= colluders <= _MOST_COLLUDERS):
        raise UsageError(
            f"A code of length {length} against {colluders} colluders makes no sense.",
            expected=f"Lengths are 1 to {_MOST_LENGTH}, coalitions 1 to {_MOST_COLLUDERS}.",
        )
    least = _ONE // (_CUTOFF * colluders)
    biases: list[int] = []
    while len(biases) < length:
        draw = stream.bytes(8)
        x, y = int.from_bytes(draw[:4], "big"), int.from_bytes(draw[4:], "big")
        radius = x * x + y * y
        if 0 < radius < _ONE * _ONE and least <= (bias := x * x * _ONE // radius) <= _ONE - least:
            biases.append(bias)
    return tuple(biases)


def tardos_codeword(stream: ByteStream, biases: Sequence[int]) -> tuple[int, ...]:
    """Draw one customer's codeword.

    Args:
        stream: Keyed bytes of this customer alone; 4 are read per position.
        biases: Chances of a 1, in units of 2^-32.

    Returns:
        One bit per position.

    Raises:
        UsageError: A bias is out of range.

    Example:
        >>> from earmark.keys.stream import KeyStream
        >>> tardos_codeword(KeyStream(bytes(32), "acme"), [2**31] * 8)
        (1, 0, 0, 1, 0, 0, 0, 1)
    """
    _check_biases(biases)
    raw = stream.bytes(4 * len(biases))
    return tuple(
        int(int.from_bytes(raw[4 * i : 4 * i + 4], "big") < bias) for i, bias in enumerate(biases)
    )


def tardos_scores(
    biases: Sequence[int],
    codeword: Sequence[int],
    observed: Sequence[int | None],
    *,
    confidence: Sequence[int] | None = None,
) -> int:
    """Return one customer's symmetric score against the suspect's word.

    Args:
        biases: Chances of a 1, in units of 2^-32.
        codeword: The customer's bits.
        observed: The suspect's bits; None where nothing could be read, which counts for nobody.
        confidence: How sure each reading is, as non-negative integers that depend on the suspect
            alone; averaged copies hold weak values where the colluders differ.

    Returns:
        The score, in units of 2^-16 (times the confidence).

    Raises:
        UsageError: Lengths differ, or a value is out of range.

    Source:
        Skoric, Katzenbeisser and Celik 2008. Changed: integers, and weights by confidence.

    Example:
        >>> tardos_scores([2**31] * 4, [1, 1, 0, 0], [1, 0, 0, None]) == 1 * 2**16
        True
    """
    return _score(_gains(biases, observed, confidence), codeword)


def innocent_law(
    biases: Sequence[int],
    observed: Sequence[int | None],
    *,
    confidence: Sequence[int] | None = None,
) -> TwoValuedSum:
    """Return the law of an innocent customer's score, given the suspect's word.

    Args:
        biases: Chances of a 1, in units of 2^-32.
        observed: The suspect's bits, or None.
        confidence: As for ``tardos_scores``.

    Returns:
        A law whose ``log2_tail(score)`` is the bound on log2 p.

    Raises:
        UsageError: Lengths differ, or a value is out of range.

    Example:
        >>> law = innocent_law([2**31] * 64, [1] * 64)
        >>> round(law.log2_tail(64 * 2**16), 6)
        -64.0
    """
    gains = _gains(biases, observed, confidence)
    return TwoValuedSum(
        (one, zero, bias / _ONE) for bias, (one, zero) in zip(biases, gains, strict=True)
    )


def accuse(
    biases: Sequence[int],
    codewords: Mapping[str, Sequence[int]],
    observed: Sequence[int | None],
    *,
    tests: int | None = None,
    confidence: Sequence[int] | None = None,
) -> tuple[Accusation, ...]:
    """Score every customer against the suspect's word, most suspicious first.

    Args:
        biases: Chances of a 1, in units of 2^-32.
        codewords: Each customer's bits, by name.
        observed: The suspect's bits; None where nothing could be read.
        tests: What to charge, at least the number of customers; more where several forms of the
            suspect were tried.
        confidence: As for ``tardos_scores``.

    Returns:
        One accusation per customer. Naming all those with ``bits >= b`` names some innocent with
        probability at most 2^-b.

    Raises:
        UsageError: Lengths differ, a value is out of range, or ``tests`` is too small.

    Example:
        >>> words = {"acme": [1] * 40, "bolt": [0, 1] * 20}
        >>> [(a.name, round(a.bits, 3)) for a in accuse([2**31] * 40, words, [1] * 40)]
        [('acme', 39.0), ('bolt', 0.0)]
    """
    charged = len(codewords) if tests is None else tests
    if charged < len(codewords):
        raise UsageError(
            f"{charged} tests cannot cover {len(codewords)} customers.",
            expected="Charge at least one test per customer.",
        )
    gains = _gains(biases, observed, confidence)
    law = innocent_law(biases, observed, confidence=confidence)
    scores = {name: _score(gains, codeword) for name, codeword in codewords.items()}
    found = [
        Accusation(name, score, log2_p=law.log2_tail(score), tests=charged)
        for name, score in scores.items()
    ]
    return tuple(sorted(found, key=lambda item: (item.log2_p, -item.score, item.name)))


def _check_biases(biases: Sequence[int]) -> None:
    """Refuse biases that are no chances in units of 2^-32."""
    for bias in biases:
        if not 0 < bias < _ONE:
            raise UsageError(f"A bias is {bias}.", expected="It must lie between 0 and 2^32.")


def _gains(
    biases: Sequence[int],
    observed: Sequence[int | None],
    confidence: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """Return per position what a 1 and what a 0 in the codeword scores."""
    weights = [1] * len(biases) if confidence is None else confidence
    if not len(biases) == len(observed) == len(weights):
        raise UsageError(
            f"There are {len(biases)} biases, {len(observed)} bits and {len(weights)} weights.",
            expected="Their numbers must be equal.",
        )
    _check_biases(biases)
    gains = []
    for bias, bit, weight in zip(biases, observed, weights, strict=True):
        if bit not in {0, 1, None} or weight < 0:
            raise UsageError(
                f"A bit is {bit!r} with confidence {weight}.",
                expected="Bits are 0, 1 or None; confidence is not negative.",
            )
        if bit is None:
            gains.append((0, 0))
            continue
        one = int(weight) * math.isqrt(((_ONE - bias) << 32) // bias)
        zero = int(weight) * math.isqrt((bias << 32) // (_ONE - bias))
        gains.append((one, -zero) if bit else (-one, zero))
    return gains


def _score(gains: Sequence[tuple[int, int]], codeword: Sequence[int]) -> int:
    """Add up what one codeword scores."""
    if len(codeword) != len(gains):
        raise UsageError(
            f"A codeword has {len(codeword)} bits.", expected=f"{len(gains)}, one per bias."
        )
    if any(bit not in {0, 1} for bit in codeword):
        raise UsageError("A codeword holds something else than bits.", expected="0 or 1.")
    return sum(one if bit else zero for (one, zero), bit in zip(gains, codeword, strict=True))
