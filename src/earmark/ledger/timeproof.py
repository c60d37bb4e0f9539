"""Proofs of time: that something existed not later than a moment, by somebody else's clock.

======================  ============================================================================
`WitnessTime`           the median of the clocks of a log's witnesses
`Rfc3161Time`           a time-stamping authority's token (`earmark.ledger.tsa`)
`BlockTime`             the time of a finalised block (`earmark.ledger.evm.blocktime`)
======================  ============================================================================

A log's own clock is no proof and is offered nowhere. A moment is an interval: what the clock said,
and how far it may be off. One thing came before another only if the intervals do not overlap;
otherwise nobody can tell, and no coin is tossed.

No proof of this kind says that something did *not* exist before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from earmark import codec
from earmark.errors import LedgerError, RecordError, UsageError
from earmark.ledger.note import VerifierKey
from earmark.ledger.port import verify_receipt
from earmark.ledger.witness import Quorum
from earmark.records import Receipt, Record

_DIGITS = frozenset("0123456789abcdef")
WITNESS_SECONDS = 60
"""How far an honest witness's clock may be off."""


@dataclass(frozen=True, slots=True)
class Moment(Record):
    """When something was there already.

    Args:
        source: Whose clock it was.
        time: What it said, seconds since 1970.
        uncertainty: How far it may be off, seconds.

    Example:
        >>> Moment("a clock", 1000, 60).latest
        1060
    """

    SCHEMA: ClassVar[str] = "earmark/moment/1"
    source: str
    time: int
    uncertainty: int

    def __post_init__(self) -> None:
        if self.time < 0 or self.uncertainty < 0:
            raise RecordError(f"A moment of {self.time} +- {self.uncertainty} seconds is none.")

    @property
    def earliest(self) -> int:
        """The beginning of the interval."""
        return self.time - self.uncertainty

    @property
    def latest(self) -> int:
        """The end of the interval: not later than this."""
        return self.time + self.uncertainty


@dataclass(frozen=True, slots=True)
class TimeProof(Record):
    """A proof of time, as it is kept and handed on.

    Args:
        kind: Which `TimeSource` reads it.
        subject: SHA-256 of what was stamped.
        data: What that source needs, as text.
    """

    SCHEMA: ClassVar[str] = "earmark/time-proof/1"
    kind: str
    subject: str
    data: str

    def __post_init__(self) -> None:
        require_digest(self.subject)


class TimeSource(ABC):
    """A clock that others trust: it stamps digests, and reads its stamps back."""

    kind: ClassVar[str]

    @abstractmethod
    def stamp(self, digest: str) -> TimeProof:
        """Have a digest stamped.

        Args:
            digest: SHA-256, 64 hexadecimal digits.

        Raises:
            NetworkError: The source does not answer.
            UsageError: This one was opened for verifying only.
        """

    @abstractmethod
    def verify(self, proof: TimeProof) -> Moment:
        """Check a proof and say what time it proves.

        Raises:
            LedgerError, SignatureError: It does not hold, or is of another kind or source.
        """

    def _mine(self, proof: TimeProof) -> None:
        if proof.kind != self.kind:
            raise LedgerError(f"A time proof of kind '{proof.kind}' is not one by '{self.kind}'.")


class WitnessTime(TimeSource):
    """The median of the clocks of a quorum of witnesses, over a log that holds the digest.

    Args:
        key: The log's public key.
        quorum: Its witnesses.
        append: Adds a record to the log and returns the cosigned receipt; null to verify only.
        uncertainty: How far an honest witness's clock may be off, seconds.
    """

    kind = "witnesses"

    def __init__(
        self,
        key: VerifierKey,
        quorum: Quorum,
        append: Callable[[bytes], Receipt] | None = None,
        *,
        uncertainty: int = WITNESS_SECONDS,
    ) -> None:
        self.key, self.quorum = key, quorum
        self._append, self._uncertainty = append, uncertainty

    def stamp(self, digest: str) -> TimeProof:
        """See `TimeSource.stamp`; the log then holds one entry more."""
        if self._append is None:
            raise UsageError("This log was opened for verifying only.")
        receipt = self._append(stamped(digest))
        return TimeProof(self.kind, digest, receipt.canonical().decode())

    def verify(self, proof: TimeProof) -> Moment:
        """See `TimeSource.verify`."""
        self._mine(proof)
        receipt = Receipt.from_bytes(proof.data.encode())
        signed = verify_receipt(stamped(proof.subject), receipt, self.key)
        return Moment(f"witnesses of {self.key.name}", self.quorum.time(signed), self._uncertainty)


def stamped(digest: str) -> bytes:
    """Return the record that a log keeps of a stamped digest."""
    require_digest(digest)
    return codec.canonical({"digest": digest, "schema": "earmark/stamp/1"})


def require_digest(digest: str) -> None:
    """Refuse what is no SHA-256.

    Raises:
        RecordError: Not 64 hexadecimal digits.
    """
    if len(digest) != 64 or set(digest) - _DIGITS:
        raise RecordError(f"'{digest[:80]}' is no digest; expected 64 hexadecimal digits.")


def agreed(moments: Sequence[Moment], *, faulty: int, not_before: int = 0) -> Moment:
    """Say how late something was there at the latest, if some of the clocks may lie.

    A liar who dates back cannot help anybody: among the ``faulty + 1`` earliest moments one is
    honest, so the last of these holds. A liar who dates ahead hurts only who relies on him.

    Args:
        moments: From different sources, at least ``faulty + 1``.
        faulty: How many of the sources may lie.
        not_before: Something that the stamped thing itself refers to was made at this time, so
            that it cannot be older.

    Raises:
        UsageError: Too few moments, or two of one source.
        LedgerError: All of them together say that it is older than what it refers to.

    Example:
        >>> clocks = [Moment("a", 1000, 1), Moment("b", 1003, 1), Moment("liar", 5, 1)]
        >>> agreed(clocks, faulty=1).source
        'a'
    """
    if len({item.source for item in moments}) != len(moments):
        raise UsageError("Two of the moments are from one source.")
    if not 0 <= faulty < len(moments):
        raise UsageError(
            f"{len(moments)} clocks say nothing if {faulty} of them may lie.",
            expected=f"At least {faulty + 1}.",
        )
    found = sorted(moments, key=lambda item: item.latest)[faulty]
    if found.latest < not_before:
        raise LedgerError(
            f"The clocks agree on {found.latest}, before {not_before}, the time of what it "
            "refers to.",
            hint="More of them lie than was assumed.",
        )
    return found


def earlier(first: Moment, second: Moment) -> bool | None:
    """Say whether one moment came before another; null if the intervals overlap.

    Example:
        >>> earlier(Moment("a", 100, 10), Moment("b", 200, 10))
        True
        >>> print(earlier(Moment("a", 100, 60), Moment("b", 200, 60)))
        None
    """
    if first.latest < second.earliest:
        return True
    if second.latest < first.earliest:
        return False
    return None
