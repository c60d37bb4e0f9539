"""The SQLite file behind the embedded ledger: schema, connection, and errors in plain words.

One file holds everything but the private key. The rollback journal is chosen over WAL (see the
decision record on the journal), commits wait for the disk, and the schema is compared text for
text when a file is opened, so that no trigger or view can stand in for a table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from earmark.errors import (
    EarmarkError,
    FileError,
    FormatError,
    LedgerError,
    OutputError,
    UsageError,
)
from earmark.ledger.rows import COLUMNS, DAMAGED, TABLES, LogRows, require_hash

APPLICATION_ID = 0x45617231
SCHEMA_VERSION = 1
_MAGIC = b"SQLite format 3\x00"
_TABLES = {
    "about": "CREATE TABLE about (origin BLOB NOT NULL, vkey BLOB NOT NULL)",
    "entries": "CREATE TABLE entries (id INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    "nodes": "CREATE TABLE nodes (id INTEGER PRIMARY KEY, hash BLOB NOT NULL)",
    "checkpoints": "CREATE TABLE checkpoints (id INTEGER PRIMARY KEY, note BLOB NOT NULL)",
}


def create_file(path: Path, origin: str, vkey: str, first_note: bytes) -> None:
    """Write a new, empty ledger into an existing empty file and sync it.

    Args:
        path: An empty file that nobody else has open.
        origin: Name of the log.
        vkey: Its public key.
        first_note: The signed checkpoint of size 0.
    """
    with explained(path):
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = MEMORY")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("BEGIN")
            for sql in _TABLES.values():
                db.execute(sql)
            db.execute("INSERT INTO about VALUES (?, ?)", (origin.encode(), vkey.encode()))
            db.execute("INSERT INTO checkpoints VALUES (0, ?)", (first_note,))
            db.execute("COMMIT")
        finally:
            db.close()


def connect(path: Path, *, readonly: bool, timeout: float) -> sqlite3.Connection:
    """Open a ledger file and make sure that it is one.

    Args:
        path: The file.
        readonly: Never write, not even to repair after a crash.
        timeout: Seconds to wait for another writer.

    Raises:
        FileError: Missing, a folder, empty, or not readable.
        FormatError: Not SQLite, not a ledger, or of a newer version.
        LedgerError: Damaged.
    """
    _require_sqlite(path)
    mode = "ro" if readonly else "rw"
    with explained(path):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=False,
        )
    try:
        with explained(path):
            db.text_factory = bytes
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL"):
                db.execute(f"PRAGMA {pragma}")
            _require_ledger(db, path)
            if not readonly:
                _use_rollback_journal(db, path)
    except BaseException as error:
        db.close()
        if readonly and "readonly" in str(error.__cause__):
            raise FileError(
                f"Ledger '{path}' holds an unfinished write of a process that died.",
                hint="Open it once for writing: that takes the unfinished write back.",
            ) from error
        raise
    return db


def _use_rollback_journal(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("PRAGMA journal_mode = TRUNCATE").fetchone() != (b"truncate",):
        raise OutputError(f"Ledger '{path}' cannot be given a rollback journal.")


def disconnect(db: sqlite3.Connection) -> None:
    """Close a connection and leave no empty journal beside the file."""
    try:
        db.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error:
        pass  # another process is using the journal, or the file is read-only
    finally:
        db.close()


def _require_sqlite(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise FileError(
            f"Ledger '{path}' cannot be read: {error.strerror}.",
            hint="Check the path; a ledger has to be created before it is opened.",
        ) from error
    if not start:
        raise FileError(f"Ledger '{path}' is empty: it was truncated, or never written.")
    if start != _MAGIC:
        raise FormatError(f"'{path}' is not a ledger.", expected="An SQLite file.")


def _require_ledger(db: sqlite3.Connection, path: Path) -> None:
    version = integer(db.execute("PRAGMA user_version").fetchone())
    if integer(db.execute("PRAGMA application_id").fetchone()) != APPLICATION_ID:
        raise FormatError(f"'{path}' is an SQLite file, but not a ledger.")
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"Ledger '{path}' has schema version {version}.",
            expected=f"This version of earmark reads {SCHEMA_VERSION}.",
        )
    schema = {}
    for name, sql in db.execute("SELECT name, sql FROM sqlite_master"):
        schema[bytes(name or b"")] = bytes(sql or b"")
    if schema != {name.encode(): sql.encode() for name, sql in _TABLES.items()}:
        raise LedgerError(f"The tables of ledger '{path}' were changed.", hint=DAMAGED)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into errors of this project."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, str(error)) from error
    except UnicodeDecodeError as error:  # SQLite's own message quotes bytes of a damaged file
        raise _explain(path, "names that are no text") from error
    except OSError as error:
        raise OutputError(f"Ledger '{path}' cannot be written: {error.strerror}.") from error


def _explain(path: Path, said: str) -> EarmarkError:
    low = said.lower()
    if "not a database" in low:
        return FormatError(f"'{path}' is not a ledger: {said}.")
    if "readonly" in low or "read-only" in low:
        return OutputError(
            f"Ledger '{path}' cannot be written: {said}.",
            hint="Check the permissions of the file and of its folder.",
        )
    if "is full" in low or "disk i/o" in low:
        return OutputError(f"Ledger '{path}' cannot be used: {said}.", hint="Check the disk.")
    if "locked" in low or "busy" in low:
        return OutputError(
            f"Ledger '{path}' is in use by another process: {said}.", hint="Try again."
        )
    if "unable to open" in low:
        return FileError(
            f"Ledger '{path}' cannot be opened: {said}.",
            hint="Check the permissions of the file and of its folder.",
        )
    if "closed database" in low:
        return UsageError(f"Ledger '{path}' was closed.", hint="Open it again.")
    return LedgerError(f"Ledger '{path}' is damaged: {said}.", hint=DAMAGED)


@contextmanager
def writing(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Hold the write lock from the first read to the commit; roll back on any error."""
    with explained(path):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def integer(row: tuple[object, ...] | None) -> int:
    """Return the only value of a row, which must be an integer."""
    value = row[0] if row else None
    if not isinstance(value, int):
        raise LedgerError("The ledger holds a value of the wrong type.", hint=DAMAGED)
    return value


