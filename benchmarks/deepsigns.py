"""Measure DeepSigns: fidelity, robustness, capacity, integrity and overhead, in resumable cells.

Every cell is a network, a data set, a number of training images and a seed; what it measures goes
to `rows/deepsigns.jsonl`, one line a measurement, failures included. A measurement that has a row
is not made again, and trained models are kept in a folder::

    python benchmarks/deepsigns.py --networks mlp,small-cnn,wide-resnet --seeds 0-4
    python benchmarks/deepsigns.py --data mnist --networks small-cnn --parts tuned --seeds 0-4
    python benchmarks/deepsigns.py --table
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import nn

from deepsigns_bench import (
    QUICK,
    ROWS,
    WIDE,
    WIDER,
    Cell,
    attacker,
    correlation,
    forms,
    margin,
    marked_with,
    rows,
    settings,
)
from earmark import registry
from earmark.attacks.base import Attack
from earmark.attacks.chain import Chain
from earmark.attacks.finetune import FineTune
from earmark.attacks.noise import Noise
from earmark.attacks.obfuscate import Dummies, Obfuscate, Permute, Scale
from earmark.attacks.overwrite import Overwrite
from earmark.attacks.prune import Prune, PruneChannels
from earmark.attacks.quantize import Cast, Quantize
from earmark.attacks.refactor import FoldNorms
from earmark.attacks.wrappers import FilterQueries
from earmark.errors import EarmarkError
from earmark.keys.secret import Key
from earmark.schemes.deepsigns import DeepSigns, Plan
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox, drawn
from earmark.schemes.deepsigns_blackbox_paper import DeepSignsBlackBoxPaper
from earmark.schemes.embedding import embed, starting_model
from earmark.stats import log2_binomial_tail
from earmark.task import Task
from earmark.training import Recipe, train


def fidelity(cell: Cell) -> None:
    """Utility and evidence of marked models beside those of the control."""
    for name, scheme in forms(cell).items():
        if (name, "marked") in cell.done:
            continue
        key = cell.key(scheme)
        marked = marked_with(cell, name, scheme, key)
        found = cell.evidence(scheme, marked, key, whole=True)
        unmarked = cell.evidence(scheme, cell.control(name), key, whole=True)
        own = {"control": unmarked["accuracy"], "control_bits": unmarked["bits"]}
        own["base"] = cell.task.evaluate(cell.base)
        own["correlation"] = correlation(cell.base, marked)
        cell.row(name, "marked", **found, **own, epochs=cell.recipe(name).epochs)


def core(cell: Cell) -> None:
    """Fidelity, and the attacks that need no training."""
    fidelity(cell)
    for name, scheme in forms(cell).items():
        key = cell.key(scheme)
        marked = marked_with(cell, name, scheme, key)
        active = Obfuscate(**Obfuscate.PRESETS["active"])
        near = Dummies(kind="active", width=0.1)
        battery: dict[str, Attack] = {
            "R5 prune .5 global": Prune(share=0.5),
            "R5 prune .8 global": Prune(share=0.8),
            "R5 prune .8 layer": Prune(share=0.8, scope="layer"),
            "R7 int8": Quantize(bits=8),
            "R7 int4": Quantize(bits=4),
            "R7 fp16": Cast(),
            "R9 noise .1": Noise(share=0.1),
            "R10 permute, scale": Chain((Permute(), Scale())),
            "R11 dummies .1": Obfuscate(),
            "R11 dummies .8": Obfuscate(width=0.8),
            "R12 active dummies, noise": Chain((active, Noise())),
            "R12 noise before the rest": Chain((near, Noise(), Obfuscate())),
        }
        if cell.args.data != "fashion-mnist":
            del battery["R11 dummies .8"]
        if any(isinstance(module, nn.BatchNorm2d) for module in marked.modules()):
            battery["R14 norms folded"] = FoldNorms()
            settled = Chain((Prune(share=0.8, scope="layer"), FineTune(lr=1e-6, epochs=1)))
            battery["R5 prune .8 layer, norms anew"] = settled  # too small a rate to change weights
        if name == "black":
            battery |= {
                "filter that turns away 2 %": FilterQueries(share=0.02),
                "filter that turns away 10 %": FilterQueries(share=0.1),
            }
        cell.attacked(name, scheme, key, marked, battery.items())


def tuned(cell: Cell) -> None:
    """The attacks that train, half of the data at hand."""
    for name, scheme in forms(cell).items():
        key = cell.key(scheme)
        marked = marked_with(cell, name, scheme, key)
        own = attacker(cell, name)
        over = Overwrite(
            scheme=scheme.name, settings_of_scheme=own, epochs=10, lr=cell.lr, inputs=2000
        )
        adam = {"optimizer": "adamw", "schedule": "constant"}
        battery: dict[str, Attack] = {
            "R1 fine-tune 1e-3 x20": FineTune(lr=1e-3, epochs=20, **adam),
            "R4 reset last, all layers": FineTune(reset=True, lr=cell.lr, epochs=5),
            "R4 reset last, last layer": FineTune(layers="last", reset=True, lr=0.05, epochs=5),
            "R5 channels .3 x5": PruneChannels(share=0.3, lr=cell.lr),
            "R16 overwrite": over,
            "R2 fine-tune 5e-3 x20": FineTune(lr=5e-3, epochs=20, **adam),
            "R13 fine-tune, dummies": Chain((FineTune(lr=1e-3, epochs=10, **adam), Obfuscate())),
        }
        if name == "black":
            del battery["R13 fine-tune, dummies"]  # dummies change no answer
        cell.attacked(name, scheme, key, marked, battery.items())


def long(cell: Cell) -> None:
    """Attacks that take longest: overwriting at double strength and with three keys."""
    for name, scheme in forms(cell).items():
        key = cell.key(scheme)
        own: dict[str, Any] = {
            "scheme": scheme.name,
            "settings_of_scheme": attacker(cell, name),
            "lr": cell.lr,
            "inputs": 2000,
        }
        battery: dict[str, Attack] = {
            "R16 overwrite x40": Overwrite(epochs=40, **own),
            "R16 overwrite double": Overwrite(epochs=10, strength=2.0, **own),
            "R16 overwrite three keys": Overwrite(epochs=10, keys=3, **own),
            "R1 fine-tune 1e-4 x5": FineTune(
                lr=1e-4, epochs=5, optimizer="adamw", schedule="constant"
            ),
        }
        cell.attacked(name, scheme, key, marked_with(cell, name, scheme, key), battery.items())


def scratch(cell: Cell) -> None:
    """Marked from the first step on, and aligned to the network before its training."""
    scheme = forms(cell)["white"]
    key, seed = cell.key(scheme), cell.seed + 80
    recipe = Recipe.of(cell.task.recipe, epochs=cell.args.base_epochs + cell.args.epochs)
    marked = cell.model(
        "scratch", lambda: embed(cell.task, scheme, key, seed=seed, recipe=recipe).model
    )
    if ("scratch", "marked") not in cell.done:
        cell.row("scratch", "marked", **cell.evidence(scheme, marked, key, whole=True))
    near = Dummies(kind="active", width=0.1)
    adam = {"optimizer": "adamw", "schedule": "constant"}
    battery: dict[str, Attack] = {
        "R10 permute, scale": Chain((Permute(), Scale())),
        "R11 dummies .1": Obfuscate(),
        "R12 noise before the rest": Chain((near, Noise(), Obfuscate())),
        "R13 fine-tune, dummies": Chain((FineTune(lr=1e-3, epochs=10, **adam), Obfuscate())),
    }
    start = starting_model(cell.task, scheme, key, seed=seed)
    cell.attacked("scratch", scheme, key, marked, battery.items(), start)


def capacity(cell: Cell) -> None:
    """Accuracy and error rate against the number of bits, and after pruning and fine-tuning."""
    battery = {"prune .8": Prune(share=0.8), "fine-tune": FineTune(lr=cell.lr / 5, epochs=3)}
    for bits in (4, 16, 64, 128, 256, 512, 1024):
        own = settings(cell, "white")
        scheme = DeepSigns(bits=bits, shards=1, margin=margin(cell, bits), **own)
        key = cell.key(scheme, bits)
        marked = cell.model(f"capacity-{bits}", lambda held=(scheme, key): cell.mark(*held))  # type: ignore[misc]
        if ("capacity", f"{bits} bits") not in cell.done:
            found = cell.evidence(scheme, marked, key, whole=True)
            control = cell.task.evaluate(cell.control())
            cell.row("capacity", f"{bits} bits", **found, control=control, margin=scheme.margin)
        items = [(f"{bits} bits, {name}", attack) for name, attack in battery.items()]
        cell.attacked("capacity", scheme, key, marked, items)


def overwrite(cell: Cell) -> None:
    """Overwriting at the same strength, against the parameter mark of Uchida et al."""
    for bits in (64, 128, 256, 512):
        for name in ("deepsigns", "uchida"):
            own: dict[str, Any] = {"bits": bits}
            if name == "deepsigns":
                own |= settings(cell, "white") | {"margin": margin(cell, bits)}
            else:
                own["carrier"] = (WIDE[cell.network],)
            scheme = registry.scheme(name, **own)
            key = cell.key(scheme, bits)
            label = f"{name} {bits}"
            marked = cell.model(f"over-{label}", lambda held=(scheme, key): cell.mark(*held))  # type: ignore[misc]
            if ("overwrite", label) not in cell.done:
                cell.row("overwrite", label, **cell.evidence(scheme, marked, key, whole=True))
            attack = Overwrite(
                scheme=name, settings_of_scheme=own, epochs=10, lr=cell.lr, inputs=2000
            )
            cell.attacked("overwrite", scheme, key, marked, [(f"{label}, overwritten", attack)])


def integrity(cell: Cell) -> None:
    """2,000 keys on marked and unmarked models, and innocent models aligned to the base."""
    scheme = forms(cell)["white"]
    key = cell.key(scheme)
    wide = WIDER[cell.network]
    shape, classes = cell.images.shape, cell.images.classes
    wider = Task(
        lambda: wide(shape, classes),
        cell.task.loss,
        cell.task.batches,
        cell.task.evaluate,
        recipe=cell.task.recipe,
        name="wider",
    )
    short = Recipe.of(cell.task.recipe, epochs=2)
    tasks = [(f"same {i}", cell.task) for i in range(5)] + [(f"wider {i}", wider) for i in range(5)]
    makers: dict[str, Callable[[], nn.Module]] = {
        "marked": lambda: marked_with(cell, "white", scheme, key),
        "unmarked": lambda: cell.base,
    }
    for i, (name, task) in enumerate(tasks):
        makers[name] = cache(lambda i=i, task=task: train(task, seed=1000 + i, recipe=short).model)
    bare = Plan.of(key)
    for label, make in makers.items():
        if label.startswith("wider") or ("integrity", label) in cell.done:
            continue
        features = cell.task.host(make()).features(bare.inputs, bare.names)
        counts = []
        for i in range(2000 if label in ("marked", "unmarked") else 400):
            plan = Plan.of(key.bind(f"{i + 1:064x}"))
            counts.append(int((plan.read(features) * plan.signs > 0).sum()))
        counted(cell, label, counts, len(bare.tap))
    for kind in ("same", "wider"):
        item = f"aligned to the unmarked, {kind} topology"
        if ("integrity", item) not in cell.done:
            models = [make() for label, make in makers.items() if label.startswith(kind)]
            counts = [cell.evidence(scheme, model, key, cell.base)["hits"] for model in models]
            counted(cell, item, counts, len(bare.tap))
    black_integrity(cell, makers)


def black_integrity(cell: Cell, makers: dict[str, Callable[[], nn.Module]]) -> None:
    """The same for answers: keys drawn anew on marked, unmarked and innocent models."""
    scheme = forms(cell)["black"]
    key = cell.key(scheme)
    makers = makers | {"marked": lambda: marked_with(cell, "black", scheme, key)}
    for label, make in makers.items():
        if ("integrity", f"answers, {label}") in cell.done:
            continue
        given = torch.from_numpy(cell.task.host(make()).labels(key.inputs))
        counts = []
        for i in range(2000 if label in ("marked", "unmarked") else 400):
            bound = key.bind(f"{i + 1:064x}")
            drawn = [bound.shard(j).stream("labels").integers(25, 10) for j in range(4)]
            counts.append(int((given == torch.tensor(drawn).ravel()).sum()))
        counted(cell, f"answers, {label}", counts, len(given), chance=0.1)


def counted(cell: Cell, name: str, counts: list[int], trials: int, *, chance: float = 0.5) -> None:
    """Write what many keys showed."""
    if ("integrity", name) in cell.done:
        return
    cell.row(
        "integrity",
        name,
        keys=len(counts),
        trials=trials,
        expected=trials * chance,
        expected_deviation=(trials * chance * (1 - chance)) ** 0.5,
        mean=statistics.mean(counts),
        deviation=statistics.pstdev(counts),
        most=max(counts),
    )


def overhead(cell: Cell) -> None:
    """Processor time with the mark over without, side by side, in alternating stretches."""
    for name, scheme in forms(cell).items():
        if ("overhead", name) in cell.done:
            continue
        key = cell.key(scheme)
        stretch = list(cell.task.stream("train", 0))[:48]
        ratios = []
        for _ in range(5):
            spent = {}
            for with_mark in (False, True):
                model = copy.deepcopy(cell.base)
                attached = scheme.attach(model, key, forward=cell.task.forward)
                with attached if with_mark else contextlib.nullcontext() as mark:
                    started = time.process_time()
                    train(
                        cell.task,
                        seed=0,
                        recipe=Recipe.of(cell.task.recipe, epochs=1),
                        model=model,
                        mark=mark,
                        data=lambda _epoch, held=stretch: held,  # type: ignore[misc]
                    )
                    spent[with_mark] = time.process_time() - started
            ratios.append(spent[True] / spent[False])
        cell.row("overhead", name, ratio=statistics.median(ratios), ratios=ratios, steps=48)


def inputs(cell: Cell) -> None:
    """Inputs of black-box keys: what they cost, how they last, how well filters find them."""
    white: dict[str, Any] = {"smooth": 0.0, "contrast": 1.0}
    before: dict[str, Any] = {"share": 1.0, "portion": 100, "every": 16, "weight": 0.5}
    before["noise"] = 0.1
    variants: dict[str, dict[str, Any]] = {
        "samples": {"grain": 0.0},
        "blends": {"grain": 0.0, "blend": 0.5},
        "rough grain .5": white | {"grain": 0.5},
        "rough grain .8": white | {"grain": 0.8},
        "smooth grain .6, contrast 1": {"grain": 0.6, "contrast": 1.0},
        "smooth grain .7 (default)": {},
        "smooth grain .8": {"grain": 0.8},
        "default, all at once (the default before)": before,
        "default, all at once, among data": before | {"share": 0.2},
        "default, weight noise .1": {"noise": 0.1},
        "default, cross-entropy": {"plain": True},
        "default, margin 8": {"margin": 8.0},
    }
    tune = FineTune(lr=1e-3, epochs=20, optimizer="adamw", schedule="constant")
    for name, changes in variants.items():
        scheme = DeepSignsBlackBox(**changes)
        key = cell.key(scheme)
        marked = cell.model(f"inputs-{name}", lambda held=(scheme, key, "black"): cell.mark(*held))  # type: ignore[misc]
        if ("inputs", name) not in cell.done:
            found = cell.evidence(scheme, marked, key, whole=True)
            control = cell.task.evaluate(cell.control("black"))
            found |= {"control": control, **seen(cell, key, marked)}
            cell.row("inputs", name, **found)
        items = [(f"{name}, fine-tuned", tune), (f"{name}, prune .5", Prune(share=0.5))]
        cell.attacked("inputs", scheme, key, marked, items)


def seen(cell: Cell, key: Key, marked: nn.Module) -> dict[str, float]:
    """How well filters tell inputs from data, and what the best of them leave of the evidence.

    A filter sorts by one statistic. Its area under the curve is 0.5 if it is blind; the evidence
    is what 100 questions show if it turns away 2 or 10 % of honest ones and answers wrongly then.
    """
    found, honest = odd(cell, key.inputs), odd(cell, cell.images.inputs("test")[:QUICK])
    with torch.no_grad():
        right = marked(key.inputs).argmax(1) == torch.from_numpy(drawn(key))
    made = {
        f"area_{name}": area(found[name], honest[name])
        for name in ("distance", "confidence", "roughness")
    }
    for share in (2, 10):
        left = [
            int((right & (found[name] <= honest[name].quantile(1 - share / 100))).sum())
            for name in found
        ]
        tail = log2_binomial_tail(min(left), len(right), Fraction(1, cell.images.classes))
        made[f"bits_{share}"] = round(-tail, 2)
    return made


def odd(cell: Cell, given: torch.Tensor) -> dict[str, torch.Tensor]:
    """What filters may look at, higher where an input is odder."""
    known = cell.images.inputs("train")[:2000].flatten(1)
    pixels = given.flatten(1)
    rough = (given[..., 1:] - given[..., :-1]).square().mean(dim=(1, 2, 3))
    control = cell.control()  # trained here if it is not kept
    with torch.no_grad():
        sure = control(given).softmax(1).amax(1)
    return {
        "distance": torch.cdist(pixels, known).topk(5, largest=False).values[:, -1],
        "confidence": -sure,
        "roughness": rough,
        "smoothness": -rough,
        "flatness": -pixels.std(dim=1),
        "brightness": pixels.mean(dim=1),
        "dark parts": pixels.quantile(0.1, dim=1),
    }


def area(unusual: torch.Tensor, usual: torch.Tensor) -> float:
    """Area under the curve of telling `unusual` (higher values) from `usual`."""
    gaps = unusual[:, None] - usual[None]
    return float((gaps > 0).float().mean() + 0.5 * (gaps == 0).float().mean())


def paper(cell: Cell) -> None:
    """The published forms, for comparison."""
    light: dict[str, Attack] = {
        "prune .8": Prune(share=0.8),
        "fine-tune": FineTune(lr=cell.lr / 5, epochs=3),
    }
    for bits, carriers in ((4, 1), (16, 1), (16, 10)):
        scheme = registry.scheme("deepsigns-paper", bits=bits, carriers=carriers)
        key = cell.key(scheme, bits + carriers)
        name = f"white, {bits} bits x {carriers} classes"
        marked = cell.model(f"paper-{bits}-{carriers}", lambda held=(scheme, key): cell.mark(*held))  # type: ignore[misc]
        if ("paper", name) not in cell.done:
            control = cell.task.evaluate(cell.control())
            found = cell.evidence(scheme, marked, key, whole=True)
            cell.row("paper", name, **found, control=control)
        items = [(f"{name}, {what}", attack) for what, attack in light.items()]
        cell.attacked("paper", scheme, key, marked, items)
    for count in (20, 30):
        name = f"black, K = {count}"
        if ("paper", name) in cell.done:
            continue
        scheme = DeepSignsBlackBoxPaper(count=count)
        key = cell.key(scheme, count)
        marked = cell.mark(scheme, key)
        try:
            key = scheme.select(cell.task.host(marked), key)
        except EarmarkError as error:
            cell.row("paper", name, failed=str(error)[:200])
            continue
        control = cell.task.evaluate(cell.control())
        found = cell.evidence(scheme, marked, key, whole=True)
        cell.row("paper", name, **found, control=control)
        over = Overwrite(scheme=scheme.name, epochs=10, lr=cell.lr, inputs=500)
        battery = {"prune .5": Prune(share=0.5), "fine-tune": light["fine-tune"], "overwrite": over}
        items = [(f"{name}, {what}", attack) for what, attack in battery.items()]
        cell.attacked("paper", scheme, key, marked, items)


PARTS: dict[str, Callable[[Cell], None]] = {
    "fidelity": fidelity,
    "core": core,
    "tuned": tuned,
    "long": long,
    "scratch": scratch,
    "capacity": capacity,
    "overwrite": overwrite,
    "integrity": integrity,
    "overhead": overhead,
    "inputs": inputs,
    "paper": paper,
}


def table() -> None:
    """Print worst and median over seeds of every measurement."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows():
        name = (row["part"], row["network"], f"{row['data']}/{row['samples']}", row["item"])
        groups.setdefault(name, []).append(row)
    for name, found in groups.items():
        good = [row for row in found if "failed" not in row]
        text = f"{len(found)} seeds"
        for field, worst in (("bits", min), ("error_rate", max), ("accuracy", min), ("ratio", max)):
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
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--networks", default="small-cnn")
    parser.add_argument("--samples", type=int, default=10_000, help="training images; 0 for all")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--parts", default="core", help=", ".join(PARTS))
    parser.add_argument("--forms", default="white,black", help="forms that core, tuned, long take")
    parser.add_argument("--base-epochs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="epochs of embedding")
    parser.add_argument("--models", default="runs/deepsigns", help="folder of trained models")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        table()
        return
    torch.set_num_threads(1)
    ROWS.parent.mkdir(exist_ok=True)
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        for network in args.networks.split(","):
            cell = Cell(args, network, seed)
            for part in args.parts.split(","):
                PARTS[part](cell)


if __name__ == "__main__":
    main()
