"""Where Deep Water's bits live: cells of weights, keyed signs, and what is read off them.

Each carrier tensor is cut, publicly, into disjoint *cells*, one bit each, scattered over the whole
tensor. A cell belongs to one shard of the key, and only that shard's secret tells the cell's signs:
revealing a shard leaves the cells of all others as hidden as before. A cell consists of *pairs* of
weights, and of *groups* of pairs. With keyed signs a over the weights, keyed flips f over the
pairs, and the cell's bit b = +1 or -1::

    t_p = a_1 * u_1 + a_2 * u_2 of a pair         u: standardized, clipped weights of the suspect
    s_g = sum of f_p * t_p over the group
    z   = sum of s_g over the cell / sqrt(weights of the cell)

A hit is b * z > 0. The soft score is the sum of b * s_g over all groups of all cells.

Why the evidence is exact. f and b are fair, and independent of each other, of a and of any suspect
made without the key. Turning all flips of one group at once turns the sign of its s_g and nothing
else: given the suspect, a, and how the flips of each group compare with each other, the |s_g| are
constants and the signs of b * s_g are independent and fair. The score is a sum of known weights
under fair signs, and b decides each cell's hit like a fair coin. Nothing is assumed about the
suspect's weights, and a group whose s is 0, or a cell whose z is 0, counts against the claim.

Why weights that were not trained yet can bear the mark unseen. Exchange the two weights of a pair
and multiply both by -a_1 * a_2: t_p turns its sign, a_1 * u_1 - a_2 * u_2 stays. If weights are
drawn independently from a law that is symmetric about 0, as initializations are, the exchange does
not change the law of the pair. :func:`exchange` exchanges where t_p has the wrong sign. The signs
of all t_p then are b * f_p, fair and independent as before: over the keys, the weights have exactly
the law they had.

NumPy is all that this module needs.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from earmark.errors import CapacityError, CarrierError, KeyLayoutError
from earmark.keys.stream import public_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from earmark.hosts.access import Host
    from earmark.keys.secret import Shard
    from earmark.records import Layout

MOST_POSITIONS = 1 << 20  # up to here, single weights are scattered; beyond, blocks of them
MOST_BLOCKS = 1 << 14
MOST_USED = 1 << 18  # weights of one tensor that bear bits; of larger ones a secret part is used
MOST_GROUPS = 4096
LEAST_WEIGHTS = 1024
MOST_CELLS = 64
CLIP = 4.0

_HEADS = {"head", "heads", "classifier", "lm_head", "score", "logits", "fc_out", "output_layer"}
_LOOKUPS = re.compile(r"embed|wte|wpe|(^|_)tok|(^|_)pos(_|ition|$)", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Layer:
    """The public geometry of one carrier tensor.

    Args:
        name: Its name.
        shape: Its shape.
        cells: Cells (bits) it bears.
        first: Number of the first of them in the whole message.
        groups: Groups of a cell.
    """

    name: str
    shape: tuple[int, ...]
    cells: int
    first: int
    groups: int

    @property
    def entries(self) -> int:
        """Entries of the tensor."""
        return math.prod(self.shape)

    @property
    def block(self) -> int:
        """Consecutive weights that stay together when the tensor is scattered."""
        size = 1
        while self.entries > MOST_POSITIONS and self.entries // size > MOST_BLOCKS:
            size *= 2
        return size

    @property
    def weights(self) -> int:
        """Weights of one cell, an even multiple of its groups."""
        whole = self.entries // self.block // self.cells * self.block
        even = 2 * self.groups
        return min(whole, MOST_USED // self.cells) // even * even

    def zones(self) -> NDArray[np.int64]:
        """Return the blocks of each cell's zone, (cells, blocks); anybody can compute it."""
        count = self.entries // self.block
        stream = public_stream("deepwater/order", self.name.encode(), repr(self.shape).encode())
        order = np.argsort(np.frombuffer(stream.bytes(8 * count), "<u8"), kind="stable")
        each = count // self.cells
        return order[: each * self.cells].reshape(self.cells, each)


