"""`earmark schemes`, and the listing that `attacks` and `locks` share."""

from __future__ import annotations

import click

from earmark import registry
from earmark.cli.options import json_option
from earmark.cli.output import emit, table
from earmark.codec import Json
from earmark.errors import ExtraError


def listing(kind: str, *, as_json: bool) -> int:
    """Print everything of one kind with its one-line summary."""
    rows: list[list[str]] = []
    for name in registry.names(kind):
        try:
            cls = registry.load(kind, name)
            needs = ", ".join(sorted(item.value for item in getattr(cls, "needs", ())))
            rows.append([name, needs or getattr(cls, "family", ""), getattr(cls, "summary", "")])
        except ExtraError as error:
            rows.append([name, "", f"needs an extra: {error.hint}"])
    payload: Json = [{"name": row[0], "about": row[1], "summary": row[2]} for row in rows]
    second = "family" if kind == "attack" else "reads"
    lines = table(rows, head=["name", second, "what it is"])
    return emit(f"{kind}s", lines, {f"{kind}s": payload}, as_json=as_json)


@click.command("schemes", epilog="Example:  earmark schemes --json")
@json_option
def command(*, as_json: bool) -> int:
    """List the schemes: what each reads of a suspect and what it is."""
    return listing("scheme", as_json=as_json)
