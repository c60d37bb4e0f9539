"""Groups of interchangeable channels as plain data: tensor names, axes and sizes, no framework.

:mod:`earmark.hosts.graph` finds them in a module; :mod:`earmark.hosts.align` uses them on weights
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear or convolutional layer.

    Args:
        weight: Name of its weight; outputs along axis 0, inputs along axis 1.
        rows: Group of its outputs.
        columns: Runs of its inputs as (group, entries a channel), or null if they are the model's
            own inputs.
        norm: Name of the batch norm that reads this layer and nothing else, or empty.
        eps: That norm's epsilon.
    """

    weight: str
    rows: int
    columns: tuple[tuple[int, int], ...] | None
    norm: str = ""
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention layer with its three projections in one matrix.

    Args:
        inside: Name of the matrix of queries, keys and values, (3 * width, width).
        outside: Name of the output matrix, (width, width).
        heads: Number of heads.
    """

    inside: str
    outside: str
    heads: int


@dataclass(frozen=True, slots=True)
class Channels:
    """The groups of a network.

    Args:
        sizes: Channels of each group in the network that was read.
        frozen: Groups whose order is fixed: outputs, and whatever could not be followed.
        signed: Groups behind an odd activation, whose signs may be flipped.
        layers: The layers in the order in which they run.
        vectors: Other tensors whose axis 0 holds channels: biases, norms, depthwise kernels.
        attention: Attention layers.
        taps: Groups of the channels that leave a module, by its name, and that enter it, by its
            name with ``:in`` behind it, as in :mod:`earmark.hosts.taps`.
    """

    sizes: tuple[int, ...]
    frozen: frozenset[int]
    signed: frozenset[int]
    layers: tuple[Layer, ...]
    vectors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attention: tuple[Attention, ...] = ()
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def writers(self, group: int) -> list[Layer]:
        """Return the layers that write a group."""
        return [layer for layer in self.layers if layer.rows == group]

    def readers(self, group: int) -> list[Layer]:
        """Return the layers that read a group."""
        return [
            layer
            for layer in self.layers
            if layer.columns is not None and any(run == group for run, _ in layer.columns)
        ]
