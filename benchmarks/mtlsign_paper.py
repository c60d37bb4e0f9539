"""Measure MTL-Sign as published, in the shape of its papers' tables.

    python benchmarks/mtlsign_paper.py ablation --data mnist,fashion-mnist --seeds 0-2
    python benchmarks/mtlsign_paper.py foreign --count 5000
    python benchmarks/mtlsign_paper.py overwrite --seeds 0
    python benchmarks/mtlsign_paper.py forge --seeds 0

Ablation: none, R_func, R_DA, both, and a frozen backbone; the head's right answers after
fine-tuning and after fine-pruning beside the task's accuracy. Foreign: the rate of right answers of
foreign keys. Overwriting: the owner's right answers while a second key is embedded. Forge: a head
fitted to an unmarked model, before the published verifier and before the refitting judge.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from earmark import stats
from earmark.attacks import forge
from earmark.attacks.base import Budget
from earmark.attacks.finetune import FineTune
from earmark.attacks.prune import Prune
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.keys.secret import Key
from earmark.schemes import mtlsign_paper as paper
from earmark.schemes import refit
from earmark.schemes.mtlsign_paper import MtlSignPaper
from earmark.task import Task
from earmark.training import train
from mtlsign import read, seeds, versions, write

ROWS = Path(__file__).parent / "rows" / "mtlsign_paper.jsonl"
TUNING = FineTune(optimizer="adamw", lr=3e-4, epochs=4, schedule="constant")
OVERWRITING = (50, 150, 250, 350)


@functools.lru_cache(maxsize=2)
def clean(network: str, data: str, images: int, epochs: int, seed: int) -> tuple[Task, nn.Module]:
    """Return a task and its model after the first step of the paper."""
    some = load(data).subset(images, test=2000)
    task = image_task(network, some, recipe={"epochs": epochs})
    return task, train(task, seed=seed).model


def first_step(args: argparse.Namespace, data: str, seed: int) -> tuple[Task, nn.Module]:
    """Return what :func:`clean` does, for the command line's choices."""
    return clean(args.network, data, args.images, args.epochs, seed)


def start_key(scheme: MtlSignPaper, task: Task, model: nn.Module, name: str) -> Key:
    """Return a key without a head."""
    inputs = next(iter(task.stream("train", 0)))[0]
    secret = hashlib.sha256(name.encode()).digest()
    return scheme.new_key(task.host(model), inputs=inputs, secret=secret)


def share(scheme: MtlSignPaper, task: Task, model: nn.Module, key: Key) -> tuple[int, int]:
    """Return right answers and how many were asked."""
    evidence = scheme.measure(task.host(model), key)
    return evidence.hits, evidence.trials


def base(args: argparse.Namespace, table: str, data: str, seed: int, **more: Any) -> dict[str, Any]:
    """Return what every row says."""
    return {
        "scheme": "mtlsign-paper",
        "table": table,
        "attack": table,
        "network": args.network,
        "data": data,
        "images": args.images,
        "epochs": args.epochs,
        "samples": args.samples,
        "rounds": args.rounds,
        "seed": seed,
    } | more


def has(row: dict[str, Any]) -> bool:
    """Tell whether a row of this name stands already."""
    return any(all(old.get(k) == v for k, v in row.items()) for old in read(ROWS))


def ablation(args: argparse.Namespace) -> None:
    """Regularizers beside what tuning leaves."""
    for data in args.data:
        for seed in args.seeds:
            for mode in paper.MODES:
                row = base(args, "ablation", data, seed, mode=mode)
                if has(row):
                    continue
                task, model = first_step(args, data, seed)
                scheme = MtlSignPaper(samples=args.samples, mode=mode, rounds=args.rounds)
                key = start_key(scheme, task, model, f"paper/{seed}")
                begun = time.process_time()
                marked, key = scheme.embed(task, model, key, seed=seed)
                spent = time.process_time() - begun
                budget = Budget(task)
                tuned = TUNING.run(marked, budget, seed=seed)
                pruned = TUNING.run(
                    Prune(share=0.5).run(marked, budget, seed=seed), budget, seed=seed
                )
                cases = {"none": marked, "fine-tuned": tuned, "fine-pruned": pruned}
                for case, net in cases.items():
                    row[f"right, {case}"], _ = share(scheme, task, net, key)
                    row[f"utility, {case}"] = round(task.evaluate(net), 2)
                row["utility, clean"] = round(task.evaluate(model), 2)
                row["seconds"] = round(spent, 1)
                write(ROWS, row | versions())
                print(json.dumps({k: v for k, v in row.items() if "," in k}))


