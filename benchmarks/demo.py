"""Run the demo with several seeds and write one row a model.

python benchmarks/demo.py --seeds 7-9
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

import earmark
from earmark.demo.journey import run
from earmark.events import SILENT

ROWS = Path(__file__).parent / "rows" / "demo.jsonl"


def rows(seed: int) -> list[dict]:
    """Run one journey and return its rows."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        journey = run(Path(folder) / "demo", SILENT, seed=seed)
    seconds = time.perf_counter() - started
    return [
        {
            "benchmark": "demo",
            "data": journey.task.name,
            "seed": seed,
            "model": model.name,
            "kind": model.kind,
            "done": model.done,
            "utility": model.utility,
            "twin": journey.twin,
            "hits": model.evidence.hits,
            "trials": model.evidence.trials,
            "bits": model.verdict.bits,
            "outcome": model.verdict.outcome.value,
            "seconds": seconds,
            "versions": {"earmark": earmark.__version__, "torch": torch.__version__},
            "machine": f"{os.cpu_count()} cores {platform.machine()}",
        }
        for model in journey.models
    ]


def main() -> None:
    """Run seeds that have no rows yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="7-9")
    first, _, last = parser.parse_args().seeds.partition("-")
    known = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {json.loads(line)["seed"] for line in known}
    for seed in range(int(first), int(last or first) + 1):
        if seed in done:
            continue
        made = rows(seed)
        with ROWS.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
        print(seed, [(row["model"], row["utility"], row["bits"]) for row in made])


if __name__ == "__main__":
    main()
