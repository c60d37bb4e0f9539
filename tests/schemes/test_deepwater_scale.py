"""A checkpoint the size of a real language model: bounded memory, and no more work than hashing."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAYER, ENDS = 405_000_000, 525_000_000  # bytes, in bf16
ALL = 34  # layers of seven billion parameters
MIB = 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stamping_and_verifying_seven_billion_parameters_takes_little_memory(tmp_path, monkeypatch):
    """Two copies of the checkpoint lie on the disk; a small disk gets fewer layers."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    scale = importlib.import_module("deepwater_scale")
    room = 0.8 * shutil.disk_usage(tmp_path).free / 2 - ENDS
    layers = min(ALL, int(room / LAYER))
    if layers < 1:
        pytest.skip("The disk has no room for a checkpoint of one layer.")
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    try:
        written = scale.phase("write", scale.write, plain, layers)["write_parameters"]
        stamped = scale.phase("stamp", scale.stamp, plain, marked)
        unmarked = scale.phase("verify", scale.verify, plain)
        scale.forget(marked)
        hashed = scale.phase("digest", scale.digest, marked)
        scale.forget(marked)
        verified = scale.phase("verify", scale.verify, marked)
    finally:
        shutil.rmtree(plain, ignore_errors=True)
        shutil.rmtree(marked, ignore_errors=True)
    assert layers < ALL or written > 7e9
    assert max(stamped["stamp_peak_mib"], verified["verify_peak_mib"]) < MIB
    assert verified["verify_hits"] == verified["verify_trials"]
    assert verified["verify_bits"] > 1000
    assert unmarked["verify_bits"] < 20
    assert verified["verify_cpu_seconds"] < 1.5 * hashed["digest_cpu_seconds"]
