"""Bits in random projections of each layer's mean filter: what the literature baselines share.

The mean filter of a layer is its weight averaged over outputs, flattened. Bit i of the layer is the
sign of its product with a keyed Gaussian direction x_i. The bits are fair and drawn apart from the
directions, so hits on any model made without the key are Binomial(trials, 1/2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from earmark.errors import CapacityError, CarrierError, KeyLayoutError
from earmark.keys.secret import Key, tried
from earmark.records import Access, Evidence, Layout
from earmark.schemes import cells as cells_of
from earmark.schemes.base import Mark, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from earmark.hosts.access import Host, Tree
    from earmark.keys.secret import Disclosure


@dataclass(frozen=True, slots=True)
class Slot:
    """The bits of one layer whose shards are at hand.

    Args:
        name: Name of the weight.
        shape: Its shape.
        numbers: Which bits of the layer, (bits,).
        directions: x, (bits, entries of a filter).
        signs: The fair signs that the projections shall have, (bits,).
    """

    name: str
    shape: tuple[int, ...]
    numbers: NDArray[np.int64]
    directions: NDArray[np.float32]
    signs: NDArray[np.int8]


class FilterMeans(Scheme):
    """A scheme whose bits are projections of each layer's mean filter."""

    needs: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})
    carrier: tuple[str, ...]
    shards: int

    def content(self) -> tuple[int, Mapping[str, Any]]:  # Any: JSON values
        """Return the bits of a layer, and what else the key's layout shall say."""
        raise NotImplementedError

    def new_key(
        self,
        host: Host,
        *,
        inputs: Tree | None = None,  # noqa: ARG002 - these schemes need none
        secret: bytes | None = None,
    ) -> Key:
        """Make a key with some bits in each eligible layer of a host.

        Raises:
            AccessError: The host does not show its weights.
            CapacityError: No layer is eligible, or the filters have fewer entries than bits.
            CarrierError: A glob matches nothing.
        """
        host.require(Access.WEIGHTS, by=self.name)
        bits, more = self.content()
        shapes = cells_of.eligible(host, self.carrier)
        cells_of.allot(shapes, per_bit=1, most=1 << 40)
        small = [name for name, shape in shapes.items() if math.prod(shape[1:]) < bits]
        if small:
            raise CapacityError(
                f"{bits} bits need filters of as many entries; '{small[0]}' has "
                f"{math.prod(shapes[small[0]][1:])}.",
                hint="Ask for fewer bits, or name wider layers.",
            )
        layout = Layout(
            self.name,
            self.version,
            tuple(shapes),
            bits * len(shapes),
            min(self.shards, bits * len(shapes)),
            {"bits": bits, "shapes": [list(shape) for shape in shapes.values()], **more},
        )
        return Key.generate(layout, secret=secret)


def slots(key: Key | Disclosure) -> list[Slot]:
    """Compute the bits of every layer that belong to the shards at hand.

    Raises:
        KeyLayoutError: The layout's settings are missing or contradict each other.
    """
    layout = key.layout
    try:
        params: Any = layout.params  # Any: JSON
        bits = int(params["bits"])
        shapes = [tuple(int(size) for size in shape) for shape in params["shapes"]]
        rows = list(zip(layout.carrier, shapes, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise KeyLayoutError(
            f"The key's layout does not fit '{layout.scheme}': {error}."
        ) from error
    if bits < 1 or bits * len(rows) != layout.message_bits:
        raise KeyLayoutError(f"The key's layout has {bits} bits in each of {len(rows)} layers.")
    owners = {shard.index: shard for shard in key.shards}
    found = []
    for place, (name, shape) in enumerate(rows):
        numbers = [i for i in range(bits) if (place * bits + i) % layout.shards in owners]
        directions, signs = [], []
        for i in numbers:
            shard = owners[(place * bits + i) % layout.shards]
            raw = shard.early(f"direction/{name}/{i}")
            directions.append(gaussian(raw.bytes(8 * math.prod(shape[1:]))))
            signs.append(shard.stream(f"bit/{name}/{i}").signs(1)[0])
        if numbers:
            x = np.stack(directions)
            found.append(Slot(name, shape, np.array(numbers), x, np.array(signs, np.int8)))
    return found


def gaussian(raw: bytes) -> NDArray[np.float32]:
    """Turn uniform bytes into standard normal numbers, eight bytes for each (Box and Muller)."""
    pairs = np.frombuffer(raw, "<u4").astype(np.float64).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log((pairs[:, 0] + 1.0) / 2.0**32))
    made: NDArray[np.float32] = (radius * np.cos(2 * np.pi * pairs[:, 1] / 2.0**32)).astype("f4")
    return made


def measure(
    suspect: Host, key: Key | Disclosure, targets: Callable[[Slot], NDArray[np.int8]]
) -> Evidence:
    """Count the projections that have the asked sign.

    Args:
        suspect: The model under test.
        key: The key or what is revealed of it.
        targets: The signs that a slot's projections shall have.

    Raises:
        CarrierError: The suspect has none of the key's tensors in the right shape.
    """
    names = set(suspect.tensor_names())
    hits = trials = 0
    rows: dict[str, Any] = {}  # Any: JSON
    for slot in slots(key):
        if slot.name not in names or suspect.tensor_shape(slot.name) != slot.shape:
            continue
        values = np.nan_to_num(suspect.tensor(slot.name), nan=0.0, posinf=0.0, neginf=0.0)
        found = slot.directions @ values.mean(axis=0, dtype=np.float64).reshape(-1)
        right = int((found * targets(slot) > 0).sum())
        rows[slot.name] = {"hits": right, "trials": len(found)}
        hits, trials = hits + right, trials + len(found)
    if not trials:
        raise CarrierError(
            f"The suspect has none of the key's tensors, such as '{key.layout.carrier[0]}'.",
            hint="Align it first if its neurons may have been reordered.",
        )
    return Evidence.of(
        key.layout.scheme,
        hits=hits,
        trials=trials,
        layout=key.layout.digest(),
        suspect=suspect.digest(),
        access=Access.WEIGHTS,
        tried=tried(key),
        shards=tuple(sorted(shard.index for shard in key.shards)),
        details={"layers": rows},
    )


class FilterMeansMark(Mark):
    """A term over the projections of every layer, through the user's own optimizer.

    Args:
        model: The model to mark.
        parts: The slots with the values that the loss wants, (bits,).
        loss: Given projections and wanted values of one layer, returns a scalar.
        weight: Factor on the sum over layers.

    Raises:
        CarrierError: The model lacks a tensor in the right shape.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[tuple[Slot, NDArray[np.float32]]],
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        weight: float,
    ) -> None:
        import torch

        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._loss, self._weight = loss, weight
        self._layers = []
        for slot, wanted in parts:
            parameter = parameters.get(slot.name)
            if parameter is None or tuple(parameter.shape) != slot.shape:
                raise CarrierError(f"The model lacks the key's tensor '{slot.name}' {slot.shape}.")
            pair = [
                torch.from_numpy(part).to(parameter.device) for part in (slot.directions, wanted)
            ]
            self._layers.append((parameter, *pair))

    def loss(self) -> Tensor:
        """Return the weighted sum over layers."""
        import torch

        terms = [
            self._loss(x @ parameter.float().mean(dim=0).flatten(), wanted)
            for parameter, x, wanted in self._layers
        ]
        return self._weight * torch.stack(terms).sum()
