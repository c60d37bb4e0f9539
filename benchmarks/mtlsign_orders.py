"""Measure how far the judge's order moves the bits, and what an average over orders would read.

Hits of one order are Binomial(n, 1/2) for a model made without the labels. Hits averaged over R
orders are not binomial, but exp is convex: E exp(t * mean) <= mean of E exp(t * hits), whatever
ties the orders together (Hoeffding 1963, section 5). So Chernoff's bound holds for the average as
for one order: P(average >= n * q) <= 2 ** (-n * (1 - H(q))).

    python benchmarks/mtlsign_orders.py --seeds 0-4
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earmark import stats
from earmark.schemes.mtlsign import tally
from mtlsign import Cell, attacks, read, seeds, versions

ROWS = Path(__file__).parent / "rows" / "mtlsign_orders.jsonl"
ATTACKS = ("noise-10", "dummies", "dummies-zero")


def averaged_bits(rate: float, trials: int) -> float:
    """Return bits of an average rate of hits over any number of orders: a bound, not a tail.

    Example:
        >>> averaged_bits(1.0, 64)
        64.0
        >>> averaged_bits(0.4, 64)
        0.0
    """
    if rate <= 0.5:
        return 0.0
    loss = sum(-q * math.log2(q) for q in (rate, 1 - rate) if q > 0)
    return trials * (1 - loss)


def orders(cell: Cell, model: nn.Module, count: int) -> dict[str, Any]:
    """Return what one model shows in so many orders, the hard count alone."""
    found = cell.task.host(model).features(cell.key.inputs, cell.key.layout.carrier)
    hits, trials = [], 0
    for i in range(count):
        salt = hashlib.sha256(f"order/{i}".encode()).hexdigest()
        total, _ = tally(cell.key.layout, cell.key.shards, found, (salt, salt))
        hits.append(int(total.hits[0]))
        trials = total.trials
    bits = [-stats.log2_binomial_tail(some, trials, Fraction(1, 2)) for some in hits]
    return {
        "carrier": cell.key.layout.carrier,
        "hits": hits,
        "trials": trials,
        "bits": [round(some, 1) for some in bits],
        "averaged": round(averaged_bits(statistics.mean(hits) / trials, trials), 1),
        "best_charged": round(max(bits) - math.log2(count), 1),
    }


def main() -> None:
    """Read the command line and write rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--network", default="resnet8-small")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=seeds, default=seeds("0-4"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--scheme", default="{}")
    parser.add_argument("--candidates", type=int, default=4096)
    parser.add_argument("--orders", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for seed in args.seeds:
        cell = Cell(args, seed)
        marked = cell.marked[0]
        battery = attacks(cell.key, args.network, overwrite=cell.settings)
        models = {"none": marked} | {
            name: battery[name].run(marked, cell.budget, seed=seed) for name in ATTACKS
        }
        for name, model in models.items():
            row = {
                "network": args.network,
                "data": args.data,
                "settings": cell.settings,
                "seed": seed,
                "attack": name,
            }
            if any(all(old[k] == row[k] for k in row) for old in read(ROWS)):
                continue
            row |= orders(cell, model, args.orders) | versions()
            with ROWS.open("a") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
            print(seed, name, row["bits"], row["averaged"], row["best_charged"], flush=True)


if __name__ == "__main__":
    main()
