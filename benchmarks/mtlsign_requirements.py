"""Measure each formal requirement of the published MTL-Sign on a small network; print a table.

    python benchmarks/mtlsign_requirements.py --seeds 0-2
    python benchmarks/mtlsign_requirements.py --only tuning,spoil

Correctness, functionality, tuning, detection, assignment privacy, overwriting, ambiguity of three
levels, spoil: as the papers define them, each with the figure that was reached and whether the
published claim holds. Where it does not, the row says so.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from earmark.attacks import forge
from earmark.attacks.base import Budget
from earmark.attacks.finetune import FineTune
from earmark.attacks.prune import Prune
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.hosts import taps
from earmark.keys.secret import Key
from earmark.schemes import mtlsign_paper as paper
from earmark.schemes import refit
from earmark.schemes.mtlsign_paper import MtlSignPaper
from earmark.task import Task
from earmark.training import train
from mtlsign import read, seeds, versions, write
from mtlsign_stealth import weight_statistics

ROWS = Path(__file__).parent / "rows" / "mtlsign_requirements.jsonl"
SAMPLES = 128
SCHEME = MtlSignPaper(samples=SAMPLES, mode="func+da", rounds=60)
TUNING = FineTune(optimizer="adamw", lr=3e-4, epochs=4, schedule="constant")
Found = tuple[dict[str, Any], bool]


class World:
    """A task, a clean model, a marked one and its key, made when they are first asked for.

    Args:
        seed: Seed of everything.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        some = load("fashion-mnist").subset(2000, test=2000)
        self.task: Task = image_task("small-cnn", some, recipe={"epochs": 5, "lr": 0.05})
        self.sample = next(iter(self.task.stream("train", 0)))[0]

    def start(self, name: str, model: nn.Module, scheme: MtlSignPaper = SCHEME) -> Key:
        """Return a key without a head."""
        secret = hashlib.sha256(f"requirements/{self.seed}/{name}".encode()).digest()
        return scheme.new_key(self.task.host(model), inputs=self.sample, secret=secret)

    @functools.cached_property
    def clean(self) -> nn.Module:
        """The model after the first step."""
        return train(self.task, seed=self.seed).model

    @functools.cached_property
    def owner(self) -> tuple[nn.Module, Key]:
        """The marked model and the key with its head."""
        return self.embedded("owner", self.clean, SCHEME)

    def embedded(self, name: str, model: nn.Module, scheme: MtlSignPaper) -> tuple[nn.Module, Key]:
        """Embed a key of that name."""
        return scheme.embed(self.task, model, self.start(name, model, scheme), seed=self.seed)

    def right(self, model: nn.Module, key: Key) -> int:
        """Return right answers out of SAMPLES."""
        return SCHEME.measure(self.task.host(model), key).hits


def correctness(world: World) -> Found:
    """The owner's key passes; foreign keys and foreign models do not."""
    marked, key = world.owner
    asked = paper.threshold(key.layout)
    foreign = [
        world.right(marked, Key.generate(key.layout, secret=bytes([i]) * 32, inputs=key.inputs))
        for i in range(50)
    ]
    other = world.right(train(world.task, seed=world.seed + 50).model, key)
    own = world.right(marked, key)
    holds = own >= asked > max(*foreign, other)
    figures = {"own": own, "asked": asked, "foreign keys, most": max(foreign)}
    return figures | {"foreign keys, mean": float(np.mean(foreign)), "foreign model": other}, holds


def functionality(world: World) -> Found:
    """The task's accuracy stays."""
    before, after = world.task.evaluate(world.clean), world.task.evaluate(world.owner[0])
    return {"clean": round(before, 2), "marked": round(after, 2)}, after >= before - 0.5


def tuning(world: World) -> Found:
    """Fine-tuning, pruning and fine-pruning leave the mark."""
    marked, key = world.owner
    budget = Budget(world.task)
    tuned = TUNING.run(marked, budget, seed=world.seed)
    pruned = Prune(share=0.5).run(marked, budget, seed=world.seed)
    both = TUNING.run(pruned, budget, seed=world.seed)
    found = {"fine-tuned": tuned, "pruned": pruned, "fine-pruned": both}
    hits = {name: world.right(model, key) for name, model in found.items()}
    return hits, min(hits.values()) >= paper.threshold(key.layout)


