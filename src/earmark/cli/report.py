"""`earmark report`: check a dossier and write its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from earmark.cli.options import json_option
from earmark.cli.output import emit, line
from earmark.codec import Json
from earmark.errors import EarmarkError, FormatError, UsageError
from earmark.policy import Policy, judge
from earmark.records import Evidence, now
from earmark.vault import Registration, Vault


@click.command("report", epilog="Example:  earmark report dossier/ -o report.html")
@click.argument("dossier", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report here.")
@click.option("--vkey", help="The ledger's public key, if you have it from elsewhere.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def command(
    *, dossier: Path, output: Path | None, vkey: str | None, force: bool, as_json: bool
) -> int:
    """Check a dossier offline, and write its report if you ask for it.

    DOSSIER is a folder or a packed file. Every digest, record, signature and proof is checked, and
    the verdict is judged again from the evidence. Exit code 4 if anything was changed.
    """
    from earmark.report import archive
    from earmark.report.checks import check_files
    from earmark.report.dossier import content_of
    from earmark.report.page import render, write_page

    if vkey is not None:
        require_vkey(vkey)
    contents = archive.read(dossier)
    if "claim.txt" in contents and "records/claim.json" not in contents:
        raise FormatError(
            f"'{dossier}' is a dossier of what a community decided.",
            hint=f"Check it with:  earmark claim check {dossier}",
        )
    checks, content = check_files(contents, vkey=vkey), content_of(contents)
    lines = [line(check.status, f"{check.name}  {check.detail}".rstrip()) for check in checks]
    listed: list[Json] = [
        {"name": item.name, "status": item.status, "detail": item.detail} for item in checks
    ]
    if output is not None:
        if content.report is None:
            raise UsageError(f"Dossier '{dossier}' holds no report to write.")
        write_page(output, render(content.report), overwrite=force)
        lines.append(f"{output} written.")
    verdict = content.verdict
    lines.append(
        f"THE DOSSIER HOLDS: mark {verdict.outcome.value}, {verdict.bits:,.1f} bits, "
        "as far as the notes allow."
    )
    return emit("report", lines, {"checks": listed}, as_json=as_json)


def require_vkey(text: str) -> None:
    """Refuse what is no public key of a ledger.

    Raises:
        UsageError: It is none.
    """
    from earmark.ledger.note import VerifierKey

    try:
        VerifierKey.parse(text.strip())
    except EarmarkError as error:
        raise UsageError(
            f"--vkey '{text}' is no ledger's public key.", expected=error.expected
        ) from error


def write_claim(
    folder: Path,
    vault: Vault,
    registration: Registration,
    evidence: Evidence,
    policy: Policy,
    suspect: str,
    word: str,
    attachments: Mapping[str, bytes] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Record a claim in the ledger and write the dossier that proves it."""
    from earmark.report.content import ReportContent, Subject
    from earmark.report.dossier import DossierContent, write_dossier
    from earmark.report.proof import ledger_proof

    if not registration.releases:
        raise UsageError(
            f"Nothing was released under key {registration.id} yet.",
            hint="Record the release first:  earmark register FILE",
        )
    verdict = judge(evidence, policy)
    claim, receipt = vault.claim(registration, evidence)
    release = registration.releases[-1]
    receipts = {
        "commitment": registration.receipt,
        "release": registration.release_receipts[-1],
        "claim": receipt,
    }
    proof = ledger_proof(vault.ledger, receipts)
    content = ReportContent(
        model=registration.note or registration.id,
        owner=vault.name,
        created=now(),
        policy=policy,
        subjects=(Subject(suspect, evidence, verdict),),
        commitment=registration.commitment,
        release=release,
        claim=claim,
        proof=proof,
    )
    write_dossier(
        folder,
        DossierContent(
            opening=registration.opening,
            commitment=registration.commitment,
            release=release,
            claim=claim,
            evidence=evidence,
            verdict=verdict,
            policy=policy,
            proof=proof,
            report=content,
            binding=vault.binding(registration),
            attachments=attachments or {},
        ),
        signer=vault.identity(word),
        overwrite=overwrite,
    )
