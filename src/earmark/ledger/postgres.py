"""The shared ledger: the same log on a PostgreSQL server.

The rows are those of the embedded ledger, in one schema of a database; what an append does is told
in `earmark.ledger.treelog`. The write lock is a lock on the log's one line about itself, commits
wait for the disk whatever the server's default is, and a server that was told not to sync is
refused. So any number of services on any number of machines may append to one log.

The private key never enters the database: each service that appends has it in a file of its own.
Needs the extra ``service``.

A connection that breaks is made anew at the next call. If it breaks *during* a commit, nobody can
tell whether the records were added; the error says so, and looking at the head tells.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from earmark.errors import (
    ExtraError,
    FileError,
    FormatError,
    LedgerError,
    NetworkError,
    OutputError,
    UsageError,
)
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.keyfile import read_key, write_key
from earmark.ledger.merkle import EMPTY_ROOT
from earmark.ledger.note import SignerKey, VerifierKey
from earmark.ledger.rows import COLUMNS, DAMAGED, LogRows, require_all, require_hash
from earmark.ledger.service import Notes
from earmark.ledger.treelog import TreeLog, read_vkey, require_origin

if TYPE_CHECKING:
    import psycopg

SCHEMA = "earmark"
_SCHEMA_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_VERSION = 1
_TABLES = (
    "CREATE TABLE about (id bigint PRIMARY KEY CHECK (id = 0), origin bytea NOT NULL, "
    "vkey bytea NOT NULL, version integer NOT NULL)",
    "CREATE TABLE entries (id bigint PRIMARY KEY, record bytea NOT NULL)",
    "CREATE TABLE nodes (id bigint PRIMARY KEY, hash bytea NOT NULL)",
    "CREATE TABLE checkpoints (id bigint PRIMARY KEY, note bytea NOT NULL)",
    "CREATE TABLE cosigned (id bigint PRIMARY KEY, note bytea NOT NULL)",
)
_NAMES = {"about", "entries", "nodes", "checkpoints", "cosigned"}
_ADD = """
WITH e AS (INSERT INTO entries SELECT * FROM unnest(%b::bigint[], %b::bytea[])),
     n AS (INSERT INTO nodes SELECT * FROM unnest(%b::bigint[], %b::bytea[]))
