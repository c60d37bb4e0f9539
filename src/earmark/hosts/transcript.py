"""What was asked of a remote suspect and what it answered: one JSON line a question.

A line is appended and flushed to disk before the answer is used, so that an interrupted
measurement goes on where it stopped, and nobody is asked twice. A torn last line is dropped. The
first line says who is asked and, if it is fixed, the value that orders the questions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earmark import codec
from earmark.errors import FileError, FormatError, OutputError, RecordError, UsageError
from earmark.records import now

FORMAT = "earmark/transcript/1"
_NONCE = re.compile(r"[0-9a-f]{64}")


class Transcript:
    """Questions, by the digest of the input, with their answers.

    Args:
        path: The file; null keeps the transcript in memory only.
        source: What is asked, for example an URL with the adapter's digest; a file that was begun
            with another source is refused.
        nonce: Value that orders the questions; a file that was begun keeps its own.

    Raises:
        FileError: The file cannot be read.
        FormatError: It is no transcript, or damaged before its last line.
        UsageError: It belongs to another source.

    Example:
        >>> transcript = Transcript(None, "a model")
        >>> transcript.add("00" * 32, 7)
        >>> transcript.answers
        {'0000000000000000000000000000000000000000000000000000000000000000': 7}
    """

    def __init__(self, path: str | Path | None, source: str, *, nonce: str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.source, self.nonce = source, nonce
        self.answers: dict[str, int] = {}
        if self.path is not None and self.path.exists():
            self._resume(self.path)
        else:
            order = {} if nonce is None else {"nonce": nonce}
            self._write({"format": FORMAT, "source": source, "begun": now()} | order)

    def add(self, question: str, label: int, extra: Mapping[str, Any] | None = None) -> None:
        """Record one answer.

        Args:
            question: Digest of the input.
            label: The answer.
            extra: Further facts, plain JSON: status, tries, what came back.

        Raises:
            OutputError: The file cannot be written.
        """
        body = {"input": question, "label": label, "at": now(), **dict(extra or {})}
        self._write(body)
        self.answers[question] = label

    def digest(self) -> str:
        """Return a digest of the source and of all answers, independent of their order."""
        return _digest(self.source, self.answers)

    def _write(self, body: Mapping[str, Any]) -> None:  # Any: plain JSON
        if self.path is None:
            return
        line = json.dumps(body, sort_keys=True).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"Transcript '{self.path}' cannot be written: {error.strerror}.",
                hint="Choose a folder that exists and that you may write to.",
            ) from error

    def _resume(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise FileError(f"Transcript '{path}' cannot be read: {error.strerror}.") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        head, found = _parse(whole, f"File '{path}'")
        self.answers |= found
        self.nonce = head.get("nonce", self.nonce)
        if head.get("source") != self.source:
            raise UsageError(
                f"Transcript '{path}' was begun with another suspect or adapter.",
                expected=self.source,
                hint="Choose another file for this suspect.",
            )
        if len(whole) != len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))


def summary(data: bytes) -> tuple[str, str, int]:
    """Return what a whole transcript says: its source, its digest, and its number of answers.

    Raises:
        FormatError: It is no transcript, or damaged.
    """
    head, found = _parse(data, "This file")
    source = str(head.get("source"))
    return source, _digest(source, found), len(found)


def _digest(source: str, answers: Mapping[str, int]) -> str:
    body: dict[str, codec.Json] = {"source": source, "answers": {**answers}}
    return codec.digest(b"earmark/transcript/1\n" + codec.canonical(body))


def _parse(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, int]]:  # Any: JSON
    try:
        lines = [codec.read_json(line) for line in data.splitlines()]
        head = lines[0] if lines else {}
        known = head.get("format") == FORMAT
        found = {str(line["input"]): _label(line["label"]) for line in lines[1:]}
        _nonce(head.get("nonce"))
    except (ValueError, KeyError, TypeError, AttributeError, RecordError) as error:
        raise FormatError(
            f"{name} is no whole transcript: {error}.", expected=f"Format {FORMAT}."
        ) from error
    if not known:
        raise FormatError(f"{name} is no transcript.", expected=f"Format {FORMAT}.")
    return head, found


def _nonce(value: object) -> None:
    if value is not None and not (isinstance(value, str) and _NONCE.fullmatch(value)):
        raise ValueError(f"its nonce is {str(value)[:80]!r}")


def _label(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise ValueError(f"an answer is {str(value)[:80]!r}")
    return value
