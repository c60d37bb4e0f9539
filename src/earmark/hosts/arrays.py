"""A host around plain arrays: weights that were changed, aligned or made in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from earmark.errors import CarrierError
from earmark.hosts.access import Host
from earmark.hosts.files import combined_digest, nearest
from earmark.records import Access

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ArrayHost(Host):
    """Named float arrays as a host.

    Args:
        tensors: Name to values.
        digest: Digest of the model that the arrays were derived from, if it is that which evidence
            should name; by default that of the arrays.
        forms: Forms from which this one was chosen, charged in the evidence.
        notes: Sentences for the evidence.

    Example:
        >>> ArrayHost({"w": np.ones((2, 3), np.float32)}).tensor_shape("w")
        (2, 3)
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.WEIGHTS})

    def __init__(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        digest: str | None = None,
        forms: int = 1,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.tensors = dict(tensors)
        self.forms = forms
        self.notes = notes
        self._digest = digest

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of all arrays, sorted."""
        return tuple(sorted(self.tensors))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return one array.

        Raises:
            CarrierError: No array has that name.
        """
        if name not in self.tensors:
            raise CarrierError(
                f"Carrier '{name}' is none of {len(self.tensors)} tensors.",
                hint=nearest(name, self.tensors),
            )
        return self.tensors[name]

    def digest(self) -> str:
        """Return the digest given, or that of the arrays as float32."""
        if self._digest is None:
            raw = {name: np.ascontiguousarray(value, "<f4") for name, value in self.tensors.items()}
            self._digest = combined_digest(
                {
                    name: ("float32", value.shape, hashlib.sha256(value.data).digest())
                    for name, value in raw.items()
                }
            )
        return self._digest