@dataclass(frozen=True, slots=True)
class Cells:
    """The secret geometry of the cells in one tensor whose shards are at hand.

    Args:
        layer: The public geometry.
        numbers: Which of the layer's cells, (cells,).
        blocks: Their blocks in the tensor, (cells, blocks).
        signs: a, (cells, pairs, 2), int8.
        flips: f, (cells, pairs), int8.
        pads: The fair signs from which the message is made, (cells,), int8.
    """

    layer: Layer
    numbers: NDArray[np.int64]
    blocks: NDArray[np.int64]
    signs: NDArray[np.int8]
    flips: NDArray[np.int8]
    pads: NDArray[np.int8]

    def positions(self) -> NDArray[np.int64]:
        """Return the entries of each cell in the flat tensor, (cells, weights)."""
        size = self.layer.block
        spread = self.blocks[:, :, None] * size + np.arange(size)
        return spread.reshape(len(self.blocks), -1)[:, : self.layer.weights]

    def pattern(self) -> NDArray[np.int8]:
        """Return a * f for each weight, (cells, weights)."""
        whole = self.signs * self.flips[:, :, None]
        return whole.reshape(len(self.signs), -1)

    def take(self, host: Host) -> NDArray[np.float32]:
        """Return the weights of the cells, (cells, weights), from any host."""
        found = host.blocks(self.layer.name, self.layer.block, self.blocks.reshape(-1))
        return found.reshape(len(self.blocks), -1)[:, : self.layer.weights]


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = _DIGITS.split(name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def eligible(host: Host, globs: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return the tensors that may bear bits, with their shapes.

    Weights of convolutions, linear and attention layers with at least 1,024 entries. Left out are
    biases, normalizations, depthwise convolutions, embeddings, and the head, which is the first
    thing that transfer learning replaces: it is known by its name or, failing that, is the last
    matrix of the model.

    Args:
        host: The model; only names and shapes are read.
        globs: Names to take instead; nothing but too small tensors is then left out.

    Raises:
        CarrierError: A glob matches no tensor.
    """
    names = sorted(host.tensor_names(), key=_natural)
    shapes = {name: host.tensor_shape(name) for name in names}
    if globs:
        from earmark.hosts.files import nearest

        for glob in globs:
            if not fnmatch.filter(names, glob):
                raise CarrierError(
                    f"Carrier '{glob}' matches none of the model's {len(names)} tensors.",
                    hint=nearest(glob, names),
                )
        chosen = [n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in globs)]
        return {n: shapes[n] for n in chosen if math.prod(shapes[n]) >= LEAST_WEIGHTS}
    matrices = [name for name in names if _is_weight(name, shapes[name])]
    flat = [name for name in matrices if len(shapes[name]) == 2]
    heads = {name for name in flat if _HEADS & set(name.split("."))} or set(flat[-1:])
    return {
        name: shapes[name]
        for name in matrices
        if name not in heads and math.prod(shapes[name]) >= LEAST_WEIGHTS
    }


def _is_weight(name: str, shape: tuple[int, ...]) -> bool:
    last = name.rsplit(".", 1)[-1]
    depthwise = len(shape) > 2 and shape[1] == 1
    weighty = last == "weight" or last.endswith(("_weight", "_proj")) or last == "kernel"
    lookup = any(_LOOKUPS.search(part) for part in name.split("."))
    return len(shape) >= 2 and weighty and not depthwise and not lookup


def allot(shapes: Mapping[str, tuple[int, ...]], *, per_bit: int, most: int) -> dict[str, int]:
    """Decide how many bits each tensor bears.

    One bit for `per_bit` weights, at least 1 and at most 64 a tensor; if the whole exceeds `most`,
    every tensor's share shrinks alike.

    Raises:
        CapacityError: There is no tensor at all.
    """
    if not shapes:
        raise CapacityError(
            f"This model has no carrier: no weight matrix or convolution of {LEAST_WEIGHTS:,} or "
            "more entries besides its head and embeddings.",
            hint="A head or embedding of that size may be named: the setting carrier=head.weight.",
        )
    wanted = {
        name: max(1, min(MOST_CELLS, round(math.prod(shape) / per_bit)))
        for name, shape in shapes.items()
    }
    total = sum(wanted.values())
    if total > most:
        wanted = {name: max(1, cells * most // total) for name, cells in wanted.items()}
    return wanted


def layers(layout: Layout) -> tuple[Layer, ...]:
    """Read the geometry out of a key's layout.

    Raises:
        KeyLayoutError: The layout's settings are missing or contradict each other.
    """
    found: list[Layer] = []
    first = 0
    try:
        params: Any = layout.params  # Any: JSON
        groups, rows = int(params["groups"]), params["layers"]
        for name, (cells, *shape) in zip(layout.carrier, rows, strict=True):
            sizes = tuple(int(size) for size in shape)
            found.append(Layer(name, sizes, int(cells), first, groups))
            first += found[-1].cells
    except (KeyError, TypeError, ValueError) as error:
        raise KeyLayoutError(f"The key's layout does not fit Deep Water: {error}.") from error
    for layer in found:
        least = min(layer.cells, groups, *layer.shape)
        if (
            least < 1
            or not 2 * layer.cells * groups <= layer.entries < 1 << 40
            or not layer.weights
        ):
            raise KeyLayoutError(f"The key's layout cuts '{layer.name}' {layer.shape} impossibly.")
    if first != layout.message_bits:
        raise KeyLayoutError(
            f"The key's layout has {first} cells for {layout.message_bits} bits of message."
        )
    return tuple(found)


def reveal(layer: Layer, shards: Iterable[Shard], count: int) -> Cells | None:
    """Compute the cells of one tensor that belong to the given shards.

    Args:
        layer: The public geometry.
        shards: The shards at hand.
        count: Shards of the whole key.

    Returns:
        The cells, or null if none of these shards has a cell in this tensor.
    """
    owners = {shard.index: shard for shard in shards}
    numbers = [c for c in range(layer.cells) if (layer.first + c) % count in owners]
    if not numbers:
        return None
    zones = layer.zones()
    weights = layer.weights
    need = -(-weights // layer.block)
    blocks, signs, flips, pads = [], [], [], []
    for number in numbers:
        shard = owners[(layer.first + number) % count]
        label = f"{layer.name}/{number}"
        zone = zones[number]
        if need < len(zone):
            raw = shard.early(f"blocks/{label}").bytes(8 * len(zone))
            zone = zone[np.argsort(np.frombuffer(raw, "<u8"), kind="stable")[:need]]
        blocks.append(zone)
        signs.append(_signs(shard.early(f"signs/{label}").bytes(-(-weights // 8)), weights))
        late = _signs(shard.stream(f"flips/{label}").bytes(weights // 16 + 1), weights // 2 + 1)
        pads.append(late[0])
        flips.append(late[1:])
    return Cells(
        layer,
        np.array(numbers),
        np.stack(blocks),
        np.stack(signs).reshape(len(numbers), -1, 2),
        np.stack(flips),
        np.array(pads, np.int8),
    )


def _signs(raw: bytes, count: int) -> NDArray[np.int8]:
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=count, bitorder="little")
    made: NDArray[np.int8] = 2 * bits.astype(np.int8) - 1
    return made


def standardize(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Center and scale a tensor's weights robustly, and clip them.

    Median and median absolute deviation of the finite, non-zero entries; zeros (pruned) and
    entries that are not finite become 0. No handful of huge weights can then drown the others. If
    more than half share one value, as coarse rounding leaves them, each value counts once.

    Example:
        >>> standardize(np.array([[1.0, -1.0, 0.0, np.nan, 1e9, 2.0]], np.float32)).round(2)
        array([[-0.22, -1.12,  0.  ,  0.  ,  4.  ,  0.22]], dtype=float32)
    """
    live = np.isfinite(values) & (values != 0)
    center, spread = _robust(values[live])
    if not spread > 0:
        center, spread = _robust(np.unique(values[live]))
    if not spread > 0:
        return np.zeros_like(values)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.clip((values - center) / np.float32(spread), -CLIP, CLIP)
    made: NDArray[np.float32] = np.where(live, scaled, np.float32(0))
    return made


def _robust(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return median and scaled median absolute deviation, of a part if there are very many."""
    if len(values) == 0:
        return 0.0, 0.0
    sample = values if len(values) <= 1 << 18 else values[:: len(values) >> 18]
    center = float(np.median(sample))
    return center, 1.4826 * float(np.median(np.abs(sample - np.float32(center))))


def bulk(values: NDArray[np.float32]) -> tuple[float, float]:
    """Say where the bulk of a tensor's weights lies, relative to mean and standard deviation.

    The bulk of trained weights is often much narrower than their standard deviation, which a few
    large ones make. A shift must be small beside the bulk.

    Returns:
        The bulk's center, in standard deviations from the mean, and its spread over the standard
        deviation, at most 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> round(bulk(rng.standard_normal(10_000).astype(np.float32))[1], 1)
        1.0
        >>> round(bulk(rng.laplace(size=10_000).astype(np.float32))[1], 1)
        0.7
    """
    mean, spread = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    center, robust = _robust(values[values != 0])
    if not (robust > 0 and spread > 0):
        return 0.0, 1.0
    return (center - mean) / spread, min(1.0, robust / spread)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one tensor says.

    Args:
        layer: The public geometry.
        numbers: Which of its cells were read, (cells,).
        z: Standard score of each cell, before its bit, (cells,).
        steps: s of each group, (cells, groups).
        pads: The cells' fair signs, (cells,).
    """

    layer: Layer
    numbers: NDArray[np.int64]
    z: NDArray[np.float64]
    steps: NDArray[np.float64]
    pads: NDArray[np.int8]

    @property
    def places(self) -> NDArray[np.int64]:
        """Numbers of the cells in the whole message."""
        return self.numbers + self.layer.first


def read(cells: Cells, values: NDArray[np.float32]) -> Reading:
    """Read the cells of one tensor.

    Args:
        cells: The secret geometry.
        values: Their weights, (cells, weights).
    """
    shape = (len(values), cells.layer.groups, -1)
    found = standardize(values).reshape(shape)
    steps = np.einsum("cgw,cgw->cg", found, cells.pattern().reshape(shape), dtype=np.float64)
    z = steps.sum(axis=1) / math.sqrt(cells.layer.weights)
    return Reading(cells.layer, cells.numbers, z, steps, cells.pads)


def without(cells: Cells, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weights of cells without their part along each pair's signs.

    The flips do not enter: the result is the same for all of them.

    Args:
        cells: The secret geometry.
        values: The weights, (cells, weights).
    """
    signs = cells.signs.astype(np.float32)
    parts = values.reshape(signs.shape)
    along = (parts * signs).mean(axis=2, keepdims=True)
    made: NDArray[np.float32] = (parts - along * signs).reshape(values.shape)
    return made


def whiten(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a tensor as a matrix of filters whose singular values are all 1 (or 0).

    What a training has learned is of low rank, and lets some of what was projected out be guessed
    from the rest. The many small singular values are the noise that a network was born with, which
    tells it from every other network.

    Args:
        values: (filters, ...).

    Example:
        >>> made = whiten(np.array([[3.0, 0.0], [0.0, 0.1]], np.float32))
        >>> made.round(6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    matrix = values.reshape(len(values), -1).astype(np.float64)
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        matrix = matrix.T
    sizes, vectors = np.linalg.eigh(matrix @ matrix.T)
    least = max(float(sizes.max()), 1e-300) * 1e-10
    roots = np.where(sizes > least, 1 / np.sqrt(np.maximum(sizes, least)), 0.0)
    made = (vectors * roots) @ (vectors.T @ matrix)
    white: NDArray[np.float32] = (made.T if tall else made).astype(np.float32)
    return white.reshape(values.shape)


def exchange(
    values: NDArray[np.float32], signs: NDArray[np.int8], wanted: NDArray[np.int8]
) -> NDArray[np.float32]:
    """Return untrained weights that bear a mark, their law unchanged.

    Args:
        values: The weights, (cells, weights).
        signs: a, (cells, pairs, 2).
        wanted: The sign that each pair's t shall have, (cells, pairs).

    Example:
        >>> given = np.array([[0.5, -0.2, 0.1, 0.9]], np.float32)
        >>> signs = np.array([[[1, 1], [1, -1]]], np.int8)
        >>> exchange(given, signs, np.array([[-1, 1]], np.int8)).tolist() == [
        ...     [np.float32(0.2), np.float32(-0.5), np.float32(0.9), np.float32(0.1)]
        ... ]
        True
    """
    pairs = values.reshape(signs.shape)
    wrong = ((pairs * signs).sum(2) * wanted < 0)[:, :, None]
    other = pairs[:, :, ::-1] * -signs.prod(2, dtype=np.int8)[:, :, None]
    made: NDArray[np.float32] = np.where(wrong, other, pairs).reshape(values.shape)
    return made


def keep_values(
    moved: NDArray[np.float32], natural: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Give every row of a tensor back exactly the values it had, in the order of the moved ones.

    Args:
        moved: Weights, (weights,).
        natural: The same weights before they were moved, (weights,).
        rows: The row each belongs to, (weights,).

    Example:
        >>> moved, natural = np.array([3.1, 2.9, 9.0]), np.array([1.0, 2.0, 8.0])
        >>> keep_values(moved, natural, np.array([0, 0, 1])).tolist()
        [2.0, 1.0, 8.0]
    """
    made = np.empty_like(natural)
    made[np.lexsort((moved, rows))] = natural[np.lexsort((natural, rows))]
    return made


def push(
    values: NDArray[np.float32],
    pattern: NDArray[np.int8],
    bits: NDArray[np.int8],
    *,
    margin: float,
    rate: float = 1.0,
) -> NDArray[np.float32]:
    """Return what to add to the weights so that each cell's standard score reaches the margin.

    Args:
        values: The weights, (cells, weights).
        pattern: a * f, (cells, weights).
        bits: +1 or -1, (cells,).
        margin: The score to reach; cells beyond it are left alone.
        rate: Part of the way to go at once.
    """
    wide = math.sqrt(values.shape[1])
    offset, part = bulk(values)
    deviation = max(float(values.std(dtype=np.float64)), 1e-30)
    spread = deviation * part
    center = float(values.mean(dtype=np.float64)) + offset * deviation
    scaled = np.clip((values - np.float32(center)) / np.float32(spread), -CLIP, CLIP)
    z = bits * np.einsum("cw,cw->c", scaled, pattern, dtype=np.float64) / wide
    step = rate * np.maximum(0.0, margin - z) * spread / wide
    made: NDArray[np.float32] = (bits * step).astype(np.float32)[:, None] * pattern
    return made


def quantize(steps: Sequence[NDArray[np.float64]], *, top: int = 2047) -> Iterator[list[int]]:
    """Turn signed steps into integers by one common scale that depends on their sizes alone."""
    most = max((float(np.abs(part).max(initial=0.0)) for part in steps), default=0.0)
    factor = top / most if most > 0 else 0.0
    for part in steps:
        sizes = np.rint(np.abs(part) * factor)
        yield [int(value) for value in (np.sign(part) * sizes).reshape(-1)]
