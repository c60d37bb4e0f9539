"""Rows: finished cells as JSON lines, appended whole, read back after any interruption."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from earmark import codec
from earmark.bench.cells import Cell
from earmark.codec import Json
from earmark.errors import EarmarkError, FileError, FormatError, OutputError
from earmark.records import Trial


@dataclass(frozen=True, slots=True)
class Row:
    """A finished cell.

    Args:
        cell: What was measured.
        trial: What came out.
    """

    cell: Cell
    trial: Trial

    def line(self) -> bytes:
        """Return the row as one line."""
        body: dict[str, Json] = {
            "digest": self.cell.digest(),
            "cell": self.cell.to_json(),
            "trial": self.trial.to_json(),
        }
        return codec.canonical(body) + b"\n"


def append(path: str | Path, row: Row) -> None:
    """Append a row in one write, under a lock, and wait until it is on disk.

    A line that a crash has torn is closed first, so that the new one stands by itself.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise OutputError(f"Rows '{path}' cannot be written: {error.strerror}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        end = os.lseek(handle, 0, os.SEEK_END)
        torn = end > 0 and os.pread(handle, 1, end - 1) != b"\n"
        os.write(handle, (b"\n" if torn else b"") + row.line())
        os.fsync(handle)
    except OSError as error:
        raise OutputError(f"Rows '{path}' cannot be written: {error.strerror}.") from error
    finally:
        os.close(handle)


def read(path: str | Path) -> dict[str, Row]:
    """Read rows by the digest of their cell; later rows replace earlier ones.

    Lines that a crash has torn (they do not end as JSON does) are passed over; a whole line whose
    cell does not match its digest is refused.

    Raises:
        FileError: The file cannot be read.
        FormatError: A line was changed.
    """
    source = Path(path)
    if not source.exists():
        return {}
    try:
        lines = source.read_bytes().splitlines()
    except OSError as error:
        raise FileError(f"Rows '{source}' cannot be read: {error.strerror}.") from error
    found: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        try:
            body = json.loads(line)
        except ValueError:
            continue
        try:
            row = Row(Cell.from_json(body["cell"]), Trial.from_json(body["trial"]))
            good = row.cell.digest() == body["digest"]
        except (KeyError, TypeError, EarmarkError) as error:
            raise FormatError(f"Line {number} of '{source}' is no row: {error}.") from error
        if not good:
            raise FormatError(
                f"Line {number} of '{source}' does not match its digest.",
                hint="Remove the line; the cell will be run again.",
            )
        found[row.cell.digest()] = row
    return found


def trials(rows: Iterable[Row]) -> list[Trial]:
    """Return the trials of rows, in order."""
    return [row.trial for row in rows]
