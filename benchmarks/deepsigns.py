"""Measure DeepSigns: fidelity, robustness, capacity, integrity and overhead, in resumable cells.

Every cell is a network, a data set, a number of training images and a seed; what it measures goes
to `rows/deepsigns.jsonl`, one line a measurement, failures included. Finished parts are skipped::

    python benchmarks/deepsigns.py --data digits --networks mlp,small-cnn,wide-resnet --seeds 0-4
    python benchmarks/deepsigns.py --data fashion-mnist --samples 10000 --parts white,black
    python benchmarks/deepsigns.py --table
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import earmark
from earmark import policy, registry
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.attacks.chain import Chain
from earmark.attacks.finetune import FineTune
from earmark.attacks.noise import Noise
from earmark.attacks.obfuscate import Obfuscate, Permute, Scale
from earmark.attacks.overwrite import Overwrite
from earmark.attacks.prune import Prune, PruneChannels
from earmark.attacks.quantize import Cast, Quantize
from earmark.bench import data, zoo
from earmark.errors import EarmarkError
from earmark.hosts.access import Host
from earmark.keys.secret import Key
from earmark.schemes.base import Scheme
from earmark.schemes.deepsigns import DeepSigns, Plan
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox
from earmark.schemes.deepsigns_blackbox_paper import DeepSignsBlackBoxPaper
from earmark.schemes.embedding import candidates, embed
from earmark.task import Task
from earmark.training import Recipe, train

ROWS = Path(__file__).parent / "rows" / "deepsigns.jsonl"
PARTS = (
    "white",
    "black",
    "capacity",
    "overwrite",
    "integrity",
    "overhead",
    "ablation",
    "filter",
    "paper",
)
zoo.NETWORKS.setdefault(
    "wide-resnet", lambda shape, classes: zoo.ResNet(shape, classes, blocks=1, width=32)
)
TAPS = {"wide-resnet": ("stages.1", "stages.2")}


class Cell:
    """One network on one data set with one seed: base model, controls, rows."""

    def __init__(self, args: argparse.Namespace, network: str, seed: int) -> None:
        self.args, self.network, self.seed = args, network, seed
        images = data.load(args.data)
        images = images.subset(args.samples or len(images.train), test=args.test or None)
        self.samples = len(images.train)
        self.task = zoo.image_task(network, images)
        self.adam = self.task.recipe.get("optimizer") == "adamw"
        self.tune = {"epochs": args.epochs, "lr": 1e-3 if self.adam else args.lr}
        self._base: nn.Module | None = None

    @property
    def base(self) -> nn.Module:
        """The trained, unmarked model."""
        if self._base is None:
            recipe = Recipe.of(self.task.recipe, epochs=self.args.base_epochs)
            self._base = train(self.task, seed=self.seed, recipe=recipe).model
        return self._base

    def key(self, scheme: Scheme, label: int = 0) -> Key:
        """A key of this cell's own."""
        inputs = candidates(self.task, most=2000, seed=4711)
        secret = self.seed.to_bytes(16, "big") + label.to_bytes(16, "big")
        return scheme.new_key(self.task.host(self.base), inputs=inputs, secret=secret)

    def mark(self, scheme: Scheme, key: Key) -> nn.Module:
        """The base, fine-tuned with the mark."""
        recipe = Recipe.of(self.task.recipe, **self.tune)
        model = copy.deepcopy(self.base)
        return embed(self.task, scheme, key, seed=self.seed + 50, model=model, recipe=recipe).model

    def control(self) -> nn.Module:
        """The base, fine-tuned alike without a mark."""
        recipe = Recipe.of(self.task.recipe, **self.tune)
        model = copy.deepcopy(self.base)
        return train(self.task, seed=self.seed + 50, recipe=recipe, model=model).model

    def row(self, part: str, item: str, **found: Any) -> None:
        """Append a row."""
        body = {
            "part": part,
            "item": item,
            "network": self.network,
            "data": self.args.data,
            "samples": self.samples,
            "seed": self.seed,
            "epochs": self.args.epochs,
            "every": self.args.every,
            **found,
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(body, sort_keys=True) + "\n")
        short = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
        print(part, self.network, self.args.data, self.seed, item, short, flush=True)

    def evidence(
        self, scheme: Scheme, model: nn.Module, key: Key, released: nn.Module | None = None
    ) -> dict[str, Any]:
        """Evidence and utility of a model, aligned to the released one if that is given."""
        host: Host = self.task.host(model)
        if released is not None and isinstance(scheme, DeepSigns):
            host = scheme.align(host, self.task.host(released), key)
        evidence = scheme.measure(host, key)
        return {
            "accuracy": self.task.evaluate(model),
            "hits": evidence.hits,
            "trials": evidence.trials,
            "error_rate": 1 - evidence.hits / evidence.trials,
            "bits": round(policy.judge(evidence).bits, 2),
            "aligned": released is not None,
        }


