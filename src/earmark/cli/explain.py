"""`earmark explain`: what an error code means."""

from __future__ import annotations

import inspect

import click

from earmark import errors
from earmark.cli.options import json_option
from earmark.cli.output import emit, line
from earmark.errors import EarmarkError, UnknownNameError


def catalogue() -> dict[str, type[EarmarkError]]:
    """Return every error class by code."""
    found = [
        item
        for item in vars(errors).values()
        if inspect.isclass(item) and issubclass(item, EarmarkError) and item is not EarmarkError
    ]
    return {item.code: item for item in sorted(found, key=lambda item: item.code)}


@click.command("explain", epilog="Example:  earmark explain E302")
@click.argument("code", required=False)
@json_option
def command(*, code: str | None, as_json: bool) -> int:
    """Explain an error code, or list them all."""
    known = catalogue()
    if code is not None and code.upper() not in known:
        raise UnknownNameError(
            f"There is no error code '{code}'.", expected=f"Known: {', '.join(known)}."
        )
    chosen = known if code is None else {code.upper(): known[code.upper()]}
    lines = [
        line(name, f"{inspect.getdoc(item)}  (exit {item.exit_code})")
        for name, item in chosen.items()
    ]
    return emit(
        "explain",
        lines,
        {"codes": {name: inspect.getdoc(item) or "" for name, item in chosen.items()}},
        as_json=as_json,
    )
