"""Put every forgery before the naive verifier that it fools and, ten thousand times, before ours.

    python benchmarks/forgeries.py --tries 10000 --only sign-fit

Rows: benchmarks/rows/forgeries.jsonl, one line a forgery and seed; a row that is there is not
measured again. A small CNN on 10,000 images of Fashion-MNIST is the victim; the forger holds 1,000
test images and three models of his own.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from earmark import registry
from earmark.bench import run
from earmark.bench.data import load
from earmark.bench.forgeries import stage_of
from earmark.bench.zoo import image_task
from earmark.training import train

SETTINGS = {"sign-fit": {"carrier": ("conv2.weight",), "per_bit": 48}}
ROWS = Path(__file__).parent / "rows" / "forgeries.jsonl"


def main() -> None:
    """Run the forgeries that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {(row["name"], row["seed"]) for row in rows}
    names = [name for name in registry.names("forgery") if name in args.only or not args.only]
    names = [name for name in names if (name, args.seed) not in done]
    if not names:
        return
    task = image_task(
        "small-cnn", load("fashion-mnist").subset(10_000, test=1000), recipe={"epochs": 3}
    )
    count = 4 if "transferable-triggers" in names else 1
    models = [train(task, seed=args.seed * 10 + index).model for index in range(count)]
    stage = stage_of(task, models[0], tuple(models[1:]))
    for name in names:
        cls, start = registry.load("forgery", name), time.process_time()
        found = cls(**SETTINGS.get(name, {})).run(stage, tries=args.tries, seed=args.seed)
        row = {
            **asdict(found),
            "best": round(found.best, 2),
            "fools": cls.fools,
            "source": cls.source,
            "seed": args.seed,
            "data": "fashion-mnist",
            "cpu_seconds": round(time.process_time() - start, 1),
            "machine": run.machine(),
            **run.versions(),
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
