"""Measure whether aligning an innocent model shows it bits of the mark.

The units of a suspect are matched to those of the model before it was marked, which knows no bit;
beside it, to those of the released model, which knows them all, and which `align` refuses for that.
What matching tells an innocent model can be seen only over many marks: for one key the readings of
innocent models are alike, so each key counts once. The first key is that of `deepsigns.py`; every
further one is embedded into the cell's base model in a shorter training. Innocent models are the
bases of the other seeds::

    python benchmarks/deepsigns.py --networks small-cnn --seeds 0-4 --parts fidelity
    python benchmarks/deepsigns_fairness.py --networks small-cnn --seeds 0-4 --keys 5
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from typing import cast

import torch
from torch import nn

from deepsigns_bench import Cell, forms, marked_with
from earmark.keys.secret import Key
from earmark.schemes.deepsigns import DeepSigns, Plan
from earmark.schemes.deepsigns_units import AlignedHost
from earmark.schemes.embedding import embed


def measure(cell: Cell) -> None:
    """One row a key: hits of every innocent model, aligned and in place, and of the marked one."""
    part = "fairness base"
    scheme = cast("DeepSigns", forms(cell)["white"])
    others = [Cell(cell.args, cell.network, seed).base for seed in range(5) if seed != cell.seed]
    for label in range(cell.args.keys):
        name = f"key {label}"
        if (part, name) in cell.done:
            continue
        key = cell.key(scheme, label)
        marked = short(cell, scheme, key) if label else marked_with(cell, "white", scheme, key)
        released = cell.task.host(marked)
        found: dict[str, list[int]] = {"aligned": [], "released": [], "placed": []}
        for model in others:
            host = cell.task.host(model)
            aligned = scheme.align(host, cell.task.host(cell.base), key)
            bent = AlignedHost(host, released, Plan.of(key))
            found["aligned"].append(scheme.measure(aligned, key).hits)
            found["released"].append(scheme.measure(bent, key).hits)
            found["placed"].append(scheme.measure(host, key).hits)
        own = scheme.measure(released, key)
        cell.row(part, name, **found, hits=own.hits, trials=own.trials)


def short(cell: Cell, scheme: DeepSigns, key: Key) -> nn.Module:
    """The base with another key: as many steps with the mark's term, in half of the epochs."""
    often = dataclasses.replace(scheme, every=scheme.every // 2)
    recipe = dataclasses.replace(cell.tune, epochs=cell.args.epochs // 2)
    return embed(
        cell.task, often, key, seed=cell.seed + 50, model=copy.deepcopy(cell.base), recipe=recipe
    ).model


def main() -> None:
    """Run the keys that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--networks", default="small-cnn")
    parser.add_argument("--samples", type=int, default=10_000, help="training images")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--keys", type=int, default=5, help="keys a seed")
    parser.add_argument("--models", default="runs/deepsigns", help="folder of trained models")
    args = parser.parse_args()
    args.forms, args.base_epochs, args.epochs = "white", 3, 4
    torch.set_num_threads(1)
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        for network in args.networks.split(","):
            measure(Cell(args, network, seed))


if __name__ == "__main__":
    main()
