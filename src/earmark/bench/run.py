"""Run cells: attack a subject, measure what is left, write a row; never the same cell twice."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from earmark import __version__, policy
from earmark.bench import rows
from earmark.bench.cells import Cell, Step, step_of
from earmark.bench.executor import Executor, Inline, Lost
from earmark.bench.reading import read
from earmark.bench.rows import Row
from earmark.bench.subjects import Ground, Subject, ZooSubject
from earmark.codec import Json
from earmark.errors import EarmarkError, UsageError
from earmark.events import SILENT, Events
from earmark.records import Evidence, Trial

if TYPE_CHECKING:
    from earmark.attacks.base import Attack
    from earmark.schemes.base import Scheme

Pair = tuple[Subject, Cell]


def build(steps: Sequence[Step], scheme: Scheme) -> Attack | None:
    """Return the attack that the steps describe, or null for none.

    Overwriting takes the subject's own scheme and settings, `scheme`, unless it names others.
    """
    from earmark.attacks.chain import Chain

    made = []
    for step in steps:
        fitted = step
        if step.name == "overwrite" and "scheme" not in step.settings:
            own = step_of(scheme)
            more: dict[str, Json] = {"scheme": own.name, "settings_of_scheme": dict(own.settings)}
            fitted = Step(step.name, {**step.settings, **more})
        made.append(fitted.attack())
    if not made:
        return None
    return made[0] if len(made) == 1 else Chain(tuple(made))


def measure(ground: Ground, cell: Cell) -> Trial:
    """Run one cell on an opened subject; what fails becomes a row with an error."""
    started = time.perf_counter()
    utility, cost = None, None
    try:
        model, cost = attacked(ground, cell)
        utility = ground.task.evaluate(model) if cell.attack else ground.utility
        evidence = read(ground, ground.task.host(model))
        return _trial(ground, cell, started, evidence=evidence, utility=utility, cost=cost)
    except EarmarkError as problem:
        error = str(problem)
    except Exception as problem:  # noqa: BLE001 - a crash of an attack is a row, not a gap
        error = f"{type(problem).__name__}: {problem}"
    return _trial(ground, cell, started, utility=utility, cost=cost, error=error)


def attacked(ground: Ground, cell: Cell) -> tuple[nn.Module, float | None]:
    """Run a cell's attack on an opened subject.

    Args:
        ground: The subject, opened.
        cell: The attack with its seed and means.

    Returns:
        The attacked model (the subject's own for no attack), and what it cost relative to training.

    Raises:
        EarmarkError: The attack does not fit the model, or the means do not suffice.
    """
    from earmark.attacks.base import Budget, Knowledge

    attack = build(cell.attack, ground.scheme)
    if attack is None:
        return ground.model, 0.0
    budget = Budget(
        ground.task,
        data_fraction=cell.means.data_fraction,
        labels=cell.means.labels,
        epochs=cell.means.epochs,
        queries=cell.means.queries,
        knowledge=Knowledge(cell.means.knowledge),
    )
    start = time.process_time()
    model = attack.run(ground.model, budget, seed=cell.seed)
    cost = time.process_time() - start
    return model, cost / ground.train_seconds if ground.train_seconds else None


def _trial(
    ground: Ground,
    cell: Cell,
    started: float,
    *,
    evidence: Evidence | None = None,
    utility: float | None = None,
    cost: float | None = None,
    error: str | None = None,
) -> Trial:
    scheme, host, data = ground.names
    return Trial(
        scheme=scheme,
        host=host,
        data=data,
        attack=cell.label(),
        seed=cell.seed,
        utility_before=round(ground.utility, 4),
        utility=None if utility is None else round(utility, 4),
        evidence=evidence,
        bits=None if evidence is None else policy.judge(evidence).bits,
        seconds=round(time.perf_counter() - started, 3),
        cost=None if cost is None else round(cost, 4),
        versions=versions(),
        machine=machine(),
        error=error,
    )


def lost(cell: Cell, reason: str) -> Trial:
    """Return the row of a cell whose subject or worker failed."""
    about = cell.subject
    scheme = about.get("scheme")
    name = scheme.get("name") if isinstance(scheme, dict) else scheme
    return Trial(
        scheme=str(name or about.get("key", "unknown")),
        host=str(about.get("network", about.get("kind", "unknown"))),
        data=str(about.get("data", "unknown")),
        attack=cell.label(),
        seed=cell.seed,
        utility_before=None,
        utility=None,
        evidence=None,
        bits=None,
        seconds=0.0,
        cost=None,
        versions=versions(),
        machine=machine(),
        error=reason,
    )


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    import numpy as np

    return (
        ("earmark", __version__),
        ("numpy", np.__version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
    )


def versions() -> dict[str, str]:
    """Return the versions that rows record."""
    return dict(_versions())


def machine() -> str:
    """Return cores and architecture, nothing else about the machine."""
    return f"{os.cpu_count()} cores, {platform.machine()}"


_OPEN: list[tuple[str, Ground]] = []


def _open(subject: Subject) -> Ground:
    """Open a subject; this process remembers the last one."""
    digest = subject.digest()
    if not _OPEN or _OPEN[0][0] != digest:
        _OPEN[:] = [(digest, subject.open())]
    return _OPEN[0][1]


def prepare(subject: Subject) -> bool:
    """Train a subject's model so that opening it later is cheap; a job for an executor."""
    subject.open()
    return True


def run_pair(pair: Pair) -> Trial:
    """Run one cell; a job for an executor."""
    subject, cell = pair
    return measure(_open(subject), cell)


def run_cells(
    pairs: Sequence[Pair],
    path: str | Path,
    *,
    executor: Executor | None = None,
    events: Events = SILENT,
    retry: bool = False,
) -> list[Row]:
    """Run the cells that have no row yet and append each row as soon as it is there.

    An interrupt keeps every finished row; the next call goes on with the others.

    Args:
        pairs: Cells with their subjects.
        path: The rows' file.
        executor: The engine; by default this process.
        events: Who hears of the progress.
        retry: Whether cells whose row is an error are run again.

    Returns:
        The rows of all given cells, in their order.

    Raises:
        UsageError: Two cells are the same.
        OutputError: The file cannot be written.
    """
    engine = executor or Inline()
    digests = [cell.digest() for _, cell in pairs]
    if len(set(digests)) != len(digests):
        raise UsageError("A plan names the same cell twice.", hint="Look for repeated attacks.")
    found = rows.read(path)
    done = {k for k, row in found.items() if not (retry and row.trial.error)}
    todo = [pair for pair, digest in zip(pairs, digests, strict=True) if digest not in done]
    broken = failures(todo, engine, events)
    good = []
    for subject, cell in todo:
        reason = broken.get(subject.digest())
        if reason is None:
            good.append((subject, cell))
        else:
            rows.append(path, Row(cell, lost(cell, reason)))
    results: Iterator[tuple[int, Trial | Lost]] = engine.run(run_pair, good)
    for index, result in events.track(results, label="attack", total=len(good)):
        cell = good[index][1]
        trial = lost(cell, result.reason) if isinstance(result, Lost) else result
        rows.append(path, Row(cell, trial))
    found = rows.read(path)
    return [found[digest] for digest in digests]


def failures(pairs: Iterable[Pair], engine: Executor, events: Events) -> dict[str, str]:
    """Prepare the subjects that need a training; return digest to reason for those that failed."""
    waiting: dict[str, Subject] = {}
    for subject, _ in pairs:
        if not subject.ready():
            waiting.setdefault(_weights_of(subject), subject)
    jobs = list(waiting.values())
    found: dict[str, str] = {}
    for index, result in events.track(engine.run(prepare, jobs), label="train", total=len(jobs)):
        if isinstance(result, Lost):
            found[jobs[index].digest()] = f"The model could not be made. {result.reason}"
    return found


def _weights_of(subject: Subject) -> str:
    return str(subject.weights()) if isinstance(subject, ZooSubject) else subject.digest()
