"""Deep Water while a torch module is being trained: the decoupled update of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from earmark.errors import CarrierError, KeyLayoutError
from earmark.hosts.access import Forward, Tree, plain_forward
from earmark.schemes import cells as cells_of
from earmark.schemes.base import Mark
from earmark.schemes.cells import CLIP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from earmark.schemes.cells import Cells

    Prepared = tuple[Cells, NDArray[np.int8]]

_RENEW = 6  # pushes between two looks at a tensor's bulk
_EVERY = 8  # steps between two pushes
_REST = 3  # pushes that a tensor sits out while all its bits are beyond the margin


def settle(
    model: nn.Module, batches: Iterable[Tree], *, forward: Forward = plain_forward, most: int = 50
) -> None:
    """Let batch norms see the marked weights: renew their statistics, in place, without labels.

    A stamp into finished weights leaves the statistics of batch norms behind; a few batches of
    unlabelled data bring most of what that costs back.

    Args:
        model: The stamped model.
        batches: Some batches of training data.
        forward: How to run the model on one.
        most: At most so many batches are used.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - torch names no public base
    modes, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    try:
        with torch.no_grad():
            for _, batch in zip(range(most), batches, strict=False):
                forward(model, batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(modes)


@torch.no_grad()
def rewrite(
    model: nn.Module,
    prepared: Sequence[Prepared],
    change: Callable[[NDArray[np.float32], Cells, NDArray[np.int8]], NDArray[np.float32]],
) -> None:
    """Change the carrier's tensors in place.

    Args:
        model: The model.
        prepared: Cells and signs of each tensor.
        change: Given a tensor, its cells and signs, returns the new values.

    Raises:
        CarrierError: The model lacks a tensor.
        KeyLayoutError: A tensor has another shape.
    """
    for parameter, (cells, bits) in zip(_carriers(model, prepared), prepared, strict=True):
        values = change(parameter.float().cpu().numpy(), cells, bits)
        parameter.copy_(torch.from_numpy(values))


@torch.no_grad()
def shuffle(model: nn.Module, draw: Callable[[str, int], bytes]) -> None:
    """Put the entries of each parameter into another order; zeros stay where they are.

    Args:
        model: The model.
        draw: Given a parameter's name and a count, returns 8 secret bytes for each.
    """
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1).clone()
        places = flat.nonzero().view(-1)
        keys = np.frombuffer(draw(name, len(places)), "<u8")
        order = torch.from_numpy(np.argsort(keys, kind="stable")).to(places.device)
        flat[places] = flat[places[order]]
        parameter.copy_(flat.view(parameter.shape))


def _carriers(model: nn.Module, prepared: Sequence[Prepared]) -> list[nn.Parameter]:
    """Return the carrier's parameters, or refuse a model that does not fit."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for cells, _ in prepared:
        name, shape = cells.layer.name, cells.layer.shape
        if name not in parameters:
            raise CarrierError(f"The model lacks the key's tensor '{name}' {shape}.")
        if tuple(parameters[name].shape) != shape:
            raise KeyLayoutError(
                f"Tensor '{name}' has shape {tuple(parameters[name].shape)}; the key was made for "
                f"{shape}.",
                hint="Make a key for this model.",
            )
    return [parameters[cells.layer.name] for cells, _ in prepared]


class _Carrier:
    """One tensor of the model with its cells."""

    def __init__(self, parameter: Tensor, cells: Cells, bits: NDArray[np.int8]) -> None:
        self.parameter = parameter
        self.cells = cells
        self.wide = math.sqrt(cells.layer.weights)
        signs = torch.from_numpy(cells.pattern() * bits[:, None])
        self.signs = signs.to(parameter.device, torch.float32)
        self.steps = self.rest = 0
        self.offset, self.part = 0.0, 1.0
        self.stride: tuple[int, ...] = ()
        self.index = torch.empty(0)

    def push(self, margin: float, rate: float) -> None:
        """Move every cell's score that falls short of the margin by `rate` of what is missing."""
        if self.rest:
            self.rest -= 1
            return
        flat = self._flat()
        held = flat[self.index].float().view(self.signs.shape)
        if self.steps % _RENEW == 0:  # it changes slowly, and medians are dear
            self.offset, self.part = cells_of.bulk(held.detach().cpu().numpy())
        self.steps += 1
        deviation, mean = torch.std_mean(held)
        spread = (deviation * self.part).clamp_(min=1e-30)
        scaled = held.sub(mean + self.offset * deviation).div_(spread).clamp_(-CLIP, CLIP)
        missing = margin - scaled.mul_(self.signs).sum(1) / self.wide
        if missing.max() <= 0:
            self.rest = _REST
            return
        step = missing.clamp_(min=0.0) * (rate * spread / self.wide)
        moved = held.add_(self.signs * step[:, None])
        flat.index_copy_(0, self.index, moved.view(-1).to(flat.dtype))

    def _flat(self) -> Tensor:
        """View the tensor's storage as one row; `index` follows its memory order."""
        data = self.parameter.data
        if data.stride() != self.stride:
            self.stride = data.stride()
            entries = self.cells.layer.entries
            place = torch.arange(entries, device=data.device)
            if not data.is_contiguous():
                offsets = torch.zeros(entries, dtype=torch.int64, device=data.device)
                rest = place
                for size, step in zip(reversed(data.shape), reversed(self.stride), strict=True):
                    offsets += rest % size * step
                    rest = rest // size
                place = offsets
            positions = torch.from_numpy(self.cells.positions().reshape(-1)).to(data.device)
            self.index = place[positions]
        return data.as_strided((data.numel(),), (1,))


class DeepWaterMark(Mark):
    """The mark while it is being embedded: its loss is 0, its work is done after each step.

    Args:
        model: The model to mark.
        prepared: Cells and signs of each tensor.
        margins: Score that each tensor's bits are pushed to.
        rate: Part of the way that one step goes.

    Raises:
        CarrierError: The model lacks a tensor.
        KeyLayoutError: A tensor has another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        prepared: Sequence[Prepared],
        *,
        margins: Sequence[float],
        rate: float,
    ) -> None:
        self.margins, self.rate = margins, rate
        self.carriers = [
            _Carrier(parameter, cells, bits)
            for parameter, (cells, bits) in zip(_carriers(model, prepared), prepared, strict=True)
        ]
        self.steps = 0
        self._zero = torch.zeros(())

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return the number of steps so far."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take it back; what is measured of the weights is measured anew."""
        self.steps = int(state["steps"])
        for carrier in self.carriers:
            carrier.steps = carrier.rest = 0

    def loss(self) -> Tensor:
        """Return 0: the update does not pass through the optimizer."""
        return self._zero

    @torch.no_grad()
    def after_step(self, lr: float) -> None:  # noqa: ARG002 - the rate does not depend on it
        """Move every bit that falls short towards its margin; one step in eight goes eight ways."""
        self.steps += 1
        if self.steps % _EVERY:
            return
        for carrier, margin in zip(self.carriers, self.margins, strict=True):
            carrier.push(margin, 1 - (1 - self.rate) ** _EVERY)
