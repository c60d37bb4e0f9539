"""What commands print: labelled lines for people, or exactly one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

from earmark import policy, stats
from earmark.codec import Json
from earmark.records import Evidence, Outcome, Verdict
from earmark.wording import counted

T = TypeVar("T")

EXIT: dict[Outcome, int] = {Outcome.SHOWN: 0, Outcome.NOT_SHOWN: 1, Outcome.INCONCLUSIVE: 3}
"""Exit code of a verdict command."""

_SCHEMA = "earmark/cli/1"
_MORE = {
    "adi": "--set count=... above what it was",
    "deepsigns": "--set bits=... above what it was",
    "deepsigns-blackbox": "--set count=... above what it was",
    "deepwater": "--set weights_per_bit=... below what it was, or carrier=... for more tensors",
    "mtlsign": "--set triggers=... above what it was",
    "uchida": "--set bits=... above what it was",
}


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


def emit_outcome(
    command: str,
    lines: Sequence[str],
    payload: Mapping[str, Json],
    outcome: Outcome,
    *,
    as_json: bool,
) -> int:
    """Print what a verdict command found; return the exit code of its outcome."""
    code = EXIT[outcome]
    return emit(command, lines, payload, as_json=as_json, outcome=outcome.value, code=code)


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
        line("power", _power(verdict, evidence)),
    ]
    lines += [line("note", note) for note in evidence.notes]
    return lines


def _null_lines(verdict: Verdict, evidence: Evidence, inexact: str) -> list[str]:
    """Say what the chance rests on: the plain count, or a reading that weighs the answers."""
    if inexact:
        return [line("null", f"none that is exact: {inexact}")]
    if said := weighed(verdict, evidence):
        return [
            line("reading", said),
            line("null", "a proven bound: the message is random in the key, whatever the suspect"),
        ]
    return [line("null", "exact: the message is random in the key, whatever the suspect is")]


def weighed(verdict: Verdict, evidence: Evidence) -> str:
    """Say what was weighed for the evidence, or nothing where the answers were just counted."""
    if not policy.weighed(verdict, evidence):
        return ""
    what = "answers weighed by their margins; counted alike"
    if evidence.signs > evidence.trials:
        what = f"the {evidence.signs:,} keyed signs behind the answers, weighed; the answers alone"
    return f"{what}: {policy.by_count(evidence):.1f} bits"


def too_small(verdict: Verdict, evidence: Evidence) -> str:
    """Say that a mark has too few answers for what is asked for, or nothing."""
    if not policy.too_small(verdict, evidence):
        return ""
    most = policy.by_count(evidence, evidence.trials)
    text = (
        f"{counted(evidence.trials, 'answer')}, were all of them right, would give {most:.1f} bits "
        f"by count, of {verdict.threshold:g} asked for"
    )
    return text if evidence.score is None else f"{text}; only the weighed reading could give more"


def more_answers(scheme: str) -> str:
    """Say where a key with more answers comes from."""
    return _MORE.get(scheme, "a larger network or another scheme")


def _power(verdict: Verdict, evidence: Evidence) -> str:
    low, high = verdict.power < 0.001, verdict.power > 0.999
    said = "< 0.001" if low else "> 0.999" if high else f"{verdict.power:.3f}"
    return (
        f"{'' if evidence.score is None else 'by count alone, '}a model that gives "
        f"{verdict.power_rate:.0%} of the key's answers is shown with probability {said}"
    )


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
