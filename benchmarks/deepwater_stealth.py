"""Can a classifier tell marked weights from clean ones? Shadow models, features, unseen models.

The attacker knows the scheme and trains shadow models of both kinds, each with a seed and a key of
its own; the classifiers are scored on models that they never saw. Beside every kind of marking
stand two controls: two batches of unmarked models of one recipe, which nothing can tell apart, and
unmarked models of two recipes (one epoch more), which shows what the classifiers are able to see.

    python benchmarks/deepwater_stealth.py --kinds scratch,stamp --shadows 100

Features of finished groups of models are kept in the cache folder; finished rows never run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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

import earmark
from earmark import registry
from earmark.bench.zoo import image_task
from earmark.hosts.files import load_state, save_release
from earmark.keys.secret import Key
from earmark.schemes.base import Scheme
from earmark.schemes.deepwater_torch import settle
from earmark.schemes.embedding import embed, fresh_model
from earmark.task import Task
from earmark.training import Recipe, distillation_loss, train

ROWS = Path(__file__).parent / "rows" / "deepwater_stealth.jsonl"


def cache() -> Path:
    """Return the folder that keeps models and features between runs."""
    folder = Path(os.environ.get("EARMARK_BENCH_CACHE", tempfile.gettempdir())) / "stealth"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def features(model: nn.Module) -> np.ndarray:
    """Describe every tensor's weights: histogram, filters, spectrum and neighbours."""
    found: list[np.ndarray] = []
    for values in (item.detach().double().numpy() for item in model.parameters()):
        flat = np.sort(values, axis=None)
        spread = flat.std() + 1e-12
        unit = (flat - flat.mean()) / spread
        moments = [spread, flat.mean(), (unit**3).mean(), (unit**4).mean()]
        found.append(np.array([*moments, np.median(np.abs(flat)) / spread]))
        if values.ndim < 2 or values.size < 1024:
            continue
        rows = values.reshape(len(values), -1)
        columns = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        spectrum = np.linalg.svd(rows, compute_uv=False)
        spectrum = spectrum / np.linalg.norm(spectrum)
        fifths = np.linspace(0, 1, 6)
        parts = [
            np.quantile(unit, np.linspace(0.01, 0.99, 21)),
            [rows.mean(1).std(), columns.mean(1).std()],
            np.quantile(rows.std(1), fifths) / spread,
            np.quantile(columns.std(1), fifths) / spread,
            np.quantile(spectrum, fifths),
            [(values[..., 1:] * values[..., :-1]).mean() / spread**2],
            [(values[1:] * values[:-1]).mean() / spread**2],
        ]
        found += [np.asarray(part) for part in parts]
    return np.concatenate(found)


@dataclass
class Shadows:
    """Groups of shadow models, all of one network and data set.

    Args:
        scheme: The scheme.
        network: A network of the zoo.
        data: A data set.
        epochs: Of the training.
        count: Models of a group.
    """

    scheme: Scheme
    network: str
    data: str
    epochs: int
    count: int

    def __post_init__(self) -> None:
        small = self.data == "digits"
        recipe: dict[str, Any] = {"epochs": self.epochs} | ({"lr": 0.05} if small else {})
        self.task: Task = image_task(
            self.network, self.data, batch=64 if small else 128, recipe=recipe
        )
        self.recipe = Recipe.of(self.task.recipe)

    def clean(self, seed: int, *, epochs: int = 0) -> nn.Module:
        """A model without a mark; those of the usual length are kept in the cache folder."""
        if epochs:
            recipe = Recipe.of(self.task.recipe, epochs=epochs)
            return train(self.task, seed=seed, recipe=recipe).model
        path = cache() / f"{self.network}-{self.data}-{self.epochs}-{seed}.safetensors"
        if not path.exists():
            save_release(train(self.task, seed=seed).model, path, overwrite=True)
        model = fresh_model(self.task, seed)
        load_state(model, path)
        return model.eval()

    def key(self, seed: int) -> Key:
        """The key of one shadow."""
        host = self.task.host(fresh_model(self.task, seed))
        return self.scheme.new_key(host, secret=(seed + 1).to_bytes(32, "big"))

    def scratch(self, seed: int) -> nn.Module:
        """A model that was marked while it was trained."""
        return embed(self.task, self.scheme, self.key(seed), seed=seed).model

    def stamp(self, seed: int) -> nn.Module:
        """A finished model with a stamp, and batch norms that saw it."""
        model = self.clean(seed)
        self.scheme.begin(model, self.key(seed), fresh=False)
        settle(model, self.task.stream("train", 0))
        return model

    def _tuning(self) -> Recipe:
        return Recipe.of(self.task.recipe, epochs=2, lr=self.recipe.lr / 5)

    def tuned(self, seed: int) -> nn.Module:
        """A clean model, fine-tuned."""
        return train(self.task, seed=seed + 7, recipe=self._tuning(), model=self.clean(seed)).model

    def finetune(self, seed: int) -> nn.Module:
        """A clean model, marked while it was fine-tuned."""
        key, model = self.key(seed), self.clean(seed)
        made = embed(self.task, self.scheme, key, seed=seed + 7, recipe=self._tuning(), model=model)
        return made.model

    def distilled(self, seed: int) -> nn.Module:
        """A clean student."""
        loss = distillation_loss(self.clean(seed), self.task, self.recipe.temperature)
        return train(self.task, seed=seed + 9, loss=loss, recipe=self._clipped()).model

    def _clipped(self) -> Recipe:
        return Recipe.of(self.task.recipe, clip=1.0)

    def distill(self, seed: int) -> nn.Module:
        """A student that was marked while it was distilled."""
        made = embed(
            self.task,
            self.scheme,
            self.key(seed),
            seed=seed + 9,
            teacher=self.clean(seed),
            recipe=self._clipped(),
        )
        return made.model

    def group(self, name: str, make: Callable[[int], nn.Module], first: int) -> np.ndarray:
        """Return features and accuracy of a group of models, (models, features + 1)."""
        stem = f"{self.network}-{self.data}-{self.epochs}-{self.count}-{name}"
        path = cache() / f"{stem}.npy"
        if path.exists():
            return np.asarray(np.load(path))
        rows = []
        for i in range(self.count):
            model = make(first + i)
            rows.append(np.append(features(model), self.task.evaluate(model)))
        np.save(path, np.array(rows))
        return np.array(rows)


