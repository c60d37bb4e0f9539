"""Write files so that a crash, or a power cut, leaves the old content or the new, whole."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from earmark.errors import FileError, FormatError, IntegrityError, OutputError, UsageError

T = TypeVar("T")

_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
"""What network file systems say, and folders that may be written and not read."""


@contextmanager
def replacing(path: str | Path, *, overwrite: bool = False, mode: int = 0o644) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes the place of `path`.

    Args:
        path: The file to write.
        overwrite: Allow an existing file to be replaced.
        mode: Permissions of the new file.

    Raises:
        UsageError: The file exists and `overwrite` is false.
        OutputError: The folder is missing or not writable, or the disk is full.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("kept")
        >>> (folder / "note.txt").read_text()
        'kept'
    """
    target = Path(path)
    if target.exists() and not target.is_dir() and not overwrite:
        raise UsageError(
            f"Output '{target}' exists already.", hint="Choose another name, or pass --force."
        )
    temporary = _beside(target)
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.absolute().parent)
    except OSError as error:
        raise OutputError(f"Output '{target}' cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Make a new name in a folder survive a power cut, where folders can be synced."""
    if os.name != "posix":  # pragma: no cover - they cannot
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def require_writable(path: str | Path) -> None:
    """Refuse an output that could not be written, before long work is done for it.

    Raises:
        OutputError: The folder is missing or not writable.
        UsageError: The path is a folder.
    """
    _beside(Path(path)).unlink()


def _beside(target: Path) -> Path:
    """Make an empty file beside the target."""
    if target.is_dir():
        raise UsageError(f"Output '{target}' is a folder.", expected="The name of a file.")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(
            f"Output '{target}' cannot be written: {error.strerror}.",
            hint="Choose a folder that exists and that you may write to.",
        ) from error
    return Path(name)


def write_bytes(
    path: str | Path, data: bytes, *, overwrite: bool = False, mode: int = 0o644
) -> None:
    """Write bytes atomically; see :func:`replacing` for what is raised."""
    with replacing(path, overwrite=overwrite, mode=mode) as temporary:
        temporary.write_bytes(data)


def read_bytes(path: str | Path, *, limit: int = 1 << 30) -> bytes:
    """Read a file whole.

    Raises:
        FileError: Missing, unreadable, or larger than `limit` bytes.
    """
    source = Path(path)
    try:
        if not source.is_file():
            kind = "is no regular file" if source.exists() else "does not exist"
            raise FileError(f"File '{source}' cannot be read: it {kind}.", hint="Check the path.")
        size = source.stat().st_size
        if size > limit:
            raise FileError(f"File '{source}' has {size:,} bytes; at most {limit:,} are read here.")
        return source.read_bytes()
    except OSError as error:
        raise FileError(
            f"File '{source}' cannot be read: {error.strerror}.", hint="Check the path."
        ) from error


def file_digest(path: str | Path) -> str:
    """Return SHA-256 of a file's bytes, hexadecimal, read in pieces.

    Raises:
        FileError: Missing or unreadable.
    """
    state = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                state.update(piece)
    except OSError as error:
        raise FileError(
            f"File '{path}' cannot be read: {error.strerror}.", hint="Check the path."
        ) from error
    return state.hexdigest()


def read_as(
    path: str | Path, parse: Callable[[bytes], T], *, kind: str, sign: str, limit: int
) -> T:
    """Read a file of some kind, which is named with its path in whatever goes wrong.

    Args:
        path: The file.
        parse: Makes the result of its bytes.
        kind: What the file is, for example "community file".
        sign: What no file of that kind lacks; one without it is another file, not a changed one.
        limit: Most bytes to read.

    Raises:
        FileError: Missing, unreadable or too large.
        FormatError: Another kind of file.
        IntegrityError: One that was changed.
    """
    data = read_bytes(path, limit=limit)
    try:
        return parse(data)
    except (IntegrityError, FormatError) as error:
        raise named(error, path, data, kind=kind, sign=sign) from error


def named(
    error: IntegrityError | FormatError, path: str | Path, data: bytes, *, kind: str, sign: str
) -> IntegrityError | FormatError:
    """Return an error about a file's content again, with the file's kind and path.

    Args:
        error: What its reader said.
        path: The file.
        data: Its bytes, or as many of them as hold the sign.
        kind: What the file should be, for example "community file".
        sign: What no file of that kind lacks; one without it is another file, not a changed one.
    """
    if sign.encode() not in data:
        return FormatError(f"'{path}' is no {kind}.", hint="Check the path.")
    return type(error)(
        f"The {kind} '{path}' cannot be taken: {error.what}",
        expected=error.expected,
        hint=error.hint,
    )
