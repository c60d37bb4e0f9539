"""Dossiers on disk: bounded reading, atomic writing, and one file in place of a folder.

The packed form is a ZIP file that anybody can open, but of one shape only: entries stored without
compression, in order, with fixed times and modes. Reading packs what was read again and compares:
so two different files never unpack to the same dossier, and compression bombs, overlapping entries,
hidden data and path escapes are refused by the same one rule.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from earmark import files
from earmark.errors import DossierError, FileError, FormatError, OutputError, UsageError

MAX_BYTES = 64 * 1024 * 1024
MAX_FILES = 2000
MANIFEST = "manifest.json"

_PATH = re.compile(
    r"(?:[a-z0-9][a-z0-9_-]*(?:\.[a-z0-9_-]+)*/){0,3}[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*"
)
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{kind}{i}" for kind in ("com", "lpt") for i in range(10))}
)
_TOP = "dossier/"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def safe_path(path: str) -> bool:
    """Tell whether a path inside a dossier is harmless on every system.

    Example:
        >>> [safe_path(item) for item in ("records/claim.json", "../x", "/x", "a/CON", "a//b")]
        [True, False, False, False, False]
    """
    if len(path) > 160 or not _PATH.fullmatch(path):
        return False
    return not any(part.split(".")[0].lower() in _DEVICES for part in path.split("/"))


def require_paths(names: Iterator[str] | list[str], *, where: str) -> None:
    """Refuse names that could escape, collide, or be too many.

    Raises:
        DossierError: One of them is such.
    """
    seen: set[str] = set()
    for count, item in enumerate(names, 1):
        if count > MAX_FILES:
            raise DossierError(f"{where} holds more than {MAX_FILES:,} files.")
        if not safe_path(item):
            raise DossierError(
                f"{where} holds a file with the unsafe name {item[:160]!r}.",
                expected="Letters, digits, dots and hyphens, in at most four levels.",
            )
        if item.lower() in seen:
            raise DossierError(f"{where} holds {item!r} twice.")
        seen.add(item.lower())


def read(path: str | Path) -> dict[str, bytes]:
    """Read all files of a dossier, folder or packed, within bounds. Nothing is checked yet.

    Args:
        path: A folder, or a file that :func:`pack` wrote.

    Returns:
        Path inside the dossier to content.

    Raises:
        FileError: Missing or unreadable.
        FormatError: No dossier.
        DossierError: Too large, links or unsafe names, or a packed one that was changed.
    """
    source = Path(path)
    if not source.is_dir():
        data = files.read_bytes(source, limit=2 * MAX_BYTES)
        if not data.startswith(b"PK"):
            raise FormatError(f"'{source}' is no packed dossier.", hint="Check the path.")
        return decode(data, where=f"'{source}'")
    if not (source / MANIFEST).is_file():
        raise FormatError(
            f"Folder '{source}' has no '{MANIFEST}', so it is no dossier.", hint="Check the path."
        )
    found: dict[str, bytes] = {}
    total = 0
    try:
        for name, entry in _walk(source, ""):
            require_paths([name], where=f"Dossier '{source}'")
            total += entry.stat().st_size
            if len(found) >= MAX_FILES or total > MAX_BYTES:
                raise DossierError(
                    f"Dossier '{source}' is too large at '{name}'.",
                    expected=f"At most {MAX_FILES:,} files and {MAX_BYTES:,} bytes.",
                )
            found[name] = Path(entry.path).read_bytes()
    except OSError as error:
        raise FileError(f"Dossier '{source}' cannot be read: {error.strerror}.") from error
    require_paths(list(found), where=f"Dossier '{source}'")
    return found


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if name.count("/") > 3:
                    raise DossierError(f"Folder '{name}' of the dossier is nested too deep.")
                yield from _walk(Path(entry.path), name + "/")
            elif entry.is_file(follow_symlinks=False):
                yield name, entry
            else:
                raise DossierError(f"'{name}' of the dossier is a link or no plain file.")


def write(folder: str | Path, contents: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Write a dossier's folder whole or not at all.

    Args:
        folder: It appears under this name only when every byte is on the disk.
        contents: Path inside the dossier to content.
        overwrite: Replace a dossier that lies there; anything else is never replaced.

    Raises:
        UsageError: Something is there already.
        OutputError: The folder cannot be written.
    """
    target = Path(folder)
    require_paths(list(contents), where="The new dossier")
    require_room(target, overwrite=overwrite)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        for name, data in contents.items():
            place = temporary / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        _swap(temporary, target)
    except OSError as error:
        raise OutputError(
            f"Dossier '{target}' cannot be written: {error.strerror}.",
            hint="Choose a folder that exists and that you may write to.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def require_room(target: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is there already, unless it is a dossier that may be replaced.

    Raises:
        UsageError: Something is there.
    """
    if not target.exists() and not target.is_symlink():
        return
    if overwrite and target.is_dir() and (target / MANIFEST).is_file():
        return
    raise UsageError(
        f"Output '{target}' exists already.",
        expected="A new name, or a dossier to replace with --force.",
        hint="Choose another name.",
    )


def _swap(new: Path, target: Path) -> None:
    """Put a finished folder in its place; an old one is moved away first and then removed."""
    if not target.exists():
        new.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.absolute().parent))
    target.rename(old / "was")
    try:
        new.rename(target)
    except BaseException:
        (old / "was").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def encode(contents: Mapping[str, bytes]) -> bytes:
    """Pack files as one file; the same files always give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(_TOP + name, _EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, contents[name])
    return out.getvalue()


def decode(data: bytes, *, where: str = "The packed dossier") -> dict[str, bytes]:
    """Unpack what :func:`encode` packed, and nothing else.

    Args:
        data: The file's bytes.
        where: What to call it in errors.

    Raises:
        DossierError: Not a packed dossier, too large, or not in its one form.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not plain or total > min(len(data), MAX_BYTES) or len(entries) > MAX_FILES:
                raise DossierError(
                    f"{where} is compressed or too large.",
                    expected=f"Stored entries, at most {MAX_FILES:,} files, {MAX_BYTES:,} bytes.",
                )
            names = [entry.filename.removeprefix(_TOP) for entry in entries]
            require_paths(names, where=where)
            found = {name: archive.read(entry) for name, entry in zip(names, entries, strict=True)}
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        raise DossierError(
            f"{where} is no packed dossier: {error}.", hint="Ask for the dossier again."
        ) from error
    if encode(found) != data:
        raise DossierError(
            f"{where} is not in the one form that a packed dossier has: a byte was changed, or it "
            "was packed by something else.",
            hint="Ask for it again, or check the unpacked folder.",
        )
    return found


def pack(folder: str | Path, path: str | Path, *, overwrite: bool = False) -> None:
    """Pack a dossier's folder as one file. Nothing is checked; see `check_dossier`.

    Args:
        folder: The dossier.
        path: The file to write.
        overwrite: Allow an existing file to be replaced.

    Raises:
        FileError: The folder is missing or unreadable.
        DossierError: It is too large, holds links, or has unsafe names.
        UsageError: The file exists.
        OutputError: The file cannot be written.
    """
    if not Path(folder).is_dir():
        raise FileError(f"There is no dossier folder '{folder}'.", hint="Check the path.")
    files.write_bytes(path, encode(read(folder)), overwrite=overwrite)


def unpack(path: str | Path, folder: str | Path, *, overwrite: bool = False) -> None:
    """Unpack a dossier into a folder. Nothing but its form is checked; see `check_dossier`.

    Args:
        path: A file that :func:`pack` wrote.
        folder: The folder to make.
        overwrite: Replace a dossier that lies there.

    Raises:
        FileError: The file is missing or unreadable.
        DossierError: Not a packed dossier, or not in its one form.
        UsageError: The folder exists.
        OutputError: The folder cannot be written.
    """
    data = files.read_bytes(path, limit=2 * MAX_BYTES)
    write(folder, decode(data, where=f"'{path}'"), overwrite=overwrite)
