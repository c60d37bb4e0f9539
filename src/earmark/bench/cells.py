"""Cells: what exactly is measured, written so that the same cell always has the same digest."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from earmark import registry
from earmark.codec import Json
from earmark.errors import UsageError
from earmark.records import Record

if TYPE_CHECKING:
    from earmark.attacks.base import Attack
    from earmark.schemes.base import Scheme

_TEXT = re.compile(r"^\s*([\w-]+)(?::([\w.-]+))?\s*$")


@dataclass(frozen=True, slots=True)
class Step(Record):
    """A scheme or an attack by name, with the settings that differ from its defaults.

    Args:
        name: Name in the registry.
        settings: Settings by name.

    Example:
        >>> Step("prune", {"share": 0.5}).label()
        'prune(share=0.5)'
    """

    SCHEMA: ClassVar[str] = "earmark/step/1"
    name: str
    settings: Mapping[str, Json] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.digest())

    def label(self) -> str:
        """Return name and settings in one short line."""
        inner = ", ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        return f"{self.name}({inner})" if inner else self.name

    def scheme(self) -> Scheme:
        """Return the scheme of that name; raises as :func:`earmark.registry.scheme`."""
        return registry.scheme(self.name, **_tuples(self.settings))

    def attack(self) -> Attack:
        """Return the attack of that name; raises as :func:`earmark.registry.attack`."""
        return registry.attack(self.name, **_tuples(self.settings))


def _tuples(settings: Mapping[str, Json]) -> dict[str, Any]:  # Any: fields of attacks and schemes
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def step_of(thing: Attack | Scheme) -> Step:
    """Return the step that names an attack or a scheme with its present settings.

    Example:
        >>> from earmark.attacks.noise import Noise
        >>> step_of(Noise(share=0.3))
        Step(name='noise', settings={'share': 0.3})
    """
    usual = {
        item.name: item.default_factory()
        if item.default_factory is not dataclasses.MISSING
        else item.default
        for item in dataclasses.fields(thing)  # type: ignore[arg-type]
    }
    own = {name: getattr(thing, name) for name in usual}
    settings: dict[str, Any] = {  # Any: JSON values
        name: list(value) if isinstance(value, tuple) else value
        for name, value in own.items()
        if value != usual[name]
    }
    return Step(thing.name, settings)


def parse(what: str | Mapping[str, Any] | Sequence[Any], *, kind: str) -> tuple[Step, ...]:
    """Read a scheme, an attack or a chain of attacks as plans write it.

    Args:
        what: ``"prune"``, ``"prune:80"`` with a preset, ``"noise >> prune:80"`` as a chain,
            ``{"name": "prune", "share": 0.7}`` with settings, or a list of these; ``"none"`` is no
            attack.
        kind: "scheme" or "attack".

    Returns:
        Steps in order, checked against the registry.

    Raises:
        UnknownNameError: No such name.
        UsageError: No such preset or setting, or none of these forms.

    Example:
        >>> [step.label() for step in parse("noise >> prune:80", kind="attack")]
        ['noise', 'prune(share=0.8)']
    """
    if isinstance(what, str):
        if what.strip() in ("", "none"):
            return ()
        return tuple(_from_text(part, kind) for part in what.split(">>"))
    if isinstance(what, Mapping):
        settings = dict(what)
        name = str(settings.pop("name", ""))
        preset = settings.pop("preset", None)
        start = _from_text(f"{name}:{preset}" if preset else name, kind)
        made = Step(start.name, {**start.settings, **settings})
        if kind == "scheme":
            made.scheme()
        else:
            made.attack()
        return (made,)
    if isinstance(what, Sequence):
        return tuple(step for item in what for step in parse(item, kind=kind))
    raise UsageError(f"{what!r} names no {kind}.", expected="A name, a table, or a list of them.")


def _from_text(text: str, kind: str) -> Step:
    match = _TEXT.match(text)
    if match is None:
        raise UsageError(
            f"{text!r} names no {kind}.",
            expected="A name such as prune, or prune:80 with a preset.",
        )
    name, preset = match.groups()
    cls = registry.load(kind, name)
    if not preset:
        return step_of(cls())
    if kind == "scheme":
        raise UsageError(f"Schemes have no presets: '{text.strip()}'.")
    return step_of(cls.preset(preset))


@dataclass(frozen=True, slots=True)
class Means(Record):
    """What the attacker has and knows, as a value; a cell's digest covers it.

    Args:
        data_fraction: Share of the training data that he holds, 0 to 1.
        labels: Whether his data are labelled.
        epochs: Most epochs of any training of his, or null for what the attack asks for.
        queries: Queries to the stolen model, or null for any number.
        knowledge: 0 nothing, 1 scheme and code, 2 also the carrier, 3 also revealed shards.

    Raises:
        UsageError: A value out of range.

    Example:
        >>> Means(labels=False, queries=1000).knowledge
        2
    """

    SCHEMA: ClassVar[str] = "earmark/means/1"
    data_fraction: float = 0.5
    labels: bool = True
    epochs: int | None = None
    queries: int | None = None
    knowledge: int = 2

    def __post_init__(self) -> None:
        low = min(1 if item is None else item for item in (self.epochs, self.queries))
        if not 0 <= self.data_fraction <= 1 or low < 1 or not 0 <= self.knowledge <= 3:
            raise UsageError(
                f"An attacker with a data fraction of {self.data_fraction}, {self.epochs} epochs, "
                f"{self.queries} queries and knowledge L{self.knowledge}.",
                expected="A fraction of 0 to 1, at least 1 epoch and 1 query, L0 to L3.",
            )

    def sentence(self) -> str:
        """Return the means in one sentence, for pages.

        Example:
            >>> Means(0.3).sentence()
            'The attacker holds 30 % of the training data, labelled, and knows the carrier (L2).'
        """
        knows = ("nothing of the mark", "the scheme", "the carrier", "revealed shards")
        limits = [
            f", for at most {count:,} {name}"
            for count, name in ((self.epochs, "epochs a training"), (self.queries, "queries"))
            if count is not None
        ]
        labels = "labelled" if self.labels else "without labels"
        return (
            f"The attacker holds {self.data_fraction:.0%} of the training data, {labels}, and "
            f"knows {knows[self.knowledge]} (L{self.knowledge}){''.join(limits)}."
        ).replace("%", " %")


@dataclass(frozen=True, slots=True)
class Cell(Record):
    """One measurement: a marked (or unmarked) model, an attack, and a seed.

    Args:
        subject: What is attacked, as its subject describes itself.
        attack: The attack's steps; none for the model as it is.
        seed: Seed of the attack.
        means: What the attacker has and knows.

    Example:
        >>> cell = Cell({"kind": "demo"}, (Step("noise"),), 0)
        >>> cell.digest() == Cell.from_bytes(cell.canonical()).digest()
        True
    """

    SCHEMA: ClassVar[str] = "earmark/cell/2"
    subject: Mapping[str, Json]
    attack: tuple[Step, ...]
    seed: int
    means: Means = field(default_factory=Means)

    def __hash__(self) -> int:
        return hash(self.digest())

    def label(self) -> str:
        """Return the attack's label, "none" if there is none."""
        return " >> ".join(step.label() for step in self.attack) or "none"
