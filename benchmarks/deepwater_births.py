"""Does being born with the mark cost accuracy? Very many short trainings, with and without it.

By its law, an initialization that bears the mark is one initialization among others. Networks of
five seeds differ by more than a cost that matters; this asks hundreds, trained so briefly that a
worse start would show.

    python benchmarks/deepwater_births.py --models 400

Finished rows never run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import earmark
from deepwater import SCHEME, recipe_of
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.schemes.embedding import embed, fresh_model
from earmark.training import train

ROWS = Path(__file__).parent / "rows" / "deepwater_births.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--models", type=int, default=400, help="of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = {key: getattr(args, key) for key in ("network", "data", "samples", "epochs", "models")}
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    if any(all(row[key] == about[key] for key in about) for row in map(json.loads, lines)):
        return
    data = load(args.data)
    data = data.subset(args.samples, test=2000) if args.samples else data
    recipe = recipe_of(args.network, args.data, args.epochs)
    task = image_task(args.network, data, recipe=recipe, batch=64)
    found: dict[str, list[float]] = {"unmarked": [], "marked": []}
    wrong = 0
    started = time.process_time()
    for i in range(args.models):
        found["unmarked"].append(task.evaluate(train(task, seed=i).model))
        seed = 100_000 + i
        secret = (seed + 1).to_bytes(32, "big")
        key = SCHEME.new_key(task.host(fresh_model(task, seed)), secret=secret)
        model = embed(task, SCHEME, key, seed=seed).model
        found["marked"].append(task.evaluate(model))
        evidence = SCHEME.measure(task.host(model), key)
        wrong += evidence.trials - evidence.hits
    row: dict[str, Any] = about | {
        "mean": {kind: round(statistics.mean(values), 3) for kind, values in found.items()},
        "deviation": {kind: round(statistics.stdev(values), 3) for kind, values in found.items()},
        "median": {kind: round(statistics.median(values), 3) for kind, values in found.items()},
        "wrong_bits": wrong,
        "seconds": round(time.process_time() - started, 1),
        "earmark": earmark.__version__,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
    }
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    main()
