"""Compare the systems and three baselines under every family of attacks; rows, resumable.

    python benchmarks/comparison.py --systems uchida,adi --data fashion-mnist --seeds 0-2
    python benchmarks/comparison.py --list

Fashion-MNIST: 10,000 training images, small CNN, five epochs; CIFAR-10: the same network and the
attacks of `MAIN`. The attacker holds a fifth of the training data, labelled, and knows the scheme
and the carrier (L2). `--extra` runs dear attacks instead. Rows: benchmarks/rows/comparison.jsonl,
one line a cell; a failed cell is a row with an error, and no cell runs twice. Locks have rows of
their own kind: utility of the copy without its serial number after the attack, beside a model
trained from scratch on the same data.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from earmark import codec, files, registry
from earmark.attacks.base import Budget, Knowledge
from earmark.bench import run, zoo
from earmark.bench.cells import Cell, Means, Step, parse
from earmark.bench.data import load
from earmark.bench.subjects import Ground, Subject, ZooSubject
from earmark.keys.secret import Key
from earmark.schemes.embedding import fresh_model
from earmark.schemes.mtlsign_paper import MtlSignPaper
from earmark.task import Task
from earmark.training import train

ROWS = Path(__file__).parent / "rows" / "comparison.jsonl"
SAMPLES, TESTS, EPOCHS, FRACTION = 10_000, 2_000, 5, 0.2
NETWORK = "small-cnn"
SCHEMES = (
    "mtlsign",
    "mtlsign-paper",
    "deepsigns",
    "deepsigns-paper",
    "deepsigns-blackbox",
    "deepsigns-blackbox-paper",
    "deepwater",
    "uchida",
    "deepmarks",
    "adi",
)
LOCKS = ("dsn", "dsn-paper")
ATTACKS: tuple[Any, ...] = (  # Any: as plans write attacks
    "none",
    "finetune:ftal",
    "finetune:ftll",
    "finetune:rtal",
    "finetune:rtll",
    "finetune:high-lr",
    "prune:65",
    "prune:90",
    "prune:layer-90",
    "prune-channels:30",
    "fine-prune:half",
    "quantize:int8",
    "quantize:int4",
    "quantize-dynamic",
    "cast:bf16",
    "noise:10",
    "noise:30",
    "shift-weights:sok",
    "overwrite:one-key",
    "permute",
    "scale",
    "flip-signs",
    "dummies:clique",
    "dummies:active",
    "obfuscate:exact",
    "fold-norms",
    "factor:exact",
    "merge:average",
    "merge:ties",
    "collapse:heavy",
    "distill:same",
    "preprocess:jpeg",
    "filter-queries",
    "obfuscate:exact >> finetune:ftal",
    "finetune:ftal >> prune:65 >> quantize:int8",
)
EXTRA: tuple[Any, ...] = (  # Any: as above; dear ones, for the first seed only
    {"name": "refit", "preset": "ewc", "epochs": 5},
    "smooth-labels:sok",
    "transfer",
    {"name": "refit", "preset": "unlabelled", "epochs": 5},
    "regularize:short",
    {"name": "train-adversarially", "epochs": 2},
    "overwrite:double",
    "overwrite:three-keys",
    "distill-attention:nad",
    {"name": "prune-adversarially", "steps": 60},
    {"name": "cleanse-patches", "steps": 40},
    {"name": "launder", "steps": 40},
    "scramble:noise",
    "retrain:hard",
    "retrain:cross",
    {"name": "knockoff", "queries": 2000},
    {"name": "jacobian-augmentation", "rounds": 3},
    {"name": "preprocess", "preset": "autoencoder", "steps": 300},
)
MAIN: tuple[Any, ...] = (  # Any: as above
    "none",
    "finetune:ftal",
    "finetune:rtal",
    "finetune:high-lr",
    "prune:80",
    "quantize:int4",
    "noise:10",
    "overwrite:one-key",
    "obfuscate:exact",
    "distill:same",
    "finetune:ftal >> prune:65 >> quantize:int8",
)


registry.SCHEMES.setdefault("mtlsign-paper", "earmark.schemes.mtlsign_paper:MtlSignPaper")


@cache
def images(data: str, more: int) -> Any:  # Any: Images
    return load(data).subset(SAMPLES + more, test=TESTS)


@dataclass(frozen=True)
class PaperSubject(Subject):
    """A model that bears MTL-Sign as published: trained, then marked in a second step."""

    data: str
    seed: int
    folder: str

    def describe(self) -> dict[str, Any]:
        """Say what the subject is."""
        about = {"kind": "paper", "scheme": "mtlsign-paper", "network": NETWORK, "data": self.data}
        return about | {"seed": self.seed, "samples": SAMPLES, "tests": TESTS, "epochs": EPOCHS}

    def open(self) -> Ground:
        """Load the model, or train, mark and keep it."""
        torch.set_num_threads(1)
        scheme = MtlSignPaper()
        task = zoo.image_task(NETWORK, images(self.data, 0), recipe={"epochs": EPOCHS})
        key = paper_key(scheme, task, fresh_model(task, self.seed), f"{self.seed}/0")
        path = Path(self.folder) / f"{self.digest()}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            start = time.process_time()
            plain = train(task, seed=self.seed).model
            model, made = scheme.embed(task, plain, key, seed=self.seed)
            spent = time.process_time() - start
            state = {k: v.contiguous() for k, v in model.state_dict().items()}
            extra = {"head": made.inputs, "spent": torch.tensor(spent)}
            with files.replacing(path, overwrite=True) as temporary:
                save_file(state | {f"earmark.{k}": v for k, v in extra.items()}, temporary)
        state = load_file(path)
        head, spent = state.pop("earmark.head"), float(state.pop("earmark.spent"))
        from earmark.hosts import batches

        layout = replace(key.layout, inputs=batches.tree_digest(head))
        key = replace(key, layout=layout, inputs=head)
        model = task.model()
        model.load_state_dict(state)
        model.eval()
        names = ("mtlsign-paper", NETWORK, self.data)
        return Ground(task, model, scheme, key, task.evaluate(model), spent, names)


def paper_key(scheme: MtlSignPaper, task: Task, model: nn.Module, name: str) -> Key:
    """Return a key without a head."""
    import hashlib

    secret = hashlib.sha256(f"earmark/comparison/{name}".encode()).digest()
    inputs = next(iter(task.stream("train", 0)))[0]
    return scheme.new_key(task.host(model.eval()), inputs=inputs, secret=secret)


def subject_of(system: str, data: str, seed: int, folder: str) -> Subject:
    if system == "mtlsign-paper":
        return PaperSubject(data, seed, folder)
    scheme = Step(system)
    wanted = scheme.scheme().inputs_wanted()
    wanted = wanted or (1024 if scheme.scheme().needs_inputs else 0)
    return ZooSubject(
        scheme, NETWORK, data, seed, folder,
        samples=SAMPLES + wanted, tests=TESTS, recipe={"epochs": EPOCHS},
    )  # fmt: skip


def cell_of(subject: Subject, attack: Any, seed: int) -> Cell:  # Any: as plans write attacks
    return Cell(subject.describe(), parse(attack, kind="attack"), seed, Means(FRACTION))


def scheme_cells(system: str, data: str, seed: int, attacks: Iterable[Any], args: Any) -> None:
    """Run the cells of one system, data set and seed that have no row yet."""
    subject = subject_of(system, data, seed, args.models)
    ground = None
    for attack in attacks:
        cell = cell_of(subject, attack, seed)
        about = {
            "system": system, "data": data, "seed": seed, "attack": name_of(attack),
            "label": cell.label(), "version": registry_version(system),
        }  # fmt: skip
        if done(about):
            continue
        if ground is None:
            ground = subject.open()
        trial = run.measure(ground, cell)
        evidence = trial.evidence
        write(
            about,
            utility_before=trial.utility_before,
            utility=trial.utility,
            bits=None if trial.bits is None else round(trial.bits, 2),
            hits=None if evidence is None else evidence.hits,
            trials=None if evidence is None else evidence.trials,
            cost=trial.cost,
            seconds=trial.seconds,
            error=trial.error,
        )
        if args.show:
            print(system, data, seed, name_of(attack), trial.bits, trial.utility, trial.seconds,
                  trial.error or "", flush=True)  # fmt: skip


def registry_version(system: str) -> int:
    version: int = registry.load("scheme", system).version
    return version


def name_of(attack: Any) -> str:  # Any: as plans write attacks
    """Return an attack's name as the tables print it."""
    if isinstance(attack, dict):
        return ":".join(attack[key] for key in ("name", "preset") if key in attack)
    return str(attack)


