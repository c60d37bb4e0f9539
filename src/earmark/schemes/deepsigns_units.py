"""Bring a suspect's units to the order of a reference, for DeepSigns, white-box.

Units are matched by their weights, layer by layer, as :mod:`earmark.hosts.align` does it. Where the
layers cannot be followed, or only activations are at hand, they are matched by their answers to
blends of the key's inputs. Either way nothing that is looked at depends on the key's bits, as long
as the reference was not made with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from earmark.errors import CarrierError, HostError
from earmark.hosts import batches
from earmark.hosts.access import Host
from earmark.hosts.align import Order, orders
from earmark.hosts.batches import Tree
from earmark.hosts.graph import channels
from earmark.hosts.module import ModuleHost
from earmark.records import Access
from earmark.schemes import groups

if TYPE_CHECKING:
    from earmark.schemes.deepsigns import Plan

PROBES = 8  # sets of blends on which units are matched


class AlignedHost(Host):
    """A suspect whose units at the key's taps stand in the order of a reference's.

    Args:
        suspect: The model under test.
        reference: A model that does not bear the mark.
        plan: What the key says.
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.ACTIVATIONS})

    def __init__(self, suspect: Host, reference: Host, plan: Plan) -> None:
        self.suspect, self.forms = suspect, 2
        self._order = by_weights(suspect, reference, plan)
        if len(self._order) < len(plan.names):
            own, found = answers(plan, reference), answers(plan, suspect)
            for name in set(plan.names) - set(self._order):
                self._order[name] = assignment(own[name], found[name])

    def digest(self) -> str:
        """Return the suspect's digest."""
        return self.suspect.digest()

    def features(self, inputs: Tree, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the suspect's activations, units in order, those without a match silent."""
        made = {}
        for name, rows in self.suspect.features(inputs, names).items():
            order = self._order[name]
            if order.theirs.max(initial=-1) >= rows.shape[1]:
                raise CarrierError(f"Layer '{name}' has {rows.shape[1]} units; its weights more.")
            made[name] = np.zeros((len(rows), order.width))
            made[name][:, order.ours] = rows[:, order.theirs] * order.signs
        return made


def by_weights(suspect: Host, reference: Host, plan: Plan) -> dict[str, Order]:
    """Return the order at those taps whose units can be matched by their weights.

    Args:
        suspect: The model under test.
        reference: A model that does not bear the mark.
        plan: What the key says.
    """
    if not isinstance(reference, ModuleHost) or Access.WEIGHTS not in suspect.access:
        return {}
    try:
        found = orders(suspect, reference, channels(reference.model), plan.names)
    except HostError:  # another architecture
        return {}
    widths = dict(zip(plan.names, plan.widths, strict=True))
    return {name: order for name, order in found.items() if order.width == widths[name]}


def answers(plan: Plan, host: Host) -> dict[str, NDArray[np.float64]]:
    """Return how each unit answers blends of the key's inputs, without what may be marked.

    The groups' means are where the mark is: their directions are taken out of the activations. What
    is left is whitened, so that units which answer alike can be told apart.
    """
    count = len(plan.group)
    parts = [plan.inputs]
    for i in range(1, PROBES):
        others = batches.take(plan.inputs, (torch.arange(count) * 7 + 13 * i) % count)
        parts.append(groups.blended(plan.inputs, others, 0.5))
    found = host.features(batches.join(parts), plan.names)
    return {name: _signature(rows, plan.group, plan.count) for name, rows in found.items()}


def _signature(
    rows: NDArray[np.float64], group: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Standardize, take out the groups' means, whiten, and bring columns to unit length."""
    found = _standard(rows)
    first = found[: len(group)]
    neutral = first[group < 0].mean(axis=0)
    means = np.stack([first[group == g].mean(axis=0) - neutral for g in range(count)])
    basis, _ = np.linalg.qr(means.T)
    found = found - (found @ basis) @ basis.T
    values, vectors = np.linalg.eigh(found.T @ found / len(found))
    found = found @ ((vectors / np.sqrt(values.clip(0) + 0.01)) @ vectors.T)
    found = found - found.mean(axis=0)
    norms = np.linalg.norm(found, axis=0)
    made: NDArray[np.float64] = np.where(norms > 1e-9, found / np.maximum(norms, 1e-12), 0.0)
    return made


def assignment(reference: NDArray[np.float64], found: NDArray[np.float64]) -> Order:
    """Match a suspect's units to a reference's by their answers to the same inputs.

    Args:
        reference: (inputs, units) of the reference, columns of unit length.
        found: (inputs, units) of the suspect; any number of units.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    alike = np.nan_to_num(reference.T @ found)
    first, second = linear_sum_assignment(np.abs(alike), maximize=True)
    signs = np.where(alike[first, second] < 0, -1.0, 1.0)
    return Order(reference.shape[1], first, second, signs)


def _standard(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Center columns and bring them to spread 1; constant ones and NaN become 0."""
    with np.errstate(all="ignore"):
        centered = columns - columns.mean(axis=0)
        spread = centered.std(axis=0)
        made: NDArray[np.float64] = np.where(spread > 1e-9, centered / spread, 0.0)
    return np.nan_to_num(made, posinf=0.0, neginf=0.0)
