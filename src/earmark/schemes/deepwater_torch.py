"""Deep Water while a torch module is being trained: the decoupled update of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from earmark.errors import CarrierError, KeyLayoutError
from earmark.hosts.access import Forward, Tree, plain_forward
from earmark.schemes import cells as cells_of
from earmark.schemes.base import Mark
from earmark.schemes.cells import CLIP

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from earmark.schemes.cells import Cells

_RENEW = 12
_EVERY = 4


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


class _Carrier:
    """One tensor of the model with its cells."""

    def __init__(self, parameter: Tensor, cells: Cells, bits: NDArray[np.int8]) -> None:
        self.parameter = parameter
        self.cells = cells
        self.wide = math.sqrt(cells.layer.weights)
        signs = torch.from_numpy(cells.pattern() * bits[:, None])
        self.signs = signs.to(parameter.device, torch.float32)
        self.steps = 0
        self.offset, self.part = 0.0, 1.0
        self.stride: tuple[int, ...] = ()
        self.index = torch.empty(0)

    def push(self, margin: float, rate: float, *, pin: bool) -> None:
        """Move every cell's score towards the margin by `rate` of what is missing.

        If pinned, the spread of the weights stays what it was.
        """
        flat = self._flat()
        held = flat[self.index].float().view(self.signs.shape)
        if self.steps % _RENEW == 0:  # it changes slowly, and medians are dear
            self.offset, self.part = cells_of.bulk(held.detach().cpu().numpy())
        self.steps += 1
        deviation, mean = torch.std_mean(held)
        spread = (deviation * self.part).clamp_(min=1e-30)
        scaled = held.sub(mean + self.offset * deviation).div_(spread).clamp_(-CLIP, CLIP)
        z = scaled.mul_(self.signs).sum(1) / self.wide
        step = (margin - z).clamp_(min=0.0) * (rate * spread / self.wide)
        moved = held.add_(self.signs * step[:, None])
        if pin:
            wider, middle = torch.std_mean(moved)
            moved = moved.sub_(middle).mul_(deviation / wider.clamp(min=1e-30)).add_(mean)
        flat.index_copy_(0, self.index, moved.view(-1).to(flat.dtype))

    def pin(self) -> None:
        """Give the cells' weights the shape of histogram that they have without their mark."""
        flat = self._flat()
        held = flat[self.index].float()
        cells = held.view(self.signs.shape)
        along = ((cells - cells.mean()) * self.signs).mean(1, keepdim=True)
        natural = (cells - along * self.signs).view(-1).sort().values
        (spread, middle), (wanted, mean) = torch.std_mean(natural), torch.std_mean(held)
        natural = (natural - middle) * (wanted / spread.clamp(min=1e-30)) + mean
        pinned = torch.empty_like(held)
        pinned[held.argsort()] = natural
        flat.index_copy_(0, self.index, pinned.to(flat.dtype))

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
        margin: Score that each bit is pushed to.
        rate: Part of the way that one step goes.
        pin: Whether the histogram is to stay as it is without the mark.

    Raises:
        CarrierError: The model lacks a tensor.
        KeyLayoutError: A tensor has another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        prepared: Sequence[tuple[Cells, NDArray[np.int8]]],
        *,
        margin: float,
        rate: float,
        pin: bool = False,
    ) -> None:
        self.margin, self.rate, self.pin = margin, rate, pin
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.carriers = []
        for cells, bits in prepared:
            name, shape = cells.layer.name, cells.layer.shape
            if name not in parameters:
                raise CarrierError(f"The model lacks the key's tensor '{name}' {shape}.")
            parameter = parameters[name]
            if tuple(parameter.shape) != shape:
                raise KeyLayoutError(
                    f"Tensor '{name}' has shape {tuple(parameter.shape)}; the key was made for "
                    f"{shape}.",
                    hint="Make a key for this model.",
                )
            self.carriers.append(_Carrier(parameter, cells, bits))
        self.steps = 0
        self._zero = torch.zeros(())

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return the number of steps so far."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take it back; what is measured of the weights is measured anew."""
        self.steps = int(state["steps"])
        for carrier in self.carriers:
            carrier.steps = 0

    def loss(self) -> Tensor:
        """Return 0: the update does not pass through the optimizer."""
        return self._zero

    @torch.no_grad()
    def after_step(self, lr: float) -> None:  # noqa: ARG002 - the rate does not depend on it
        """Move every bit a part of the way to its margin; every fourth step goes four ways."""
        self.steps += 1
        if self.steps % _EVERY:
            return
        for carrier in self.carriers:
            if self.pin and carrier.steps % _RENEW == _RENEW - 1:
                carrier.pin()
            carrier.push(self.margin, 1 - (1 - self.rate) ** _EVERY, pin=self.pin)

    @torch.no_grad()
    def finish(self) -> None:
        """Bring every bit to its margin."""
        for carrier in self.carriers:
            for _ in range(3):
                carrier.steps = 0
                carrier.push(self.margin, 1.0, pin=self.pin)
                if self.pin:
                    carrier.pin()
