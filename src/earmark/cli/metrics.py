"""`earmark metrics`: measure a scheme against the eight requirements on your own task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earmark import files, registry
from earmark.cli import options
from earmark.cli.output import Bars, emit
from earmark.wording import counted

if TYPE_CHECKING:
    from earmark.attacks.base import Attack
    from earmark.task import Task
    from earmark.training import Recipe


@click.command(
    "metrics",
    epilog="Example:  earmark metrics task.py --scheme deepsigns --attack prune:share=0.5",
)
@click.argument("task_path", metavar="TASK", type=click.Path(path_type=Path))
@click.option("--scheme", "scheme_name", default="deepsigns", show_default=True)
@options.settings_option
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[:FIELD=VALUE,...]",
    help="An attack for robustness, with its settings; may be repeated.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--keys",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Random keys for integrity.",
)
@click.option(
    "--innocents",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Independent models for integrity.",
)
@click.option(
    "--capacity", "capacities", type=click.IntRange(min=1), multiple=True,
    help="A message size in bits to try; may be repeated.",
)  # fmt: skip
@click.option(
    "--fine-tune",
    type=click.IntRange(min=1),
    metavar="EPOCHS",
    help="Mark a trained model within so many epochs, instead of from scratch.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table here.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@options.quiet_option
@options.json_option
def command(
    *,
    task_path: Path,
    scheme_name: str,
    settings: tuple[str, ...],
    attacks: tuple[str, ...],
    seeds: int,
    keys: int,
    innocents: int,
    capacities: tuple[int, ...],
    fine_tune: int | None,
    output: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Measure a scheme on your task and print the table of the literature's eight requirements.

    Fidelity, reliability, robustness, integrity, capacity, efficiency, security and generality, of
    any scheme. TASK is a task file as for `earmark protect`. One marked and one plain model are
    trained for each seed; worst value and median are printed.
    """
    from earmark.metrics import measure_requirements
    from earmark.task import load_task

    options.require_free(output, force=force)
    scheme = registry.scheme(scheme_name, **options.parse_settings(settings))
    named = dict(map(_attack, attacks))
    task = load_task(task_path)
    found = measure_requirements(
        scheme,
        task,
        seeds=range(seeds),
        attacks=named,
        keys=keys,
        innocents=innocents,
        capacities=capacities,
        fine_tune=_recipe(task, fine_tune),
        events=Bars(quiet=quiet or as_json),
    )
    table = found.table()
    if output is not None:
        files.write_bytes(output, (table + "\n").encode(), overwrite=force)
    lines = [f"{found.scheme} on {found.task}, {counted(seeds, 'seed')}", "", table]
    return emit("metrics", lines, found.to_json(), as_json=as_json)


def _attack(text: str) -> tuple[str, Attack]:
    """Return an attack from ``name:field=value,...``, with the text as its name."""
    name, _, settings = text.partition(":")
    pairs = tuple(item for item in settings.split(",") if item)
    return text, registry.attack(name, **options.parse_settings(pairs))


def _recipe(task: Task, epochs: int | None) -> Recipe | None:
    from earmark.training import Recipe

    changes: dict[str, Any] = {"epochs": epochs}  # Any: fields of Recipe
    return None if epochs is None else Recipe.of(task.recipe, **changes)