def battery(cell: Cell, scheme: Scheme, settings: dict[str, Any]) -> Iterator[tuple[str, Attack]]:
    """Yield the removal battery; names carry the row of the security bar."""
    long = cell.args.attack_epochs
    lr = 1e-3 if cell.adam else 0.05

    def adam(rate: float, epochs: int) -> FineTune:
        return FineTune(optimizer="adamw", lr=rate, epochs=epochs, schedule="constant")

    def over(**changes: Any) -> Overwrite:
        own = {"settings_of_scheme": settings, "epochs": long, "lr": lr, "inputs": 2000}
        return Overwrite(scheme=scheme.name, **(own | changes))

    yield "R1 fine-tune 1e-4 x5", adam(1e-4, 5)
    yield f"R1 fine-tune 1e-3 x{long}", adam(1e-3, long)
    yield f"R2 fine-tune 5e-3 x{long}", adam(5e-3, long)
    yield f"R2 fine-tune sgd .05 x{long}", FineTune(lr=0.05, epochs=long)
    yield "R4 last layer", FineTune(layers="last", lr=0.05, epochs=5)
    yield "R4 reset last, last layer", FineTune(layers="last", reset=True, lr=0.05, epochs=5)
    yield "R4 reset last, all layers", FineTune(reset=True, lr=lr, epochs=5)
    yield "R5 prune .5 global", Prune(share=0.5)
    yield "R5 prune .8 global", Prune(share=0.8)
    yield "R5 prune .8 layer", Prune(share=0.8, scope="layer")
    yield "R5 prune .9 global", Prune(share=0.9)
    yield "R5 channels .3 x5", PruneChannels(share=0.3, lr=lr)
    yield "R7 int8", Quantize(bits=8)
    yield "R7 int4", Quantize(bits=4)
    yield "R7 fp16", Cast()
    yield "R9 noise .1", Noise(share=0.1)
    yield "R9 noise .3", Noise(share=0.3)
    yield "R10 permute, scale", Chain((Permute(), Scale()))
    yield "R11 dummies .1", Obfuscate()
    yield "R11 dummies .8", Obfuscate(width=0.8)
    yield "R12 active dummies, noise", Chain((Obfuscate(**Obfuscate.PRESETS["active"]), Noise()))
    yield "R13 fine-tune, dummies", Chain((adam(1e-3, 10), Obfuscate()))
    yield "R16 overwrite", over()
    yield "R16 overwrite double", over(strength=2.0)
    yield "R16 overwrite three keys", over(keys=3)


def correlation(first: nn.Module, second: nn.Module) -> float | None:
    """Correlation of two models' weights, null where shapes differ."""
    pairs = list(zip(first.parameters(), second.parameters(), strict=False))
    if any(a.shape != b.shape for a, b in pairs):
        return None
    flat = [torch.cat([pair[i].detach().flatten() for pair in pairs]) for i in (0, 1)]
    return float(torch.corrcoef(torch.stack(flat))[0, 1])


def removal(cell: Cell, part: str, scheme: Scheme, settings: dict[str, Any]) -> None:
    """Embed, compare with the control, attack."""
    started = time.perf_counter()
    key = cell.key(scheme)
    marked = cell.mark(scheme, key)
    seconds = time.perf_counter() - started
    unmarked = cell.evidence(scheme, cell.base, key)
    found = cell.evidence(scheme, marked, key)
    own = {"control": cell.task.evaluate(cell.control()), "base": unmarked["accuracy"]}
    cell.row(part, "marked", **found, **own, null_bits=unmarked["bits"], seconds=seconds)
    budget = Budget(cell.task, data_fraction=0.5, knowledge=Knowledge.SCHEME)
    for name, attack in battery(cell, scheme, settings):
        started = time.perf_counter()
        try:
            broken = attack.run(marked, budget, seed=cell.seed)
            moved = any(name.startswith(row) for row in ("R10", "R11", "R12", "R13"))
            found = cell.evidence(scheme, broken, key, marked if moved else None)
            found["correlation"] = correlation(marked, broken)
        except (EarmarkError, RuntimeError, ValueError) as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:200]}
        cell.row(part, name, **found, seconds=time.perf_counter() - started)


