"""Fixtures that many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from earmark.bench import zoo
from earmark.bench.data import load
from earmark.task import Task

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")  # look further with --hypothesis-profile default

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="session")
def digits_task() -> Task:
    """A small CNN on 8x8 digits, trained in a second or two."""
    return zoo.image_task("small-cnn", load("digits"), recipe={"epochs": 4, "lr": 0.05})


@pytest.fixture(scope="session")
def fashion() -> Task:
    """The demo's task; skipped with a clear reason where the data set is missing."""
    if not FASHION.is_dir():
        pytest.skip("Fashion-MNIST is not on this machine (apt-get install dataset-fashion-mnist)")
    return zoo.image_task("small-cnn", "fashion-mnist")
