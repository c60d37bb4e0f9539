"""Time a battery, and a search for the cheapest chain, against one marked network.

    python benchmarks/battery.py --scheme mtlsign --battery standard --samples 20000
    python benchmarks/battery.py --scheme mtlsign --search 16

Cells' rows with whole evidence go to a folder of runs and are never run twice. What is recorded,
one line a battery or search, goes to benchmarks/rows/battery.jsonl: CPU seconds (on two cores a
battery takes half of them, since its cells are independent), how many attacks removed the mark
within two and five points, and the cheapest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from earmark.bench import run, search, tables
from earmark.bench.battery import attacks_of
from earmark.bench.cells import Cell, Means, Step, parse
from earmark.bench.rows import read
from earmark.bench.subjects import ZooSubject
from earmark.policy import Policy

ROWS = Path(__file__).parent / "rows" / "battery.jsonl"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--scheme", default="mtlsign")
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--battery", default="standard")
    parser.add_argument("--samples", type=int, default=20_000, help="training images of the task")
    parser.add_argument("--epochs", type=int, default=5, help="of training")
    parser.add_argument("--search", type=int, default=0, help="measure so many chains instead")
    parser.add_argument("--folder", type=Path, default=Path("runs/battery"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    return parser.parse_args()


def main() -> None:
    """Run what has no row yet and record the sums."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    step = Step(options.scheme)
    wanted = step.scheme().inputs_wanted()
    subject = ZooSubject(
        step, options.network, options.data, 0, str(options.folder / "models"),
        samples=options.samples + wanted, recipe={"epochs": options.epochs},
    )  # fmt: skip
    name = f"{options.scheme}-{options.network}-{options.data}-{options.samples}"
    path = options.folder / f"{name}.jsonl"
    row = searched(options, subject, path) if options.search else timed(options, subject, path)
    about = {"scheme": options.scheme, "network": options.network, "data": options.data,
             "samples": options.samples, "epochs": options.epochs}  # fmt: skip
    line = about | row | {"machine": run.machine(), **run.versions()}
    with options.rows.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def timed(options: argparse.Namespace, subject: ZooSubject, path: Path) -> dict[str, Any]:
    """Run the battery cell by cell and sum up; cells remember their time over interruptions."""
    about = subject.describe()
    chains = dict.fromkeys(parse(text, kind="attack") for text in attacks_of(options.battery))
    trials = []
    for chain in chains:
        (row,) = run.run_cells([(subject, Cell(about, chain, 0))], path)
        trials.append(row.trial)
        print(f"{row.trial.attack:50s} {row.trial.bits} {row.trial.utility}", flush=True)
    ground = subject.open()
    assert ground.train_seconds is not None
    lines = [line for line in tables.lines(trials, Policy()) if line.attack != "none"]
    cost = sum(line.cost or 0.0 for line in lines) * ground.train_seconds
    removing = [line for line in lines if line.removed()]
    return {
        "battery": options.battery,
        "attacks": len(lines),
        "failed": sum(line.failed for line in lines),
        "attack_cpu_seconds": round(cost, 1),
        "wall_seconds": round(sum(trial.seconds for trial in trials), 1),
        "train_cpu_seconds": round(ground.train_seconds, 1),
        "bits_before": trials[0].bits,
        "utility_before": trials[0].utility,
        "removed_within_5": [line.attack for line in removing],
        "removed_within_2": [line.attack for line in removing if line.removed(within=2.0)],
        "sentence": tables.sentence(tables.lines(trials)),
    }


def searched(options: argparse.Namespace, subject: ZooSubject, path: Path) -> dict[str, Any]:
    """Search the chain that leaves least evidence within two points of utility."""
    found = search.search_subject(
        subject, path, evaluations=options.search, seed=0, tolerance=2.0, means=Means()
    )
    best = found[0]
    return {
        "search": options.search,
        "measured": len(found),
        "kept": sum(item.kept for item in found),
        "cheapest": " >> ".join(step.label() for step in best.chain),
        "bits": best.trial.bits,
        "lost": None if best.trial.utility is None or best.trial.utility_before is None
        else round(best.trial.utility_before - best.trial.utility, 2),
        "cost": best.trial.cost,
        "recorded_cells": len(read(path)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
