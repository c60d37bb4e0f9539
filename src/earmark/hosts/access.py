"""What a host is: a model seen through the access it grants.

Tensors, features and scores cross this boundary as NumPy arrays, so that measuring needs no
framework. A host never changes the model behind it.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from earmark.errors import AccessError
from earmark.records import Access

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tree = Any  # Any: a batch, see earmark.hosts.batches

Forward = Callable[[Any, Any], Any]  # Any: a module, a batch and the module's output
"""How to run a model on a batch: ``forward(model, batch) -> output``."""


def plain_forward(model: Any, batch: Tree) -> Any:  # Any: as in Forward
    """Run a model on a batch: on its first part if it is a pair, by keyword if it is a dict."""
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    if isinstance(batch, dict):
        return model(**{name: part for name, part in batch.items() if name != "labels"})
    return model(batch)


class Host(ABC):
    """A model under some access. Subclasses override what they grant.

    Reading what is not granted raises :class:`earmark.errors.AccessError`.
    """

    access: ClassVar[frozenset[Access]] = frozenset()

    def digest(self) -> str:
        """Return a digest that names this model as it was seen, 64 hexadecimal digits."""
        raise NotImplementedError

    def require(self, *needed: Access, by: str) -> None:
        """Refuse a host that lacks access.

        Args:
            needed: What will be read.
            by: Name of the scheme or attack that asks, for the message.

        Raises:
            AccessError: Something is not granted.
        """
        missing = [item for item in needed if item not in self.access]
        if missing:
            granted = ", ".join(sorted(item.value for item in self.access)) or "nothing"
            raise AccessError(
                f"'{by}' needs {', '.join(item.value for item in missing)}, "
                f"but this suspect grants only {granted}.",
                hint="See which schemes need less:  earmark schemes",
            )

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of the model's tensors, sorted."""
        raise self._refusal(Access.WEIGHTS)

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading its data."""
        return tuple(self.tensor(name).shape)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as float32 (quantised ones dequantised).

        Raises:
            CarrierError: No tensor has that name.
        """
        raise self._refusal(Access.WEIGHTS)

    def blocks(self, name: str, size: int, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some blocks of consecutive entries of a tensor in row-major order.

        Args:
            name: The tensor.
            size: Entries of a block; block i begins at entry i * size.
            index: Which blocks, in any order, (blocks,).

        Returns:
            (blocks, size), in the order of `index`.

        Raises:
            CarrierError: No tensor has that name.
        """
        flat = self.tensor(name).reshape(-1)
        whole = flat[: len(flat) // size * size].reshape(-1, size)
        return whole[index]

    def features(self, inputs: Tree, taps: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return pooled activations of named layers, tap to (samples, features).

        Raises:
            CarrierError: A tap matches no layer.
        """
        raise self._refusal(Access.ACTIVATIONS)

    def scores(self, inputs: Tree) -> NDArray[np.float64]:
        """Return the model's output scores, (samples, classes)."""
        raise self._refusal(Access.SCORES)

    def labels(self, inputs: Tree) -> NDArray[np.int64]:
        """Return the model's predicted labels, (samples,)."""
        raise self._refusal(Access.LABELS)

    def _refusal(self, needed: Access) -> AccessError:
        granted = ", ".join(sorted(item.value for item in self.access)) or "nothing"
        return AccessError(f"This host grants {granted}, not {needed.value}.")
