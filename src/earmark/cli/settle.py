"""`earmark settle`: train a network without a mark, to conceal one in later."""

from __future__ import annotations

from pathlib import Path

import click

from earmark.cli import options
from earmark.cli.output import Bars, emit, line
from earmark.codec import Json
from earmark.errors import UsageError


@click.command("settle", epilog="Example:  earmark settle task.py -o settled.safetensors")
@click.argument("task_path", metavar="TASK", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The network.")
@options.settings_option
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the task's own.")
@options.training_options
@click.option("--force", is_flag=True, help="Overwrite the output.")
@options.quiet_option
@options.json_option
def command(
    *,
    task_path: Path,
    output: Path,
    settings: tuple[str, ...],
    epochs: int | None,
    seed: int | None,
    checkpoint: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train a classifier without a mark, its samples settled, to conceal a mark in.

    TASK is a task file as for `earmark protect`. The features of samples of one answer are squeezed
    together in training, which leaves a thief nothing to squeeze later. No key is needed and none
    is made; next comes `earmark protect --from OUTPUT --conceal 0.3 --settled`. Keep the network
    to yourself: who has it sees what the mark changed. Settings are those of scheme mtlsign:
    settle, the weight, and taps.
    """
    import secrets

    from earmark import files, registry
    from earmark.hosts.files import save_release
    from earmark.schemes.conceal import LOOSE, SETTLED, require_hiding
    from earmark.schemes.embedding import fresh_model
    from earmark.schemes.settling import spread_within, train_settled
    from earmark.task import load_task
    from earmark.training import Recipe, rehearse

    options.require_safetensors(output)
    options.require_free(output, force=force)
    if checkpoint is not None:
        files.require_writable(checkpoint)
    task = load_task(task_path)
    given = options.parse_settings(settings)
    scheme = require_hiding(registry.scheme("mtlsign", **{**SETTLED, **given}))
    if not scheme.settle:
        raise UsageError("Settling at weight 0.", hint="Leave out --set settle=0.")
    recipe = Recipe.of(task.recipe, **({} if epochs is None else {"epochs": epochs}))
    fresh = fresh_model(task, 0)
    layers = scheme.settled_at(task.host(fresh))
    rehearse(task, fresh, recipe=recipe)
    spread_within(task, fresh, layers)
    drawn = secrets.randbelow(1 << 31) if seed is None else seed
    bars = Bars(quiet=quiet or as_json)
    bars.note(f"seed {drawn}; go on after an interruption with --checkpoint and --seed {drawn}")
    trained = train_settled(
        task,
        layers,
        seed=drawn,
        weight=scheme.settle,
        recipe=recipe,
        checkpoint=checkpoint,
        events=bars,
    )
    save_release(trained.model, output, overwrite=True)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    apart, utility = spread_within(task, trained.model, layers), task.evaluate(trained.model)
    lines = [
        line("utility", f"{utility:.2f}"),
        line("settled", f"{apart:.0%} of the features' variance is within answers"),
        line("seed", str(drawn)),
    ]
    if apart > LOOSE:
        more = "Train longer, or raise settle."
        lines += [line("warning", f"not settled: at most {LOOSE:.0%} is needed. {more}")]
    again = "".join(f" --set {item}" for item in settings)
    lines += [
        f"{output} written.   Next: earmark protect {task_path} --from {output} --conceal 0.3 "
        f"--settled{again} -o release.safetensors"
    ]
    payload: dict[str, Json] = {"utility": utility, "apart": apart, "seed": drawn}
    payload["network"] = str(output)
    return emit("settle", lines, payload, as_json=as_json)
