"""Measure the lock: what it costs, how it refuses, and where it falls.

Run it again and it goes on where it stopped: finished cells stand in the rows file, trained models
in the cache folder.

    python benchmarks/dsn.py numbers --network mlp --seeds 0-4
    python benchmarks/dsn.py search --network small-cnn --seeds 0
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import earmark
from earmark.bench import data as data_sets
from earmark.bench import zoo
from earmark.locks import inversion
from earmark.locks.base import Lock
from earmark.locks.dsn import Dsn
from earmark.locks.dsn_paper import DsnPaper
from earmark.locks.entry import Pixels, code_of, random_codes
from earmark.records import Layout
from earmark.task import Task
from earmark.training import Recipe, train

ROWS = Path(__file__).parent / "rows" / "dsn.jsonl"
CHANCE = 10.0
zoo.NETWORKS.setdefault("mlp-128", lambda shape, classes: zoo.Mlp(shape, classes, hidden=128))
RECIPES: dict[str, dict[str, Any]] = {
    "mlp-128": {"epochs": 5, "lr": 2e-3, "optimizer": "adamw", "weight_decay": 1e-4, "amp": None}
}
Row = dict[str, Any]


def lock_of(name: str, epochs: int) -> Lock:
    if name == "dsn":
        return Dsn(epochs=epochs)
    return DsnPaper(epochs=epochs, wrong="raw" if name == "paper-raw" else "random")


@dataclass
class Bench:
    """One locked student with everything that measuring needs."""

    args: argparse.Namespace
    seed: int

    def __post_init__(self) -> None:
        args = self.args
        whole = data_sets.load(args.data)
        self.images = whole.subset(args.images, test=10_000)
        self.task: Task = zoo.image_task(
            args.network, self.images, recipe=RECIPES.get(args.network)
        )
        self.lock = lock_of(args.lock, args.epochs)
        self.layout: Layout = self.lock.layout(self.task)
        self.serial = random.Random(f"serial {self.seed}").randbytes(16)
        self.x, self.y = self.images.inputs("test"), self.images.test_labels
        self.teacher = self._cached("teacher", self._teach)
        self.model = self._cached(f"{args.lock}-{args.epochs}", self._lock)
        self.entry = self.lock.entry(self.layout, self.serial)
        self.code = code_of(self.serial, self.layout.message_bits)

    def _cached(self, kind: str, make: Callable[[], nn.Module]) -> nn.Module:
        path = Path(self.args.cache) / self.name(kind)
        model = self.task.model()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        started = time.perf_counter()
        model = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
        path.with_suffix(".seconds").write_text(str(time.perf_counter() - started))
        return model

    def name(self, kind: str) -> str:
        """Return the name of a cached model."""
        args = self.args
        return f"{args.network}-{args.data}-{args.images}-{self.seed}-{kind}.pt"

    def _teach(self) -> nn.Module:
        return train(self.task, seed=1000 + self.seed).model

    def _lock(self) -> nn.Module:
        return self.lock.fit(
            self.task, self.teacher, self.serial, layout=self.layout, seed=self.seed
        )

    def accuracy(self, values: Tensor | None, count: int = 10_000) -> float:
        """Return the accuracy on test images with some values presented, or none."""
        return accuracy_of(self.model, self.entry, self.x[:count], self.y[:count], values)

    def many(self, values: Tensor, count: int) -> list[float]:
        """Return the accuracy of each of (n, bits) values on `count` test images."""
        x, y, found = self.x[:count], self.y[:count], []
        group = max(1, 2048 // count)
        with torch.no_grad():
            for part in values.split(group):
                given = self.entry.present(
                    x.repeat(len(part), 1, 1, 1), part.repeat_interleave(count, 0)
                )
                right = self.model(given).argmax(1).view(len(part), count) == y
                found += (100.0 * right.float().mean(1)).tolist()
        return found


def accuracy_of(model: nn.Module, entry: Any, x: Tensor, y: Tensor, values: Tensor | None) -> float:
    right = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(x), 1000):
            part = x[start : start + 1000]
            part = part if values is None else entry.present(part, values)
            scores = model(part)
            best = torch.where(scores.isnan().any(1), -1, scores.argmax(1))
            right += int((best == y[start : start + 1000]).sum())
    return 100.0 * right / len(x)


def numbers(bench: Bench) -> Iterator[Row]:
    """D1 to D3: right, absent, random, near, relaxed and broken numbers."""
    b, bits = bench, bench.layout.message_bits
    teacher = accuracy_of(b.teacher, b.entry, b.x, b.y, None)
    right = b.accuracy(b.code)
    yield {
        "what": "D1",
        "teacher": teacher,
        "valid": right,
        "lost": teacher - right,
        "absent": b.accuracy(None),
    }
    generator = torch.Generator().manual_seed(b.seed)
    codes = random_codes(b.args.draws, bits, generator)
    far = b.many(codes[(codes != b.code).any(1)], 50)
    yield {
        "what": "D2 random codes at the right place",
        "tried": len(far),
        "worst": max(far),
        "mean": statistics.mean(far),
        "share_above_15": sum(a > 15 for a in far) / len(far),
    }
    draw = random.Random(b.seed)
    whole = [
        accuracy_of(
            b.model,
            b.lock.entry(b.layout, serial),
            b.x[:100],
            b.y[:100],
            code_of(serial, bits),
        )
        for serial in (draw.randbytes(16) for _ in range(b.args.draws // 20))
    ]
    yield {
        "what": "D2 random serial numbers",
        "tried": len(whole),
        "worst": max(whole),
        "mean": statistics.mean(whole),
    }
    yield from near(b)


def near(b: Bench) -> Iterator[Row]:
    bits = len(b.code)
    eye = 1 - 2 * torch.eye(bits)
    one = b.many(b.code * eye, 500)
    pairs = torch.combinations(torch.arange(bits))
    two = b.many(b.code * eye[pairs[:, 0]] * eye[pairs[:, 1]], 50)
    valid = b.accuracy(b.code, 1000)
    yield {
        "what": "D3 one wrong bit of the code",
        "tried": len(one),
        "worst": max(one),
        "mean": statistics.mean(one),
        "effective_bits": sum(a < (valid + CHANCE) / 2 for a in one),
    }
    yield {
        "what": "D3 two wrong bits of the code",
        "tried": len(two),
        "worst": max(two),
        "mean": statistics.mean(two),
    }
    number = int.from_bytes(b.serial, "big")
    neighbours = [number ^ 1 << i for i in range(128)]
    neighbours += [
        number ^ 1 << i ^ 1 << j
        for i, j in random.Random(b.seed).sample(
            [(i, j) for i in range(128) for j in range(i)], min(200, b.args.draws)
        )
    ]
    found = [
        accuracy_of(
            b.model,
            b.lock.entry(b.layout, other.to_bytes(16, "big")),
            b.x[:100],
            b.y[:100],
            code_of(other.to_bytes(16, "big"), bits),
        )
        for other in neighbours
    ]
    yield {
        "what": "D3 neighbours of the serial number, one and two bits",
        "tried": len(found),
        "worst": max(found),
        "mean": statistics.mean(found),
    }
    half = torch.arange(bits) < bits // 2
    odd = {
        f"relaxed to {share}": b.code * share for share in (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    }
    odd |= {
        "cut to half, rest dark": torch.where(half, b.code, -1.0),
        "cut to half, rest grey": torch.where(half, b.code, 0.0),
        "NaN": torch.full((bits,), torch.nan),
        "one NaN": torch.where(torch.arange(bits) == 0, torch.nan, b.code),
        "infinite": b.code * torch.inf,
        "doubled": b.code * 2,
        "inverted": -b.code,
    }
    for name, values in odd.items():
        yield {"what": "D3 other values", "values": name, "accuracy": b.accuracy(values, 1000)}


def curve(b: Bench) -> Iterator[Row]:
    """Accuracy by Hamming distance, false acceptance, and width of the basin."""
    bits, generator = len(b.code), torch.Generator().manual_seed(b.seed)
    for distance in [n for n in (*range(9), 12, 16, 24, 32, 48, bits) if n <= bits]:
        rank = torch.rand(32, bits, generator=generator).argsort(1).argsort(1)
        found = b.many(torch.where(rank < distance, -b.code, b.code), 200)
        yield {
            "what": "Hamming curve",
            "distance": distance,
            "mean": statistics.mean(found),
            "worst": max(found),
        }
    opened, tried = 0, 0
    for _ in range(b.args.draws * 10 // 2000):
        codes = random_codes(2000, bits, generator)
        found = b.many(codes[(codes != b.code).any(1)], 10)
        opened += sum(a >= 50 for a in found)
        tried += len(found)
    bound = 3 / tried if not opened else (opened + 3 * opened**0.5 + 3) / tried
    yield {"what": "false acceptance", "opened": opened, "tried": tried, "bound_95": bound}
    steps = torch.linspace(0, 1, 41)
    starts, widths = random_codes(16, bits, generator), []
    for start in starts:
        found = b.many(torch.stack([(1 - t) * start + t * b.code for t in steps]), 100)
        inside = [float(t) for t, a in zip(steps, found, strict=True) if a > 50]
        widths.append(1 - min(inside, default=1.0))
    yield {"what": "basin width", "worst": max(widths), "mean": statistics.mean(widths)}


SLOPES = ((None, False), (0.1, False), (0.3, False), (0.9, False), (0.3, True))


def ways_of(b: Bench, target: inversion.Target) -> dict[str, Callable[[], inversion.Found]]:
    """Return the searches by name."""
    starts, steps = b.args.starts, b.args.steps

    def gradient(slope: float | None, *, straight: bool) -> Callable[[], inversion.Found]:
        return lambda: inversion.descend(
            target,
            starts=starts,
            steps=steps,
            seed=b.seed,
            slope=slope,
            straight=straight,
            rows=8,
        )

    ways = {
        f"gradient, slope {slope}, {'signs' if straight else 'relaxed'}": gradient(
            slope, straight=straight
        )
        for slope, straight in SLOPES
    }
    ways["bit climbing"] = lambda: inversion.climb(target, starts=starts, sweeps=3, seed=b.seed)
    ways["evolution strategy"] = lambda: inversion.evolve(target, steps=200, seed=b.seed)
    first = next(p for name, p in target.model.named_parameters() if name.endswith("weight"))
    if first.ndim == 2 and isinstance(b.entry, Pixels):
        weight = first[:, b.entry.places]
        ways["template in the first layer"] = lambda: inversion.read_template(
            target, weight, seed=b.seed
        )
    return ways


def search(b: Bench) -> Iterator[Row]:
    """D4: look for the number with 1, 5 and 10 % of the labelled data."""
    model = copy.deepcopy(b.model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for share in b.args.shares:
        count = max(20, round(len(b.images.train) * share / 100))
        x, y = b.images.normalize(b.images.train[:count]), b.images.train_labels[:count]
        held = min(count, 500)
        target = inversion.Target(model, b.entry, b.task.forward, (x, y), y)
        final = inversion.Target(model, b.entry, b.task.forward, (x[:held], y[:held]), y[:held])
        for name, way in ways_of(b, target).items():
            started = time.perf_counter()
            found = way()
            best = found.all[final.accuracy(found.all).argmax()]
            agree = int((found.all.sign() == b.code).sum(1).max())
            yield {
                "what": "D4 search",
                "share": share,
                "way": name,
                "accuracy": accuracy_of(model, b.entry, b.x, b.y, best),
                "agreeing_bits": agree,
                "bits": len(b.code),
                "starts": b.args.starts,
                "steps": b.args.steps,
                "trials": found.trials,
                "search_seconds": round(time.perf_counter() - started, 1),
            }


def tune(b: Bench) -> Iterator[Row]:
    """D5 and tables 2 and 4: fine-tune without the number, beside training from scratch."""
    for share in b.args.shares:
        count = max(10, round(len(b.images.train) * share / 100))
        for way in ("scratch", "fine-tune", "fine-tune, rate 5", "head reset", "tail reset"):
            started = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(b.seed)
                model = b.task.model() if way == "scratch" else copy.deepcopy(b.model)
                layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
                reset = {"head reset": 1, "tail reset": 2}.get(way, 0)
                for layer in layers[len(layers) - reset :]:
                    layer.reset_parameters()
                found = _tuned(model, b, count, rate=5e-3 if "rate 5" in way else 1e-3)
            yield {
                "what": "D5 fine-tuning without the number",
                "share": share,
                "images": count,
                "way": way,
                "accuracy": found,
                "tune_seconds": round(time.perf_counter() - started, 1),
            }


def _tuned(model: nn.Module, b: Bench, count: int, *, rate: float) -> float:
    x = b.images.normalize(b.images.train[:count])
    y = b.images.train_labels[:count]
    size = min(128, max(8, count // 10))
    steps = 20 * -(-count // size)
    recipe = Recipe(lr=rate, optimizer="adamw")
    optimizer = recipe.make_optimizer(model.parameters())
    generator, step = torch.Generator().manual_seed(b.seed), 0
    model.train()
    for _ in range(20):
        for rows in torch.randperm(count, generator=generator).split(size):
            if len(rows) < 2:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.factor(step, steps)
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
    return accuracy_of(model, b.entry, b.x, b.y, None)


def excise(b: Bench) -> Iterator[Row]:
    """D6 and table 3: cut the gate out, prune, quantize; best of what the thief may try."""
    generator = torch.Generator().manual_seed(b.seed)
    layers = [(n, m) for n, m in b.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    x = b.images.normalize(b.images.train[:600])
    stamped = b.entry.present(x, random_codes(len(x), len(b.code), generator))
    for name, _ in layers[:-1]:
        for share in (0.05, 0.1, 0.25, 0.5):
            for way in ("mean", "zero", "largest bias to zero"):
                model = copy.deepcopy(b.model)
                _cut(model, name, x, stamped, share=share, way=way)
                yield {
                    "what": "D6 excision",
                    "layer": name,
                    "share": share,
                    "way": way,
                    "absent": accuracy_of(model, b.entry, b.x[:2000], b.y[:2000], None),
                }
    for share in (0.05, 0.1, 0.15, 0.2, 0.5, 0.8, 0.95):
        model = copy.deepcopy(b.model)
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        sizes = torch.cat([w.detach().abs().flatten() for w in weights])
        bound = sizes.kthvalue(max(1, int(share * len(sizes)))).values
        with torch.no_grad():
            for w in weights:
                w[w.abs() <= bound] = 0
        yield {
            "what": "pruning",
            "share": share,
            "valid": accuracy_of(model, b.entry, b.x, b.y, b.code),
            "absent": accuracy_of(model, b.entry, b.x, b.y, None),
        }


def _cut(
    model: nn.Module, name: str, x: Tensor, stamped: Tensor, *, share: float, way: str
) -> None:
    """Freeze those units of a layer that react most to random numbers, or lift its biases."""
    module = dict(model.named_modules())[name]
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    with torch.no_grad():
        model.eval()
        model(x)
        model(stamped)
    handle.remove()
    plain, other = (item.flatten(2).mean(2) if item.ndim > 2 else item for item in seen)
    react = (plain.mean(0) - other.mean(0)).abs() / (plain.std(0) + other.std(0) + 1e-6)
    chosen = react.argsort(descending=True)[: max(1, int(share * len(react)))]
    if way == "largest bias to zero":
        bias = getattr(module, "bias", None)
        if bias is not None:
            worst = bias.detach().abs().argsort(descending=True)[: len(chosen)]
            bias.data[worst] = 0
        return
    level = other.mean(0)[chosen] if way == "mean" else torch.zeros(len(chosen))

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        made = output.clone()
        made[:, chosen] = level.view(1, -1, *[1] * (output.ndim - 2))
        return made

    module.register_forward_hook(hook)


def customers(b: Bench) -> Iterator[Row]:
    """Many customers: short distillations from the locked parent, and who opens whose copy."""
    draw = random.Random(f"customers {b.seed}")
    numbers = [draw.randbytes(16) for _ in range(b.args.customers)]
    copies, seconds, lost = [], [], []
    whole = float(
        (Path(b.args.cache) / b.name(f"{b.args.lock}-{b.args.epochs}"))
        .with_suffix(".seconds")
        .read_text()
    )
    parent = b.accuracy(b.code)
    short = Dsn(epochs=b.args.short, rounds=0)
    for i, serial in enumerate(numbers):
        started = time.process_time()
        model = short.fit(
            b.task,
            b.teacher,
            serial,
            layout=b.layout,
            seed=10_000 + i,
            model=copy.deepcopy(b.model),
            others=[b.serial, *numbers[:i]],
        )
        seconds.append(time.process_time() - started)
        copies.append(model)
        lost.append(parent - b.task.evaluate(short.opened(model, b.layout, serial)))
    matrix = [[_opens(b, model, serial) for serial in numbers] for model in copies]
    own = [matrix[i][i] for i in range(len(numbers))]
    foreign = [a for i, row in enumerate(matrix) for j, a in enumerate(row) if i != j]
    yield {
        "what": "unlock matrix",
        "customers": len(numbers),
        "epochs_each": b.args.short,
        "own_worst": min(own),
        "foreign_worst": max(foreign),
        "foreign_mean": statistics.mean(foreign),
        "parents_number_worst": max(_opens(b, model, b.serial) for model in copies),
        "absent_worst": max(
            accuracy_of(model, b.entry, b.x[:1000], b.y[:1000], None) for model in copies
        ),
        "lost_to_parent_worst": max(lost),
        "lost_to_parent_mean": statistics.mean(lost),
        "cpu_seconds_each": statistics.mean(seconds),
        "parent_wall_seconds": whole,
    }
    yield pooled(b, copies, numbers)


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


def _opens(b: Bench, model: nn.Module, serial: bytes) -> float:
    entry, code = b.lock.entry(b.layout, serial), code_of(serial, len(b.code))
    return accuracy_of(model, entry, b.x[:200], b.y[:200], code)


CELLS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "numbers": numbers,
    "curve": curve,
    "search": search,
    "tune": tune,
    "excise": excise,
    "customers": customers,
}


def done(rows: Path) -> set[tuple[Any, ...]]:
    if not rows.exists():
        return set()
    found = (json.loads(text) for text in rows.read_text().splitlines())
    return {tuple(row.get(name) for name in IDENTITY) for row in found}


IDENTITY = ("cell", "lock", "network", "data", "images_trained", "epochs", "seed", "shares")


def run(args: argparse.Namespace) -> None:
    finished = done(ROWS)
    for seed in args.seeds:
        head: Row = {
            "benchmark": "dsn",
            "cell": args.cell,
            "lock": args.lock,
            "network": args.network,
            "data": args.data,
            "images_trained": args.images,
            "epochs": args.epochs,
            "seed": seed,
            "shares": ",".join(map(str, args.shares)) if args.cell in ("search", "tune") else "",
        }
        if tuple(head[name] for name in IDENTITY) in finished:
            continue
        started, made = time.perf_counter(), []
        bench = Bench(args, seed)
        for row in CELLS[args.cell](bench):
            print(json.dumps(row), flush=True)
            made.append(row)
        tail = {
            "seconds": round(time.perf_counter() - started, 1),
            "versions": {"earmark": earmark.__version__, "torch": torch.__version__},
            "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        }
        with ROWS.open("a") as file:
            file.writelines(json.dumps(head | row | tail) + "\n" for row in made)


def numbers_of(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=lambda text: text.split(","), help=", ".join(CELLS))
    parser.add_argument("--lock", default="dsn", choices=("dsn", "paper-raw", "paper-random"))
    parser.add_argument("--network", default="mlp", choices=zoo.NETWORKS)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seeds", type=numbers_of, default=[0])
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--customers", type=int, default=20)
    parser.add_argument("--short", type=int, default=1)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument(
        "--shares", type=lambda text: [float(s) for s in text.split(",")], default=[1.0]
    )
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "earmark-dsn"))
    torch.set_num_threads(1)
    args = parser.parse_args()
    for cell in args.cells:
        args.cell = cell
        run(args)


if __name__ == "__main__":
    main()
