"""`earmark bench`: compare schemes, networks, data sets and attacks from a plan."""

from __future__ import annotations

from pathlib import Path

import click

from earmark.cli import options
from earmark.cli.output import Bars, emit
from earmark.codec import Json


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
    cells are never run again; failures are rows.
    """
    from earmark.bench import rows, tables
    from earmark.bench.executor import Inline, Processes
    from earmark.bench.plan import Plan
    from earmark.bench.run import run_cells
    from earmark.errors import OutputError

    plan = Plan.read(plan_path)
    try:
        (out / "models").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{out}' cannot be made: {error.strerror}.") from error
    made = run_cells(
        plan.cells(out / "models"),
        out / "rows.jsonl",
        executor=Inline() if workers == 1 else Processes(workers),
        events=Bars(quiet=quiet or as_json),
        retry=retry,
    )
    trials = rows.trials(made)
    (out / "table.md").write_text(tables.markdown(trials))
    lines = [tables.text(trials), "", f"rows   {out / 'rows.jsonl'}", f"table  {out / 'table.md'}"]
    listed: list[Json] = [trial.to_json() for trial in trials]
    return emit("bench", lines, {"trials": listed}, as_json=as_json)
