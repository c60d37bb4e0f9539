"""The `Ledger` port: what every engine offers, and what a receipt proves without any engine.

Engines differ in who trusts whom, never in the records: a record is the bytes of a canonical JSON
document, a `Receipt` proves that a log holds it. `verify_receipt` and `beacon` need nothing but
the receipt, the record and the log's public key; no file, no network.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from enum import Enum

from earmark.errors import LedgerError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.merkle import leaf_hash, verify_consistency, verify_inclusion
from earmark.ledger.note import VerifierKey
from earmark.records import Receipt

_BEACON_DOMAIN = b"earmark/beacon/1\n"
_HEX = re.compile(r"[0-9a-f]{64}")


class Finality(str, Enum):
    """Whether an engine may still take an entry back."""

    PENDING = "pending"
    FINAL = "final"


class Ledger(ABC):
    """An append-only log of records.

    An engine that cannot do one of these says so with `earmark.errors.AccessError`. Hashes cross
    the port as 64 hexadecimal digits, as they do in a `Receipt`.
    """

    @property
    @abstractmethod
    def origin(self) -> str:
        """Name of the log."""

    @property
    @abstractmethod
    def vkey(self) -> str:
        """Public key of the log, as readers pin it: ``NAME+ID+BASE64``."""

    @abstractmethod
    def append(self, record: bytes) -> Receipt:
        """Add one record; it is durable when this returns.

        Args:
            record: A canonical JSON document (RFC 8785).

        Raises:
            RecordError: The bytes are no canonical JSON document.
            LedgerError: The ledger does not match its own proofs; nothing was added.
            OutputError: The ledger cannot be written; nothing was added.
        """

    def append_many(self, records: Sequence[bytes]) -> tuple[Receipt, ...]:
        """Add records in order; see `append`. An engine may do it faster, or all at once."""
        return tuple(self.append(record) for record in records)

    @abstractmethod
    def get(self, index: int) -> bytes:
        """Return the record at an index.

        Raises:
            UsageError: There is no such entry.
            LedgerError: The entry does not match its hash.
        """

    @abstractmethod
    def scan(self, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (index, record) from `since` up to the head at the time of the call.

        Raises:
            LedgerError: An entry is missing or does not match its hash.
        """

    @abstractmethod
    def head(self) -> SignedCheckpoint:
        """Return the newest signed checkpoint.

        Raises:
            LedgerError: There is none, or it does not verify.
        """

    @abstractmethod
    def prove(self, index: int, size: int) -> tuple[str, ...]:
        """Prove that the tree of `size` entries holds entry `index`.

        Raises:
            UsageError: No such entry, or no such size yet.
        """

    @abstractmethod
    def prove_consistency(self, old: int, new: int) -> tuple[str, ...]:
        """Prove that the tree of `new` entries continues the tree of `old` entries.

        Raises:
            UsageError: No such sizes.
        """

    @abstractmethod
    def finality(self, receipt: Receipt) -> Finality:
        """Say whether the entry that a receipt speaks of can still be taken back.

        Raises:
            LedgerError: The receipt does not belong to the history that this ledger holds.
            SignatureError: The receipt is not signed by this ledger.
        """


def from_hex(text: str) -> bytes:
    """Decode 64 lower-case hexadecimal digits.

    Raises:
        LedgerError: Anything else.
    """
    if not _HEX.fullmatch(text):
        raise LedgerError(f"'{text[:80]}' is no hash.", expected="64 hexadecimal digits.")
    return bytes.fromhex(text)


def _key(vkey: str | VerifierKey) -> VerifierKey:
    return vkey if isinstance(vkey, VerifierKey) else VerifierKey.parse(vkey)


def verify_receipt(record: bytes, receipt: Receipt, vkey: str | VerifierKey) -> SignedCheckpoint:
    """Check offline that a log holds a record.

    It proves that whoever holds the log's private key has signed a history with exactly these bytes
    at ``receipt.index``. It does not prove when, and not that the log shows everybody the same
    history: for that the checkpoint needs witnesses, or a reader who keeps an older one.

    Args:
        record: The record's bytes.
        receipt: What the ledger returned.
        vkey: The log's public key, from a source that you trust, not from the receipt's sender.

    Returns:
        The verified checkpoint.

    Raises:
        LedgerError: The receipt is not for this record, or its proof does not hold.
        SignatureError: The checkpoint is not signed by the key.
    """
    leaf = leaf_hash(record)
    if from_hex(receipt.leaf_hash) != leaf:
        raise LedgerError("The receipt is for another record: its hash differs.")
    signed = SignedCheckpoint.open(receipt.checkpoint, _key(vkey))
    if receipt.origin != signed.origin:
        raise LedgerError(
            f"The receipt names the ledger '{receipt.origin}'.", expected=f"'{signed.origin}'."
        )
    proof = [from_hex(item) for item in receipt.proof]
    verify_inclusion(leaf, receipt.index, signed.size, proof, signed.root)
    return signed


