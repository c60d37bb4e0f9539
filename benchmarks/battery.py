"""Run a battery against schemes on a network of the zoo; rows, resumable.

    python benchmarks/battery.py --scheme mtlsign --battery standard --minutes 5

Rows: benchmarks/rows/battery.jsonl, one JSON line a cell: the cell and an earmark/trial/1 record.
`--table` prints tables of all rows and runs nothing; `--standard` prints the IEEE 3304 layout.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from earmark.bench import rows, standard, tables
from earmark.bench.battery import attacks_of
from earmark.bench.plan import Plan
from earmark.bench.run import run_cells

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", action="append", default=[], help="name, or JSON with settings")
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--battery", default="standard")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0, help="of training; 0: the usual number")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop between cells after this")
    parser.add_argument("--models", type=Path, default=Path("runs/models"))
    parser.add_argument("--rows", type=Path, default=HERE / "rows" / "battery.jsonl")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--standard", action="store_true")
    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    options = arguments()
    if not options.table and not options.standard:
        run(options)
    found = list(rows.read(options.rows).values())
    if options.standard:
        print(json.dumps(standard.export(found), indent=1))
    else:
        print(tables.text(rows.trials(found)))


def run(options: argparse.Namespace) -> None:
    schemes = [json.loads(item) if item[:1] == "{" else item for item in options.scheme]
    plan = Plan.of(
        {
            "name": "battery",
            "schemes": schemes or ["mtlsign"],
            "networks": [options.network],
            "data": [options.data],
            "attacks": list(attacks_of(options.battery)),
            "seeds": list(range(options.seeds)),
            "samples": options.samples,
            "recipe": {"epochs": options.epochs} if options.epochs else {},
        }
    )
    started = time.monotonic()
    for pair in plan.cells(options.models):
        if time.monotonic() - started > 60 * options.minutes:
            print("time is up; the next call goes on from here")
            return
        (row,) = run_cells([pair], options.rows)
        bits = "failed" if row.trial.bits is None else f"{row.trial.bits:.0f} bits"
        print(f"{row.trial.attack:50s} {bits:12s} {row.trial.utility}", flush=True)


if __name__ == "__main__":
    main()