def white(cell: Cell) -> None:
    """White-box, robust form."""
    settings = {"taps": TAPS.get(cell.network, ()), "every": cell.args.every}
    removal(cell, "white", DeepSigns(**settings), settings)


def black(cell: Cell) -> None:
    """Black-box, default form."""
    settings = {"every": cell.args.every}
    removal(cell, "black", DeepSignsBlackBox(**settings), settings)


def capacity(cell: Cell) -> None:
    """Accuracy and error rate against the number of bits, and after pruning and fine-tuning."""
    budget = Budget(cell.task, data_fraction=0.5)
    for bits in (4, 16, 64, 128, 256, 512, 1024):
        margin = min(1.5, (0.8 * room(cell) / bits) ** 0.5)
        scheme = DeepSigns(
            bits=bits,
            shards=1,
            taps=TAPS.get(cell.network, ()),
            margin=round(margin - 0.005, 2),
            every=cell.args.every,
        )
        key = cell.key(scheme, bits)
        marked = cell.mark(scheme, key)
        cell.row(
            "capacity", f"{bits} bits", margin=scheme.margin, **cell.evidence(scheme, marked, key)
        )
        for name, attack in (("prune .8", Prune(share=0.8)), ("fine-tune", FineTune(lr=0.01))):
            broken = attack.run(marked, budget, seed=cell.seed)
            cell.row("capacity", f"{bits} bits, {name}", **cell.evidence(scheme, broken, key))


def room(cell: Cell) -> int:
    """Dimensions that the default taps offer."""
    key = cell.key(DeepSigns(bits=4, shards=1, taps=TAPS.get(cell.network, ())))
    widths: Any = key.layout.params["widths"]
    return sum(widths) * 10


def overwrite(cell: Cell) -> None:
    """Overwriting with the same strength, against the parameter mark of Uchida et al. if there."""
    budget = Budget(cell.task, data_fraction=0.5, knowledge=Knowledge.SCHEME)
    names = [name for name in ("deepsigns", "uchida") if name in registry.names("scheme")]
    for bits in (64, 128, 256, 512):
        for name in names:
            settings: dict[str, Any] = {"bits": bits}
            if name == "deepsigns":
                margin = min(1.5, (0.8 * room(cell) / bits) ** 0.5)
                settings |= {
                    "taps": TAPS.get(cell.network, ()),
                    "margin": round(margin - 0.005, 2),
                    "every": cell.args.every,
                }
            try:
                scheme = registry.scheme(name, **settings)
                key = cell.key(scheme, bits)
                marked = cell.mark(scheme, key)
                cell.row("overwrite", f"{name} {bits}", **cell.evidence(scheme, marked, key))
                attack = Overwrite(
                    scheme=name,
                    settings_of_scheme=settings,
                    epochs=cell.args.epochs,
                    lr=cell.tune["lr"],
                    inputs=2000,
                )
                broken = attack.run(marked, budget, seed=cell.seed)
                found = cell.evidence(scheme, broken, key)
            except EarmarkError as error:
                found = {"failed": str(error)[:200]}
            cell.row("overwrite", f"{name} {bits}, overwritten", **found)


def integrity(cell: Cell) -> None:
    """2,000 beacons on marked and unmarked models, and innocent models aligned to marked ones."""
    scheme = DeepSigns(taps=TAPS.get(cell.network, ()), every=cell.args.every)
    key = cell.key(scheme)
    marked = cell.mark(scheme, key)
    images = data.load(cell.args.data).subset(cell.samples)
    tasks = [cell.task] * 5 + [_wider(cell, images)]
    innocents = [train(task, seed=1000 * (cell.seed + 1) + i).model for i, task in enumerate(tasks)]
    bare = Plan.of(key)
    named = {"marked": marked, "unmarked": cell.base}
    named |= {f"same topology {i}": model for i, model in enumerate(innocents[:-1])}
    for name, model in named.items():
        features = cell.task.host(model).features(bare.inputs, bare.names)
        counts = []
        for i in range(2000 if name in ("marked", "unmarked") else 200):
            plan = Plan.of(key.bind(f"{i + 1:064x}"))
            counts.append(int((plan.read(features) * plan.signs > 0).sum()))
        _counted(cell, name, counts, len(bare.tap))
    for name, models in (("same", innocents[:-1]), ("wider", innocents[-1:])):
        counts = [cell.evidence(scheme, model, key, marked)["hits"] for model in models]
        _counted(cell, f"aligned to the marked, {name} topology", counts, len(bare.tap))


