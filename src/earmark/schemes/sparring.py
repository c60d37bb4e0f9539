"""A sparring partner: an attacker's copy of the weights, some steps ahead of the training.

While a mark is embedded, the partner works against it on weights of his own, and the mark's
gradient where he has come to is added to the training's. So the network moves to where the attack
leads to places that still bear the mark. This is a first-order rehearsal of the attack: how his
steps depend on the weights they began at is left out.

Source:
    Finn, Abbeel and Levine 2017, first-order; Tamirisa et al. 2024 use the same against tuning
    that takes safeguards out of language models. Ours: the attack is the collapse of features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from earmark.errors import UsageError

_RATE, _MOMENTUM, _DECAY, _CLIP = 0.03, 0.9, 5e-4, 5.0
_BOUT = 40


class Partner:
    """Weights that an attacker works on while a model is trained.

    Layers that change a buffer in place and use it in the same pass, other than batch norms, cannot
    spar: autograd refuses them.

    Args:
        model: The model in training.
        weight: Largest norm of what :meth:`term` adds to the training's gradient.

    Raises:
        UsageError: The model is wrapped for several processes.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        if isinstance(model, DistributedDataParallel):
            raise UsageError(
                "A sparring partner does not work across processes.",
                hint="Set spar=0, or train in one process.",
            )
        self._model, self._weight = model, weight
        self._weights: list[Tensor] = []
        self._speed: list[Tensor] = []
        self._step = 0

    def term(self, attack: Callable[[], Tensor], mark: Callable[[], Tensor]) -> Tensor:
        """Let the partner take a step, and return a term with the mark's gradient at his place.

        Every 40 steps he begins anew at the model's own weights.

        Args:
            attack: Runs the model and returns what the attacker makes smaller.
            mark: Runs the model and returns what the mark makes smaller.

        Returns:
            A scalar of value 0 whose gradient is the mark's, no longer than the weight. It is 0,
            and the partner begins anew, where a slope is not finite.
        """
        own = [item for item in self._model.parameters() if item.requires_grad]
        if self._step % _BOUT == 0 or [v.shape for v in self._speed] != [p.shape for p in own]:
            self._weights = [item.detach().clone() for item in self._tensors()]
            self._speed = [torch.zeros_like(item) for item in own]
        self._step += 1
        with self._in_place(), torch.enable_grad():
            self._attack(own, torch.autograd.grad(attack(), own, allow_unused=True))
            found = torch.autograd.grad(mark(), own, allow_unused=True)
        pairs = [(one, two) for one, two in zip(own, found, strict=True) if two is not None]
        length = _length([two for _, two in pairs])
        if not math.isfinite(length):
            self._step = 0
            return torch.zeros((), device=own[0].device)
        term = torch.stack([(one * two).sum() for one, two in pairs]).sum()
        return (term - term.detach()) * (self._weight / max(1.0, length))

    def state_dict(self) -> dict[str, Any]:  # Any: tensors and plain values
        """Return how far the partner has come."""
        return {"step": self._step, "weights": self._weights, "speed": self._speed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Go on from there."""
        self._step = int(state["step"])
        where = next(self._model.parameters()).device
        self._weights, self._speed = (
            [item.to(where) for item in state[name]] for name in ("weights", "speed")
        )

    def _attack(self, own: list[nn.Parameter], slopes: tuple[Tensor | None, ...]) -> None:
        """Take one step of SGD with momentum on what is in place."""
        length = _length([item for item in slopes if item is not None])
        if not math.isfinite(length):
            self._step = 0
            return
        shrink = min(1.0, _CLIP / (length + 1e-6))
        for item, slope, speed in zip(own, slopes, self._speed, strict=True):
            if slope is None:
                continue
            push = slope * shrink + _DECAY * item.data
            speed.mul_(_MOMENTUM).add_(push)
            item.data.add_(push + _MOMENTUM * speed, alpha=-_RATE)

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the partner's tensors where the model's are, inside the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        torch.clear_autocast_cache()  # it knows weights by their name, not by what they hold
        for item, other in zip(self._tensors(), self._weights, strict=True):
            item.data, other.data = other.data, item.data


def _length(slopes: list[Tensor]) -> float:
    return float(torch.stack([item.norm() for item in slopes]).norm())
