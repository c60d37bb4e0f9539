"""A log as a Merkle tree with signed heads, over any database that keeps its rows.

An append reads the head, adds entries and tree hashes and signs the new checkpoint in *one*
transaction under the only write lock. So a crash leaves the old head or the new one, never a head
that does not match, and two writers at once make one history. Which database keeps the rows is the
business of the engines (`earmark.ledger.log`, `earmark.ledger.postgres`); what a reader checks is
the same for all of them.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from earmark import codec
from earmark.errors import EarmarkError, FileError, LedgerError, UsageError
from earmark.ledger.audit import Audit, audit_log
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.merkle import (
    Reader,
    address,
    consistency_proof,
    fold,
    grow,
    inclusion_proof,
    leaf_hash,
    node_count,
    peak_nodes,
    peaks_at,
    root_at,
)
from earmark.ledger.note import SignerKey, VerifierKey
from earmark.ledger.port import Finality, Ledger, verify_receipt
from earmark.ledger.rows import LogRows
from earmark.records import Receipt

T = TypeVar("T")
L = TypeVar("L", bound="TreeLog")
_PAGE = 256


class TreeLog(Ledger):
    """A log over some rows.

    Args:
        rows: The database's rows.
        key: The log's public key.
    """

    def __init__(self, rows: LogRows, key: VerifierKey) -> None:
        self._rows, self._name = rows, rows.name
        self._key = key
        self._lock = threading.RLock()
        self._signer: SignerKey | None = None
        self._trusted: SignedCheckpoint | None = None

    @abstractmethod
    def close(self) -> None:
        """Close the database. Closing twice does no harm."""

    @abstractmethod
    def _read_signer(self) -> SignerKey:
        """Read the private key.

        Raises:
            FileError: Missing, or readable by others.
        """

    def __enter__(self: L) -> L:  # noqa: PYI019 - Self is newer than our oldest Python
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, origin={self.origin!r})"

    # -- the port ----------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """Name of the log."""
        return self._key.name

    @property
    def vkey(self) -> str:
        """Public key of the log: ``NAME+ID+BASE64``."""
        return str(self._key)

    def append(self, record: bytes) -> Receipt:
        """Add one record; see `Ledger.append`. The receipt's checkpoint ends with this record."""
        return self.append_many([record])[0]

    def append_many(self, records: Sequence[bytes]) -> tuple[Receipt, ...]:
        """Add records in one transaction under one checkpoint: all of them or none.

        Args:
            records: Canonical JSON documents; may be empty.

        Raises:
            RecordError: One of them is no canonical JSON document.
            LedgerError: The ledger does not match its own proofs; nothing was added.
            FileError: The private key is missing or readable by others.
            OutputError: The ledger cannot be written; nothing was added.
        """
        for record in records:
            if not isinstance(record, bytes):
                raise UsageError(f"A record is bytes, not {type(record).__name__}.")
            codec.parse(record)
        if not records:
            return ()
        with self._lock:
            signer = self._signing_key()
            with self._rows.writing():
                signed, receipts = self._extend(records, signer)
            self._trusted = signed
        return receipts

    def get(self, index: int) -> bytes:
        """Return the record at an index; see `Ledger.get`."""
        with self._lock, self._rows.explained():
            size = self._verified_head().size
            if not 0 <= index < size:
                raise UsageError(f"Ledger '{self._name}' has {size} entries, no entry {index}.")
            record = self._rows.record(index)
            if leaf_hash(record) != self._nodes([(0, index)])[address(0, index)]:
                raise self._changed(index)
            return record

    def scan(self, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (index, record) from `since` to the present head; see `Ledger.scan`.

        Entries are read in pages, so a slow reader never keeps a writer waiting.
        """
        size = self.head().size
        for start in range(max(since, 0), size, _PAGE):
            stop = min(start + _PAGE, size)
            yield from self._page(start, stop)

    def head(self) -> SignedCheckpoint:
        """Return the newest signed checkpoint; see `Ledger.head`."""
        with self._lock, self._rows.explained():
            return self._verified_head()

    def prove(self, index: int, size: int) -> tuple[str, ...]:
        """Prove that the first `size` entries hold entry `index`; see `Ledger.prove`."""
        with self._lock, self._rows.explained():
            self._require_size(size)
            proof = self._gathered(lambda read: inclusion_proof(read, index, size))
            return tuple(item.hex() for item in proof)

    def prove_consistency(self, old: int, new: int) -> tuple[str, ...]:
        """Prove that nothing below `old` changed up to `new`; see `Ledger.prove_consistency`."""
        with self._lock, self._rows.explained():
            self._require_size(new)
            proof = self._gathered(lambda read: consistency_proof(read, old, new))
            return tuple(item.hex() for item in proof)

    def finality(self, receipt: Receipt) -> Finality:
        """Return `Finality.FINAL` if this ledger holds the receipt's entry and history.

        There is no pending state here: what was acknowledged is on the disk.
        """
        with self._lock, self._rows.explained():
            head = self._verified_head()
            signed = SignedCheckpoint.open(receipt.checkpoint, self._key)
            self._require_prefix(signed, head)
            if receipt.index >= signed.size:
                raise LedgerError(f"The receipt's checkpoint does not hold entry {receipt.index}.")
            verify_receipt(self._rows.record(receipt.index), receipt, self._key)
            return Finality.FINAL

    # -- beyond the port ---------------------------------------------------------------------

    def __len__(self) -> int:
        return self.head().size

    def root_after(self, index: int) -> SignedCheckpoint:
        """Return the first signed checkpoint that holds an entry.

        Raises:
            UsageError: There is no such entry.
        """
        with self._lock, self._rows.explained():
            size = self._verified_head().size
            if not 0 <= index < size:
                raise UsageError(f"Ledger '{self._name}' has {size} entries, no entry {index}.")
            note = self._rows.note(index)
            return SignedCheckpoint.open(note or b"", self._key)

    def receipt(self, index: int) -> Receipt:
        """Make the receipt of an entry again, exactly as appending it returned it.

        Raises:
            UsageError: There is no such entry.
            LedgerError: The entry does not match its hash.
        """
        record, signed = self.get(index), self.root_after(index)
        proof = self.prove(index, signed.size)
        receipt = Receipt(self.origin, index, leaf_hash(record).hex(), str(signed), proof)
        verify_receipt(record, receipt, self._key)
        return receipt

    def hashes(self, level: int, first: int, count: int) -> tuple[bytes, ...]:
        """Return tree hashes of one level, for tiles.

        Args:
            level: Height above the leaves.
            first: Place of the first one within the level.
            count: How many.

        Raises:
            UsageError: The tree does not have them yet.
        """
        with self._lock, self._rows.explained():
            if (first + count) << level > self._verified_head().size:
                raise UsageError(f"Ledger '{self._name}' has no such tile yet.")
            wanted = [(level, first + k) for k in range(count)]
            found = self._nodes(wanted)
            return tuple(found[address(level, place)] for level, place in wanted)

    def checkpoint_of(self, size: int) -> str | None:
        """Return the stored checkpoint of exactly this size, or null; its signature is checked."""
        with self._lock, self._rows.explained():
            note = self._rows.note(size - 1)
            signed = None if note is None else SignedCheckpoint.open(note, self._key)
            return str(signed) if signed is not None and signed.size == size else None

    def own(self, checkpoint: str | SignedCheckpoint) -> SignedCheckpoint:
        """Open a checkpoint and make sure that this log continues it.

        Raises:
            LedgerError: It is of another history, or of a later state.
            SignatureError: It is not signed by this log.
        """
        signed = SignedCheckpoint.open(str(checkpoint), self._key)
        with self._lock, self._rows.explained():
            self._require_prefix(signed, self._verified_head())
        return signed

    def audit(self, *, against: str | SignedCheckpoint | None = None) -> Audit:
        """Derive every hash, root and signature anew and say what is wrong, if anything.

        Args:
            against: A checkpoint that you kept from earlier. Only with one can a rewind to a valid
                older state, or a history signed anew, be found.

        Returns:
            What was found; `check` raises instead.
        """
        with self._lock, self._rows.explained():
            found = audit_log(self._rows, self._key)
        if found.problem is None:
            try:
                if against is not None:
                    self.own(against)
                self._require_own_secret()
            except EarmarkError as error:
                return Audit(found.size, found.root, found.checkpoints, found.intact, error)
        return found

    def check(self, *, against: str | SignedCheckpoint | None = None) -> Audit:
        """Like `audit`, but raise on the first thing that is wrong.

        Raises:
            LedgerError: An entry, hash or checkpoint was changed, dropped or added, or the ledger
                does not continue `against`. The message names the first bad entry and how many
                before it are intact.
            SignatureError: A checkpoint or `against` is not signed by the ledger's key.
        """
        found = self.audit(against=against)
        if found.problem is not None:
            raise found.problem
        return found

    # -- within ------------------------------------------------------------------------------

    def _extend(
        self, records: Sequence[bytes], signer: SignerKey
    ) -> tuple[SignedCheckpoint, tuple[Receipt, ...]]:
        """Add records, tree hashes and one checkpoint inside the open transaction."""
        head = self._verified_head()
        known = self._nodes(peak_nodes(head.size))
        read = _reader(known)
        peaks, leaves = peaks_at(read, head.size), []
        if fold(peaks) != head.root or self._rows.stray(head.size, node_count(head.size)):
            raise LedgerError(
                f"Ledger '{self._name}' does not match its checkpoint of {head.size} entries.",
                hint="Run a check; restore a backup; do not append.",
            )
        new_nodes: list[tuple[int, bytes]] = []
        for index, record in enumerate(records, start=head.size):
            leaves.append(leaf_hash(record))
            peaks, nodes = grow(peaks, index, leaves[-1])
            new_nodes += enumerate(nodes, start=node_count(index))
        known.update(new_nodes)
        size = head.size + len(records)
        signed = SignedCheckpoint.sign(Checkpoint(self.origin, size, fold(peaks)), signer)
        note = str(signed)
        self._rows.add(head.size, records, new_nodes, size, note.encode())
        receipts = []
        for index, leaf in enumerate(leaves, start=head.size):
            proof = tuple(item.hex() for item in inclusion_proof(read, index, size))
            receipts.append(Receipt(self.origin, index, leaf.hex(), note, proof))
        return signed, tuple(receipts)

    def _verified_head(self) -> SignedCheckpoint:
        """Read the newest checkpoint; verify its signature unless it is the one just verified."""
        note = self._rows.note()
        if note is None:
            raise LedgerError(f"Ledger '{self._name}' has no checkpoint.", hint="Restore a backup.")
        if self._trusted is None or str(self._trusted).encode() != note:
            self._trusted = SignedCheckpoint.open(note, self._key)
        return self._trusted

    def _nodes(self, wanted: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        return self._rows.nodes(address(level, index) for level, index in wanted)

    def _gathered(self, build: Callable[[Reader], T]) -> T:
        """Build something from tree hashes: find out which it reads, fetch them at once, build."""
        wanted: list[tuple[int, int]] = []

        def note(level: int, index: int) -> bytes:
            wanted.append((level, index))
            return b""

        build(note)
        return build(_reader(self._nodes(wanted)))

    def _require_size(self, size: int) -> None:
        head = self._verified_head()
        if size > head.size:
            raise UsageError(f"Ledger '{self._name}' has {head.size} entries, not yet {size}.")

    def _page(self, start: int, stop: int) -> list[tuple[int, bytes]]:
        with self._lock, self._rows.explained():
            found = dict(self._rows.page("entries", start, stop - 1, stop - start))
            first, last = address(0, start), address(0, stop - 1)
            hashes = dict(self._rows.page("nodes", first, last, last - first + 1))
        made = []
        for index in range(start, stop):
            record = found.get(index)
            if not isinstance(record, bytes):
                raise LedgerError(
                    f"Ledger '{self._name}' lacks entry {index}.", hint="Run a check."
                )
            if leaf_hash(record) != hashes.get(address(0, index)):
                raise self._changed(index)
            made.append((index, record))
        return made

    def _changed(self, index: int) -> LedgerError:
        return LedgerError(
            f"Ledger entry {index} does not match its hash: the file was changed.",
            hint="Run a check; restore a backup; do not append.",
        )

    def _require_prefix(self, old: SignedCheckpoint, head: SignedCheckpoint) -> None:
        """Refuse a head that does not continue an older checkpoint of this log."""
        if old.size > head.size:
            raise LedgerError(
                f"Ledger '{self._name}' has {head.size} entries; the checkpoint that was kept has "
                f"{old.size}: it went back.",
                hint="Restore a newer backup; do not append.",
            )
        if root_at(_reader(self._nodes(peak_nodes(old.size))), old.size) != old.root:
            raise LedgerError(
                f"Ledger '{self._name}' shows another history of its first {old.size} entries "
                "than the checkpoint that was kept.",
                hint="Keep that checkpoint: with this ledger's head it proves the fork.",
            )

    def _signing_key(self) -> SignerKey:
        if self._signer is None:
            self._signer = self._read_signer()
        return self._signer

    def _require_own_secret(self) -> None:
        """Refuse a readable private key that belongs to another ledger."""
        with suppress(FileError):  # absent, unreadable or too open: no matter for reading
            self._signing_key()


def _reader(known: dict[int, bytes]) -> Reader:
    return lambda level, index: known[address(level, index)]


def require_origin(origin: str) -> None:
    """Refuse what cannot be the name of a log.

    Raises:
        UsageError: Not 1 to 255 printable ASCII characters without spaces or plus.
    """
    plain = origin.isascii() and origin.isprintable()
    if not origin or not plain or " " in origin or "+" in origin or len(origin) > 255:
        raise UsageError(
            f"'{origin[:80]}' cannot be the name of a ledger.",
            expected="1 to 255 printable ASCII characters without spaces or plus.",
            hint="A domain and a path of yours are a good choice: example.com/lab.",
        )


def read_vkey(name: str, origin: bytes, vkey: bytes, pinned: str | None) -> VerifierKey:
    """Read the public key that a database names, and compare it with one that is expected.

    Raises:
        LedgerError: It is no key, of another name, or not the pinned one.
    """
    try:
        key = VerifierKey.parse(vkey.decode("utf-8"))
    except (UnicodeDecodeError, EarmarkError) as error:
        raise LedgerError(f"The public key in ledger '{name}' was changed.") from error
    if key.name.encode() != origin:
        raise LedgerError(f"Ledger '{name}' bears another name than its key.")
    if pinned is not None and pinned != str(key):
        raise LedgerError(f"Ledger '{name}' has the key {key}.", expected=f"{pinned}.")
    return key
