"""The dossier: a folder that proves one claim offline.

::

    manifest.json           SHA-256 of every other file, and a seal over itself
    manifest.sig            the claimant's signature over the manifest (optional)
    README.txt              how to check it
    report.html             the page that people read
    records/*.json          opening, commitment, release, claim, evidence, verdict, policy, trials
    records/report.json     what the page was made from
    ledger/proof.json       public key, head, receipts, consistency proofs
    ledger/binding.json     the community's log that the key is bound to, if it is (optional)
    ledger/vkey.txt         the ledger's public key again, and
    ledger/checkpoint.txt   its signed head, as other tools read them
    attachments/*           whatever the claimant adds

The manifest only finds accidents and careless edits: whoever changes a file can write a new
manifest. What a forger cannot do is make the records agree again, with each other and with the
ledger's signature; that is what :func:`earmark.report.checks.check_dossier` looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec
from earmark.errors import DossierError, EarmarkError
from earmark.policy import Policy
from earmark.protocol.binding import Binding
from earmark.records import (
    Claim,
    Commitment,
    Evidence,
    Opening,
    Record,
    Release,
    Trial,
    Verdict,
)
from earmark.report import archive
from earmark.report.content import ReportContent
from earmark.report.page import render
from earmark.report.proof import LedgerProof

if TYPE_CHECKING:
    from earmark.report.checks import Check

R = TypeVar("R", bound=Record)

SIGNATURE = "manifest.sig"
MAX_RECORD = 1 << 22
BINDING = "ledger/binding.json"
TRANSCRIPT = "transcript.jsonl"
"""The attachment with what a service was asked and answered."""
SIGNED = b"earmark/manifest/1\n"
"""What the signature covers begins with this, so that it cannot pass for another message."""

RECORDS: dict[str, type[Record]] = {
    "opening": Opening,
    "commitment": Commitment,
    "release": Release,
    "claim": Claim,
    "evidence": Evidence,
    "verdict": Verdict,
    "policy": Policy,
}
"""The records that every dossier has, by name."""

FILES = frozenset(
    {
        "README.txt",
        archive.MANIFEST,
        SIGNATURE,
        BINDING,
        "report.html",
        *(f"ledger/{name}" for name in ("proof.json", "vkey.txt", "checkpoint.txt")),
        *(f"records/{name}.json" for name in (*RECORDS, "trials", "report")),
    }
)
"""Every file that a dossier may have, beside attachments."""

README = """This folder proves one claim about a neural network. Checking it needs no network and no
PyTorch, only earmark (pip install earmark):

    earmark report .

