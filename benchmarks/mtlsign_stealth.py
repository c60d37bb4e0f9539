"""Can anybody tell that a model bears MTL-Sign? Shadow models, weights, activations, classifiers.

    python benchmarks/mtlsign_stealth.py --shadows 60
    python benchmarks/mtlsign_stealth.py --shadows 60 --alike

The attacker knows the scheme and trains shadow models of both kinds, each with a seed and a key of
its own. Three tests, each scored on models that it never saw: the variance of each layer's weights;
how strongly the hidden features of his own samples fall into two clusters within a class; and a
classifier on many statistics of weights and features. An AUC of 0.5 is a guess; a test that is
wrong more often than right is turned round. With --alike the models without the mark are trained in
the same way, with triggers that ride and samples that are settled, but nothing is marked: what is
then told apart is the mark, not the way of training.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.hosts import batches
from earmark.schemes.embedding import embed, fresh_model
from earmark.schemes.mtlsign import MtlSign
from earmark.task import Task
from earmark.training import train
from mtlsign import versions, write

ROWS = Path(__file__).parent / "rows" / "mtlsign_stealth.jsonl"
Array = np.ndarray
_NO_WEIGHT = 1e-30


def weight_statistics(model: nn.Module) -> dict[str, float]:
    """Describe each layer's weights: deviation, moments, spread of rows and columns."""
    found: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        values = parameter.detach().double().flatten(1).numpy()
        unit = (values - values.mean()) / values.std()
        found[f"variance {name}"] = float(values.var())
        found[f"kurtosis {name}"] = float((unit**4).mean())
        found[f"rows {name}"] = float(values.std(1).std() / values.std())
        found[f"columns {name}"] = float(values.std(0).std() / values.std())
        spectrum = np.linalg.svd(values, compute_uv=False)
        found[f"norm {name}"] = float(spectrum[0] / np.sqrt((spectrum**2).mean()))
    return found


def bimodality(values: Array) -> float:
    """Return the share of variance that a split in two explains, best over cuts of one axis."""
    ordered = np.sort(values)
    count = len(ordered)
    sums = np.cumsum(ordered)
    left = np.arange(1, count)
    low, high = sums[:-1] / left, (sums[-1] - sums[:-1]) / (count - left)
    between = left * (count - left) / count**2 * (high - low) ** 2
    return float(between.max() / max(ordered.var(), 1e-12))


def activation_statistics(
    model: nn.Module, task: Task, pool: Any, names: tuple[str, ...]
) -> dict[str, float]:
    """Describe hidden features of the attacker's samples, within each of the model's answers."""
    host = task.host(model)
    answers = host.labels(pool)
    found: dict[str, float] = {}
    for name, features in host.features(pool, names).items():
        splits, spreads, ranks = [], [], []
        for answer in np.unique(answers):
            rows = features[answers == answer]
            if len(rows) < 20:
                continue
            rest = rows - rows.mean(0)
            _, sizes, axes = np.linalg.svd(rest, full_matrices=False)
            splits += [bimodality(rest @ axis) for axis in axes[:3]]
            spreads.append(float((sizes**2).sum() / ((features - features.mean(0)) ** 2).sum()))
            share = sizes**2 / (sizes**2).sum()
            ranks.append(float(1 / (share**2).sum()))
        found[f"clusters {name}"] = float(np.mean(splits))
        found[f"clusters most {name}"] = float(np.max(splits))
        found[f"within {name}"] = float(np.sum(spreads))
        found[f"rank {name}"] = float(np.mean(ranks))
    return found


def interval(truth: Array, scores: Array) -> tuple[float, list[float]]:
    """Return an AUC, turned round if under one half, and its 95 % bootstrap interval."""
    if roc_auc_score(truth, scores) < 0.5:
        scores = -scores
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(500):
        index = rng.integers(0, len(truth), len(truth))
        if 0 < truth[index].sum() < len(truth):
            draws.append(roc_auc_score(truth[index], scores[index]))
    ends = [round(float(end), 3) for end in np.quantile(draws, (0.025, 0.975))]
    return round(float(roc_auc_score(truth, scores)), 3), ends


def held_out(judge: Any, data: Array, truth: Array) -> Array:
    """Return each model's score by a judge that was fitted without it."""
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    scores: Array = cross_val_predict(judge, data, truth, cv=folds, method="predict_proba")[:, 1]
    return scores


def shadows(args: argparse.Namespace) -> tuple[list[dict[str, float]], Array, list[float]]:
    """Train models of both kinds by turns and describe them."""
    some = load(args.data).subset(args.images, test=1000)
    task = image_task(args.network, some, batch=64, recipe={"epochs": args.epochs, "lr": 0.05})
    scheme = MtlSign(**args.settings)
    stream = list(task.stream("train", 0))
    half = len(stream) // 2
    mine, theirs = batches.join(stream[half:]), batches.join(stream[:half])
    found, utilities = [], []
    for i in range(2 * args.shadows):
        secret = hashlib.sha256(f"stealth/{i}".encode()).digest()
        key = scheme.new_key(task.host(fresh_model(task, i)), inputs=mine, secret=secret)
        marked = i % 2 == 1
        if marked or args.alike:
            way = scheme if marked else dataclasses.replace(scheme, weight=_NO_WEIGHT)
            model = embed(task, way, key, seed=i).model
        else:
            model = train(task, seed=i).model
        statistics = weight_statistics(model)
        found.append(statistics | activation_statistics(model, task, theirs, key.layout.carrier))
        utilities.append(task.evaluate(model))
    return found, np.arange(2 * args.shadows) % 2, utilities


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shadows", type=int, default=60, help="models of each kind")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the scheme, JSON")
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--alike", action="store_true", help="train the others in the same way")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    found, truth, utilities = shadows(args)
    names = list(found[0])
    data = np.array([[one[name] for name in names] for one in found])
    row: dict[str, Any] = {
        "scheme": "mtlsign",
        "attack": "detection",
        "settings": args.settings,
        "network": args.network,
        "data": args.data,
        "images": args.images,
        "epochs": args.epochs,
        "shadows": 2 * args.shadows,
        "utility_clean": round(float(np.mean(utilities[0::2])), 2),
        "utility_marked": round(float(np.mean(utilities[1::2])), 2),
        "statistics": len(names),
        "alike": args.alike,
    }
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    forest = RandomForestClassifier(300, random_state=0)
    tests = {
        "variance": ([n for n in names if n.startswith("variance")], logistic),
        "clusters": ([n for n in names if n.startswith("clusters")], logistic),
        "meta logistic": (names, logistic),
        "meta forest": (names, forest),
    }
    for test, (some, judge) in tests.items():
        chosen = [names.index(name) for name in some]
        auc, ends = interval(truth, held_out(judge, data[:, chosen], truth))
        row[f"auc_{test.replace(' ', '_')}"] = auc
        row[f"auc_{test.replace(' ', '_')}_interval"] = ends
    telling = {name: interval(truth, data[:, i])[0] for i, name in enumerate(names)}
    row["most_telling"] = dict(sorted(telling.items(), key=lambda item: -item[1])[:5])
    row["seconds"] = round(time.process_time() - start, 1)
    write(ROWS, row | versions())
    print(json.dumps(row))


if __name__ == "__main__":
    main()
