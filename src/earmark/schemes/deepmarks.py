"""DeepMarks-style fingerprints: each customer's copy bears a word of an anti-collusion code.

A literature baseline. The words come from a projective plane: any two share one place only, so that
the places where a few colluders all agree still name them. Codes that trace larger coalitions are
in :mod:`earmark.keys.tracing`.
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
    from numpy.typing import NDArray
    from torch import nn

USERS = 31
_BLOCK = (1, 5, 11, 24, 25, 27)


def word(user: int) -> NDArray[np.int8]:
    """Return a user's code word: -1 in the six places of his block, +1 elsewhere, (31,).

    Raises:
        UsageError: There is no such user.

    Example:
        >>> int((word(0) < 0).sum()), int(((word(0) < 0) & (word(7) < 0)).sum())
        (6, 1)
    """
    if not 0 <= user < USERS:
        raise UsageError(f"There is no user {user}.", expected=f"0 to {USERS - 1}.")
    made = np.ones(USERS, np.int8)
    made[[(place + user) % USERS for place in _BLOCK]] = -1
    return made


@dataclass(frozen=True)
class DeepMarks(FilterMeans):
    """Write a customer's code word into projections of each layer's mean filter.

    Args:
        user: Number of the customer, 0 to 30.
        weight: Weight of the term.
        strength: Value that each projection is pushed to, in units of its spread.
        shards: Shards of the key.
        carrier: Globs of tensors to use; by default all that are eligible.

    Raises:
        UsageError: A setting out of range.

    Source:
        DeepMarks (Chen, Rouhani, Fu, Zhao and Koushanfar 2019): squared error between projected
        weights and the fingerprint, weight 0.1, code from a (31, 6, 1) design. Changed: every
        eligible layer instead of one; the orthogonal basis is left out, since Gaussian directions
        are nearly orthogonal already; fair keyed signs hide the word and make the test exact.

    False positives: the published rule names the customer whose word correlates most, so it names
    one on every unmarked model as well. :meth:`measure` counts agreement with the one word that the
    key names, which is exact; :meth:`correlations` serves the published rule.
    """

    user: int = 0
    weight: float = 0.1
    strength: float = 1.0
    shards: int = 8
    carrier: tuple[str, ...] = ()

    name: ClassVar[str] = "deepmarks"
    summary: ClassVar[str] = "Literature baseline: customers' fingerprints in the mean filters."

    def __post_init__(self) -> None:
        word(self.user)
        if self.shards < 1 or not self.weight > 0 or not self.strength > 0:
            raise UsageError(
                f"DeepMarks with {self.shards} shards, weight {self.weight} and strength "
                f"{self.strength}.",
                expected="At least 1 shard, and both others above 0.",
            )

    def content(self) -> tuple[int, Mapping[str, Any]]:  # Any: JSON values
        """Return the bits of a layer; the layout names the customer."""
        return USERS, {"user": self.user}

    @contextmanager
    def attach(
        self,
        model: nn.Module,
        key: Key,
        *,
        forward: Forward = plain_forward,  # noqa: ARG002 - the model is not run
    ) -> Iterator[Mark]:
        """Attach the term for the time of a `with` block.

        Raises:
            KeyLayoutError, CarrierError: As the base class says.
        """
        from torch.nn.functional import mse_loss

        self.check_key(key)
        code = word(int(str(key.layout.params["user"])))
        parts = [
            (slot, (self.strength * slot.signs * code[slot.numbers]).astype(np.float32))
            for slot in filter_means.slots(key)
        ]
        yield filter_means.FilterMeansMark(
            model,
            parts,
            loss=mse_loss,
            weight=self.weight,
        )

    def measure(
        self,
        suspect: Host,
        key: Key | Disclosure,
        *,
        nonce: str | None = None,  # noqa: ARG002 - nothing is split or ordered
    ) -> Evidence:
        """Count the projections that agree with the customer's word.

        Raises:
            AccessError, KeyLayoutError, CarrierError: As the base class says.
        """
        self.check_key(key)
        suspect.require(Access.WEIGHTS, by=self.name)
        code = word(int(str(key.layout.params["user"])))
        return filter_means.measure(suspect, key, lambda slot: slot.signs * code[slot.numbers])

    def correlations(self, suspect: Host, key: Key) -> NDArray[np.float64]:
        """Correlate what the weights say with every customer's word; the greatest names a leaker.

        Returns:
            (users,), from -1 to 1.

        Raises:
            AccessError, KeyLayoutError: As the base class says.
        """
        self.check_key(key)
        suspect.require(Access.WEIGHTS, by=self.name)
        total = np.zeros(USERS)
        for slot in filter_means.slots(key):
            mean = np.nan_to_num(suspect.tensor(slot.name)).mean(axis=0, dtype=np.float64)
            found = slot.directions @ mean.reshape(-1) * slot.signs
            np.add.at(total, slot.numbers, np.sign(found))
        words = np.stack([word(user) for user in range(USERS)]).astype(np.float64)
        centered, spread = words - words.mean(1, keepdims=True), total - total.mean()
        norms = np.linalg.norm(centered, axis=1) * max(float(np.linalg.norm(spread)), 1e-12)
        made: NDArray[np.float64] = centered @ spread / norms
        return made
