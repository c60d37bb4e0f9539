"""Check a dossier offline: every digest, signature, proof and conclusion, from the files alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from earmark import __version__
from earmark.errors import DossierError, EarmarkError
from earmark.hosts.transcript import summary
from earmark.keys.secret import START
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.merkle import verify_consistency
from earmark.ledger.note import VerifierKey
from earmark.ledger.port import beacon, from_hex, verify_receipt
from earmark.policy import LEVELS, Policy, bounds, exact, judge
from earmark.protocol.binding import Binding
from earmark.records import Access, Evidence, Record, Verdict
from earmark.report import archive
from earmark.report.content import ReportContent
from earmark.report.dossier import (
    BINDING,
    FILES,
    README,
    SIGNATURE,
    SIGNED,
    TRANSCRIPT,
    DossierContent,
    content_of,
    record_path,
    require_manifest,
)
from earmark.report.page import render
from earmark.wording import counted

VERIFIED = "verified"
NOTE = "note"
MAX_TRIALS = 1 << 22
MAX_PIECES = 1 << 8
MAX_WEIGHTS = 1 << 18
_PROOF = "ledger/proof.json"
_REGISTERED = ("commitment", "release", "claim", "evidence", "verdict")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. What fails is an error, never a check.

    Args:
        name: What was looked at.
        status: "verified", or "note" for what the dossier cannot prove by itself.
        detail: One sentence.
    """

    name: str
    status: str
    detail: str

    def __str__(self) -> str:
        return f"{self.status:<9} {self.name:<12} {self.detail}"


def check_dossier(path: str | Path, vkey: str | None = None) -> list[Check]:
    """Verify everything that a dossier says, offline.

    Args:
        path: A folder, or a file that `pack` wrote.
        vkey: The ledger's public key from a source that you trust. Without it the dossier's own is
            used, and a note says so.

    Returns:
        What was verified, and notes on what cannot be.

    Raises:
        FileError: Missing or unreadable.
        DossierError: Anything does not fit; the message names the file.
    """
    return check_files(archive.read(path), vkey=vkey)


def check_files(contents: Mapping[str, bytes], *, vkey: str | None = None) -> list[Check]:
    """Verify a dossier that was read already; see :func:`check_dossier`."""
    manifest = require_manifest(contents)
    content = content_of(contents)
    _require_known(contents)
    _require_modest(content)
    return [
        _ok("files", f"All {len(manifest.files)} files are as the manifest lists them."),
        _signature(contents, content),
        _ok("records", "Every record is valid and in canonical form."),
        _commitment(content),
        _release(content),
        _ledger_key(content, vkey),
        *_receipts(content),
        _history(content),
        _order(content),
        _claim(content),
        _evidence(content),
        *_transcript(content),
        _verdict(content.evidence, content.policy, content.verdict, record_path("verdict")),
        *_report(contents, content),
        *_statements(contents, content),
    ]


def _ok(name: str, detail: str) -> Check:
    return Check(name, VERIFIED, detail)


def _fail(file: str, why: str) -> DossierError:
    return DossierError(
        f"File '{file}' of the dossier does not fit: {why.rstrip('.')}.",
        hint="Do not rely on this dossier.",
    )


def _require(condition: bool, file: str, why: str) -> None:  # noqa: FBT001 - a check reads best so
    if not condition:
        raise _fail(file, why)


def _require_known(contents: Mapping[str, bytes]) -> None:
    """Refuse files that nothing here would look at: somebody may open them and believe them."""
    for name in sorted(contents):
        if name not in FILES and not name.startswith("attachments/"):
            raise _fail(name, "no dossier has such a file; what is added goes under attachments/")


def _require_modest(content: DossierContent) -> None:
    """Refuse counts that would keep a checker busy for ever."""
    pieces = [(content.evidence, record_path("evidence"))]
    if content.report is not None:
        pieces += [(item.evidence, record_path("report")) for item in content.report.subjects]
        pieces += [
            (item.evidence, record_path("report"))
            for item in content.report.robustness
            if item.evidence is not None
        ]
    weights = sum(len(evidence.weights) for evidence, _ in pieces)
    _require(len(pieces) <= MAX_PIECES, record_path("report"), f"it has over {MAX_PIECES:,} parts")
    trials = sum(evidence.trials for evidence, _ in pieces)
    _require(trials <= MAX_TRIALS, pieces[-1][1], f"it counts over {MAX_TRIALS:,} trials in all")
    _require(weights <= MAX_WEIGHTS, record_path("report"), f"it weighs over {MAX_WEIGHTS:,} signs")
    for evidence, file in pieces:
        heavy = sum(evidence.weights) > MAX_TRIALS
        _require(not heavy, file, f"its signs weigh more than {MAX_TRIALS:,}")
        plain = evidence.chance.denominator <= MAX_TRIALS
        _require(plain, file, f"its chance is {str(evidence.chance)[:40]}, which nothing needs")


