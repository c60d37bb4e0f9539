"""`earmark attack`: one attack, a battery of them, or a search for the cheapest chain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import policy
from earmark.cli import options
from earmark.cli.output import Bars, emit, line
from earmark.cli.verify import fitting
from earmark.codec import Json
from earmark.errors import UsageError

if TYPE_CHECKING:
    from earmark.bench.cells import Cell, Means
    from earmark.bench.subjects import Ground, ReleaseSubject
    from earmark.records import Evidence


@dataclass(frozen=True)
class Wish:
    """What every form of the command works with.

    Args:
        subject: The release with its task and key.
        means: What the attacker has and knows.
        out: A file for one attack, else a folder.
        quiet: No progress, no notes.
        as_json: One JSON document.
    """

    subject: ReleaseSubject
    means: Means
    out: Path
    quiet: bool
    as_json: bool

    def bars(self) -> Bars:
        """Return progress bars, if they are wanted."""
        return Bars(quiet=self.quiet or self.as_json)


@dataclass(frozen=True)
class Left:
    """What one attack left.

    Args:
        utility: Utility after it.
        cost: Compute relative to a training, or null.
        evidence: What was counted, aligned to the release where that is needed.
    """

    utility: float
    cost: float | None
    evidence: Evidence


@click.command(
    "attack",
    epilog="Example:  earmark attack release.safetensors --task task.py --battery quick -o out",
)
@click.argument("release", type=click.Path(path_type=Path))
@options.required_task_option
@click.option("--attack", "attack_name", metavar="NAME[:PRESET] [>> ...]",
              help="One attack or a chain; see earmark attacks.")  # fmt: skip
@click.option(
    "--battery",
    type=click.Choice(["quick", "standard", "full", "transformer"]),
    help="Many attacks; rows and a page are written to --out.",
)
@click.option("--search", "evaluations", type=click.IntRange(min=1), metavar="N",
              help="Search the cheapest chain of attacks, measuring N chains.")  # fmt: skip
@options.settings_option
@click.option("--data", "fraction", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Share of the training data that the attacker holds.")  # fmt: skip
@click.option("--no-labels", is_flag=True, help="His data have no labels.")
@click.option("--epochs", type=click.IntRange(min=1), help="Most epochs of any training of his.")
@click.option("--queries", type=click.IntRange(min=1), help="Most inputs that he may ask about.")
@click.option("--level", type=click.IntRange(0, 3), default=2, show_default=True,
              help="What he knows: 0 nothing, 1 the scheme, 2 the layer, 3 shards.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--key", "key_name", default="", help="Beginning of the key's id.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True,
              help="The attacked model, or the folder of a battery or search.")  # fmt: skip
@click.option("--force", is_flag=True, help="With --attack: replace the output.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@options.vault_option
@options.passphrase_option
@options.quiet_option
@options.json_option
def command(
    *,
    release: Path,
    task_path: Path,
    attack_name: str | None,
    battery: str | None,
    evaluations: int | None,
    settings: tuple[str, ...],
    fraction: float,
    no_labels: bool,
    epochs: int | None,
    queries: int | None,
    level: int,
    seed: int,
    seeds: int,
    key_name: str,
    out: Path,
    force: bool,
    workers: int,
    vault_path: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Attack a marked model and measure what is left of the mark.

    With --attack, writes the attacked model. With --battery, writes rows (JSON lines, also in the
    layout of IEEE 3304) and a page to a folder. With --search, looks for the chain of attacks that
    leaves least evidence at the same utility. Battery and search go on where they were interrupted.
    """
    if sum(item is not None for item in (attack_name, battery, evaluations)) != 1:
        raise UsageError(
            "Nothing or several things are to be run.",
            expected="Exactly one of --attack NAME, --battery NAME and --search N.",
        )
    from earmark.bench.cells import Means
    from earmark.bench.subjects import ReleaseSubject
    from earmark.cli import battery as many

    subject = ReleaseSubject(
        str(release), str(task_path), str(vault_path),
        key=key_name, passphrase=options.passphrase(passphrase_file),
    )  # fmt: skip
    require_fit(subject)
    means = Means(fraction, not no_labels, epochs, queries, level)
    wish = Wish(subject, means, out, quiet=quiet, as_json=as_json)
    if battery is not None:
        return many.run_battery(wish, battery, seeds=seeds, workers=workers)
    if evaluations is not None:
        return many.run_search(wish, evaluations, seed=seed)
    return _once(wish, str(attack_name), settings, seed, force=force)


def require_fit(subject: ReleaseSubject) -> None:
    """Read a release before anything is done to it, and say which does not fit where that fails.

    Raises:
        KeyLayoutError: The key does not even fit the task's own fresh model.
        HostError: The release does not fit task or key.
    """
    from earmark.bench.reading import read
    from earmark.vault import Vault

    vault = Vault.open(subject.vault)
    try:
        registration = vault.registration(subject.key)
        key = vault.key(registration.id, subject.passphrase)
    finally:
        vault.close()
    with fitting(key, registration, subject.release, Path(subject.task), what="Release"):
        ground = subject.load()
        read(ground, ground.task.host(ground.model))


def _once(wish: Wish, name: str, settings: tuple[str, ...], seed: int, *, force: bool) -> int:
    """Run one attack, measure as the battery does, and write the attacked model."""
    from earmark.bench import run
    from earmark.bench.cells import Cell, Step, parse
    from earmark.bench.reading import read
    from earmark.hosts.files import save_release

    steps = parse(name, kind="attack")
    more = options.parse_settings(settings)
    if more and len(steps) != 1:
        raise UsageError("--set goes with a single attack.", expected="Presets in a chain.")
    if more:
        steps = (Step(steps[0].name, {**steps[0].settings, **more}),)
        steps[0].attack()
    options.require_free(wish.out, force=force)
    wish.bars().note(f"attack with {name} ...")
    ground = wish.subject.open()
    cell = Cell(wish.subject.describe(), steps, seed, wish.means)
    model, cost = run.attacked(ground, cell)
    save_release(model, wish.out, overwrite=force)
    found = Left(ground.task.evaluate(model), cost, read(ground, ground.task.host(model)))
    return _say(wish, cell, ground, found)


def _say(wish: Wish, cell: Cell, ground: Ground, found: Left) -> int:
    verdict = policy.judge(found.evidence)
    change = found.utility - ground.utility
    cost = "not known" if found.cost is None else f"about {found.cost:.1%} of a training"
    lines = [
        line("attack", cell.label()),
        line("utility", f"{found.utility:.2f}  ({change:+.2f})  on {ground.task.name}"),
        line("mark", f"{verdict.outcome.value}: {verdict.reason}"),
        line("cost", cost),
        f"{wish.out} written.",
    ]
    payload: dict[str, Json] = {
        "attack": cell.label(),
        "utility_before": ground.utility,
        "utility": found.utility,
        "cost": found.cost,
        "evidence": found.evidence.to_json(),
        "verdict": verdict.to_json(),
    }
    return emit("attack", lines, payload, as_json=wish.as_json)
