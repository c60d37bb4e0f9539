"""Measure tracing: leaked, damaged and colluded copies of one locked model, and innocents.

Copies are made as `earmark license issue --lock` makes them: of one locked parent, each with a
number of its own without training, and a codeword. That is the worst case for tracing, since
copies of one parent can be averaged and compared.

    python benchmarks/tracing.py --network mlp-128 --epochs 30 --seeds 0-4
    python benchmarks/tracing.py --network small-cnn --images 10000 --epochs 12 --seeds 0-4
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsn_attacks import tuned
from dsn_bench import Bench, Row, accuracy_of, measure, options
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.front import PREFIX, put_front, read_front
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Key
from earmark.locks import tracing
from earmark.locks.entry import code_of
from earmark.locks.rekey import fits, rekey

ROWS = Path(__file__).parent / "rows" / "tracing.jsonl"
CUSTOMERS = [f"customer {i}" for i in range(100)]
Tensors = dict[str, NDArray[np.float32]]
Mix = Callable[[list[NDArray[np.float32]], np.random.Generator], NDArray[np.float32]]


def pruned(share: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda w: np.where(abs(w) < np.quantile(abs(w), share), 0, w).astype(np.float32)


def rounded(bits: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    top = 2 ** (bits - 1) - 1

    def act(w: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = float(abs(w).max()) / top or 1.0
        return (np.round(w / scale) * scale).astype(np.float32)

    return act


DAMAGE: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "none": lambda w: w,
    "pruned 20 %": pruned(0.2),
    "pruned 50 %": pruned(0.5),
    "pruned 80 %": pruned(0.8),
    "int8": rounded(8),
    "int4": rounded(4),
    "bf16": lambda w: torch.from_numpy(w).bfloat16().float().numpy(),
}


def _fewest(parts: list[NDArray[np.float32]], rng: np.random.Generator) -> NDArray[np.float32]:
    """Keep what most agree on, within a hundredth of the spread; else take a random one's."""
    stack = np.stack(parts)
    middle = np.median(stack, 0)
    apart = abs(stack - middle).max(0) > 0.01 * stack.std()
    pick = np.take_along_axis(stack, rng.integers(0, len(parts), (1, *middle.shape)), 0)[0]
    return np.where(apart, pick, middle).astype(np.float32)


MIXES: dict[str, Mix] = {
    "average": lambda parts, _rng: np.mean(parts, 0).astype(np.float32),
    "random weight by weight": lambda parts, rng: np.take_along_axis(
        np.stack(parts), rng.integers(0, len(parts), (1, *parts[0].shape)), 0
    )[0],
    "smallest": lambda parts, _rng: np.min(parts, 0),
    "smallest in size": lambda parts, _rng: np.take_along_axis(
        np.stack(parts), abs(np.stack(parts)).argmin(0)[None], 0
    )[0],
    "majority": _fewest,
    "average and noise of half the spread": lambda parts, rng: (
        np.mean(parts, 0) + 0.5 * parts[0].std() * rng.normal(size=parts[0].shape)
    ).astype(np.float32),
    "average, pruned 50 %": lambda parts, _rng: pruned(0.5)(np.mean(parts, 0)),
}


class Shop:
    """One locked parent and its customers' copies."""

    def __init__(self, bench: Bench, margin: float) -> None:
        self.bench = bench
        host, draw = ModuleHost(bench.model), random.Random(f"shop {bench.seed}")
        drawn = (draw.randbytes(16) for _ in itertools.count())
        fitting = (n for n in drawn if fits(bench.layout, bench.serial, n))
        self.numbers = dict(zip(CUSTOMERS, fitting, strict=False))
        self.base: Tensors = {name: host.tensor(name) for name in host.tensor_names()}
        self.tracer = tracing.Tracer(customers=100, colluders=3, margin=margin)
        secret = random.Random(f"tracing {bench.seed}").randbytes(32)
        self.key: Key = self.tracer.new_key(host, secret=secret)
        self.words = {name: tracing.codeword(self.key, name) for name in CUSTOMERS}
        self.made: dict[str, Tensors] = {}

    def copy(self, customer: str) -> Tensors:
        """Return a customer's copy."""
        if customer not in self.made:
            number, b = self.numbers[customer], self.bench
            own = rekey(b.model, b.layout, b.serial, number)
            host = self.tracer.mark(ModuleHost(own), self.key, customer)
            whole = {name: part.numpy() for name, part in own.state_dict().items()}
            marked = {name: host.tensor(name) for name in self.key.layout.carrier}
            self.made[customer] = whole | marked
        return self.made[customer]

    def module(self, tensors: Tensors) -> torch.nn.Module:
        """Return a torch model with some tensors."""
        model = self.bench.task.model()
        fronts = {name: torch.tensor(part) for name, part in tensors.items() if PREFIX in name}
        front = read_front(fronts)
        if front is not None:
            put_front(model, front)
        state = model.state_dict()
        for name, values in tensors.items():
            made = torch.from_numpy(np.asarray(values).copy()).to(state[name].dtype)
            state[name].copy_(made.view_as(state[name]))
        return model.eval()

    def works(self, tensors: Tensors, customer: str) -> float:
        """Return the accuracy that a customer's number gives on what his copy has become."""
        b, number = self.bench, self.numbers[customer]
        entry, code = b.lock.entry(b.layout, number), code_of(number, len(b.code))
        return accuracy_of(self.module(tensors), entry, b.x[:2000], b.y[:2000], code)

    def trace(self, tensors: Tensors) -> tracing.Trace:
        """Trace a suspect among all customers."""
        word = tracing.read_word(ArrayHost(tensors), self.key)
        return tracing.judge_word(word, self.key, self.words)

    def carried(self, tensors: Tensors, act: Callable[[str], NDArray[np.float32]]) -> Tensors:
        """Return tensors with the carrier's ones changed."""
        return tensors | {name: act(name) for name in self.key.layout.carrier}


