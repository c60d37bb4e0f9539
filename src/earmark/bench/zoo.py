"""Small networks for benchmarks, demos and tests, and the tasks they make with a data set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.bench.data import Images, load
from earmark.errors import UnknownNameError
from earmark.hosts import batches, taps
from earmark.task import Task


class SmallCnn(nn.Module):
    """Three convolutions with batch norm and pooling, one hidden layer, a head.

    Args:
        shape: Channels, height, width of an image.
        classes: Number of classes.
        width: Channels of the first convolution; the others have two and four times as many.
        hidden: Units of the hidden layer.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, width: int = 16, hidden: int = 128
    ) -> None:
        super().__init__()
        channels, height, _ = shape
        small = height < 16
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, stride=1 if small else 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        side = (height if small else -(-height // 2)) // 2 // 2
        self.fc = nn.Linear(4 * width * side * side, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores, (samples, classes)."""
        found = functional.relu(self.bn1(self.conv1(inputs)))
        found = functional.max_pool2d(functional.relu(self.bn2(self.conv2(found))), 2)
        found = functional.max_pool2d(functional.relu(self.bn3(self.conv3(found))), 2)
        found = functional.relu(self.fc(found.flatten(1)))
        scores: Tensor = self.head(found)
        return scores


class Mlp(nn.Module):
    """Two hidden layers with ReLU."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, hidden: int = 512) -> None:
        super().__init__()
        channels, height, width = shape
        self.fc1 = nn.Linear(channels * height * width, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores, (samples, classes)."""
        found = functional.relu(self.fc1(inputs.flatten(1)))
        scores: Tensor = self.head(functional.relu(self.fc2(found)))
        return scores


class Block(nn.Module):
    """A residual block of two 3x3 convolutions with batch norm."""

    def __init__(self, inner: int, outer: int, *, halve: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.short = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1, bias=False)
        self.halve = halve

    def forward(self, inputs: Tensor) -> Tensor:
        """Return feature maps; pooled by two if the block halves."""
        given = functional.avg_pool2d(inputs, 2) if self.halve else inputs
        found = functional.relu(self.bn1(self.conv1(given)))
        return functional.relu(self.bn2(self.conv2(found)) + self.short(given))


class ResNet(nn.Module):
    """A residual network with three stages, batch norm and pooling instead of strides.

    Args:
        shape: Channels, height, width of an image.
        classes: Number of classes.
        blocks: Blocks a stage; 1 gives eight layers, 3 gives twenty.
        width: Channels of the first stage.
        stride: Stride of the first convolution.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        blocks: int = 1,
        width: int = 16,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(shape[0], width, 3, padding=1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        inner = width
        for stage in range(3):
            outer = width << stage
            for i in range(blocks):
                stages.append(Block(inner, outer, halve=stage > 0 and i == 0))
                inner = outer
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inner, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores, (samples, classes)."""
        found = self.stages(functional.relu(self.bn(self.stem(inputs))))
        scores: Tensor = self.head(found.mean(dim=(2, 3)))
        return scores


class Vgg(nn.Module):
    """Plain convolutions without batch norm, in pairs, then two dense layers."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 32) -> None:
        super().__init__()
        channels, height, _ = shape
        sizes = [channels, width, width, 2 * width, 2 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, padding=1) for inner, outer in itertools.pairwise(sizes)
        )
        self.fc = nn.Linear(2 * width * (height // 4) ** 2, 256)
        self.head = nn.Linear(256, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores, (samples, classes)."""
        found = inputs
        for i, conv in enumerate(self.convs):
            found = functional.relu(conv(found))
            if i % 2:
                found = functional.max_pool2d(found, 2)
        scores: Tensor = self.head(functional.relu(self.fc(found.flatten(1))))
        return scores


NETWORKS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "mlp": Mlp,
    "small-cnn": SmallCnn,
    "cnn-wide": lambda shape, classes: SmallCnn(shape, classes, width=32, hidden=256),
    "resnet8": ResNet,
    "resnet8-small": lambda shape, classes: ResNet(shape, classes, stride=2),
    "resnet8-wide": lambda shape, classes: ResNet(shape, classes, stride=2, width=32),
    "resnet20": lambda shape, classes: ResNet(shape, classes, blocks=3),
    "vgg": Vgg,
}

_RECIPES: dict[str, dict[str, Any]] = {  # Any: fields of Recipe
    "mlp": {"epochs": 5, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 1e-4},
    "vgg": {"epochs": 3, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 1e-4},
}


def accuracy(model: nn.Module, stream: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return top-1 accuracy in percent, in evaluation mode."""
    right = total = 0
    with taps.frozen_forward(model):
        for inputs, labels in stream:
            right += int((model(inputs).argmax(1) == labels).sum())
            total += len(labels)
    return 100.0 * right / max(1, total)


def cross_entropy(model: nn.Module, batch: batches.Tree) -> Tensor:
    """Return the cross-entropy of a classifier on a batch of (inputs, labels)."""
    inputs, labels = batch
    return functional.cross_entropy(model(inputs), labels)


def image_task(
    network: str,
    data: Images | str,
    *,
    batch: int = 128,
    recipe: Mapping[str, Any] | None = None,  # Any: fields of Recipe
) -> Task:
    """Return the task of training a network of this zoo on images.

    Args:
        network: A name from :data:`NETWORKS`.
        data: A data set or its name.
        batch: Batch size.
        recipe: Changes to the network's usual training settings.

    Raises:
        UnknownNameError: No such network or data set.
        FileError: The data set is not on this machine.
    """
    if network not in NETWORKS:
        raise UnknownNameError(
            f"There is no network called '{network}'.", expected=f"Known: {', '.join(NETWORKS)}."
        )
    images = load(data) if isinstance(data, str) else data
    usual: dict[str, Any] = {"epochs": 3, "lr": 0.1}  # Any: fields of Recipe
    usual |= _RECIPES.get(network, {})
    return Task(
        model=lambda: _channels_last(NETWORKS[network](images.shape, images.classes)),
        loss=cross_entropy,
        batches=lambda split, seed=0: images.batches(split, size=batch, seed=seed),
        evaluate=lambda model: accuracy(model, images.batches("test", size=1000, seed=0)),
        recipe=usual | dict(recipe or {}),
        name=f"{network}/{images.name}",
    )


def _channels_last(model: nn.Module) -> nn.Module:
    """Return the model with its convolutions in the memory order that CPUs like best."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def tiny_hosts(seed: int = 0) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return three tiny random models with matching inputs, for conformance tests.

    Returns:
        Name to (model in evaluation mode, 256 inputs).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: dict[str, tuple[nn.Module, Tensor]] = {
            "mlp": (Mlp((1, 8, 8), 10, hidden=32), torch.randn(256, 1, 8, 8)),
            "cnn": (SmallCnn((1, 8, 8), 10, width=8, hidden=32), torch.randn(256, 1, 8, 8)),
            "transformer": (TinyTransformer(), torch.randint(0, 50, (256, 12))),
        }
    for model, _ in made.values():
        model.eval()
    return made


class TinyTransformer(nn.Module):
    """A two-layer transformer encoder that classifies token sequences."""

    def __init__(
        self, *, words: int = 50, width: int = 32, classes: int = 4, steps: int = 12
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(steps, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return class scores, (samples, classes)."""
        found = self.encoder(self.embed(tokens) + self.place[: tokens.shape[1]])
        scores: Tensor = self.head(found.mean(dim=1))
        return scores
