"""Write the demo's report and dossier."""

from __future__ import annotations

from pathlib import Path

from earmark.demo.journey import Journey
from earmark.errors import RunError
from earmark.policy import Policy
from earmark.records import now
from earmark.report.content import ReportContent, Subject
from earmark.report.dossier import DossierContent, write_dossier
from earmark.report.page import render, write_page
from earmark.report.proof import ledger_proof


def write_papers(journey: Journey) -> tuple[Path, Path]:
    """Write report.html and the dossier on the claimed copy.

    Returns:
        The paths of both.
    """
    if journey.claim is None:
        raise RunError("The journey ended without a claim.")
    claim, receipt = journey.claim
    registration = journey.registration
    release = registration.releases[-1]
    receipts = {
        "commitment": registration.receipt,
        "release": registration.release_receipts[-1],
        "claim": receipt,
    }
    proof = ledger_proof(journey.vault.ledger, receipts)
    journey.vault.close()
    subjects = _subjects(journey)
    main = next(i for i, subject in enumerate(subjects) if subject.kind == "stolen")
    policy = Policy()
    content = ReportContent(
        model=journey.task.name,
        owner=journey.vault.name,
        created=now(),
        policy=policy,
        subjects=tuple(subjects),
        main=main,
        commitment=registration.commitment,
        release=release,
        claim=claim,
        proof=proof,
        first_seen=claim.created,
        baseline=journey.twin,
        notes=("Everything here was made by the demo on one machine, thefts included.",),
    )
    report = journey.folder / "report.html"
    write_page(report, render(content))
    dossier = journey.folder / "dossier"
    write_dossier(
        dossier,
        DossierContent(
            opening=registration.opening,
            commitment=registration.commitment,
            release=release,
            claim=claim,
            evidence=subjects[main].evidence,
            verdict=subjects[main].verdict,
            policy=policy,
            proof=proof,
            report=content,
        ),
        signer=journey.vault.identity(journey.word),
    )
    return report, dossier


def _subjects(journey: Journey) -> list[Subject]:
    subjects = []
    for model in journey.models:
        if model.evidence is None or model.verdict is None:
            raise RunError(f"Model '{model.name}' was not measured.")
        subjects.append(
            Subject(
                model.path.name,
                model.evidence,
                model.verdict,
                kind=model.kind,
                utility=model.utility,
                done=model.done,
            )
        )
    return subjects
