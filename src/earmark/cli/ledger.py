"""`earmark ledger`: show, check, move and time-stamp ledgers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from earmark import codec, files
from earmark.cli import options
from earmark.cli.output import emit, line, table
from earmark.codec import Json, parse
from earmark.errors import IntegrityError, UsageError
from earmark.vault import Vault

if TYPE_CHECKING:
    from earmark.ledger.moving import Archive
    from earmark.ledger.port import Ledger
    from earmark.ledger.timeproof import TimeProof
    from earmark.ledger.treelog import TreeLog

F = TypeVar("F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


def ledger_option(function: F) -> F:
    """Add ``--ledger``."""
    return click.option(
        "--ledger",
        "where",
        metavar="ADDRESS",
        help="Another ledger than the vault's: a file, or postgresql://user@host/db#schema.",
    )(function)


def _open(where: str | None, vault_path: Path) -> TreeLog:
    from earmark.ledger.engines import open_log

    return Vault.open(vault_path).ledger if where is None else open_log(where)


@click.group("ledger", epilog="Example:  earmark ledger check")
def command() -> None:
    """Show, check, move and time-stamp the ledger of a vault, or another one."""


@command.command("log", epilog="Example:  earmark ledger log --json")
@ledger_option
@options.vault_option
@options.json_option
def log(*, where: str | None, vault_path: Path, as_json: bool) -> int:
    """List the entries."""
    ledger = _open(where, vault_path)
    rows: list[list[str]] = []
    entries: list[Json] = []
    for index, record in ledger.scan():
        body = parse(record)
        entries.append(body)
        about = body if isinstance(body, dict) else {}
        signed = about.get("record")
        about = signed if isinstance(signed, dict) else about
        kind = str(about.get("schema") or about.get("type") or "?").removeprefix("earmark/")
        rows.append([f"#{index}", str(about.get("created", "")), kind, _gist(about)])
    lines = table(rows, head=["entry", "created (claimed)", "record", "about"])
    return emit("ledger log", lines, {"entries": entries}, as_json=as_json)


def _gist(body: dict[str, Json]) -> str:
    listed = body.get("files")
    if isinstance(listed, dict):
        return ", ".join(listed)
    if "serial" in body:
        return f"license {body['serial']}"
    return str(body.get("commitment", body.get("suspect", "")))[:16]


@command.command("show", epilog="Example:  earmark ledger show 0")
@click.argument("index", type=click.IntRange(min=0))
@ledger_option
@options.vault_option
@options.json_option
def show(*, index: int, where: str | None, vault_path: Path, as_json: bool) -> int:
    """Show one entry with its receipt."""
    ledger = _open(where, vault_path)
    record = parse(ledger.get(index))
    receipt = ledger.receipt(index)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    payload: dict[str, Json] = {"record": record, "receipt": receipt.to_json()}
    return emit("ledger show", [text, "", receipt.checkpoint], payload, as_json=as_json)


@command.command("head", epilog="Example:  earmark ledger head > head.txt   # keep it elsewhere")
@ledger_option
@options.vault_option
def head(*, where: str | None, vault_path: Path) -> int:
    """Print the newest signed checkpoint; keep it elsewhere to detect a rewind later."""
    click.echo(str(_open(where, vault_path).head()), nl=False)
    return 0


@command.command("check", epilog="Example:  earmark ledger check --against head.txt")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A checkpoint that you kept: finds a rewound or forked ledger.",
)
@ledger_option
@options.vault_option
@options.json_option
def check(*, against: Path | None, where: str | None, vault_path: Path, as_json: bool) -> int:
    """Derive every hash and signature again; exit 4 if anything was changed."""
    ledger = _open(where, vault_path)
    ledger.check(against=None if against is None else _kept_head(against))
    newest = ledger.head()
    lines = [
        line("ledger", newest.origin),
        line("entries", f"{newest.size}, all intact"),
        line("root", newest.root.hex()),
    ]
    payload: dict[str, Json] = {"size": newest.size, "root": newest.root.hex()}
    return emit("ledger check", lines, payload, as_json=as_json)


@command.command("export", epilog="Example:  earmark ledger export history.jsonl")
@click.argument("output", type=_PATH)
@click.option("--cosigned", type=_PATH, help="File with the witnesses' cosignatures of a node.")
@click.option("--proof", "proofs", multiple=True, type=_PATH, help="A time proof to hand on.")
@ledger_option
@options.vault_option
@options.json_option
def export(
    *,
    output: Path,
    cosigned: Path | None,
    proofs: tuple[Path, ...],
    where: str | None,
    vault_path: Path,
    as_json: bool,
) -> int:
    """Write the whole history with its proofs into one file, to move it to another tier.

    The cosignatures of a ledger on a server are beside it; those of a node's own ledger are in its
    folder, in log-cosigned.sqlite.
    """
    from earmark.ledger.engines import is_server, open_notes
    from earmark.ledger.moving import export_log

    ledger = _open(where, vault_path)
    beside = where if where is not None and is_server(where) else cosigned
    notes = None if beside is None else open_notes(beside)
    size = export_log(ledger, output, notes=notes, proofs=[_proof(path) for path in proofs])
    lines = [
        line("ledger", ledger.origin),
        line("entries", str(size)),
        line("key", ledger.vkey),
        f"{output} written.   Next: earmark ledger import {output} --to ADDRESS",
    ]
    return emit("ledger export", lines, {"size": size, "vkey": ledger.vkey}, as_json=as_json)


@command.command(
    "import",
    epilog="Example:  earmark ledger import history.jsonl --to postgresql:///logs --key log.key",
)
@click.argument("path", metavar="EXPORT", type=_PATH)
@click.option("--vkey", help="The exported log's public key, from a source that you trust.")
@click.option("--to", "target", metavar="ADDRESS", help="A new file or server; made if missing.")
@click.option("--key", type=_PATH, help="Private key of the log on a server; made if missing.")
@click.option("--chain", metavar="URL", help="A node of an EVM chain, instead of --to.")
@click.option("--contract", metavar="0x...", help="The contract there; deployed if not given.")
@click.option("--account", type=_PATH, help="File with the paying account's key, hexadecimal.")
@click.option(
    "--depth", type=click.IntRange(min=1), help="For chains that do not say what is final."
)
@click.option("-o", "--output", type=_PATH, default=Path("move.json"), show_default=True)
@options.json_option
def import_(
    *,
    path: Path,
    vkey: str | None,
    target: str | None,
    key: Path | None,
    chain: str | None,
    contract: str | None,
    account: Path | None,
    depth: int | None,
    output: Path,
    as_json: bool,
) -> int:
    """Go on with an exported history in another tier, and prove that it is the same one.

    The same records are appended in the same order, so both logs have signed the same tree; OUTPUT
    says so with both signatures. Keep the export: it holds the proofs of when the old entries were
    there.
    """
    from earmark.ledger.moving import import_log

    archive = _archive(path, vkey)
    if (target is None) == (chain is None):
        raise UsageError("Name where to: --to an address, or --chain a node.")
    new: Ledger
    if target is not None:
        new = _target(target, archive.header.origin, key)
    else:
        new = _contract(str(chain), archive.header.origin, contract, account, key, depth)
    made = import_log(archive, new)
    files.write_bytes(output, made.canonical())
    lines = [
        line("ledger", new.origin),
        line("entries", f"{archive.head.size}, the same tree in both"),
        line("key", new.vkey),
        line("proof", str(output)),
    ]
    payload: dict[str, Json] = {"move": made.to_json()}
    return emit("ledger import", lines, payload, as_json=as_json)


def _target(where: str, origin: str, key: Path | None) -> TreeLog:
    from earmark.ledger.engines import create_log, is_server, open_log

    there = (key is not None and key.exists()) if is_server(where) else Path(where).exists()
    return open_log(where, key=key) if there else create_log(where, origin, key=key)


def _contract(
    url: str,
    origin: str,
    address: str | None,
    account: Path | None,
    key: Path | None,
    depth: int | None,
) -> Ledger:
    """Open, or deploy, a contract; the observer's key is made if its file is not there."""
    from earmark.ledger.evm.chain import Chain
    from earmark.ledger.evm.ledger import EvmLedger
    from earmark.ledger.keyfile import write_key
    from earmark.ledger.note import SignerKey

    if account is None or key is None:
        raise UsageError("A chain needs --account, which pays, and --key, which signs for you.")
    text = files.read_bytes(account, limit=1 << 10).decode("ascii", "replace").strip()
    try:
        secret = bytes.fromhex(text.removeprefix("0x"))
    except ValueError as error:
        raise UsageError(f"'{account}' holds no hexadecimal key.") from error
    if key.exists():
        observer = SignerKey.parse(files.read_bytes(key, limit=1 << 10).decode().strip())
    else:
        observer = SignerKey.generate(origin)
        write_key(key, observer)
    if address is None:
        made = Chain.deploy(url, secret, name=origin, depth=depth)
        click.echo(f"contract {made.address} on chain {made.id}", err=True)
    else:
        made = Chain(url, address, secret=secret, depth=depth)
    return EvmLedger(made, observer)


