"""The safetensors container, read without trusting a byte of it and without running any code.

A file is eight bytes of length, a JSON header that names each tensor's type, shape and place, and
the bytes. :func:`read_header` checks every statement the header makes before anything is read by
it: sizes, bounds, gaps, overlaps, duplicate names. Bytes are fetched with positioned reads, never
mapped: a mapped file that somebody truncates meanwhile would end the process, and its pages would
count against the memory that verification promises not to exceed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earmark import codec
from earmark.errors import FileError, FormatError, RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_HEADER = 1 << 24
MAX_BRACKETS = 1 << 20
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 16
MAX_ENTRIES = 1 << 48

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
}  # fmt: skip
"""Bytes an entry takes, by the container's name of the type."""

FRAMEWORK = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
"""PyTorch's names of the same types; digests of files and of modules agree by them."""

_PLAIN = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive, such as torch.save writes"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x08\x01", "a protocol buffer, such as ONNX"),
    (b"\x1f\x8b", "a gzip archive"),
)
_LOCKED = b"earmark l"  # as `earmark.locks.wrap.MAGIC` begins


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as a header states it, after its statements were checked.

    Args:
        name: The tensor's name.
        dtype: The container's name of its type.
        shape: Its shape.
        path: The file it stands in.
        start: Offset of its first byte in the file.
        size: Its bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def read_header(path: str | Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read and check a safetensors header.

    Args:
        path: The file.

    Returns:
        The tensors by name, in the order of their bytes, and the file's own metadata.

    Raises:
        FileError: Missing, unreadable, or shorter than its header says.
        FormatError: No safetensors file, or a header that lies.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(9)
            head = start[:8]
            _refuse_foreign(source, start)
            if len(head) < 8:
                raise FileError(
                    f"File '{source}' has {size} bytes; a safetensors file has at least 10."
                )
            length = int.from_bytes(head, "little")
            if not 2 <= length <= MAX_HEADER:
                raise FormatError(
                    f"File '{source}' is no safetensors file: its first bytes state a header of "
                    f"{length:,} bytes.",
                    expected=f"At most {MAX_HEADER:,} bytes.",
                )
            if length > size - 8:
                raise FileError(
                    f"File '{source}' ends inside its header: {size:,} bytes of "
                    f"{8 + length:,} and more.",
                    hint="The file is truncated; fetch it again.",
                )
            raw = start[8:] + file.read(length - 1)
    except OSError as error:
        raise FileError(
            f"File '{source}' cannot be read: {error.strerror}.", hint="Check the path."
        ) from error
    header = _parse(source, raw)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise FormatError(f"File '{source}' has metadata that is no map of strings.")
    if len(header) > MAX_TENSORS:
        raise FormatError(
            f"File '{source}' lists {len(header):,} tensors.", expected=f"At most {MAX_TENSORS:,}."
        )
    found = [_entry(source, name, body, 8 + length) for name, body in header.items()]
    found.sort(key=lambda entry: (entry.start, entry.size, entry.name))
    _check_tiling(source, found, 8 + length, size)
    return {entry.name: entry for entry in found}, metadata


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Name the formats that people hand in by mistake; a plausible header is let through."""
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
        return
    if start.startswith(_LOCKED):
        raise FormatError(
            f"File '{path}' is a locked copy: its weights are encrypted.",
            expected="The weights in clear, as safetensors.",
            hint=f"Open it first:  earmark unlock {path} --license ...",
        )
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise FormatError(
                f"File '{path}' is {what}, not safetensors.",
                hint="Save the weights with safetensors.torch.save_file; earmark never unpickles.",
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: raw JSON values
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise FormatError(f"A safetensors header names '{twice}' twice.")
    return found


def _parse(path: Path, raw: bytes) -> dict[str, Any]:  # Any: raw JSON values
    if not raw.startswith(b"{"):
        raise FormatError(f"File '{path}' is no safetensors file: its header is no JSON object.")
    if raw.count(b"[") + raw.count(b"{") > MAX_BRACKETS:
        raise FormatError(f"File '{path}' has a header of over {MAX_BRACKETS:,} lists and objects.")
    try:
        header = codec.read_json(raw, pairs=_unique)
    except FormatError as error:
        raise FormatError(f"File '{path}': {error.what}") from error
    except (RecordError, ValueError) as error:
        raise FormatError(
            f"File '{path}' is no safetensors file: its header is no JSON ({error})."
        ) from error
    if not isinstance(header, dict):  # pragma: no cover - it starts with a brace
        raise FormatError(f"File '{path}' has a header that is no JSON object.")
    return header


def is_count(value: object, most: int = MAX_ENTRIES) -> bool:
    """Tell whether a value of untrusted JSON is a whole number from 0 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _entry(path: Path, name: str, body: Any, base: int) -> Entry:  # Any: raw JSON
    where = f"File '{path}', tensor {name!r}"
    if not name.isprintable() or len(name) > 1024:
        raise FormatError(f"{where}: expected a name of up to 1,024 printable characters.")
    if not isinstance(body, dict) or set(body) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: expected exactly dtype, shape and data_offsets.")
    dtype, shape, offsets = body["dtype"], body["shape"], body["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise FormatError(
            f"{where} has type {dtype!r}.", expected=f"One of {', '.join(sorted(BYTES))}."
        )
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(is_count(size) for size in shape)
    ):
        raise FormatError(f"{where} has shape {shape!r}; expected up to 16 sizes of 0 or more.")
    count = 1
    for length in shape:
        count *= length
        if count > MAX_ENTRIES:
            raise FormatError(f"{where} has shape {shape!r}, more than 2^48 entries.")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(is_count(value, 1 << 60) for value in offsets)
        or offsets[0] > offsets[1]
    ):
        raise FormatError(f"{where} has data_offsets {offsets!r}; expected [begin, end].")
    size = offsets[1] - offsets[0]
    if size != count * BYTES[dtype]:
        raise FormatError(
            f"{where} takes {size:,} bytes, but {shape} entries of {dtype} take "
            f"{count * BYTES[dtype]:,}."
        )
    return Entry(name, dtype, tuple(shape), path, base + offsets[0], size)


