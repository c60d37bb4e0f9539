"""Copy a checkpoint on disk with some tensors changed, tensor by tensor, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from earmark import files
from earmark.errors import CarrierError, FileError, OutputError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts import packed, tensorfile
from earmark.hosts.files import CHUNK, FilesHost, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from earmark.hosts.tensorfile import Entry

    Change = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]

_ENTRIES = 1 << 20
_FLOATS = ("F64", "F32", "F16", "BF16")


def rewrite(
    source: str | Path,
    target: str | Path,
    *,
    names: frozenset[str],
    change: Change,
    events: Events = SILENT,
) -> None:
    """Copy a checkpoint and pass some of its tensors through a function.

    Headers, types, sharding and every other tensor stay as they are, byte for byte.

    Args:
        source: A safetensors file, a folder or an index.
        target: A folder, made if missing; the files keep their names.
        names: The tensors to change.
        change: Given a name and its values as float32, returns the new values.
        events: Who hears of the progress.

    Raises:
        FileError, FormatError: The source is missing, truncated or lies.
        CarrierError: A tensor to be changed is missing.
        UsageError: A tensor to be changed is no plain float tensor, or a target file exists.
        OutputError: The target cannot be written.
    """
    host = FilesHost(source)
    require_plain(host, names)
    entries = host.entries()
    folder = Path(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{folder}' cannot be made: {error.strerror}.") from error
    parts = sorted({entry.path for entry in entries.values()})
    for part in events.track(parts, label="rewrite", total=len(parts)):
        inside = [entry for entry in entries.values() if entry.path == part]
        with files.replacing(folder / part.name) as temporary, temporary.open("wb") as out:
            _copy(part, sorted(inside, key=lambda entry: entry.start), out, names, change)
    for index in parts[0].parent.glob("*.safetensors.index.json"):
        if len(parts) > 1 and not (folder / index.name).exists():
            shutil.copyfile(index, folder / index.name)


def require_plain(host: FilesHost, names: Iterable[str]) -> None:
    """Refuse tensors that cannot be changed where they are stored.

    Raises:
        CarrierError: A tensor is missing.
        UsageError: A tensor is no plain float tensor.
    """
    entries, layouts = host.entries(), packed.layouts(host.entries(), host.raw)
    for name in sorted(names):
        if name not in layouts:
            raise CarrierError(
                f"'{host.path}' has no tensor '{name}'.", hint=nearest(name, host.tensor_names())
            )
        plain = isinstance(layouts[name], packed.Plain)
        if not plain or entries[name].dtype not in _FLOATS:
            stored = f"stored as {entries[name].dtype}" if name in entries else "packed"
            raise UsageError(
                f"Tensor '{name}' of '{host.path}' is {stored}, maybe quantized.",
                expected="A plain float tensor.",
                hint="Mark the weights before they are quantized.",
            )


def _copy(
    part: Path, entries: list[Entry], out: BinaryIO, names: frozenset[str], change: Change
) -> None:
    with part.open("rb") as file:
        head = entries[0].start if entries else part.stat().st_size
        out.write(file.read(head))
        for entry in entries:
            file.seek(entry.start)
            if entry.name in names:
                values = tensorfile.decode(_bytes(file, entry.size), entry.dtype)
                made = change(entry.name, values.reshape(entry.shape)).reshape(-1)
                del values
                out.writelines(
                    tensorfile.encode(made[at : at + _ENTRIES], entry.dtype)
                    for at in range(0, len(made), _ENTRIES)
                )
                continue
            left = entry.size
            while left:
                piece = file.read(min(left, CHUNK))
                out.write(piece)
                left -= len(piece)
                if not piece:
                    raise FileError(f"File '{part}' ended while it was read.")


def _bytes(file: BinaryIO, size: int) -> NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(file.read(size), np.uint8)