def blob(row: tuple[object, ...] | None, what: str) -> bytes:
    """Return the only value of a row, which must be bytes.

    Raises:
        LedgerError: The row is missing or holds something else.
    """
    value = row[0] if row else None
    if not isinstance(value, bytes):
        raise LedgerError(f"The ledger lacks {what}.", hint=DAMAGED)
    return value


def about(db: sqlite3.Connection) -> tuple[bytes, bytes]:
    """Return the origin and the public key that the file names."""
    rows = db.execute("SELECT origin, vkey FROM about").fetchall()
    if len(rows) != 1 or not all(isinstance(value, bytes) for value in rows[0]):
        raise LedgerError("The ledger does not say whose it is.", hint=DAMAGED)
    return rows[0]  # type: ignore[no-any-return]


class SqliteRows(LogRows):
    """The rows of a log in an SQLite file.

    Args:
        db: What `connect` returned.
        path: For the messages.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path
        self.name = str(path)

    def explained(self) -> AbstractContextManager[None]:
        """See `explained`."""
        return explained(self._path)

    def writing(self) -> AbstractContextManager[None]:
        """See `writing`."""
        return writing(self._db, self._path)

    def note(self, above: int | None = None) -> bytes | None:
        """See `LogRows.note`."""
        if above is None:
            found = self._db.execute("SELECT note FROM checkpoints ORDER BY id DESC LIMIT 1")
        else:
            sql = "SELECT note FROM checkpoints WHERE id > ? ORDER BY id LIMIT 1"
            found = self._db.execute(sql, (above,))
        row = found.fetchone()
        return None if row is None else blob(row, "a checkpoint")

    def record(self, index: int) -> bytes:
        """See `LogRows.record`."""
        row = self._db.execute("SELECT record FROM entries WHERE id = ?", (index,)).fetchone()
        return blob(row, f"entry {index}")

    def nodes(self, places: Iterable[int]) -> dict[int, bytes]:
        """See `LogRows.nodes`."""
        found = {}
        for place in places:
            row = self._db.execute("SELECT hash FROM nodes WHERE id = ?", (place,)).fetchone()
            found[place] = require_hash(row[0] if row else None, place)
        return found

    def page(self, table: str, first: int, last: int, limit: int) -> list[tuple[object, object]]:
        """See `LogRows.page`."""
        sql = (
            f"SELECT id, {COLUMNS[table]} FROM {table} "  # noqa: S608 - constants
            "WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
        )
        return self._db.execute(sql, (first, last, limit)).fetchall()

    def extent(self) -> tuple[int, int, int]:
        """See `LogRows.extent`."""
        parts = ", ".join(
            f"(SELECT coalesce(max(id), -1) FROM {table})"  # noqa: S608 - three constants
            for table in TABLES
        )
        row = self._db.execute(f"SELECT {parts}").fetchone()
        return integer(row[0:1]), integer(row[1:2]), integer(row[2:3])

    def stray(self, entries: int, nodes: int) -> bool:
        """See `LogRows.stray`."""
        for table, first in (("entries", entries), ("nodes", nodes)):
            sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE id >= ? LIMIT 1)"  # noqa: S608
            if integer(self._db.execute(sql, (first,)).fetchone()):
                return True
        return False

    def add(
        self,
        first: int,
        records: Sequence[bytes],
        nodes: Sequence[tuple[int, bytes]],
        size: int,
        note: bytes,
    ) -> None:
        """See `LogRows.add`."""
        self._db.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(records, start=first))
        self._db.executemany("INSERT INTO nodes VALUES (?, ?)", nodes)
        self._db.execute("INSERT INTO checkpoints VALUES (?, ?)", (size, note))

    def problems(self) -> Iterator[str]:
        """Ask SQLite about the parts of the file that hold no content."""
        for (said,) in self._db.execute("PRAGMA integrity_check(1)"):
            if said != b"ok":
                yield f"SQLite reports: {said.decode('utf-8', 'replace')}."
