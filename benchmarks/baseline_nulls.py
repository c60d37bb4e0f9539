"""How often the baselines' published rules accuse unmarked models, beside the exact test.

    python benchmarks/baseline_nulls.py --keys 2000

Rows: benchmarks/rows/baseline_nulls.jsonl, one line a baseline and rule. Unmarked models are small
CNNs on parts of Fashion-MNIST. Published rules: Uchida, every bit of a layer right; DeepMarks, the
customer whose word correlates most is named; Adi, more right answers than a normal fit to unmarked
models lets pass in 1 of 20 (the calibration of Lukas et al. 2022, on other models than are judged).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from earmark import policy, registry
from earmark.bench import run
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.records import Outcome
from earmark.schemes.deepmarks import DeepMarks
from earmark.schemes.embedding import fresh_model
from earmark.training import train

ROWS = Path(__file__).parent / "rows" / "baseline_nulls.jsonl"


def accusations(name: str, hosts: list[Any], keys: list[Any]) -> dict[str, Any]:  # Any: rows
    """Count what the published rule and the exact test say of unmarked models."""
    scheme = registry.scheme(name)
    shown, published, best = [], [], 0.0
    counts = []
    for host in hosts:
        seen = [scheme.measure(host, key) for key in keys]
        shown.append(sum(policy.judge(item).outcome is Outcome.SHOWN for item in seen))
        best = max(best, *(-policy.log2_p(item) for item in seen))
        counts.append([item.hits for item in seen])
        if name == "uchida":
            layers = [layer for item in seen for layer in item.details["layers"].values()]
            published.append(
                sum(layer["hits"] == layer["trials"] for layer in layers) / len(layers)
            )
        elif name == "deepmarks":
            named = [int(DeepMarks().correlations(host, key).argmax()) for key in keys]
            published.append(sum(user >= 0 for user in named) / len(named))
    if name == "adi":
        half = len(hosts) // 2
        pool = [count for row in counts[:half] for count in row]
        limit = statistics.mean(pool) + 1.6449 * statistics.pstdev(pool)
        published = [sum(count > limit for count in row) / len(row) for row in counts[half:]]
    return {
        "published_rate": [round(rate, 5) for rate in published],
        "exact_accusations": sum(shown),
        "measured": len(hosts) * len(keys),
        "best_bits": round(best, 2),
        "expected_best": round(math.log2(len(hosts) * len(keys)), 2),
    }


def main() -> None:
    """Measure the baselines that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument("--models", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    done = ROWS.exists() and [json.loads(line)["scheme"] for line in ROWS.read_text().splitlines()]
    task = image_task(
        "small-cnn", load("fashion-mnist").subset(5000, test=1000), recipe={"epochs": 2}
    )
    hosts = [task.host(train(task, seed=seed).model) for seed in range(args.models)]
    blank = task.host(fresh_model(task, 0).eval())
    inputs = next(iter(task.stream("test", 0)))
    for name in ("uchida", "deepmarks", "adi"):
        if done and name in done:
            continue
        start = time.process_time()
        keys = [
            registry.scheme(name).new_key(
                blank, inputs=inputs, secret=hashlib.sha256(f"null/{index}".encode()).digest()
            )
            for index in range(args.keys)
        ]
        row = {"scheme": name, **accusations(name, hosts, keys), "keys": args.keys,
               "models": args.models, "cpu_seconds": round(time.process_time() - start, 1),
               "machine": run.machine(), **run.versions()}  # fmt: skip
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
