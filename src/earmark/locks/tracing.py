"""Fingerprints: every customer's copy carries a codeword of its own; a leaked copy names him.

The codeword is a symmetric Tardos code (:mod:`earmark.keys.tracing`), written one bit a cell into
the weights by Deep Water's cells (:mod:`earmark.schemes.cells`), at once and without data. It does
not depend on the serial number: a copy whose lock was stripped still carries it.

The bound on accusing an innocent is exact in this sense: customers' codewords are drawn from the
key, independently of each other, so an innocent's codeword is independent of the suspect whatever
the others did to their copies; his score is then a sum of independent two-valued variables with
known chances. Every customer is charged, and so is every form of the suspect that was tried. The
owner could still lie about whom he gave which copy: commit the key before the first copy ships, and
let each customer sign for his.

What it cannot do: a copy that was distilled or trained anew bears nothing, and the answer is then
"cannot tell". Neurons that were reordered must be put back first (:mod:`earmark.hosts.align`), by
the model that the copies were made from: a model aligned to a customer's copy comes to resemble his
codeword, and the bound no longer holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from earmark.errors import CapacityError, CarrierError, KeyLayoutError, UsageError
from earmark.keys.secret import Key
from earmark.keys.tracing import (
    Accusation,
    accuse,
    tardos_biases,
    tardos_codeword,
    tardos_length,
)
from earmark.records import Access, Layout, Outcome
from earmark.schemes import cells as cells_of
from earmark.schemes.deepwater import DeepWater

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from earmark.hosts.access import Host
    from earmark.hosts.arrays import ArrayHost

LEAST_WEIGHTS = 32
STEPS = 8  # confidence of a bit, per standard score
MOST_CONFIDENCE = 64
MOST = 0.9  # share of the weights that bears the code
NAMED_BITS = 20.0  # an innocent is named with probability at most 2^-20, below one in a million


@dataclass(frozen=True)
class Tracer:
    """Settings of a fingerprint.

    Args:
        customers: Customers to tell apart.
        colluders: Largest coalition to be caught.
        length: Bits of the code; by default what customers and colluders need.
        margin: Standard score that each bit is pushed to.
        carrier: Globs of tensors to use; by default, of those that Deep Water would, the largest
            that hold nine tenths of the weights. A codeword that is written without training harms
            small tensors most, where much hangs on every weight.

    Raises:
        UsageError: A setting out of range.

    Source:
        Codes: Tardos 2003; Skoric, Katzenbeisser and Celik 2008. Carrier: see Deep Water.

    Example:
        >>> from earmark.hosts.arrays import ArrayHost
        >>> rng = np.random.default_rng(0)
        >>> host = ArrayHost({"fc.weight": rng.normal(size=(256, 256)).astype(np.float32)})
        >>> tracer = Tracer(customers=20, colluders=2, carrier=("fc.weight",))
        >>> key = tracer.new_key(host, secret=bytes(32))
        >>> leak = tracer.mark(host, key, "acme")
        >>> [item.name for item in trace(leak, key, ["acme", "bolt", "cato"]).named]
        ['acme']
        >>> trace(host, key, ["acme", "bolt", "cato"]).outcome.value
        'inconclusive'
    """

    customers: int = 100
    colluders: int = 3
    length: int = 0
    margin: float = 1.25
    carrier: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.customers < 1 or self.colluders < 1 or self.length < 0:
            raise UsageError(
                f"A fingerprint for {self.customers} customers and {self.colluders} colluders.",
                expected="At least one of each.",
            )
        if not 0 < self.margin <= 64:
            raise UsageError(f"A margin of {self.margin}.", expected="Above 0, up to 64.")

    def new_key(self, host: Host, *, secret: bytes | None = None) -> Key:
        """Make a key that fits a host; only names and shapes of its tensors are read.

        Raises:
            AccessError: The host does not show its weights.
            CapacityError: It has too few weights for a code of that length.
            CarrierError: A glob matches nothing.
        """
        host.require(Access.WEIGHTS, by="tracing")
        shapes = cells_of.eligible(host, self.carrier)
        length = self.length or tardos_length(self.customers, self.colluders, bits=NAMED_BITS)
        if not self.carrier:
            shapes = _largest(shapes, length * LEAST_WEIGHTS)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total = sum(sizes.values())
        if total < length * LEAST_WEIGHTS:
            raise CapacityError(
                f"A code of {length} bits needs {length * LEAST_WEIGHTS:,} weights; "
                f"this model's carrier has {total:,}.",
                hint="Fewer customers or colluders need a shorter code.",
            )
        allotted = {name: max(1, length * size // total) for name, size in sizes.items()}
        largest = max(sizes, key=lambda name: sizes[name])
        allotted[largest] += length - sum(allotted.values())
        layers = [[allotted[name], *shape] for name, shape in shapes.items()]
        params: dict[str, Any] = {"groups": 1, "layers": layers, "colluders": self.colluders}
        return Key.generate(Layout("tracing", 1, tuple(shapes), length, 1, params), secret=secret)

    def mark(self, host: Host, key: Key, customer: str) -> ArrayHost:
        """Write a customer's codeword into a copy's weights, at once and without data.

        Args:
            host: The copy; it is not changed.
            key: The owner's tracing key, the same for all customers.
            customer: Identifier of the customer.

        Raises:
            CarrierError: The host lacks the key's carrier.
            KeyLayoutError: The key is no tracing key.
        """
        from earmark.hosts.arrays import ArrayHost

        writer = DeepWater(margin=self.margin)
        tensors = {name: host.tensor(name) for name in host.tensor_names()}
        for cells, bits in prepare(key, customer):
            name = cells.layer.name
            if name not in tensors or tensors[name].shape != cells.layer.shape:
                raise CarrierError(
                    f"The copy lacks the key's tensor '{name}' {cells.layer.shape}.",
                    hint="A tracing key serves copies of one network.",
                )
            tensors[name] = writer.stamp_tensor(tensors[name], cells, bits)
        return ArrayHost(tensors)

    def mark_module(self, model: nn.Module, key: Key, customer: str) -> nn.Module:
        """Return a copy of a torch model with a customer's codeword; raises as :meth:`mark`."""
        import copy

        import torch

        from earmark.hosts.module import ModuleHost

        made = copy.deepcopy(model)
        marked = self.mark(ModuleHost(model), key, customer)
        state = made.state_dict()
        with torch.no_grad():
            for layer in cells_of.layers(key.layout):
                state[layer.name].copy_(torch.from_numpy(marked.tensor(layer.name)))
        return made


