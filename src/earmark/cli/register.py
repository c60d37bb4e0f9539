"""`earmark register`: record the digests of further files under a registered key."""

from __future__ import annotations

from pathlib import Path

import click

from earmark import files
from earmark.cli import options
from earmark.cli.output import emit, line
from earmark.codec import Json
from earmark.vault import Vault


@click.command("register", epilog="Example:  earmark register release-int8.safetensors --key 3f0a")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--key", "key_name", default="", help="Beginning of the key's id.")
@options.vault_option
@options.json_option
def command(*, paths: tuple[Path, ...], key_name: str, vault_path: Path, as_json: bool) -> int:
    """Record further files of a protected model in the ledger, before you release them.

    `earmark protect` registers what it writes; use this for what you derive from it yourself, such
    as a quantised copy.
    """
    vault = Vault.open(vault_path)
    registration = vault.registration(key_name)
    digests = {path.name: files.file_digest(path) for path in paths}
    registration = vault.release(registration, digests)
    receipt = registration.release_receipts[-1]
    lines = [line("key", registration.id), line("ledger", f"#{receipt.index} release")]
    lines += [line("file", f"{name}  {value}") for name, value in digests.items()]
    named: Json = dict(digests)
    payload: dict[str, Json] = {"key": registration.id, "index": receipt.index, "files": named}
    return emit("register", lines, payload, as_json=as_json)
