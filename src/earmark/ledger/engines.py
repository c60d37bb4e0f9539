"""Which engine an address means: a path is an SQLite file, ``postgresql://...`` a shared server.

A schema other than ``earmark`` follows the address after a hash: ``postgresql://host/db#lab``.
"""

from __future__ import annotations

from pathlib import Path

from earmark.errors import UsageError
from earmark.ledger.keyfile import key_path
from earmark.ledger.log import SqliteLedger
from earmark.ledger.service import Notes, SqliteNotes
from earmark.ledger.treelog import TreeLog

_SERVER = ("postgresql://", "postgres://")


def is_server(where: str | Path) -> bool:
    """Tell whether an address is a server's.

    Example:
        >>> is_server("postgresql://localhost/logs"), is_server("ledger.sqlite")
        (True, False)
    """
    return str(where).startswith(_SERVER)


def create_log(where: str | Path, origin: str, *, key: str | Path | None = None) -> TreeLog:
    """Make a new log.

    Args:
        where: A path, or a server's address.
        origin: Name of the log.
        key: File for the private key. On a server it must be given; beside a file it is
            ``NAME.key`` and cannot be chosen.

    Raises:
        UsageError: Something is there already, or `key` does not fit.
        NetworkError: The server does not answer.
        OutputError: The folder cannot be written.
    """
    if not is_server(where):
        if key is not None and Path(key) != key_path(where):
            raise UsageError(f"The key of '{where}' is always '{key_path(where)}'.")
        return SqliteLedger.create(where, origin)
    from earmark.ledger.postgres import PostgresLedger

    if key is None:
        raise UsageError("A log on a server keeps its private key in a file here; name it.")
    dsn, schema = split(str(where))
    return PostgresLedger.create(dsn, origin, key=key, schema=schema)


def open_log(
    where: str | Path, *, key: str | Path | None = None, vkey: str | None = None
) -> TreeLog:
    """Open a log.

    Args:
        where: A path, or a server's address.
        key: File with the private key of a log on a server; null to read only.
        vkey: The public key that you expect, if you have pinned it.

    Raises:
        FileError: There is none.
        LedgerError, SignatureError: It is damaged, or another one.
        NetworkError: The server does not answer.
    """
    if not is_server(where):
        return SqliteLedger.open(where, vkey=vkey)
    from earmark.ledger.postgres import PostgresLedger

    dsn, schema = split(str(where))
    return PostgresLedger.open(dsn, key=key, schema=schema, vkey=vkey)


def open_notes(where: str | Path) -> Notes:
    """Open the cosigned checkpoints of a service: a file beside a log, or the server's table."""
    if not is_server(where):
        return SqliteNotes(where)
    from earmark.ledger.postgres import PostgresNotes

    return PostgresNotes(*split(str(where)))


def split(where: str) -> tuple[str, str]:
    """Split a server's address into what libpq reads and the schema.

    Example:
        >>> split("postgresql://localhost/logs#lab")
        ('postgresql://localhost/logs', 'lab')
    """
    dsn, _, schema = where.partition("#")
    return dsn, schema or "earmark"
