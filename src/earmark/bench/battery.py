"""Batteries: named lists of attacks, run against one model, and the page of what they left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from earmark.bench.cells import Cell, Means, Step, parse
from earmark.bench.executor import Executor
from earmark.bench.rows import Row
from earmark.bench.run import run_cells
from earmark.bench.subjects import Subject
from earmark.errors import UnknownNameError
from earmark.events import SILENT, Events

QUICK: tuple[str, ...] = (
    "none",
    "finetune:ftal",
    "finetune:rtll",
    "prune:65",
    "prune:80",
    "prune-channels:10",
    "quantize:int8",
    "quantize:int4",
    "noise:10",
    "permute",
    "scale",
    "obfuscate:exact",
    "obfuscate:active",
)
"""Minutes: the classics and the changes that cost nothing."""

STANDARD: tuple[str, ...] = (
    *QUICK,
    "finetune:ftll",
    "finetune:rtal",
    "finetune:high-lr",
    "refit:basic",
    "refit:ewc",
    "prune:90",
    "prune:layer-65",
    "prune-channels:30",
    "quantize:int8-tensor",
    "cast:fp16",
    "noise:30",
    "dummies:clique",
    "overwrite:one-key",
    "overwrite:double",
    "obfuscate >> finetune",
    "finetune >> obfuscate",
    "finetune >> prune:65 >> quantize:int8",
    "shift-weights:sok",
    "regularize:short",
    "smooth-labels:sok",
    "fine-prune:half",
    "distill-attention:nad",
    "merge:average",
    "merge:ties",
    "fold-norms",
    "factor:exact",
    "collapse:heavy",
    "distill:same",
    "transfer",
)
"""Under twenty minutes for a small network: every family."""

FULL: tuple[str, ...] = (
    *STANDARD,
    "finetune:adam",
    "finetune:adam-high-lr",
    "refit:unlabelled",
    "prune:50",
    "prune:layer-90",
    "prune:random-30",
    "prune:tuned-80",
    "prune-channels:50",
    "quantize:int3",
    "quantize:int6-tuned",
    "quantize-dynamic",
    "cast:bf16",
    "noise:1",
    "noise:5",
    "flip-signs",
    "dummies:zero",
    "dummies:split",
    "dummies:active",
    "obfuscate:wide",
    "overwrite:three-keys",
    "overwrite:five-keys",
    "shift-weights:sok-strong",
    "shift-weights:sok >> fine-prune:half",
    "shift-weights:sok >> smooth-labels:sok",
    "regularize:sok",
    "smooth-labels:high-lr",
    "train-adversarially:fast",
    "fine-prune:sok",
    "prune-adversarially:fast",
    "cleanse-patches:fast",
    "launder:fast",
    "merge:quarter",
    "merge:three-quarters",
    "merge:arithmetic",
    "factor:half",
    "collapse:light",
    "collapse:heaviest",
    "scramble",
    "distill-features",
    "reset-tail",
    "distill:cross",
    "retrain:hard",
    "retrain:soft",
    "retrain:cross",
    "retrain:smooth",
    "knockoff",
    "jacobian-augmentation",
    "preprocess:jpeg",
    "preprocess:blur",
    "preprocess:noise",
    "preprocess:levels",
    "preprocess:flip",
    "preprocess:autoencoder",
    "filter-queries",
)
"""Everything for image networks that needs no other customer's copy."""

TRANSFORMER: tuple[str, ...] = (
    "none",
    "permute",
    "scale",
    "mix-units",
    "transformer-gauge",
    "obfuscate:exact",
    "finetune:ftal",
    "finetune:rtal",
    "prune:65",
    "quantize:int8",
    "quantize:int4",
    "noise:10",
    "merge:average",
)
"""What fits a transformer on tokens."""

BATTERIES: dict[str, tuple[str, ...]] = {
    "quick": QUICK,
    "standard": STANDARD,
    "full": FULL,
    "transformer": TRANSFORMER,
}


def attacks_of(name: str) -> tuple[str, ...]:
    """Return the attacks of a battery, as plans write them.

    Raises:
        UnknownNameError: No battery has that name.

    Example:
        >>> attacks_of("quick")[0]
        'none'
    """
    if name not in BATTERIES:
        raise UnknownNameError(
            f"There is no battery called '{name}'.", expected=f"Known: {', '.join(BATTERIES)}."
        )
    return BATTERIES[name]


def run_battery(
    subject: Subject,
    name: str,
    path: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    means: Means | None = None,
    more: Sequence[str] = (),
    executor: Executor | None = None,
    events: Events = SILENT,
) -> list[Row]:
    """Run a battery against a model; resumable, as :func:`earmark.bench.run.run_cells`.

    Args:
        subject: The model with its key and task.
        name: "quick", "standard", "full" or "transformer".
        path: The rows' file.
        seeds: Seeds of the attacks; attacks without chance run once all the same for each.
        means: What the attacker has and knows; by default half the training data, labelled, and
            the carrier.
        more: Further attacks, as plans write them.
        executor: The engine; by default this process.
        events: Who hears of the progress.

    Returns:
        One row for each attack and seed, in order; the model as it is comes first.
    """
    about = subject.describe()
    chains: list[tuple[Step, ...]] = [
        parse(text, kind="attack") for text in (*attacks_of(name), *more)
    ]
    pairs = [
        (subject, Cell(about, chain, seed, means or Means()))
        for chain in dict.fromkeys(chains)
        for seed in (seeds if chain else seeds[:1])
    ]
    return run_cells(pairs, path, executor=executor, events=events)
