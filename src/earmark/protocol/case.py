"""A claim's dossier from a community: all that its verdict follows from, to be checked offline.

::

    manifest.json        SHA-256 of every other file, and a seal over itself
    README.txt           how to check it
    report.html          the page that people read
    community.json       the rules and all public keys
    claim.txt            digest of the claim
    log/<n>.json         the log's entries in pages, each entry with its cosigned checkpoint
    resolution.json      what follows from them
    evidence/<digest>    what the claim revealed, and the models if they were added

Checking believes none of it but the community's file, and that one only if its digest is known
from elsewhere: the log's tree is derived again, the witnesses' cosignatures and the senders'
signatures are verified, and the verdict is resolved again from the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from earmark import codec, files
from earmark.errors import DossierError, EarmarkError, UsageError
from earmark.ledger.note import VerifierKey
from earmark.ledger.service import Mirror, Row
from earmark.protocol import messages as m
from earmark.protocol.community import Community
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.history import ClaimFile, History, Logged, entry_of
from earmark.protocol.party import Party
from earmark.protocol.resolve import ClaimResult, Resolution, resolve_history
from earmark.report import archive, parts
from earmark.report.checks import NOTE, VERIFIED, Check
from earmark.report.dossier import Manifest, require_manifest
from earmark.report.markup import Markup, tag
from earmark.wording import counted

PAGE = 256
_README = """This folder proves what a community decided on one claim. It needs no network to check:

    pip install earmark
    earmark claim check .

Get the community's digest from a source of your own and pass it with --digest: all keys that are
used come from community.json, and whoever gave you this folder gave you that file.
"""

_FILES = frozenset(
    {
        "README.txt",
        "report.html",
        "community.json",
        "claim.txt",
        "resolution.json",
        archive.MANIFEST,
    }
)


def case_files(
    community: Community, rows: Iterable[Row], claim: str, evidence: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Return every file of a claim's dossier: path to content.

    Args:
        community: As pinned by whoever writes this.
        rows: The whole log, in order.
        claim: Digest of the claim's envelope.
        evidence: Digest to bytes.

    Raises:
        UsageError: There is no such claim.
        LedgerError, SignatureError: The log does not hold.
    """
    listed = list(rows)
    history = replay(community, listed)
    resolution = resolve_history(history)
    result = resolution.claim(claim)
    if result is None:
        raise UsageError(f"No accepted claim of this log has the digest {claim[:16]}.")
    made = {
        "README.txt": _README.encode(),
        "report.html": page(community, history, resolution, result).encode(),
        "community.json": community.canonical(),
        "claim.txt": claim.encode() + b"\n",
        "resolution.json": resolution.canonical(),
    }
    for at in range(0, len(listed), PAGE):
        body = codec.canonical([row.to_json() for row in listed[at : at + PAGE]])
        made[f"log/{at // PAGE:04d}.json"] = body
    made |= {f"evidence/{digest}": data for digest, data in evidence.items()}
    return {**made, archive.MANIFEST: Manifest.of(made).canonical()}


def write_case(
    party: Party, claim: str, path: str | Path, *, models: bool = False, overwrite: bool = False
) -> ClaimResult:
    """Fetch what a claim's verdict follows from, check it, and write its dossier.

    Args:
        party: Somebody who reads the log.
        claim: Digest of the claim's envelope.
        path: The folder to make; one packed file instead if the name ends with ``.zip``.
        models: Add the suspect and the release, so that they can be measured again.
        overwrite: Replace a dossier that lies there.

    Raises:
        UsageError: There is no such claim, or something lies there.
        NetworkError, LedgerError, SignatureError: See `Party.sync`.
        OutputError: The folder cannot be written.
    """
    party.sync()
    file = party.history.claims.get(claim)
    if file is None:
        raise UsageError(f"No accepted claim of this log has the digest {claim[:16]}.")
    wanted = {file.claim.disclosure, *([file.claim.inputs] if file.claim.inputs else [])}
    if models:
        wanted |= {file.claim.suspect, file.model}
    evidence = {digest: party.client.blob(digest) for digest in sorted(wanted)}
    contents = case_files(party.community, party.rows(), claim, evidence)
    result, _ = check_case_files(contents, party.community.digest())
    if Path(path).suffix == ".zip":
        files.write_bytes(path, archive.encode(contents), overwrite=overwrite)
    else:
        archive.write(path, contents, overwrite=overwrite)
    return result


def check_case(path: str | Path, digest: str | None = None) -> tuple[ClaimResult, list[Check]]:
    """Verify a claim's dossier offline; see `check_case_files`."""
    return check_case_files(archive.read(path), digest)


