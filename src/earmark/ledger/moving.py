"""Move a log's history from one tier to the next, with its proofs.

An export is one file of lines: a header, then every entry with the checkpoint that it was appended
with, cosignatures included. It proves itself: `Archive.read` derives every root again. Importing
appends the same records to another log, of any tier, so that the tree is the same; both logs then
have signed the same root for the same size, and a `Move` says so with both signatures.

The old proofs stay what they were. When a record was there is told by the old log's witnesses, and
only the export holds their word, so it belongs beside the new log for ever; `joined` reads the two
together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from earmark import files
from earmark.errors import FormatError, LedgerError, UsageError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.merkle import fold, grow, leaf_hash
from earmark.ledger.note import VerifierKey
from earmark.ledger.port import Ledger
from earmark.ledger.service import Mirror, Notes, Row, Seen
from earmark.ledger.timeproof import TimeProof
from earmark.ledger.treelog import TreeLog
from earmark.ledger.witness import Quorum
from earmark.records import Record

MAX_EXPORT_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class Header(Record):
    """The first line of an export.

    Args:
        origin: Name of the log.
        vkey: Its public key; whoever reads the file should know it from elsewhere.
        head: The newest signed checkpoint, which the last entry must lead to.
        proofs: Proofs of time of the head's text, or of anything else in the log.
    """

    SCHEMA: ClassVar[str] = "earmark/ledger-export/1"
    origin: str
    vkey: str
    head: str
    proofs: tuple[TimeProof, ...] = ()


@dataclass(frozen=True, slots=True)
class Move(Record):
    """Two logs have signed the same tree: one continues the other.

    Args:
        old_vkey: Public key of the log that was moved.
        old_head: Its head.
        new_vkey: Public key of the log that goes on.
        new_head: A head of it, of the same size.
    """

    SCHEMA: ClassVar[str] = "earmark/ledger-move/1"
    old_vkey: str
    old_head: str
    new_vkey: str
    new_head: str

    def verify(self) -> int:
        """Check both signatures and that the trees are one.

        Returns:
            The number of entries that they share.

        Raises:
            LedgerError: Size or root differ.
            SignatureError: A head is not signed by its log.
        """
        old = SignedCheckpoint.open(self.old_head, VerifierKey.parse(self.old_vkey))
        new = SignedCheckpoint.open(self.new_head, VerifierKey.parse(self.new_vkey))
        if (old.size, old.root) != (new.size, new.root):
            raise LedgerError(
                f"The log '{new.origin}' of {new.size} entries is not that of '{old.origin}' of "
                f"{old.size}."
            )
        return new.size


def export_log(
    ledger: TreeLog,
    path: str | Path,
    *,
    notes: Notes | None = None,
    proofs: Sequence[TimeProof] = (),
    overwrite: bool = False,
) -> int:
    """Write a log's history into one file.

    Args:
        ledger: The log.
        path: The file to write.
        notes: Its cosigned checkpoints, where it has witnesses.
        proofs: Proofs of time to hand on with it.
        overwrite: Replace an existing file.

    Returns:
        How many entries were written.

    Raises:
        UsageError: The file exists.
        OutputError: It cannot be written.
        LedgerError: The log is damaged.
    """
    head = ledger.head()
    whole = None if notes is None else notes.cosigned(head.size)
    header = Header(ledger.origin, ledger.vkey, whole or str(head), tuple(proofs))
    with (
        files.replacing(path, overwrite=overwrite) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(header.canonical() + b"\n")
        for index, record in ledger.scan():
            if index >= head.size:
                break
            note = None if notes is None else notes.cosigned(index + 1)
            row = Row(record.decode(), note or ledger.checkpoint_of(index + 1))
            file.write(row.canonical() + b"\n")
    return head.size


@dataclass(frozen=True, slots=True)
class Archive:
    """An export that was read and found to prove itself.

    Args:
        header: Its first line.
        rows: Its entries.
        head: The verified head.
    """

    header: Header
    rows: tuple[Row, ...]
    head: SignedCheckpoint

    @classmethod
    def read(cls, path: str | Path, *, vkey: str | None = None) -> Archive:
        """Read an export and derive it again.

        Args:
            path: The file.
            vkey: The log's public key from a source that you trust; else the file's own is used.

        Raises:
            FileError: Missing or unreadable.
            FormatError: No export.
            LedgerError: An entry or checkpoint does not fit, or another log's key is named.
            SignatureError: A checkpoint is not signed by the log.
        """
        lines = files.read_bytes(path, limit=MAX_EXPORT_BYTES).split(b"\n")
        if len(lines) < 2 or lines.pop():
            raise FormatError(f"'{path}' is no export of a ledger, or was cut short.")
        header = Header.from_bytes(lines[0])
        if vkey is not None and vkey != header.vkey:
            raise LedgerError(f"The export is of the log {header.vkey}.", expected=f"{vkey}.")
        key = VerifierKey.parse(header.vkey)
        rows = tuple(Row.from_bytes(line) for line in lines[1:])
        head = SignedCheckpoint.open(header.head, key)
        root = fold(())
        for size, (root, checkpoint) in enumerate(_roots(rows), start=1):
            if checkpoint is None:
                continue
            signed = SignedCheckpoint.open(checkpoint, key)
            if (signed.size, signed.root) != (size, root):
                raise LedgerError(f"Entry {size - 1} of the export is not what was signed.")
        if header.origin != head.origin or (head.size, head.root) != (len(rows), root):
            raise LedgerError("The export does not lead to its head: entries are missing.")
        return cls(header, rows, head)

    def records(self) -> Iterator[bytes]:
        """Yield the records in order."""
        for row in self.rows:
            yield row.record.encode()

    def seen(self, quorum: Quorum) -> list[Seen]:
        """Return the entries with the times and beacons that the old log's witnesses gave.

        Args:
            quorum: These witnesses, from a source that you trust.

        Raises:
            LedgerError: Not all of them were cosigned by a quorum.
        """
        mirror = Mirror(VerifierKey.parse(self.header.vkey), quorum)
        found = mirror.take(self.rows)
        if len(found) != len(self.rows):
            raise LedgerError(
                f"{len(found)} of {len(self.rows)} exported entries were cosigned by a quorum."
            )
        return found


def _roots(rows: Sequence[Row]) -> Iterator[tuple[bytes, str | None]]:
    peaks: tuple[bytes, ...] = ()
    for index, row in enumerate(rows):
        peaks, _ = grow(peaks, index, leaf_hash(row.record.encode()))
        yield fold(peaks), row.checkpoint


def import_log(archive: Archive, target: Ledger) -> Move:
    """Append a history to a new log and prove that it is the same one.

    A log that holds a beginning of it already goes on from there, so that an import that was
    interrupted can be repeated. On a database it is appended in batches that end where the old
    log had a checkpoint.

    Args:
        archive: The history.
        target: A log of any tier, empty or with a beginning of this history.

    Raises:
        UsageError: The target holds something else.
        LedgerError: It does not come to the same tree (a chain enters no record twice).
    """
    size = target.head().size
    mine = [record for _, record in target.scan()]
    records = list(archive.records())
    if mine != records[:size]:
        raise UsageError(
            f"The log '{target.origin}' holds other entries.", hint="Import into an empty log."
        )
    batch: list[bytes] = []
    for record, row in zip(records[size:], archive.rows[size:], strict=True):
        batch.append(record)
        if row.checkpoint is not None and isinstance(target, TreeLog):
            target.append_many(batch)
            batch = []
    target.append_many(batch)
    made = Move(archive.header.vkey, str(archive.head), target.vkey, str(target.head()))
    made.verify()
    return made


def joined(archive: Archive, quorum: Quorum, fresh: Sequence[Seen]) -> list[Seen]:
    """Read a moved log: the old entries with their old proofs, then what came since.

    Args:
        archive: The exported history.
        quorum: The old log's witnesses.
        fresh: All entries of the log that it was moved to.

    Raises:
        LedgerError: The new log does not begin with the old one.
    """
    old = archive.seen(quorum)
    if [item.record for item in fresh[: len(old)]] != [item.record for item in old]:
        raise LedgerError("The log does not begin with the history that was exported.")
    return [*old, *fresh[len(old) :]]
