"""Measure MTL-Sign in sound mode: utility, release evidence, and what attacks leave of it.

Run it again and it goes on where it stopped: finished cells stand in the rows file.

    python benchmarks/mtlsign.py --seeds 0-4
    python benchmarks/mtlsign.py --network resnet8 --seeds 0-2 --attacks ftal,prune-80
    python benchmarks/mtlsign.py --table
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import earmark
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.attacks.chain import Chain
from earmark.attacks.features import (
    Collapse,
    DistillFeatures,
    EraseRevealed,
    ResetTail,
    Scramble,
)
from earmark.attacks.finetune import FineTune, Refit
from earmark.attacks.noise import Noise
from earmark.attacks.obfuscate import Dummies, Obfuscate, Permute, Scale
from earmark.attacks.overwrite import Overwrite
from earmark.attacks.prune import Prune, PruneChannels
from earmark.attacks.quantize import Cast, Quantize
from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.hosts import batches
from earmark.keys.secret import Disclosure, Key
from earmark.policy import log2_p
from earmark.schemes import mtlsign
from earmark.schemes.conceal import SETTINGS, conceal
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.riding import labels_of
from earmark.schemes.settling import train_settled
from earmark.task import Task
from earmark.training import train

ROWS = Path(__file__).parent / "rows" / "mtlsign.jsonl"


@dataclass(frozen=True)
class Distill(Attack):
    """A fresh model that learns from the stolen one's answers alone."""

    name = "distill-fresh"
    family = "distill"
    epochs: int = 8
    lr: float = 0.1

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Train it."""
        from earmark.attacks import tuning

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        answers = tuning.answers(model, budget, temperature=3.0)
        return tuning.tune(budget.task.model(), budget, settings, seed=seed, loss=answers)


@dataclass(frozen=True)
class Scratch(Attack):
    """No theft at all: a fresh model on the attacker's own data. What else he could have had."""

    name = "scratch"
    family = "distill"
    epochs: int = 8
    lr: float = 0.1

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:  # noqa: ARG002
        """Train it."""
        from earmark.attacks import tuning

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        return tuning.tune(budget.task.model(), budget, settings, seed=seed)


