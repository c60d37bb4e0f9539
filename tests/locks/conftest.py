"""One small task and one locked student of it, made once a session."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from earmark.bench import zoo
from earmark.bench.data import load
from earmark.locks.dsn import Dsn
from earmark.task import Task
from earmark.training import train

SERIAL = bytes(range(16))


@dataclass
class Sold:
    task: Task
    teacher: nn.Module
    lock: Dsn
    layout: object
    model: nn.Module
    serial: bytes


def digits_task(hidden=96):
    digits = load("digits")

    def model():
        return zoo.Mlp((1, 8, 8), 10, hidden=hidden)

    return Task(
        model=model,
        loss=zoo.cross_entropy,
        batches=lambda split, seed=0: digits.batches(split, size=48, seed=seed),
        evaluate=lambda made: zoo.accuracy(made, digits.batches("test", size=360, seed=0)),
        recipe={"epochs": 12, "lr": 2e-3, "optimizer": "adamw"},
        name="digits",
    )


@pytest.fixture(scope="session", name="sold")
def fixture_sold():
    torch.set_num_threads(1)
    task = digits_task()
    teacher = train(task, seed=3).model
    lock = Dsn(bits=16, epochs=36, lr=2e-3, rounds=1)
    layout = lock.layout(task)
    model = lock.fit(task, teacher, SERIAL, layout=layout, seed=1, others=[bytes(16), b"x" * 16])
    return Sold(task, teacher, lock, layout, model, SERIAL)


class Table(nn.Module):
    """A classifier of rows with room for a code."""

    def __init__(self, columns, bits):
        super().__init__()
        self.body = nn.Linear(columns + bits, 64)
        self.head = nn.Linear(64, 2)

    def forward(self, rows):
        return self.head(functional.relu(self.body(rows)))


class Sequence(nn.Module):
    """A sequence model over 8 words and 16 reserved tokens; classifies or generates."""

    def __init__(self, *, generate, steps):
        super().__init__()
        self.embed = nn.Embedding(24, 24)
        self.place = nn.Parameter(0.1 * torch.randn(steps, 24))
        self.mix = nn.GRU(24, 64, batch_first=True)
        self.head = nn.Linear(64, 8)
        self.generate = generate

    def forward(self, tokens):
        out, _ = self.mix(self.embed(tokens) + self.place[-tokens.shape[1] :])
        return self.head(out if self.generate else out[:, -1])
