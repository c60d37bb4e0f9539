"""`earmark keys`: which key of a vault belongs to which model."""

from __future__ import annotations

from pathlib import Path

import click

from earmark.cli import options
from earmark.cli.output import emit, table
from earmark.codec import Json
from earmark.keys.secret import START
from earmark.vault import Registration, Vault

_SHORT = 12


@click.command("keys", epilog="Example:  earmark keys --vault vault")
@options.vault_option
@options.json_option
def command(*, vault_path: Path, as_json: bool) -> int:
    """List a vault's keys: scheme, date, and the files that were released under each.

    No passphrase is needed, and no secret is shown. A file's digest is the SHA-256 of its bytes.
    """
    vault = Vault.open(vault_path)
    held = list(vault.registrations())
    vault.close()
    rows = [row for item in held for row in _rows(item)]
    lines = table(rows, head=["key", "scheme", "made", "for", "released", "digest"])
    keys: list[Json] = [_document(item) for item in held]
    return emit("keys", lines if rows else ["no keys"], {"keys": keys}, as_json=as_json)


def _rows(item: Registration) -> list[list[str]]:
    """Return a line for each file that was released under a key, or one where none was."""
    head = [item.id, item.opening.layout.scheme, item.made, item.note]
    files = [file for release in item.releases for file in release.files.items()]
    lines = [[name, digest[:_SHORT]] for name, digest in files] or [["nothing yet", ""]]
    return [[*(head if i == 0 else [""] * len(head)), *part] for i, part in enumerate(lines)]


def _document(item: Registration) -> Json:
    layout = item.opening.layout
    carrier: list[Json] = list(layout.carrier)
    released: dict[str, Json] = {}
    for release in item.releases:
        released |= release.files
    return {
        "key": item.id,
        "commitment": item.commitment.commitment,
        "scheme": layout.scheme,
        "created": item.commitment.created,
        "for": item.note,
        "carrier": carrier,
        "start": layout.params.get(START),
        "released": released,
        "ledger": item.receipt.index,
    }
