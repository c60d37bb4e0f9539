"""Uchida's regularizer in every layer: the ancestor of weight marks, as a baseline.

It is kept for comparison. It shows in the spread of the mean filters, and overwriting erases it
where many bits are asked for; :mod:`earmark.schemes.deepwater` does neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from earmark.errors import UsageError
from earmark.hosts.access import Forward, Host, plain_forward
from earmark.keys.secret import Disclosure, Key
from earmark.records import Access, Evidence
from earmark.schemes import filter_means
from earmark.schemes.base import Mark
from earmark.schemes.filter_means import FilterMeans

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Uchida(FilterMeans):
    """Push random projections of each layer's mean filter towards a bit each.

    Args:
        bits: Bits a layer.
        weight: Weight of the term.
        shards: Shards of the key.
        carrier: Globs of tensors to use; by default all that are eligible.

    Raises:
        UsageError: A setting out of range.

    Source:
        Uchida, Nagai, Sakazawa and Satoh 2017, equations 3 to 5: binary cross-entropy of the
        sigmoid of X w, weight 0.01. Changed: every eligible layer instead of one, keyed fair bits
        instead of all ones, directions and bits from a committed key.

    False positives: the published rule (every bit right) passes 2^-bits of unmarked layers as long
    as directions are drawn without the model, as here; a claimant who may choose directions passes
    always (the forgery "sign-fit").
    """

    bits: int = 64
    weight: float = 0.01
    shards: int = 8
    carrier: tuple[str, ...] = ()

    name: ClassVar[str] = "uchida"
    summary: ClassVar[str] = "Literature baseline: projections of each layer's mean filter."

    def __post_init__(self) -> None:
        if self.bits < 1 or self.shards < 1 or not self.weight > 0:
            raise UsageError(
                f"Uchida with {self.bits} bits, {self.shards} shards and weight {self.weight}.",
                expected="At least 1 bit and 1 shard, and a weight above 0.",
            )

    def content(self) -> tuple[int, Mapping[str, Any]]:  # Any: JSON values
        """Return the bits of a layer; the layout says nothing else."""
        return self.bits, {}

    @contextmanager
    def attach(
        self,
        model: nn.Module,
        key: Key,
        *,
        forward: Forward = plain_forward,  # noqa: ARG002 - the model is not run
    ) -> Iterator[Mark]:
        """Attach the regularizer for the time of a `with` block.

        Raises:
            KeyLayoutError, CarrierError: As the base class says.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        self.check_key(key)
        parts = [(slot, (slot.signs > 0).astype(np.float32)) for slot in filter_means.slots(key)]
        yield filter_means.FilterMeansMark(
            model,
            parts,
            loss=lambda found, wanted: binary_cross_entropy_with_logits(
                found, wanted, reduction="sum"
            ),
            weight=self.weight,
        )

    def measure(
        self,
        suspect: Host,
        key: Key | Disclosure,
        *,
        nonce: str | None = None,  # noqa: ARG002 - nothing is split or ordered
    ) -> Evidence:
        """Count the projections with the right sign.

        Raises:
            AccessError, KeyLayoutError, CarrierError: As the base class says.
        """
        self.check_key(key)
        suspect.require(Access.WEIGHTS, by=self.name)
        return filter_means.measure(suspect, key, lambda slot: slot.signs)
