"""Hold Deep Water to the removal battery: as files stand, and aligned to two references.

    python benchmarks/deepwater_column.py --seeds 0-4
    python benchmarks/deepwater_column.py --network resnet8 --seeds 0-4 --only R5,R7,R9,R10,R11
    python benchmarks/deepwater_column.py --transformer --seeds 0-4

Innocents are the matter of `benchmarks/deepwater_innocents.py`, colluders that of
`benchmarks/deepwater_collusion.py`. Models are those of `benchmarks/deepwater.py`, from its cache
folder. Finished rows never run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

import earmark
from deepwater import SCHEME, Cell
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.attacks.chain import Chain
from earmark.attacks.finetune import FineTune
from earmark.attacks.obfuscate import Obfuscate
from earmark.attacks.overwrite import Overwrite
from earmark.bench.cells import parse
from earmark.bench.zoo import TinyTransformer, cross_entropy
from earmark.hosts.align import align
from earmark.hosts.graph import channels
from earmark.keys.secret import Disclosure, Key
from earmark.policy import judge
from earmark.records import Evidence
from earmark.schemes import cells as cells_of
from earmark.schemes.deepwater_torch import rewrite
from earmark.schemes.embedding import embed, fresh_model, starting_model
from earmark.task import Task
from earmark.training import train

ROWS = Path(__file__).parent / "rows" / "deepwater_column.jsonl"
OWNER = "ab" * 32


@dataclass(frozen=True)
class EraseShards(Attack):
    """Push every revealed cell as far the other way as it stood, then tune the model."""

    name: ClassVar[str] = "erase-shards"
    family: ClassVar[str] = "overwrite"
    knowledge: ClassVar[Knowledge] = Knowledge.SHARDS
    source: ClassVar[str] = "Ours."
    summary: ClassVar[str] = "Turn the cells of revealed shards round."
    key: Key = None  # type: ignore[assignment]
    shown: tuple[int, ...] = (0, 1, 2, 3)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Erase and tune the copy."""
        shards = [self.key.shard(index) for index in self.shown]
        prepared = []
        for layer in cells_of.layers(self.key.layout):
            cells = cells_of.reveal(layer, shards, self.key.layout.shards)
            if cells is not None:
                prepared.append((cells, -cells.pads))
        rewrite(model, prepared, SCHEME.stamp_tensor)
        return FineTune(epochs=20).change(model, budget, seed=seed)


def attacks(only: set[str]) -> Iterator[tuple[str, str, Attack]]:
    """Yield the battery: row of the security bar, name, attack."""

    def made(text: str) -> Attack:
        steps = [step.attack() for step in parse(text, kind="attack")]
        return steps[0] if len(steps) == 1 else Chain(tuple(steps))

    named: dict[str, tuple[str, ...]] = {
        "R3": ("refit:ewc", "refit:ewc-loose", "refit:ewc-tight", "refit:unlabelled"),
        "R4": ("finetune:ftll", "finetune:rtll", "finetune:rtal"),
        "R6": ("fine-prune:half", "fine-prune:sok"),
        "R7": (
            "quantize:int8",
            "quantize:int8-tensor",
            "quantize:int4",
            "quantize:int4-tensor",
            "cast:fp16",
            "cast:bf16",
        ),
        "R8": ("shift-weights:sok", "shift-weights:sok-strong"),
        "R9": ("noise:1", "noise:5", "noise:10", "noise:30"),
        "R17": ("collapse:heaviest", "scramble:own-heavy"),
        "R20": ("distill:same",),
        "R23": (
            "merge:quarter",
            "merge:average",
            "merge:three-quarters",
            "merge:arithmetic",
            "merge:ties",
        ),
        "R24": (
            "shift-weights:sok >> fine-prune:half",
            "finetune:high-lr >> fine-prune:half >> quantize:int8",
        ),
        "L2": ("regularize:sok",),
    }
    found = [(row, text, made(text)) for row, texts in named.items() for text in texts]
    for share in (0.5, 0.7, 0.8, 0.9):
        for scope in ("layer", "global"):
            settings = {"share": share, "scope": scope}
            found.append(("R5", f"prune {scope} {share:g}", _made("prune", **settings)))
    for share in (0.1, 0.3, 0.5):
        attack = _made("prune-channels", share=share, epochs=5, shrink=True)
        found.append(("R5", f"channels {share:g} removed, 5 epochs", attack))
    adam = {"optimizer": "adamw", "weight_decay": 0.0}
    for epochs, lr in ((5, 1e-4), (20, 1e-3)):
        found.append(("R1", f"adam {lr:g} x {epochs}", FineTune(epochs=epochs, lr=lr, **adam)))
    found += [
        ("R2", "adam 0.005 x 20", FineTune(epochs=20, lr=5e-3, **adam)),
        ("R2", "sgd 0.05 x 40", FineTune(epochs=40, lr=0.05, warmup=0.0)),
    ]
    for name, margin, keys in (
        ("margin 8", 8, 1),
        ("margin 16", 16, 1),
        ("margin 32", 32, 1),
        ("three keys, margin 16", 16, 3),
    ):
        found.append(("R16", f"{name} x 40", _overwrite(margin, keys)))
    yield from (item for item in [*found, *_free(made)] if not only or item[0] in only)