def check_case_files(
    contents: Mapping[str, bytes], digest: str | None = None
) -> tuple[ClaimResult, list[Check]]:
    """Verify everything that a claim's dossier says.

    Args:
        contents: Path to content.
        digest: Digest of the community's file, from a source of your own.

    Returns:
        What the claim resolves to, derived here, and what was looked at.

    Raises:
        DossierError: A file is missing, was changed, or says something that does not follow.
        LedgerError, SignatureError: The log does not hold.
    """
    manifest = require_manifest(contents)
    for name in contents:
        if name not in _FILES and not name.startswith(("log/", "evidence/")):
            raise _wrong(name, "no claim's dossier has such a file")
    checks = [Check("manifest", VERIFIED, f"{len(manifest.files)} files are as they were written.")]
    community = _read(Community, contents, "community.json")
    checks.append(_pinned(community, digest))
    history = replay(community, _rows(contents))
    quorum = community.quorum
    checks.append(
        Check(
            "log",
            VERIFIED,
            f"{counted(history.size, 'entry', 'entries')}: every root, and at least "
            f"{quorum.threshold} of {len(community.nodes)} witnesses.",
        )
    )
    resolution = resolve_history(history)
    _require(contents, "resolution.json", resolution.canonical(), "it does not follow from the log")
    claim = contents.get("claim.txt", b"").decode("ascii", "replace").strip()
    result, file = resolution.claim(claim), history.claims.get(claim)
    if result is None or file is None:
        raise _wrong("claim.txt", "the log holds no such claim")
    said = f"{result.outcome.value} ({result.code.value}); {len(result.voters)} on the panel."
    checks.append(Check("verdict", VERIFIED, said))
    if not result.closed:
        checks.append(Check("final", NOTE, "Voting was still open; the verdict may change."))
    checks += _evidence(contents, file)
    html = page(community, history, resolution, result).encode()
    _require(contents, "report.html", html, "it is not the page of these records")
    checks.append(Check("page", VERIFIED, "It was made from these records."))
    if contents.get("README.txt") != _README.encode():
        told = "README.txt is not the text that this version writes."
        checks.append(Check("readme", NOTE, told))
    return result, checks


def replay(community: Community, rows: list[Row]) -> History:
    """Derive a log again and read it.

    Raises:
        LedgerError, SignatureError: The log does not hold.
    """
    mirror = Mirror(VerifierKey.parse(community.log), community.quorum)
    return History([entry_of(seen) for seen in mirror.take(rows)], community.rules)


def _pinned(community: Community, digest: str | None) -> Check:
    if digest is None:
        return Check("community", NOTE, f"Compare its digest: {community.digest()}")
    if digest != community.digest():
        raise DossierError(
            f"The dossier is of another community: {community.digest()[:16]}.",
            expected=f"{digest[:16]}.",
        )
    return Check("community", VERIFIED, "It is the one that you know.")


def _rows(contents: Mapping[str, bytes]) -> list[Row]:
    rows: list[Row] = []
    for name in sorted(item for item in contents if item.startswith("log/")):
        if name != f"log/{len(rows) // PAGE:04d}.json" or len(rows) % PAGE:
            raise _wrong(name, "a page is missing")
        try:
            body = codec.parse(contents[name])
            listed = body if isinstance(body, list) else [None]
            rows += [Row.from_json(item) for item in listed]
        except EarmarkError as error:
            raise _wrong(name, error.what) from error
    return rows


def _evidence(contents: Mapping[str, bytes], file: ClaimFile) -> list[Check]:
    """Hold each file of evidence to its digest, and the disclosure to the commitment."""
    found = {
        name.removeprefix("evidence/"): data
        for name, data in contents.items()
        if name.startswith("evidence/")
    }
    for digest, data in found.items():
        if codec.digest(data) != digest:
            raise _wrong(f"evidence/{digest}", "it has another digest")
    if file.claim.disclosure not in found:
        raise _wrong(f"evidence/{file.claim.disclosure}", "it is missing")
    assert isinstance(file.release.message, m.Publish)
    try:
        disclosed = DisclosureFile.from_bytes(found[file.claim.disclosure])
        disclosed.require(file.claim.shards, file.release.message.beacon)
        disclosed.disclosure(file.claim.opening)
    except EarmarkError as error:
        raise _wrong(f"evidence/{file.claim.disclosure}", error.what) from error
    checks = [
        Check(
            "disclosure",
            VERIFIED,
            f"The commitment is opened by {counted(len(file.claim.shards), 'shard')}.",
        )
    ]
    models = {file.claim.suspect, file.model} & set(found)
    if not models:
        said = "The models are not in the dossier; the log holds their digests."
        return [*checks, Check("models", NOTE, said)]
    return [*checks, Check("models", VERIFIED, f"{len(models)} have the digests of the log.")]


