"""The demo's task file: copy it and put your own model, data and loss in its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from earmark.bench import zoo
from earmark.bench.data import load

DATA = "fashion-mnist"
EPOCHS, LR = (20, 0.05) if DATA == "digits" else (4, 0.1)

data = load(DATA)
name = f"small CNN on {data.name}"
recipe: dict[str, Any] = {"epochs": EPOCHS, "lr": LR}  # Any: fields of Recipe
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
