"""Measure Deep Water: fidelity, stealth, and what attacks leave of the mark, claim by claim.

Run it again and it goes on where it stopped: finished cells stand in the rows file.

    python benchmarks/deepwater.py --network small-cnn --seeds 0-4
    python benchmarks/deepwater.py --network resnet8 --samples 5000 --only scratch,attacks
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import earmark
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.attacks.chain import Chain
from earmark.attacks.finetune import FineTune
from earmark.attacks.noise import Noise
from earmark.attacks.overwrite import Overwrite
from earmark.attacks.prune import Prune
from earmark.attacks.quantize import Quantize
from earmark.bench import zoo
from earmark.bench.data import Images, load
from earmark.bench.zoo import image_task
from earmark.hosts.files import load_state, save_release
from earmark.keys.secret import Key
from earmark.policy import log2_p
from earmark.schemes.deepwater import DeepWater
from earmark.schemes.deepwater_torch import settle
from earmark.schemes.embedding import embed, fresh_model, starting_model
from earmark.task import Task
from earmark.training import Recipe, distillation_loss, train

ROWS = Path(__file__).parent / "rows" / "deepwater.jsonl"
SCHEME = DeepWater()
PARTS = (
    "scratch",
    "attacks",
    "transfer",
    "finetune",
    "distill",
    "stamp",
    "unguarded",
    "payload",
    "kinds",
)
PRUNES = [f"prune-{scope}-{share}" for share in (0.65, 0.8, 0.9) for scope in ("layer", "global")]
PAYLOAD = (*PRUNES, "int4", "overwrite-double")

zoo.NETWORKS["vgg-narrow"] = lambda shape, classes: zoo.Vgg(shape, classes, width=16)
ADAM = {"lr": 1e-3, "optimizer": "adamw", "weight_decay": 1e-4}


def recipe_of(network: str, data: str, epochs: int) -> dict[str, Any]:
    """Return the settings of a training; without batch norm the usual rate is too high."""
    rate: dict[str, Any] = {"lr": 0.05} if data == "digits" else {}
    return {"epochs": epochs} | (ADAM if network == "vgg-narrow" else rate)


def attacks(recipe: Recipe) -> dict[str, Attack]:
    """Return the abstract's attacks by name, with the original training's recipe in view."""
    lr, optimizer = recipe.lr, recipe.optimizer
    found: dict[str, Attack] = {}
    for share in (0.65, 0.8, 0.9):
        for scope in ("layer", "global"):
            found[f"prune-{scope}-{share:g}"] = Prune(share=share, scope=scope)
    found |= {
        "int8": Quantize(bits=8),
        "int4": Quantize(bits=4),
        "noise-10": Noise(share=0.1),
        "ftal-double-lr": FineTune(epochs=3, lr=2 * lr, optimizer=optimizer),
        "overwrite": _overwrite(8.0, lr),
        "overwrite-double": _overwrite(16.0, lr),
        "overwrite-five": _overwrite(8.0, lr, keys=5),
        "overwrite-five-double": _overwrite(16.0, lr, keys=5),
        "ftal-prune-65": Chain(
            (FineTune(epochs=3, lr=lr / 2, optimizer=optimizer), Prune(share=0.65))
        ),
    }
    return found


def _overwrite(margin: float, lr: float, keys: int = 1) -> Overwrite:
    """Overwrite, seen or not: 8 is twice a stamp, 16 about what networks are born with."""
    settings = {"margin": margin}
    return Overwrite(
        scheme="deepwater", settings_of_scheme=settings, keys=keys, epochs=3, lr=lr / 2
    )


def in_colour(data: Images) -> Images:
    """Return 28x28 gray images as 32x32 colour images."""
    train, test = (
        torch.nn.functional.pad(part, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
        for part in (data.train, data.test)
    )
    return dataclasses.replace(data, train=train, test=test)


class Cell:
    """One network, data set and seed; trained models are kept in a cache folder."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        data = load(args.data)
        self.data = data.subset(args.samples) if args.samples else data
        recipe = recipe_of(args.network, args.data, args.epochs)
        batch = 64 if args.data == "digits" else 128
        self.task = image_task(args.network, self.data, recipe=recipe, batch=batch)
        fewer = self.data.subset(len(self.data.train), test=2000)
        self.quick = image_task(args.network, fewer, recipe=recipe, batch=batch)
        self.recipe = Recipe.of(self.task.recipe)
        self.name = f"{args.network}-{args.data}-{args.samples}-{args.epochs}-{seed}"
        first = fresh_model(self.task, seed)
        self.key = SCHEME.new_key(self.task.host(first), secret=bytes([seed + 1]) * 32)

    def model(self, kind: str, make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
        """Return a model from the cache, or make it; and the seconds it took."""
        folder = Path(os.environ.get("EARMARK_BENCH_CACHE", tempfile.gettempdir())) / "deepwater"
        folder.mkdir(parents=True, exist_ok=True)
        path, note = folder / f"{self.name}-{kind}.safetensors", folder / f"{self.name}-{kind}.json"
        if path.exists() and note.exists():
            model = fresh_model(self.task, self.seed)
            load_state(model, path)
            model.eval()
            return model, float(json.loads(note.read_text()))
        started = time.process_time()
        model = make()
        seconds = time.process_time() - started
        save_release(model, path, overwrite=True)
        note.write_text(json.dumps(seconds))
        return model, seconds

    def plain(self) -> tuple[nn.Module, float]:
        """The twin: the same training without a mark."""
        return self.model("plain", lambda: train(self.task, seed=self.seed).model)

    def marked(self) -> tuple[nn.Module, float]:
        """The model that was marked from scratch."""
        return self.model(
            "marked", lambda: embed(self.task, SCHEME, self.key, seed=self.seed).model
        )

    def counts(self, model: nn.Module, *, task: Task | None = None) -> dict[str, Any]:
        """Return utility and what is left of the mark."""
        task = task or self.task
        evidence = SCHEME.measure(task.host(model), self.key)
        rows: Any = evidence.details["layers"]
        own = dict(self.marked()[0].named_parameters())
        values = dict(model.named_parameters())
        pairs = [
            np.corrcoef(
                values[name].detach().double().flatten(), own[name].detach().double().flatten()
            )[0, 1]
            for name in self.key.layout.carrier
            if values[name].shape == own[name].shape
        ]
        return {
            "accuracy": round(task.evaluate(model), 3),
            "hits": evidence.hits,
            "trials": evidence.trials,
            "bits": round(-log2_p(evidence), 1),
            "least_z": min(row["least_z"] for row in rows.values()),
            "mean_z": round(statistics.mean(row["mean_z"] for row in rows.values()), 3),
            "correlation": round(float(np.mean(pairs)), 4) if pairs else None,
        }

    def scratch(self) -> None:
        """From scratch: the twin, the marked model, and how much it shows."""
        (plain, plain_seconds), (marked, seconds) = self.plain(), self.marked()
        null = SCHEME.measure(self.task.host(plain), self.key)
        self.note(
            "scratch",
            **self.counts(marked),
            twin=round(self.task.evaluate(plain), 3),
            seconds=round(seconds, 2),
            twin_seconds=round(plain_seconds, 2),
            null_hits=null.hits,
            null_bits=round(-log2_p(null), 2),
            stealth=stealth(plain, marked, self.key),
            two_seeds=stealth(plain, self.other(), self.key),
        )

    def payload(self) -> None:
        """An identifier of 24 bits with error correction, read back after the free attacks."""
        rng = np.random.default_rng(self.seed)
        sent = rng.bytes(3).hex()
        scheme = dataclasses.replace(SCHEME, payload=sent)
        first = fresh_model(self.task, self.seed)
        key = scheme.new_key(self.task.host(first), secret=bytes([self.seed + 101]) * 32)
        budget = Budget(self.quick, knowledge=Knowledge.SCHEME)
        marked = embed(self.task, scheme, key, seed=self.seed).model
        battery = {"none": None} | attacks(self.recipe)
        for name in ("none", *PAYLOAD):
            attack = battery[name]
            model = attack.run(marked, budget, seed=self.seed + 100) if attack else marked
            host = self.task.host(model)
            evidence, read = scheme.measure(host, key), scheme.read_payload(host, key)
            self.note(
                "payload",
                attack=name,
                accuracy=round(self.quick.evaluate(model), 3),
                hits=evidence.hits,
                trials=evidence.trials,
                read=read.ok and read.message.hex() == sent,
                checksum=read.ok,
            )

    def kinds(self) -> None:
        """Which layers lose bits to pruning: convolutions, or linear layers?"""
        budget = Budget(self.quick, knowledge=Knowledge.SCHEME)
        marked = self.marked()[0]
        linear = {f"{k}.weight" for k, m in marked.named_modules() if isinstance(m, nn.Linear)}
        for name in PRUNES:
            model = attacks(self.recipe)[name].run(marked, budget, seed=self.seed + 100)
            layers: Any = SCHEME.measure(self.task.host(model), self.key).details["layers"]
            counts = {"linear": [0, 0], "convolution": [0, 0]}
            for layer, row in layers.items():
                count = counts["linear" if layer in linear else "convolution"]
                count[0] += row["hits"]
                count[1] += row["trials"]
            self.note("kinds", attack=name, **counts)

    def unguarded(self) -> None:
        """Did the mark do anything but to be there at the start? Train once more without it."""
        start = starting_model(self.task, SCHEME, self.key, seed=self.seed)
        model = train(self.task, seed=self.seed, model=start).model
        pairs = zip(
            model.state_dict().values(), self.marked()[0].state_dict().values(), strict=True
        )
        self.note("unguarded", same=all(torch.equal(one, other) for one, other in pairs))

    def other(self) -> nn.Module:
        """An unmarked model of another seed."""
        return Cell(self.args, self.seed + 1).plain()[0]

    def finetune(self) -> None:
        """While fine-tuning a trained model, beside the same fine-tuning without a mark."""
        settings = Recipe.of(self.task.recipe, epochs=2, lr=self.recipe.lr / 5)

        def tuned(key: Key | None) -> nn.Module:
            model = copy.deepcopy(self.plain()[0])
            if key is None:
                return train(self.task, seed=self.seed + 7, recipe=settings, model=model).model
            return embed(
                self.task, SCHEME, key, seed=self.seed + 7, recipe=settings, model=model
            ).model

        twin, marked = tuned(None), tuned(self.key)
        self.note(
            "finetune",
            **self.counts(marked),
            twin=round(self.task.evaluate(twin), 3),
            stealth=stealth(twin, marked, self.key),
        )

    def distill(self) -> None:
        """While distilling, beside the same distillation without a mark.

        Gradients are clipped: at a temperature of 4 the loss is many times cross-entropy's, and at
        the usual rate students of either kind are thrown off their course.
        """
        teacher = self.plain()[0]
        settings = Recipe.of(self.task.recipe, clip=1.0)
        loss = distillation_loss(teacher, self.task, settings.temperature)
        seed = self.seed + 9
        twin = train(self.task, seed=seed, loss=loss, recipe=settings).model
        marked = embed(
            self.task, SCHEME, self.key, seed=seed, teacher=teacher, recipe=settings
        ).model
        self.note(
            "distill",
            **self.counts(marked),
            clip=settings.clip,
            teacher=round(self.task.evaluate(teacher), 3),
            twin=round(self.task.evaluate(twin), 3),
            stealth=stealth(twin, marked, self.key),
        )

    def stamp(self) -> None:
        """At once, into the finished twin, without data."""
        plain = self.plain()[0]
        host = self.task.host(plain)
        started = time.process_time()
        stamped = SCHEME.stamp(host, self.key)
        seconds = time.process_time() - started
        model = copy.deepcopy(plain)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(np.asarray(stamped.tensor(name))))
        self.note(
            "stamp",
            **self.counts(model),
            twin=round(self.task.evaluate(plain), 3),
            seconds=round(seconds, 3),
            stealth=stealth(plain, model, self.key),
        )
        settle(model, self.task.stream("train", 0))
        self.note("stamp-settled", **self.counts(model), twin=round(self.task.evaluate(plain), 3))

    def attacks(self) -> None:
        """The battery on the model that was marked from scratch."""
        budget = Budget(self.quick, knowledge=Knowledge.SCHEME)
        marked = self.marked()[0]
        clean = round(self.quick.evaluate(marked), 3)
        for name, attack in attacks(self.recipe).items():
            if self.done("attacks", name):
                continue
            started = time.process_time()
            changed = attack.run(marked, budget, seed=self.seed + 100)
            self.note(
                "attacks",
                attack=name,
                label=attack.label(),
                clean=clean,
                **self.counts(changed, task=self.quick),
                seconds=round(time.process_time() - started, 2),
            )

    def transfer(self) -> None:
        """To another data set with a new head, all layers tuned at the original rate."""
        other = load("mnist" if self.args.data == "fashion-mnist" else "fashion-mnist")
        other = other.subset(self.args.samples // 2 or 30_000, test=2000)
        if self.data.shape[0] == 3:
            other = in_colour(other)
        recipe = recipe_of(self.args.network, other.name, self.args.epochs)
        task = image_task(self.args.network, other, recipe=recipe)
        model = copy.deepcopy(self.marked()[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model.get_submodule("head").reset_parameters()  # type: ignore[operator]
        moved = train(task, seed=self.seed + 11, model=model).model
        self.note(
            "transfer",
            attack=f"to {other.name}",
            **self.counts(moved, task=task),
        )

    def done(self, part: str, attack: str = "") -> bool:
        """Tell whether a row is there already."""
        return any(
            (row["part"], row.get("attack", ""), row["cell"]) == (part, attack, self.name)
            for row in rows()
        )

    def note(self, part: str, **values: Any) -> None:
        """Write a row."""
        row = {
            "part": part,
            "cell": self.name,
            "network": self.args.network,
            "data": self.args.data,
            "samples": self.args.samples,
            "epochs": self.args.epochs,
            "seed": self.seed,
            **values,
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} x {platform.machine()}",
        }
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {
            k: values[k] for k in ("accuracy", "twin", "hits", "trials", "bits") if k in values
        }
        print(part, values.get("attack", ""), shown, flush=True)


def stealth(plain: nn.Module, marked: nn.Module, key: Key) -> dict[str, float]:
    """Compare the weights of a twin and a marked model, worst tensor first."""
    one, two = dict(plain.named_parameters()), dict(marked.named_parameters())
    spreads, means, distances = [], [], []
    for name in key.layout.carrier:
        a, b = (net[name].detach().double().numpy() for net in (one, two))
        spreads.append(b.std() / a.std())
        rows = [values.reshape(len(values), -1).mean(1).std() for values in (a, b)]
        means.append(rows[1] / rows[0])
        distances.append(distance(a / a.std(), b / b.std()))
    return {
        "std_ratio_most": round(float(max(spreads)), 4),
        "std_ratio_least": round(float(min(spreads)), 4),
        "filter_mean_ratio_most": round(float(max(means)), 4),
        "ks_most": round(float(max(distances)), 4),
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(a, axis=None), np.sort(b, axis=None)
    both = np.concatenate([a, b])
    gaps = np.searchsorted(a, both, "right") / a.size - np.searchsorted(b, both, "right") / b.size
    return float(np.abs(gaps).max())


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=10_000, help="training samples; 0 for all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        cell = Cell(args, seed)
        for part in args.only.split(","):
            if part == "stamp":
                if not cell.done("stamp-settled"):
                    cell.stamp()
                continue
            target = "mnist" if args.data == "fashion-mnist" else "fashion-mnist"
            named = {"transfer": f"to {target}", "payload": PAYLOAD[-1], "kinds": PRUNES[-1]}
            if part == "attacks" or not cell.done(part, named.get(part, "")):
                getattr(cell, part)()


if __name__ == "__main__":
    main()
