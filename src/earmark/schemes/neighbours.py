"""Which trigger's input is nearest to a sample's."""

from __future__ import annotations

import torch
from torch import Tensor

from earmark.errors import UsageError
from earmark.hosts import batches
from earmark.hosts.batches import Tree


class Neighbours:
    """Finds the nearest of some inputs, by the distance between their numbers.

    Args:
        inputs: A batch as the task gives it. A tuple's first item is read, and of a dict what is
            named as inputs usually are (:data:`earmark.hosts.batches.INPUT_NAMES`).

    Raises:
        UsageError: The inputs are no tensor of images, sounds or rows of a table.

    Example:
        >>> near = Neighbours((torch.tensor([[0.0], [5.0]]), torch.tensor([0, 1])))
        >>> near((torch.tensor([[4.0], [1.0]]), torch.tensor([0, 0])))
        tensor([1, 0])
    """

    def __init__(self, inputs: Tree) -> None:
        rows = _rows(inputs)
        self._center = rows.mean(0)
        self._points = rows - self._center

    @torch.no_grad()
    def __call__(self, batch: Tree) -> Tensor:
        """Return the index of the nearest input for each sample of a batch, on the CPU."""
        rows = _rows(batch)
        self._center, self._points = self._center.to(rows), self._points.to(rows)
        return torch.cdist(rows - self._center, self._points).argmin(1).cpu()


def _rows(batch: Tree) -> Tensor:
    """Return a batch's inputs, (samples, numbers)."""
    given: object = batch[0] if isinstance(batch, (tuple, list)) else batch
    if isinstance(given, dict):
        given = next((given[name] for name in batches.INPUT_NAMES if name in given), None)
    if isinstance(given, Tensor) and given.ndim > 1:
        if given.is_floating_point() or given.dtype == torch.uint8:
            return given.flatten(1).float()
        what = f"{given.dtype} {tuple(given.shape)}"
    else:
        what = str(tuple(given.shape)) if isinstance(given, Tensor) else "no single tensor"
    raise UsageError(
        f"These inputs have no neighbours: {what}.",
        expected="One tensor of real numbers or bytes, (samples, ...), such as images.",
        hint="Set neighbours=0.",
    )