def attacks(key: Key, network: str, *, overwrite: dict[str, Any]) -> dict[str, Attack]:
    """Return the battery by name."""
    half = range(key.layout.shards // 2)
    each = key.layout.message_bits // key.layout.shards
    directions = key.layout.params["directions"]
    shown = [i for i in range(key.layout.shards) if i % directions < directions // 2]
    erase = EraseRevealed(
        inputs=batches.join(
            [batches.take(key.inputs, slice(each * i, each * (i + 1))) for i in shown]
        ),
        signs=[sign for i in shown for sign in labels_of(key.shard(i), each)],
    )
    assert len(shown) == len(half)
    everywhere = Collapse(weight=10.0, epochs=8, taps=every_layer(network))
    known = key.layout.carrier  # the marked layers, and what flows into them
    return {
        "collapse-30": Collapse(weight=30.0, epochs=10, taps=known),
        "collapse-3": Collapse(weight=3.0, taps=known),
        "collapse-everywhere": everywhere,
        "ftal": FineTune.preset("ftal"),
        "ftal-lr.1": FineTune(lr=0.1),
        "overwrite": Overwrite(settings_of_scheme=overwrite, inputs=2560),
        "erase-half": erase,
        "scramble-noise-10": Scramble(weight=10.0, epochs=4, taps=known),
        "scramble-own-10": Scramble(own=True, weight=10.0, epochs=4, taps=known),
        "distill-features": DistillFeatures(taps=known),
        "rtal": FineTune.preset("rtal"),
        "rtll": FineTune.preset("rtll"),
        "prune-65": Prune(share=0.65),
        "prune-80": Prune(share=0.8),
        "channels-30": PruneChannels(share=0.3),
        "int8": Quantize(bits=8),
        "int4": Quantize(bits=4),
        "noise-10": Noise(share=0.1),
        "permute-scale": Chain((Permute(), Scale())),
        "dummies": Dummies(),
        "dummies-zero": Dummies.preset("zero"),
        "dummies-split": Dummies.preset("split"),
        "dummies-active": Dummies.preset("active"),
        "obfuscate": Obfuscate(),
        "distill": Distill(),
        "scratch": Scratch(),
        "bf16": Cast(format="bf16"),
        "prune-90": Prune(share=0.9),
        "obfuscate-ftal": Chain((Obfuscate(), FineTune())),
        "ftal-lr.1-20": FineTune(lr=0.1, epochs=20),
        "adam-1e-4": FineTune.preset("adam"),
        "adam-1e-3": FineTune(optimizer="adamw", lr=1e-3, epochs=20),
        "adam-5e-3": FineTune.preset("adam-high-lr"),
        "refit": Refit.preset("basic"),
        "ftll": FineTune.preset("ftll"),
        "reset-two": ResetTail(),
        "reset-three": ResetTail(layers=3),
        "overwrite-double": Overwrite(settings_of_scheme=overwrite, strength=2.0, inputs=2560),
        "collapse-100": Collapse(weight=100.0, epochs=10, taps=known),
        "collapse-everywhere-30": dataclasses.replace(everywhere, weight=30.0, epochs=10),
        "collapse-10": Collapse(weight=10.0, taps=known),
        "collapse-truth-30": Collapse(weight=30.0, truth=True, epochs=10, taps=known),
        "scramble-noise-1": Scramble(taps=known),
        "scramble-own-1": Scramble(own=True, taps=known),
    }


def every_layer(network: str) -> tuple[str, ...]:
    """Return where our own attack collapses features: behind every stage of a network."""
    if network.startswith("resnet"):
        return ("stages.0", "stages.1", "stages.2", "head:in")
    return ("conv2", "conv3", "fc:in", "fc", "head:in")


class Cell:
    """A seed's twin, marked model and key, made once and kept in a cache.

    Args:
        args: The command line's choices.
        seed: Seed of initialization, batches, key and attacks.
    """

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        some = load(args.data).subset(args.images, test=args.test)
        self.task: Task = image_task(args.network, some, recipe={"epochs": args.epochs})
        settings = dict(SETTINGS if args.conceal else {}) | json.loads(args.scheme)
        self.own = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        self.settings = self.own | ({"concealed within": args.conceal} if args.conceal else {})
        self.scheme = MtlSign(**self.own)
        self.budget = Budget(self.task, knowledge=Knowledge.SHARDS)

    @functools.cached_property
    def key(self) -> Key:
        """The key; its candidates are those that the attackers do not hold."""
        stream = list(self.task.stream("train", 0))
        inputs = batches.join(stream[-(self.args.candidates // batches.size(stream[0])) :])
        secret = hashlib.sha256(f"benchmark/mtlsign/{self.seed}".encode()).digest()
        return self.scheme.new_key(self.task.host(self.fresh()), inputs=inputs, secret=secret)

    def fresh(self) -> nn.Module:
        """Return the untrained model of this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.task.model()

    @functools.cached_property
    def marked(self) -> tuple[nn.Module, float]:
        """The marked model, and CPU seconds (null seconds from the cache)."""

        def make() -> nn.Module:
            if reach := self.args.conceal:
                return conceal(
                    self.task,
                    self.scheme,
                    self.key,
                    model=copy.deepcopy(self.finished[0]),
                    seed=self.seed,
                    reach=reach,
                ).model
            model = self.fresh()
            with self.scheme.attach(model, self.key) as mark:
                return train(self.task, seed=self.seed, model=model, mark=mark).model

        return self._cached("marked", make)

    @functools.cached_property
    def finished(self) -> tuple[nn.Module, float]:
        """The unmarked network that a mark is concealed in: settled, where the scheme settles."""
        if not self.scheme.settle:
            return self.twin
        weight, layers = self.scheme.settle, self.scheme.settled_at(self.task.host(self.fresh()))
        return self._cached(
            f"settled {weight}",
            lambda: train_settled(self.task, layers, seed=self.seed, weight=weight).model,
        )

    @functools.cached_property
    def twin(self) -> tuple[nn.Module, float]:
        """The unmarked twin."""
        return self._cached("twin", lambda: train(self.task, seed=self.seed).model)

    def _cached(self, kind: str, make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
        size = [self.args.images, kind]
        name = json.dumps([self.task.name, dict(self.task.recipe), size], sort_keys=True)
        if kind == "marked":
            name += repr(self.scheme) + str(self.args.candidates)
            name += f" near {self.args.conceal}" if self.args.conceal else ""
        folder = Path(tempfile.gettempdir()) / "earmark-benchmarks"
        folder.mkdir(exist_ok=True)
        path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{self.seed}.pt"
        if path.exists():
            model = self.task.model()
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval(), float("nan")
        start = time.process_time()
        model = make()
        seconds = time.process_time() - start
        torch.save(model.state_dict(), path)
        return model, seconds

    def row(self, attack: str, model: nn.Module, seconds: float) -> dict[str, Any]:
        """Measure a model."""
        start = time.process_time()
        evidence = self.scheme.measure(self.task.host(model), self.key)
        spent = time.process_time() - start
        row = {
            "scheme": "mtlsign",
            "settings": self.settings,
            "network": self.args.network,
            "data": self.args.data,
            "images": self.args.images,
            "attack": attack,
            "seed": self.seed,
            "epochs": dict(self.task.recipe)["epochs"],
            "utility": round(self.task.evaluate(model), 2),
            "hits": evidence.hits,
            "trials": evidence.trials,
            "bits": round(-log2_p(evidence), 1),
            "by_direction": evidence.details["hits and trials by direction"],
            "read": evidence.details["blocks read by tap"],
            "seconds": None if np.isnan(seconds) else round(seconds, 1),
            "measure_seconds": round(spent, 2),
        }
        if attack == "none":
            row["least_shard_bits"] = min(self._shard_bits(model))
        if attack == "erase-half":
            row["kept_bits"] = self._kept(model)
        return row | versions()

    def _shard_bits(self, model: nn.Module) -> list[float]:
        return [self._bits(model, [i]) for i in range(self.key.layout.shards)]

    def _kept(self, model: nn.Module) -> float:
        directions = self.key.layout.params["directions"]
        kept = [i for i in range(self.key.layout.shards) if i % directions >= directions // 2]
        return self._bits(model, kept)

    def _bits(self, model: nn.Module, shards: list[int]) -> float:
        each = self.key.layout.message_bits // self.key.layout.shards
        inputs = batches.join(
            [batches.take(self.key.inputs, slice(each * i, each * (i + 1))) for i in shards]
        )
        part = Disclosure(self.key.opening("0" * 64), self.key.reveal(shards), inputs)
        return round(-log2_p(self.scheme.measure(self.task.host(model), part)), 1)


def versions() -> dict[str, Any]:
    """Return what a row must say about software and machine."""
    return {
        "versions": {
            "earmark": getattr(earmark, "__version__", "0"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def identity(row: dict[str, Any]) -> str:
    """Return what names a cell."""
    names = ("settings", "network", "data", "images", "attack", "seed", "epochs")
    return json.dumps([row.get(name) for name in names], sort_keys=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return all rows so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, row: dict[str, Any]) -> None:
    """Append a row."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab", buffering=0) as file:  # one call, for others may write at once
        file.write((json.dumps(row, sort_keys=True) + "\n").encode())
    print(*(f"{row.get(n)}" for n in ("attack", "seed", "utility", "bits", "error")), flush=True)


def run(args: argparse.Namespace) -> None:
    """Fill the table's cells until the time is over."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    until = time.monotonic() + 60 * args.minutes
    for seed in args.seeds:
        cell = Cell(args, seed)
        base = {
            "settings": cell.settings,
            "network": args.network,
            "data": args.data,
            "images": args.images,
            "seed": seed,
            "epochs": dict(cell.task.recipe)["epochs"],
        }

        def missing(attack: str) -> bool:
            done = {identity(row) for row in read(args.rows)}
            return identity(base | {"attack": attack}) not in done  # noqa: B023 - used at once

        for attack, made in (("none", "marked"), ("twin", "twin")):
            if missing(attack) and not args.no_twin * (attack == "twin"):
                write(args.rows, cell.row(attack, *getattr(cell, made)))
        for name, attack in attacks(cell.key, args.network, overwrite=cell.own).items():
            if time.monotonic() > until:
                return
            if missing(name) and (not args.attacks or name in args.attacks):
                start = time.process_time()
                try:
                    model = attack.run(cell.marked[0], cell.budget, seed=seed)
                    write(args.rows, cell.row(name, model, time.process_time() - start))
                except Exception as error:  # noqa: BLE001 - a failure is a row too
                    failed = {"attack": name, "error": f"{type(error).__name__}: {error}"[:300]}
                    write(args.rows, base | failed)


def cost(args: argparse.Namespace) -> None:
    """Time steps with and without the mark side by side, and verification beside a pass."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cell = Cell(args, args.seeds[0])
    scheme, task, key = cell.scheme, cell.task, cell.key
    model, plain = cell.fresh(), cell.fresh()
    stream = list(task.stream("train", 1))[:120]
    times: dict[str, list[float]] = {"plain": [], "marked": []}

    def step(kind: str, net: nn.Module, batch: Any, mark: Any) -> None:
        start = time.process_time()
        if mark is not None:
            batch = mark.mix(batch)
        loss = task.loss(net, batch)
        if mark is not None:
            loss = loss + mark.loss()
        optimizers[kind].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[kind].step()
        if mark is not None:
            mark.after_step(0.05)
        times[kind].append(time.process_time() - start)

    optimizers = {
        "plain": torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, nesterov=True),
        "marked": torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True),
    }
    with scheme.attach(model, key) as mark:
        mark.after_step(0.1)  # from a peak: the samples are being settled while time is taken
        for batch in stream:
            step("plain", plain.train(), batch, None)
            step("marked", model.train(), batch, mark)
    host = task.host(model.eval())
    verify, forward, refits = [], [], []
    for _ in range(5):
        start = time.process_time()
        found = host.features(key.inputs, key.layout.carrier)
        forward.append(time.process_time() - start)
        start = time.process_time()
        mtlsign.tally(key.layout, key.shards, found, ("0" * 64, "0" * 64))
        refits.append(time.process_time() - start)
        start = time.process_time()
        scheme.measure(host, key)
        verify.append(time.process_time() - start)
    ratios = [v / (f + r) for v, f, r in zip(verify, forward, refits, strict=True)]
    middle = {  # of two steps each, because samples are settled in every second one
        name: statistics.median((a + b) / 2 for a, b in zip(some[20::2], some[21::2], strict=True))
        for name, some in times.items()
    }
    row = {
        "scheme": "mtlsign",
        "settings": cell.settings,
        "network": args.network,
        "data": args.data,
        "images": args.images,
        "attack": "cost",
        "seed": args.seeds[0],
        "epochs": dict(task.recipe)["epochs"],
        "step_ms": {name: round(1e3 * value, 2) for name, value in middle.items()},
        "step_ratio": round(middle["marked"] / middle["plain"], 3),
        "forward_seconds": round(statistics.median(forward), 3),
        "refit_seconds": round(statistics.median(refits), 3),
        "measure_seconds": round(statistics.median(verify), 3),
        "verification_ratio": round(statistics.median(ratios), 3),
    }
    write(args.rows, row | versions())
    print(row["step_ratio"], row["verification_ratio"])


def table(args: argparse.Namespace) -> None:
    """Print worst and median over seeds."""
    rows = [r for r in read(args.rows) if r["network"] == args.network and r["data"] == args.data]
    wanted = json.dumps(json.loads(args.scheme), sort_keys=True)
    rows = [r for r in rows if json.dumps(r["settings"], sort_keys=True) == wanted]
    print("| attack | seeds | utility median | bits worst | bits median |\n|---|---|---|---|---|")
    for name in dict.fromkeys(row["attack"] for row in rows):
        some = [row for row in rows if row["attack"] == name and "bits" in row]
        if some:
            bits = [row.get("kept_bits", row["bits"]) for row in some]
            print(
                f"| {name} | {len(some)} | {statistics.median(r['utility'] for r in some):.2f} "
                f"| {min(bits):.0f} | {statistics.median(bits):.0f} |"
            )


def seeds(text: str) -> list[int]:
    """Read "3" or "0-4"."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=seeds, default=seeds("0-4"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=5000, help="test images")
    parser.add_argument("--scheme", default="{}", help="settings of the scheme, JSON")
    parser.add_argument("--conceal", type=float, default=0.0, help="reach from the twin")
    parser.add_argument("--candidates", type=int, default=4096)
    parser.add_argument("--attacks", type=lambda text: set(text.split(",")), default=set())
    parser.add_argument("--no-twin", action="store_true")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after so long")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    parser.add_argument("--cost", action="store_true", help="time steps and verification, and stop")
    args = parser.parse_args()
    (table if args.table else cost if args.cost else run)(args)


if __name__ == "__main__":
    main()
