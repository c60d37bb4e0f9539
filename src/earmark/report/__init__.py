"""What is handed over: a page that people read, and a dossier that machines check offline.

The page (one HTML file without scripts or anything remote)::

    subject = Subject(
        "leak.safetensors", evidence, verdict, kind="suspect", utility=91.1, tested=10_000
    )
    content = ReportContent(
        model="classifier 3",
        owner="Acme Research",
        created=now(),
        policy=policy,
        subjects=(subject, *others),
        main=0,  # the verdict sentence speaks of subjects[main]
        commitment=...,
        release=...,
        claim=...,
        proof=ledger_proof(ledger, receipts),
        first_seen="2027-07-04T08:00:00Z",
        robustness=trials,
    )
    write_page("report.html", render(content))

    write_page(
        "battery.html", render_battery(BatteryContent("classifier 3", trials, created=now()))
    )

The dossier (a folder, or the same folder packed as one file)::

    receipts = {"commitment": r1, "release": r2, "claim": r3}  # as the ledger returned them
    proof = ledger_proof(ledger, receipts)  # adds public key, head, consistency proofs
    write_dossier(
        "dossier",
        DossierContent(
            opening=...,
            commitment=...,
            release=...,
            claim=...,
            evidence=...,
            verdict=...,
            policy=...,
            proof=proof,
            trials=trials,
            report=content,
        ),
    )
    for check in check_dossier(
        "dossier", vkey=trusted
    ):  # raises DossierError (E303) if anything is off
        print(check.status, check.name, check.detail)
    pack("dossier", "dossier.zip")
    unpack("dossier.zip", "again")
    check_dossier("dossier.zip")

Nothing here imports torch or NumPy. Everything that comes from outside (names, notes, settings) is
escaped; nothing here decides anything: verdicts come from :func:`earmark.policy.judge`.
"""

from __future__ import annotations

from earmark.report.archive import pack, unpack
from earmark.report.battery import render_battery
from earmark.report.checks import Check, check_dossier
from earmark.report.content import BatteryContent, Event, ReportContent, Subject
from earmark.report.dossier import DossierContent, read_dossier, write_dossier
from earmark.report.page import render, write_page
from earmark.report.proof import LedgerProof, ledger_proof

__all__ = [
    "BatteryContent",
    "Check",
    "DossierContent",
    "Event",
    "LedgerProof",
    "ReportContent",
    "Subject",
    "check_dossier",
    "ledger_proof",
    "pack",
    "read_dossier",
    "render",
    "render_battery",
    "unpack",
    "write_dossier",
    "write_page",
]