def fits(host: Host, key: Key) -> bool:
    """Tell whether a host has all tensors, in their shapes, that a tracing key writes to."""
    names = set(host.tensor_names())
    return all(
        layer.name in names and host.tensor_shape(layer.name) == layer.shape
        for layer in cells_of.layers(key.layout)
    )


@dataclass(frozen=True, slots=True)
class Word:
    """What the cells of a suspect say, independently of any customer.

    Args:
        bits: 0, 1, or null where nothing could be read.
        confidence: How sure each reading is.
        notes: Tensors that were not found.
    """

    bits: tuple[int | None, ...]
    confidence: tuple[int, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a suspect's fingerprint says about all customers.

    Args:
        ranking: Every customer, most suspicious first, net of all that were looked at.
        threshold: Net bits that naming somebody takes.
        read: Positions of the code that could be read.
        length: Positions of the code.
        notes: What the reader should know.
    """

    ranking: tuple[Accusation, ...]
    threshold: float
    read: int
    length: int
    notes: tuple[str, ...]

    @property
    def named(self) -> tuple[Accusation, ...]:
        """Those who are named: some innocent is, with probability at most 2^-threshold."""
        return tuple(item for item in self.ranking if item.bits >= self.threshold)

    @property
    def outcome(self) -> Outcome:
        """Shown if somebody is named; else inconclusive: this trace never clears anybody."""
        return Outcome.SHOWN if self.named else Outcome.INCONCLUSIVE


def _largest(shapes: dict[str, tuple[int, ...]], least: int) -> dict[str, tuple[int, ...]]:
    """Return the largest tensors that hold most of all weights, and `least` if all of them do."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    wanted, chosen = max(MOST * sum(sizes.values()), least), set[str]()
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sum(sizes[item] for item in chosen) < wanted:
            chosen.add(name)
    return {name: shape for name, shape in shapes.items() if name in chosen}


def codeword(key: Key, customer: str) -> tuple[int, ...]:
    """Return a customer's codeword.

    Raises:
        KeyLayoutError: The key is no tracing key.
        UsageError: The customer has no name.
    """
    if not customer.strip():
        raise UsageError("A fingerprint names a customer.")
    stream = key.shard(0).stream(f"tardos/codeword/{customer}")
    return tardos_codeword(stream, biases(key))


def biases(key: Key) -> tuple[int, ...]:
    """Return the secret biases of a tracing key's positions.

    Raises:
        KeyLayoutError: The key is no tracing key.
    """
    layout = key.layout
    colluders = layout.params.get("colluders")
    if layout.scheme != "tracing" or layout.version != 1 or not isinstance(colluders, int):
        raise KeyLayoutError(f"A key for '{layout.scheme}' traces nobody.")
    stream = key.shard(0).stream("tardos/biases")
    return tardos_biases(stream, layout.message_bits, colluders)


def prepare(key: Key, customer: str) -> list[tuple[cells_of.Cells, NDArray[np.int8]]]:
    """Return every tensor's cells with the signs to write for a customer."""
    word = np.array(codeword(key, customer), np.int8) * 2 - 1
    found = []
    for layer in cells_of.layers(key.layout):
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        assert cells is not None
        found.append((cells, cells.pads * word[cells.numbers + layer.first]))
    return found


def read_word(suspect: Host, key: Key) -> Word:
    """Read the code's positions off a suspect's weights; no customer is involved.

    Raises:
        AccessError: The suspect does not show its weights.
        CarrierError: It has none of the key's tensors in the right shape.
    """
    suspect.require(Access.WEIGHTS, by="tracing")
    length, names = key.layout.message_bits, set(suspect.tensor_names())
    bits: list[int | None] = [None] * length
    confidence, notes = [0] * length, []
    for layer in cells_of.layers(key.layout):
        if layer.name not in names or suspect.tensor_shape(layer.name) != layer.shape:
            notes.append(f"Tensor '{layer.name}' {layer.shape} was not found.")
            continue
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        assert cells is not None
        reading = cells_of.read(cells, cells.take(suspect))
        for place, z, pad in zip(reading.places, reading.z, reading.pads, strict=True):
            sure = min(MOST_CONFIDENCE, round(STEPS * abs(float(z))))
            if sure:
                bits[int(place)] = int(float(z) * int(pad) > 0)
                confidence[int(place)] = sure
    if len(notes) == len(key.layout.carrier):
        raise CarrierError(
            "The suspect has none of the tensors that bear fingerprints.",
            hint="Align it first if its neurons may have been reordered.",
        )
    return Word(tuple(bits), tuple(confidence), tuple(notes))


def trace(
    suspect: Host,
    key: Key,
    customers: Sequence[str],
    *,
    threshold: float = NAMED_BITS,
    forms: int = 1,
) -> Trace:
    """Name the customers whose copies a suspect was made from, or say that it cannot be told.

    Args:
        suspect: The leaked model.
        key: The owner's tracing key.
        customers: Everybody who holds a copy.
        threshold: Net bits that naming somebody takes.
        forms: Forms of the suspect that were tried, this one included; each is charged.

    Raises:
        AccessError: The suspect does not show its weights.
        CarrierError: It has none of the key's tensors.
        KeyLayoutError: The key is no tracing key.
        UsageError: No customers, or one twice.
    """
    if not customers or len(set(customers)) != len(customers) or forms < 1:
        raise UsageError(f"{len(customers)} customers, {forms} forms: name each customer once.")
    words = {name: codeword(key, name) for name in customers}
    return judge_word(read_word(suspect, key), key, words, threshold=threshold, forms=forms)


def judge_word(
    word: Word,
    key: Key,
    codewords: Mapping[str, Sequence[int]],
    *,
    threshold: float = NAMED_BITS,
    forms: int = 1,
) -> Trace:
    """Score every codeword against a suspect's word; see :func:`trace`."""
    ranking = accuse(
        biases(key),
        codewords,
        word.bits,
        tests=len(codewords) * forms,
        confidence=word.confidence,
    )
    read = sum(bit is not None for bit in word.bits)
    return Trace(ranking, threshold, read, key.layout.message_bits, word.notes)
