"""Do innocents stay innocent when they are aligned to a marked network? Many pairs.

Every marked network is a reference of its own, with its own key; innocent networks of other seeds,
every second one disguised, are aligned to it and read. The bias that alignment might bring sits in
the reference, so references count, and errors are clustered by them. Each pair is aligned to

* the marked network before its training, carrier projected out: exact, by proof;
* the released network, carrier projected out: what its training learned may tell of the carrier;
* the released network as it is: the naive way, which must fail.

    python benchmarks/deepwater_innocents.py --references 0-59 --suspects 6

Models are those of `benchmarks/deepwater.py`, from its cache folder. Finished rows never run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import earmark
from deepwater import SCHEME, Cell
from earmark.attacks.base import Budget, Knowledge
from earmark.attacks.obfuscate import Obfuscate
from earmark.hosts.access import Host
from earmark.hosts.align import align
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.graph import channels
from earmark.keys.secret import Key
from earmark.policy import judge
from earmark.records import Evidence
from earmark.schemes import cells as cells_of
from earmark.schemes.embedding import starting_model

ROWS = Path(__file__).parent / "rows" / "deepwater_innocents.jsonl"
FIRST = 200  # seed of the first innocent; references have smaller ones


def unwhitened(released: Host, key: Key) -> ArrayHost:
    """Return a release with its carrier projected out, and what it learned left in."""
    tensors = {name: released.tensor(name) for name in released.tensor_names()}
    for layer in cells_of.layers(key.layout):
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        assert cells is not None
        flat = np.array(tensors[layer.name], np.float32).reshape(-1)
        positions = cells.positions()
        flat[positions] = cells_of.without(cells, flat[positions])
        tensors[layer.name] = flat.reshape(layer.shape)
    return ArrayHost(tensors, digest=released.digest())


def counts(evidence: Evidence) -> dict[str, Any]:
    """Return hits, standard score and net bits."""
    size = float(np.sqrt(np.square(evidence.weights).sum()))
    return {
        "hits": evidence.hits,
        "z": round(float(evidence.score or 0) / size, 3),
        "bits": round(judge(evidence).bits, 1),
    }


def suspects(args: argparse.Namespace, seed: int) -> dict[str, Host]:
    """Return innocents by name: of other seeds, and of the reference's own."""
    found: dict[str, Host] = {}
    for i in range(args.suspects):
        cell = Cell(args, FIRST + i)
        model = cell.plain()[0]
        if i % 2:
            model = Obfuscate().run(model, Budget(cell.task, knowledge=Knowledge.SCHEME), seed=i)
        found[f"other {i}" + " disguised" * (i % 2)] = cell.task.host(model)
    own = Cell(args, seed)
    found["same start"] = own.task.host(own.plain()[0])
    return found


def measure(args: argparse.Namespace, seed: int, done: set[tuple[Any, ...]]) -> None:
    """Align innocents to one reference and write a row for each."""
    cell = Cell(args, seed)
    todo = {
        name: host for name, host in suspects(args, seed).items() if (cell.name, name) not in done
    }
    if not todo:
        return
    model, key = cell.marked()[0], cell.key
    released, groups = cell.task.host(model), channels(model)
    decoy = SCHEME.new_key(released, secret=bytes([255 - seed]) * 32)
    start = cell.task.host(starting_model(cell.task, SCHEME, key, seed=seed))
    references = {
        "start": SCHEME.reference(start, key),
        "release": SCHEME.reference(released, key),
        "unwhitened": unwhitened(released, key),
        "naive": released,
    }
    for name, suspect in todo.items():
        row: dict[str, Any] = {
            "cell": cell.name,
            "network": args.network,
            "data": args.data,
            "seed": seed,
            "suspect": name,
            "trials": key.layout.message_bits,
        }
        for kind, reference in references.items():
            if kind == "naive" and name not in ("other 0", "same start"):
                continue
            aligned = align(suspect, reference, groups)
            row[kind] = counts(SCHEME.measure(aligned, key))
            if kind == "release":
                row["decoy"] = counts(SCHEME.measure(aligned, decoy))
        row |= {
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} x {platform.machine()}",
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(cell.name, {kind: row[kind]["z"] for kind in references if kind in row}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--references", default="0-59")
    parser.add_argument("--suspects", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {(row["cell"], row["suspect"]) for row in map(json.loads, lines)}
    first, _, last = args.references.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        measure(args, seed, done)


if __name__ == "__main__":
    main()
