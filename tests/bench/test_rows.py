"""Rows survive crashes, and changed ones are found."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from earmark.bench import rows
from earmark.errors import FormatError, OutputError


def test_rows_come_back_as_they_were_written(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    written = [row(), row("noise", hits=60), row("noise", seed=1, error="E404  It broke.")]
    for item in written:
        rows.append(path, item)
    assert list(rows.read(path).values()) == written
    assert rows.read(tmp_path / "absent") == {}


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_line_is_passed_over_and_closed(tmp_path, row, cut):
    path = tmp_path / "rows.jsonl"
    rows.append(path, row())
    rows.append(path, row("noise"))
    os.truncate(path, path.stat().st_size - cut)
    kept = rows.read(path)
    assert len(kept) == (2 if cut == 1 else 1)
    rows.append(path, row("prune"))
    assert len(rows.read(path)) == len(kept) + 1


def test_a_changed_line_is_refused(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    rows.append(path, row(seed=4))
    text = path.read_text()
    path.write_text(text.replace('"seed":4', '"seed":5', 1))
    with pytest.raises(FormatError, match="does not match its digest"):
        rows.read(path)
    path.write_text('{"digest": "x"}\n')
    with pytest.raises(FormatError, match="no row"):
        rows.read(path)


def test_says_where_it_cannot_write(tmp_path, row):
    with pytest.raises(OutputError):
        rows.append(tmp_path / "absent" / "rows.jsonl", row())


def _many(path, make, start):
    for seed in range(start, start + 25):
        rows.append(path, make(seed=seed))


def test_writers_at_the_same_time_tear_nothing(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("fork")
    crew = [context.Process(target=_many, args=(path, row, 100 * i)) for i in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert len(rows.read(path)) == 75
