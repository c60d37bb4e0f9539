"""Search for the cheapest chain of attacks: least evidence at a utility that a thief accepts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from earmark.bench.cells import Cell, Means, Step, parse
from earmark.bench.run import run_cells
from earmark.bench.subjects import Subject
from earmark.errors import UsageError
from earmark.events import SILENT, Events
from earmark.records import Trial

Genes = tuple[Step, ...]

POOL: tuple[str, ...] = (
    "finetune:ftal",
    "finetune:high-lr",
    "finetune:rtal",
    "prune:50",
    "prune:80",
    "prune-channels:30",
    "quantize:int4",
    "noise:10",
    "noise:30",
    "obfuscate:exact",
    "obfuscate:active",
)
"""Attacks from which chains are drawn by default."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chain that was measured.

    Args:
        chain: Its steps.
        trial: What came out.
        kept: Whether enough utility was kept.
    """

    chain: Genes
    trial: Trial
    kept: bool

    def rank(self) -> tuple[bool, float, float, int]:
        """Sort key: chains that keep utility first, then fewer bits, less cost, fewer steps."""
        lost = 0.0
        if not self.kept and self.trial.utility is not None:
            lost = -self.trial.utility
        bits = self.trial.bits if self.trial.bits is not None else float("inf")
        return (not self.kept, bits if self.kept else lost, self.trial.cost or 0.0, len(self.chain))


def steps_of(pool: Sequence[str]) -> list[Step]:
    """Return the single steps that a pool of attacks names.

    Raises:
        UsageError: The pool is empty.
    """
    found = [step for text in pool for step in parse(text, kind="attack")]
    if not found:
        raise UsageError("There are no attacks to draw chains from.")
    return found


def random_chains(
    count: int, *, seed: int, length: int = 3, pool: Sequence[str] = POOL
) -> list[Genes]:
    """Return distinct random chains of a given length, the same for the same seed.

    Args:
        count: How many; fewer if the pool has no more.
        seed: Seed of the draw.
        length: Steps of each.
        pool: Attacks to draw from.

    Example:
        >>> len(random_chains(5, seed=1))
        5
    """
    steps = steps_of(pool)
    generator = random.Random(seed)  # noqa: S311 - experiments, no secrets
    found: dict[Genes, None] = {}
    most = min(count, len(steps) ** length)
    while len(found) < most:
        found.setdefault(tuple(generator.choice(steps) for _ in range(length)))
    return list(found)


def search(
    evaluate: Callable[[Genes], Trial],
    *,
    evaluations: int,
    seed: int,
    tolerance: float = 2.0,
    pool: Sequence[str] = POOL,
    population: int = 6,
    longest: int = 4,
) -> list[Candidate]:
    """Search chains by evolution within a budget of evaluations.

    Starts from single attacks and evolves: add, drop, replace or move a step, or cross two chains.
    No chain is measured twice.

    Args:
        evaluate: Measures a chain, for example through :func:`earmark.bench.run.measure`.
        evaluations: How many chains may be measured.
        seed: Seed of the search.
        tolerance: Points of utility that the thief gives up.
        pool: Attacks to build chains from.
        population: Chains that survive a round.
        longest: Most steps of a chain.

    Returns:
        Every chain that was measured, the best first.

    Raises:
        UsageError: No evaluation is allowed, or the pool is empty.

    Source:
        A plain (mu + 1) evolution strategy; the idea of searching chains against one's own mark
        is ours.
    """
    if evaluations < 1:
        raise UsageError(f"A search with {evaluations} evaluations finds nothing.")
    steps = steps_of(pool)
    generator = random.Random(seed)  # noqa: S311 - experiments, no secrets
    starts = [(step,) for step in steps]
    generator.shuffle(starts)
    found: dict[Genes, Candidate] = {}

    def best() -> list[Candidate]:
        return sorted(found.values(), key=Candidate.rank)

    idle = 0
    while len(found) < evaluations and idle < 200:
        young = starts.pop() if starts and len(found) < population else None
        chain = young or _child(best()[:population], steps, generator, longest)
        if chain in found:
            idle += 1
            continue
        idle = 0
        trial = evaluate(chain)
        kept = (
            trial.utility is not None
            and trial.utility_before is not None
            and trial.utility >= trial.utility_before - tolerance
        )
        found[chain] = Candidate(chain, trial, kept)
    return best()


def search_subject(
    subject: Subject,
    path: str | Path,
    *,
    evaluations: int,
    seed: int,
    tolerance: float = 2.0,
    pool: Sequence[str] = POOL,
    means: Means | None = None,
    events: Events = SILENT,
) -> list[Candidate]:
    """Search the cheapest chain against one model; every measurement is a row, so it resumes.

    Args:
        subject: The model with its key and task.
        path: The rows' file; chains that have a row there are not measured again.
        evaluations: How many chains may be measured.
        seed: Seed of the search and of every attack in it.
        tolerance: Points of utility that the thief gives up.
        pool: Attacks to build chains from.
        means: What the attacker has and knows.
        events: Who hears of the progress.

    Returns:
        Every chain that was measured, the best first.
    """
    about = subject.describe()

    def evaluate(chain: Genes) -> Trial:
        events.note(" >> ".join(step.label() for step in chain))
        (row,) = run_cells([(subject, Cell(about, chain, seed, means or Means()))], path)
        return row.trial

    return search(evaluate, evaluations=evaluations, seed=seed, tolerance=tolerance, pool=pool)


def _child(
    parents: Sequence[Candidate], steps: Sequence[Step], generator: random.Random, longest: int
) -> Genes:
    """Draw a changed chain from the better parents."""
    chain = list(generator.choice(parents).chain)
    act = generator.choice(("add", "add", "drop", "replace", "move", "cross"))
    place = generator.randrange(len(chain))
    if act == "add" and len(chain) < longest:
        chain.insert(generator.randrange(len(chain) + 1), generator.choice(steps))
    elif act == "drop" and len(chain) > 1:
        del chain[place]
    elif act == "move" and len(chain) > 1:
        chain.insert(generator.randrange(len(chain)), chain.pop(place))
    elif act == "cross":
        other = generator.choice(parents).chain
        chain = (chain[: place + 1] + list(other[generator.randrange(len(other)) :]))[:longest]
    else:
        chain[place] = generator.choice(steps)
    return tuple(chain)