INSERT INTO checkpoints VALUES (%b::bigint, %b::bytea)
"""


class PostgresRows(LogRows):
    """The rows of a log in a schema of a PostgreSQL database.

    Args:
        dsn: Where the server is, as libpq writes it: ``postgresql://user@host/database``.
        schema: Where the tables are.
        seconds: How long to wait for the server, and for another writer.
    """

    def __init__(self, dsn: str, schema: str, *, seconds: int = 30) -> None:
        _require_driver()
        if not _SCHEMA_NAME.fullmatch(schema):
            raise UsageError(
                f"'{schema[:80]}' cannot be the name of a log's schema.",
                expected="A small letter, then small letters, digits and underscores.",
            )
        self._dsn, self._schema, self._seconds = dsn, schema, seconds
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._closed = False
        self.name = f"{without_password(dsn)} {schema}"

    @property
    def db(self) -> psycopg.Connection[tuple[object, ...]]:
        """The connection; made if there is none or it broke."""
        if self._closed:
            raise UsageError(f"Ledger '{self.name}' was closed.", hint="Open it again.")
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        import psycopg

        made = psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=self._seconds,
            options=f"-c search_path={self._schema} -c lock_timeout={self._seconds}s "
            "-c synchronous_commit=on -c client_min_messages=warning",
        )
        row = made.execute(
            "SELECT current_setting('fsync'), current_setting('full_page_writes')"
        ).fetchone()
        if row != ("on", "on"):
            made.close()
            raise UsageError(
                f"The server of ledger '{self.name}' does not sync its writes.",
                expected="fsync = on and full_page_writes = on.",
            )
        return made

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """See `LogRows.explained`."""
        import psycopg

        try:
            yield
        except psycopg.errors.LockNotAvailable as error:
            raise OutputError(
                f"Ledger '{self.name}' is in use by another writer.", hint="Try again."
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise NetworkError(
                f"The server of ledger '{self.name}' does not answer: {_said(error)}"
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise OutputError(f"Ledger '{self.name}': {_said(error)}") from error
        except psycopg.errors.UndefinedTable as error:
            raise FileError(
                f"There is no ledger at '{self.name}'.",
                hint="A ledger has to be created before it is opened.",
            ) from error
        except psycopg.Error as error:
            raise LedgerError(
                f"Ledger '{self.name}' is damaged: {_said(error)}", hint=DAMAGED
            ) from error

    def writing(self) -> AbstractContextManager[None]:
        """See `LogRows.writing`."""
        return self._writing()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        import psycopg

        with self.explained():
            db = self.db
            db.execute("BEGIN")
            try:
                db.execute("SELECT id FROM about WHERE id = 0 FOR UPDATE")
                yield
            except BaseException:
                if not db.closed:
                    db.execute("ROLLBACK")
                raise
            try:
                db.execute("COMMIT")
            except psycopg.OperationalError as error:
                raise OutputError(
                    f"The server of ledger '{self.name}' broke off during a commit: {_said(error)}",
                    expected="Nobody can tell from here whether the records were added.",
                    hint="Look at the head before you append them again.",
                ) from error

    def note(self, above: int | None = None) -> bytes | None:
        """See `LogRows.note`."""
        if above is None:
            sql = "SELECT note FROM checkpoints ORDER BY id DESC LIMIT 1"
            row = self.db.execute(sql).fetchone()
        else:
            sql = "SELECT note FROM checkpoints WHERE id > %s ORDER BY id LIMIT 1"
            row = self.db.execute(sql, (above,)).fetchone()
        return None if row is None else _bytes(row, "a checkpoint")

    def record(self, index: int) -> bytes:
        """See `LogRows.record`."""
        sql = "SELECT record FROM entries WHERE id = %s"
        return _bytes(self.db.execute(sql, (index,), binary=True).fetchone(), f"entry {index}")

    def nodes(self, places: Iterable[int]) -> dict[int, bytes]:
        """See `LogRows.nodes`."""
        wanted = list(places)
        if not wanted:
            return {}
        sql = "SELECT id, hash FROM nodes WHERE id = ANY(%b::bigint[])"
        found = {
            int(str(place)): require_hash(value, int(str(place)))
            for place, value in self.db.execute(sql, (wanted,), binary=True)
        }
        require_all(found, wanted)
        return found

    def page(self, table: str, first: int, last: int, limit: int) -> list[tuple[object, object]]:
        """See `LogRows.page`."""
        from psycopg import sql

        query = sql.SQL("SELECT id, {} FROM {} WHERE id BETWEEN %s AND %s ORDER BY id LIMIT %s")
        chosen = query.format(sql.Identifier(COLUMNS[table]), sql.Identifier(table))
        rows = self.db.execute(chosen, (first, last, limit), binary=True).fetchall()
        return [(row[0], row[1]) for row in rows]

    def extent(self) -> tuple[int, int, int]:
        """See `LogRows.extent`."""
        row = self.db.execute(
            "SELECT (SELECT coalesce(max(id), -1) FROM entries), "
            "(SELECT coalesce(max(id), -1) FROM nodes), "
            "(SELECT coalesce(max(id), -1) FROM checkpoints)"
        ).fetchone()
        found = [int(str(value)) for value in row or ()]
        return found[0], found[1], found[2]

    def stray(self, entries: int, nodes: int) -> bool:
        """See `LogRows.stray`."""
        row = self.db.execute(
            "SELECT EXISTS (SELECT 1 FROM entries WHERE id >= %s) "
            "OR EXISTS (SELECT 1 FROM nodes WHERE id >= %s)",
            (entries, nodes),
        ).fetchone()
        return row != (False,)

    def add(
        self,
        first: int,
        records: Sequence[bytes],
        nodes: Sequence[tuple[int, bytes]],
        size: int,
        note: bytes,
    ) -> None:
        """See `LogRows.add`."""
        places = list(range(first, first + len(records)))
        numbers, hashes = [place for place, _ in nodes], [value for _, value in nodes]
        self.db.execute(_ADD, (places, list(records), numbers, hashes, size, note))

    def create(self, origin: str, vkey: str, note: bytes) -> None:
        """Make the schema and its tables, all of them or none.

        Raises:
            UsageError: There is a schema of that name.
        """
        from psycopg import errors, sql

        try:
            with self.explained(), self.db.transaction():
                self.db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
                for statement in _TABLES:
                    self.db.execute(statement)
                about = (origin.encode(), vkey.encode(), _VERSION)
                self.db.execute("INSERT INTO about VALUES (0, %s, %s, %s)", about)
                self.db.execute("INSERT INTO checkpoints VALUES (0, %s)", (note,))
        except LedgerError as error:
            if isinstance(error.__cause__, errors.DuplicateSchema):
                raise UsageError(
                    f"Ledger '{self.name}' exists already.", hint="Open it, or use another schema."
                ) from error
            raise

    def about(self) -> tuple[bytes, bytes]:
        """Make sure that the tables are a log's, and return origin and public key.

        Raises:
            FormatError: Of a newer version.
            LedgerError: A table was replaced, or given a trigger or rule.
        """
        found = self.db.execute(
            "SELECT relname, relkind, relrowsecurity "
            "OR EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = pg_class.oid) "
            "OR EXISTS (SELECT 1 FROM pg_rewrite WHERE ev_class = pg_class.oid) "
            "FROM pg_class JOIN pg_namespace ON relnamespace = pg_namespace.oid "
            "WHERE nspname = %s AND relkind <> 'i'",
            (self._schema,),
        ).fetchall()
        if not found:
            raise FileError(
                f"There is no ledger at '{self.name}'.",
                hint="A ledger has to be created before it is opened.",
            )
        plain = all(kind in {"r", b"r"} and altered is False for _, kind, altered in found)
        if {name for name, _, _ in found} != _NAMES or not plain:
            raise LedgerError(f"The tables of ledger '{self.name}' were changed.", hint=DAMAGED)
        row = self.db.execute("SELECT origin, vkey, version FROM about WHERE id = 0").fetchone()
        if row is None or not isinstance(row[0], bytes) or not isinstance(row[1], bytes):
            raise LedgerError(f"Ledger '{self.name}' does not say whose it is.", hint=DAMAGED)
        if row[2] != _VERSION:
            raise FormatError(
                f"Ledger '{self.name}' has schema version {row[2]}.",
                expected=f"This version of earmark reads {_VERSION}.",
            )
        return row[0], row[1]


class PostgresNotes(Notes):
    """Cosigned checkpoints beside a log's rows, through a connection of their own.

    Args:
        dsn: Where the server is.
        schema: Where the tables are.
    """

    def __init__(self, dsn: str, schema: str = SCHEMA) -> None:
        self._rows = PostgresRows(dsn, schema)
        self._lock = threading.Lock()

    def cosigned(self, size: int) -> str | None:
        """See `Notes.cosigned`."""
        with self._lock, self._rows.explained():
            sql = "SELECT note FROM cosigned WHERE id = %s"
            row = self._rows.db.execute(sql, (size,)).fetchone()
        return None if row is None else _bytes(row, "a checkpoint").decode()

    def keep_cosigned(self, size: int, note: str) -> None:
        """See `Notes.keep_cosigned`."""
        sql = (
            "INSERT INTO cosigned VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET note = excluded.note"
        )
        with self._lock, self._rows.explained():
            self._rows.db.execute(sql, (size, note.encode()))

    def close(self) -> None:
        """See `Notes.close`."""
        self._rows.close()


class PostgresLedger(TreeLog):
    """A ledger in a PostgreSQL database; see `create` and `open`."""

    def __init__(self, rows: PostgresRows, key: VerifierKey, secret: Path | None) -> None:
        super().__init__(rows, key)
        self.rows, self._secret = rows, secret

    @classmethod
    def create(
        cls,
        dsn: str,
        origin: str,
        *,
        key: str | Path,
        schema: str = SCHEMA,
        signer: SignerKey | None = None,
    ) -> PostgresLedger:
        """Make a new ledger, with a new signing key in a file.

        Args:
            dsn: Where the server is: ``postgresql://user@host/database``.
            origin: Name of the log; see `earmark.ledger.log.SqliteLedger.create`.
            key: File for the private key; must not exist.
            schema: Where the tables go; must not exist.
            signer: A signing key of that name, instead of a new one.

        Raises:
            UsageError: Schema or key exist, or a name cannot be one.
            NetworkError: The server does not answer.
            ExtraError: The extra ``service`` is not installed.
        """
        require_origin(origin)
        signer = SignerKey.generate(origin) if signer is None else signer
        first = SignedCheckpoint.sign(Checkpoint(origin, 0, EMPTY_ROOT), signer)
        rows, path = PostgresRows(dsn, schema), Path(key)
        try:
            write_key(path, signer)
            try:
                rows.create(origin, str(signer.verifier), str(first).encode())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        finally:
            rows.close()
        return cls.open(dsn, key=path, schema=schema)

    @classmethod
    def open(
        cls,
        dsn: str,
        *,
        key: str | Path | None = None,
        schema: str = SCHEMA,
        vkey: str | None = None,
        seconds: int = 30,
    ) -> PostgresLedger:
        """Open an existing ledger. Its head is verified; `check` verifies all of it.

        Args:
            dsn: Where the server is.
            key: File with the private key; null to read only.
            schema: Where the tables are.
            vkey: The public key that you expect, if you have pinned it.
            seconds: How long to wait for the server, and for another writer.

        Raises:
            FileError: There is no such ledger.
            LedgerError: Damaged, or with another key than `vkey`.
            NetworkError: The server does not answer.
            ExtraError: The extra ``service`` is not installed.
        """
        rows = PostgresRows(dsn, schema, seconds=seconds)
        try:
            with rows.explained():
                found = read_vkey(rows.name, *rows.about(), vkey)
                ledger = cls(rows, found, None if key is None else Path(key))
                ledger.head()
        except BaseException:
            rows.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the connection. Closing twice does no harm."""
        with self._lock:
            self.rows.close()

    def _read_signer(self) -> SignerKey:
        if self._secret is None:
            raise FileError(
                f"Ledger '{self._name}' was opened without its private key.",
                hint="Name the key's file to append; reading and checking work without it.",
            )
        return read_key(self._secret, self._key)


def without_password(dsn: str) -> str:
    """Return an address as it may stand in a message.

    Example:
        >>> without_password("postgresql://me:secret@host:5432/logs")
        'postgresql://me@host:5432/logs'
    """
    plain = re.sub(r"(://[^/@:]*):[^@/]*@", r"\1@", dsn)
    return re.sub(r"(?i)(password=)('[^']*'|[^&\s]+)", r"\1...", plain)


def _require_driver() -> None:
    if importlib.util.find_spec("psycopg") is None:
        raise ExtraError(
            "A ledger on PostgreSQL needs the extra 'service'.",
            hint="pip install 'earmark[service]'",
        )


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def _bytes(row: tuple[object, ...] | None, what: str) -> bytes:
    value = row[0] if row else None
    if not isinstance(value, bytes):
        raise LedgerError(f"The ledger lacks {what}.", hint=DAMAGED)
    return value
