"""What is needed to squeeze features together: answers, classes, a variance, norms at rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional

from earmark.hosts.batches import Tree

_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001 - the one base of all batch norms
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001 - as above
)


@contextmanager
def answering(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the latest scores of a classifier, (samples, classes), inside the block."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        scores = getattr(output, "logits", output)
        kept[:] = [scores] if isinstance(scores, Tensor) and scores.ndim == 2 else []

    handle = model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def classes_of(batch: Tree) -> Tensor | None:
    """Return a batch's targets if they are classes, one integer a sample."""
    targets = batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return None
    return targets


def within(features: Tensor, groups: Tensor, counted: Tensor) -> Tensor:
    """Return the variance within groups over the whole variance, of the samples counted as 1."""
    rows = features.float()
    member = functional.one_hot(groups) * counted[:, None]
    count = counted.sum().clamp(min=1)
    square = (counted @ rows.square()).sum() / count
    sums = member.T @ rows
    between = (sums.square().sum(1) / member.sum(0).clamp(min=1)).sum() / count
    whole = square - (sums.sum(0) / count).square().sum()
    return (square - between) / whole.clamp(min=1e-6)


@contextmanager
def frozen_norms(model: nn.Module) -> Iterator[None]:
    """Keep normalization layers from taking statistics inside the block."""
    modes = [(layer, layer.training) for layer in model.modules() if isinstance(layer, _NORMS)]
    for layer, _ in modes:
        layer.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
