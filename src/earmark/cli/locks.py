"""`earmark locks`."""

from __future__ import annotations

import click

from earmark.cli.options import json_option
from earmark.cli.schemes import listing


@click.command("locks", epilog="Example:  earmark locks --json")
@json_option
def command(*, as_json: bool) -> int:
    """List the locks: what each is."""
    return listing("lock", as_json=as_json)
