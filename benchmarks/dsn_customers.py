"""Many customers: ways to make a copy with a number of its own, and who opens whose copy."""

from __future__ import annotations

import copy
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dsn_bench import Bench, Row, accuracy_of
from earmark.hosts import batches
from earmark.locks.dsn import Dsn, LockLoss
from earmark.locks.entry import code_of
from earmark.locks.rekey import fits, rekey
from earmark.training import Recipe, train

Maker = Callable[[int, bytes], nn.Module]
RELAXED = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
WAYS = ("fronted", "short", "first", "batch")


def customers(b: Bench) -> Iterator[Row]:
    """Make copies in several ways, and try every number on every copy."""
    numbers = _numbers(b, b.args.customers)
    path = Path(b.args.cache) / b.name(f"{b.args.lock}-{b.args.epochs}")
    first = float(path.with_suffix(".seconds").read_text())
    few = numbers[: b.args.trained]
    epochs = b.args.short
    ways: dict[str, tuple[str, list[bytes], Maker]] = {
        "fronted": ("number in front, no training", numbers, _fronted(b)),
        "short": (f"{epochs} epochs from the locked parent", few, _short(b, few, only_first=False)),
        "first": (f"{epochs} epochs, first layer only", few, _short(b, few, only_first=True)),
    }
    for name, theirs, make in (ways[way] for way in b.args.ways if way in ways):
        made, spent = [], 0.0
        for i, serial in enumerate(theirs):
            started = time.process_time()
            made.append(make(i, serial))
            spent += time.process_time() - started
        yield (
            {"what": "unlock matrix", "way": name}
            | matrix(b, made, theirs)
            | {
                "cpu_seconds_each": spent / len(theirs),
                "first_copy_cpu_seconds": first,
                "cost_share": spent / len(theirs) / first,
            }
        )
        if len(theirs) >= 4:
            yield {"way": name} | pooled(b, made, theirs)
    if "batch" in b.args.ways:
        yield from batch_of(b, few)


def copies(b: Bench) -> Iterator[Row]:
    """D3: what is no code, presented to five copies as they are issued; the worst of them."""
    worst: dict[str, float] = {}
    for serial in _numbers(b, 5):
        model, entry = rekey(b.model, b.layout, b.serial, serial), b.lock.entry(b.layout, serial)
        code = code_of(serial, len(b.code))
        for name, values in {"the right number": code, **odd_values(code)}.items():
            found = accuracy_of(model, entry, b.x[:1000], b.y[:1000], values)
            worst[name] = max(worst.get(name, 0.0), found)
    for name, accuracy in worst.items():
        yield {"what": "D3 other values", "values": name, "accuracy": accuracy}


def odd_values(code: Tensor) -> dict[str, Tensor]:
    """Return what an attacker may present where pixels or columns take any value."""
    half = torch.arange(len(code)) < len(code) // 2
    odd = {f"relaxed to {share}": code * share for share in RELAXED}
    return odd | {
        "cut to half, rest dark": torch.where(half, code, -1.0),
        "cut to half, rest grey": torch.where(half, code, 0.0),
        "NaN": torch.full((len(code),), torch.nan),
        "one NaN": torch.where(torch.arange(len(code)) == 0, torch.nan, code),
        "infinite": code * torch.inf,
        "doubled": code * 2,
        "inverted": -code,
    }


def _numbers(b: Bench, count: int) -> list[bytes]:
    """Draw customers' numbers, but for those whose stamp would lie in another corner."""
    draw = random.Random(f"customers {b.seed}")
    drawn = (draw.randbytes(16) for _ in iter(int, 1))
    fitting = (number for number in drawn if fits(b.layout, b.serial, number))
    return list(itertools.islice(fitting, count))


def _fronted(b: Bench) -> Maker:
    return lambda _i, serial: rekey(b.model, b.layout, b.serial, serial)


def _short(b: Bench, numbers: list[bytes], *, only_first: bool) -> Maker:
    short = Dsn(epochs=b.args.short, rounds=0, first=b.work.first)

    def make(i: int, serial: bytes) -> nn.Module:
        model = copy.deepcopy(b.model)
        if only_first:
            for parameter in list(model.parameters())[2:]:
                parameter.requires_grad_(requires_grad=False)
        return short.fit(
            b.task,
            b.teacher,
            serial,
            layout=b.layout,
            seed=10_000 + i,
            model=model,
            others=[b.serial, *numbers[:i]],
        )

    return make


