"""The battery behind `earmark attack --battery`: rows, a table and a page."""

from __future__ import annotations

from pathlib import Path

from earmark.cli import options
from earmark.cli.output import Bars, emit
from earmark.codec import Json
from earmark.errors import OutputError, UsageError
from earmark.records import now


def run_battery(
    release: Path,
    task_path: Path,
    name: str,
    *,
    key_name: str,
    vault_path: Path,
    passphrase_file: Path | None,
    out: Path,
    seeds: int,
    workers: int,
    fraction: float,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run a battery on a release; go on where an earlier run stopped.

    Raises:
        OutputError: The folder cannot be made.
        UsageError: The output is a file.
    """
    from earmark.bench import battery, rows, tables
    from earmark.bench.executor import Inline, Processes
    from earmark.bench.subjects import ReleaseSubject
    from earmark.report import BatteryContent, render_battery, write_page

    if out.exists() and not out.is_dir():
        raise UsageError(f"Output '{out}' is a file.", expected="A folder for rows and page.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{out}' cannot be made: {error.strerror}.") from error
    subject = ReleaseSubject(
        str(release),
        str(task_path),
        str(vault_path),
        key=key_name,
        passphrase=options.passphrase(passphrase_file),
    )
    made = battery.run_battery(
        subject,
        name,
        out / "rows.jsonl",
        seeds=range(seeds),
        data_fraction=fraction,
        executor=Inline() if workers == 1 else Processes(workers),
        events=Bars(quiet=quiet or as_json),
    )
    trials = rows.trials(made)
    page = out / "battery.html"
    content = BatteryContent(release.name, tuple(trials), created=now())
    write_page(page, render_battery(content), overwrite=True)
    found = tables.lines(trials)
    lines = [tables.text(trials), "", tables.sentence(found), f"rows  {out / 'rows.jsonl'}"]
    listed: list[Json] = [trial.to_json() for trial in trials]
    payload: dict[str, Json] = {"trials": listed, "page": str(page)}
    return emit("attack", [*lines, f"page  {page}"], payload, as_json=as_json)
