"""The battery and the search behind `earmark attack`: rows, a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from earmark.cli.output import emit
from earmark.codec import Json
from earmark.errors import OutputError, UsageError
from earmark.records import now

if TYPE_CHECKING:
    from earmark.cli.attack import Wish
    from earmark.records import Trial


def _folder(out: Path) -> None:
    """Make the output folder.

    Raises:
        OutputError: It cannot be made.
        UsageError: It is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"Output '{out}' is a file.", expected="A folder for rows and page.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{out}' cannot be made: {error.strerror}.") from error


def run_battery(wish: Wish, name: str, *, seeds: int, workers: int) -> int:
    """Run a battery on a release; go on where an earlier run stopped.

    Args:
        wish: The release, the attacker's means and the output folder.
        name: Name of the battery.
        seeds: Number of seeds.
        workers: Number of processes.

    Raises:
        OutputError: The folder or a file in it cannot be written.
        UsageError: The output is a file.
    """
    from earmark import files
    from earmark.bench import battery, rows, standard
    from earmark.bench.executor import Inline, Processes

    _folder(wish.out)
    made = battery.run_battery(
        wish.subject,
        name,
        wish.out / "rows.jsonl",
        seeds=range(seeds),
        means=wish.means,
        executor=Inline() if workers == 1 else Processes(workers),
        events=wish.bars(),
    )
    files.write_bytes(wish.out / "ieee3304.jsonl", standard.lines(made), overwrite=True)
    return _show(wish, rows.trials(made))


def run_search(wish: Wish, evaluations: int, *, seed: int) -> int:
    """Search the chain that leaves least evidence; go on where an earlier run stopped.

    Args:
        wish: The release, the attacker's means and the output folder.
        evaluations: Chains to measure.
        seed: Seed of the search and of its attacks.

    Raises:
        OutputError: The folder or a file in it cannot be written.
        UsageError: The output is a file.
    """
    from earmark.bench.search import search_subject

    _folder(wish.out)
    found = search_subject(
        wish.subject,
        wish.out / "search.jsonl",
        evaluations=evaluations,
        seed=seed,
        means=wish.means,
        events=wish.bars(),
    )
    best = found[0]
    label = " >> ".join(step.label() for step in best.chain)
    bits = "nothing measured" if best.trial.bits is None else f"{best.trial.bits:.0f} bits left"
    kept = "utility kept" if best.kept else "no chain kept the utility"
    return _show(wish, [item.trial for item in found], first=f"cheapest  {label}: {bits}, {kept}")


def _show(wish: Wish, trials: list[Trial], *, first: str = "") -> int:
    from earmark.bench import tables
    from earmark.report import BatteryContent, render_battery, write_page

    page = wish.out / "battery.html"
    content = BatteryContent(
        Path(wish.subject.release).name,
        tuple(trials),
        created=now(),
        notes=(
            "Compute is CPU time of the attack over that of a training, which was estimated from "
            "some steps of one.",
            wish.means.sentence(),
        ),
    )
    write_page(page, render_battery(content), overwrite=True)
    lines = [*([first, ""] if first else []), tables.text(trials)]
    listed: list[Json] = [trial.to_json() for trial in trials]
    payload: dict[str, Json] = {"trials": listed, "page": str(page)}
    return emit("attack", [*lines, f"rows and page  {wish.out}"], payload, as_json=wish.as_json)
