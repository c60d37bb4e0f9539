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

# Where the minutes go, longest first: what is long must not come last, with one worker idle.
LONG = (
    "cli/test_demo.py",
    "bench/test_executor.py",
    "docs/test_docs.py",
    "test_conformance.py",
    "cli/test_journey.py",
    "attacks/test_teeth.py",
    "protocol/test_tiers.py",
    "locks/test_dsn.py",
    "hosts/test_align.py",
    "schemes/test_mtlsign.py",
    "schemes/test_deepwater.py",
    "bench/test_forgeries.py",
    "locks/test_commands.py",
    "schemes/test_deepsigns.py",
    "protocol/test_sandbox.py",
    "protocol/test_community.py",
    "test_training.py",
    "report/test_dossier.py",
    "cli/test_attack.py",
    "schemes/test_conceal.py",
    "ledger/test_postgres.py",
    "ledger/evm/test_contract.py",
    "schemes/test_deepsigns_blackbox.py",
    "cli/test_service.py",
    "test_fuzz.py",
    "test_testing.py",
    "ledger/test_crash.py",
    "web/test_browser.py",
)
FASHION = Path("/usr/share/datasets/fashion-mnist")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; the others stay in their order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


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
