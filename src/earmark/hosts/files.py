"""Weight files as hosts: one safetensors file, a folder of them, or a sharded checkpoint.

No torch, no model class, no code of the suspect's: NumPy and positioned reads. Memory is bounded by
one tensor, or by one chunk for those who ask for chunks. Several threads may read one host; a
tensor is hashed beside its reading. Quantized layouts (see
:mod:`earmark.hosts.packed`) are read as the float tensors that they stand for.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from earmark import codec, files
from earmark.errors import CarrierError, FileError, FormatError, HostError, RecordError
from earmark.hosts import direct, packed, tensorfile
from earmark.hosts.access import Host
from earmark.hosts.tensorfile import Entry
from earmark.records import Access

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

MAX_TENSOR_ENTRIES = 1 << 31
CHUNK = 1 << 22
AT_ONCE = 2
"""Tensors that are worth streaming at a time: hashing one takes longer than reading it."""
_INLINE = 1 << 20
_LARGE = 1 << 24
_INDEX_LIMIT = 100_000_000


class FilesHost(Host):
    """The weights in a safetensors file, a folder of such files, or a sharded checkpoint.

    Args:
        path: A ``.safetensors`` file, a ``.index.json`` file, or a folder that holds either.

    Raises:
        FileError: A file is missing, unreadable or truncated.
        FormatError: A file is not what it says; a header or an index that lies.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> _ = write_tensors(place, {"fc.weight": np.ones((2, 3), np.float32)})
        >>> host = FilesHost(place)
        >>> host.tensor_names(), host.tensor("fc.weight").sum()
        (('fc.weight',), np.float32(6.0))
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._entries = self._open()
        self._hashes: dict[str, bytes] = {}
        self._spare: deque[NDArray[np.uint8]] = deque()
        self._stored = packed.layouts(self._entries, self.raw)

    def __repr__(self) -> str:
        return f"FilesHost('{self.path}', {len(self._entries)} tensors)"

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self._entries.values())

    def entries(self) -> Mapping[str, Entry]:
        """Return the stored tensors by name, as their headers state them."""
        return self._entries

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted; a quantized one counts once, by its weight."""
        return tuple(sorted(self._stored))

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading its data.

        Raises:
            CarrierError: No tensor has that name.
        """
        return self._layout(name).shape

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as float32, dequantized if need be.

        Raises:
            CarrierError: No tensor has that name.
            FileError: The file was truncated meanwhile.
            HostError: The tensor is too large to be held; read it by `chunks`.
        """
        layout = self._layout(name)
        if math.prod(layout.shape) > MAX_TENSOR_ENTRIES:
            raise HostError(
                f"Tensor '{name}' has {math.prod(layout.shape):,} entries.",
                expected=f"At most {MAX_TENSOR_ENTRIES:,} at once.",
                hint="Read it in pieces:  host.chunks(name).",
            )
        if isinstance(layout, packed.Plain):
            values = tensorfile.decode(self.raw(layout.entry), layout.entry.dtype)
            return values.reshape(layout.shape)
        return layout.read(self.raw)

    def chunks(self, name: str, *, entries: int = CHUNK) -> Iterator[NDArray[np.float32]]:
        """Yield one tensor's entries in order, as float32 pieces of at most `entries`.

        Raises:
            CarrierError: No tensor has that name.
            FileError: The file was truncated meanwhile.
        """
        layout = self._layout(name)
        if not isinstance(layout, packed.Plain):
            flat = self.tensor(name).reshape(-1)
            for start in range(0, len(flat), entries):
                yield flat[start : start + entries]
            return
        width = tensorfile.BYTES[layout.entry.dtype]
        for piece in self._pieces(layout.entry, entries * width):
            yield tensorfile.decode(piece, layout.entry.dtype)

    def blocks(self, name: str, size: int, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some blocks of consecutive entries; streamed, so that memory stays bounded.

        Args:
            name: The tensor.
            size: Entries of a block; block i begins at entry i * size.
            index: Which blocks, in any order, (blocks,).

        Returns:
            (blocks, size), in the order of `index`.

        Raises:
            CarrierError: No tensor has that name.
            FileError: The file was truncated meanwhile.
        """
        layout = self._layout(name)
        if not isinstance(layout, packed.Plain) or math.prod(layout.shape) < CHUNK // 4:
            return super().blocks(name, size, index)
        entry = layout.entry
        width = size * tensorfile.BYTES[entry.dtype]
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        found = np.empty((len(index), size), np.float32)
        first = 0
        for piece in self._pieces(entry, max(1, CHUNK // width) * width):
            count = len(piece) // width
            low, high = np.searchsorted(wanted, (first, first + count))
            if high > low:
                rows = piece[: count * width].reshape(count, width)[wanted[low:high] - first]
                values = tensorfile.decode(rows.reshape(-1), entry.dtype)
                found[order[low:high]] = values.reshape(-1, size)
            first += count
        return found

    def digest(self) -> str:
        """Return a digest over names, types, shapes and bytes, whatever the sharding.

        It is that of a torch module which holds the same tensors. Bytes that were streamed before
        are not read again.

        Raises:
            FileError: A file was truncated meanwhile.
        """
        left = [entry for name, entry in self._entries.items() if name not in self._hashes]
        left.sort(key=lambda entry: (str(entry.path), entry.start))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            deque(pool.map(self._hash, left), maxlen=0)
        return combined_digest(
            {
                name: (tensorfile.FRAMEWORK[entry.dtype], entry.shape, self._hashes[name])
                for name, entry in self._entries.items()
            }
        )

    def _layout(self, name: str) -> packed.Layout:
        if name not in self._stored:
            raise CarrierError(
                f"Carrier '{name}' is none of the {len(self._stored)} tensors in '{self.path}'.",
                hint=nearest(name, self._stored),
            )
        return self._stored[name]

    def plain(self, name: str) -> Entry | None:
        """Return what a tensor is stored as, or null where several stored ones stand for it.

        Raises:
            CarrierError: No tensor has that name.
        """
        found = self._layout(name)
        return found.entry if isinstance(found, packed.Plain) else None

    def raw(self, entry: Entry) -> NDArray[np.uint8]:
        """Return the bytes of one stored tensor."""
        buffer = np.empty(entry.size, np.uint8)
        at = 0
        for piece in self._pieces(entry, CHUNK):
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        return buffer

    def _hash(self, entry: Entry) -> None:
        for _ in self._pieces(entry, CHUNK):
            pass

    def _pieces(self, entry: Entry, step: int) -> Iterator[NDArray[np.uint8]]:
        """Yield an entry's bytes; hash them on another thread if that was not done yet."""
        state = None if entry.name in self._hashes else hashlib.sha256()
        if entry.size <= min(step, _INLINE):
            yield from self._one_piece(entry, state)
            return
        buffers = [self._buffer(step) for _ in range(2)]
        pending: Future[None] | None = None
        opened = direct.Source(entry.path, past_cache=entry.size >= _LARGE)
        with closing(opened) as source, ThreadPoolExecutor(1) as pool:
            for number, at in enumerate(range(0, entry.size, step)):
                # The other buffer may still be being hashed; this one is not.
                piece = _read(source, buffers[number % 2], at, min(step, entry.size - at), entry)
                if pending is not None:
                    pending.result()
                if state is not None:
                    pending = pool.submit(state.update, piece.data)
                yield piece
            if pending is not None:
                pending.result()
        self._spare += buffers
        if state is not None:
            self._hashes[entry.name] = state.digest()

    def _buffer(self, size: int) -> NDArray[np.uint8]:
        """Return a buffer, a used one if there is one: fresh memory costs more than reading."""
        try:
            spare = self._spare.pop()
        except IndexError:
            return direct.buffer(size)
        return spare if len(spare) >= size + direct.PAGE else direct.buffer(size)

    def _one_piece(self, entry: Entry, state: hashlib._Hash | None) -> Iterator[NDArray[np.uint8]]:
        with closing(direct.Source(entry.path, past_cache=False)) as source:
            piece = _read(source, np.empty(entry.size, np.uint8), 0, entry.size, entry)
        if state is not None:
            state.update(piece.data)
            self._hashes[entry.name] = state.digest()
        if entry.size:
            yield piece

    def _open(self) -> dict[str, Entry]:
        path = self.path
        if path.is_dir():
            return self._open_folder(path)
        if path.name.endswith(".json"):
            return self._open_index(path)
        if not path.exists():
            raise FileError(f"File '{path}' does not exist.", hint="Check the path.")
        found, self.metadata = tensorfile.read_header(path)
        return found

    def _open_folder(self, folder: Path) -> dict[str, Entry]:
        indices = sorted(folder.glob("*.safetensors.index.json"))
        if len(indices) > 1:
            raise FormatError(
                f"Folder '{folder}' holds {len(indices)} indices: "
                f"{', '.join(index.name for index in indices)}.",
                hint="Name the one that is meant.",
            )
        if indices:
            return self._open_index(indices[0])
        parts = sorted(folder.glob("*.safetensors"))
        if not parts:
            others = sorted(
                item.name
                for item in folder.iterdir()
                if item.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf", ".onnx")
            )
            raise FileError(
                f"Folder '{folder}' holds no .safetensors file.",
                hint=f"It holds {', '.join(others[:3])}; save the weights as safetensors."
                if others
                else "Check the path.",
            )
        found: dict[str, Entry] = {}
        for part in parts:
            entries, metadata = tensorfile.read_header(part)
            self.metadata |= metadata
            twice = sorted(set(entries) & set(found))
            if twice:
                raise FormatError(
                    f"Tensor '{twice[0]}' stands in '{found[twice[0]].path.name}' and again in "
                    f"'{part.name}'.",
                    hint="Name the file that is meant, or remove the copy.",
                )
            found |= entries
        return found

    def _open_index(self, path: Path) -> dict[str, Entry]:
        weight_map = _weight_map(path)
        found: dict[str, Entry] = {}
        for part in sorted(set(weight_map.values())):
            entries, metadata = tensorfile.read_header(path.parent / part)
            self.metadata |= metadata
            stated = {name for name, file in weight_map.items() if file == part}
            lacking, extra = sorted(stated - set(entries)), sorted(set(entries) - stated)
            if lacking or extra:
                raise FormatError(
                    f"Index '{path.name}' and '{part}' disagree: the file lacks "
                    f"{lacking[:3] or 'nothing'} and holds {extra[:3] or 'nothing'} besides."
                )
            found |= entries
        return found


def _read(
    source: direct.Source, into: NDArray[np.uint8], at: int, size: int, entry: Entry
) -> NDArray[np.uint8]:
    piece = source.read(into, entry.start + at, size)
    if len(piece) < size:
        raise FileError(
            f"File '{entry.path}' ended inside tensor '{entry.name}' while it was read.",
            hint="Something shortened the file; fetch it again.",
        )
    return piece


def _weight_map(path: Path) -> dict[str, str]:
    """Read an index; its files must be plain names beside it."""
    raw = files.read_bytes(path, limit=_INDEX_LIMIT)
    try:
        body = codec.read_json(raw, pairs=_unique)
    except (RecordError, ValueError) as error:
        raise FormatError(f"Index '{path}' is no JSON document: {error}.") from error
    found = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(found, dict) or not found:
        raise FormatError(f"Index '{path}' has no weight_map.")
    for name, part in found.items():
        plain = isinstance(part, str) and part.endswith(".safetensors")
        if not plain or "/" in part or "\\" in part or "\0" in part or part.startswith("."):
            raise FormatError(
                f"Index '{path}' puts tensor '{name}' into {part!r}.",
                expected="The plain name of a .safetensors file in the same folder.",
            )
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that lists the names nearest to one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    return f"Nearest names: {', '.join(near)}." if near else ""


def combined_digest(tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> str:
    """Return the digest of a set of tensors from the digests of each.

    Args:
        tensors: Name to (type as PyTorch calls it, shape, SHA-256 of the little-endian bytes).

    Example:
        >>> combined_digest({})[:8]
        'b659742e'
    """
    total = hashlib.sha256(b"earmark/state/2\n")
    for name in sorted(tensors):
        dtype, shape, digest = tensors[name]
        total.update(f"{name} {dtype} {tuple(shape)} {digest.hex()}\n".encode())
    return total.hexdigest()


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    dtype: str = "F32",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write float tensors as one safetensors file, atomically.

    Args:
        path: The file.
        tensors: Name to values.
        dtype: Type in which they are stored: F64, F32, F16 or BF16.
        metadata: Strings to store beside them.
        overwrite: Allow an existing file to be replaced.

    Raises:
        UsageError: The file exists and may not be overwritten.
        OutputError: It cannot be written.
    """
    shapes = {name: (dtype, tuple(tensors[name].shape)) for name in sorted(tensors)}
    with files.replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(tensorfile.header_bytes(shapes, dict(metadata or {})))
        for name in shapes:
            file.write(tensorfile.encode(tensors[name], dtype))
    return Path(path)


def save_release(
    model: nn.Module,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> str:
    """Write a module's state dict as safetensors, atomically; shared tensors are written twice.

    Args:
        model: The module.
        path: The file.
        metadata: Strings to store beside the tensors.
        overwrite: Allow an existing file to be replaced.

    Returns:
        The digest of the tensors, as :meth:`FilesHost.digest` and a module's host give it.

    Raises:
        UsageError: The file exists and may not be overwritten.
        OutputError: It cannot be written.
    """
    from safetensors.torch import save_file

    state = {
        name: tensor.detach().cpu().clone(memory_format=_contiguous())
        for name, tensor in model.state_dict().items()
    }
    with files.replacing(path, overwrite=overwrite) as temporary:
        save_file(state, temporary, metadata={"format": "pt"} | dict(metadata or {}))
    return FilesHost(path).digest()


def _contiguous() -> object:
    import torch

    return torch.contiguous_format


def load_state(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors release into a module, in place and strictly.

    Nothing is changed unless every name and shape agrees. Tensors that the file holds quantized are
    dequantized; types are turned into the module's own.

    Args:
        model: The module.
        path: A file, folder or index.

    Raises:
        FileError: A file is missing, unreadable or truncated.
        FormatError: A file is not what it says.
        HostError: Names or shapes differ; the message names the differences.
    """
    import torch

    host = FilesHost(path)
    own: dict[str, Tensor] = model.state_dict()
    names = set(host.tensor_names())
    lacking, extra = sorted(set(own) - names), sorted(names - set(own))
    other = [
        f"{name} {host.tensor_shape(name)} instead of {tuple(own[name].shape)}"
        for name in sorted(names & set(own))
        if host.tensor_shape(name) != tuple(own[name].shape)
    ]
    if lacking or extra or other:
        parts = [
            f"lacks {_few(lacking)}" if lacking else "",
            f"has {_few(extra)} that the model has not" if extra else "",
            f"has {_few(other)}" if other else "",
        ]
        raise HostError(
            f"File '{path}' does not fit the model: it {'; it '.join(p for p in parts if p)}.",
            hint="Load it into the model it was saved from.",
        )
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(exact_tensor(host, name).to(target.dtype))


def exact_tensor(host: FilesHost, name: str) -> Tensor:
    """Return a stored tensor without a detour over float32 where its type needs none."""
    import torch

    entry = host.plain(name)
    exact = ("F64", "I64", "I32", "I16", "I8", "U8", "BOOL")
    if entry is not None and entry.dtype in exact:
        raw = host.raw(entry)
        kind: torch.dtype = getattr(torch, tensorfile.FRAMEWORK[entry.dtype])
        if not len(raw):
            return torch.empty(entry.shape, dtype=kind)
        return torch.from_numpy(raw).view(kind).reshape(entry.shape)
    return torch.from_numpy(host.tensor(name))


def _few(items: Sequence[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