def beacon(receipt: Receipt) -> str:
    """Derive the public random value that a registered record draws from the ledger.

    Keys bound to it (their labels, their bits) cannot have been known before the record was
    appended, and anyone recomputes it from the receipt. To leave no choice, only *one* checkpoint
    counts: the first that holds the record, as its last entry. Appending again to get another value
    leaves another entry, which is charged as one more try.

    What it is not: unpredictable to whoever runs the ledger alone. The owner of an unwitnessed
    ledger can compute many futures before showing one. Against him it takes witnesses, or a reader
    who has pinned the head.

    Args:
        receipt: Verified by the caller (`verify_receipt`).

    Returns:
        64 hexadecimal digits: SHA-256 over a domain tag and the checkpoint's three lines.

    Raises:
        LedgerError: The checkpoint is not the one right after the record: a batch, or a receipt
            made later.
    """
    body = SignedCheckpoint.parse(receipt.checkpoint).body
    if body.size != receipt.index + 1 or body.extensions:
        raise LedgerError(
            f"The receipt's checkpoint of {body.size} entries is not the one that entry "
            f"{receipt.index} was appended with.",
            expected=f"A checkpoint of {receipt.index + 1} entries.",
            hint="Use the receipt that appending this one record returned.",
        )
    return hashlib.sha256(_BEACON_DOMAIN + body.text.encode()).hexdigest()


class Watcher:
    """A reader's memory of a log: the newest head seen, and the refusal of any other history.

    Args:
        vkey: The log's public key.
        pinned: A signed checkpoint kept from earlier, as text; none at first contact.

    Raises:
        LedgerError: `pinned` is no checkpoint of this log.
        SignatureError: `pinned` or `vkey` is not valid.
    """

    def __init__(self, vkey: str | VerifierKey, pinned: str | None = None) -> None:
        self.key = _key(vkey)
        self.head = None if pinned is None else SignedCheckpoint.open(pinned, self.key)
        self.evidence: tuple[str, str] | None = None

    def follow(self, ledger: Ledger) -> SignedCheckpoint:
        """Fetch a ledger's head and observe it; see `observe`."""
        head = ledger.head()
        known = 0 if self.head is None else self.head.size
        proof = ledger.prove_consistency(known, head.size) if known <= head.size else ()
        return self.observe(str(head), proof)

    def observe(self, checkpoint: str, proof: tuple[str, ...] = ()) -> SignedCheckpoint:
        """Accept a head if it continues the pinned one, and pin it.

        Args:
            checkpoint: The signed checkpoint.
            proof: Consistency from the pinned head's size.

        Returns:
            The verified checkpoint, now pinned.

        Raises:
            LedgerError: The log went back, or shows another history. What was pinned stays; if both
                heads have the same size, `evidence` holds the pair, which convicts the log.
            SignatureError: The log has not signed it.
        """
        signed = SignedCheckpoint.open(checkpoint, self.key)
        if self.head is not None:
            self._require_continuation(self.head, signed, proof)
        self.head = signed
        return signed

    def _require_continuation(
        self, old: SignedCheckpoint, new: SignedCheckpoint, proof: tuple[str, ...]
    ) -> None:
        if new.size < old.size:
            raise LedgerError(
                f"The ledger '{new.origin}' went back from {old.size} to {new.size} entries.",
                hint="A backup was restored, or entries were dropped; keep the newer checkpoint.",
            )
        if new.size == old.size and new.root != old.root:
            self.evidence = (str(old), str(new))
            raise LedgerError(
                f"The ledger '{new.origin}' signed two histories of {old.size} entries.",
                hint="Keep both checkpoints: together they prove it to anyone.",
            )
        hashes = [from_hex(item) for item in proof]
        verify_consistency(old.size, new.size, old.root, new.root, hashes)