def _require(contents: Mapping[str, bytes], name: str, wanted: bytes, why: str) -> None:
    if contents.get(name) != wanted:
        raise _wrong(name, why)


def _read(cls: type[Community], contents: Mapping[str, bytes], name: str) -> Community:
    try:
        return cls.from_bytes(contents[name])
    except KeyError as error:
        raise _wrong(name, "it is missing") from error
    except EarmarkError as error:
        raise _wrong(name, error.what) from error


def _wrong(name: str, why: str) -> DossierError:
    return DossierError(
        f"File '{name}' of the dossier does not fit: {why.rstrip('.')}.",
        hint="Ask for the dossier again; do not rely on this one.",
    )


# -- the page ------------------------------------------------------------------------------------

_DID = {
    m.Commit: "committed to the key",
    m.Publish: "published the release",
    m.Claim: "claimed the suspect",
    m.Challenge: "challenged the claim",
    m.VoteCommit: "sealed a ballot",
    m.VoteReveal: "showed the ballot",
}


def page(
    community: Community, history: History, resolution: Resolution, result: ClaimResult
) -> str:
    """Write the page of a claim's dossier; it follows from the records alone."""
    file = history.claims[result.claim]
    names = history.operators()
    columns = ("operator", "vote")
    votes = [parts.row(columns, item.operator, (item.code.value,)) for item in result.voters]
    counted = ("question", "outcome", "hits of trials", "shown / not / could not tell")
    tallies = [
        parts.row(
            counted,
            "on the suspect" if item.model == result.suspect else "on a release",
            (
                parts.outcome_cell(item.outcome.value, counted[1]),
                f"{item.hits} of {item.trials}",
                f"{item.shown} / {item.not_shown} / {item.abstained}",
            ),
        )
        for item in result.tallies
    ]
    steps = [
        parts.row(
            ("not later than", "who", "what"),
            _time(item),
            (names.get(history.root(item.message.sender), item.message.sender[:12]), _did(item)),
        )
        for item in _story(file)
    ]
    disputes = [
        tag("p", _dispute(item.holder, item.code.value, result.claim))
        for item in resolution.disputes
        if result.claim in item.claims
    ]
    return parts.page(
        f"Claim {result.claim[:12]}: {result.outcome.value}",
        tag("header", tag("p", tag("b", "Decision of a community"), " · ", community.rules.domain)),
        tag("h1", f"{parts.MARKS[result.outcome.value]} Mark {result.outcome.value}"),
        tag("p", f"Reason: {result.code.value}. ", "" if result.closed else "Voting is open."),
        *disputes,
        parts.section("What was counted", parts.table(counted, tallies)),
        parts.section("Who voted how", parts.table(columns, votes)),
        parts.section("When", parts.table(("not later than", "who", "what"), steps)),
        parts.section("Digests", _digests(community, result, file)),
        parts.section(
            "Limits",
            parts.bullets(
                (
                    "A mark that is shown does not say who trained the suspect, or when.",
                    "More than f of 3f + 1 voters who lie alike are beyond what this withstands.",
                )
            ),
        ),
    )


def _digests(community: Community, result: ClaimResult, file: ClaimFile) -> Markup:
    listed = (
        ("community", community.digest()),
        ("claim", result.claim),
        ("suspect", result.suspect),
        ("commitment", result.commitment),
        ("release", file.model),
        ("head of the log", file.logged.entry.head),
    )
    return parts.listing([(name, parts.digest(value)) for name, value in listed])


def _story(file: ClaimFile) -> list[Logged]:
    listed = [file.committed, file.release, file.logged, *file.challenges]
    return sorted([*listed, *file.commits, *file.reveals], key=lambda item: item.index)


def _did(item: Logged) -> str:
    return f"{_DID[type(item.message)]} (#{item.index})"


def _time(item: Logged) -> str:
    when = datetime.fromtimestamp(item.entry.time, timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def _dispute(holder: str | None, code: str, claim: str) -> str:
    if holder is None:
        return "Other owners' marks are in this suspect too; the records do not tell whose it is."
    who = "this claim prevails" if holder == claim else "another claim prevails"
    return f"Other owners' marks are in this suspect too; {who} by {code}."
