"""`earmark attack`: attack a marked model, once or with a battery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import policy, registry
from earmark.cli import options
from earmark.cli.output import Bars, emit, line
from earmark.codec import Json
from earmark.errors import UsageError
from earmark.vault import Vault

if TYPE_CHECKING:
    from earmark.records import Evidence
    from earmark.task import Task


@click.command(
    "attack",
    epilog="Example:  earmark attack release.safetensors --task task.py --attack prune -o out",
)
@click.argument("release", type=click.Path(path_type=Path))
@options.required_task_option
@click.option("--attack", "attack_name", help="One attack; see earmark attacks.")
@click.option(
    "--battery",
    type=click.Choice(["quick", "standard", "full"]),
    help="Many attacks; rows and a page are written to --out.",
)
@options.settings_option
@click.option("--data", "fraction", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Share of the training data that the attacker holds.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--key", "key_name", default="", help="Beginning of the key's id.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True,
              help="The attacked model, or the battery's folder.")  # fmt: skip
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
    settings: tuple[str, ...],
    fraction: float,
    seed: int,
    seeds: int,
    key_name: str,
    out: Path,
    workers: int,
    vault_path: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Attack a marked model and measure what is left of the mark.

    With --attack, writes the attacked model. With --battery, writes rows (JSON lines) and a page to
    a folder, and goes on where it was interrupted.
    """
    if (attack_name is None) == (battery is None):
        raise UsageError("Say what to run.", expected="Either --attack NAME or --battery NAME.")
    if battery is not None:
        from earmark.cli.battery import run_battery

        return run_battery(
            release, task_path, battery,
            key_name=key_name, vault_path=vault_path, passphrase_file=passphrase_file, out=out,
            seeds=seeds, workers=workers, fraction=fraction, quiet=quiet, as_json=as_json,
        )  # fmt: skip
    return _once(
        release, task_path, str(attack_name),
        settings=settings, fraction=fraction, seed=seed, key_name=key_name, out=out,
        vault_path=vault_path, passphrase_file=passphrase_file, quiet=quiet, as_json=as_json,
    )  # fmt: skip


def _once(
    release: Path,
    task_path: Path,
    name: str,
    *,
    settings: tuple[str, ...],
    fraction: float,
    seed: int,
    key_name: str,
    out: Path,
    vault_path: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    from earmark.attacks.base import Budget, Knowledge
    from earmark.hosts.files import save_release
    from earmark.hosts.suspects import load_suspect
    from earmark.task import load_task

    attack = registry.attack(name, **options.parse_settings(settings))
    task = load_task(task_path)
    model = load_suspect(task.model(), release)
    vault = Vault.open(vault_path)
    key = vault.key(key_name, options.passphrase(passphrase_file))
    scheme = registry.scheme(key.layout.scheme)
    bars = Bars(quiet=quiet or as_json)
    bars.note(f"attack with {name} ...")
    budget = Budget(task, data_fraction=fraction, knowledge=Knowledge.CARRIER)
    attacked = attack.run(model, budget, seed=seed)
    evidence = scheme.measure(task.host(attacked), key)
    before, after = task.evaluate(model), task.evaluate(attacked)
    save_release(attacked, out)
    return _say(name, task, evidence, before=before, after=after, out=out, as_json=as_json)


def _say(
    name: str, task: Task, evidence: Evidence, *, before: float, after: float, out: Path,
    as_json: bool,
) -> int:  # fmt: skip
    verdict = policy.judge(evidence)
    lines = [
        line("attack", name),
        line("utility", f"{after:.2f}  ({after - before:+.2f})  on {task.name}"),
        line("mark", f"{verdict.outcome.value}: {verdict.reason}"),
        f"{out} written.",
    ]
    payload: dict[str, Json] = {
        "attack": name,
        "utility_before": before,
        "utility": after,
        "evidence": evidence.to_json(),
        "verdict": verdict.to_json(),
    }
    return emit("attack", lines, payload, as_json=as_json)
