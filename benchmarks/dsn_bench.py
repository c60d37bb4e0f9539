"""One locked student with everything that measuring needs, and the rows file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import earmark
from dsn_works import WORKS, Work, images
from earmark.bench import zoo
from earmark.locks.base import Lock
from earmark.locks.dsn import Dsn
from earmark.locks.dsn_paper import DsnPaper
from earmark.locks.entry import code_of
from earmark.records import Layout
from earmark.training import train

Row = dict[str, Any]
LOCKS = ("dsn", "dsn-unscanned", "paper-raw", "paper-random")
zoo.NETWORKS.setdefault("mlp-128", lambda shape, classes: zoo.Mlp(shape, classes, hidden=128))
RECIPES: dict[str, dict[str, Any]] = {
    "mlp-128": {"epochs": 5, "lr": 2e-3, "optimizer": "adamw", "weight_decay": 1e-4, "amp": None}
}


def lock_of(name: str, epochs: int, first: int = 0, deny: float = 1.0) -> Lock:
    if name == "dsn":
        return Dsn(epochs=epochs, first=first, deny=deny)
    if name == "dsn-unscanned":
        return Dsn(epochs=epochs, first=first, deny=deny, scans=0)
    return DsnPaper(epochs=epochs, wrong="raw" if name == "paper-raw" else "random")


def work_of(args: argparse.Namespace) -> Work:
    if args.data in WORKS:
        return WORKS[args.data]()
    return images(args.data, args.network, args.images, RECIPES.get(args.network))


def even(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples in an order in which every class comes in turn, so that few give chance."""
    if y.ndim > 1:
        return x, y
    place = torch.empty_like(y)
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        place[rows] = torch.arange(len(rows))
    order = (place * (int(y.max()) + 1) + y).argsort()
    return x[order], y[order]


@dataclass
class Bench:
    """One locked student with everything that measuring needs."""

    args: argparse.Namespace
    seed: int

    def __post_init__(self) -> None:
        args = self.args
        self.work = work_of(args)
        self.task, self.train, self.chance = self.work.task, self.work.train, self.work.chance
        self.lock = lock_of(args.lock, args.epochs, self.work.first, self.work.deny)
        self.layout: Layout = self.lock.layout(self.task)
        self.serial = random.Random(f"serial {self.seed}").randbytes(16)
        self.x, self.y = even(*self.work.test)
        self.teacher = self.cached("teacher", self._teach, self.work.teacher.model)
        self.model = self.cached(f"{args.lock}-{args.epochs}", self._lock, self.task.model)
        self.entry = self.lock.entry(self.layout, self.serial)
        self.code = code_of(self.serial, self.layout.message_bits)

    def cached(
        self, kind: str, make: Callable[[], nn.Module], empty: Callable[[], nn.Module]
    ) -> nn.Module:
        """Return a model from the cache, or make it and keep it."""
        path = Path(self.args.cache) / self.name(kind)
        model = empty()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        started = time.process_time()
        model = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        path.with_suffix(".seconds").write_text(str(time.process_time() - started))
        return model

    def name(self, kind: str) -> str:
        """Return the name of a cached model."""
        args = self.args
        return f"{args.network}-{args.data}-{args.images}-{self.seed}-{kind}.pt"

    def _teach(self) -> nn.Module:
        return train(self.work.teacher, seed=1000 + self.seed).model

    def _lock(self) -> nn.Module:
        return self.lock.fit(
            self.task, self.teacher, self.serial, layout=self.layout, seed=self.seed
        )

    def accuracy(self, values: Tensor | None, count: int = 10_000) -> float:
        """Return the accuracy on test samples with some values presented, or none."""
        return accuracy_of(self.model, self.entry, self.x[:count], self.y[:count], values)

    def absent(self, model: nn.Module, count: int = 10_000) -> float:
        """Return the accuracy of a model to which no number is presented."""
        return accuracy_of(model, self.entry, self.x[:count], self.y[:count], None)

    def many(self, values: Tensor, count: int) -> list[float]:
        """Return the accuracy of each of (n, bits) values on `count` test samples."""
        if self.y.ndim > 1:  # every position of a sequence is one answer
            count = max(2, count // 10)
        count = min(count, len(self.x))
        x, y, found = self.x[:count], self.y[:count], []
        group = max(1, 2048 // count)
        with torch.no_grad():
            for part in values.split(group):
                repeated = x.repeat(len(part), *[1] * (x.ndim - 1))
                given = self.entry.present(repeated, part.repeat_interleave(count, 0))
                scores = self.entry.scores(self.model(given))
                right = scores.argmax(1).view(len(part), -1) == y.flatten()
                found += (100.0 * right.float().mean(1)).tolist()
        return found

    def worst(self, codes: Tensor, quick: int = 20) -> Row:
        """Try codes on a few samples, and those that did best again on 500."""
        found = self.many(codes, quick)
        best = torch.tensor(found).argsort(descending=True)[:32]
        return {
            "tried": len(found),
            "worst": max(self.many(codes[best], 500)),
            "mean": sum(found) / len(found),
        }


def accuracy_of(model: nn.Module, entry: Any, x: Tensor, y: Tensor, values: Tensor | None) -> float:
    right = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(x), 1000):
            part, labels = x[start : start + 1000], y[start : start + 1000].flatten()
            if values is not None:
                scores = entry.scores(model(entry.present(part, values)))
            else:
                scores = model(entry.absent(part)).flatten(0, -2)
            best = torch.where(scores.isnan().any(1), -1, scores.argmax(1))
            right += int((best == labels).sum())
    return 100.0 * right / y.numel()


def numbers_of(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def shares_of(text: str) -> list[float]:
    return [float(share) for share in text.split(",")]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which student is measured."""
    parser.add_argument("--lock", default="dsn", choices=LOCKS)
    parser.add_argument("--network", default="mlp", help=f"{', '.join(zoo.NETWORKS)}, reader, rows")
    parser.add_argument("--data", default="fashion-mnist", help=f"or mnist, cifar10, {[*WORKS]}")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seeds", type=numbers_of, default=[0])
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "earmark-dsn"))


IDENTITY = ("cell", "lock", "network", "data", "images_trained", "epochs", "seed", "options")


def measure(
    rows: Path, args: argparse.Namespace, cell: str, make: Callable[[Bench], Iterator[Row]]
) -> None:
    """Run one cell for every seed that has no rows yet, and append its rows."""
    finished = set()
    if rows.exists():
        lines = [json.loads(text) for text in rows.read_text().splitlines()]
        finished = {tuple(row.get(name) for name in IDENTITY) for row in lines}
    for seed in args.seeds:
        head: Row = {
            "benchmark": rows.stem,
            "cell": cell,
            "lock": args.lock,
            "network": args.network,
            "data": args.data,
            "images_trained": args.images,
            "epochs": args.epochs,
            "seed": seed,
            "options": args.options,
        }
        if tuple(head[name] for name in IDENTITY) in finished:
            continue
        bench = Bench(args, seed)
        started, made = time.process_time(), []
        for row in make(bench):
            print(json.dumps(row), flush=True)
            made.append(row)
        tail = {
            "cpu_seconds": round(time.process_time() - started, 1),
            "versions": {"earmark": earmark.__version__, "torch": torch.__version__},
            "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        }
        with rows.open("a") as file:
            file.writelines(json.dumps(head | row | tail) + "\n" for row in made)
