"""`earmark claim`: register with a community, claim a suspect, and read what was decided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import files
from earmark.cli import options
from earmark.cli.output import emit, emit_outcome, line, table
from earmark.codec import Json
from earmark.errors import FileError, FormatError, UsageError
from earmark.vault import Vault

if TYPE_CHECKING:
    from earmark.protocol.party import Party

F = TypeVar("F", bound=Callable[..., Any])


def _require_community(_: click.Context, __: click.Parameter, path: Path) -> Path:
    if not path.exists():
        raise FileError(
            f"There is no community file '{path}'.",
            hint="Pass --community FILE; who founded the community has it, and every node that "
            "joined.",
        )
    return path


def community_option(function: F) -> F:
    """Add ``--community``, whose file must be there."""
    return click.option(
        "--community",
        "community_path",
        type=click.Path(path_type=Path),
        default=Path("community.json"),
        show_default=True,
        envvar="EARMARK_COMMUNITY",
        callback=_require_community,
        help="The community's file, from a source that you trust.",
    )(function)


@click.group("claim", epilog="Example:  earmark claim status")
def command() -> None:
    """Register with a community, claim a suspect, and read what was decided.

    A community's nodes verify a claim each by itself and vote. `status` believes none of them: it
    checks the log and its witnesses and decides from the records again.
    """


@command.command("register", epilog="Example:  earmark claim register release.safetensors")
@click.argument("release", type=click.Path(path_type=Path))
@click.option("--key", "key_name", default="", help="Beginning of the key's id.")
@click.option("--license", "terms", default="", help="A name or sentence.")
@click.option("--where", default="", help="Where the model is offered.")
@click.option(
    "--task",
    "task_path",
    type=click.Path(path_type=Path),
    help="The task file with the model's class; nodes that have it can measure activations.",
)
@click.option(
    "--oms",
    type=click.Path(path_type=Path),
    help="Write an OpenSSF model-signing bundle here (and its public key beside it, .pem), and "
    "publish their digests too.",
)
@click.option(
    "--scitt", type=click.Path(path_type=Path), help="Write the publication as a SCITT statement."
)
@community_option
@options.vault_option
@options.passphrase_option
@options.json_option
def register(
    *,
    release: Path,
    key_name: str,
    terms: str,
    where: str,
    task_path: Path | None,
    oms: Path | None,
    scitt: Path | None,
    community_path: Path,
    vault_path: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> int:
    """Commit to a key in the community's log, and publish RELEASE under it."""
    from earmark.protocol import messages as m
    from earmark.protocol.party import Party

    vault = Vault.open(vault_path)
    registration = vault.registration(key_name)
    identity = vault.identity(options.passphrase(passphrase_file))
    party = Party.open(community_path, identity)
    commitment = registration.commitment.commitment
    data = files.read_bytes(release)
    model = files.file_digest(release)
    if party.committed(commitment) is None:
        party.send(m.Commit, commitment=commitment, recovery=None)
    if party.rules.bound and party.beacon(commitment) != vault.beacon(registration):
        raise UsageError(
            "This key is bound to your own ledger, and the community asks for keys that are bound "
            "to its log.",
            hint=f"Protect the model with --community {community_path}, or found the community "
            "with --unbound.",
        )
    party.client.put(data)
    listed = {release.name: model} | ({} if oms is None else _bundle(release, oms, identity))
    if task_path is not None:
        listed[task_path.name] = files.file_digest(task_path)
    published = party.send(
        m.Publish,
        commitment=commitment,
        model=model,
        files=listed,
        beacon=vault.beacon(registration),
        license=terms,
        where=where,
    )
    if scitt is not None:
        _state(party.record(published), scitt, identity)
    lines = [
        line("key", registration.id),
        line("log", f"{party.rules.domain}, {len(party.entries)} entries"),
        line("release", f"{release.name}  {model}"),
    ]
    return emit(
        "claim register", lines, {"commitment": commitment, "model": model}, as_json=as_json
    )


