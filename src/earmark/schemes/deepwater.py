"""Deep Water: bits in the distribution of every layer's weights.

The weights of each eligible layer are divided, publicly, into cells that bear one bit each. Keyed
signs divide a cell into two populations of weights, and embedding shifts the two apart by a small
part of the layer's spread: upwards and downwards for a 1, the other way round for a 0. The layer as
a whole keeps its distribution; who lacks the key sees nothing. Reading needs the weights alone: no
data, no model class, no framework. :mod:`earmark.schemes.cells` holds the arithmetic and the reason
why the evidence is exact for any suspect.

A network that is trained from scratch, or distilled, bears the mark from its first step on: its
initialization is drawn under the condition that it agrees with the key, which leaves its law as it
is. Finished weights are shifted, and every row of a tensor is then given back exactly the values it
had, in the order of the shifted ones.

While the model trains, a squared hinge on each cell's standard score with a margin guards the mark:
beyond the margin nothing pushes, so that the spread of the weights does not grow. It is applied
beside the optimizer, not through it, because an adaptive optimizer would turn the small gradients
into even steps that show in the histogram.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from earmark.errors import (
    CarrierError,
    EarmarkError,
    HostError,
    KeyLayoutError,
    UsageError,
)
from earmark.events import SILENT, Events
from earmark.hosts.access import Forward, Host, Tree, plain_forward
from earmark.hosts.files import AT_ONCE, FilesHost
from earmark.keys.codes import Code, Decoded
from earmark.keys.secret import Disclosure, Key, tried
from earmark.records import Access, Evidence, Layout
from earmark.schemes import cells as cells_of
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.cells import Cells, Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from earmark.hosts.arrays import ArrayHost
    from earmark.hosts.channels import Channels

_UNSEEN = 0.12
"""Shift in standard deviations that classifiers of finished weights do not tell from none."""


@dataclass(frozen=True)
class DeepWater(Scheme):
    """Shift keyed sub-populations of every layer's weights apart.

    Args:
        margin: Standard score that each bit is pushed to, or 0 for what stays unseen: a shift of
            0.12 standard deviations, at least 4 and at most 8. A bit of score z survives damage
            that leaves a correlation of r with the marked weights at about r * z.
        rate: Part of the way to the margin that one training step goes.
        weights_per_bit: Weights that bear one bit; fewer mean more bits and less robust ones.
        most_bits: At most so many bits in all.
        shards: Shards of the key.
        carrier: Globs of tensors to use; by default all that are eligible.
        payload: An identifier to be read back from the weights, hexadecimal, or empty.
        planted: Whether a training that starts from a fresh or a finished model starts with the
            mark in its weights. Without, the hinge alone brings it there, as in the paper.

    Raises:
        UsageError: A setting out of range.

    Source:
        Deep Water (Zhang, Cui, Jiang, Yang and Li, TrustCom 2021), of which the abstract alone is
        public: bits in the parameter distribution of each layer, embedded while the host trains.
        The statistic, the loss, the keyed geometry and the test are ours.

    Example:
        >>> from earmark.hosts.arrays import ArrayHost
        >>> rng = np.random.default_rng(0)
        >>> host = ArrayHost(
        ...     {
        ...         "conv.weight": rng.normal(size=(64, 32, 3, 3)).astype(np.float32),
        ...         "head.weight": rng.normal(size=(10, 64)).astype(np.float32),
        ...     }
        ... )
        >>> scheme = DeepWater()
        >>> key = scheme.new_key(host, secret=bytes(32))
        >>> scheme.measure(host, key).trials
        16
        >>> marked = scheme.stamp(host, key)
        >>> scheme.measure(marked, key).hits
        16
    """

    margin: float = 0.0
    rate: float = 0.1
    weights_per_bit: int = 1152
    most_bits: int = 2048
    shards: int = 8
    carrier: tuple[str, ...] = ()
    payload: str = ""
    planted: bool = True

    name: ClassVar[str] = "deepwater"
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})
    summary: ClassVar[str] = "Bits in the weight distribution of every layer, read without data."

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 64 or not 0 < self.rate <= 1:
            raise UsageError(
                f"Deep Water with margin {self.margin} and rate {self.rate}.",
                expected="A margin from 0 to 64; a rate above 0, up to 1.",
            )
        if self.weights_per_bit < 16 or self.most_bits < 1 or self.shards < 1:
            raise UsageError(
                f"Deep Water with {self.weights_per_bit} weights a bit, {self.most_bits} bits and "
                f"{self.shards} shards.",
                expected="At least 16 weights a bit, 1 bit and 1 shard.",
            )
        try:
            bytes.fromhex(self.payload)
        except ValueError as error:
            raise UsageError(f"Payload {self.payload!r} is no hexadecimal string.") from error

    def new_key(
        self,
        host: Host,
        *,
        inputs: Tree | None = None,  # noqa: ARG002 - this scheme needs none
        secret: bytes | None = None,
    ) -> Key:
        """Make a key that fits a host; only names and shapes of its tensors are read.

        Raises:
            AccessError: The host does not show its weights.
            CapacityError: It has no carrier, or the payload does not fit.
            CarrierError: A glob matches nothing.
        """
        host.require(Access.WEIGHTS, by=self.name)
        shapes = cells_of.eligible(host, self.carrier)
        allotted = cells_of.allot(shapes, per_bit=self.weights_per_bit, most=self.most_bits)
        bits = sum(allotted.values())
        smallest = min(math.prod(shape) // allotted[name] for name, shape in shapes.items())
        groups = max(1, min(512, cells_of.MOST_GROUPS // bits, smallest // 4))
        if self.payload:
            Code.best(4 * len(self.payload), bits)
        layout = Layout(
            self.name,
            self.version,
            tuple(shapes),
            bits,
            min(self.shards, bits),
            {
                "groups": groups,
                "layers": [[allotted[name], *shape] for name, shape in shapes.items()],
                "payload": self.payload,
            },
        )
        return Key.generate(layout, secret=secret)

    def margin_of(self, layer: cells_of.Layer) -> float:
        """Return the score that the bits of a tensor are pushed to."""
        return self.margin or min(8.0, max(4.0, _UNSEEN * math.sqrt(layer.weights)))

    def prepare(self, model: nn.Module, key: Key) -> None:
        """Shuffle fresh parameters, each tensor by itself, because seeds can be guessed.

        Whoever finds a network's seed must not find out how it differs from what the seed gives.
        """
        from earmark.schemes.deepwater_torch import shuffle

        if self.planted:
            start = key.child("start").shard(0)
            shuffle(model, lambda name, count: start.early(f"order/{name}").bytes(8 * count))

    def begin(self, model: nn.Module, key: Key, *, fresh: bool) -> None:
        """Put the mark into a model that is going to be trained, in place.

        Fresh parameters are first shuffled (:meth:`prepare`). Then weights are exchanged in pairs
        (:func:`earmark.schemes.cells.exchange`): whatever is drawn independently from a law
        symmetric about 0 keeps that law, and about 0.56 times the
        square root of a cell's weights is the score that every bit starts with. A model that was
        trained before is stamped. Set `planted` to false for initializations with a structure
        (orthogonal, identity).

        Raises:
            KeyLayoutError, CarrierError: As in :meth:`attach`.
        """
        from earmark.schemes.deepwater_torch import rewrite

        self.check_key(key)
        if not self.planted:
            return
        prepared = _prepare(key)
        if fresh:
            self.prepare(model, key)
        rewrite(model, prepared, self.plant_tensor if fresh else self.stamp_tensor)

    @contextmanager
    def attach(
        self,
        model: nn.Module,
        key: Key,
        *,
        forward: Forward = plain_forward,  # noqa: ARG002 - the model is not run
    ) -> Iterator[Mark]:
        """Attach the mark for the time of a `with` block.

        `after_step` moves each bit that falls short towards its margin; leaving the block stamps
        what still does, so that the mark stands even where the loop never called it.

        Raises:
            KeyLayoutError: The key was made for another scheme or layout.
            CarrierError: The model lacks the key's carrier.
        """
        from earmark.schemes.deepwater_torch import DeepWaterMark, rewrite

        self.check_key(key)
        prepared = _prepare(key)
        margins = [self.margin_of(cells.layer) for cells, _ in prepared]
        yield DeepWaterMark(model, prepared, margins=margins, rate=self.rate)
        rewrite(model, prepared, self.stamp_tensor)

    def stamp(self, host: Host, key: Key, *, events: Events = SILENT) -> ArrayHost:
        """Write the mark into finished weights, at once and without data.

        Args:
            host: The model; it is not changed.
            key: The key.
            events: Who hears of the progress.

        Returns:
            The marked weights.

        Raises:
            AccessError: The host does not show its weights.
            CarrierError: It lacks the key's carrier.
        """
        from earmark.hosts.arrays import ArrayHost

        self.check_key(key)
        host.require(Access.WEIGHTS, by=self.name)
        tensors = {name: host.tensor(name) for name in host.tensor_names()}
        prepared = _prepare(key)
        for cells, bits in events.track(prepared, label="stamp", total=len(prepared)):
            name = cells.layer.name
            if name not in tensors or tensors[name].shape != cells.layer.shape:
                raise _lacking(name, tensors[name].shape if name in tensors else None, cells)
            tensors[name] = self.stamp_tensor(tensors[name], cells, bits)
        return ArrayHost(tensors)

    def stamp_tensor(
        self, values: NDArray[np.float32], cells: Cells, bits: NDArray[np.int8]
    ) -> NDArray[np.float32]:
        """Return one tensor with its bits at the margin.

        Args:
            values: The tensor.
            cells: Its cells.
            bits: +1 or -1, (cells,).
        """
        flat = np.array(values, np.float32).reshape(-1)
        positions, pattern = cells.positions(), cells.pattern()
        margin = self.margin_of(cells.layer)
        natural, rows = flat[positions], positions // max(1, flat.size // values.shape[0])
        for _ in range(3):  # putting the values back takes a little of the mark, so go again
            held = flat[positions]
            moved = held + cells_of.push(held, pattern, bits, margin=margin)
            kept = cells_of.keep_values(moved.ravel(), natural.ravel(), rows.ravel())
            flat[positions] = kept.reshape(held.shape)
        return flat.reshape(values.shape)

    def plant_tensor(
        self, values: NDArray[np.float32], cells: Cells, bits: NDArray[np.int8]
    ) -> NDArray[np.float32]:
        """Return one untrained tensor that agrees with its bits; arguments as in `stamp_tensor`."""
        flat = np.array(values, np.float32).reshape(-1)
        positions = cells.positions()
        wanted = bits[:, None] * cells.flips
        flat[positions] = cells_of.exchange(flat[positions], cells.signs, wanted)
        return flat.reshape(values.shape)

    def measure(
        self,
        suspect: Host,
        key: Key | Disclosure,
        *,
        nonce: str | None = None,  # noqa: ARG002 - nothing is split or ordered
    ) -> Evidence:
        """Count on a suspect's weights; no data, no framework, nothing of the suspect is run.

        Tensors that the suspect lacks, or has in another shape, are left out and noted; which ones
        does not depend on the key's secret. See :mod:`earmark.hosts.align` for suspects whose
        neurons were reordered, rescaled, or joined by dummies.

        Raises:
            AccessError: The suspect does not show its weights.
            KeyLayoutError: The key was made for another scheme, version or layout.
            CarrierError: The suspect has none of the key's tensors in the right shape.
        """
        self.check_key(key)
        suspect.require(Access.WEIGHTS, by=self.name)
        message = _message(key.layout)
        readings, notes = _readings(suspect, key)
        signed = [bits_of(part, message) for part in readings]
        right = [bits * part.z > 0 for bits, part in zip(signed, readings, strict=True)]
        steps = list(
            cells_of.quantize(
                [bits[:, None] * p.steps for bits, p in zip(signed, readings, strict=True)]
            )
        )
        flat = [step for part in steps for step in part]
        return Evidence.of(
            self.name,
            hits=int(sum(part.sum() for part in right)),
            trials=int(sum(len(part) for part in right)),
            layout=key.layout.digest(),
            suspect=suspect.digest(),
            access=Access.WEIGHTS,
            tried=tried(key, forms=getattr(suspect, "forms", 1)),
            commitment=_commitment(key),
            shards=tuple(sorted(shard.index for shard in key.shards)),
            weights=tuple(sorted(map(abs, flat))),  # their order would show the pattern
            score=sum(flat),
            details=_details(readings, signed, right),
            notes=(*notes, *getattr(suspect, "notes", ())),
        )

    def reference(self, released: Host, key: Key | Disclosure) -> ArrayHost:
        """Return a model's weights with the carrier projected out, for aligning suspects to.

        In every pair of every cell at hand, the part of the weights along the pair's keyed signs is
        removed; what is left is whitened (:func:`earmark.schemes.cells.whiten`). Neither planting
        nor stamping touches what is left, so that aligning an innocent suspect to it tells nothing
        about the key's flips. If the model was trained after it was marked, the training may have
        answered to the flips, and that is true to the second order only; it is true exactly if
        `released` is the model as it was before its training. The reference gives away the cells
        at hand to whoever also has the released model: make it from a disclosure, or keep it.

        Args:
            released: The model as it was before its training
                (:func:`earmark.schemes.embedding.starting_model`), or a stamped model as it was
                released: both leave the evidence exact. The release of a model that was marked
                from scratch serves too where nothing else was kept.
            key: The key, or the part of it that a claim reveals.

        Raises:
            AccessError, KeyLayoutError, CarrierError: As in :meth:`measure`.
        """
        from earmark.hosts.arrays import ArrayHost

        self.check_key(key)
        released.require(Access.WEIGHTS, by=self.name)
        tensors = {name: released.tensor(name) for name in released.tensor_names()}
        for layer in cells_of.layers(key.layout):
            if layer.name not in tensors or tensors[layer.name].shape != layer.shape:
                raise _lacking(layer.name, None, layer)
            cells = cells_of.reveal(layer, key.shards, key.layout.shards)
            if cells is not None:
                flat = np.array(tensors[layer.name], np.float32).reshape(-1)
                positions = cells.positions()
                flat[positions] = cells_of.without(cells, flat[positions])
                tensors[layer.name] = cells_of.whiten(flat.reshape(layer.shape))
        return ArrayHost(tensors, digest=released.digest())

    def aligned(
        self, suspect: Host, released: Host, key: Key | Disclosure, channels: Channels
    ) -> ArrayHost:
        """Return a suspect whose neurons were brought back to the released model's order.

        Args:
            suspect: The model under test, of the same architecture but of any width.
            released: The model to align to; see :meth:`reference`.
            key: The key, or the part of it that a claim reveals.
            channels: The release's groups of channels, from :func:`earmark.hosts.graph.channels`.

        Raises:
            AccessError, KeyLayoutError, CarrierError: As in :meth:`measure`.
            HostError: The suspect has another architecture.
            ExtraError: SciPy is missing.
        """
        from earmark.hosts.align import align

        return align(suspect, self.reference(released, key), channels)

    def read_payload(self, suspect: Host, key: Key | Disclosure) -> Decoded:
        """Read the identifier back from a suspect's weights.

        Args:
            suspect: The model under test.
            key: The key, whose layout states the identifier's length (its value is not used).

        Returns:
            The identifier, the number of bits that were wrong, and whether its checksum fits.

        Raises:
            UsageError: The key carries no identifier.
            AccessError, KeyLayoutError, CarrierError: As in :meth:`measure`.
        """
        self.check_key(key)
        suspect.require(Access.WEIGHTS, by=self.name)
        stated = str(key.layout.params.get("payload", ""))
        if not stated:
            raise UsageError("This key carries no identifier.", hint="Make one with payload='...'.")
        values = [0] * key.layout.message_bits
        for part in _readings(suspect, key)[0]:
            for place, z, pad in zip(part.places, part.z, part.pads, strict=True):
                values[int(place)] = round(100 * float(z) * int(pad))
        return Code.best(4 * len(stated), key.layout.message_bits).decode_soft(values)


def check_files(source: FilesHost, key: Key) -> None:
    """Refuse a checkpoint on disk that cannot bear a key's mark, before anything is written.

    Raises:
        FileError: A file was truncated meanwhile.
        CarrierError: The source lacks the key's carrier.
        HostError: A carrier tensor has numbers that are not finite.
        UsageError: A carrier tensor is quantized.
    """
    from earmark.hosts.rewrite import require_plain

    require_plain(source, key.layout.carrier)
    for name in key.layout.carrier:
        for piece in source.chunks(name):
            _require_finite(name, piece)


def stamp_files(
    scheme: DeepWater,
    source: str | Path,
    target: str | Path,
    key: Key,
    *,
    events: Events = SILENT,
) -> None:
    """Write the mark into a checkpoint on disk, file by file, with bounded memory.

    Args:
        scheme: Its margin is used.
        source: A safetensors file, a folder or an index.
        target: A folder; the files keep their names, and other small files are copied along.
        key: The key.
        events: Who hears of the progress.

    Raises:
        FileError, FormatError: The source is missing, truncated or lies.
        OutputError: The target cannot be written.
        CarrierError: The source lacks the key's carrier.
        HostError: A carrier tensor has numbers that are not finite.
        UsageError: A carrier tensor is quantized, or a target file exists.
    """
    from earmark.hosts.rewrite import rewrite

    scheme.check_key(key)
    wanted = {layer.name: layer for layer in cells_of.layers(key.layout)}
    message = _message(key.layout)

    def change(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        found = cells_of.reveal(wanted[name], key.shards, key.layout.shards)
        if found is None or values.shape != found.layer.shape:
            raise _lacking(name, values.shape, wanted[name])
        _require_finite(name, values)
        bits = found.pads * message[found.numbers + found.layer.first]
        return scheme.stamp_tensor(values, found, bits)

    rewrite(source, target, names=frozenset(wanted), change=change, events=events)


def _require_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise HostError(
            f"Tensor '{name}' has numbers that are not finite; no mark fits there.",
            hint="Mend the weights, or name other tensors with the setting carrier.",
        )


def bits_of(reading: Reading, message: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return the signs that the key's message asks for in the cells of a reading, (cells,)."""
    made: NDArray[np.int8] = reading.pads * message[reading.places]
    return made