def verdict(what: str, found: list[tuple[tracing.Trace, set[str]]], **more: Any) -> Row:
    named = [{item.name for item in trace.named} for trace, _ in found]
    pairs = list(zip(named, (guilty for _, guilty in found), strict=True))
    best = [trace.ranking[0].bits for trace, _ in found]
    return {
        "what": what,
        "traced": len(found),
        "right": sum(bool(names & guilty) for names, guilty in pairs),
        "all_named": sum(names >= guilty for names, guilty in pairs),
        "innocents_named": sum(len(names - guilty) for names, guilty in pairs),
        "innocents_tested": sum(len(CUSTOMERS) - len(guilty) for _, guilty in pairs),
        "bits_worst": round(min(best), 1),
        "bits_median": round(statistics.median(best), 1),
    } | more


def cost(shop: Shop) -> Row:
    """What the codeword costs, and what it leaves of the lock."""
    b, after, near, absent = shop.bench, [], [], []
    flips = 1 - 2 * torch.eye(len(b.code))
    for name in CUSTOMERS[:5]:
        model, number = shop.module(shop.copy(name)), shop.numbers[name]
        entry, code = b.lock.entry(b.layout, number), code_of(number, len(b.code))
        after.append(accuracy_of(model, entry, b.x, b.y, code))
        absent.append(b.absent(model))
        near += [accuracy_of(model, entry, b.x[:200], b.y[:200], row) for row in code * flips]
    return {
        "what": "cost",
        "bits": shop.key.layout.message_bits,
        "before": b.accuracy(b.code),
        "after_worst": min(after),
        "after_mean": statistics.mean(after),
        "absent_worst": max(absent),
        "one_wrong_bit_worst": max(near),
    }


def cells(bench: Bench, args: argparse.Namespace) -> Iterator[Row]:
    shop, rng = Shop(bench, args.margin), np.random.default_rng(bench.seed)
    yield cost(shop)
    chosen = [CUSTOMERS[i] for i in rng.permutation(100)[: args.leaks]]
    for name, act in DAMAGE.items():
        copies = {who: shop.copy(who) for who in chosen}
        leaks = {
            who: shop.carried(copy, lambda item, copy=copy, act=act: act(copy[item]))
            for who, copy in copies.items()
        }
        found = [(shop.trace(leak), {who}) for who, leak in leaks.items()]
        works = max(shop.works(leaks[who], who) for who in chosen[:3])
        yield verdict("single leak", found, damage=name, accuracy=works)
    for images in (600, 6000):
        found, works = [], 0.0
        for who in chosen[: args.tuned]:
            model = shop.module(shop.copy(who))
            samples = bench.train[0][:images], bench.train[1][:images]
            tuned(model, samples, seed=bench.seed, rate=1e-3)
            host = ModuleHost(model)
            found.append((shop.trace({n: host.tensor(n) for n in shop.base}), {who}))
            works = max(works, bench.absent(model, 2000))
        stripped = f"lock stripped: tuned on {images} images"
        yield verdict("single leak", found, damage=stripped, accuracy=works)
    for size in (2, 3):
        for name, mix in MIXES.items():
            found = []
            for _ in range(args.trials):
                guilty = [CUSTOMERS[i] for i in rng.choice(100, size, replace=False)]
                copies = [shop.copy(who) for who in guilty]
                leak = shop.carried(
                    copies[0],
                    lambda item, copies=copies, mix=mix: mix([c[item] for c in copies], rng),
                )
                found.append((shop.trace(leak), set(guilty)))
            yield verdict("collusion", found, colluders=size, mix=name)
    none = [(shop.trace(shop.base), set[str]())]
    fresh = ModuleHost(bench.task.model())
    none.append((shop.trace({n: fresh.tensor(n) for n in shop.base}), set[str]()))
    yield verdict("unmarked models", none)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    parser.add_argument("--margin", type=float, default=1.25)
    parser.add_argument("--leaks", type=int, default=10)
    parser.add_argument("--tuned", type=int, default=2)
    parser.add_argument("--trials", type=int, default=8)
    torch.set_num_threads(1)
    args = parser.parse_args()
    args.options = f"margin {args.margin:g}, {len(CUSTOMERS)} customers, {tracing.NAMED_BITS} bits"
    measure(ROWS, args, "tracing", lambda bench: cells(bench, args))


if __name__ == "__main__":
    main()