def _signature(contents: Mapping[str, bytes], content: DossierContent) -> Check:
    data = contents.get(SIGNATURE)
    if data is None:
        return Check("signature", NOTE, "Nobody signed the manifest: who put it together is open.")
    try:
        claimant = Ed25519PublicKey.from_public_bytes(bytes.fromhex(content.claim.claimant))
        signature = bytes.fromhex(data.decode("ascii"))
        _require(signature.hex().encode() == data, SIGNATURE, "it is not lower-case hexadecimal")
        claimant.verify(signature, SIGNED + contents[archive.MANIFEST])
    except (InvalidSignature, ValueError, UnicodeDecodeError) as error:
        raise _fail(SIGNATURE, "it is no signature of the claimant over the manifest") from error
    return _ok("signature", "The claimant signed the manifest.")


def _commitment(content: DossierContent) -> Check:
    opening, commitment = content.opening, content.commitment
    _require(
        opening.commitment() == commitment.commitment,
        record_path("opening"),
        "it does not open the commitment",
    )
    _require(
        opening.owner == commitment.owner,
        record_path("commitment"),
        "it names another owner than the opening",
    )
    return _ok("commitment", "The opening opens the commitment: key, layout and owner were fixed.")


def _release(content: DossierContent) -> Check:
    release, file = content.release, record_path("release")
    _require(
        release.commitment == content.commitment.commitment, file, "it names another commitment"
    )
    _require(release.owner == content.commitment.owner, file, "it names another owner")
    if release.beacon is None:
        return Check("release", NOTE, "The release names no beacon: the message was chosen freely.")
    if content.binding is not None:
        return _bound(content.binding, content)
    try:
        drawn = beacon(content.proof.receipts["commitment"])
    except KeyError as error:
        raise _fail(_PROOF, "it lacks the commitment's receipt") from error
    except EarmarkError as error:
        raise _fail(_PROOF, error.what) from error
    _require(release.beacon == drawn, file, "its beacon is not the one the ledger gave")
    return _ok("release", "The message was bound to a ledger value that came after the commitment.")


def _bound(binding: Binding, content: DossierContent) -> Check:
    """Derive the value again that a community's log gave after the commitment."""
    commitment, release = content.commitment, content.release
    try:
        entry = binding.verify(commitment.commitment, commitment.owner).entry
    except EarmarkError as error:
        raise _fail(BINDING, error.what) from error
    _require(
        release.beacon == binding.beacon,
        record_path("release"),
        "its beacon is not the community's",
    )
    community = binding.community
    return _ok(
        "release",
        f"The message was bound to a value from after entry {entry.index} of the log of "
        f"{community.rules.domain}, cosigned by a quorum of {len(community.nodes)} witnesses. "
        f"Compare the community's digest with one that you know: {community.digest()}.",
    )


def _ledger_key(content: DossierContent, vkey: str | None) -> Check:
    own = content.proof.vkey
    try:
        VerifierKey.parse(own)
    except EarmarkError as error:
        raise _fail("ledger/vkey.txt", error.what) from error
    if vkey is None:
        return Check(
            "ledger key", NOTE, "The ledger's public key is the dossier's own; compare it yourself."
        )
    _require(vkey.strip() == own, "ledger/vkey.txt", "it is not the public key that you trust")
    return _ok("ledger key", "The ledger's public key is the one that you gave.")


def _receipts(content: DossierContent) -> list[Check]:
    proof = content.proof
    for needed in ("commitment", "release"):
        _require(needed in proof.receipts, _PROOF, f"it lacks the {needed}'s receipt")
    unknown = sorted(set(proof.receipts) - set(_REGISTERED))
    _require(not unknown, _PROOF, f"it has receipts for unknown records {unknown}")
    made = []
    for name in _REGISTERED:
        receipt = proof.receipts.get(name)
        if receipt is None:
            continue
        record: Record = getattr(content, name)
        try:
            verify_receipt(record.canonical(), receipt, proof.vkey)
        except EarmarkError as error:
            raise _fail(record_path(name), f"the ledger's receipt: {error.what}") from error
        made.append(_ok("receipt", f"The ledger holds the {name} as entry {receipt.index}."))
    if "claim" not in proof.receipts:
        made.append(Check("receipt", NOTE, "The claim was not registered; its time is open."))
    return made