def matrix(b: Bench, copies: list[nn.Module], numbers: list[bytes]) -> Row:
    """Try every number on every copy, on 50 samples; the right ones on all."""
    own = [_opens(b, model, serial, 10_000) for model, serial in zip(copies, numbers, strict=True)]
    foreign = [
        _opens(b, model, serial, 50)
        for i, model in enumerate(copies)
        for j, serial in enumerate(numbers)
        if i != j
    ]
    parent = b.accuracy(b.code)
    return {
        "customers": len(numbers),
        "parent": parent,
        "own_worst": min(own),
        "own_median": statistics.median(own),
        "foreign_tried": len(foreign),
        "foreign_worst": max(foreign),
        "foreign_mean": statistics.mean(foreign),
        "parents_number_worst": max(_opens(b, model, b.serial, 1000) for model in copies),
        "absent_worst": max(b.absent(model, 1000) for model in copies),
        "lost_to_parent_worst": parent - min(own),
        "one_wrong_bit_worst": max(
            worst_bit(b, model, serial) for model, serial in zip(copies[:5], numbers, strict=False)
        ),
    }


def worst_bit(b: Bench, model: nn.Module, serial: bytes) -> float:
    """Return the best accuracy on 200 samples with one bit of a copy's own code wrong."""
    entry, code = b.lock.entry(b.layout, serial), code_of(serial, len(b.code))
    near = code * (1 - 2 * torch.eye(len(code)))
    return max(accuracy_of(model, entry, b.x[:200], b.y[:200], row) for row in near)


def pooled(b: Bench, copies: list[nn.Module], numbers: list[bytes]) -> Row:
    """D8: numbers of three licensees, mixed bit by bit, on a fourth one's copy."""
    draw, found = random.Random(b.seed), []
    for _ in range(100):
        *pool, target = draw.sample(range(len(numbers)), 4)
        codes = torch.stack([code_of(numbers[i], len(b.code)) for i in pool])
        mixes = [codes.sum(0).sign(), codes.prod(0), codes.mean(0), codes[:2].mean(0)]
        entry = b.lock.entry(b.layout, numbers[target])
        found += [accuracy_of(copies[target], entry, b.x[:200], b.y[:200], mix) for mix in mixes]
    return {"what": "D8 pooled numbers", "tried": len(found), "worst": max(found)}


def _opens(b: Bench, model: nn.Module, serial: bytes, count: int) -> float:
    entry, code = b.lock.entry(b.layout, serial), code_of(serial, len(b.code))
    return accuracy_of(model, entry, b.x[:count], b.y[:count], code)


class _Many(LockLoss):
    """The loss of one network that several numbers open."""

    def __init__(self, b: Bench, lock: Dsn, numbers: list[bytes]) -> None:
        super().__init__(lock, b.task, b.teacher, b.layout, numbers[0], seed=b.seed, others=())
        self.ways = [
            (b.lock.entry(b.layout, number), code_of(number, len(b.code))) for number in numbers
        ]

    def __call__(self, model: nn.Module, batch: batches.Tree) -> Tensor:
        """Return the loss on one batch, for one of the numbers in turn."""
        self.entry, self.code = self.ways[self.step % len(self.ways)]
        self.negatives.entry, self.negatives.code = self.entry, self.code
        return super().__call__(model, batch)


def batch_of(b: Bench, numbers: list[bytes]) -> Iterator[Row]:
    """Train one network that all numbers open: what every customer's copy would then be."""
    lock = Dsn(epochs=b.args.epochs, rounds=0)
    loss = _Many(b, lock, numbers)
    steps = sum(1 for _ in b.task.stream("train", b.seed))
    loss.total = steps * lock.epochs
    recipe = Recipe(epochs=lock.epochs, lr=lock.lr, optimizer="adamw", weight_decay=0.0)
    started = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(b.seed)
        model = b.task.model()
    model = train(b.task, seed=b.seed, recipe=recipe, model=model, loss=loss).model
    own = [_opens(b, model, number, 10_000) for number in numbers]
    spent = time.process_time() - started
    yield {
        "what": "unlock matrix",
        "way": "one network for all numbers",
        "customers": len(numbers),
        "parent": b.accuracy(b.code),
        "own_worst": min(own),
        "own_median": statistics.median(own),
        "foreign_worst": max(own),
        "absent_worst": b.absent(model, 1000),
        "one_wrong_bit_worst": worst_bit(b, model, numbers[0]),
        "cpu_seconds_each": spent / len(numbers),
    }
