"""Plans: schemes x networks x data x attacks x seeds, written as TOML and checked whole.

::

    name = "a first comparison"
    schemes = ["mtlsign", { name = "deepsigns", bits = 256 }]
    networks = ["small-cnn"]
    data = ["fashion-mnist"]
    attacks = ["none", "prune:80", "obfuscate >> finetune:high-lr"]
    battery = "quick"  # adds a battery's attacks
    random_chains = 5  # adds random chains of three attacks
    seeds = [0, 1, 2]
    payloads = 1  # keys for each network and seed
    unmarked = true  # also measure every key on unmarked twins
    samples = 0  # training images, 0 for all
    tests = 0  # test images, 0 for all
    data_fraction = 0.5  # what the attacker holds; also: labels, epochs, queries, knowledge
    recipe = { epochs = 3 }
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from earmark import files
from earmark.bench.battery import attacks_of
from earmark.bench.cells import Cell, Means, Step, parse
from earmark.bench.run import Pair
from earmark.bench.search import random_chains
from earmark.bench.subjects import ZooSubject
from earmark.bench.zoo import NETWORKS
from earmark.codec import Json
from earmark.errors import EarmarkError, FormatError, UsageError

DATA = ("fashion-mnist", "mnist", "cifar10", "digits")

_NUMBERS = ("payloads", "samples", "tests", "random_chains", "epochs", "queries", "knowledge")
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "a text"),
    "recipe": ((Mapping,), "a table"),
    "data_fraction": ((int, float), "a number"),
    **dict.fromkeys(_NUMBERS, ((int,), "a whole number")),
    **dict.fromkeys(("unmarked", "labels"), ((bool,), "true or false")),
    **dict.fromkeys(
        ("schemes", "networks", "data", "attacks", "seeds"), ((list, tuple), "a list, in brackets")
    ),
}
"""What a plan's settings are, and how that is said."""


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Args:
        name: Name of the plan.
        schemes: Schemes with settings.
        networks: Networks of the zoo.
        data: Data sets.
        attacks: Attacks or chains; an empty one is the model as it is.
        seeds: Seeds of training and attack alike.
        payloads: Keys for each scheme, network, data set and seed.
        unmarked: Whether every key is also measured on unmarked twins.
        samples: Training images; 0 takes all.
        tests: Test images; 0 takes all.
        data_fraction, labels, epochs, queries, knowledge: What the attacker has and knows, see
            :class:`earmark.bench.cells.Means`.
        recipe: Changes to the networks' usual training settings.

    Raises:
        UsageError: An unknown network or data set, a seed that is no number, or an empty list.

    Example:
        >>> plan = Plan.of({"schemes": ["mtlsign"], "networks": ["mlp"], "data": ["digits"]})
        >>> len(plan.cells("models"))
        1
    """

    name: str
    schemes: tuple[Step, ...]
    networks: tuple[str, ...]
    data: tuple[str, ...]
    attacks: tuple[tuple[Step, ...], ...] = ((),)
    seeds: tuple[int, ...] = (0,)
    payloads: int = 1
    unmarked: bool = False
    samples: int = 0
    tests: int = 0
    data_fraction: float = 0.5
    labels: bool = True
    epochs: int | None = None
    queries: int | None = None
    knowledge: int = 2
    recipe: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [
            f"no {name}"
            for name in ("schemes", "networks", "data", "seeds", "attacks")
            if not getattr(self, name)
        ]
        problems += [f"network {name!r}" for name in self.networks if name not in [*NETWORKS]]
        problems += [f"data set {name!r}" for name in self.data if name not in DATA]
        problems += [f"seed {seed!r}" for seed in self.seeds if not _is(seed, (int,))]
        if problems:
            raise UsageError(
                f"Plan '{self.name}' has {', '.join(problems)}.",
                expected=f"Networks: {', '.join(NETWORKS)}. Data sets: {', '.join(DATA)}. "
                "Seeds: whole numbers.",
            )
        if self.payloads < 1 or min(self.samples, self.tests) < 0:
            raise UsageError(
                f"Plan '{self.name}' has {self.payloads} payloads, {self.samples} samples and "
                f"{self.tests} test images."
            )
        _ = self.means

    @property
    def means(self) -> Means:
        """What the attacker has and knows."""
        return Means(self.data_fraction, self.labels, self.epochs, self.queries, self.knowledge)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Plan:  # Any: TOML values
        """Build a plan from a table.

        Raises:
            UsageError: Unknown settings, names or presets, or settings of another type; all are
                reported at once.
        """
        known = {item.name for item in fields(cls)} | {"battery", "random_chains"}
        problems = [f"unknown setting '{name}'" for name in body if name not in known]
        mistyped = _mistyped(body)
        problems += mistyped.values()
        body = {name: value for name, value in body.items() if name not in mistyped}
        made: dict[str, Any] = {"name": "plan"} | {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in body.items()
            if name in known and name not in ("schemes", "attacks", "battery", "random_chains")
        }
        made["schemes"] = tuple(
            step for chain in _each(body.get("schemes", []), "scheme", problems) for step in chain
        )
        attacks = _each(body.get("attacks", []), "attack", problems)
        if "battery" in body:
            attacks += _each(attacks_of(str(body["battery"])), "attack", problems)
        attacks += random_chains(int(body.get("random_chains", 0)), seed=0)
        made["attacks"] = tuple(dict.fromkeys(attacks)) or ((),)
        if problems:
            raise UsageError("The plan has problems: " + "; ".join(problems) + ".")
        for name in ("networks", "data"):
            made.setdefault(name, ())
        return cls(**made)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan from a TOML file.

        Raises:
            FileError: The file cannot be read.
            FormatError: It is no TOML.
            UsageError: The plan makes no sense.
        """
        raw = files.read_bytes(path, limit=1 << 20)
        try:
            body = _toml(raw.decode())
        except (UnicodeDecodeError, ValueError) as error:
            raise FormatError(f"Plan '{path}' is no TOML: {error}.") from error
        return cls.of({"name": Path(path).stem} | body)

    def cells(self, models: str | Path) -> list[Pair]:
        """Return all cells with their subjects, grouped by subject.

        Args:
            models: The folder of trained models.
        """
        marks = (True, False) if self.unmarked else (True,)
        product = itertools.product(
            self.data, self.networks, self.schemes, self.seeds, marks, range(self.payloads)
        )
        found: list[Pair] = []
        for data, network, scheme, seed, marked, payload in product:
            subject = ZooSubject(
                scheme=scheme,
                network=network,
                data=data,
                seed=seed,
                folder=str(models),
                payload=payload,
                marked=marked,
                samples=self.samples,
                tests=self.tests,
                recipe=self.recipe,
            )
            about = subject.describe()
            found += [(subject, Cell(about, attack, seed, self.means)) for attack in self.attacks]
        return found


def _each(items: Sequence[Any], kind: str, problems: list[str]) -> list[tuple[Step, ...]]:
    """Parse each item; what fails is added to the problems."""
    found = []
    for item in items:
        try:
            found.append(parse(item, kind=kind))
        except EarmarkError as error:
            problems.append(f"{error.what} {error.hint or error.expected}".rstrip(" .?"))
    return found


def _mistyped(body: Mapping[str, Any]) -> dict[str, str]:  # Any: TOML values
    """Name the settings that are of another type than a plan's, and say what they should be."""
    return {
        name: f"{name} is {value!r}, not {_TYPES[name][1]}"
        for name, value in body.items()
        if name in _TYPES and not _is(value, _TYPES[name][0])
    }


def _is(value: object, types: tuple[type, ...]) -> bool:
    """Tell whether a value is of one of some types; true and false are no numbers."""
    return isinstance(value, types) and (types == (bool,) or not isinstance(value, bool))


def _toml(text: str) -> dict[str, Any]:  # Any: TOML values
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
