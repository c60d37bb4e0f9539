"""A log for many: a ledger behind witnesses, and a mirror that believes nothing.

The ledger is an SQLite file or a PostgreSQL schema; see `earmark.ledger.engines`. `LogService`
appends, one entry a checkpoint, asks every witness to cosign, and hands out entries with their
cosigned checkpoints. A `Mirror` fetches them from anywhere, derives every root again from the
records, and accepts an entry only under a checkpoint that a quorum of witnesses cosigned. So
whoever runs the log can refuse service and nothing else.

The transport is left to the caller: witnesses are functions, pages of the log are values.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from earmark.errors import EarmarkError, LedgerError, OutputError
from earmark.ledger.checkpoint import SignedCheckpoint, cosigned_at
from earmark.ledger.merkle import fold, grow, leaf_hash
from earmark.ledger.note import NoteSignature, VerifierKey
from earmark.ledger.port import beacon
from earmark.ledger.treelog import TreeLog
from earmark.ledger.witness import Quorum, Request, WitnessError, attach
from earmark.records import Receipt, Record

_LOG = logging.getLogger("earmark.ledger")
_PATIENCE, _GRACE = 15.0, 1.0  # seconds for a quorum, and for the others after it

Ask = Callable[[Request], NoteSignature]
"""Asks one witness; raises `WitnessError` if it refuses. What it returns or raises else is no
cosignature, and holds up nobody, unless it verifies under that witness's key."""

MAX_PAGE = 256
MAX_RECORD_BYTES = 32768
"""The largest record that every tier takes: tiles allow twice this, the contract this much."""


@dataclass(frozen=True, slots=True)
class Row(Record):
    """One entry as a log hands it out.

    Args:
        record: The record's text.
        checkpoint: The checkpoint that this entry was appended with, with its cosignatures; null
            if no quorum cosigned that one (a later one holds the entry too).
    """

    SCHEMA: ClassVar[str] = "earmark/log-row/1"
    record: str
    checkpoint: str | None


class Notes(ABC):
    """Where a service keeps the checkpoints that a quorum has cosigned, by size."""

    @abstractmethod
    def cosigned(self, size: int) -> str | None:
        """Return the cosigned checkpoint of a size, or null."""

    @abstractmethod
    def keep_cosigned(self, size: int, note: str) -> None:
        """Keep a cosigned checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """Close what it is kept in."""


class SqliteNotes(Notes):
    """Cosigned checkpoints in an SQLite file.

    Args:
        path: Made if it is missing.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS cosigned (size INTEGER PRIMARY KEY, note TEXT)"
            )
        except sqlite3.Error as error:
            raise OutputError(f"File '{path}' cannot be written: {error}.") from error

    def cosigned(self, size: int) -> str | None:
        """See `Notes.cosigned`."""
        row = self._db.execute("SELECT note FROM cosigned WHERE size = ?", (size,)).fetchone()
        return None if row is None else str(row[0])

    def keep_cosigned(self, size: int, note: str) -> None:
        """See `Notes.keep_cosigned`."""
        self._db.execute("INSERT OR REPLACE INTO cosigned VALUES (?, ?)", (size, note))

    def close(self) -> None:
        """See `Notes.close`."""
        self._db.close()


