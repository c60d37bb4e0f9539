"""Does being born with the mark cost accuracy? Very many short trainings, with and without it.

By its law, an initialization that bears the mark is one initialization among others. Networks of
five seeds differ by more than a cost that matters; this asks hundreds, trained so briefly that a
worse start would show. Some marked networks are trained once more from the same start without the
mark at hand: where the same weights come out, to the last bit, all that the mark did was to be
there at the start.

    python benchmarks/deepwater_births.py --models 400
    python benchmarks/deepwater_births.py --models 400 --part distill

Finished rows never run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import earmark
from deepwater import SCHEME, recipe_of
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.keys.secret import Key
from earmark.schemes.embedding import embed, fresh_model, starting_model
from earmark.task import Task
from earmark.training import Recipe, distillation_loss, train

ROWS = Path(__file__).parent / "rows" / "deepwater_births.jsonl"


class Births:
    """Trainings with the mark and without, from scratch or while distilling."""

    def __init__(self, task: Task, teacher: nn.Module | None) -> None:
        self.task, self.teacher = task, teacher
        self.recipe = Recipe.of(task.recipe, **({"clip": 1.0} if teacher else {}))
        self.loss = None
        if teacher is not None:
            self.loss = distillation_loss(teacher, task, self.recipe.temperature)

    def key(self, seed: int) -> Key:
        """Return the key of one network."""
        secret = (seed + 1).to_bytes(32, "big")
        return SCHEME.new_key(self.task.host(fresh_model(self.task, seed)), secret=secret)

    def plain(self, seed: int, start: nn.Module | None = None) -> nn.Module:
        """Return a network that was trained without a mark."""
        return train(self.task, seed=seed, recipe=self.recipe, loss=self.loss, model=start).model

    def marked(self, seed: int) -> nn.Module:
        """Return one that was trained with it."""
        return embed(
            self.task, SCHEME, self.key(seed), seed=seed, teacher=self.teacher, recipe=self.recipe
        ).model

    def unguarded(self, seed: int) -> nn.Module:
        """Return one that began with the mark, and was trained without it."""
        return self.plain(seed, starting_model(self.task, SCHEME, self.key(seed), seed=seed))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two networks are the same to the last bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("scratch", "distill"), default="scratch")
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--models", type=int, default=400, help="of each kind")
    parser.add_argument("--again", type=int, default=20, help="marked ones to train unguarded")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = ("part", "network", "data", "samples", "epochs", "models", "again")
    about = {key: getattr(args, key) for key in kept}
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    if any(all(row[key] == about[key] for key in about) for row in map(json.loads, lines)):
        return
    data = load(args.data)
    data = data.subset(args.samples, test=2000) if args.samples else data
    recipe = recipe_of(args.network, args.data, args.epochs)
    task = image_task(args.network, data, recipe=recipe, batch=64)
    teacher = None
    if args.part == "distill":
        teacher = train(task, seed=999_999, recipe=Recipe.of(recipe, epochs=8)).model
    births = Births(task, teacher)
    found: dict[str, list[float]] = {"unmarked": [], "marked": []}
    wrong = alike = 0
    started = time.process_time()
    for i in range(args.models):
        found["unmarked"].append(task.evaluate(births.plain(i)))
        seed = 100_000 + i
        model = births.marked(seed)
        found["marked"].append(task.evaluate(model))
        evidence = SCHEME.measure(task.host(model), births.key(seed))
        wrong += evidence.trials - evidence.hits
        alike += i < args.again and same(model, births.unguarded(seed))
    row: dict[str, Any] = about | {
        "mean": {kind: round(statistics.mean(values), 3) for kind, values in found.items()},
        "deviation": {kind: round(statistics.stdev(values), 3) for kind, values in found.items()},
        "median": {kind: round(statistics.median(values), 3) for kind, values in found.items()},
        "wrong_bits": wrong,
        "same_unguarded": alike,
        "seconds": round(time.process_time() - started, 1),
        "earmark": earmark.__version__,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
    }
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    main()
