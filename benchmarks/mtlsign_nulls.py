"""Is the refitting judge exact? Models without the mark, many keys, the whole measurement.

    python benchmarks/mtlsign_nulls.py
    python benchmarks/mtlsign_nulls.py --keys 0

S1: eight independent models, 500 keys each. S2: hostile models: the same initialization as a marked
one, trained on the triggers themselves, trained far too long, not trained at all, fine-tuned from a
model that bears another key on the same triggers, pruned to a tenth, absurd weights, a constant
answer. Each key is measured as a claim is: features, ordering by a nonce, refit, count. The hits of
a model's keys are compared with the exact binomial law, and so are 7,000 draws of labels on the
same features. Every model has keys of its own, so that the tests of two models are independent. S6:
the parts of each key, or of each draw, feed an e-value that an adversary stops when it stands
highest.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom, chisquare
from torch import nn

from earmark.attacks.base import Budget
from earmark.attacks.prune import Prune
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.hosts import batches
from earmark.keys.secret import Key
from earmark.policy import log2_p
from earmark.schemes import refit
from earmark.schemes.mtlsign import MtlSign
from earmark.stats import BettingEValue
from earmark.task import Task
from earmark.training import Recipe, train
from mtlsign import read, versions, write

ROWS = Path(__file__).parent / "rows" / "mtlsign_nulls.jsonl"
SCHEME = MtlSign(triggers=128, shards=4, directions=2)
HALF = Fraction(1, 2)


def secret(*parts: object) -> bytes:
    """Return 32 bytes that follow from some parts."""
    return hashlib.sha256(repr(parts).encode()).digest()


def initial(task: Task, seed: int) -> nn.Module:
    """Return the untrained model of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.model()


def marked(task: Task, key: Key, seed: int) -> nn.Module:
    """Return a model that bears a key, of the seed's initialization."""
    model = initial(task, seed)
    with SCHEME.attach(model, key) as mark:
        return train(task, seed=seed, model=model, mark=mark).model


def riding(task: Task, key: Key) -> nn.Module:
    """Return a model trained on the triggers and nothing else."""
    inputs, labels = key.inputs
    task = Task(
        model=task.model,
        loss=task.loss,
        batches=lambda _split, **_: [(inputs, labels)],
        evaluate=task.evaluate,
        name=task.name,
    )
    return train(task, seed=3, model=task.model(), recipe=Recipe(epochs=60, lr=0.05)).model


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """Return a copy with the weights of every layer times a factor."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(factor)
    return made


def makers(task: Task, key: Key) -> dict[str, Callable[[], nn.Module]]:
    """Return how each null is made, by name."""
    plain = {f"independent {i}": functools.partial(independent, task, 100 + i) for i in range(8)}

    def retold() -> nn.Module:
        other = Key.generate(key.layout, secret=secret("another"), inputs=key.inputs)
        return train(task, seed=9, model=marked(task, other, 0), recipe=Recipe(epochs=2)).model

    base = functools.lru_cache(lambda: independent(task, 0))
    return plain | {
        "same initialization": base,
        "trained on the triggers": lambda: riding(task, key),
        "trained too long": lambda: train(task, seed=1, recipe=Recipe(epochs=60, lr=0.1)).model,
        "another key on these triggers": retold,
        "pruned to a tenth": lambda: Prune(share=0.9).run(base(), Budget(task), seed=0),
        "weights times 1e6": lambda: scaled(base(), 1e6),
        "constant": lambda: scaled(base(), 0.0),
        "untrained": lambda: initial(task, 7).eval(),
    }


def independent(task: Task, seed: int) -> nn.Module:
    """Return an unmarked model."""
    return train(task, seed=seed).model


def drawn(features: dict[str, np.ndarray], name: str, count: int = 7_000) -> dict[str, Any]:
    """Judge many draws of labels on the same features; return figures."""
    rng = np.random.default_rng(list(secret("draws", name)))
    each = SCHEME.triggers // SCHEME.shards
    hits, trials, parts = np.zeros(count, dtype=np.int64), 0, []
    for direction in range(SCHEME.directions):
        places = range(direction, SCHEME.shards, SCHEME.directions)
        rows = np.concatenate([np.arange(each * i, each * (i + 1)) for i in places])
        found = refit.tally(
            {name: value[rows] for name, value in features.items()},
            rng.integers(0, 2, (len(rows), count)) * 2.0 - 1.0,
            rng.permutation(len(rows)).tolist(),
        )
        hits, trials = hits + found.hits, trials + found.trials
        parts.append((found.hits, found.trials))
    looks = zip(*([(int(right), asked) for right in some] for some, asked in parts), strict=True)
    highest = np.array([best(look) for look in looks])
    return {
        "draws": count,
        "rate": round(float(hits.mean()) / trials, 5),
        "standard_errors": round(errors(hits, trials), 2),
        "fit_p": round(fit(hits, trials), 4),
        "e_bits_most": round(float(highest.max()), 2),
        "share_e": {bits: round(float((highest >= bits).mean()), 5) for bits in (1, 3, 5, 7)},
    }


@functools.cache
def best(parts: tuple[tuple[int, int], ...]) -> float:
    """Return the e-value's bits where it stood highest, looked at after each part."""
    betting = BettingEValue(HALF)
    for right, asked in parts:
        betting.add(right, asked)
    return betting.bits()


