"""`earmark schemes`, and the listing that `attacks` and `locks` share."""

from __future__ import annotations

import click

from earmark import codec, registry
from earmark.cli.options import json_option
from earmark.cli.output import emit, table
from earmark.codec import Json
from earmark.errors import ExtraError


def listing(*kinds: str, as_json: bool) -> int:
    """Print everything of some kinds with its one-line summary; the first kind gives the name."""
    rows: list[list[str]] = []
    payload: list[Json] = []
    for kind in kinds:
        for name in registry.names(kind):
            try:
                cls = registry.load(kind, name)
            except ExtraError as error:
                rows.append([name, "", f"needs an extra: {error.hint}", ""])
                continue
            needs = ", ".join(sorted(item.value for item in getattr(cls, "needs", ())))
            family = "forgery" if kind == "forgery" else getattr(cls, "family", "")
            about, summary = needs or family, getattr(cls, "summary", "")
            presets = getattr(cls, "PRESETS", {})
            rows.append([name, about, summary, " ".join(presets)])
            found: dict[str, Json] = {"name": name, "about": about, "summary": summary}
            if hasattr(cls, "source"):
                found["source"] = cls.source
                found["presets"] = {
                    key: codec.encode(dict(value)) for key, value in presets.items()
                }
            payload.append(found)
    head = ["name", "family" if kinds[0] == "attack" else "reads", "what it is", "presets"]
    filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = table([[row[i] for i in filled] for row in rows], head=[head[i] for i in filled])
    return emit(f"{kinds[0]}s", lines, {f"{kinds[0]}s": payload}, as_json=as_json)


@click.command("schemes", epilog="Example:  earmark schemes --json")
@json_option
def command(*, as_json: bool) -> int:
    """List the schemes: what each reads of a suspect and what it is."""
    return listing("scheme", as_json=as_json)
