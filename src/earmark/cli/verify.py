"""`earmark verify`: measure a suspect, judge, and say so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import codec, policy, registry
from earmark.cli import options
from earmark.cli.output import EXIT, emit, line, verdict_lines
from earmark.codec import Json
from earmark.errors import UsageError
from earmark.records import Access, Evidence, Outcome
from earmark.vault import Registration, Vault

if TYPE_CHECKING:
    from earmark.hosts.access import Host
    from earmark.schemes.base import Scheme


@click.command(
    "verify",
    epilog="Example:  earmark verify suspect.safetensors --task task.py --key 3f0a",
)
@click.argument("suspect")
@options.task_option
@click.option("--key", "key_name", default="", help="Beginning of the key's id, if there are many.")
@click.option(
    "--level",
    type=click.Choice([name for name, _ in policy.LEVELS]),
    default="claim",
    show_default=True,
    help="Net bits asked for: trace 20, claim 64, contested claim 128.",
)
@click.option(
    "--suspects",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many suspects this key is tried on in all; each is charged.",
)
@click.option(
    "--dossier", type=click.Path(path_type=Path), help="Write a dossier that proves the claim."
)
@options.vault_option
@options.passphrase_option
@options.quiet_option
@options.json_option
def command(
    *,
    suspect: str,
    task_path: Path | None,
    key_name: str,
    level: str,
    suspects: int,
    dossier: Path | None,
    vault_path: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Say whether a suspect carries your mark, and with what certainty.

    SUSPECT is a safetensors file or a folder of them. Schemes that read activations need --task,
    for the model's class. Exit codes: 0 mark shown, 1 not shown, 3 inconclusive, 4 ledger or key
    was changed, 5 could not run.
    """
    vault = Vault.open(vault_path)
    registration = vault.registration(key_name)
    word = options.passphrase(passphrase_file)
    key = vault.key(registration.id, word)
    scheme = registry.scheme(key.layout.scheme)
    host = open_suspect(suspect, scheme, task_path)
    nonce = claim_nonce(host.digest(), vault.ledger.head().root.hex())
    evidence = charged(scheme.measure(host, key, nonce=nonce), registration, suspects)
    asked = policy.Policy.at(level)
    verdict = policy.judge(evidence, asked)
    lines = verdict_lines(verdict, evidence)
    lines.append(line("claim", f"key {registration.id}, ledger #{registration.receipt.index}"))
    if not quiet:
        lines.append(line("says not", verdict.limits[0 if verdict.outcome is Outcome.SHOWN else 2]))
    payload: dict[str, Json] = {
        "suspect": suspect,
        "key": registration.id,
        "evidence": evidence.to_json(),
        "verdict": verdict.to_json(),
    }
    if dossier is not None:
        from earmark.cli.report import write_claim

        write_claim(dossier, vault, registration, evidence, asked, Path(suspect).name, word)
        lines.append(line("dossier", f"{dossier}   Check it with:  earmark report {dossier}"))
    return emit(
        "verify",
        lines,
        payload,
        as_json=as_json,
        outcome=verdict.outcome.value,
        code=EXIT[verdict.outcome],
    )


def claim_nonce(suspect: str, root: str) -> str:
    """Return the value that splits the trials: fixed by the suspect and the ledger's head.

    The claimant names the suspect first; whoever keeps the ledger then fixes the root. Anyone
    computes the same value from the claim.
    """
    return codec.digest(f"earmark/nonce/1\n{suspect}\n{root}\n".encode())


def charged(evidence: Evidence, registration: Registration, suspects: int) -> Evidence:
    """Return evidence with its commitment named and the number of suspects charged."""
    tried = dataclasses.replace(evidence.tried, suspects=suspects)
    return dataclasses.replace(evidence, commitment=registration.commitment.commitment, tried=tried)


def open_suspect(suspect: str, scheme: Scheme, task_path: Path | None) -> Host:
    """Open what a suspect's argument names, with the access that the scheme needs.

    Raises:
        UsageError: The scheme needs a task file and there is none.
        FileError: There is no such file.
    """
    from earmark.hosts.files import FilesHost

    host = FilesHost(suspect)
    if scheme.needs <= {Access.WEIGHTS}:
        return host
    if task_path is None:
        raise UsageError(
            f"Scheme '{scheme.name}' runs the suspect, and '{suspect}' holds weights only.",
            hint="Pass --task, the task file with model().",
        )
    from earmark.hosts.suspects import load_suspect
    from earmark.task import load_task

    task = load_task(task_path)
    return task.host(load_suspect(task.model(), suspect))