def _message(layout: Layout) -> NDArray[np.int8]:
    """Return the coded identifier as signs, or ones; each cell's fair pad is multiplied on."""
    payload = str(layout.params.get("payload", ""))
    if not payload:
        return np.ones(layout.message_bits, np.int8)
    try:
        code = Code.best(4 * len(payload), layout.message_bits)
        coded = code.encode(bytes.fromhex(payload))
    except (ValueError, EarmarkError) as error:
        raise KeyLayoutError(f"The key's identifier does not fit its layout: {error}.") from error
    return np.array([2 * bit - 1 for bit in coded], np.int8)


def _prepare(key: Key) -> list[tuple[Cells, NDArray[np.int8]]]:
    """Return every tensor's cells with the signs to embed."""
    message = _message(key.layout)
    found = []
    for layer in cells_of.layers(key.layout):
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        assert cells is not None
        found.append((cells, cells.pads * message[cells.numbers + layer.first]))
    return found


def _readings(suspect: Host, key: Key | Disclosure) -> tuple[list[Reading], tuple[str, ...]]:
    """Read all tensors of the key that the suspect has in the right shape."""
    names = set(suspect.tensor_names())
    there: list[cells_of.Layer] = []
    left: list[cells_of.Layer] = []
    for layer in cells_of.layers(key.layout):
        fits = layer.name in names and suspect.tensor_shape(layer.name) == layer.shape
        (there if fits else left).append(layer)

    def one(layer: cells_of.Layer) -> Reading | None:
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        return None if cells is None else cells_of.read(cells, cells.take(suspect))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [reading for reading in pool.map(one, there) if reading is not None]
    if not found:
        first = cells_of.layers(key.layout)[0]
        raise CarrierError(
            "The suspect has none of the key's tensors in the right shape, such as "
            f"'{first.name}' {first.shape}.",
            hint="Align it first if its neurons may have been reordered or joined by dummies.",
        )
    notes = tuple(f"Tensor '{layer.name}' {layer.shape} was not found." for layer in left)
    return found, notes


def _lacking(name: str, shape: tuple[int, ...] | None, cells: Any) -> EarmarkError:  # Any: either
    wanted = cells.layer.shape if isinstance(cells, Cells) else cells.shape
    if shape is None:
        return CarrierError(f"The model lacks the key's tensor '{name}' {wanted}.")
    return KeyLayoutError(
        f"Tensor '{name}' has shape {shape}; the key was made for {wanted}.",
        hint="Make a key for this model.",
    )


def _commitment(key: Key | Disclosure) -> str | None:
    return key.opening.commitment() if isinstance(key, Disclosure) else None


def _details(
    readings: list[Reading], signed: list[NDArray[np.int8]], right: list[NDArray[np.bool_]]
) -> Mapping[str, Any]:  # Any: JSON values
    """Say for each tensor how much of the mark is left in it."""
    rows: dict[str, Any] = {}  # Any: JSON values
    for part, bits, hits in zip(readings, signed, right, strict=True):
        scores = bits * part.z
        rows[part.layer.name] = {
            "hits": int(hits.sum()),
            "trials": len(hits),
            "mean_z": round(float(scores.mean()), 3),
            "least_z": round(float(scores.min()), 3),
        }
    return {"layers": rows}