class LogService:
    """A ledger whose every head is shown to witnesses.

    Args:
        ledger: The ledger.
        notes: Where cosigned checkpoints are kept, or a file for them beside the ledger; made if
            it is missing.
        quorum: Witnesses and how many of them must cosign.
        witnesses: Public key of a witness, ``NAME+ID+BASE64``, to a function that asks it.

    Raises:
        SignatureError: One of the public keys is none.
    """

    def __init__(
        self,
        ledger: TreeLog,
        notes: Notes | str | Path,
        quorum: Quorum,
        witnesses: Mapping[str, Ask],
    ) -> None:
        self.ledger, self.quorum = ledger, quorum
        self._asks = dict(witnesses)
        self._keys = {name: VerifierKey.parse(name) for name in witnesses}
        self._known: dict[str, int] = {}
        self._owing: dict[str, Future[NoteSignature | None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, len(self._asks)))
        self.notes = notes if isinstance(notes, Notes) else SqliteNotes(notes)

    def close(self) -> None:
        """Close notes and threads; the ledger is the caller's."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.notes.close()

    def append(self, record: bytes) -> Receipt:
        """Add a record and have the new head cosigned.

        Returns:
            The receipt; its checkpoint bears the cosignatures that were given, perhaps too few.

        Raises:
            RecordError: The bytes are no canonical JSON document, or too many.
            LedgerError, OutputError: See `earmark.ledger.port.Ledger.append`.
        """
        if len(record) > MAX_RECORD_BYTES:
            raise LedgerError(f"A record of {len(record):,} bytes is too large for this log.")
        with self._lock:
            receipt = self.ledger.append(record)
            signed = self.cosign(SignedCheckpoint.parse(receipt.checkpoint))
        return Receipt(receipt.origin, receipt.index, receipt.leaf_hash, str(signed), receipt.proof)

    def cosign(self, signed: SignedCheckpoint) -> SignedCheckpoint:
        """Ask the witnesses about a head and keep it with what they gave.

        Once a quorum has signed, the others have a moment left, so that a faulty one cannot hold up
        the log; a witness that still owes an answer to the last question is not asked.
        """
        fresh: set[Future[NoteSignature | None]] = set()
        for name in self._asks:
            if name not in self._owing or self._owing[name].done():
                self._owing[name] = self._pool.submit(self._one, name, signed)
                fresh.add(self._owing[name])
        made, started = signed, time.monotonic()
        lines: list[NoteSignature] = []
        while fresh:
            enough = len(self.quorum.cosigned(made)) >= self.quorum.threshold
            left = started + (_GRACE if enough else _PATIENCE) - time.monotonic()
            done, fresh = wait(fresh, timeout=max(0.0, left), return_when=FIRST_COMPLETED)
            if not done:
                break
            lines += [line for item in done if (line := item.result())]
            made = attach(signed, lines)
        if len(self.quorum.cosigned(made)) >= self.quorum.threshold:
            self.notes.keep_cosigned(made.size, str(made))
        return made

    def _one(self, name: str, signed: SignedCheckpoint) -> NoteSignature | None:
        """Ask one witness, and again if it is behind; null for what does not verify as its own."""
        for _ in range(2):
            old = min(self._known.get(name, 0), signed.size)
            request = Request(old, self.ledger.prove_consistency(old, signed.size), str(signed))
            try:
                line = self._asks[name](request)
                cosigned_at(attach(signed, [line]), self._keys[name])
            except WitnessError as error:
                size = error.size if error.status == 409 else None
                if size is None or not 0 <= size <= signed.size:
                    return None
                self._known[name] = size
            except EarmarkError:
                return None
            except Exception:  # noqa: BLE001 - whatever a stranger sent is one witness less
                _LOG.warning("Witness '%s' gave no answer.", self._keys[name].name, exc_info=True)
                return None
            else:
                self._known[name] = signed.size
                return line
        return None

    def page(self, since: int, limit: int = MAX_PAGE) -> list[Row]:
        """Return entries from `since` on, at most `limit`."""
        rows: list[Row] = []
        for index, record in self.ledger.scan(since):
            if len(rows) >= min(limit, MAX_PAGE):
                break
            rows.append(Row(record.decode(), self.cosigned(index + 1)))
        return rows

    def checkpoint(self) -> str:
        """Return the newest head, with its cosignatures if a quorum gave theirs."""
        head = self.ledger.head()
        return self.cosigned(head.size) or str(head)

    def cosigned(self, size: int) -> str | None:
        """Return the cosigned checkpoint of a size, or null."""
        return self.notes.cosigned(size)


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry that a mirror has accepted.

    Args:
        index: Position in the log.
        record: The record's bytes.
        time: Median of the witnesses' clocks, seconds since 1970.
        beacon: See `earmark.ledger.port.beacon`; null if the entry shares its checkpoint.
        checkpoint: The checkpoint that proves it.
    """

    index: int
    record: bytes
    time: int
    beacon: str | None
    checkpoint: SignedCheckpoint


