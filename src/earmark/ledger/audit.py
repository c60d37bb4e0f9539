"""The check of a ledger file: derive everything anew from the records, believe nothing stored.

Entries are walked in order. Each leaf hash and every tree hash above it is computed and compared
with what is stored; at each stored checkpoint the computed root must be the signed one. The first
deviation names the entry from which on the file cannot be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from earmark.errors import EarmarkError, FormatError, IntegrityError, LedgerError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.merkle import (
    EMPTY_ROOT,
    address,
    consistency_proof,
    fold,
    grow,
    leaf_hash,
    node_count,
    verify_consistency,
)
from earmark.ledger.note import VerifierKey
from earmark.ledger.rows import LogRows

_PAGE = 1024


@dataclass(frozen=True, slots=True)
class Audit:
    """What a check found.

    Args:
        size: Entries under the newest checkpoint that verified.
        root: Its root, hexadecimal.
        checkpoints: Signed checkpoints that verified.
        intact: Entries from 0 on that are as they were signed; the next one, if there is a
            problem, is the first bad one.
        problem: None, or the error that `check` raises.
    """

    size: int
    root: str
    checkpoints: int
    intact: int
    problem: EarmarkError | None


class _Walk:
    """The state of one pass over a ledger file."""

    def __init__(self, rows: LogRows, key: VerifierKey) -> None:
        self.rows = rows
        self.key = key
        self.peaks: tuple[bytes, ...] = ()
        self.size = 0
        self.checkpoints = 0
        self.signed_size = 0
        self.signed_root = EMPTY_ROOT

    def run(self) -> None:
        """Walk all entries and checkpoints; raise at the first deviation."""
        entries, nodes, checkpoints = self.rows.extent()
        notes = self._all("checkpoints", checkpoints)
        hashes = self._all("nodes", nodes)
        self._checkpoint(*next(notes, (0, b"")))
        target = next(notes, None)
        for index, record in self._all("entries", entries):
            if target is None:
                raise LedgerError(f"Entry {index} is under no signed checkpoint.")
            if index != self.size:
                raise LedgerError(f"Entry {self.size} is missing.")
            self._entry(record, hashes)
            if self.size == target[0]:
                self._checkpoint(*target)
                target = next(notes, None)
        if target is not None:
            raise LedgerError(f"Entry {self.size} is missing; {checkpoints} entries were signed.")
        if next(hashes, None) is not None:
            raise LedgerError("There are tree hashes of entries that do not exist.")
        for problem in self.rows.problems():
            raise LedgerError(problem)

    def _entry(self, record: bytes, nodes: Iterator[tuple[int, bytes]]) -> None:
        leaf = leaf_hash(record)
        peaks, fresh = grow(self.peaks, self.size, leaf)
        for level, expected in enumerate(fresh):
            if next(nodes, None) != (node_count(self.size) + level, expected):
                what = f"A tree hash above entry {self.size}" if level else f"Entry {self.size}"
                raise LedgerError(f"{what} does not match its {'children' if level else 'hash'}.")
        self.peaks, self.size = peaks, self.size + 1

    def _checkpoint(self, size: int, note: bytes) -> None:
        try:
            signed = SignedCheckpoint.open(note, self.key)
        except IntegrityError as error:
            error.what = f"The checkpoint of {size} entries does not verify. {error.what}"
            raise
        if len(signed.note.signatures) != 1 or signed.body.extensions:
            raise LedgerError(f"The checkpoint of {size} entries is not as it was written.")
        if signed.size != size or size != self.size or signed.root != fold(self.peaks):
            raise LedgerError(f"The checkpoint of {size} entries signs another root.")
        self.checkpoints += 1
        self.signed_size, self.signed_root = size, signed.root

    def _all(self, table: str, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield (id, bytes) in order, a page at a time, so that no lock is held between pages."""
        first = -(2**63)
        while rows := self.rows.page(table, first, last, _PAGE):
            for number, value in rows:
                if not isinstance(number, int) or number < first or not isinstance(value, bytes):
                    raise LedgerError(f"Table '{table}' holds a row of the wrong type or order.")
                yield number, value
                first = number + 1

    def proven(self) -> int:
        """Count the entries that certainly are as they were signed.

        Within a batch the walk may stop between two checkpoints. Then the stored tree hashes may
        still prove that what was walked is the beginning of what the next checkpoint signs.
        """
        if self.size == self.signed_size:
            return self.size
        try:
            with self.rows.explained():
                signed = SignedCheckpoint.open(self.rows.note(self.size) or b"", self.key)
                proof = consistency_proof(self._node, self.size, signed.size)
            verify_consistency(self.size, signed.size, fold(self.peaks), signed.root, proof)
        except EarmarkError:
            return self.signed_size
        return self.size

    def _node(self, level: int, index: int) -> bytes:
        place = address(level, index)
        return self.rows.nodes([place])[place]


def audit_log(rows: LogRows, key: VerifierKey) -> Audit:
    """Check a ledger from its first entry to its last.

    Appends by other processes may go on meanwhile.

    Args:
        rows: Its rows.
        key: The public key that must have signed every checkpoint.

    Raises:
        OutputError: Another process holds the file for too long, or the disk fails.
    """
    walk = _Walk(rows, key)
    problem: EarmarkError | None = None
    intact = 0
    try:
        with rows.explained():
            walk.run()
            intact = walk.size
    except (IntegrityError, FormatError) as error:
        intact = walk.proven()
        problem = _located(error, intact, rows.name)
    return Audit(walk.signed_size, walk.signed_root.hex(), walk.checkpoints, intact, problem)


def _located(error: EarmarkError, intact: int, name: str) -> EarmarkError:
    """Say where in the ledger an error lies and what is still good."""
    before = f"Entries 0 to {intact - 1} are intact." if intact else "No entry is known to be good."
    located = type(error)(
        f"Ledger '{name}' is not as it was signed from entry {intact} on: {error.what}",
        expected=before,
        hint="Restore a backup; do not append.",
    )
    located.__cause__ = error
    return located