@command.command("open", epilog="Example:  earmark claim open suspect.safetensors --shards 0,1,2")
@click.argument("suspect", type=click.Path(path_type=Path))
@click.option("--key", "key_name", default="", help="Beginning of the key's id.")
@click.option("--shards", required=True, help="Shards to reveal, such as 0,1,2; they are burnt.")
@community_option
@options.vault_option
@options.passphrase_option
@options.json_option
def open_(
    *,
    suspect: Path,
    key_name: str,
    shards: str,
    community_path: Path,
    vault_path: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> int:
    """Claim that SUSPECT carries your mark; this reveals some shards of your key to everybody."""
    from earmark.protocol import messages as m
    from earmark.protocol.disclosure import DisclosureFile, inputs_of
    from earmark.protocol.party import Party

    vault = Vault.open(vault_path)
    registration = vault.registration(key_name)
    word = options.passphrase(passphrase_file)
    key = vault.key(registration.id, word)
    chosen = _numbers(shards)
    party = Party.open(community_path, vault.identity(word))
    inputs = None
    if key.layout.inputs is not None:
        inputs = party.client.put(inputs_of(key, chosen))
    claim = party.send(
        m.Claim,
        opening=registration.opening,
        suspect=party.client.put(files.read_bytes(suspect)),
        shards=chosen,
        disclosure=party.client.put(DisclosureFile.of(key, chosen).canonical()),
        inputs=inputs,
    )
    party.sync()
    refused = party.refusal(claim)
    if refused is not None:
        raise UsageError(f"The claim does not count ({refused.code.value}): {refused.detail}")
    lines = [
        line("claim", claim),
        line("burnt", f"shards {', '.join(map(str, chosen))} of {key.layout.shards}"),
        line("next", f"earmark claim status {claim[:12]}"),
    ]
    return emit("claim open", lines, {"claim": claim}, as_json=as_json)


@command.command("status", epilog="Example:  earmark claim status 3f0a91c2")
@click.argument("name", default="")
@community_option
@click.option("--chain", metavar="URL", help="Read the log from a node of an EVM chain instead.")
@click.option("--contract", metavar="0x...", default="", help="The contract there.")
@click.option(
    "--depth", type=click.IntRange(min=1), help="If the chain does not say what is final."
)
@options.json_option
def status(
    *,
    name: str,
    community_path: Path,
    chain: str | None,
    contract: str,
    depth: int | None,
    as_json: bool,
) -> int:
    """Decide all claims again from the log, or say what became of the claim NAME.

    Exit codes for one claim: 0 mark shown, 1 not shown, 3 inconclusive or open; 4 the log does not
    hold.
    """
    from earmark.protocol.party import Party

    if chain is None:
        party, source = Party.open(community_path), "all witnessed"
    else:
        party, source = _on_chain(community_path, chain, contract, depth), f"final on {contract}"
    party.sync()
    resolution = party.resolution()
    found = [item for item in resolution.claims if item.claim.startswith(name)]
    payload: dict[str, Json] = {"resolution": resolution.to_json()}
    lines = [line("log", f"{party.rules.domain}, {len(party.entries)} entries, {source}")]
    if not name:
        rows = [
            [item.claim[:12], item.suspect[:12], item.outcome.value, item.code.value]
            for item in found
        ]
        lines += table(rows, head=["claim", "suspect", "outcome", "reason"])
        return emit("claim status", lines, payload, as_json=as_json)
    if len(found) != 1:
        raise UsageError(f"{len(found)} claims begin with '{name}'; exactly one was expected.")
    (result,) = found
    lines += [
        line("outcome", f"{result.outcome.value} ({result.code.value})"),
        line("final", "yes" if result.closed else "no, voting goes on"),
    ]
    lines += [line("vote", f"{item.operator}: {item.code.value}") for item in result.voters]
    for dispute in resolution.disputes:
        if result.claim in dispute.claims:
            holder = (dispute.holder or "nobody")[:12]
            lines.append(line("dispute", f"{holder} prevails ({dispute.code.value})"))
    return emit_outcome("claim status", lines, payload, result.outcome, as_json=as_json)


@command.command("dossier", epilog="Example:  earmark claim dossier 3f0a91c2 -o case")
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder, or FILE.zip."
)
@click.option("--models", is_flag=True, help="Add the suspect and the release.")
@click.option("--force", is_flag=True, help="Replace a dossier that lies there.")
@community_option
@options.json_option
def dossier(
    *, name: str, output: Path, models: bool, force: bool, community_path: Path, as_json: bool
) -> int:
    """Write the folder, or file, that proves offline what became of the claim NAME."""
    from earmark.protocol.case import write_case
    from earmark.protocol.party import Party

    party = Party.open(community_path)
    party.sync()
    found = [claim for claim in party.history.claims if claim.startswith(name)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} claims begin with '{name}'; exactly one was expected.")
    result = write_case(party, found[0], output, models=models, overwrite=force)
    lines = [
        line("outcome", f"{result.outcome.value} ({result.code.value})"),
        line("dossier", f"{output}   anybody checks it:  earmark claim check {output}"),
    ]
    return emit("claim dossier", lines, {"result": result.to_json()}, as_json=as_json)


