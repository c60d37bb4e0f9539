"""Quantized layouts in safetensors: several stored tensors that stand for one float tensor.

What is read:

* int8, uint8 or fp8 weights with a scale beside them (``weight_scale``, ``weight_scale_inv``,
  ``SCB``): one scale for all, one a row, or one a block of rows and columns;
* four and eight bits packed into 32-bit words with groups along the input (GPTQ: words along the
  input; AWQ: words along the output, nibbles interleaved);
* four bits in a code book with one scale a block (the NF4 and FP4 of bitsandbytes), their scales
  quantized once more or not.

Everything else is taken at face value. A layout whose parts contradict each other is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from earmark import codec
from earmark.errors import FormatError, RecordError
from earmark.hosts import tensorfile
from earmark.hosts.tensorfile import Entry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Raw = Callable[[Entry], NDArray[np.uint8]]

_SCALES = ("_scale", "_scale_inv")
_MOST_DIMS = 16
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_SMALL = ("I8", "U8", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor stored as it is."""

    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape


@dataclass(frozen=True, slots=True)
class Scaled:
    """Small integers or floats times a scale: one for all, one a row, or one a block."""

    weight: Entry
    scale: Entry
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight.shape

    def read(self, raw: Raw) -> NDArray[np.float32]:
        """Return the float tensor.

        Raises:
            FormatError: The scale's shape does not fit the weight's.
        """
        values = _values(self.weight, raw)
        scale = _values(self.scale, raw) * np.float32(self.factor)
        rows = values.shape[0] if values.ndim else 0
        if scale.size == 1:
            scale = scale.reshape((1,) * values.ndim)
        elif values.ndim and scale.size == rows == scale.shape[0]:
            scale = scale.reshape((-1,) + (1,) * (values.ndim - 1))
        else:
            scale = self._spread(scale)
        values *= scale
        return values

    def _spread(self, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """Repeat one scale a block over the block's rows and columns."""
        shape = self.weight.shape
        if len(shape) == scale.ndim == 2 and 0 not in scale.shape:
            tall, wide = (-(-a // b) for a, b in zip(shape, scale.shape, strict=True))
            if (-(-shape[0] // max(1, tall)), -(-shape[1] // max(1, wide))) == scale.shape:
                return scale.repeat(tall, 0)[: shape[0]].repeat(wide, 1)[:, : shape[1]]
        raise _unfit(self.weight, f"scale {self.scale.shape} fits no rows or blocks of it")


@dataclass(frozen=True, slots=True)
class Grouped:
    """GPTQ or AWQ: packed words, packed zero points, scales a group of inputs."""

    words: Entry
    zeros: Entry
    scales: Entry
    index: Entry | None
    awq: bool

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        size = self.scales.shape[1]
        return 32 * self.zeros.shape[1] // max(1, size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs, inputs."""
        inputs = self.words.shape[0] if self.awq else self.words.shape[0] * 32 // self.bits
        return self.scales.shape[1], inputs

    def read(self, raw: Raw) -> NDArray[np.float32]:
        """Return the float tensor, (outputs, inputs)."""
        bits, (outputs, inputs) = self.bits, self.shape
        words = _whole(self.words, raw)
        zeros = _unpack(_whole(self.zeros, raw), bits, awq=self.awq)[:, :outputs]
        if self.awq:
            codes = _unpack(words, bits, awq=True)[:, :outputs]
        else:
            codes = _unpack(words.T, bits, awq=False).T
            zeros = zeros + 1
        scales = _values(self.scales, raw)
        if self.index is not None:
            group = _whole(self.index, raw).reshape(-1)
        else:
            group = np.arange(inputs) // -(-inputs // len(scales))
        if len(group) != inputs or group.min(initial=0) < 0 or group.max(initial=0) >= len(scales):
            raise _unfit(self.words, "its group index does not fit")
        found = (codes - zeros[group]).astype(np.float32) * scales[group]
        return np.ascontiguousarray(found.T)


@dataclass(frozen=True, slots=True)
class CodeBook:
    """Four bits a weight into a code book of 16 values, times a scale a block."""

    words: Entry
    parts: Mapping[str, Entry]
    state: Mapping[str, Any]  # Any: checked JSON

    @property
    def shape(self) -> tuple[int, ...]:
        """Its stated shape."""
        return tuple(self.state["shape"])

    def read(self, raw: Raw) -> NDArray[np.float32]:
        """Return the float tensor.

        Raises:
            FormatError: Its parts contradict each other.
        """
        shape, block = self.shape, int(self.state["blocksize"])
        count = math.prod(shape)
        block = min(block, max(1, count))
        book = _values(self.parts["quant_map"], raw).reshape(-1)
        codes = raw(self.words)
        if count > 2 * len(codes) or len(book) != 16 or block < 1:
            raise _unfit(self.words, f"it holds fewer than the {count:,} weights it states")
        flat = np.empty(2 * len(codes), np.float32)
        flat[0::2], flat[1::2] = book[codes >> 4], book[codes & 15]
        scale = self._scales(raw)
        if len(scale) < -(-count // block):
            raise _unfit(self.words, "it has too few scales")
        return flat[:count].reshape(shape) * scale[: -(-count // block)].repeat(block)[
            :count
        ].reshape(shape)

    def _scales(self, raw: Raw) -> NDArray[np.float32]:
        state, absmax = self.state, self.parts["absmax"]
        if absmax.dtype != "U8":
            return _values(absmax, raw).reshape(-1)
        if not {"nested_absmax", "nested_quant_map"} <= set(self.parts):
            raise _unfit(self.words, "its scales are quantized, but their scales are missing")
        inner = _values(self.parts["nested_quant_map"], raw).reshape(-1)
        outer = _values(self.parts["nested_absmax"], raw).reshape(-1)
        codes = raw(absmax)
        block = min(int(state.get("nested_blocksize", 256)), max(1, len(codes)))
        if len(inner) != 256 or block < 1 or len(outer) < -(-len(codes) // block):
            raise _unfit(self.words, "its nested scales do not fit")
        wide = outer[: -(-len(codes) // block)].repeat(block)[: len(codes)]
        found: NDArray[np.float32] = inner[codes] * wide + np.float32(
            state.get("nested_offset", 0.0)
        )
        return found


Layout = Plain | Scaled | Grouped | CodeBook


def layouts(entries: Mapping[str, Entry], raw: Raw) -> dict[str, Layout]:
    """Find which stored tensors stand for which float tensors.

    Args:
        entries: The stored tensors by name.
        raw: Reads the bytes of one; only small descriptions are read here.

    Returns:
        Name of the weight to how it is read; helpers such as scales are left out.

    Raises:
        FormatError: A layout's parts contradict each other.
    """
    found: dict[str, Layout] = {}
    used: set[str] = set()
    for name, entry in entries.items():
        layout, helpers, logical = _recognize(name, entry, entries, raw)
        if layout is not None:
            found[logical] = layout
            used |= {name, *helpers}
    for name, entry in entries.items():
        if name not in used and name not in found:
            found[name] = Plain(entry)
    return found


def _recognize(
    name: str, entry: Entry, entries: Mapping[str, Entry], raw: Raw
) -> tuple[Layout | None, set[str], str]:
    stem, _, last = name.rpartition(".")
    dot = f"{stem}." if stem else ""
    if last == "qweight" and {f"{dot}qzeros", f"{dot}scales"} <= set(entries):
        return _grouped(entry, dot, entries), {
            f"{dot}{part}" for part in ("qzeros", "scales", "g_idx")
        }, f"{dot}weight"  # fmt: skip
    states = [f"{name}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
    state = next((item for item in states if item in entries), None)
    if state is not None and {f"{name}.absmax", f"{name}.quant_map"} <= set(entries):
        parts = {
            part: entries[f"{name}.{part}"]
            for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            if f"{name}.{part}" in entries
        }
        return (
            CodeBook(entry, parts, _state(entries[state], raw)),
            {state, *(f"{name}.{part}" for part in parts)},
            name,
        )
    if entry.dtype in _SMALL:
        for suffix in _SCALES:
            if f"{name}{suffix}" in entries:
                scale = entries[f"{name}{suffix}"]
                return Scaled(entry, scale), {scale.name}, name
        if last == "weight" and f"{dot}SCB" in entries:
            scale = entries[f"{dot}SCB"]
            return Scaled(entry, scale, 1 / 127), {scale.name, f"{dot}weight_format"}, name
    return None, set(), name


def _grouped(words: Entry, dot: str, entries: Mapping[str, Entry]) -> Grouped:
    zeros, scales = entries[f"{dot}qzeros"], entries[f"{dot}scales"]
    two = all(len(item.shape) == 2 for item in (words, zeros, scales))
    if not two or words.dtype != "I32" or zeros.dtype != "I32" or 0 in scales.shape:
        raise _unfit(words, "packed words, zeros and scales do not fit each other")
    awq = words.shape[1] == zeros.shape[1] != scales.shape[1]
    order = entries.get(f"{dot}g_idx")
    if order is not None and order.dtype not in ("I32", "I64"):
        raise _unfit(order, "its group index holds no integers")
    made = Grouped(words, zeros, scales, order, awq)
    if made.bits not in (4, 8) or (not awq and words.shape[1] != scales.shape[1]):
        raise _unfit(words, f"{made.bits} bits a weight, or scales of another width")
    if zeros.shape[0] != scales.shape[0]:
        raise _unfit(words, "zeros and scales differ in their groups")
    return made


def _unpack(words: NDArray[np.int64], bits: int, *, awq: bool) -> NDArray[np.int16]:
    """Unpack each row of 32-bit words into codes, lowest bits first."""
    shifts = np.arange(0, 32, bits)
    if awq and bits == 4:
        shifts = shifts[list(_AWQ_ORDER)]
    found = np.empty((*words.shape, len(shifts)), np.int16)
    for place, shift in enumerate(shifts):
        found[:, :, place] = words >> shift & ((1 << bits) - 1)
    return found.reshape(len(words), -1)


def _values(entry: Entry, raw: Raw) -> NDArray[np.float32]:
    return tensorfile.decode(raw(entry), entry.dtype).reshape(entry.shape)


def _whole(entry: Entry, raw: Raw) -> NDArray[np.int64]:
    return tensorfile.integers(raw(entry), entry.dtype).reshape(entry.shape)


def _state(entry: Entry, raw: Raw) -> dict[str, Any]:  # Any: JSON
    if entry.size > 1 << 16:
        raise _unfit(entry, "its state has more than 65,536 bytes")
    try:
        state = codec.read_json(raw(entry).tobytes())
        shape = state["shape"]
        good = len(shape) <= _MOST_DIMS and all(
            tensorfile.is_count(size, 1 << 40) for size in shape
        )
        float(state.get("nested_offset", 0.0))
        int(state.get("nested_blocksize", 256))
        if good and tensorfile.is_count(state["blocksize"], 1 << 40):
            return dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, RecordError, OverflowError):
        pass
    raise _unfit(entry, "its state is no JSON object with shape and blocksize")


def _unfit(entry: Entry, why: str) -> FormatError:
    return FormatError(f"File '{entry.path}', quantized tensor '{entry.name}': {why}.")