def errors(hits: np.ndarray, trials: int) -> float:
    """Return by how many standard errors all hits together are off one half."""
    return float(hits.sum() - trials * len(hits) / 2) / (0.5 * math.sqrt(trials * len(hits)))


def fit(hits: np.ndarray, trials: int) -> float:
    """Return the p-value of a chi-square test of hits against Binomial(trials, 1/2)."""
    edges = np.unique(binom.ppf(np.linspace(0, 1, 13)[1:-1], trials, 0.5)).astype(int)
    law = np.diff(np.concatenate([[0.0], binom.cdf(edges, trials, 0.5), [1.0]]))
    places = np.searchsorted(edges, hits, side="left")
    seen = np.bincount(places, minlength=len(law))
    return float(chisquare(seen, law * len(hits)).pvalue)


def by_keys(host: Any, key: Key, name: str, count: int) -> dict[str, Any]:
    """Measure a null with many keys, each as a claim is; return figures."""
    hits, bits, highest = [], [], []
    for index in range(count):
        other = Key.generate(key.layout, secret=secret("null", name, index), inputs=key.inputs)
        evidence = SCHEME.measure(host, other, nonce=secret("nonce", name, index).hex())
        hits.append(evidence.hits)
        bits.append(-log2_p(evidence))
        parts = evidence.details["hits and trials by direction"].values()
        highest.append(best(tuple((right, asked) for right, asked in parts)))
    found, trials = np.array(hits), evidence.trials
    return {
        "trials": trials,
        "rate": round(float(found.mean()) / trials, 5),
        "standard_errors": round(errors(found, trials), 2),
        "fit_p": round(fit(found, trials), 4),
        "bits_most": round(max(bits), 2),
        "share_at_5_bits": round(float(np.mean(np.array(bits) >= 5)), 5),
        "e_bits_most": round(max(highest), 2),
        "share_e_at_3_bits": round(float(np.mean(np.array(highest) >= 3)), 5),
    }


def run(args: argparse.Namespace) -> None:
    """Measure each null with many keys, or with many draws of labels on the same features."""
    task = image_task("small-cnn", load("digits"), batch=64, recipe={"epochs": 4, "lr": 0.05})
    stream = list(task.stream("train", 0))
    pool = batches.join(stream[len(stream) // 2 :])
    key = SCHEME.new_key(task.host(initial(task, 0)), inputs=pool, secret=secret("first"))
    done = {(row["null"], row["keys"]) for row in read(ROWS)}
    for name, make in makers(task, key).items():
        if (name, args.keys) in done or (args.only and name not in args.only):
            continue
        start = time.process_time()
        host = task.host(make())
        host.batch_size = 128
        if args.keys:
            figures = by_keys(host, key, name, args.keys)
        else:
            figures = drawn(host.features(key.inputs, key.layout.carrier), name)
        row = {"scheme": "mtlsign", "attack": "null", "null": name, "keys": args.keys} | figures
        row["seconds"] = round(time.process_time() - start, 1)
        write(ROWS, row | versions())
        print(json.dumps(figures))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--keys", type=int, default=500, help="0: draws of labels alone")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    run(args)


if __name__ == "__main__":
    main()
