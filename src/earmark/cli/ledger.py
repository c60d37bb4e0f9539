"""`earmark ledger`: show and check the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import click

from earmark import files
from earmark.cli import options
from earmark.cli.output import emit, line, table
from earmark.codec import Json, parse
from earmark.vault import Vault


@click.group("ledger", epilog="Example:  earmark ledger check")
def command() -> None:
    """Show and check the ledger of a vault."""


@command.command("log", epilog="Example:  earmark ledger log --json")
@options.vault_option
@options.json_option
def log(*, vault_path: Path, as_json: bool) -> int:
    """List the entries."""
    vault = Vault.open(vault_path)
    rows: list[list[str]] = []
    entries: list[Json] = []
    for index, record in vault.ledger.scan():
        body = parse(record)
        entries.append(body)
        about = body if isinstance(body, dict) else {}
        kind = str(about.get("schema", "?")).split("/")[1:2]
        rows.append([f"#{index}", str(about.get("created", "")), *kind, _gist(about)])
    lines = table(rows, head=["entry", "created (claimed)", "record", "about"])
    return emit("ledger log", lines, {"entries": entries}, as_json=as_json)


def _gist(body: dict[str, Json]) -> str:
    listed = body.get("files")
    if isinstance(listed, dict):
        return ", ".join(listed)
    return str(body.get("commitment", body.get("suspect", "")))[:16]


@command.command("show", epilog="Example:  earmark ledger show 0")
@click.argument("index", type=click.IntRange(min=0))
@options.vault_option
@options.json_option
def show(*, index: int, vault_path: Path, as_json: bool) -> int:
    """Show one entry with its receipt."""
    vault = Vault.open(vault_path)
    record = parse(vault.ledger.get(index))
    receipt = vault.ledger.receipt(index)
    text = json.dumps(record, indent=2, ensure_ascii=False)
    payload: dict[str, Json] = {"record": record, "receipt": receipt.to_json()}
    return emit("ledger show", [text, "", receipt.checkpoint], payload, as_json=as_json)


@command.command("head", epilog="Example:  earmark ledger head > head.txt   # keep it elsewhere")
@options.vault_option
def head(*, vault_path: Path) -> int:
    """Print the newest signed checkpoint; keep it elsewhere to detect a rewind later."""
    click.echo(str(Vault.open(vault_path).ledger.head()), nl=False)
    return 0


@command.command("check", epilog="Example:  earmark ledger check --against head.txt")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A checkpoint that you kept: finds a rewound or forked ledger.",
)
@options.vault_option
@options.json_option
def check(*, against: Path | None, vault_path: Path, as_json: bool) -> int:
    """Derive every hash and signature again; exit 4 if anything was changed."""
    vault = Vault.open(vault_path)
    kept = files.read_bytes(against, limit=1 << 16).decode("utf-8", "replace") if against else None
    vault.ledger.check(against=kept)
    newest = vault.ledger.head()
    lines = [
        line("ledger", newest.origin),
        line("entries", f"{newest.size}, all intact"),
        line("root", newest.root.hex()),
    ]
    payload: dict[str, Json] = {"size": newest.size, "root": newest.root.hex()}
    return emit("ledger check", lines, payload, as_json=as_json)
