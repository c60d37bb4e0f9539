"""The embedded ledger: an RFC 6962 log in one SQLite file, with signed checkpoints.

Nothing to start and nothing to install. An append reads the head, adds entries and tree hashes and
signs the new checkpoint in *one* transaction under the write lock. So a crash leaves the old head
or the new one, never a head that does not match, and two writers at once make one history.

The private key lies beside the file; `earmark.ledger.keyfile` says what that means. Without it the
ledger can still be read and checked.

A connection must not be carried across ``fork``: open the ledger again in the child.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from earmark import codec
from earmark.errors import EarmarkError, FileError, LedgerError, UsageError
from earmark.files import replacing
from earmark.ledger import store
from earmark.ledger.audit import Audit, audit_log
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.keyfile import key_path, read_key, write_key
from earmark.ledger.merkle import (
    EMPTY_ROOT,
    Reader,
    address,
    consistency_proof,
    fold,
    grow,
    inclusion_proof,
    leaf_hash,
    node_count,
    peaks_at,
    root_at,
)
from earmark.ledger.note import SignerKey, VerifierKey
from earmark.ledger.port import Finality, Ledger, verify_receipt
from earmark.records import Receipt

_PAGE = 256


class SqliteLedger(Ledger):
    """A ledger in one SQLite file; see `create` and `open`.

    Example:
        >>> import tempfile
        >>> from earmark.ledger.port import verify_receipt
        >>> place = Path(tempfile.mkdtemp()) / "ledger.sqlite"
        >>> with SqliteLedger.create(place, "example.com/lab") as ledger:
        ...     receipt = ledger.append(b'{"a":1}')
        ...     vkey = ledger.vkey
        >>> verify_receipt(b'{"a":1}', receipt, vkey).size
        1
    """

    def __init__(self, db: sqlite3.Connection, path: Path, key: VerifierKey) -> None:
        self.path = path
        self._db = db
        self._key = key
        self._lock = threading.RLock()
        self._signer: SignerKey | None = None
        self._trusted: SignedCheckpoint | None = None

    # -- opening and closing -----------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, origin: str, *, signer: SignerKey | None = None
    ) -> SqliteLedger:
        """Make a new ledger, with a new signing key beside it.

        Args:
            path: The file to write; must not exist.
            origin: Name of the log: printable ASCII without spaces or plus, best a domain and path
                such as ``example.com/lab``. It can never be changed.
            signer: A signing key of that name, instead of a new one.

        Raises:
            UsageError: The file or its key exists, or the origin cannot be a name.
            OutputError: The folder is missing or cannot be written.
        """
        path = Path(path)
        _require_origin(origin)
        signer = SignerKey.generate(origin) if signer is None else signer
        first = SignedCheckpoint.sign(Checkpoint(origin, 0, EMPTY_ROOT), signer)
        if path.exists():
            raise UsageError(
                f"Ledger '{path}' exists already.", hint="Open it, or use another name."
            )
        secret: Path | None = None
        try:
            with replacing(path) as temporary:
                store.create_file(temporary, origin, str(signer.verifier), str(first).encode())
                write_key(key_path(path), signer)
                secret = key_path(path)
        except BaseException:
            if secret is not None:
                secret.unlink(missing_ok=True)
            raise
        with store.explained(path):
            store.sync_folder(path.absolute().parent)
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        vkey: str | None = None,
        readonly: bool = False,
        timeout: float = 30.0,
    ) -> SqliteLedger:
        """Open an existing ledger. Its head is verified; `check` verifies all of it.

        Args:
            path: The file.
            vkey: The public key that you expect, if you have pinned it.
            readonly: Open without the right to append.
            timeout: Seconds to wait while another process is writing.

        Raises:
            FileError: Missing, empty, or not readable.
            FormatError: Not a ledger, or one of a newer version.
            LedgerError: Damaged, or with another key than `vkey`.
            SignatureError: The head is not signed by the ledger's key.
        """
        path = Path(path)
        db = store.connect(path, readonly=readonly, timeout=timeout)
        try:
            with store.explained(path):
                ledger = cls(db, path, _public_key(db, path, vkey))
                ledger._verified_head()
        except BaseException:
            db.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        with self._lock:
            store.disconnect(self._db)

    def __enter__(self) -> SqliteLedger:  # noqa: PYI034 - Self is newer than our oldest Python
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SqliteLedger({str(self.path)!r}, origin={self.origin!r})"

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
            with store.writing(self._db, self.path):
                signed, receipts = self._extend(records, signer)
            self._trusted = signed
        return receipts

    def get(self, index: int) -> bytes:
        """Return the record at an index; see `Ledger.get`."""
        with self._lock, store.explained(self.path):
            size = self._verified_head().size
            if not 0 <= index < size:
                raise UsageError(f"Ledger '{self.path}' has {size} entries, no entry {index}.")
            record = store.record_at(self._db, index)
            if leaf_hash(record) != store.reader(self._db)(0, index):
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
        with self._lock, store.explained(self.path):
            return self._verified_head()

    def prove(self, index: int, size: int) -> tuple[str, ...]:
        """Prove that the first `size` entries hold entry `index`; see `Ledger.prove`."""
        with self._lock, store.explained(self.path):
            proof = inclusion_proof(self._reader_at(size), index, size)
            return tuple(item.hex() for item in proof)

    def prove_consistency(self, old: int, new: int) -> tuple[str, ...]:
        """Prove that nothing below `old` changed up to `new`; see `Ledger.prove_consistency`."""
        with self._lock, store.explained(self.path):
            proof = consistency_proof(self._reader_at(new), old, new)
            return tuple(item.hex() for item in proof)

    def finality(self, receipt: Receipt) -> Finality:
        """Return `Finality.FINAL` if this ledger holds the receipt's entry and history.

        There is no pending state here: what was acknowledged is on the disk.
        """
        with self._lock, store.explained(self.path):
            head = self._verified_head()
            signed = SignedCheckpoint.open(receipt.checkpoint, self._key)
            self._require_prefix(signed, head)
            if receipt.index >= signed.size:
                raise LedgerError(f"The receipt's checkpoint does not hold entry {receipt.index}.")
            verify_receipt(store.record_at(self._db, receipt.index), receipt, self._key)
            return Finality.FINAL

    # -- beyond the port ---------------------------------------------------------------------

    def __len__(self) -> int:
        return self.head().size

    def root_after(self, index: int) -> SignedCheckpoint:
        """Return the first signed checkpoint that holds an entry.

        Raises:
            UsageError: There is no such entry.
        """
        with self._lock, store.explained(self.path):
            size = self._verified_head().size
            if not 0 <= index < size:
                raise UsageError(f"Ledger '{self.path}' has {size} entries, no entry {index}.")
            note = store.note_where(self._db, "WHERE id > ? ORDER BY id", index)
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

    def audit(self, *, against: str | SignedCheckpoint | None = None) -> Audit:
        """Derive every hash, root and signature anew and say what is wrong, if anything.

        Args:
            against: A checkpoint that you kept from earlier. Only with one can a rewind to a valid
                older state, or a history signed anew, be found.

        Returns:
            What was found; `check` raises instead.
        """
        with self._lock, store.explained(self.path):
            found = audit_log(self._db, self._key, self.path)
        if found.problem is None:
            try:
                if against is not None:
                    self._require_kept(against)
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
        fresh: dict[int, bytes] = {}
        read = store.reader(self._db, fresh)
        peaks, leaves = peaks_at(read, head.size), []
        if fold(peaks) != head.root or self._stray(head.size):
            raise LedgerError(
                f"Ledger '{self.path}' does not match its checkpoint of {head.size} entries.",
                hint="Run a check; restore a backup; do not append.",
            )
        new_nodes: list[tuple[int, bytes]] = []
        for index, record in enumerate(records, start=head.size):
            leaves.append(leaf_hash(record))
            peaks, nodes = grow(peaks, index, leaves[-1])
            new_nodes += enumerate(nodes, start=node_count(index))
        fresh.update(new_nodes)
        size = head.size + len(records)
        signed = SignedCheckpoint.sign(Checkpoint(self.origin, size, fold(peaks)), signer)
        note = str(signed)
        self._db.executemany(
            "INSERT INTO entries VALUES (?, ?)", enumerate(records, start=head.size)
        )
        self._db.executemany("INSERT INTO nodes VALUES (?, ?)", new_nodes)
        self._db.execute("INSERT INTO checkpoints VALUES (?, ?)", (size, note.encode()))
        receipts = []
        for index, leaf in enumerate(leaves, start=head.size):
            proof = tuple(item.hex() for item in inclusion_proof(read, index, size))
            receipts.append(Receipt(self.origin, index, leaf.hex(), note, proof))
        return signed, tuple(receipts)

    def _verified_head(self) -> SignedCheckpoint:
        """Read the newest checkpoint; verify its signature unless it is the one just verified."""
        note = store.note_where(self._db, "ORDER BY id DESC")
        if note is None:
            raise LedgerError(f"Ledger '{self.path}' has no checkpoint.", hint="Restore a backup.")
        if self._trusted is None or str(self._trusted).encode() != note:
            self._trusted = SignedCheckpoint.open(note, self._key)
        return self._trusted

    def _stray(self, size: int) -> bool:
        """Tell whether anything is stored beyond a head of `size` entries."""
        for table, first in (("entries", size), ("nodes", node_count(size))):
            sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE id >= ? LIMIT 1)"  # noqa: S608
            if store.integer(self._db.execute(sql, (first,)).fetchone()):
                return True
        return False

    def _reader_at(self, size: int) -> Reader:
        head = self._verified_head()
        if size > head.size:
            raise UsageError(f"Ledger '{self.path}' has {head.size} entries, not yet {size}.")
        return store.reader(self._db)

    def _page(self, start: int, stop: int) -> list[tuple[int, bytes]]:
        with self._lock, store.explained(self.path):
            rows = self._db.execute(
                "SELECT id, record FROM entries WHERE id >= ? AND id < ? ORDER BY id", (start, stop)
            ).fetchall()
            hashes = dict(
                self._db.execute(
                    "SELECT id, hash FROM nodes WHERE id >= ? AND id <= ?",
                    (address(0, start), address(0, stop - 1)),
                )
            )
        found = dict(rows)
        for index in range(start, stop):
            record = found.get(index)
            if not isinstance(record, bytes):
                raise LedgerError(f"Ledger '{self.path}' lacks entry {index}.", hint="Run a check.")
            if leaf_hash(record) != hashes.get(address(0, index)):
                raise self._changed(index)
        return [(index, found[index]) for index in range(start, stop)]

    def _changed(self, index: int) -> LedgerError:
        return LedgerError(
            f"Ledger entry {index} does not match its hash: the file was changed.",
            hint="Run a check; restore a backup; do not append.",
        )

    def _require_prefix(self, old: SignedCheckpoint, head: SignedCheckpoint) -> None:
        """Refuse a head that does not continue an older checkpoint of this log."""
        if old.size > head.size:
            raise LedgerError(
                f"Ledger '{self.path}' has {head.size} entries; the checkpoint that was kept has "
                f"{old.size}: it went back.",
                hint="Restore a newer backup; do not append.",
            )
        if root_at(store.reader(self._db), old.size) != old.root:
            raise LedgerError(
                f"Ledger '{self.path}' shows another history of its first {old.size} entries "
                "than the checkpoint that was kept.",
                hint="Keep that checkpoint: with this ledger's head it proves the fork.",
            )

    def _require_kept(self, against: str | SignedCheckpoint) -> None:
        signed = SignedCheckpoint.open(str(against), self._key)
        with self._lock, store.explained(self.path):
            self._require_prefix(signed, self._verified_head())

    def _signing_key(self) -> SignerKey:
        if self._signer is None:
            self._signer = read_key(key_path(self.path), self._key)
        return self._signer

    def _require_own_secret(self) -> None:
        """Refuse a readable private key beside the file that belongs to another ledger."""
        with suppress(FileError):  # absent, unreadable or too open: no matter for reading
            self._signing_key()


def _require_origin(origin: str) -> None:
    plain = origin.isascii() and origin.isprintable()
    if not origin or not plain or " " in origin or "+" in origin or len(origin) > 255:
        raise UsageError(
            f"'{origin[:80]}' cannot be the name of a ledger.",
            expected="1 to 255 printable ASCII characters without spaces or plus.",
            hint="A domain and a path of yours are a good choice: example.com/lab.",
        )


def _public_key(db: sqlite3.Connection, path: Path, pinned: str | None) -> VerifierKey:
    origin, vkey = store.about(db)
    try:
        key = VerifierKey.parse(vkey.decode("utf-8"))
    except (UnicodeDecodeError, EarmarkError) as error:
        raise LedgerError(f"The public key in ledger '{path}' was changed.") from error
    if key.name.encode() != origin:
        raise LedgerError(f"Ledger '{path}' bears another name than its key.")
    if pinned is not None and pinned != str(key):
        raise LedgerError(f"Ledger '{path}' has the key {key}.", expected=f"{pinned}.")
    return key