def lock_model(system: str, data: str, seed: int, folder: str) -> tuple[Task, nn.Module, float]:
    """Return the task, the locked copy and its utility with the serial number."""
    import random

    task = zoo.image_task(NETWORK, images(data, 0), recipe={"epochs": EPOCHS})
    lock = registry.lock(system)
    layout = lock.layout(task)
    serial = random.Random(f"serial {seed}").randbytes(16)
    about = {"lock": system, "data": data, "seed": seed, "samples": SAMPLES, "epochs": EPOCHS}
    path = Path(folder) / f"{codec.digest(codec.canonical(about))}.safetensors"
    if not path.exists():
        start = time.process_time()
        teacher = train(task, seed=1000 + seed).model
        model = lock.fit(task, teacher, serial, layout=layout, seed=seed)
        spent = time.process_time() - start
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, overwrite=True) as temporary:
            save_file(state | {"earmark.spent": torch.tensor(spent)}, temporary)
    state = load_file(path)
    spent = float(state.pop("earmark.spent"))
    model = task.model()
    model.load_state_dict(state)
    return task, model.eval(), spent


def lock_cells(system: str, data: str, seed: int, attacks: Iterable[Any], args: Any) -> None:
    """Attack a locked copy without its number: does it work afterwards?"""
    opened: tuple[Task, nn.Module, float] | None = None
    for attack in [*attacks, "scratch"]:
        about = {"system": system, "data": data, "seed": seed, "attack": name_of(attack)}
        if done(about):
            continue
        opened = opened or lock_model(system, data, seed, args.models)
        task, model, spent = opened
        start, begun = time.perf_counter(), time.process_time()
        utility, error = None, None
        try:
            attacked = lock_attacked(attack, task, model, seed)
            cost = (time.process_time() - begun) / spent
            utility = round(task.evaluate(attacked), 4)
        except Exception as problem:  # noqa: BLE001 - a crash of an attack is a row, not a gap
            error, cost = f"{type(problem).__name__}: {problem}", None
        write(about, utility_before=round(licensed(system, task, model, seed), 4), utility=utility,
              bits=None, hits=None, trials=None, cost=None if cost is None else round(cost, 4),
              seconds=round(time.perf_counter() - start, 3), error=error)  # fmt: skip
        if args.show:
            print(system, data, seed, name_of(attack), utility, error or "", flush=True)