def _made(name: str, **settings: Any) -> Attack:
    return earmark.registry.attack(name, **settings)


def _overwrite(margin: int, keys: int = 1) -> Attack:
    settings = {"margin": float(margin)}
    return Overwrite(scheme="deepwater", settings_of_scheme=settings, keys=keys, epochs=40)


def random_chain(seed: int) -> tuple[str, Attack]:
    """Return three attacks in a row, drawn from those that networks survive."""
    names = (
        "finetune:ftal",
        "finetune:high-lr",
        "fine-prune:half",
        "prune:50",
        "quantize:int8",
        "noise:10",
        "shift-weights:sok",
        "regularize:sok",
        "merge:average",
        "permute",
        "scale",
        "dummies:clique",
        "dummies:split",
        "refit:ewc",
    )
    drawn = np.random.default_rng(seed).choice(len(names), 3, replace=False)
    chosen = [names[index] for index in drawn]
    steps = [step.attack() for step in parse(" >> ".join(chosen), kind="attack")]
    return " >> ".join(chosen), Chain(tuple(steps))


def _free(made: Callable[[str], Attack]) -> list[tuple[str, str, Attack]]:
    """Return what costs an attacker nothing, and what he adds to it."""
    found = [("R10", "permute >> scale", made("permute >> scale"))]
    for kind in ("zero", "clique", "split"):
        for width in (0.1, 0.25, 0.8):
            attack = _made("dummies", kind=kind, width=width)
            found.append(("R11", f"{kind} +{width:.0%}", attack))
    found += [
        ("R11", f"all composed +{width:.0%} each", Obfuscate(width=width)) for width in (0.1, 0.8)
    ]
    tuned = [FineTune(epochs=10, lr=lr) for lr in (1e-3, 5e-3)]
    found += [
        ("R12", "noise 10 % >> active", made("noise:10 >> obfuscate:active")),
        ("R12", "active >> noise 10 %", made("obfuscate:active >> noise:10")),
        ("R13", "composed >> ftal 0.001", Chain((Obfuscate(spread=2.0), tuned[0]))),
        ("R13", "composed >> ftal 0.005", Chain((Obfuscate(spread=2.0), tuned[1]))),
        ("R13", "ftal 0.005 >> composed", Chain((tuned[1], Obfuscate()))),
        ("R14", "fold norms", made("fold-norms")),
        ("R14", "permute >> scale >> fold norms", made("permute >> scale >> fold-norms")),
        ("R14", "factor", made("factor:exact")),
        (
            "R24",
            "composed >> adam 0.005 x 20 >> overwrite at margin 16",
            Chain((Obfuscate(), FineTune(epochs=20, lr=5e-3, optimizer="adamw"), _overwrite(16))),
        ),
        ("R24", "composed >> prune 65 % >> int8", made("obfuscate >> prune:65 >> quantize:int8")),
    ]
    return found


class Row:
    """Where rows go."""

    def __init__(self, cell: str, **about: Any) -> None:
        self.cell, self.about = cell, about
        lines = ROWS.read_text().splitlines() if ROWS.exists() else []
        self.done = {(row["cell"], row["row"], row["attack"]) for row in map(json.loads, lines)}

    def note(self, **values: Any) -> None:
        """Write a row."""
        row = {
            "cell": self.cell,
            **self.about,
            **values,
            "earmark": earmark.__version__,
            "torch": torch.__version__,
            "machine": f"{os.cpu_count()} x {platform.machine()}",
        }
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(self.cell, {k: v for k, v in values.items() if k != "label"}, flush=True)


def bits(evidence: Evidence) -> float:
    """Return the net bits of evidence."""
    return round(judge(evidence).bits, 1)


class Subject:
    """A model that was marked from scratch, with its key, and three ways to count.

    The file is read as it stands, aligned to what the network was before its training, and aligned
    to the released network; both references without the carrier.
    """

    def __init__(self, task: Task, model: nn.Module, key: Key, start: nn.Module) -> None:
        self.task, self.model, self.key = task, model, key
        self.host = task.host(model)
        self.references = {
            "": SCHEME.reference(task.host(start), key),
            "release_": SCHEME.reference(self.host, key),
        }
        self.channels = channels(model)

    def count(self, stolen: nn.Module, *, shown: Key | Disclosure | None = None) -> dict[str, Any]:
        """Return utility and evidence: as the file stands, and aligned."""
        suspect, key = self.task.host(stolen), shown or self.key
        found: dict[str, Any] = {"accuracy": round(self.task.evaluate(stolen), 3)}
        try:
            raw = SCHEME.measure(suspect, key)
            found |= {"raw_hits": raw.hits, "raw_trials": raw.trials, "raw_bits": bits(raw)}
        except earmark.errors.EarmarkError as error:
            found["raw_failed"] = error.code
        for name, reference in self.references.items():
            try:
                aligned = SCHEME.measure(align(suspect, reference, self.channels), key)
            except earmark.errors.EarmarkError as error:
                found[f"{name}failed"] = str(error)
                continue
            found |= {
                f"{name}hits": aligned.hits,
                f"{name}trials": aligned.trials,
                f"{name}bits": bits(aligned),
            }
        return found


