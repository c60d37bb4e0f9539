"""`earmark demo`: the whole journey, and what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark.cli import options
from earmark.cli.output import Bars, emit, table
from earmark.codec import Json

if TYPE_CHECKING:
    from earmark.demo.journey import Journey


@click.command("demo", epilog="Example:  earmark demo --out demo")
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything that the demo writes.",
)
@click.option(
    "--data",
    type=click.Choice(["fashion-mnist", "digits"]),
    help="Data set; by default Fashion-MNIST, or the small digits where that is missing.",
)
@click.option("--force", is_flag=True, help="Replace an earlier demo.")
@click.option("--show-task", is_flag=True, help="Print the demo's task file and leave.")
@options.quiet_option
@options.json_option
def command(
    *, folder: Path, data: str | None, force: bool, show_task: bool, quiet: bool, as_json: bool
) -> int:
    """Run the whole journey on real data, in a few minutes.

    Trains a small network with a mark, registers it, steals it in six ways, trains three innocent
    models, verifies all of them, and writes a dossier and a report.
    """
    if show_task:
        from earmark.demo import task

        click.echo(Path(task.__file__).read_text(), nl=False)
        return 0
    from earmark.demo.journey import run
    from earmark.demo.papers import write_papers

    bars = Bars(quiet=quiet or as_json)
    bars.note("Models are trained on this machine; nothing is downloaded.")
    journey = run(folder, bars, force=force, data=data)
    report, dossier = write_papers(journey)
    lines = _lines(journey, report, dossier)
    payload: dict[str, Json] = {
        "task": journey.task.name,
        "twin": journey.twin,
        "report": str(report),
        "dossier": str(dossier),
        "models": [
            {
                "name": model.name,
                "kind": model.kind,
                "utility": model.utility,
                "evidence": model.evidence.to_json() if model.evidence is not None else None,
                "verdict": model.verdict.to_json() if model.verdict is not None else None,
            }
            for model in journey.models
        ],
    }
    return emit("demo", lines, payload, as_json=as_json)


def _lines(journey: Journey, report: Path, dossier: Path) -> list[str]:
    rows = [
        [
            model.name,
            model.done,
            f"{model.utility:.2f}",
            f"{model.evidence.hits}/{model.evidence.trials}" if model.evidence is not None else "",
            f"{model.verdict.bits:.1f}" if model.verdict is not None else "",
            model.verdict.outcome.value if model.verdict is not None else "",
        ]
        for model in journey.models
    ]
    head = ["model", "what it is", "accuracy", "hits", "bits", "mark"]
    release = next(model for model in journey.models if model.kind == "release")
    folder = journey.folder
    return [
        f"{journey.task.name}:  unmarked twin {journey.twin:.2f} %, "
        f"marked {release.utility:.2f} % ({release.utility - journey.twin:+.2f})",
        "",
        *table(rows, head=head),
        "",
        "bits: evidence net of every suspect that was tried; 64 are asked for.",
        f"report   {report}",
        f"dossier  {dossier}      check it:  earmark report {dossier}",
        "",
        "Your own model: write a task file like the demo's, then protect and verify.",
        "  earmark demo --show-task > task.py",
        "  earmark protect task.py -o release.safetensors --owner 'Your name'",
        "  earmark verify suspect.safetensors --task task.py",
        f"Try it on the demo:  earmark verify {folder}/models/disguised.safetensors "
        f"--task {folder}/task.py --vault {folder}/vault "
        f"--passphrase-file {folder}/passphrase.txt",
    ]
