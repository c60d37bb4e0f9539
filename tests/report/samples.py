"""Invented content for the tests of the report: names and numbers are samples, not results."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark.keys.secret import Key
from earmark.ledger.log import SqliteLedger
from earmark.ledger.port import beacon
from earmark.policy import Policy, judge
from earmark.records import (
    Claim,
    Commitment,
    Evidence,
    Layout,
    Opening,
    Receipt,
    Release,
    Trial,
    Tried,
)
from earmark.report import (
    BatteryContent,
    DossierContent,
    LedgerProof,
    ReportContent,
    Subject,
    ledger_proof,
)

COMMITTED = "2027-02-11T09:30:00Z"
RELEASED = "2027-02-11T09:52:00Z"
SEEN = "2027-07-04T08:00:00Z"
CLAIMED = "2027-07-09T16:20:00Z"
LAYOUT = Layout("mtlsign", 1, ("fc",), 2048, 8, {"sample": True})
IDENTITY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OWNER = IDENTITY.public_key().public_bytes_raw().hex()
POLICY = Policy()


def evidence(hits: int, trials: int = 1024, **extra) -> Evidence:
    known = {
        "layout": LAYOUT.digest(),
        "suspect": f"{hits:064x}",
        "nonce": "5e" * 32,
        "tried": Tried(keys=1, suspects=4, forms=2),
        "shards": tuple(range(LAYOUT.shards)),
    }
    return Evidence.of("mtlsign", hits=hits, trials=trials, **(known | extra))


def subject(
    name: str, hits: int, trials: int = 1024, *, kind: str, utility: float | None, done="", **extra
) -> Subject:
    found = evidence(hits, trials, **extra)
    return Subject(name, found, judge(found, POLICY), kind, utility, 10_000, done)


def subjects() -> tuple[Subject, ...]:
    return (
        subject("leak.safetensors", 963, kind="suspect", utility=90.7, done="found on a model hub"),
        subject("release", 1024, kind="release", utility=91.46),
        subject(
            "fine-tuned",
            938,
            kind="stolen",
            utility=91.08,
            done="5 epochs, rate 0.05, half of the data",
        ),
        subject(
            "pruned 65 %", 1021, kind="stolen", utility=90.93, done="smallest weights of each layer"
        ),
        subject("int8", 1024, kind="stolen", utility=91.41, done="weights rounded to 8 bits"),
        subject(
            "permuted",
            1022,
            kind="stolen",
            utility=91.46,
            done="neurons permuted, rescaled, dummies added",
        ),
        subject("overwritten", 805, kind="stolen", utility=91.13, done="another key, 5 epochs"),
        subject("innocent twin", 502, kind="innocent", utility=91.76),
        subject("innocent, other seed", 521, kind="innocent", utility=91.52),
        subject("innocent, other net", 516, kind="innocent", utility=89.94),
    )


class Case:
    """A complete claim with an embedded ledger behind it."""

    def __init__(self, folder: Path) -> None:
        key = Key.generate(LAYOUT, secret=bytes(32))
        self.opening: Opening = key.opening(OWNER)
        self.commitment: Commitment = key.commit(OWNER, created=COMMITTED)
        self.subjects = subjects()
        self.main = self.subjects[0]
        with SqliteLedger.create(folder / "ledger.sqlite", "example.com/acme") as ledger:
            ledger.append(b'{"older":1}')
            first = ledger.append(self.commitment.canonical())
            self.release = Release(
                OWNER,
                self.commitment.commitment,
                {"release.safetensors": "ab" * 32},
                beacon(first),
                RELEASED,
            )
            second = ledger.append(self.release.canonical())
            found = replace(
                self.main.evidence,
                commitment=self.commitment.commitment,
                shards=(0, 1, 3, 6),
                tried=replace(self.main.evidence.tried, of_shards=LAYOUT.shards),
            )
            self.evidence = found
            self.verdict = judge(found, POLICY)
            self.claim = Claim(
                OWNER,
                self.opening,
                found.suspect,
                found.nonce,
                found.shards,
                found.digest(),
                CLAIMED,
            )
            third = ledger.append(self.claim.canonical())
            ledger.append(b'{"later":1}')
            self.receipts: dict[str, Receipt] = {
                "commitment": first,
                "release": second,
                "claim": third,
            }
            self.proof: LedgerProof = ledger_proof(ledger, self.receipts)
        self.subjects = (
            replace(self.main, evidence=self.evidence, verdict=self.verdict),
            *self.subjects[1:],
        )

    def report(self, **changes) -> ReportContent:
        known = ReportContent(
            model="Fashion classifier 3",
            owner="Acme Research",
            created="2027-07-10T10:00:00Z",
            policy=POLICY,
            subjects=self.subjects,
            main=0,
            commitment=self.commitment,
            release=self.release,
            claim=self.claim,
            proof=self.proof,
            first_seen=SEEN,
            robustness=trials(),
            baseline=91.76,
            notes=("The suspect was obtained from a public model hub.",),
            sample=True,
        )
        return replace(known, **changes)

    def dossier(self, **changes) -> DossierContent:
        known = DossierContent(
            opening=self.opening,
            commitment=self.commitment,
            release=self.release,
            claim=self.claim,
            evidence=self.evidence,
            verdict=self.verdict,
            policy=POLICY,
            proof=self.proof,
            trials=trials()[:3],
            report=self.report(robustness=trials()[:3]),
        )
        return replace(known, **changes)


ATTACKS = (
    ("none", 0.0, 0.0, 1024),
    ("finetune(epochs=5, rate=0.05)", 0.4, 0.2, 940),
    ("prune(share=0.65)", 0.5, 0.1, 1020),
    ("quantize(bits=8)", 0.05, 0.02, 1024),
    ("permute(dummies=16)", 0.0, 0.0, 1022),
    ("overwrite(epochs=5)", 0.3, 0.1, 806),
    ("collapse(weight=3, epochs=4)", 0.7, 0.2, 705),
    ("scramble(weight=0.1)", 2.7, 0.4, 700),
    ("distill(data=0.1)", 6.8, 0.9, 514),
)


@cache
def _judged(hits: int):
    found = evidence(hits)
    return found, judge(found, POLICY).bits


@cache
def trials(attacks=ATTACKS, seeds: int = 5) -> tuple[Trial, ...]:
    made = []
    known = {"versions": {"earmark": "0.1.0", "torch": "2.13"}, "machine": "2 cores, x86_64"}
    for attack, lost, wobble, hits in attacks:
        for seed in range(seeds):
            found, bits = _judged(min(1024, hits + (seed * 7) % 11 - 5))
            before = 91.4 + 0.03 * seed
            made.append(
                Trial(
                    "mtlsign(bits=2048)",
                    "cnn-small",
                    "fashion-mnist",
                    attack,
                    seed,
                    utility_before=before,
                    utility=before - lost - wobble * (seed - 2) / 2,
                    evidence=found,
                    bits=bits,
                    seconds=41.5,
                    cost=0.7,
                    error=None,
                    **known,
                )
            )
    failed = Trial(
        "mtlsign(bits=2048)",
        "cnn-small",
        "fashion-mnist",
        "distill(data=0.1)",
        5,
        utility_before=91.4,
        utility=None,
        evidence=None,
        bits=None,
        seconds=3.0,
        cost=None,
        error="HostError: the student's loss became infinite in epoch 3.",
        **known,
    )
    return (*made, failed)


def battery(**changes) -> BatteryContent:
    known = BatteryContent("Fashion classifier 3", trials(), "2027-02-12T10:00:00Z", sample=True)
    return replace(known, **changes)