def _check_tiling(path: Path, found: list[Entry], base: int, size: int) -> None:
    """Refuse gaps, overlaps, missing bytes and bytes that belong to no tensor."""
    at = base
    for entry in found:
        if entry.start < at:
            raise FormatError(
                f"File '{path}', tensor '{entry.name}' overlaps the tensor before it."
            )
        if entry.start > at:
            raise FormatError(
                f"File '{path}' has {entry.start - at:,} bytes before tensor '{entry.name}' that "
                "belong to no tensor."
            )
        at += entry.size
    if at > size:
        raise FileError(
            f"File '{path}' has {size:,} bytes, but its header needs {at:,}.",
            hint="The file is truncated; fetch it again.",
        )
    if at < size:
        raise FormatError(f"File '{path}' has {size - at:,} bytes after its last tensor.")


def decode(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Turn the bytes of some entries into float32; integers are taken at face value.

    Args:
        raw: Bytes, little-endian, (entries * size,).
        dtype: The container's name of their type.

    Returns:
        (entries,), a new array.

    Example:
        >>> decode(np.array([0x80, 0x3F], np.uint8), "BF16")
        array([1.], dtype=float32)
    """
    if dtype == "BF16":
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return _eight_bit_table(dtype)[raw]
    if dtype == "F64":
        with np.errstate(over="ignore"):
            return raw.view("<f8").astype(np.float32)
    return raw.view(_PLAIN[dtype]).astype(np.float32)


def integers(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.int64]:
    """Turn the bytes of integer entries into int64."""
    return raw.view(_PLAIN[dtype]).astype(np.int64)


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """Turn float32 into the bytes of a floating type, rounding to nearest, ties to even.

    Raises:
        FormatError: The type is not F64, F32, F16 or BF16.

    Example:
        >>> encode(np.array([1.0], np.float32), "BF16").hex()
        '803f'
    """
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nan = np.isnan(values)
        return np.where(nan, 0x7FC0, rounded).astype("<u2").tobytes()
    if dtype not in ("F64", "F32", "F16"):
        raise FormatError(f"Floats cannot be written as {dtype}.", expected="F64, F32, F16, BF16.")
    return values.astype(_PLAIN[dtype]).tobytes()


_TABLES: dict[str, NDArray[np.float32]] = {}


def _eight_bit_table(dtype: str) -> NDArray[np.float32]:
    """Return the 256 values of an eight-bit float."""
    if dtype not in _TABLES:
        code = np.arange(256)
        mantissa_bits = 3 if dtype == "F8_E4M3" else 2
        bias = 7 if dtype == "F8_E4M3" else 15
        exponent = (code & 0x7F) >> mantissa_bits
        mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
        value = np.where(
            exponent == 0,
            mantissa * 2.0 ** (1 - bias),
            (1 + mantissa) * 2.0 ** (exponent - bias).astype(float),
        )
        if dtype == "F8_E4M3":
            value = np.where((code & 0x7F) == 0x7F, np.nan, value)
        else:
            special = np.where(mantissa == 0, np.inf, np.nan)
            value = np.where(exponent == 31, special, value)
        _TABLES[dtype] = np.where(code & 0x80, -value, value).astype(np.float32)
    return _TABLES[dtype]


def header_bytes(shapes: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Write the length and header of a file whose tensors follow in the given order.

    Args:
        shapes: Name to (type, shape), in the order in which the bytes will follow.
        metadata: Strings to store.

    Returns:
        The first bytes of the file, padded so that the data begin at a multiple of eight.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