def detection(world: World) -> Found:
    """A classifier on weight statistics tells marked from clean; frozen mode changes nothing."""
    rows, truth = [], []
    for i in range(10):
        clean = train(world.task, seed=1000 * (world.seed + 1) + i).model
        marked, _ = world.embedded(f"shadow {i}", clean, replace(SCHEME, mode="func", rounds=30))
        for kind, model in enumerate((clean, marked)):
            rows.append(list(weight_statistics(model).values()))
            truth.append(kind)
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    scores = cross_val_predict(judge, np.array(rows), truth, cv=5, method="predict_proba")[:, 1]
    auc = float(roc_auc_score(truth, scores))
    still, _ = world.embedded("frozen", world.clean, replace(SCHEME, mode="frozen", rounds=2))
    same = world.task.host(still).digest() == world.task.host(world.clean).digest()
    return {"AUC, func": round(max(auc, 1 - auc), 3), "frozen identical": same}, max(
        auc, 1 - auc
    ) <= 0.6


def assignment(world: World) -> Found:
    """Of two known keys, which one does a model bear? The guess is the better refit."""
    won = 0
    games = 8
    for game in range(games):
        keys = [world.start(f"game {game}/{side}", world.clean) for side in "ab"]
        true = (game + world.seed) % 2
        scheme = replace(SCHEME, mode="func", rounds=30)
        model, _ = scheme.embed(world.task, world.clean, keys[true], seed=game)
        hits = []
        for key in keys:
            inputs, labels = paper.watermark(key.shard(0), key.layout)
            found = world.task.host(model).features(inputs, key.layout.carrier)
            signs = np.array(labels, float)[:, None] * 2 - 1
            hits.append(int(refit.tally(found, signs, range(SAMPLES)).hits[0]))
        won += int(hits[true] > hits[1 - true])
    return {"games": games, "won": won}, won <= games / 2 + np.sqrt(games)


def overwriting(world: World) -> Found:
    """A thief embeds a key of his own on top."""
    marked, key = world.owner
    taken, other = world.embedded("thief", marked, replace(SCHEME, mode="func", func=1.0))
    owner, thief = world.right(taken, key), world.right(taken, other)
    utility = round(world.task.evaluate(taken), 2)
    return {"owner": owner, "thief": thief, "utility": utility}, owner >= paper.threshold(
        key.layout
    )


def ambiguity_1(world: World) -> Found:
    """Level 1: random keys without access to the head."""
    marked, key = world.owner
    hits = guesses(world, marked, key, 2000)
    return {"keys": len(hits), "most": max(hits), "asked": paper.threshold(key.layout)}, max(
        hits
    ) < paper.threshold(key.layout)


def ambiguity_2(world: World) -> Found:
    """Level 2: the forger asks the verifier about every key and keeps the best of many."""
    marked, key = world.owner
    hits = guesses(world, marked, key, 20_000)
    asked = paper.threshold(key.layout)
    exact = paper.exact_tail(SAMPLES, SCHEME.gamma)
    figures = {"keys": len(hits), "most": max(hits), "asked": asked}
    return figures | {"work to pass, log2": round(-exact, 1)}, max(hits) < asked


def guesses(world: World, model: nn.Module, key: Key, count: int) -> list[int]:
    """Return the right answers of many keys; their integers come from a pool of 4,000 codes."""
    pool = torch.stack([paper.mapped(number, key.layout) for number in range(4000)])
    found = world.task.host(model).features(pool, key.layout.carrier)
    answers = paper.Head.of(key).answers(found, key.layout.carrier)
    rng = np.random.default_rng(world.seed)
    return [
        int((answers[rng.integers(0, 4000, SAMPLES)] == rng.integers(0, 2, SAMPLES)).sum())
        for _ in range(count)
    ]


