"""What a log engine stores, and the little that it asks of a database.

A log is four things: a line about whose it is, entries, tree hashes by address, and signed
checkpoints by size. `LogRows` is the whole interface between `earmark.ledger.treelog`, which knows
trees and signatures, and a database, which knows transactions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from earmark.errors import LedgerError
from earmark.ledger.merkle import HASH_BYTES

DAMAGED = "Restore a backup; do not append."
TABLES = ("entries", "nodes", "checkpoints")
"""The tables, each with an integer ``id`` and one column of bytes: see `COLUMNS`."""
COLUMNS = {"entries": "record", "nodes": "hash", "checkpoints": "note"}


class LogRows(ABC):
    """The rows of one log in one database.

    Reads may be made in any state; `add` only inside `writing`.
    """

    name: str
    """How messages call the ledger: its path or address."""

    @abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Turn the database's errors into errors of this project."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Hold the only write lock from the first read to the durable commit; roll back on error.

        Raises:
            OutputError: The lock is not to be had, or the commit fails.
        """

    @abstractmethod
    def note(self, above: int | None = None) -> bytes | None:
        """Return the checkpoint of the smallest size above `above`; the newest if that is null."""

    @abstractmethod
    def record(self, index: int) -> bytes:
        """Return an entry's bytes, not checked.

        Raises:
            LedgerError: It is not there.
        """

    @abstractmethod
    def nodes(self, places: Iterable[int]) -> dict[int, bytes]:
        """Return tree hashes by their addresses.

        Raises:
            LedgerError: One is missing, or is no hash.
        """

    @abstractmethod
    def page(self, table: str, first: int, last: int, limit: int) -> list[tuple[object, object]]:
        """Return rows (id, bytes) of a table with ``first <= id <= last`` in order, not checked."""

    @abstractmethod
    def extent(self) -> tuple[int, int, int]:
        """Return the last id in each of `TABLES` at one moment; -1 where a table is empty."""

    @abstractmethod
    def stray(self, entries: int, nodes: int) -> bool:
        """Tell whether an entry or tree hash lies at or beyond these ids."""

    @abstractmethod
    def add(
        self,
        first: int,
        records: Sequence[bytes],
        nodes: Sequence[tuple[int, bytes]],
        size: int,
        note: bytes,
    ) -> None:
        """Insert entries from index `first` on, tree hashes, and the checkpoint of `size`."""

    def problems(self) -> Iterator[str]:
        """Yield what the database itself says is wrong with its file."""
        return iter(())


def require_hash(value: object, place: int) -> bytes:
    """Return a stored tree hash, which must be 32 bytes.

    Raises:
        LedgerError: It is missing or something else.
    """
    if not isinstance(value, bytes):
        raise LedgerError(f"The ledger lacks tree hash {place}.", hint=DAMAGED)
    if len(value) != HASH_BYTES:
        raise LedgerError(f"Tree hash {place} of the ledger is no hash.", hint=DAMAGED)
    return value


def require_all(found: Mapping[int, bytes], places: Iterable[int]) -> None:
    """Refuse a set of tree hashes in which one is missing.

    Raises:
        LedgerError: It names the first that is.
    """
    for place in places:
        if place not in found:
            raise LedgerError(f"The ledger lacks tree hash {place}.", hint=DAMAGED)
