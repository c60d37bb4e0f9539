"""`earmark explain`: what an error code means."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import click

from earmark import errors
from earmark.cli.options import json_option
from earmark.cli.output import emit, line
from earmark.errors import EarmarkError, UnknownNameError


@dataclass(frozen=True)
class Code:
    """What an error code stands for.

    Args:
        text: Its explanation; the first line is a sentence of its own.
        exit_code: What the command line exits with.
    """

    text: str
    exit_code: int


_OWN = {
    "E070": Code("A bug in earmark; please report it.", 70),
    "E100": Code("The command line does not know such a command, option or argument.", 2),
    "E130": Code("Somebody pressed Ctrl-C; what was written before is whole and stays.", 130),
}
"""Codes that only the command line gives."""


def catalogue() -> dict[str, Code]:
    """Return every error code."""
    found = {
        item.code: Code(inspect.getdoc(item) or "", item.exit_code)
        for item in vars(errors).values()
        if inspect.isclass(item) and issubclass(item, EarmarkError) and item is not EarmarkError
    }
    return dict(sorted((found | _OWN).items()))


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
    lines = [line(name, f"{item.text}  (exit {item.exit_code})") for name, item in chosen.items()]
    return emit(
        "explain",
        lines,
        {"codes": {name: item.text for name, item in chosen.items()}},
        as_json=as_json,
    )
