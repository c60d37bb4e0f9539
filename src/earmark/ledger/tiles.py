"""A log as static files: tiles of hashes, bundles of entries, and a signed head.

::

    checkpoint                 the newest signed head, with its cosignatures
    tile/0/x001/234            256 hashes of leaves
    tile/1/000.p/7             the first 7 hashes of subtrees of 256 leaves each
    tile/entries/x001/234      256 records, each after its length

A full tile never changes, so any web server or cache can carry them. `tile` makes one from a log,
`export_tiles` writes all of them into a folder, and `TileLedger` reads a log from them, wherever
they lie: it believes the log's signature alone, and checks every tile and record against it.

Source: C2SP tlog-tiles (c2sp.org), which asks for records of at most 65,535 bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from earmark import files
from earmark.errors import AccessError, LedgerError, UsageError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.merkle import (
    HASH_BYTES,
    consistency_proof,
    fold,
    inclusion_proof,
    leaf_hash,
    node_hash,
    peaks_at,
    root_at,
)
from earmark.ledger.note import VerifierKey
from earmark.ledger.port import Finality, Ledger, verify_receipt
from earmark.ledger.treelog import TreeLog
from earmark.records import Receipt

WIDTH = 256
HEIGHT = 8
MAX_LEVEL = 7
MAX_ENTRY_BYTES = (1 << 16) - 1
Fetch = Callable[[str], bytes]
"""Returns a file by its path; raises `FileError` or `NetworkError` if it is not there."""

_PATH = re.compile(
    r"tile/(?P<level>entries|[0-7])/(?P<number>(?:x\d{3}/)*\d{3})(?:\.p/(?P<width>[1-9]\d{0,2}))?"
)


def path_of(level: int | None, number: int, width: int = WIDTH) -> str:
    """Name a tile, or with no level a bundle of entries.

    Example:
        >>> path_of(0, 1234067)
        'tile/0/x001/x234/067'
        >>> path_of(None, 5, 70)
        'tile/entries/005.p/70'
    """
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.append(f"x{number % 1000:03d}")
    name = "entries" if level is None else str(level)
    part = "" if width == WIDTH else f".p/{width}"
    return f"tile/{name}/{'/'.join(reversed(groups))}{part}"


def parse_path(path: str) -> tuple[int | None, int, int] | None:
    """Read a tile's name: level, number and width; null if it is none.

    Example:
        >>> parse_path("tile/1/x001/002.p/3")
        (1, 1002, 3)
    """
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    number = int(found["number"].replace("x", "").replace("/", ""))
    width = int(found["width"] or WIDTH)
    level = None if found["level"] == "entries" else int(found["level"])
    made = (level, number, width)
    return made if path_of(*made) == path else None


def tile(ledger: TreeLog, path: str) -> bytes | None:
    """Return the content of a tile or bundle of a log, or null if there is none of that name.

    Args:
        ledger: The log.
        path: As a client asks for it, without a slash in front.

    Raises:
        LedgerError: An entry is damaged, or too large for a bundle.
    """
    asked = parse_path(path)
    if asked is None:
        return None
    level, number, width = asked
    first = number * WIDTH
    complete = ledger.head().size >> (HEIGHT * (level or 0))
    if first + width > complete:
        return None
    if level is not None:
        return b"".join(ledger.hashes(level * HEIGHT, first, width))
    records = []
    for index, record in ledger.scan(first):
        if index >= first + width:
            break
        records.append(record)
    return bundle(records)


def bundle(records: list[bytes]) -> bytes:
    """Write records one after another, each after its length.

    Raises:
        LedgerError: One is too large.
    """
    for record in records:
        if len(record) > MAX_ENTRY_BYTES:
            raise LedgerError(f"A record of {len(record):,} bytes fits into no tile.")
    return b"".join(struct.pack(">H", len(record)) + record for record in records)


def unbundle(data: bytes, count: int) -> list[bytes]:
    """Read exactly `count` records.

    Raises:
        LedgerError: There are more or fewer.
    """
    records: list[bytes] = []
    at = 0
    while at < len(data) and len(records) < count:
        size = int.from_bytes(data[at : at + 2], "big")
        record = data[at + 2 : at + 2 + size]
        if at + 2 > len(data) or len(record) != size:
            break
        records.append(record)
        at += 2 + size
    if at != len(data) or len(records) != count:
        raise LedgerError(f"A bundle of entries does not hold {count} records.")
    return records


def paths(size: int) -> Iterator[str]:
    """Yield the names of all tiles and bundles of a log of some size, partial ones last."""
    for level in (None, *range(MAX_LEVEL + 1)):
        count = size >> (HEIGHT * (level or 0))
        for number in range(count // WIDTH):
            yield path_of(level, number)
        if count % WIDTH:
            yield path_of(level, count // WIDTH, count % WIDTH)


def export_tiles(ledger: TreeLog, folder: str | Path, *, checkpoint: str | None = None) -> int:
    """Write a log as static files; what is there already is left as it is.

    Args:
        ledger: The log.
        folder: Where to; made if it is missing.
        checkpoint: A cosigned head of the log, instead of the bare newest one.

    Returns:
        How many files were written.

    Raises:
        OutputError: The folder cannot be written.
        LedgerError: The checkpoint is not of this log's history.
    """
    head = ledger.head() if checkpoint is None else ledger.own(checkpoint)
    written = 0
    for path in paths(head.size):
        place = Path(folder) / path
        if place.exists():
            continue
        content = tile(ledger, path)
        assert content is not None
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(place, content, overwrite=True)
        written += 1
    Path(folder).mkdir(parents=True, exist_ok=True)
    files.write_bytes(Path(folder) / "checkpoint", str(head).encode(), overwrite=True)
    return written + 1


def from_folder(folder: str | Path) -> Fetch:
    """Return a function that reads tiles from a folder."""
    return lambda path: files.read_bytes(Path(folder) / path, limit=WIDTH * (MAX_ENTRY_BYTES + 2))


class TileLedger(Ledger):
    """A log that is read from tiles; nothing can be appended.

    Args:
        fetch: Returns a file by its path.
        vkey: The log's public key, from a source that you trust.
    """

    def __init__(self, fetch: Fetch, vkey: str | VerifierKey) -> None:
        self._key = vkey if isinstance(vkey, VerifierKey) else VerifierKey.parse(vkey)
        self._fetch = fetch
        self._head: SignedCheckpoint | None = None
        self._full = lru_cache(maxsize=4096)(self._load)

    @property
    def origin(self) -> str:
        """Name of the log."""
        return self._key.name

    @property
    def vkey(self) -> str:
        """Public key of the log."""
        return str(self._key)

    def append(self, record: bytes) -> Receipt:  # noqa: ARG002 - the port's
        """Refuse: tiles are read only.

        Raises:
            AccessError: Always.
        """
        raise AccessError("A log that is read from tiles cannot be added to.")

    def head(self) -> SignedCheckpoint:
        """Fetch the newest head; its signature, and its root over the newest tiles, must hold."""
        signed = SignedCheckpoint.open(self._fetch("checkpoint"), self._key)
        if self._head is None or str(signed) != str(self._head):
            if self._head is not None and signed.size < self._head.size:
                raise LedgerError(
                    f"The log '{self.origin}' went back from {self._head.size} to "
                    f"{signed.size} entries."
                )
            before, self._head = self._head, signed
            self._full.cache_clear()
            try:
                self._require_root(signed, before)
            except BaseException:
                self._head = before
                self._full.cache_clear()
                raise
        return signed

    def get(self, index: int) -> bytes:
        """Return the record at an index; see `Ledger.get`."""
        size = self._size()
        if not 0 <= index < size:
            raise UsageError(f"The log '{self.origin}' has {size} entries, no entry {index}.")
        return self._bundle(index // WIDTH)[index % WIDTH]

    def scan(self, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (index, record) from `since` on; see `Ledger.scan`."""
        size = self._size()
        for number in range(max(0, since) // WIDTH, -(-size // WIDTH)):
            for place, record in enumerate(self._bundle(number)):
                if number * WIDTH + place >= since:
                    yield number * WIDTH + place, record

    def prove(self, index: int, size: int) -> tuple[str, ...]:
        """Prove that the first `size` entries hold entry `index`; see `Ledger.prove`."""
        self._require(size)
        return tuple(item.hex() for item in inclusion_proof(self._node, index, size))

    def prove_consistency(self, old: int, new: int) -> tuple[str, ...]:
        """Prove that nothing below `old` changed up to `new`; see `Ledger.prove_consistency`."""
        self._require(new)
        return tuple(item.hex() for item in consistency_proof(self._node, old, new))

    def finality(self, receipt: Receipt) -> Finality:
        """Return `Finality.FINAL` if these tiles hold the receipt's entry and history."""
        size = self._size()
        signed = SignedCheckpoint.open(receipt.checkpoint, self._key)
        if signed.size > size or receipt.index >= signed.size:
            raise LedgerError("The receipt is of a history that these tiles do not hold.")
        if root_at(self._node, signed.size) != signed.root:
            raise LedgerError("The receipt is of another history than these tiles.")
        verify_receipt(self.get(receipt.index), receipt, self._key)
        return Finality.FINAL

    # -- within ------------------------------------------------------------------------------

    def _require_root(self, signed: SignedCheckpoint, before: SignedCheckpoint | None) -> None:
        if fold(peaks_at(self._node, signed.size)) != signed.root:
            raise LedgerError("The newest tiles do not give the signed root.")
        if before is not None and root_at(self._node, before.size) != before.root:
            raise LedgerError(f"The log '{self.origin}' shows another history than before.")

    def _size(self) -> int:
        return (self.head() if self._head is None else self._head).size

    def _require(self, size: int) -> None:
        have = self._size()
        if size > have:
            raise UsageError(f"The log '{self.origin}' has {have} entries, not yet {size}.")

    def _node(self, level: int, index: int) -> bytes:
        """Return the hash of a complete subtree, from the tile that its leaves begin in."""
        tile_level, rest = divmod(level, HEIGHT)
        first = index << rest
        hashes = self._full(tile_level, first // WIDTH)
        chosen = hashes[first % WIDTH : first % WIDTH + (1 << rest)]
        return _root(chosen)

    def _load(self, level: int, number: int) -> tuple[bytes, ...]:
        """Fetch a tile; a full one must give the hash that the tile above it has."""
        assert self._head is not None
        count = self._head.size >> (HEIGHT * level)
        width = min(WIDTH, count - number * WIDTH)
        data = self._fetch(path_of(level, number, width))
        if len(data) != width * HASH_BYTES:
            raise LedgerError(f"Tile {number} of level {level} is not {width} hashes.")
        hashes = tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
        if width == WIDTH and _root(hashes) != self._node((level + 1) * HEIGHT, number):
            raise LedgerError(f"Tile {number} of level {level} was changed.")
        return hashes

    def _bundle(self, number: int) -> list[bytes]:
        hashes = self._full(0, number)
        records = unbundle(self._fetch(path_of(None, number, len(hashes))), len(hashes))
        for place, record in enumerate(records):
            if leaf_hash(record) != hashes[place]:
                raise LedgerError(f"Entry {number * WIDTH + place} was changed.")
        return records


def _root(hashes: tuple[bytes, ...]) -> bytes:
    """Hash a power of two of subtrees into the one above them."""
    while len(hashes) > 1:
        hashes = tuple(node_hash(*hashes[at : at + 2]) for at in range(0, len(hashes), 2))
    return hashes[0]