It lists what was verified, or names the file that does not fit. Get the ledger's public key
from a source of your own and pass it with --vkey; the one in ledger/vkey.txt comes
from whoever gave you this folder. Open report.html to read what the claim says.
"""


@dataclass(frozen=True, slots=True)
class DossierContent:
    """What a dossier holds.

    Args:
        opening: Opens the commitment.
        commitment: As registered.
        release: As registered after the commitment.
        claim: The claim.
        evidence: What was counted on the suspect; the claim names its digest.
        verdict: What the policy concluded from this one piece of evidence.
        policy: The policy.
        proof: The ledger's part; receipts at least for "commitment" and "release".
        trials: What the owner measured beforehand.
        report: What the page shows, or null for a dossier without a page.
        binding: Proof that the key is bound to a community's log, or null if it is not.
        attachments: File name to content, for whatever else the claimant adds.
    """

    opening: Opening
    commitment: Commitment
    release: Release
    claim: Claim
    evidence: Evidence
    verdict: Verdict
    policy: Policy
    proof: LedgerProof
    trials: tuple[Trial, ...] = ()
    report: ReportContent | None = None
    binding: Binding | None = None
    attachments: Mapping[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """Return every file but the manifest: path inside the dossier to content."""
        made = {"README.txt": README.encode()}
        for name in RECORDS:
            record: Record = getattr(self, name)
            made[record_path(name)] = record.canonical()
        made[record_path("trials")] = codec.canonical([item.to_json() for item in self.trials])
        made["ledger/proof.json"] = self.proof.canonical()
        made["ledger/vkey.txt"] = (self.proof.vkey + "\n").encode()
        made["ledger/checkpoint.txt"] = self.proof.checkpoint.encode()
        if self.binding is not None:
            made[BINDING] = self.binding.canonical()
        if self.report is not None:
            made[record_path("report")] = self.report.canonical()
            made["report.html"] = render(self.report).encode()
        for name, data in self.attachments.items():
            made[f"attachments/{name}"] = data
        return made


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the manifest.

    Args:
        sha256: Digest of its bytes.
        size: Number of its bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest(Record):
    """The list of a dossier's files.

    Args:
        files: Path to digest and size.
        seal: SHA-256 over this record with an empty seal.
    """

    SCHEMA: ClassVar[str] = "earmark/manifest/1"
    files: Mapping[str, Entry]
    seal: str

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> Manifest:
        """Make the manifest of some files."""
        entries = {
            name: Entry(codec.digest(data), len(data)) for name, data in sorted(contents.items())
        }
        return cls(entries, cls(entries, "").digest())


def record_path(name: str) -> str:
    """Return where a record lies inside a dossier."""
    return f"records/{name}.json"


def write_dossier(
    folder: str | Path,
    content: DossierContent,
    *,
    signer: Ed25519PrivateKey | None = None,
    overwrite: bool = False,
) -> list[Check]:
    """Check a dossier and write it, whole or not at all.

    Args:
        folder: The folder to make.
        content: What it holds.
        signer: The claimant's private key, to sign the manifest with.
        overwrite: Replace a dossier that lies there; anything else is never replaced.

    Returns:
        What was verified before writing; see `check_dossier`.

    Raises:
        DossierError: The records do not agree; nothing was written.
        UsageError: Something is there already.
        OutputError: The folder cannot be written.
    """
    from earmark.report.checks import check_files

    contents = sealed(content, signer=signer)
    checks = check_files(contents, vkey=content.proof.vkey)
    archive.write(folder, contents, overwrite=overwrite)
    return checks


def sealed(content: DossierContent, *, signer: Ed25519PrivateKey | None = None) -> dict[str, bytes]:
    """Return every file of a dossier, manifest and signature included."""
    contents = content.files()
    manifest = Manifest.of(contents).canonical()
    contents[archive.MANIFEST] = manifest
    if signer is not None:
        contents[SIGNATURE] = signer.sign(SIGNED + manifest).hex().encode()
    return contents


def read_dossier(path: str | Path) -> DossierContent:
    """Read a dossier, folder or packed, and check its files against the manifest, nothing more.

    Args:
        path: A folder, or a file that `pack` wrote.

    Raises:
        FileError: Missing or unreadable.
        DossierError: A file was changed, added, removed, or is no valid record.
    """
    contents = archive.read(path)
    require_manifest(contents)
    return content_of(contents)


def require_manifest(contents: Mapping[str, bytes]) -> Manifest:
    """Check every file against the manifest and return it.

    Raises:
        DossierError: A file was changed, added or removed; the message names it.
    """
    if archive.MANIFEST not in contents:
        raise DossierError(
            f"There is no '{archive.MANIFEST}'.", hint="Is this a dossier? Ask for it again."
        )
    manifest = _read(Manifest, contents, archive.MANIFEST)
    if Manifest(manifest.files, "").digest() != manifest.seal:
        raise _changed(archive.MANIFEST, "its seal does not fit its content")
    for name, entry in manifest.files.items():
        if name not in contents:
            raise _changed(name, "it is missing")
        data = contents[name]
        if len(data) != entry.size or codec.digest(data) != entry.sha256:
            raise _changed(name, "it was changed")
    known = {archive.MANIFEST, SIGNATURE, *manifest.files}
    for name in contents:
        if name not in known:
            raise _changed(name, "it is not in the manifest")
    return manifest


def content_of(contents: Mapping[str, bytes]) -> DossierContent:
    """Parse a dossier's files strictly.

    Raises:
        DossierError: A record is missing or not valid; the message names the file.
    """
    found = {name: _read(cls, contents, record_path(name)) for name, cls in RECORDS.items()}
    report = record_path("report")
    made = DossierContent(
        **found,  # type: ignore[arg-type]  # RECORDS names the classes of these very fields
        proof=_read(LedgerProof, contents, "ledger/proof.json"),
        trials=_trials(contents),
        report=_read(ReportContent, contents, report) if report in contents else None,
        binding=_read(Binding, contents, BINDING) if BINDING in contents else None,
        attachments={
            name.removeprefix("attachments/"): data
            for name, data in contents.items()
            if name.startswith("attachments/")
        },
    )
    for name, wanted in (("vkey", made.proof.vkey + "\n"), ("checkpoint", made.proof.checkpoint)):
        if contents.get(f"ledger/{name}.txt") != wanted.encode():
            raise _changed(f"ledger/{name}.txt", "it differs from ledger/proof.json")
    return made


def _trials(contents: Mapping[str, bytes]) -> tuple[Trial, ...]:
    name = record_path("trials")
    try:
        value = codec.parse(_modest(contents, name))
        if not isinstance(value, list):
            raise _changed(name, "it is no list")
        return tuple(Trial.from_json(item) for item in value)
    except KeyError as error:
        raise _changed(name, "it is missing") from error
    except EarmarkError as error:
        raise _changed(name, error.what) from error


def _modest(contents: Mapping[str, bytes], name: str) -> bytes:
    data = contents[name]
    if len(data) > MAX_RECORD:
        raise DossierError(f"It has {len(data):,} bytes; at most {MAX_RECORD:,} are read.")
    return data


def _read(cls: type[R], contents: Mapping[str, bytes], name: str) -> R:
    if name not in contents:
        raise _changed(name, "it is missing")
    try:
        return cls.from_bytes(_modest(contents, name))
    except EarmarkError as error:
        raise _changed(name, error.what) from error


def _changed(name: str, why: str) -> DossierError:
    return DossierError(
        f"File '{name}' of the dossier does not fit: {why.rstrip('.')}.",
        hint="Ask for the dossier again; do not rely on this one.",
    )
