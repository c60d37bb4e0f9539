"""Several customers pool their copies, each with its own mark: who is named, and who is not?

One trained network is stamped for each customer with a key of his own. Colluders average their
copies, draw each weight from one of them, or take the weight in the middle; then every colluder's
key is read, and the keys of many customers who had no part in it.

    python benchmarks/deepwater_collusion.py --seeds 0-4 --innocents 2000

Models are those of `benchmarks/deepwater.py`, from its cache folder. Finished rows never run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import earmark
from deepwater import Cell
from earmark.attacks.base import Budget, Knowledge
from earmark.attacks.merge import Collude
from earmark.hosts.access import Host
from earmark.keys.secret import Key
from earmark.policy import judge
from earmark.schemes.deepwater import DeepWater

ROWS = Path(__file__).parent / "rows" / "deepwater_collusion.jsonl"


def key_of(host: Host, scheme: DeepWater, seed: int, customer: int) -> Key:
    """Return a customer's key."""
    secret = (1_000_000 * (seed + 1) + customer).to_bytes(32, "big")
    return scheme.new_key(host, secret=secret)


def copies(cell: Cell, scheme: DeepWater, keys: list[Key]) -> list[nn.Module]:
    """Return the trained network, stamped for each customer."""
    found = []
    for key in keys:
        model = copy.deepcopy(cell.plain()[0])
        scheme.begin(model, key, fresh=False)
        found.append(model)
    return found


def measure(cell: Cell, scheme: DeepWater, innocents: int, done: set[tuple[Any, ...]]) -> None:
    """Let two and three customers collude, in each way."""
    plain = cell.task.host(cell.plain()[0])
    for count in (2, 3):
        keys = [key_of(plain, scheme, cell.seed, customer) for customer in range(count)]
        first, *others = copies(cell, scheme, keys)
        budget = Budget(cell.task, knowledge=Knowledge.SCHEME, models=tuple(others))
        for how in ("average", "mix", "majority"):
            if (cell.name, scheme.margin, count, how) in done:
                continue
            started = time.process_time()
            pooled = Collude(how).run(first, budget, seed=cell.seed)
            host = cell.task.host(pooled)
            found = [scheme.measure(host, key) for key in keys]
            most, right = 0.0, []
            asked = innocents if (count, how) == (3, "average") else 0
            for customer in range(1000, 1000 + asked):
                evidence = scheme.measure(host, key_of(plain, scheme, cell.seed, customer))
                most = max(most, judge(evidence).bits)
                right.append(evidence.hits / evidence.trials)
            row = {
                "cell": cell.name,
                "network": cell.args.network,
                "data": cell.args.data,
                "seed": cell.seed,
                "margin": scheme.margin,
                "colluders": count,
                "how": how,
                "accuracy": round(cell.task.evaluate(pooled), 3),
                "trials": found[0].trials,
                "hits": [evidence.hits for evidence in found],
                "bits": [round(judge(evidence).bits, 1) for evidence in found],
                "innocents": asked,
                "innocent_bits": round(most, 1),
                "innocent_rate": round(sum(right) / len(right), 4) if right else None,
                "seconds": round(time.process_time() - started, 2),
                "earmark": earmark.__version__,
                "torch": torch.__version__,
                "machine": f"{os.cpu_count()} x {platform.machine()}",
            }
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({k: row[k] for k in ("seed", "margin", "colluders", "how", "hits", "bits")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--margin", type=float, default=0.0)
    parser.add_argument("--innocents", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {
        (row["cell"], row["margin"], row["colluders"], row["how"]) for row in map(json.loads, lines)
    }
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        measure(Cell(args, seed), DeepWater(margin=args.margin), args.innocents, done)


if __name__ == "__main__":
    main()
