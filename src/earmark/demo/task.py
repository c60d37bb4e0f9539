"""The demo's task file: copy it and put your own model, data and loss in its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from earmark.bench import zoo
from earmark.bench.data import Images, load
from earmark.errors import FileError

try:
    data: Images = load("fashion-mnist")
    recipe: dict[str, Any] = {"epochs": 4, "lr": 0.1}  # Any: fields of Recipe
except FileError:
    data = load("digits")
    recipe = {"epochs": 20, "lr": 0.05}

name = f"small CNN on {data.name}"
_work = zoo.image_task("small-cnn", data)


def model() -> nn.Module:
    """Return a fresh, untrained model."""
    return _work.model()


def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the training loss of a model on a batch, a scalar."""
    return zoo.cross_entropy(network, batch)


def batches(split: str, seed: int = 0) -> Iterable[tuple[Tensor, Tensor]]:
    """Return the batches of "train" or "test"; the seed shuffles."""
    return _work.batches(split, seed=seed)


def evaluate(network: nn.Module) -> float:
    """Return the utility in percent: here test accuracy."""
    return _work.evaluate(network)
