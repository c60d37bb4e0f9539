"""`earmark attacks`."""

from __future__ import annotations

import click

from earmark.cli.options import json_option
from earmark.cli.schemes import listing


@click.command("attacks", epilog="Example:  earmark attacks --json")
@json_option
def command(*, as_json: bool) -> int:
    """List the attacks: what each is."""
    return listing("attack", as_json=as_json)
