"""Which trigger's input is nearest to a sample's."""

from __future__ import annotations

import torch
from torch import Tensor

from earmark.errors import UsageError
from earmark.hosts import batches
from earmark.hosts.batches import Tree

_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)


class Neighbours:
    """Finds the nearest of some inputs, by the distance between their numbers.

    Args:
        inputs: A batch as the task gives it (:func:`earmark.hosts.batches.input_of`).

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
    given = batches.input_of(batch)
    if given is not None and given.ndim > 1 and given.dtype in _NUMBERS:
        return given.flatten(1).float()
    what = "no single tensor" if given is None else f"{given.dtype} {tuple(given.shape)}"
    raise UsageError(
        f"These inputs have no neighbours: {what}.",
        expected="One tensor of real numbers or bytes, (samples, ...), such as images.",
        hint="Set neighbours=0.",
    )