@command.command(
    "tiles", epilog="Example:  earmark ledger tiles public/ --ledger postgresql:///logs"
)
@click.argument("folder", type=_PATH)
@ledger_option
@options.vault_option
@options.json_option
def tiles(*, folder: Path, where: str | None, vault_path: Path, as_json: bool) -> int:
    """Write the ledger as static files that any web server can show (C2SP tiles)."""
    from earmark.ledger.tiles import export_tiles

    ledger = _open(where, vault_path)
    count = export_tiles(ledger, folder)
    lines = [line("ledger", ledger.origin), line("files", f"{count} written below {folder}")]
    return emit("ledger tiles", lines, {"files": count}, as_json=as_json)


@command.command(
    "stamp", epilog="Example:  earmark ledger stamp head.proof --tsa URL --roots tsa-root.pem"
)
@click.argument("output", type=_PATH)
@click.option("--tsa", required=True, metavar="URL", help="An RFC 3161 time-stamping authority.")
@click.option("--roots", required=True, type=_PATH, help="Its root certificates, PEM.")
@ledger_option
@options.vault_option
@options.json_option
def stamp(
    *, output: Path, tsa: str, roots: Path, where: str | None, vault_path: Path, as_json: bool
) -> int:
    """Have an authority stamp the newest head: everything below it was there by then.

    Only the head's digest leaves this machine.
    """
    from earmark.ledger.tsa import Rfc3161Time, over_http

    ledger = _open(where, vault_path)
    head = ledger.head()
    source = Rfc3161Time([files.read_bytes(roots, limit=1 << 20)], over_http(tsa))
    proof = source.stamp(codec.digest(head.body.text.encode()))
    moment = source.verify(proof)
    files.write_bytes(output, proof.canonical())
    lines = [
        line("ledger", f"{ledger.origin}, {head.size} entries"),
        line("time", f"not later than {_when(moment.latest)}, says {moment.source}"),
        line("proof", str(output)),
    ]
    payload: dict[str, Json] = {"size": head.size, "moment": moment.to_json()}
    return emit("ledger stamp", lines, payload, as_json=as_json)


