"""Undo what costs an attacker nothing: reordered, rescaled, folded and dummy neurons.

A suspect is brought back to the order, width and scale of a committed reference. A linear layer
that was split into two is multiplied together. Neurons are matched by a rectangular assignment on
what flows in and out of them, group by group along the network; what is left over is dummies, whose
outgoing weights are added back to the neuron that they were split from. Every tensor is then
scaled, row by row and column by column, to the norms of the reference, which undoes any positive
rescaling, batch-norm folding and the like at once.

**The reference must be free of the carrier.** Aligned to the marked weights themselves, an innocent
network is bent towards the mark and looks guilty. Project the carrier out of the reference first
(`DeepWater.reference`). If the reference is the network as it was *before its training*, or a
finished network that was stamped, the result does not change when the key's flips change, so that
nothing which alignment does to an innocent suspect depends on them, and the evidence stays exact.

**What an owner may choose must be fixed before his message is.** Whoever publishes the reference
after he knows his message could publish an innocent network with its neurons reordered to suit it.
The reference before training follows from the task, the key's secret and the seed, none of which
needs the beacon: fix it before. An aligned reading that rests on a release convinces its owner, and
others only as far as they trust him to have released what he trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from earmark.errors import ExtraError, HostError
from earmark.hosts.access import Host
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.channels import Attention, Channels, Layer
from earmark.records import Access

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TWIN = 0.9
"""Cosine beyond which an unmatched neuron counts as a copy of a matched one."""

_MATCHED = (
    "Neurons were matched to a reference without the carrier. The chance is exact if that is the "
    "network before its training, or a stamped one, and was fixed before the key's beacon."
)

MOST_JOINED = 64
"""A layer that was split into two is at most so many times as large as the two together."""


def align(suspect: Host, reference: Host, channels: Channels, *, sweeps: int = 3) -> ArrayHost:
    """Return the suspect's weights in the reference's order, width and scale.

    Args:
        suspect: The model under test; it may be wider or narrower than the reference.
        reference: The committed model with the carrier projected out.
        channels: The reference's groups of channels.
        sweeps: Rounds of matching; later ones see both sides of every neuron.

    Returns:
        A host with the suspect's digest. It counts as two forms: with and without alignment.

    Raises:
        AccessError: Weights are not granted.
        HostError: The suspect lacks layers, or differs from the reference by more than widths.
        ExtraError: SciPy is missing.

    Source:
        Ainsworth et al. 2022 for matching by weights; Yan et al. 2023 for the attacks. Rectangular
        assignment, balancing to the reference's norms, merging after the assignment and the
        projection of the carrier are ours.
    """
    for host in (suspect, reference):
        host.require(Access.WEIGHTS, by="align")
    work = _Work(_load(suspect, channels), _load(reference, channels), channels)
    work.match(sweeps)
    return ArrayHost(
        work.build(),
        digest=suspect.digest(),
        forms=2,
        notes=(_MATCHED,),
    )


class Order(NamedTuple):
    """Which units of a suspect stand for which of a reference at one place.

    Args:
        width: Units of the reference.
        ours: Those of them that found a partner.
        theirs: The suspect's units in that order.
        signs: 1 or -1 for each.
    """

    width: int
    ours: NDArray[np.int64]
    theirs: NDArray[np.int64]
    signs: Array


def orders(
    suspect: Host, reference: Host, channels: Channels, taps: Sequence[str], *, sweeps: int = 3
) -> dict[str, Order]:
    """Match a suspect's units to a reference's by their weights, for reading activations in order.

    Args:
        suspect: The model under test; it may be wider or narrower than the reference.
        reference: A model that does not bear the mark.
        channels: The reference's groups of channels.
        taps: Where activations are read; see :mod:`earmark.hosts.taps`.
        sweeps: Rounds of matching.

    Returns:
        The order at each tap; those whose channels could not be followed are left out.

    Raises:
        AccessError, HostError, ExtraError: As in :func:`align`.
    """
    for host in (suspect, reference):
        host.require(Access.WEIGHTS, by="align")
    known = {tap: channels.taps[tap] for tap in taps if tap in channels.taps}
    if not known:
        return {}
    work = _Work(_load(suspect, channels), _load(reference, channels), channels)
    work.match(sweeps)
    return {
        tap: work.order(tap, runs)
        for tap, runs in known.items()
        if all(run in work.chosen and run not in channels.frozen for run in runs)
    }


def _load(host: Host, channels: Channels) -> dict[str, NDArray[np.float32]]:
    found = {name: host.tensor(name) for name in sorted(host.tensor_names())}
    for layer in channels.layers:
        if layer.weight not in found:
            _join(found, layer.weight)
    lacking = sorted({layer.weight for layer in channels.layers} - set(found))
    if lacking:
        raise HostError(
            f"The suspect lacks {len(lacking)} layers of the reference, such as '{lacking[0]}'.",
            hint="Only models of the same architecture can be aligned, whatever their widths.",
        )
    return found


def _join(tensors: dict[str, NDArray[np.float32]], weight: str) -> None:
    """Put the product of two linear layers, into which one was split, in its place."""
    stem = weight.removesuffix("weight")
    parts = [name for name in tensors if name.startswith(stem)]
    factors = [tensors[name] for name in parts if tensors[name].ndim == 2]
    biases = [tensors[name] for name in parts if tensors[name].ndim == 1]
    if len(factors) != 2:
        return
    inner, outer = factors if factors[0].shape[0] == factors[1].shape[1] else factors[::-1]
    size = len(outer) * inner.shape[1]
    if outer.shape[1] != len(inner) or size > MOST_JOINED * (inner.size + outer.size):
        return
    for name in parts:
        del tensors[name]
    tensors[weight] = (_clean(outer) @ _clean(inner)).astype(np.float32)
    fitting = [bias for bias in biases if len(bias) == len(outer)]
    if fitting:
        tensors[f"{stem}bias"] = fitting[-1]


def _clean(values: NDArray[np.float32]) -> Array:
    return np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def balance(
    matrix: Array, rows: Array | None = None, columns: Array | None = None, *, rounds: int = 12
) -> Array:
    """Scale the rows and columns of a matrix by positive factors to given norms.

    Whatever positive factors the rows and columns were multiplied with before, the result is the
    same.

    Args:
        matrix: (rows, columns, entries).
        rows: Wanted norm of each row; by default 1.
        columns: Wanted norm of each column; by default all the same.
        rounds: Rounds of alternating scaling.

    Example:
        >>> one = np.array([[[1.0], [2.0]], [[3.0], [1.0]]])
        >>> two = one * np.array([5.0, 0.1])[:, None, None] * np.array([3.0, 0.7])[None, :, None]
        >>> bool(np.allclose(balance(one), balance(two), rtol=1e-3))
        True
    """
    rows = np.ones(matrix.shape[0]) if rows is None else rows
    if columns is None:
        columns = np.full(matrix.shape[1], math.sqrt(np.square(rows).sum() / matrix.shape[1]))
    squares = np.square(matrix).sum(2)
    left, right = np.ones(matrix.shape[0]), np.ones(matrix.shape[1])
    for _ in range(rounds):
        left = _ratio(rows, np.sqrt(squares @ np.square(right)))
        right = _ratio(columns, np.sqrt(np.square(left) @ squares))
    left = _ratio(rows, np.sqrt(squares @ np.square(right)))
    return matrix * left[:, None, None] * right[None, :, None]


def _ratio(wanted: Array, found: Array) -> Array:
    made: Array = np.where(found > 0, wanted / np.where(found > 0, found, 1.0), 0.0)
    return made


def _unit(matrix: Array) -> Array:
    """Return the rows of (channels, ...) as unit vectors."""
    flat = matrix.reshape(len(matrix), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    made: Array = flat / np.where(norms > 0, norms, 1.0)
    return made


@dataclass
class _Work:
    """A suspect and a reference while they are being matched.

    Args:
        suspect: The suspect's tensors.
        reference: The reference's tensors.
        channels: The reference's groups.
    """

    suspect: dict[str, NDArray[np.float32]]
    reference: dict[str, NDArray[np.float32]]
    channels: Channels
    chosen: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    signs: dict[int, Array] = field(default_factory=dict)
    views: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, theirs in self.reference.items():
            ours = self.suspect.get(name, theirs)
            if ours.ndim != theirs.ndim or 0 in ours.shape:
                raise HostError(
                    f"The suspect's '{name}' has shape {ours.shape}, the reference's "
                    f"{theirs.shape}: they differ by more than channels."
                )
        self.widths = list(self.channels.sizes)
        for layer in self.channels.layers:
            self.widths[layer.rows] = len(self.suspect[layer.weight])
        for layer in self.channels.layers:
            if len(self.suspect[layer.weight]) != self.widths[layer.rows]:
                raise HostError(f"The suspect's '{layer.weight}' is tied to layers of other width.")
            self.views[layer.weight] = (
                self._view(layer, self.suspect, self.widths),
                self._view(layer, self.reference, list(self.channels.sizes)),
            )
            one, other = (view.shape for view in self.views[layer.weight])
            if one[2] != other[2] or (layer.columns is None and one[1] != other[1]):
                raise HostError(
                    f"The suspect's '{layer.weight}' has shape "
                    f"{self.suspect[layer.weight].shape}, the reference's "
                    f"{self.reference[layer.weight].shape}: they differ by more than channels."
                )
        for group in self.channels.frozen:
            if self.widths[group] != self.channels.sizes[group]:
                names = ", ".join(layer.weight for layer in self.channels.writers(group))
                raise HostError(
                    f"Channels of {names or 'an input'} have other numbers than the reference's."
                )
            self.chosen[group] = np.arange(self.widths[group])

    def _view(
        self, layer: Layer, tensors: dict[str, NDArray[np.float32]], widths: list[int]
    ) -> Array:
        """Return a layer with its norm folded in, (outputs, inputs, entries)."""
        values = _clean(tensors[layer.weight])
        factor = fold(layer, tensors)
        count = (
            values.shape[1]
            if layer.columns is None
            else sum(widths[group] for group, _ in layer.columns)
        )
        if values[0].size % max(1, count):
            raise HostError(
                f"'{layer.weight}' has shape {values.shape}, which does not fit {count} inputs."
            )
        folded: Array = values.reshape(len(values), count, -1) * factor[:, None, None]
        return folded

    def match(self, sweeps: int) -> None:
        """Match every group that is free, several times over."""
        free = [g for g in range(len(self.widths)) if g not in self.channels.frozen]
        for _ in range(sweeps):
            before = {group: self.chosen.get(group) for group in free}
            for group in free:
                self._match(group)
            if all(_same(before[group], self.chosen.get(group)) for group in free):
                break

    def _match(self, group: int) -> None:
        parts = []
        for layer in self.channels.writers(group):
            if self._knows_columns(layer):
                ours, theirs = self._pair(layer, rows=False)
                parts.append((_unit(balance(theirs)), _unit(balance(ours))))
        for layer in self.channels.readers(group):
            if layer.rows in self.chosen:
                parts += self._outgoing(layer, group)
        if not parts:
            return
        score = np.add.reduce([theirs @ ours.T for theirs, ours in parts])
        size = np.abs(score) if group in self.channels.signed else score
        mine, found = _assign(size)
        chosen = np.full(self.channels.sizes[group], -1)
        chosen[mine] = found
        self.chosen[group] = chosen
        signs = np.ones(len(chosen))
        if group in self.channels.signed:
            signs[mine] = np.where(score[mine, found] < 0, -1.0, 1.0)
        self.signs[group] = signs

    def _outgoing(self, layer: Layer, group: int) -> list[tuple[Array, Array]]:
        """Return what a reader takes from a group, channel by channel: reference and suspect."""
        ours, theirs = self.views[layer.weight]
        ours = _select(ours, self.chosen[layer.rows], 0)
        signs = self.signs.get(layer.rows)
        if signs is not None:
            ours = ours * signs[:, None, None]
        ours, theirs = balance(ours), balance(theirs)
        found, at, there = [], 0, 0
        for run, _ in layer.columns or ():
            width, size = self.widths[run], self.channels.sizes[run]
            if run == group:
                one = theirs[:, there : there + size].swapaxes(0, 1)
                other = ours[:, at : at + width].swapaxes(0, 1)
                found.append((_unit(one), _unit(other)))
            at, there = at + width, there + size
        return found

    def _knows_columns(self, layer: Layer) -> bool:
        return layer.columns is None or all(run in self.chosen for run, _ in layer.columns)

    def _pair(self, layer: Layer, *, rows: bool, merged: bool = False) -> tuple[Array, Array]:
        """Return suspect and reference with their columns, and maybe rows, in the same order."""
        ours, theirs = self.views[layer.weight]
        if layer.columns is not None:
            pieces, at = [], 0
            for run, _ in layer.columns:
                piece = ours[:, at : at + self.widths[run]]
                at += self.widths[run]
                pieces.append(self._columns(piece, run, merged=merged))
            ours = np.concatenate(pieces, axis=1)
        if rows and layer.rows in self.chosen:
            ours = _select(ours, self.chosen[layer.rows], 0)
            ours = ours * self.signs.get(layer.rows, np.ones(len(ours)))[:, None, None]
        return ours, theirs

    def _columns(self, piece: Array, group: int, *, merged: bool) -> Array:
        chosen = self.chosen[group]
        found = _select(piece, chosen, 1)
        if merged:
            for source, target, factor in self._twins(group):
                found[:, target] += factor * piece[:, source]
        signs = self.signs.get(group)
        return found if signs is None else found * signs[None, :, None]

    def _twins(self, group: int) -> list[tuple[int, int, float]]:
        """Return unmatched neurons that copy a matched one: (neuron, reference's number, size)."""
        chosen = self.chosen[group]
        spare = np.setdiff1d(np.arange(self.widths[group]), chosen)
        writers = [layer for layer in self.channels.writers(group) if self._knows_columns(layer)]
        if not len(spare) or not writers:
            return []
        rows = [self._pair(layer, rows=False)[0] for layer in writers]
        sizes = np.concatenate([part.reshape(len(part), -1) for part in rows], axis=1)
        unit = _unit(np.concatenate([_unit(balance(part)) for part in rows], axis=1))
        there = np.flatnonzero(chosen >= 0)
        alike = unit[spare] @ unit[chosen[there]].T
        norms = np.linalg.norm(sizes, axis=1)
        found = []
        for i, best in enumerate(alike.argmax(1)):
            matched = chosen[there[best]]
            if alike[i, best] > TWIN and norms[matched] > 0:
                factor = norms[spare[i]] / norms[matched]
                found.append((int(spare[i]), int(there[best]), float(factor)))
        return found

    def order(self, tap: str, runs: tuple[int, ...]) -> Order:
        """Return the order of the units at a tap."""
        ours, theirs, signs, width, at = [], [], [], 0, 0
        for run in runs:
            mine = np.flatnonzero(self.chosen[run] >= 0)
            found = self.chosen[run][mine]
            sign = self.signs.get(run, np.ones(len(self.chosen[run])))[mine]
            for layer in self.channels.layers:
                if layer.weight == f"{tap}.weight":  # read before its norm, which undoes signs
                    sign = sign * _sign(fold(layer, self.reference)[mine])
                    sign = sign * _sign(fold(layer, self.suspect)[found])
            ours.append(mine + width)
            theirs.append(found + at)
            signs.append(sign)
            width, at = width + len(self.chosen[run]), at + self.widths[run]
        return Order(width, np.concatenate(ours), np.concatenate(theirs), np.concatenate(signs))

    def build(self) -> dict[str, NDArray[np.float32]]:
        """Return the suspect's tensors in the reference's order, width and scale."""
        found = {
            name: values
            for name, values in self.suspect.items()
            if name in self.reference and values.shape == self.reference[name].shape
        }
        for layer in self.channels.layers:
            if not self._knows_columns(layer) or layer.rows not in self.chosen:
                continue
            ours, theirs = self._pair(layer, rows=True, merged=True)
            factor = fold(layer, self.reference)
            raw = theirs / np.where(factor == 0, 1.0, factor)[:, None, None]
            squares = np.square(raw)
            scaled = balance(ours, np.sqrt(squares.sum((1, 2))), np.sqrt(squares.sum((0, 2))))
            scaled *= np.where(factor < 0, -1.0, 1.0)[:, None, None]
            shape = self.reference[layer.weight].shape
            found[layer.weight] = scaled.reshape(shape).astype(np.float32)
        for name, runs in self.channels.vectors.items():
            if name in self.suspect and name in self.reference:
                self._vector(name, runs, found)
        for attention in self.channels.attention:
            self._attend(attention, found)
        return found

    def _vector(
        self, name: str, runs: tuple[int, ...], found: dict[str, NDArray[np.float32]]
    ) -> None:
        values = self.suspect[name]
        whole = sum(self.widths[run] for run in runs)
        if len(values) != whole or any(run not in self.chosen for run in runs):
            return
        pieces, at = [], 0
        for run in runs:
            pieces.append(_select(values[at : at + self.widths[run]], self.chosen[run], 0))
            at += self.widths[run]
        found[name] = np.concatenate(pieces)

    def _attend(self, attention: Attention, found: dict[str, NDArray[np.float32]]) -> None:
        """Match the heads of an attention layer and undo linear maps inside each."""
        names = (attention.inside, attention.outside)
        if any(name not in found for name in names):
            return
        ours = _heads(self.suspect, attention)
        theirs = _heads(self.reference, attention)
        score = _inner(theirs[0], ours[0], theirs[1], ours[1])
        score = score + _inner(theirs[2], ours[2], theirs[3], ours[3])
        mine, chosen = _assign(score)
        order = np.empty(attention.heads, np.int64)
        order[mine] = chosen
        fitted = [_fit(ours[i][order], theirs[i]) for i in range(4)]
        width = theirs[0].shape[2]
        inside = np.concatenate([part.reshape(-1, width) for part in fitted[:3]])
        found[attention.inside] = inside.astype(np.float32)
        outside = fitted[3].reshape(-1, width).T
        found[attention.outside] = np.ascontiguousarray(outside, np.float32)


def _same(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def fold(layer: Layer, tensors: dict[str, NDArray[np.float32]]) -> Array:
    """Return the factor that a layer's batch norm puts on each output, or ones."""
    count = len(tensors[layer.weight])
    gain, spread = (tensors.get(f"{layer.norm}.{part}") for part in ("weight", "running_var"))
    if not layer.norm or spread is None or len(spread) != count:
        return np.ones(count)
    gains = np.ones(count) if gain is None else _clean(gain)
    return gains / np.sqrt(np.maximum(_clean(spread), 0.0) + layer.eps)


def _sign(values: Array) -> Array:
    made: Array = np.where(values < 0, -1.0, 1.0)
    return made


def _select(values: NDArray[np.floating], chosen: NDArray[np.int64], axis: int) -> Array:
    """Return the chosen channels along an axis; zeros where -1 was chosen."""
    found = np.take(values, np.maximum(chosen, 0), axis=axis)
    if (chosen < 0).any():
        shape = [1] * values.ndim
        shape[axis] = len(chosen)
        found = found * (chosen >= 0).reshape(shape)
    made: Array = found
    return made


def _assign(score: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs (row, column) of the assignment with the greatest score."""
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ExtraError(
            "Alignment needs the package 'scipy'.", hint='pip install "earmark[torch]"'
        ) from error
    rows, columns = linear_sum_assignment(score, maximize=True)
    return rows, columns


def _heads(
    tensors: dict[str, NDArray[np.float32]], attention: Attention
) -> tuple[Array, Array, Array, Array]:
    """Return queries, keys, values and outputs, each (heads, width of a head, width)."""
    inside, outside = (_clean(tensors[name]) for name in (attention.inside, attention.outside))
    heads = attention.heads
    queries, keys, values = inside.reshape(3, heads, -1, inside.shape[1])
    return queries, keys, values, outside.T.reshape(heads, -1, outside.shape[0])


def _inner(left: Array, left_other: Array, right: Array, right_other: Array) -> Array:
    """Return cosines of the products left^T right of each pair of heads; no gauge changes them."""

    def product(one: Array, other: Array, two: Array, another: Array) -> Array:
        first = np.einsum("hiw,kjw->hkij", one, other)
        made: Array = (first * np.einsum("hiw,kjw->hkij", two, another)).sum((2, 3))
        return made

    cross = product(left, left_other, right, right_other)
    own = np.sqrt(np.diagonal(product(left, left, right, right)).clip(1e-30))
    other = np.sqrt(np.diagonal(product(left_other, left_other, right_other, right_other)))
    made: Array = cross / own[:, None] / other.clip(1e-30)[None, :]
    return made


def _fit(ours: Array, theirs: Array) -> Array:
    """Map each head linearly to the reference's, by least squares, (heads, inner, width)."""
    made: Array = np.stack(
        [
            np.linalg.lstsq(one.T, other.T, rcond=None)[0].T @ one
            for one, other in zip(ours, theirs, strict=True)
        ]
    )
    return made