def ambiguity_3(world: World) -> Found:
    """Level 3: gradients. A fresh head fits any key to a clean model; inputs fit no key."""
    scheme = replace(SCHEME, head_lr=3e-3, rounds=150)
    start = world.start("forger", world.clean, scheme)
    forged = forge.fit_head(scheme, world.task, world.clean, start, seed=world.seed)
    accepted = world.right(world.clean, forged)
    marked, key = world.owner
    inputs, labels = paper.watermark(world.start("wished", marked).shard(0), key.layout)
    made = craft(world, marked, key, inputs, labels)
    codes = {paper.mapped(number, key.layout).numpy().tobytes() for number in range(4000)}
    valid = sum(image.numpy().tobytes() in codes for image in made)
    figures = {"fresh head": accepted, "asked": paper.threshold(key.layout)}
    figures |= {"fresh head has the committed hash": forged.layout.inputs == key.layout.inputs}
    return figures | {"crafted inputs that are codes": valid}, valid == 0


def craft(world: World, model: nn.Module, key: Key, inputs: Any, labels: list[int]) -> Any:
    """Move inputs until the owner's head gives wished labels."""
    head = [torch.tensor(w, dtype=torch.float32) for w in paper.Head.of(key).weights]
    made = inputs.clone().requires_grad_()
    step = torch.optim.Adam([made], lr=0.05)
    with taps.reading(model.eval(), key.layout.carrier) as seen:
        for _ in range(20):
            world.task.forward(model, made)
            joined = torch.cat([seen[name] for name in key.layout.carrier], 1)
            scores = torch.relu(joined @ head[0].T + head[1]) @ head[2].T + head[3]
            step.zero_grad()
            functional.cross_entropy(scores, torch.tensor(labels)).backward()
            step.step()
    return made.detach()


def spoil(world: World) -> Found:
    """After a claim the head is public: tune against it. Another committed pair is left."""
    marked, key = world.owner
    spare_start = world.start("spare", marked)
    frozen = replace(SCHEME, mode="frozen", head_lr=3e-3, rounds=150)
    _, spare = frozen.embed(world.task, marked, spare_start, seed=world.seed)
    head = [torch.tensor(w, dtype=torch.float32) for w in paper.Head.of(key).weights]
    inputs, labels = paper.watermark(key.shard(0), key.layout)
    wrong = 1 - torch.tensor(labels)
    model = copy.deepcopy(marked)
    step = torch.optim.Adam(model.parameters(), lr=3e-4)
    with taps.reading(model, key.layout.carrier) as seen:
        for batch in list(world.task.stream("train", 5)):
            step.zero_grad()
            world.task.loss(model.train(), batch).backward()
            world.task.forward(model.eval(), inputs)
            joined = torch.cat([seen[name] for name in key.layout.carrier], 1)
            scores = torch.relu(joined @ head[0].T + head[1]) @ head[2].T + head[3]
            functional.cross_entropy(scores, wrong).backward()
            step.step()
    figures = {"exposed": world.right(model.eval(), key), "spare": world.right(model, spare)}
    figures["utility"] = round(world.task.evaluate(model), 2)
    return figures, figures["exposed"] >= paper.threshold(key.layout)


TESTS: dict[str, Callable[[World], Found]] = {
    "correctness": correctness,
    "functionality": functionality,
    "tuning": tuning,
    "detection": detection,
    "assignment privacy": assignment,
    "overwriting": overwriting,
    "ambiguity 1": ambiguity_1,
    "ambiguity 2": ambiguity_2,
    "ambiguity 3": ambiguity_3,
    "spoil": spoil,
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=seeds, default=seeds("0"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TESTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    done = {(row["requirement"], row["seed"]) for row in read(ROWS)}
    for seed in args.seeds:
        world = World(seed)
        for name in args.only:
            if (name, seed) in done:
                continue
            figures, holds = TESTS[name](world)
            row = {"scheme": "mtlsign-paper", "requirement": name, "seed": seed}
            write(ROWS, row | {"holds": bool(holds), "figures": figures} | versions())
    for row in read(ROWS):
        print(row["seed"], row["requirement"], "holds" if row["holds"] else "FAILS", end="  ")
        print(json.dumps(row["figures"]))


if __name__ == "__main__":
    main()
