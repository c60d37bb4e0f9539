"""A key bound to a community's log: the proof that its message was drawn after its commitment.

An owner's own ledger cannot bind its owner, who could compute many futures before showing one. A
community's log can: the key is committed there, and the value that its message depends on comes
from the operators, or from whatever else the community agreed on, once the commitment is witnessed.
A `Binding` keeps what a stranger needs to derive that value again, offline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from earmark.errors import LedgerError, NetworkError
from earmark.ledger.note import VerifierKey
from earmark.ledger.service import Mirror, Row
from earmark.protocol import messages as m
from earmark.protocol.community import Community
from earmark.protocol.history import History, Logged, entry_of
from earmark.protocol.party import Party
from earmark.records import Record

ATTEMPTS = 3
"""Times that a commitment is sent while what is drawn for it comes to nothing; all are charged."""
_LOST = "This key is lost; if the log has its commitment, claims are charged for it as for any key."


@dataclass(frozen=True, slots=True)
class Binding(Record):
    """The beginning of a community's log, up to where a commitment's value had been drawn.

    Args:
        community: Whose log it is.
        rows: Its entries, with the checkpoints that its witnesses cosigned.
        entry: Digest of the message that committed to the key.
        beacon: The value that was drawn for it.
    """

    SCHEMA: ClassVar[str] = "earmark/binding/1"
    community: Community
    rows: tuple[Row, ...]
    entry: str
    beacon: str

    def __hash__(self) -> int:
        return hash(self.digest())

    def verify(self, commitment: str, owner: str) -> Logged:
        """Derive the value again from the entries and the witnesses' cosignatures.

        Args:
            commitment: The key's.
            owner: The owner's public key, who must have sent it.

        Returns:
            The entry that committed to the key, with the time of its witnesses.

        Raises:
            LedgerError: The log does not hold, the commitment was made by somebody else or before,
                or another value was drawn.
            SignatureError: A checkpoint is not signed by the log.
        """
        mirror = Mirror(VerifierKey.parse(self.community.log), self.community.quorum)
        history = History(map(entry_of, mirror.take(self.rows)), self.community.rules)
        found = history.committed(commitment, owner)
        if found is None or found.digest != self.entry:
            raise LedgerError(
                f"The log of '{self.community.rules.domain}' does not begin with this commitment "
                "of this owner."
            )
        if history.beacon(found) != self.beacon:
            raise LedgerError(
                "Another value was drawn for the commitment than the key is bound to."
            )
        return found


def bind(party: Party, commitment: str, *, patience: float | None = None) -> Binding:
    """Commit to a key in a community's log, wait for what is drawn for it, and keep the proof.

    Args:
        party: The owner.
        commitment: The key's; a new one.
        patience: Seconds to wait; what the rules allow for a draw, and a minute, if null.

    Raises:
        LedgerError: It is in the log already.
        NetworkError: The log does not answer, or nothing was drawn in time; the key is lost.
    """
    if party.committed(commitment) is not None:
        raise LedgerError("This commitment is in the log already; make a new key.")
    wait = party.rules.draw_seconds + 60.0 if patience is None else patience
    try:
        for _ in range(ATTEMPTS):
            entry = party.send(m.Commit, commitment=commitment, recovery=None)
            value = party.beacon(commitment, patience=wait)
            if value is not None:
                return Binding(party.community, tuple(party.rows()), entry, value)
            if not party.failed(entry):
                break
    except NetworkError as error:
        raise NetworkError(error.what, hint=_LOST) from error
    text = f"Nothing was drawn for the commitment within {wait:.0f} seconds."
    raise NetworkError(text, hint=_LOST)
