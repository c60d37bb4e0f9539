"""One network with the models and the rows that measuring DeepSigns on it needs."""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import earmark
from earmark import policy
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.bench import data, zoo
from earmark.errors import EarmarkError
from earmark.hosts.access import Host
from earmark.keys.secret import Key
from earmark.schemes.base import Scheme
from earmark.schemes.deepsigns import DeepSigns
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox
from earmark.schemes.embedding import embed
from earmark.training import Recipe, train

ROWS = Path(__file__).parent / "rows" / "deepsigns.jsonl"
QUICK = 2000  # test images on which attacked models are scored
zoo.NETWORKS["wide-resnet"] = lambda shape, classes: zoo.ResNet(
    shape, classes, width=32, stride=1 if shape[1] < 16 else 4
)
TAPS = {"wide-resnet": ("stages.1.conv1", "stages.1", "stages.2.conv1", "stages.2")}
# In four epochs the terms come some twenty times: too little for these at the usual settings.
OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("wide-resnet", "white"): {"taps": TAPS["wide-resnet"], "weight": 3.0},
    ("mlp", "black"): {"every": 8},  # half as often and twice as long: less time and less harm
    ("small-cnn", "black"): {"every": 8},
}
OWN_ON: dict[tuple[str, str, str], dict[str, Any]] = {
    ("cifar10", "small-cnn", "white"): {"weight": 1.5},  # at 1 some of 256 bits stay wrong
    ("cifar10", "wide-resnet", "black"): {"weight": 0.15},
}
ALL: dict[tuple[str, str], dict[str, Any]] = {
    ("small-cnn", "black"): {"every": 32},  # on five times the images: shown about as often
}
TIMES = {"mlp": 2, "small-cnn": 2, "wide-resnet": 4}  # how much longer answers are taught
WIDE = {"mlp": "fc2.weight", "small-cnn": "fc.weight", "wide-resnet": "stages.2.conv2.weight"}
WIDER: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "mlp": lambda shape, classes: zoo.Mlp(shape, classes, hidden=700),
    "small-cnn": lambda shape, classes: zoo.SmallCnn(shape, classes, width=20, hidden=160),
    "wide-resnet": lambda shape, classes: zoo.ResNet(shape, classes, width=40, stride=4),
}


