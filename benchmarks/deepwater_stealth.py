"""Can a classifier tell marked weights from clean ones? Shadow models, features, cross-validation.

The attacker knows the scheme and trains shadow models of both kinds, each with a seed and a key of
its own; the classifier is scored on models that it never saw.

    python benchmarks/deepwater_stealth.py --shadows 50
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import earmark
from earmark import registry
from earmark.bench.zoo import image_task
from earmark.schemes.embedding import embed, fresh_model
from earmark.training import train

ROWS = Path(__file__).parent / "rows" / "deepwater_stealth.jsonl"


def features(model: nn.Module, names: tuple[str, ...]) -> np.ndarray:
    """Describe each tensor's weights: moments, quantiles, and the spread of filter means."""
    state = dict(model.named_parameters())
    found: list[np.ndarray] = []
    for name in names:
        values = state[name].detach().double().numpy()
        flat = np.sort(values, axis=None)
        spread = flat.std()
        unit = flat / spread
        quantiles = np.quantile(unit, np.linspace(0.01, 0.99, 21))
        rows = values.reshape(len(values), -1)
        moments = [spread, flat.mean(), (unit**3).mean(), (unit**4).mean()]
        means = [rows.mean(1).std(), rows.std(1).std(), values.mean(0).std()]
        found.append(np.concatenate([quantiles, moments, means]))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="deepwater")
    parser.add_argument("--shadows", type=int, default=50, help="models of each kind")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the scheme, JSON")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = image_task("small-cnn", "digits", batch=64, recipe={"epochs": args.epochs, "lr": 0.05})
    scheme = registry.scheme(args.scheme, **args.settings)
    started = time.process_time()
    rows, labels, accuracies = [], [], []
    for i in range(2 * args.shadows):
        marked = i % 2 == 1
        key = scheme.new_key(task.host(fresh_model(task, i)), secret=i.to_bytes(32, "big"))
        made = embed(task, scheme, key, seed=i) if marked else train(task, seed=i)
        model = made.model
        rows.append(features(model, key.layout.carrier))
        labels.append(int(marked))
        accuracies.append(task.evaluate(model))
    data, truth = np.array(rows), np.array(labels)
    rng = np.random.default_rng(0)
    row = {
        "scheme": args.scheme,
        "settings": args.settings,
        "network": task.name,
        "shadows": args.shadows,
        "accuracy_clean": round(float(np.mean(accuracies[0::2])), 2),
        "accuracy_marked": round(float(np.mean(accuracies[1::2])), 2),
    }
    judges = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        "forest": RandomForestClassifier(400, random_state=0),
    }
    for name, judge in judges.items():
        folds = StratifiedKFold(10, shuffle=True, random_state=0)
        scores = cross_val_predict(judge, data, truth, cv=folds, method="predict_proba")[:, 1]
        draws = []
        for _ in range(1000):
            index = rng.integers(0, len(truth), len(truth))
            if 0 < truth[index].sum() < len(truth):
                draws.append(roc_auc_score(truth[index], scores[index]))
        row[f"auc_{name}"] = round(float(roc_auc_score(truth, scores)), 3)
        row[f"auc_{name}_interval"] = [
            round(float(q), 3) for q in np.quantile(draws, (0.025, 0.975))
        ]
    row |= {
        "seconds": round(time.process_time() - started, 1),
        "earmark": earmark.__version__,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
    }
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    main()