def _counted(cell: Cell, name: str, counts: list[int], trials: int) -> None:
    cell.row(
        "integrity",
        name,
        keys=len(counts),
        trials=trials,
        mean=statistics.mean(counts),
        deviation=statistics.pstdev(counts),
        most=max(counts),
    )


def _wider(cell: Cell, images: data.Images) -> Task:
    made: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: zoo.Mlp(images.shape, images.classes, hidden=700),
        "small-cnn": lambda: zoo.SmallCnn(images.shape, images.classes, width=20, hidden=160),
        "wide-resnet": lambda: zoo.ResNet(images.shape, images.classes, width=40),
    }
    return Task(
        made[cell.network],
        cell.task.loss,
        cell.task.batches,
        cell.task.evaluate,
        recipe=cell.task.recipe,
        name="wider",
    )


def overhead(cell: Cell) -> None:
    """Seconds a step with the mark over without, side by side, in alternating stretches."""
    schemes: list[Scheme] = [DeepSigns(taps=TAPS.get(cell.network, ())), DeepSignsBlackBox()]
    for scheme in schemes:
        key = cell.key(scheme)
        batches = list(cell.task.stream("train", 0))[:40] * (1 if cell.samples > 5000 else 4)
        times: dict[bool, list[float]] = {True: [], False: []}
        stretch = batches[:40]
        for turn in range(6):
            model = copy.deepcopy(cell.base)
            with scheme.attach(model, key, forward=cell.task.forward) as mark:
                started = time.process_time()
                train(
                    cell.task,
                    seed=0,
                    recipe=Recipe.of(cell.task.recipe, epochs=1),
                    model=model,
                    mark=mark if turn % 2 else None,
                    data=lambda _epoch, held=stretch: held,  # type: ignore[misc]
                )
                times[bool(turn % 2)].append(time.process_time() - started)
        ratio = min(times[True]) / min(times[False])
        cell.row("overhead", scheme.name, ratio=ratio, plain=min(times[False]), steps=len(stretch))


def ablation(cell: Cell) -> None:
    """Ways to strengthen black-box answers, each against pruning and fine-tuning."""
    usual = {"margin": 8.0, "noise": 0.1, "blend": 0.5, "every": cell.args.every}
    variants: dict[str, dict[str, Any]] = {
        "cross-entropy": {"plain": True, "noise": 0.0},
        "margin 8": {"noise": 0.0},
        "noise .1": {"plain": True},
        "margin 8, noise .1": {},
        "margin 8, noise .3": {"noise": 0.3},
        "margin 8, natural inputs": {"noise": 0.0, "blend": 0.0},
    }
    budget = Budget(cell.task, data_fraction=0.5)
    tune = {"optimizer": "adamw", "schedule": "constant", "epochs": 5}
    for name, changes in variants.items():
        scheme = DeepSignsBlackBox(**(usual | changes))
        key = cell.key(scheme)
        marked = cell.mark(scheme, key)
        cell.row("ablation", name, **cell.evidence(scheme, marked, key))
        for what, attack in (
            ("prune .5", Prune(share=0.5)),
            ("fine-tune 1e-3", FineTune(lr=1e-3, **tune)),
            ("fine-tune 5e-3", FineTune(lr=5e-3, **tune)),
        ):
            broken = attack.run(marked, budget, seed=cell.seed)
            cell.row("ablation", f"{name}, {what}", **cell.evidence(scheme, broken, key))


def filter(cell: Cell) -> None:  # noqa: A001 - the part's name
    """How well a filter tells a key's inputs from data: area under the curve, 0.5 is blind."""
    images = data.load(cell.args.data).subset(cell.samples)
    known = images.inputs("train")[: min(2000, cell.samples)].flatten(1)
    honest = images.inputs("test")[:300]
    innocent = train(cell.task, seed=cell.seed + 900).model
    schemes = {
        "natural": DeepSignsBlackBox(blend=0.0),
        "blends": DeepSignsBlackBox(),
        "abstract (adi)": registry.scheme("adi"),
        "noise (paper)": registry.scheme("deepsigns-blackbox-paper"),
    }
    for name, scheme in schemes.items():
        inputs = scheme.new_key(
            cell.task.host(cell.base), inputs=candidates(cell.task, most=2000, seed=4711)
        ).inputs
        nearest = [
            torch.cdist(part.flatten(1), known).topk(5, largest=False).values[:, -1]
            for part in (inputs, honest)
        ]
        with torch.no_grad():
            sure = [-innocent(part).softmax(1).amax(1) for part in (inputs, honest)]
        cell.row("filter", f"{name}, distance to data", area=_area(*nearest))
        cell.row("filter", f"{name}, confidence of a model", area=_area(*sure))


