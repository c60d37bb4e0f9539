"""A short, seeded run of the coverage-guided fuzzer over every reader of strangers' bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")


@pytest.mark.parametrize(
    "runs", [5_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["short", "nightly"]
)
def test_no_reader_fails_or_accepts_two_forms(runs, tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "fuzz"
    done = subprocess.run(
        [sys.executable, str(script), str(runs)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} in" in done.stderr