def pairs(shadows: Shadows, label: str) -> dict[str, tuple[Callable[[], np.ndarray], ...]]:
    """Return what is held against what: a clean group and another one."""

    def clean() -> np.ndarray:
        return shadows.group("clean", shadows.clean, 0)

    def group(name: str, make: Callable[[int], nn.Module], first: int) -> Callable[[], np.ndarray]:
        return lambda: shadows.group(name, make, first)

    tuned = group("tuned", shadows.tuned, 0)
    distilled = group("distilled", shadows.distilled, 0)
    longer = shadows.epochs + 1
    return {
        "same-recipe": (clean, group("clean-again", shadows.clean, 10_000)),
        "other-recipe": (
            clean,
            group("longer", lambda seed: shadows.clean(seed, epochs=longer), 20_000),
        ),
        "scratch": (clean, group(f"scratch-{label}", shadows.scratch, 30_000)),
        "stamp": (clean, group(f"stamp-{label}", shadows.stamp, 10_000)),
        "finetune": (tuned, group(f"finetune-{label}", shadows.finetune, 10_000)),
        "distill": (distilled, group(f"distill-{label}", shadows.distill, 10_000)),
    }


def judge(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Return how well classifiers tell two groups apart, with 95 % intervals."""
    data = np.concatenate([one, other])
    truth = np.repeat([0, 1], [len(one), len(other)])
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    judges = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        "forest": RandomForestClassifier(400, random_state=0),
    }
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    for name, classifier in judges.items():
        scores = cross_val_predict(classifier, data, truth, cv=folds, method="predict_proba")[:, 1]
        draws = []
        for _ in range(1000):
            index = rng.integers(0, len(truth), len(truth))
            draws.append(roc_auc_score(truth[index], scores[index]))
        found[f"auc_{name}"] = round(float(roc_auc_score(truth, scores)), 3)
        found[f"auc_{name}_interval"] = [
            round(float(q), 3) for q in np.quantile(draws, (0.025, 0.975))
        ]
    return found


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", default="deepwater")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the scheme, JSON")
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--shadows", type=int, default=100, help="models of each kind")
    parser.add_argument("--kinds", default="same-recipe,other-recipe,scratch,stamp,finetune")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scheme = registry.scheme(args.scheme, **args.settings)
    shadows = Shadows(scheme, args.network, args.data, args.epochs, args.shadows)
    label = args.scheme + "".join(f"-{k}-{v}" for k, v in sorted(args.settings.items()))
    for kind in args.kinds.split(","):
        where = {
            "kind": kind,
            "scheme": args.scheme,
            "settings": args.settings,
            "network": args.network,
            "data": args.data,
            "epochs": args.epochs,
            "shadows": args.shadows,
        }
        if any(all(row.get(k) == v for k, v in where.items()) for row in rows()):
            continue
        started = time.process_time()
        one, other = (make() for make in pairs(shadows, label)[kind])
        row = where | {
            "accuracy_clean": round(float(one[:, -1].mean()), 3),
            "accuracy_other": round(float(other[:, -1].mean()), 3),
            "accuracy_difference_error": round(
                float(np.sqrt(one[:, -1].var() / len(one) + other[:, -1].var() / len(other))), 3
            ),
            **judge(one[:, :-1], other[:, :-1]),
            "seconds": round(time.process_time() - started, 1),
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} x {platform.machine()}",
        }
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
