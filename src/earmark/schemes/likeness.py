"""Keep a marked network's weights looking like those of an unmarked one.

Random labels take room: the layers that hold them grow, and whoever has seen a few unmarked
networks of the same build and training sees it in the variance of their weights. The owner can
train one more network without the mark, keep it to himself, and hold the marked one to its weights'
law while the mark is embedded. What is left, exact rescaling removes
(:func:`earmark.attacks.obfuscate.resemble`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from earmark.errors import HostError
from earmark.hosts.batches import Tree
from earmark.schemes.base import Mark

_TINY = 1e-12
_SMALL = 0.1


class Likeness(Mark):
    """A mark with a term that holds the weights to the law of another network's.

    For each parameter, sorted values are compared with the other's sorted values, and for
    matrices and kernels so are the deviations of rows and of columns. The order of the units does
    not matter. The term grows as the learning rate falls from its peak.

    Args:
        mark: The mark.
        model: The model that is trained.
        like: A network of the same build, trained in the same way without the mark.
        force: Weight of the term at its largest.
        every: Steps from one use of the term to the next; it is so much stronger then.

    Raises:
        HostError: The two networks differ in their parameters.

    Example:
        >>> from earmark.schemes.likeness import gap
        >>> gap(torch.eye(3), torch.eye(3)[[2, 0, 1]]).item()
        0.0
    """

    def __init__(
        self, mark: Mark, model: nn.Module, like: nn.Module, *, force: float = 30.0, every: int = 4
    ) -> None:
        ours = {name: value.shape for name, value in model.named_parameters()}
        theirs = {name: value.detach().clone() for name, value in like.named_parameters()}
        if ours != {name: value.shape for name, value in theirs.items()}:
            raise HostError(
                "The network to resemble has other parameters.",
                hint="Train one of the same build, without the mark.",
            )
        self._mark, self._model, self._like = mark, model, theirs
        self._force, self._every = force, every
        self._step, self._lr, self._peak = 0, 0.0, 0.0

    def mix(self, batch: Tree) -> Tree:
        """Return the batch as the mark mixes it."""
        return self._mark.mix(batch)

    def loss(self) -> Tensor:
        """Return the mark's term and, now and then, that of the likeness."""
        total = self._mark.loss()
        self._step += 1
        late = 1 - self._lr / self._peak if self._peak else 0.0
        if self._step % self._every or not late * self._force > 0:
            return total
        gaps = [gap(value, self._like[name]) for name, value in self._model.named_parameters()]
        return total + self._every * self._force * late * torch.stack(gaps).mean()

    def after_step(self, lr: float) -> None:
        """Follow the learning rate."""
        self._lr, self._peak = lr, max(lr, self._peak)
        self._mark.after_step(lr)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the mark's own parameters."""
        return self._mark.parameters()

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values and the mark's own
        """Return what a resumed training needs."""
        own = {"step": self._step, "lr": self._lr, "peak": self._peak}
        return {"mark": self._mark.state_dict(), "likeness": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take it back."""
        if state:
            own = state["likeness"]
            self._step, self._lr, self._peak = own["step"], own["lr"], own["peak"]
            self._mark.load_state_dict(state["mark"])


def gap(value: Tensor, like: Tensor) -> Tensor:
    """Return how far a parameter's law is from another's: 0 for the same values in any order.

    Args:
        value: A parameter of any shape.
        like: One of the same shape.
    """
    least = _SMALL if value.ndim == 1 else _TINY  # a few small biases must not rule the step
    found = [
        (mine - his).square().mean() / his.square().mean().clamp(min=least)
        for mine, his in zip(_law(value), _law(like.to(value.device)), strict=True)
    ]
    return torch.stack(found).mean()


def _law(value: Tensor) -> list[Tensor]:
    """Return what is compared: sorted values, and sorted deviations of rows and columns."""
    found = [value.flatten().sort().values]
    if value.ndim > 1:
        rows = value.flatten(1)
        both = (rows.std(dim=1, correction=0), rows.std(dim=0, correction=0))
        found += [one.sort().values for one in both]
    return found