@command.command("check", epilog="Example:  earmark claim check case --digest 5d0e…41a2")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--digest", help="Digest of the community's file, if you have it from elsewhere.")
@options.json_option
def check(*, path: Path, digest: str | None, as_json: bool) -> int:
    """Check a claim's dossier offline: log, witnesses, signatures, and the verdict again.

    Exit codes: 0 mark shown, 1 not shown, 3 inconclusive; 4 something was changed.
    """
    from earmark.protocol.case import check_case_files
    from earmark.report import archive

    contents = archive.read(path)
    if "records/claim.json" in contents and not {"claim.txt", "community.json"} & set(contents):
        raise FormatError(
            f"'{path}' is a dossier of earmark verify, and no community's.",
            hint=f"Check it with:  earmark report {path}",
        )
    result, checks = check_case_files(contents, digest)
    lines = [line(item.status, f"{item.name}  {item.detail}") for item in checks]
    listed: list[Json] = [
        {"name": item.name, "status": item.status, "detail": item.detail} for item in checks
    ]
    payload: dict[str, Json] = {"checks": listed, "result": result.to_json()}
    return emit_outcome("claim check", lines, payload, result.outcome, as_json=as_json)


def _bundle(release: Path, path: Path, identity: Ed25519PrivateKey) -> dict[str, str]:
    """Write a model-signing bundle and its public key; return their names and digests."""
    from earmark.protocol.bundles import public_pem, sign_release

    public = path.with_suffix(".pem")
    sign_release(release, path, identity)
    files.write_bytes(public, public_pem(identity), overwrite=True)
    return {item.name: files.file_digest(item) for item in (path, public)}


def _state(record: bytes, path: Path, identity: Ed25519PrivateKey) -> None:
    from earmark.protocol.bundles import scitt_statement

    files.write_bytes(path, scitt_statement(record, identity), overwrite=True)


def _on_chain(path: Path, url: str, contract: str, depth: int | None) -> Party:
    from earmark.ledger.evm.chain import Chain
    from earmark.ledger.evm.ledger import EvmLedger
    from earmark.ledger.note import SignerKey
    from earmark.protocol.community import Community
    from earmark.protocol.onchain import ChainParty

    community = Community.load(path)
    observer = SignerKey.generate(community.rules.domain)  # what it signs, nobody else will see
    return ChainParty(community, EvmLedger(Chain(url, contract, depth=depth), observer))


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"'{text}' is no list of shards.", expected="Numbers such as 0,1,2.")
    return tuple(int(part) for part in parts)
