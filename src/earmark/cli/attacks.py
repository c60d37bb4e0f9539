"""`earmark attacks`."""

from __future__ import annotations

import click

from earmark.cli.options import json_option
from earmark.cli.schemes import listing


@click.command("attacks", epilog="Example:  earmark attacks --json")
@json_option
def command(*, as_json: bool) -> int:
    """List attacks and forgeries: family, named presets, and what each is.

    With --json also where each was published and what its presets set.
    """
    return listing("attack", "forgery", as_json=as_json)