def subject_of(cell: Cell) -> Subject:
    """Return the model that a cell of `benchmarks/deepwater.py` marked from scratch."""
    start = starting_model(cell.task, SCHEME, cell.key, seed=cell.seed)
    return Subject(cell.quick, cell.marked()[0], cell.key, start)


def run(subject: Subject, row: Row, only: set[str], seed: int) -> None:
    """Attack, align and count."""
    budgets = {
        share: Budget(subject.task, knowledge=Knowledge.SHARDS, data_fraction=share)
        for share in (0.05, 0.1, 0.2, 0.5)
    }

    def one(
        number: str,
        name: str,
        attack: Attack,
        draw: int = 0,
        steps: str = "",
        share: float = 0.5,
        **how: Any,
    ) -> None:
        more = {"steps": steps} if steps else {}
        if (row.cell, number, name) in row.done:
            return
        started = time.process_time()
        try:
            stolen = attack.run(subject.model, budgets[share], seed=seed + 50 + draw)
        except earmark.errors.EarmarkError as error:
            row.note(row=number, attack=name, refused=str(error), **more)
            return
        seconds = round(time.process_time() - started, 2)
        counts = subject.count(stolen, **how)
        row.note(row=number, attack=name, **counts, **more, seconds=seconds)

    one("R0", "none", _made("noise", share=1e-9))
    for number, name, attack in attacks(only):
        for draw in range(4 if number == "R10" else 1):  # four draws for each of five seeds
            one(number, f"{name} #{draw}" if number == "R10" else name, attack, draw)
    for share in (0.05, 0.1, 0.2) if not only or "R3" in only else ():
        refit = parse("refit:ewc", kind="attack")[0].attack()
        one("R3", f"refit:ewc, {share:.0%} of the data", refit, share=share)
    for draw in range(4 if not only or "R24" in only else 0):  # twenty in all
        steps, attack = random_chain(10 * seed + draw)
        one("R24", f"three at random #{draw}", attack, steps=steps)
    if not only or "R18" in only:
        rest = Disclosure(subject.key.opening(OWNER), subject.key.reveal([4, 5, 6, 7]))
        one("R18", "half of the shards", EraseShards(key=subject.key), shown=rest)


def transformer(seed: int) -> Subject:
    """Train a marked transformer on digits, read as sequences of 64 grays."""
    data = earmark.bench.data.load("digits")

    class Tokens:
        """Batches of token sequences."""

        def __init__(self, split: str, order: int = 0) -> None:
            self.inner = data.batches(split, size=64, seed=order)

        def __len__(self) -> int:
            return len(self.inner)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for images, labels in self.inner:
                grays = ((images * 0.3 + 0.45) * 16).round().long()
                yield grays.flatten(1), labels

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            right = [(model(x).argmax(1) == y).float().mean() for x, y in Tokens("test")]
        return 100 * float(torch.stack(right).mean())

    task = Task(
        model=lambda: TinyTransformer(words=17, width=64, classes=10, steps=64),
        loss=cross_entropy,
        batches=Tokens,
        evaluate=evaluate,
        recipe={"epochs": 30, "lr": 3e-3, "optimizer": "adamw", "weight_decay": 1e-4},
        name="transformer/digits",
    )
    key = SCHEME.new_key(task.host(fresh_model(task, seed)), secret=bytes([seed + 1]) * 32)
    start = starting_model(task, SCHEME, key, seed=seed)
    return Subject(task, embed(task, SCHEME, key, seed=seed).model, key, start)


def gauge(seed: int) -> None:
    """The transformer's own changes that cost nothing."""
    names = ("transformer-gauge", "permute", "mix-units", "obfuscate:exact")
    row = Row(f"transformer-digits-{seed}", network="transformer", data="digits", seed=seed)
    todo = [name for name in (*names, "tuned") if (row.cell, "R15", name) not in row.done]
    if not todo:
        return
    subject = transformer(seed)
    budget = Budget(subject.task, knowledge=Knowledge.SCHEME)
    for name in todo:
        text = "transformer-gauge >> finetune:ftal" if name == "tuned" else name
        stolen: nn.Module = subject.model
        for step in parse(text, kind="attack"):
            stolen = step.attack().run(stolen, budget, seed=seed + 50)
        row.note(row="R15", attack=name, **subject.count(stolen))
    null = train(subject.task, seed=seed + 500).model
    row.note(row="null", attack="unmarked", **subject.count(null))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", default="", help="rows, comma-separated")
    parser.add_argument("--transformer", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    only = set(filter(None, args.only.split(",")))
    first, _, last = args.seeds.partition("-")
    for seed in range(int(first), int(last or first) + 1):
        if args.transformer:
            gauge(seed)
            continue
        cell = Cell(args, seed)
        row = Row(cell.name, network=args.network, data=args.data, seed=seed)
        run(subject_of(cell), row, only, seed)


if __name__ == "__main__":
    main()