class Mirror:
    """A reader's own copy of a log, derived again from its records.

    Args:
        key: The log's public key, from a source that you trust.
        quorum: The witnesses, from a source that you trust.
    """

    def __init__(self, key: VerifierKey, quorum: Quorum) -> None:
        self.key, self.quorum = key, quorum
        self.entries: list[Seen] = []
        self._peaks: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Number of accepted entries."""
        return len(self.entries)

    def take(self, rows: Sequence[Row]) -> list[Seen]:
        """Accept a page of the log that begins at `size`.

        Entries at its end that no quorum has cosigned are left for the next time.

        Returns:
            What was accepted.

        Raises:
            LedgerError: A record or checkpoint does not continue what was accepted before.
            SignatureError: A checkpoint is not signed by the log.
        """
        kept = peaks = self._peaks
        waiting, fresh = [], []
        for offset, row in enumerate(rows):
            index = self.size + offset
            record = _encoded(row)
            leaf = leaf_hash(record)
            peaks, _ = grow(peaks, index, leaf)
            waiting.append((index, record))
            if row.checkpoint is None:
                continue
            signed = SignedCheckpoint.open(row.checkpoint, self.key)
            if signed.size != index + 1 or signed.root != fold(peaks):
                raise LedgerError(
                    f"The log '{self.key.name}' shows other entries up to {index} than it signed.",
                    hint="Keep what it sent: the checkpoint is signed.",
                )
            when = self.quorum.time(signed)
            for number, data in waiting:
                drawn = _beacon(signed, number, data) if number == index else None
                fresh.append(Seen(number, data, when, drawn, signed))
            waiting, kept = [], peaks
        self.entries += fresh
        self._peaks = kept
        return fresh


def _encoded(row: Row) -> bytes:
    try:
        return row.record.encode()
    except UnicodeEncodeError as error:
        raise LedgerError("The log shows a record that is not valid Unicode.") from error


def _beacon(signed: SignedCheckpoint, index: int, record: bytes) -> str | None:
    if signed.body.extensions:
        return None
    receipt = Receipt(signed.origin, index, leaf_hash(record).hex(), str(signed), ())
    return beacon(receipt)


class BlobStore:
    """A folder of files named by their SHA-256.

    Args:
        folder: Made if it is missing.
        limit: Largest file, bytes.
        quota: Bytes in all, of which the newest file may use up the last and more.
    """

    def __init__(self, folder: str | Path, *, limit: int = 1 << 28, quota: int = 1 << 36) -> None:
        self.folder, self.limit, self.quota = Path(folder), limit, quota
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Folder '{folder}' cannot be made: {error.strerror}.") from error

    def require_room(self) -> None:
        """Refuse to take more once the quota is used up.

        Raises:
            OutputError: It is, or the folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as found:
                used = sum(item.stat().st_size for item in found)
        except OSError as error:
            raise OutputError(f"'{self.folder}' cannot be read: {error.strerror}.") from error
        if used >= self.quota:
            raise OutputError(f"No room: {used:,} of {self.quota:,} bytes are used.")

    def put(self, data: bytes) -> str:
        """Keep some bytes and return their digest.

        Raises:
            OutputError: Too large, or the folder cannot be written.
        """
        from earmark import files

        if len(data) > self.limit:
            raise OutputError(f"A file of {len(data):,} bytes; at most {self.limit:,} are kept.")
        name = hashlib.sha256(data).hexdigest()
        if not (self.folder / name).exists():
            files.write_bytes(self.folder / name, data, overwrite=True)
        return name

    def keep(self, path: Path, digest: str) -> None:
        """Keep a file that lies in this folder already and has that digest.

        Raises:
            OutputError: The folder cannot be written.
        """
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            if not (self.folder / digest).exists():
                os.link(path, self.folder / digest)
        except FileExistsError:
            return
        except OSError as error:
            raise OutputError(f"File '{digest[:16]}' cannot be kept: {error.strerror}.") from error

    def path(self, digest: str) -> Path | None:
        """Return where a file lies, or null if it is not here."""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            return None
        path = self.folder / digest
        return path if path.is_file() else None