def _area(odd: torch.Tensor, usual: torch.Tensor) -> float:
    """Area under the curve of telling `odd` (higher values) from `usual`."""
    gaps = odd[:, None] - usual[None]
    return float((gaps > 0).float().mean() + 0.5 * (gaps == 0).float().mean())


def paper(cell: Cell) -> None:
    """The published forms, for comparison."""
    budget = Budget(cell.task, data_fraction=0.5, knowledge=Knowledge.SCHEME)
    for bits, carriers in ((4, 1), (16, 1), (16, 10)):
        scheme = registry.scheme("deepsigns-paper", bits=bits, carriers=carriers)
        key = cell.key(scheme, bits + carriers)
        marked = cell.mark(scheme, key)
        name = f"white, {bits} bits x {carriers} classes"
        cell.row("paper", name, **cell.evidence(scheme, marked, key))
        for what, attack in (("prune .8", Prune(share=0.8)), ("fine-tune", FineTune(lr=0.01))):
            broken = attack.run(marked, budget, seed=cell.seed)
            cell.row("paper", f"{name}, {what}", **cell.evidence(scheme, broken, key))
    for count in (20, 30):
        scheme = DeepSignsBlackBoxPaper(count=count)
        key = cell.key(scheme, count)
        marked = cell.mark(scheme, key)
        try:
            key = scheme.select(cell.task.host(marked), key)
        except EarmarkError as error:
            cell.row("paper", f"black, K = {count}", failed=str(error)[:200])
            continue
        cell.row("paper", f"black, K = {count}", **cell.evidence(scheme, marked, key))
        for what, attack in (
            ("prune .5", Prune(share=0.5)),
            ("fine-tune", FineTune(lr=0.01)),
            ("overwrite", Overwrite(scheme=scheme.name, epochs=5, lr=cell.tune["lr"], inputs=500)),
        ):
            broken = attack.run(marked, budget, seed=cell.seed)
            cell.row("paper", f"black, K = {count}, {what}", **cell.evidence(scheme, broken, key))


def rows() -> list[dict[str, Any]]:
    """All rows so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table() -> None:
    """Print worst and median over seeds of every measurement."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows():
        if "finished" not in row["item"]:
            name = (row["part"], row["network"], f"{row['data']}/{row['samples']}", row["item"])
            groups.setdefault(name, []).append(row)
    for name, found in groups.items():
        good = [row for row in found if "failed" not in row]
        text = f"{len(found)} seeds"
        for field, worst in (
            ("bits", min),
            ("error_rate", max),
            ("accuracy", min),
            ("ratio", max),
            ("area", max),
        ):
            values = [row[field] for row in good if field in row]
            if values:
                text += f"  {field} {worst(values):.3f} / {statistics.median(values):.3f}"
        losses = [row["accuracy"] - row["control"] for row in good if "control" in row]
        if losses:
            text += f"  against control {min(losses):+.2f} / {statistics.median(losses):+.2f}"
        if len(good) < len(found):
            text += f"  failed {len(found) - len(good)}: {found[-1].get('failed', '')[:60]}"
        print("  ".join(name), " ", text)


def main() -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--networks", default="small-cnn")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--test", type=int, default=0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--parts", default="white,black")
    parser.add_argument("--base-epochs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="epochs of embedding")
    parser.add_argument("--attack-epochs", type=int, default=5)
    parser.add_argument("--every", type=int, default=10, help="steps between steps of the mark")
    parser.add_argument("--lr", type=float, default=0.05, help="of embedding, without Adam")
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no cell after this time")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        table()
        return
    torch.set_num_threads(1)
    ROWS.parent.mkdir(exist_ok=True)
    first, _, last = args.seeds.partition("-")
    started = time.monotonic()
    for seed in range(int(first), int(last or first) + 1):
        for network in args.networks.split(","):
            cell = Cell(args, network, seed)
            for part in args.parts.split(","):
                known = {
                    (row["part"], row["network"], row["data"], row["samples"], row["seed"])
                    for row in rows()
                    if row["item"] == "finished"
                }
                if (part, network, args.data, cell.samples, seed) in known:
                    continue
                if time.monotonic() - started > 60 * args.minutes:
                    return
                {name: globals()[name] for name in PARTS}[part](cell)
                cell.row(part, "finished")


if __name__ == "__main__":
    main()
