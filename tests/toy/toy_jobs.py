"""Cells as jobs for the executors' tests: importable by worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from earmark.bench.plan import Plan
from earmark.bench.run import measure, run_cells


def slow_pair(pair):
    """Run a cell slowly and note that it was run."""
    subject, cell = pair
    time.sleep(0.4)
    with (Path(subject.folder) / "ran").open("a") as file:
        file.write(cell.digest() + "\n")
    return measure(subject.open(), cell)


def killed_once(pair):
    """Run a cell; the first worker that comes to the fourth attack is killed in the middle."""
    subject, cell = pair
    flag = Path(subject.folder) / "killed"
    if cell.label().startswith("permute") and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(subject.open(), cell)


GREEDY = {"name": "deepwater", "carrier": ["nothing.*"]}

PLAN = {
    "name": "test",
    "schemes": [{"name": "deepwater", "weights_per_bit": 256, "most_bits": 256}],
    "networks": ["small-cnn"],
    "data": ["digits"],
    "samples": 300,
    "recipe": {"epochs": 1},
    "attacks": ["none", "prune:80", "noise:30", "permute", "quantize:int4", "cast:bf16"],
}


def main(folder):
    """Run the plan on two processes, slowly; for the test that interrupts it."""
    import earmark.bench.run as running
    from earmark.bench.executor import Processes

    running.run_pair = slow_pair
    run_cells(Plan.of(PLAN).cells(folder), Path(folder) / "rows.jsonl", executor=Processes(2))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import toy_jobs

    try:
        toy_jobs.main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
