"""Tables 4 and 5 of the paper, for the lock as published and for ours: transfer and overwriting.

python benchmarks/dsn_tables.py --lock paper-random --network small-cnn --seeds 0
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import earmark
from dsn import Bench, Row, _tuned, accuracy_of, lock_of, numbers_of
from earmark.bench import data as data_sets
from earmark.bench import zoo
from earmark.locks.entry import code_of

ROWS = Path(__file__).parent / "rows" / "dsn_tables.jsonl"


def overwrite(b: Bench, share: float) -> Row:
    """A licensee trains a number of his own into the copy, with a part of the data."""
    count = max(200, round(len(b.images.train) * share / 100))
    task = zoo.image_task(b.args.network, b.images.subset(count, test=10_000))
    theirs = random.Random(f"overwrite {b.seed}").randbytes(16)
    lock = lock_of(b.args.lock, 5)
    opened = b.lock.opened(copy.deepcopy(b.model), b.layout, b.serial)
    model = lock.fit(
        task, opened, theirs, layout=b.layout, seed=b.seed, model=copy.deepcopy(b.model)
    )
    entry = lock.entry(b.layout, theirs)
    code = code_of(theirs, len(b.code))
    return {
        "what": "table 5, overwriting",
        "share": share,
        "absent": accuracy_of(model, b.entry, b.x, b.y, None),
        "first_number": accuracy_of(model, b.entry, b.x, b.y, b.code),
        "new_number": accuracy_of(model, entry, b.x, b.y, code),
    }


def transfer(b: Bench, share: float) -> Iterator[Row]:
    """A thief keeps the body, replaces the dense layers, and tunes on another task."""
    other = data_sets.load("mnist").subset(b.args.images, test=5_000)
    x, y = other.inputs("test"), other.test_labels
    count = max(20, round(len(other.train) * share / 100))
    for way in ("scratch", "stolen"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(b.seed)
            model = b.task.model() if way == "scratch" else copy.deepcopy(b.model)
            dense = [m for m in model.modules() if isinstance(m, nn.Linear)]
            for layer in dense[-2:]:
                layer.reset_parameters()
            own, b.images = b.images, other
            _tuned(model, b, count, rate=1e-3)
            b.images = own
        yield {
            "what": "table 4, transfer to mnist",
            "share": share,
            "way": way,
            "accuracy": accuracy_of(model, b.entry, x, y, None),
        }


def run(args: argparse.Namespace) -> None:
    finished = set()
    if ROWS.exists():
        rows = (json.loads(text) for text in ROWS.read_text().splitlines())
        finished = {(r["lock"], r["network"], r["seed"]) for r in rows}
    for seed in args.seeds:
        if (args.lock, args.network, seed) in finished:
            continue
        started, b = time.perf_counter(), Bench(args, seed)
        made = []
        for share in args.shares:
            made += [overwrite(b, share), *transfer(b, share)]
            print(json.dumps(made[-3:]), flush=True)
        head = {
            "benchmark": "dsn_tables",
            "lock": args.lock,
            "network": args.network,
            "data": args.data,
            "images_trained": args.images,
            "seed": seed,
        }
        tail = {
            "seconds": round(time.perf_counter() - started, 1),
            "versions": {"earmark": earmark.__version__, "torch": torch.__version__},
            "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        }
        with ROWS.open("a") as file:
            file.writelines(json.dumps(head | row | tail) + "\n" for row in made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", default="dsn", choices=("dsn", "paper-raw", "paper-random"))
    parser.add_argument("--network", default="small-cnn", choices=zoo.NETWORKS)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seeds", type=numbers_of, default=[0])
    parser.add_argument("--shares", type=lambda text: [float(s) for s in text.split(",")])
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "earmark-dsn"))
    parser.set_defaults(shares=[10.0, 40.0])
    torch.set_num_threads(1)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
