"""The eight requirements of the watermarking literature, measured for any scheme on any task.

Fidelity, reliability, robustness, integrity, capacity, efficiency, security and generality, as
DeepSigns names them. Every figure says how many seeds, keys and models stand behind it; none is a
verdict.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from earmark import policy
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.bench.zoo import tiny_hosts
from earmark.codec import Json
from earmark.errors import EarmarkError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts.batches import Tree
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Key
from earmark.records import Evidence
from earmark.schemes.base import Scheme
from earmark.schemes.embedding import embed
from earmark.task import Task
from earmark.training import Recipe, Trained, train

REQUIREMENTS = (
    "fidelity",
    "reliability",
    "robustness",
    "integrity",
    "capacity",
    "efficiency",
    "security",
    "generality",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Args:
        requirement: One of :data:`REQUIREMENTS`.
        what: What was measured.
        worst: The worst value over all that was measured.
        median: The median.
        unit: Unit of both.
        count: Number of measurements.
        note: What the reader should know, or why there is no value.
    """

    requirement: str
    what: str
    worst: float | None
    median: float | None
    unit: str
    count: int
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        """Return the figure as plain JSON."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # slots leave no __dict__
        }


@dataclass(frozen=True, slots=True)
class Requirements:
    """All figures of one scheme on one task.

    Args:
        scheme: Name of the scheme.
        task: Name of the task.
        figures: The figures, in the order of :data:`REQUIREMENTS`.
    """

    scheme: str
    task: str
    figures: tuple[Figure, ...]

    def of(self, requirement: str) -> tuple[Figure, ...]:
        """Return the figures of one requirement.

        Raises:
            UsageError: There is no such requirement.
        """
        if requirement not in REQUIREMENTS:
            raise UsageError(
                f"There is no requirement '{requirement}'.",
                expected=f"One of {', '.join(REQUIREMENTS)}.",
            )
        return tuple(figure for figure in self.figures if figure.requirement == requirement)

    def to_json(self) -> dict[str, Json]:
        """Return everything as plain JSON."""
        figures: list[Json] = [figure.to_json() for figure in self.figures]
        return {"scheme": self.scheme, "task": self.task, "figures": figures}

    def table(self) -> str:
        """Return a table in Markdown."""
        lines = [
            "| requirement | measured | worst | median | unit | n |",
            "|---|---|---|---|---|---|",
        ]
        for item in self.figures:
            values = [_short(item.worst), _short(item.median)]
            what = f"{item.what} ({item.note})" if item.note else item.what
            cells = [item.requirement, what, *values, item.unit, str(item.count)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@dataclass(frozen=True)
class _Run:
    """The models of one seed."""

    seed: int
    key: Key
    plain: Trained
    marked: Trained
    cost: float
    evidence: Evidence


def measure_requirements(
    scheme: Scheme,
    task: Task,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    attacks: Mapping[str, Attack] | None = None,
    keys: int = 100,
    innocents: int = 2,
    capacities: Sequence[int] = (),
    fine_tune: Recipe | None = None,
    events: Events = SILENT,
) -> Requirements:
    """Measure a scheme against the eight requirements.

    Args:
        scheme: The scheme.
        task: The user's work.
        seeds: One marked model and one plain model of equal training for each.
        attacks: Attacks by the name that the table shows; none leaves robustness out.
        keys: Random keys for integrity, spread over marked and innocent models.
        innocents: Independently trained models for integrity.
        capacities: Message sizes to try, for schemes with a field `bits`.
        fine_tune: Mark a trained model with this recipe; null marks from scratch.
        events: Who hears of the progress.

    Returns:
        The figures.

    Raises:
        UsageError: No seeds, no keys or no innocent models.
        CapacityError, CarrierError: The scheme does not fit the task's model.
    """
    if not seeds or keys < 1 or innocents < 1:
        raise UsageError("Requirements need at least one seed, one key and one innocent model.")
    runs = [
        _run(scheme, task, seed, fine_tune)
        for seed in events.track(seeds, label="mark", total=len(seeds))
    ]
    figures = [*_fidelity(task, runs), *_reliability(runs)]
    figures += _robustness(scheme, task, runs, attacks or {}, events)
    figures += _integrity(scheme, task, runs[0], keys, innocents)
    figures += _capacity(scheme, task, runs, capacities, fine_tune)
    figures += [*_efficiency(runs), *_security(runs), *_generality(scheme)]
    return Requirements(scheme.name, task.name, tuple(figures))


def _inputs(scheme: Scheme, task: Task) -> Tree | None:
    if not scheme.needs_inputs:
        return None
    return task.samples(max(2000, scheme.inputs_wanted()), seed=4711)


def _secret(*parts: object) -> bytes:
    return hashlib.sha256(f"earmark/metrics/{parts}".encode()).digest()


def _run(scheme: Scheme, task: Task, seed: int, fine_tune: Recipe | None) -> _Run:
    recipe = fine_tune or Recipe.of(task.recipe)
    base = train(task, seed=seed).model if fine_tune else None
    started = time.process_time()
    plain = train(task, seed=seed + 50, recipe=recipe, model=copy.deepcopy(base))
    usual = time.process_time() - started
    host = task.host(task.model() if base is None else base)
    key = scheme.new_key(host, inputs=_inputs(scheme, task), secret=_secret("key", seed))
    started = time.process_time()
    marked = embed(task, scheme, key, seed=seed + 50, recipe=recipe, model=copy.deepcopy(base))
    cost = (time.process_time() - started) / max(usual, 1e-9)
    return _Run(seed, key, plain, marked, cost, scheme.measure(task.host(marked.model), key))


def _bits(evidence: Evidence) -> float:
    return policy.judge(evidence).bits


def _rate(evidence: Evidence) -> float:
    return 1 - evidence.hits / max(1, evidence.trials)


def _figure(
    requirement: str,
    what: str,
    values: Sequence[float],
    *,
    unit: str,
    high: bool = False,
    note: str = "",
) -> Figure:
    """Sum up values; `high` says that high values are the bad ones."""
    if not values:
        return Figure(requirement, what, None, None, unit, 0, note or "not measured")
    worst = max(values) if high else min(values)
    return Figure(
        requirement, what, float(worst), float(statistics.median(values)), unit, len(values), note
    )


def _fidelity(task: Task, runs: Sequence[_Run]) -> list[Figure]:
    marked = [task.evaluate(run.marked.model) for run in runs]
    plain = [task.evaluate(run.plain.model) for run in runs]
    change = [one - other for one, other in zip(marked, plain, strict=True)]
    return [
        _figure("fidelity", "utility, marked less plain", change, unit="points"),
        _figure("fidelity", "utility, marked", marked, unit="%"),
    ]


def _reliability(runs: Sequence[_Run]) -> list[Figure]:
    bits = [_bits(run.evidence) for run in runs]
    shown = sum(value >= 64 for value in bits)
    return [
        _figure(
            "reliability",
            "evidence on the marked model",
            bits,
            unit="bits",
            note=f"{shown} of {len(bits)} at 64 bits or more",
        ),
        _figure(
            "reliability",
            "error rate",
            [_rate(run.evidence) for run in runs],
            unit="share",
            high=True,
        ),
    ]


def _robustness(
    scheme: Scheme, task: Task, runs: Sequence[_Run], attacks: Mapping[str, Attack], events: Events
) -> list[Figure]:
    if not attacks:
        return [_figure("robustness", "no attack was run", [], unit="bits")]
    budget = Budget(task, knowledge=Knowledge.SCHEME)
    figures = []
    for name, attack in events.track(attacks.items(), label="attack", total=len(attacks)):
        bits, kept, failed = [], [], ""
        for run in runs:
            try:
                broken = attack.run(run.marked.model, budget, seed=run.seed)
                bits.append(_bits(scheme.measure(task.host(broken), run.key)))
                kept.append(task.evaluate(broken))
            except EarmarkError as error:
                failed = error.what
        note = f"utility {statistics.median(kept):.1f} %" if kept else failed
        figures.append(
            _figure("robustness", f"evidence after {name}", bits, unit="bits", note=note)
        )
    return figures


def _integrity(scheme: Scheme, task: Task, run: _Run, keys: int, innocents: int) -> list[Figure]:
    """Random keys on the marked model, and on independent ones."""
    models = {"marked model, other keys": [run.marked.model]}
    models["innocent models"] = [
        train(task, seed=100_000 + index).model for index in range(innocents)
    ]
    inputs = _inputs(scheme, task)
    figures = []
    for name, found in models.items():
        bits = []
        for index in range(keys):
            host = task.host(found[index % len(found)])
            key = scheme.new_key(host, inputs=inputs, secret=_secret("null", index))
            bits.append(_bits(scheme.measure(host, key)))
        figures.append(_figure("integrity", f"evidence, {name}", bits, unit="bits", high=True))
    return figures


def _capacity(
    scheme: Scheme,
    task: Task,
    runs: Sequence[_Run],
    capacities: Sequence[int],
    fine_tune: Recipe | None,
) -> list[Figure]:
    held = [float(run.key.layout.message_bits) for run in runs]
    figures = [_figure("capacity", "message of these keys", held, unit="bits or labels")]
    fields = {field.name for field in dataclasses.fields(scheme)}  # type: ignore[arg-type]
    if capacities and "bits" not in fields:
        raise UsageError(f"Scheme '{scheme.name}' has no field 'bits' to vary.")
    for size in capacities:
        other = dataclasses.replace(scheme, bits=size)  # type: ignore[type-var]
        try:
            run = _run(other, task, runs[0].seed, fine_tune)
        except EarmarkError as error:
            figures.append(
                _figure("capacity", f"error rate at {size} bits", [], unit="share", note=error.what)
            )
            continue
        utility = task.evaluate(run.marked.model)
        figures.append(
            _figure(
                "capacity",
                f"error rate at {size} bits",
                [_rate(run.evidence)],
                unit="share",
                high=True,
                note=f"utility {utility:.1f} %",
            )
        )
    return figures


def _efficiency(runs: Sequence[_Run]) -> list[Figure]:
    ratio = [run.cost for run in runs]
    what = "processor time of training, marked over plain"
    return [_figure("efficiency", what, ratio, unit="ratio", high=True)]


def _security(runs: Sequence[_Run]) -> list[Figure]:
    """How far weights of marked and plain models differ in distribution, tensor by tensor."""
    pairs = [(_weights(run.marked.model), _weights(run.plain.model)) for run in runs]
    distance = [max(map(_distance, one, other)) for one, other in pairs]
    spread = [
        max(float(np.std(a) / max(np.std(b), 1e-12)) for a, b in zip(one, other, strict=True))
        for one, other in pairs
    ]
    note = "largest tensor-wise Kolmogorov-Smirnov distance of standardized weights"
    return [
        _figure(
            "security", "distribution of weights", distance, unit="distance", high=True, note=note
        ),
        _figure(
            "security", "spread of weights, marked over plain", spread, unit="ratio", high=True
        ),
    ]


def _weights(model: nn.Module) -> list[np.ndarray]:
    tensors = [item for item in model.state_dict().values() if item.ndim > 1]
    return [item.float().numpy().ravel() for item in tensors if item.is_floating_point()]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples, each standardized."""
    first, second = (np.sort((x - x.mean()) / max(x.std(), 1e-12)) for x in (one, other))
    points = np.concatenate([first, second])
    below = np.searchsorted(first, points, side="right") / len(first)
    above = np.searchsorted(second, points, side="right") / len(second)
    return float(np.abs(below - above).max())


def _generality(scheme: Scheme) -> list[Figure]:
    """On how many kinds of tiny models a key can be made."""
    accepted, refused = [], []
    for name, (model, inputs) in tiny_hosts().items():
        try:
            scheme.new_key(ModuleHost(model), inputs=inputs, secret=_secret(name))
            accepted.append(name)
        except EarmarkError as error:
            refused.append(f"{name}: {error.what}")
    note = "; ".join(refused) or ", ".join(accepted)
    share = [len(accepted) / (len(accepted) + len(refused))]
    needs = ", ".join(sorted(item.value for item in scheme.needs))
    return [
        _figure("generality", "kinds of tiny models accepted", share, unit="share", note=note),
        Figure("generality", f"reads {needs}", None, None, "", 0),
    ]