def _history(content: DossierContent) -> Check:
    proof, file = content.proof, "ledger/checkpoint.txt"
    try:
        head = SignedCheckpoint.open(proof.checkpoint, VerifierKey.parse(proof.vkey))
    except EarmarkError as error:
        raise _fail(file, error.what) from error
    for name, receipt in proof.receipts.items():
        signed = SignedCheckpoint.parse(receipt.checkpoint)
        path = proof.consistency.get(str(signed.size))
        _require(path is not None, _PROOF, f"it lacks the proof that the {name} is in one history")
        try:
            hashes = [from_hex(item) for item in path or ()]
            verify_consistency(signed.size, head.size, signed.root, head.root, hashes)
        except EarmarkError as error:
            raise _fail(_PROOF, f"the {name} is of another history: {error.what}") from error
    witnesses = len(head.note.signatures) - 1
    said = f"; {witnesses} more signatures on its head were not looked at" if witnesses else ""
    return _ok("history", f"All of it is one history of {head.size:,} entries{said}.")


def _order(content: DossierContent) -> Check:
    index = content.proof.index
    first, second, third = (index(name) for name in ("commitment", "release", "claim"))
    assert first is not None
    assert second is not None
    _require(first < second, _PROOF, "the release was registered before the commitment")
    _require(third is None or second < third, _PROOF, "the claim came before the release")
    return _ok("order", f"Commitment (entry {first}) came before release (entry {second}).")


def _claim(content: DossierContent) -> Check:
    claim, evidence, file = content.claim, content.evidence, record_path("claim")
    _require(claim.claimant == content.commitment.owner, file, "the claimant is not the owner")
    _require(claim.opening == content.opening, file, "it opens another commitment")
    _require(
        claim.evidence == evidence.digest(), record_path("evidence"), "the claim names another"
    )
    _require(claim.suspect == evidence.suspect, file, "it names another suspect")
    same = evidence.nonce is None or claim.nonce == evidence.nonce
    _require(same, file, "it names another nonce than the evidence")
    burnt = set(evidence.shards) <= set(claim.shards)
    _require(burnt, file, "the evidence uses shards that the claim does not reveal")
    return _ok("claim", "Claimant, key, suspect, nonce and evidence belong together.")


def _evidence(content: DossierContent) -> Check:
    evidence = content.evidence
    _count(evidence, content, record_path("evidence"))
    return _ok(
        "evidence",
        f"{evidence.hits:,} of {evidence.trials:,} answers, of the committed layout, as the "
        "claimant counted them.",
    )


def _count(evidence: Evidence, content: DossierContent, file: str) -> None:
    """Hold a count to the committed layout."""
    layout = content.opening.layout
    _require(evidence.layout == layout.digest(), file, "it is of another layout than the key's")
    _require(evidence.scheme == layout.scheme, file, "it is of another scheme than the key's")
    fixed = evidence.details.get("reference") in (None, layout.params.get(START))
    _require(fixed, file, "it was aligned to a network that the key's layout does not fix")
    within = bool(evidence.shards) and all(0 <= i < layout.shards for i in evidence.shards)
    _require(within, file, "it names no shards of the key, or some that the key does not have")
    try:
        most = bounds(layout, len(evidence.shards))
    except EarmarkError as error:
        raise _fail(record_path("opening"), error.what) from error
    _require(evidence.trials <= most.trials, file, "it counts more trials than its shards have")
    _require(evidence.signs <= most.signs, file, "it weighs more signs than its shards have")
    fair = evidence.chance == most.chance or most.chance is None
    _require(fair, file, "its chance is not that of the committed layout")
    some = len(evidence.shards) < layout.shards
    charged = evidence.tried.of_shards == layout.shards or not some
    _require(charged, file, "the choice of its shards is not charged")
    named = (None, content.commitment.commitment)
    _require(evidence.commitment in named, file, "it names another commitment")


def _transcript(content: DossierContent) -> list[Check]:
    """Hold a service's transcript to the suspect's digest, which is made of its answers."""
    evidence, data = content.evidence, content.attachments.get(TRANSCRIPT)
    if data is None or evidence.access is not Access.LABELS:
        return []
    file = f"attachments/{TRANSCRIPT}"
    try:
        source, digest, answers = summary(data)
    except EarmarkError as error:
        raise _fail(file, error.what) from error
    _require(digest == evidence.suspect, file, "its answers are not those of the suspect")
    told = f"The suspect's digest is that of these {answers:,} answers of "
    told += f"{source.partition(' ')[0][:200]!r}; that they were given is the claimant's word."
    return [_ok("transcript", told)]