def licensed(system: str, task: Task, model: nn.Module, seed: int) -> float:
    """Return the utility of the copy with its serial number."""
    import random

    lock = registry.lock(system)
    serial = random.Random(f"serial {seed}").randbytes(16)
    return task.evaluate(lock.opened(model, lock.layout(task), serial))


def lock_attacked(attack: Any, task: Task, model: nn.Module, seed: int) -> nn.Module:
    """Return the attacked copy, or for "scratch" a model trained on the attacker's data alone."""
    budget = Budget(task, data_fraction=FRACTION, knowledge=Knowledge.CARRIER)
    if attack == "scratch":
        recipe = dict(task.recipe) | {"epochs": 2 * EPOCHS}
        own = replace(task, recipe=recipe)
        return train(
            own, seed=seed, model=fresh_model(task, seed), data=lambda e: list(budget.data(seed=e))
        ).model
    steps = parse(attack, kind="attack")
    if not steps:
        return copy.deepcopy(model)
    for index, step in enumerate(steps):
        fitted = step
        if step.name == "overwrite":
            fitted = Step(step.name, {**step.settings, "scheme": "deepwater"})
        model = fitted.attack().run(model, budget, seed=seed + 7919 * index)
    return model


@cache
def _known() -> dict[str, bool]:
    return {}


def done(about: dict[str, Any]) -> bool:
    """Tell whether a cell has its row."""
    known = _known()
    if not known and ROWS.exists():
        for line in ROWS.read_text().splitlines():
            row = json.loads(line)
            known[_id(row)] = True
    return _id(about) in known


def _id(row: dict[str, Any]) -> str:
    keys = ("system", "data", "seed", "attack", "label", "version")
    return json.dumps([row.get(key) for key in keys])


def write(about: dict[str, Any], **found: Any) -> None:
    """Append a row in one write."""
    _known()[_id(about)] = True
    line = json.dumps(about | found | {"machine": run.machine(), **run.versions()}) + "\n"
    with ROWS.open("a") as file:
        file.write(line)


def seeds(text: str) -> list[int]:
    """Read "0-2" or "0,2"."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(x) for x in text.split(",")]


def main() -> None:
    """Read the command line and run what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--systems", default=",".join(SCHEMES + LOCKS))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2])
    parser.add_argument("--models", default="runs/comparison")
    parser.add_argument("--extra", action="store_true")
    parser.add_argument("--only", default="", help="attacks whose names contain this")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for data in args.data.split(","):
        asked = ATTACKS if data == "fashion-mnist" else MAIN
        asked = EXTRA if args.extra else asked
        attacks = [attack for attack in asked if args.only in name_of(attack)]
        for seed in args.seeds:
            for system in args.systems.split(","):
                cells = lock_cells if system in LOCKS else scheme_cells
                cells(system, data, seed, attacks, args)


if __name__ == "__main__":
    main()
