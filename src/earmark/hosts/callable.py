"""Any function as a black box: it takes a batch and gives labels, or scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from earmark.errors import AccessError, HostError
from earmark.hosts import batches
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.hosts.labels import top
from earmark.hosts.transcript import Transcript
from earmark.records import Access


class CallableHost(Host):
    """A function as host: labels only, whatever it gives.

    Args:
        ask: Takes a batch; gives (samples,) labels or (samples, classes) scores.
        name: What stands for the function in digests.
        budget: Largest number of different inputs that may be asked; null for any.
        batch_size: Inputs of one call.

    Example:
        >>> import torch
        >>> host = CallableHost(lambda batch: batch.sum(dim=1) > 0, name="a rule")
        >>> host.labels(torch.tensor([[1.0, 2.0], [-3.0, 1.0]])).tolist()
        [1, 0]
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.LABELS})

    def __init__(
        self,
        ask: Callable[[Tree], Any],  # Any: array, tensor or list
        *,
        name: str = "callable",
        budget: int | None = None,
        batch_size: int = 256,
    ) -> None:
        self.ask, self.budget, self.batch_size = ask, budget, batch_size
        self.transcript = Transcript(None, name)

    def digest(self) -> str:
        """Return a digest over the answers so far: all that is known of the model."""
        return self.transcript.digest()

    def labels(self, inputs: Tree) -> NDArray[np.int64]:
        """Return the function's labels; of scores the highest; NaN gives -1.

        Raises:
            AccessError: The budget does not suffice.
            HostError: The function gives something else.
        """
        names = [digest.hex() for digest in batches.sample_digests(inputs)]
        fresh = [i for i, name in enumerate(names) if name not in self.transcript.answers]
        check_budget(self.budget, len(self.transcript.answers), len(fresh))
        for start in range(0, len(fresh), self.batch_size):
            part = fresh[start : start + self.batch_size]
            for i, label in zip(
                part, self._call(batches.take(inputs, part), len(part)), strict=True
            ):
                self.transcript.add(names[i], int(label))
        return np.array([self.transcript.answers[name] for name in names], dtype=np.int64)

    def _call(self, batch: Tree, count: int) -> NDArray[np.int64]:
        raw = self.ask(batch)
        given = np.asarray(raw.detach().cpu() if hasattr(raw, "detach") else raw)
        if given.ndim == 2 and len(given) == count:
            return top(given)
        if given.shape != (count,) or given.dtype.kind not in "iub":
            raise HostError(
                f"The function gave an array of shape {given.shape} and type {given.dtype} for "
                f"{count} inputs.",
                expected="Integer labels (samples,) or scores (samples, classes).",
            )
        return given.astype(np.int64)


def check_budget(budget: int | None, asked: int, wanted: int) -> None:
    """Refuse to ask more than a budget.

    Raises:
        AccessError: The budget does not suffice.
    """
    if budget is not None and asked + wanted > budget:
        raise AccessError(
            f"{wanted} more questions after {asked} exceed the budget of {budget}.",
            hint="Raise the budget, or let the scheme stop early.",
        )