def _verdict(evidence: Evidence, policy: Policy, verdict: Verdict, file: str) -> Check:
    again = judge(evidence, policy)
    _require(_same(again, verdict), file, "the policy concludes otherwise from the evidence")
    return _ok(
        "verdict", f"Judged again: {verdict.outcome.value}, {verdict.bits:,.1f} bits of evidence."
    )


def _same(one: Verdict, other: Verdict) -> bool:
    """Compare verdicts; real numbers may differ in their last printed digit between machines."""
    exact = ("outcome", "threshold", "level", "policy", "evidence", "limits", "power_rate")
    if any(getattr(one, name) != getattr(other, name) for name in exact):
        return False
    near = ("bits", "bits_gross", "log10_p", "power")
    return all(
        math.isclose(getattr(one, name), getattr(other, name), rel_tol=1e-9, abs_tol=2e-3)
        for name in near
    )


def _report(contents: Mapping[str, bytes], content: DossierContent) -> list[Check]:
    report, page = content.report, contents.get("report.html")
    if report is None or page is None:
        _require(report is None and page is None, "report.html", "page and its source go together")
        return [Check("report", NOTE, "There is no page for people to read.")]
    _report_facts(report, content)
    if report.version != __version__:
        told = (
            f"Do not open report.html: version {report.version} wrote it, this is {__version__}; "
            "it was not compared. Write the page again:  earmark report DOSSIER -o report.html"
        )
        return [Check("report", NOTE, told)]
    try:
        drawn = render(report).encode()
    except (ArithmeticError, ValueError) as error:
        raise _fail(record_path("report"), f"it cannot be drawn: {error}") from error
    _require(drawn == page, "report.html", "it is not what its source gives")
    return [_ok("report", "The page says what the records say.")]


def _report_facts(report: ReportContent, content: DossierContent) -> None:
    file = record_path("report")
    _require(report.robustness == content.trials, file, "it shows other trials")
    for name in ("commitment", "release", "claim", "policy", "proof"):
        same = getattr(report, name) == getattr(content, name)
        _require(same, file, f"it shows another {name}")
    main = report.subject
    _require(main.evidence == content.evidence, file, "it speaks of other evidence")
    for subject in report.subjects:
        _count(subject.evidence, content, file)
        _verdict(subject.evidence, report.policy, subject.verdict, file)
    _require(main.verdict == content.verdict, file, "it shows another verdict")


def _statements(contents: Mapping[str, bytes], content: DossierContent) -> list[Check]:
    made = [
        Check(
            "count",
            NOTE,
            "The counts are the claimant's own; nobody counted again. Ask for the revealed shards "
            "and the suspect, and measure it yourself.",
        )
    ]
    split = "Nothing fixes how the trials were split."
    if content.evidence.nonce is not None:
        split = (
            "How the trials were split follows, as the claimant says, from a value of his own "
            "ledger; it was not computed again. Who counts again can split by a value of his own."
        )
    made.append(Check("nonce", NOTE, split))
    if content.binding is None and content.release.beacon is not None:
        alone = (
            "Whoever keeps a ledger alone can try many values before one is shown, and this may be "
            "the claimant's own. A key bound to a community's log leaves no such choice."
        )
        made.append(Check("binding", NOTE, alone))
    if not exact(content.evidence.scheme):
        law = "The scheme drops answers after they are drawn, or is a third party's: its chance is "
        made.append(Check("chance", NOTE, law + "the claimant's word."))
    tried = content.evidence.tried
    told = (
        f"{counted(tried.keys, 'key')} and {counted(tried.suspects, 'suspect')}, as the claimant "
        "says, are charged."
    )
    made.append(Check("tried", NOTE, told))
    if contents.get("README.txt") != README.encode():
        made.append(Check("readme", NOTE, "README.txt is not the text that this version writes."))
    if content.policy.digest() not in {Policy.at(name).digest() for name, _ in LEVELS}:
        made.append(
            Check("policy", NOTE, "The verdict is by a policy of the claimant's own making.")
        )
    if content.trials or (content.report is not None and content.report.robustness):
        made.append(
            Check("trials", NOTE, "Robustness was measured by the owner; nothing proves it.")
        )
    known = {TRANSCRIPT} if content.evidence.access is Access.LABELS else set[str]()
    others = len(set(content.attachments) - known)
    if others:
        made.append(
            Check("attachments", NOTE, f"Not looked into: {counted(others, 'attachment')}.")
        )
    suspect = "To count again, measure the suspect itself; its digest is in the claim."
    return [*made, Check("suspect", NOTE, suspect)]
