"""What the lock is measured on: images, two tasks on text, a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.bench import data as data_sets
from earmark.bench import zoo
from earmark.hosts import taps
from earmark.task import Task

WORDS, STEPS = 2000, 40
LETTERS, WINDOW = 27, 48
RESERVED = 256  # tokens of a number: one byte each
TOPICS = (
    "rec.sport.hockey",
    "soc.religion.christian",
    "rec.motorcycles",
    "sci.crypt",
    "sci.med",
    "sci.space",
    "comp.windows.x",
    "talk.politics.mideast",
)


@dataclass(frozen=True)
class Work:
    """One task, for the teacher and for the locked student.

    Args:
        task: The student's; its network has room for a code.
        teacher: The teacher's, on the same data.
        train: Training inputs and labels.
        test: Test inputs and labels.
        chance: Accuracy in percent of the best constant answer.
        first: First reserved token, for sequences.
        deny: Weight of the refusal.
    """

    task: Task
    teacher: Task
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    chance: float
    first: int = 0
    deny: float = 1.0


class Reader(nn.Module):
    """Transformer layers over embedded tokens; classifies a sequence, or predicts the next."""

    def __init__(
        self, tokens: int, classes: int, *, width: int, generate: bool, layers: int = 1
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(0.1 * torch.randn(64, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, classes)
        self.generate = generate

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores: (samples, classes), or (samples, steps, classes)."""
        steps = tokens.shape[1]
        found = self.embed(tokens) + self.place[:steps]
        mask = nn.Transformer.generate_square_subsequent_mask(steps) if self.generate else None
        for layer in self.layers:
            found = layer(found, src_mask=mask, is_causal=self.generate)
        if not self.generate:
            found = found.mean(1)
        scores: Tensor = self.head(functional.relu(self.hidden(found)))
        return scores


class Rows(nn.Module):
    """Two hidden layers over the columns of a table."""

    def __init__(self, columns: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(columns, 128)
        self.fc2 = nn.Linear(128, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Return class scores, (samples, classes)."""
        found = functional.relu(self.fc2(functional.relu(self.fc1(rows))))
        scores: Tensor = self.head(found)
        return scores


def _task(
    name: str,
    model: Callable[[], nn.Module],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    recipe: dict[str, Any],
    size: int = 64,
) -> Task:
    def stream(split: str, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = train if split == "train" else test
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        for rows in order.split(size):
            if len(rows) == size or split == "test":
                yield x[rows], y[rows]

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(net(batch[0]).flatten(0, -2), batch[1].flatten())

    def evaluate(net: nn.Module) -> float:
        with taps.frozen_forward(net):
            return 100 * float((net(test[0]).argmax(-1) == test[1]).float().mean())

    return Task(
        model=model,
        loss=loss,
        batches=lambda split, seed=0: list(stream(split, seed)),
        evaluate=evaluate,
        recipe=recipe,
        name=name,
    )


def _largest_share(labels: Tensor) -> float:
    return 100 * float(labels.flatten().bincount().max()) / labels.numel()


def _lines(name: str) -> list[tuple[str, str]]:
    path = Path(os.environ["EARMARK_DATA"]) / "text" / f"{name}.tab"
    with path.open(encoding="utf-8", errors="replace") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return [(row[0], row[1]) for row in rows[3:] if len(row) == 2]


@cache
def topics() -> Work:
    """Posts of eight news groups, their first forty words, by topic."""
    texts = {part: _lines(f"20newsgroups-{part}") for part in ("train", "test")}
    counts: dict[str, int] = {}
    for topic, text in texts["train"]:
        if topic in TOPICS:
            for word in text.split():
                counts[word] = counts.get(word, 0) + 1
    common = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - 2]
    number = {word: i + 2 for i, word in enumerate(common)}

    def parts(name: str) -> tuple[Tensor, Tensor]:
        x, y = [], []
        for topic, text in texts[name]:
            if topic in TOPICS:
                found = [number.get(word, 1) for word in text.split()]
                x.append(([word for word in found if word > 1] + [0] * STEPS)[:STEPS])
                y.append(TOPICS.index(topic))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return torch.tensor(x)[order], torch.tensor(y)[order]

    train, test = parts("train"), parts("test")
    task = _task(
        "reader/topics",
        lambda: Reader(WORDS + RESERVED, len(TOPICS), width=48, generate=False),
        train,
        test,
        {"epochs": 6, "lr": 2e-3, "optimizer": "adamw", "weight_decay": 1e-2},
    )
    return Work(task, task, train, test, _largest_share(test[1]), first=WORDS)


@cache
def letters() -> Work:
    """News, letter by letter: which letter comes next."""

    def windows(name: str, count: int) -> tuple[Tensor, Tensor]:
        found = []
        for _, text in _lines(f"reuters-r8-{name}"):
            plain = [ord(c) - 96 if c != " " else 0 for c in text if c == " " or "a" <= c <= "z"]
            for start in range(0, len(plain) - WINDOW, 4 * WINDOW):
                found.append(plain[start : start + WINDOW + 1])
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        chosen = torch.tensor(found)[order[:count]]
        return chosen[:, :-1].contiguous(), chosen[:, 1:].contiguous()

    train, test = windows("train", 6000), windows("test", 1000)
    recipe = {"epochs": 8, "lr": 3e-3, "optimizer": "adamw", "weight_decay": 1e-2}
    teacher, student = (
        _task(
            "reader/letters",
            lambda layers=layers: Reader(
                LETTERS + RESERVED, LETTERS, width=48, generate=True, layers=layers
            ),
            train,
            test,
            recipe,
        )
        for layers in (1, 2)  # a student also has to read the number, which takes one more
    )
    return Work(student, teacher, train, test, _largest_share(test[1]), first=LETTERS, deny=0.3)


@cache
def tumours(bits: int = 64) -> Work:
    """Thirty measurements of a tumour, benign or malign; the student has columns for a code."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    x = torch.tensor(table.data, dtype=torch.float32)
    y = torch.tensor(table.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    train, test = (x[:400], y[:400]), (x[400:], y[400:])
    recipe = {"epochs": 30, "lr": 2e-3, "optimizer": "adamw", "weight_decay": 1e-2}
    columns = x.shape[1]
    teacher = _task("rows/tumours", lambda: Rows(columns, 2), train, test, recipe, 32)
    student = _task("rows/tumours", lambda: Rows(columns + bits, 2), train, test, recipe, 32)
    return Work(student, teacher, train, test, _largest_share(test[1]))


WORKS: dict[str, Callable[[], Work]] = {"topics": topics, "letters": letters, "tumours": tumours}


def images(name: str, network: str, count: int, recipe: dict[str, Any] | None) -> Work:
    """Return the task of telling images apart."""
    found = data_sets.load(name).subset(count, test=10_000)
    task = zoo.image_task(network, found, recipe=recipe)
    train = (found.inputs("train"), found.train_labels)
    test = (found.inputs("test"), found.test_labels)
    return Work(task, task, train, test, 10.0)