@command.command(
    "time",
    epilog="Example:  earmark ledger time head.proof --roots tsa-root.pem --against head.txt",
)
@click.argument("path", metavar="PROOF", type=_PATH)
@click.option("--roots", required=True, type=_PATH, help="The authority's root certificates, PEM.")
@click.option("--against", type=_PATH, help="The head that was stamped; else the newest one.")
@ledger_option
@options.vault_option
@options.json_option
def time(
    *,
    path: Path,
    roots: Path,
    against: Path | None,
    where: str | None,
    vault_path: Path,
    as_json: bool,
) -> int:
    """Check a stamp of a head, offline, and say since when the head's entries have been there."""
    from earmark.ledger.tsa import Rfc3161Time

    ledger = _open(where, vault_path)
    head = ledger.head() if against is None else ledger.own(_kept_head(against))
    proof = _proof(path)
    if proof.subject != codec.digest(head.body.text.encode()):
        raise UsageError(
            f"'{path}' is a stamp of something else than the head of {head.size} entries.",
            hint="Name the head that was stamped with --against.",
        )
    moment = Rfc3161Time([files.read_bytes(roots, limit=1 << 20)]).verify(proof)
    lines = [
        line("ledger", f"{ledger.origin}, {head.size} entries"),
        line("time", f"not later than {_when(moment.latest)}, says {moment.source}"),
    ]
    payload: dict[str, Json] = {"size": head.size, "moment": moment.to_json()}
    return emit("ledger time", lines, payload, as_json=as_json)


def _archive(path: Path, vkey: str | None) -> Archive:
    """Read an export as `files.read_as` would, which takes no file of this size."""
    from earmark.ledger.moving import Archive, Header

    try:
        return Archive.read(path, vkey=vkey)
    except IntegrityError as error:
        with path.open("rb") as file:
            head = file.readline(1 << 24)
        raise files.named(
            error, path, head, kind="export of a ledger", sign=Header.SCHEMA
        ) from error


def _proof(path: Path) -> TimeProof:
    from earmark.ledger.timeproof import TimeProof

    return files.read_as(
        path, TimeProof.from_bytes, kind="stamp of a head", sign=TimeProof.SCHEMA, limit=1 << 20
    )


def _kept_head(path: Path) -> str:
    from earmark.ledger.checkpoint import SignedCheckpoint

    def parse(data: bytes) -> str:
        text = data.decode("utf-8", "replace")
        SignedCheckpoint.parse(text)
        return text

    return files.read_as(path, parse, kind="head of a ledger", sign="\n— ", limit=1 << 16)


def _when(seconds: int) -> str:
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat().replace("+00:00", "Z")
