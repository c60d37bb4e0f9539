"""Measure what alignment brings back on trained networks, and that it convicts no innocent.

Uses the models that `benchmarks/deepwater.py` trained and kept in its cache folder.

    python benchmarks/deepwater_align.py --network small-cnn --samples 10000 --seeds 0-4
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import earmark
from deepwater import SCHEME, Cell
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.attacks.chain import Chain
from earmark.attacks.finetune import FineTune
from earmark.attacks.noise import Noise
from earmark.attacks.obfuscate import Dummies, FlipSigns, Obfuscate, Permute, Scale
from earmark.attacks.overwrite import Overwrite
from earmark.attacks.prune import Prune, PruneChannels
from earmark.hosts.align import align
from earmark.hosts.graph import channels
from earmark.policy import log2_p

ROWS = Path(__file__).parent / "rows" / "deepwater_align.jsonl"


def attacks(lr: float) -> dict[str, Attack]:
    """Return the battery by name."""
    found: dict[str, Attack] = {
        "none": Noise(share=1e-9),
        "permute-scale": Chain((Permute(), Scale())),
        "permute-scale-flip": Chain((Permute(), Scale(), FlipSigns())),
    }
    for kind in ("zero", "clique", "split", "active"):
        for width in (0.1, 0.25, 0.8):
            found[f"{kind}-{width:g}"] = Dummies(kind=kind, width=width)
    tune = FineTune(epochs=3, lr=lr / 10)
    found |= {
        "obfuscate": Obfuscate(),
        "obfuscate-wide": Obfuscate(width=0.8),
        "obfuscate-active-noise-10": Chain((Obfuscate.preset("active"), Noise(share=0.1))),
        "noise-10-obfuscate-active": Chain((Noise(share=0.1), Obfuscate.preset("active"))),
        "obfuscate-ftal": Chain((Obfuscate(spread=2.0), tune)),
        "ftal-obfuscate": Chain((FineTune(epochs=3, lr=lr / 2), Obfuscate())),
        "prune-65-obfuscate": Chain((Prune(share=0.65), Obfuscate())),
        "channels-10": PruneChannels(share=0.1, epochs=1, lr=lr / 10),
        "channels-30": PruneChannels(share=0.3, epochs=1, lr=lr / 10),
        "channels-50": PruneChannels(share=0.5, epochs=1, lr=lr / 10),
        "overwrite-obfuscate": Chain((Overwrite(scheme="deepwater", epochs=1), Obfuscate())),
    }
    return found


class Row:
    """Where rows go."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        lines = ROWS.read_text().splitlines() if ROWS.exists() else []
        self.done = {(row["cell"], row["attack"]) for row in map(json.loads, lines)}

    def note(self, **values: Any) -> None:
        """Write a row."""
        row = {
            "cell": self.cell.name,
            "network": self.cell.args.network,
            "seed": self.cell.seed,
            **values,
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} x {platform.machine()}",
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row["cell"], {k: v for k, v in values.items() if k != "label"}, flush=True)


def run(cell: Cell) -> None:
    """Attack, align and count; then do the same to innocents."""
    row = Row(cell)
    marked = cell.marked()[0]
    host = cell.task.host(marked)
    reference, groups = SCHEME.reference(host, cell.key), channels(marked)
    budget = Budget(cell.task, knowledge=Knowledge.SCHEME)

    def count(model: nn.Module) -> dict[str, Any]:
        suspect = cell.task.host(model)
        started = time.process_time()
        evidence = SCHEME.measure(align(suspect, reference, groups), cell.key)
        seconds = time.process_time() - started
        naive = SCHEME.measure(align(suspect, host, groups), cell.key)
        return {
            "hits": evidence.hits,
            "trials": evidence.trials,
            "bits": round(-log2_p(evidence), 1),
            "naive_hits": naive.hits,
            "naive_bits": round(-log2_p(naive), 1),
            "align_seconds": round(seconds, 3),
        }

    for name, attack in attacks(cell.recipe.lr).items():
        if (cell.name, name) in row.done:
            continue
        try:
            stolen = attack.run(marked, budget, seed=cell.seed + 50)
        except earmark.errors.EarmarkError as error:
            row.note(attack=name, failed=str(error))
            continue
        accuracy = round(cell.task.evaluate(stolen), 3)
        row.note(attack=name, label=attack.label(), accuracy=accuracy, **count(stolen))
    innocents = {f"twin-{seed}": Cell(cell.args, seed).plain()[0] for seed in others(cell)}
    innocents["own-twin"] = cell.plain()[0]
    for name, model in innocents.items():
        for how, suspect in (
            ("", model),
            ("-obfuscated", Obfuscate().run(model, budget, seed=cell.seed)),
        ):
            if (cell.name, f"innocent-{name}{how}") not in row.done:
                row.note(attack=f"innocent-{name}{how}", **count(suspect))


def others(cell: Cell) -> list[int]:
    first, last = cell.args.seeds
    return [seed for seed in range(first, last + 1) if seed != cell.seed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--one", type=int, default=None, help="only this marked seed")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = args.seeds.partition("-")
    args.seeds = (int(first), int(last or first))
    for seed in range(args.seeds[0], args.seeds[1] + 1):
        if args.one in (None, seed):
            run(Cell(args, seed))


if __name__ == "__main__":
    main()
