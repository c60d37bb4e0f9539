"""`earmark bench`: compare schemes, networks, data sets and attacks from a plan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark.cli import options
from earmark.cli.output import Bars, emit
from earmark.codec import Json
from earmark.errors import OutputError
from earmark.records import now

if TYPE_CHECKING:
    from earmark.bench.plan import Plan
    from earmark.records import Trial


def _pages(folder: Path, trials: list[Trial], plan: Plan) -> int:
    """Write a page for each scheme, network and data set; return how many.

    Raises:
        OutputError: The folder cannot be made.
    """
    from earmark.report import BatteryContent, render_battery, write_page

    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.scheme, trial.host, trial.data), []).append(trial)
    _folder(folder)
    for group, found in groups.items():
        name = re.sub(r"[^\w.-]+", "-", "-".join(group)).strip("-")[:120]
        about, notes = " · ".join(group), (f"Plan '{plan.name}'.", plan.means.sentence())
        content = BatteryContent(about, tuple(found), created=now(), notes=notes)
        write_page(folder / f"{name}.html", render_battery(content), overwrite=True)
    return len(groups)


def _folder(path: Path) -> None:
    """Make a folder.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{path}' cannot be made: {error.strerror}.") from error


@click.command("bench", epilog="Example:  earmark bench plan.toml --out runs/first --workers 2")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for rows, models and tables; an interrupted run goes on there.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--retry", is_flag=True, help="Run cells again whose row is an error.")
@options.quiet_option
@options.json_option
def command(
    *, plan_path: Path, out: Path, workers: int, retry: bool, quiet: bool, as_json: bool
) -> int:
    """Compare schemes x networks x data sets x attacks x seeds.

    PLAN is a TOML file with lists `schemes`, `networks`, `data`, `attacks` and `seeds`. Finished
    cells are never run again; failures are rows. Written to --out: rows (JSON lines, also in the
    layout of IEEE 3304), tables, and a page with the plot for each scheme, network and data set.
    """
    from earmark import files
    from earmark.bench import rows, standard, tables
    from earmark.bench.executor import Inline, Processes
    from earmark.bench.plan import Plan
    from earmark.bench.run import run_cells

    plan = Plan.read(plan_path)
    _folder(out / "models")
    made = run_cells(
        plan.cells(out / "models"),
        out / "rows.jsonl",
        executor=Inline() if workers == 1 else Processes(workers),
        events=Bars(quiet=quiet or as_json),
        retry=retry,
    )
    trials = rows.trials(made)
    files.write_bytes(out / "table.md", tables.markdown(trials).encode(), overwrite=True)
    files.write_bytes(out / "ieee3304.jsonl", standard.lines(made), overwrite=True)
    count = _pages(out / "pages", trials, plan)
    lines = [
        tables.text(trials),
        "",
        f"rows   {out / 'rows.jsonl'}",
        f"table  {out / 'table.md'}",
        f"pages  {out / 'pages'}  ({count})",
    ]
    listed: list[Json] = [trial.to_json() for trial in trials]
    return emit("bench", lines, {"trials": listed}, as_json=as_json)