def foreign(args: argparse.Namespace) -> None:
    """Rates of right answers of keys that the head does not belong to."""
    for data in args.data:
        for seed in args.seeds:
            row = base(args, "foreign", data, seed, count=args.count)
            if has(row):
                continue
            task, model = first_step(args, data, seed)
            scheme = MtlSignPaper(samples=args.samples, mode="func", rounds=args.rounds)
            key = start_key(scheme, task, model, f"paper/{seed}")
            marked, key = scheme.embed(task, model, key, seed=seed)
            pool = torch.stack([paper.mapped(number, key.layout) for number in range(6000)])
            found = task.host(marked).features(pool, key.layout.carrier)
            answers = paper.Head.of(key).answers(found, key.layout.carrier)
            rates = []
            for index in range(args.count):
                stream = Key.generate(
                    key.layout, secret=hashlib.sha256(f"f/{index}".encode()).digest()
                )
                shard = stream.shard(0)
                chosen = shard.early("benchmark/foreign").sample(args.samples, len(pool))
                labels = shard.stream("benchmark/foreign").bits(args.samples)
                rates.append(float((answers[chosen] == np.array(labels)).mean()))
            row |= {
                "rate_mean": round(float(np.mean(rates)), 5),
                "rate_deviation": round(float(np.std(rates)), 5),
                "rate_least": min(rates),
                "rate_most": max(rates),
                "accepted": sum(rate >= 0.7 for rate in rates),
                "published_bound": paper.published_bound(args.samples, 0.7),
                "exact_log2": round(paper.exact_tail(args.samples, Fraction(7, 10)), 2),
                "note": "integers of foreign keys are drawn from a pool of 6,000 codes",
            }
            write(ROWS, row | versions())
            print(json.dumps({k: v for k, v in row.items() if "rate" in k}))


def overwrite(args: argparse.Namespace) -> None:
    """The owner's right answers while a second key is embedded in the same way."""
    for data in args.data:
        for seed in args.seeds:
            row = base(args, "overwrite", data, seed, overwriting_rounds=list(OVERWRITING))
            if has(row):
                continue
            task, model = first_step(args, data, seed)
            scheme = MtlSignPaper(samples=args.samples, mode="func+da", rounds=args.rounds)
            key = start_key(scheme, task, model, f"paper/{seed}")
            marked, key = scheme.embed(task, model, key, seed=seed)
            thief = dataclasses.replace(scheme, mode="func", func=1.0, lr=5e-4)
            taken = copy.deepcopy(marked)
            other = start_key(thief, task, taken, f"thief/{seed}")
            row["right, owner"] = [share(scheme, task, marked, key)[0]]
            row["utility"] = [round(task.evaluate(marked), 2)]
            row["right, thief"] = []
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1)
                with thief.attach(taken, other, forward=task.forward) as mark:
                    for round_ in range(1, OVERWRITING[-1] + 1):
                        mark.one_round()
                        if round_ in OVERWRITING:
                            row["right, owner"].append(share(scheme, task, taken, key)[0])
                            row["right, thief"].append(share(thief, task, taken, mark.key())[0])
                            row["utility"].append(round(task.evaluate(taken), 2))
            write(ROWS, row | versions())
            print(json.dumps({k: v for k, v in row.items() if "right" in k}))


def forged(args: argparse.Namespace) -> None:
    """A head fitted afterwards, before both judges."""
    for data in args.data:
        for seed in args.seeds:
            row = base(args, "forge", data, seed)
            if has(row):
                continue
            task, model = first_step(args, data, seed)
            scheme = MtlSignPaper(samples=args.samples, rounds=args.rounds, head_lr=3e-3)
            key = start_key(scheme, task, model, f"forger/{seed}")
            key = forge.fit_head(scheme, task, model, key, seed=seed)
            evidence = scheme.measure(task.host(model), key)
            inputs, labels = paper.watermark(key.shard(0), key.layout)
            found = refit.tally(
                task.host(model).features(inputs, key.layout.carrier),
                np.array(labels, float)[:, None] * 2 - 1,
                range(len(labels)),
            )
            tail = stats.log2_binomial_tail(int(found.hits[0]), found.trials, Fraction(1, 2))
            row |= {
                "right, published": evidence.hits,
                "published_accepts": paper.accepted(evidence),
                "right, refit": int(found.hits[0]),
                "trials, refit": found.trials,
                "bits, refit": round(-tail, 1),
            }
            write(ROWS, row | versions())
            print(json.dumps({k: v for k, v in row.items() if "," in k}))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    tables = {"ablation": ablation, "foreign": foreign, "overwrite": overwrite, "forge": forged}
    parser.add_argument("table", choices=tables)
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", type=lambda text: text.split(","), default=["fashion-mnist"])
    parser.add_argument("--seeds", type=seeds, default=seeds("0"))
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--count", type=int, default=5000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tables[args.table](args)


if __name__ == "__main__":
    main()