def rows() -> list[dict[str, Any]]:
    """All rows so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


class Cell:
    """One network on one data set with one seed: models and rows."""

    def __init__(self, args: argparse.Namespace, network: str, seed: int) -> None:
        self.args, self.network, self.seed = args, network, seed
        images = data.load(args.data)
        self.images = images.subset(args.samples or len(images.train))
        self.samples = len(self.images.train)
        self.task = zoo.image_task(network, self.images)
        self.quick = zoo.image_task(network, self.images.subset(self.samples, test=QUICK)).evaluate
        adam = self.task.recipe.get("optimizer") == "adamw"
        self.lr = 1e-3 if adam else 0.05
        self.tune = Recipe.of(self.task.recipe, epochs=args.epochs, lr=self.lr)
        self.done = {
            (row["part"], row["item"])
            for row in rows()
            if (row["network"], row["data"], row["samples"], row["seed"])
            == (network, args.data, self.samples, seed)
        }
        self._held: dict[str, nn.Module] = {}

    def model(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A model by name: from memory, from the folder, or made now."""
        if name not in self._held:
            folder = Path(self.args.models)
            folder.mkdir(parents=True, exist_ok=True)
            file = f"{self.args.data}-{self.samples}-{self.network}-{self.seed}-{name}.pt"
            path = folder / file.replace(" ", "_")
            if path.exists():
                found = self.task.model()
                found.load_state_dict(torch.load(path, weights_only=True))
            else:
                found = make()
                torch.save(found.state_dict(), path)
            self._held[name] = found.eval()
        return self._held[name]

    @property
    def base(self) -> nn.Module:
        """The trained, unmarked model."""
        recipe = Recipe.of(self.task.recipe, epochs=self.args.base_epochs)
        return self.model("base", lambda: train(self.task, seed=self.seed, recipe=recipe).model)

    def recipe(self, form: str) -> Recipe:
        """How a form is embedded, and its control trained: answers take longer."""
        times = TIMES[self.network] if form == "black" else 1
        return replace(self.tune, epochs=times * self.args.epochs)

    def control(self, form: str = "white") -> nn.Module:
        """The base, fine-tuned alike without a mark."""
        recipe, seed = self.recipe(form), self.seed + 50
        return self.model(
            "control" if recipe.epochs == self.args.epochs else f"control x{recipe.epochs}",
            lambda: (
                train(self.task, seed=seed, recipe=recipe, model=copy.deepcopy(self.base)).model
            ),
        )

    def key(self, scheme: Scheme, label: int = 0) -> Key:
        """A key of this cell's own."""
        inputs = self.task.samples(2000, seed=4711)
        secret = self.seed.to_bytes(16, "big") + label.to_bytes(16, "big")
        return scheme.new_key(self.task.host(self.base), inputs=inputs, secret=secret)

    def mark(self, scheme: Scheme, key: Key, form: str = "white") -> nn.Module:
        """The base, fine-tuned with the mark."""
        model = copy.deepcopy(self.base)
        seed, recipe = self.seed + 50, self.recipe(form)
        return embed(self.task, scheme, key, seed=seed, model=model, recipe=recipe).model

    def row(self, part: str, item: str, **found: Any) -> None:
        """Append a row."""
        body = {
            "part": part,
            "item": item,
            "network": self.network,
            "data": self.args.data,
            "samples": self.samples,
            "seed": self.seed,
            **{"epochs": self.args.epochs} | found,
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(body, sort_keys=True) + "\n")
        self.done.add((part, item))
        short = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
        print(part, self.network, self.args.data, self.seed, item, short, flush=True)

    def evidence(
        self,
        scheme: Scheme,
        model: nn.Module,
        key: Key,
        reference: nn.Module | None = None,
        *,
        whole: bool = False,
    ) -> dict[str, Any]:
        """Evidence and utility of a model, aligned to a reference if that is given."""
        host: Host = self.task.host(model)
        aligned = reference is not None and isinstance(scheme, DeepSigns)
        if aligned:
            host = scheme.align(host, self.task.host(reference), key)
        evidence = scheme.measure(host, key)
        return {
            "accuracy": (self.task.evaluate if whole else self.quick)(model),
            "hits": evidence.hits,
            "trials": evidence.trials,
            "error_rate": 1 - evidence.hits / evidence.trials,
            "bits": round(policy.judge(evidence).bits, 2),
            "aligned": aligned,
        }

    def attacked(
        self,
        part: str,
        scheme: Scheme,
        key: Key,
        marked: nn.Module,
        battery: Iterable[tuple[str, Attack]],
        start: nn.Module | None = None,
    ) -> None:
        """Attack a marked model; rows carry bits, error rate, utility and weight correlation.

        What was moved is aligned to the model before it was marked: the start, or else the base.
        """
        budget = Budget(self.task, data_fraction=0.5, knowledge=Knowledge.SCHEME)
        for name, attack in battery:
            if (part, name) in self.done:
                continue
            started = time.process_time()
            try:
                broken = attack.run(marked, budget, seed=self.seed)
                moved = name.startswith(("R10", "R11", "R12", "R13", "R14"))
                found = self.evidence(scheme, broken, key, (start or self.base) if moved else None)
                found["correlation"] = correlation(marked, broken)
            except (EarmarkError, RuntimeError, ValueError) as error:
                found = {"failed": f"{type(error).__name__}: {error}"[:200]}
            self.row(part, name, **found, seconds=time.process_time() - started)


def correlation(first: nn.Module, second: nn.Module) -> float | None:
    """Correlation of two models' weights, null where shapes differ."""
    pairs = list(zip(first.parameters(), second.parameters(), strict=False))
    if any(a.shape != b.shape for a, b in pairs):
        return None
    flat = [torch.cat([pair[i].detach().flatten() for pair in pairs]) for i in (0, 1)]
    return float(torch.corrcoef(torch.stack(flat))[0, 1])


def forms(cell: Cell) -> dict[str, Scheme]:
    """The two default forms, by the name that rows carry."""
    kept: dict[str, Callable[..., Scheme]] = {"white": DeepSigns, "black": DeepSignsBlackBox}
    return {
        name: make(**settings(cell, name))
        for name, make in kept.items()
        if name in cell.args.forms.split(",")
    }


def settings(cell: Cell, form: str) -> dict[str, Any]:
    """The settings of a form that differ from the defaults."""
    own = OWN.get((cell.network, form), {})
    own = own | OWN_ON.get((cell.args.data, cell.network, form), {})
    return own | (ALL.get((cell.network, form), {}) if cell.args.samples == 0 else {})


def attacker(cell: Cell, form: str) -> dict[str, Any]:
    """The settings of who overwrites: the same, but as often as by default."""
    return {name: value for name, value in settings(cell, form).items() if name != "every"}


def marked_with(cell: Cell, name: str, scheme: Scheme, key: Key) -> nn.Module:
    """The cell's marked model of one form."""
    return cell.model(name, lambda: cell.mark(scheme, key, name))


def margin(cell: Cell, bits: int) -> float:
    """The default margin, or the largest that the capacity rule allows."""
    key = cell.key(DeepSigns(bits=4, shards=1, taps=TAPS.get(cell.network, ())))
    widths: Any = key.layout.params["widths"]
    return round(min(1.5, (0.8 * sum(widths) * 10 / bits) ** 0.5 - 0.005), 2)
