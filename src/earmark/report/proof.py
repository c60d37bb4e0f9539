"""What a dossier carries of a ledger: its public key, its head, receipts, and what ties them.

Receipts are made at different times, under checkpoints of different size. Consistency proofs from
each of them to one head show that all speak of one history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.records import Receipt, Record

if TYPE_CHECKING:
    from earmark.ledger.port import Ledger


@dataclass(frozen=True, slots=True)
class LedgerProof(Record):
    """Proof, checkable offline, that one history of a ledger holds some records.

    Args:
        vkey: The ledger's public key, ``NAME+ID+BASE64``.
        checkpoint: The ledger's head when the proof was made, a signed note.
        receipts: What was registered ("commitment", "release", "claim", ...) to its receipt.
        consistency: Size of a receipt's checkpoint, in decimal, to the proof that the head
            continues it.
    """

    SCHEMA: ClassVar[str] = "earmark/ledger-proof/1"
    vkey: str
    checkpoint: str
    receipts: Mapping[str, Receipt]
    consistency: Mapping[str, tuple[str, ...]]

    def __hash__(self) -> int:
        return hash(self.digest())

    def index(self, what: str) -> int | None:
        """Return the place of a record in the ledger, or null if it is not registered."""
        receipt = self.receipts.get(what)
        return None if receipt is None else receipt.index


def ledger_proof(ledger: Ledger, receipts: Mapping[str, Receipt]) -> LedgerProof:
    """Gather from a ledger what a stranger needs to check some receipts offline.

    Args:
        ledger: Any engine.
        receipts: What was registered to the receipt that the ledger returned.

    Raises:
        LedgerError: The ledger does not match its own proofs.
    """
    head = ledger.head()
    sizes = {SignedCheckpoint.parse(item.checkpoint).size for item in receipts.values()}
    return LedgerProof(
        vkey=ledger.vkey,
        checkpoint=str(head),
        receipts=dict(receipts),
        consistency={
            str(size): ledger.prove_consistency(size, head.size) for size in sorted(sizes)
        },
    )
