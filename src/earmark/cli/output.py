"""What commands print: labelled lines for people, or exactly one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from earmark import stats
from earmark.codec import Json
from earmark.records import Evidence, Outcome, Verdict
from earmark.wording import counted

T = TypeVar("T")

EXIT: dict[Outcome, int] = {Outcome.SHOWN: 0, Outcome.NOT_SHOWN: 1, Outcome.INCONCLUSIVE: 3}
"""Exit code of a verdict command."""

_SCHEMA = "earmark/cli/1"


class Bars:
    """Progress on a terminal: bars and notes on stderr; nothing in a pipe but notes."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet

    def note(self, text: str) -> None:
        """Show one sentence."""
        if not self.quiet:
            click.echo(text, err=True)

    def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        """Pass items through under a bar."""
        if not self.live:
            yield from items
            return
        with click.progressbar(
            items,
            length=total,
            label=f"{label:<28}",
            file=sys.stderr,
            show_pos=True,
            update_min_steps=max(1, (total or 0) // 200),
        ) as bar:
            yield from bar


def error_document(command: str, code: int, name: str, text: str) -> str:
    """Return the JSON document of a failure; the code stands in a field of its own."""
    return json.dumps(
        {
            "schema": _SCHEMA,
            "command": command,
            "outcome": "error",
            "exit": code,
            "error": {"code": name, "message": text.removeprefix(f"{name}  ")},
        }
    )


def emit(
    command: str,
    lines: Sequence[str],
    payload: Mapping[str, Json],
    *,
    as_json: bool,
    outcome: str = "done",
    code: int = 0,
) -> int:
    """Print a result for people or for programs and return the exit code."""
    if as_json:
        head = {"schema": _SCHEMA, "command": command, "outcome": outcome, "exit": code}
        click.echo(json.dumps({**head, "error": None, **payload}))
    else:
        click.echo("\n".join(lines))
    return code


def line(label: str, text: str) -> str:
    """Return one labelled line."""
    return f"{label:<16}  {text}"


def verdict_lines(verdict: Verdict, evidence: Evidence, *, inexact: str = "") -> list[str]:
    """Describe a verdict in a few labelled lines.

    Args:
        verdict: The verdict.
        evidence: The evidence that it was judged from.
        inexact: Why the null is not exact, if it is not.
    """
    shown = {
        Outcome.SHOWN: ("MARK SHOWN", "green"),
        Outcome.NOT_SHOWN: ("MARK NOT SHOWN", "yellow"),
        Outcome.INCONCLUSIVE: ("INCONCLUSIVE", "yellow"),
    }
    word, colour = shown[verdict.outcome]
    tried = evidence.tried
    head = click.style(f"{word:<16}", fg=colour, bold=True)
    lines = [
        f"{head}  {evidence.hits:,} of {evidence.trials:,} answers match the key",
        line("chance", f"{stats.one_in(-verdict.bits)} for a model made without the key"),
        line("evidence", f"{verdict.bits:.1f} bits net; {verdict.threshold:g} asked for"),
        *_null_lines(verdict, evidence, inexact),
        line(
            "tried",
            f"{counted(tried.keys, 'key')}, {counted(tried.suspects, 'suspect')}, "
            f"{counted(tried.forms, 'form')} (charged)",
        ),
        line(
            "power",
            f"a model that gives {verdict.power_rate:.0%} of the key's answers is shown "
            f"with probability {_probability(verdict.power)}",
        ),
    ]
    lines += [line("note", note) for note in evidence.notes]
    return lines


def _null_lines(verdict: Verdict, evidence: Evidence, inexact: str) -> list[str]:
    """Say what the chance rests on: the plain count, or a reading that weighs the answers."""
    if inexact:
        return [line("null", f"none that is exact: {inexact}")]
    plain = stats.log2_binomial_tail(evidence.hits, evidence.trials, evidence.chance)
    if evidence.score is not None and verdict.bits_gross > -plain:
        return [
            line("reading", f"answers weighed by their margins; counted alike: {-plain:.1f} bits"),
            line("null", "a proven bound: the message is random in the key, whatever the suspect"),
        ]
    return [line("null", "exact: the message is random in the key, whatever the suspect is")]


def _probability(value: float) -> str:
    return "> 0.999" if value > 0.999 else f"{value:.3f}"


def table(rows: Sequence[Sequence[Any]], *, head: Sequence[str]) -> list[str]:  # Any: cells
    """Return lines of a plain table with aligned columns.

    Example:
        >>> table([["a", 1]], head=["name", "n"])
        ['name  n', 'a     1']
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
