"""What the tables share: rows from their files, and medians with ranges."""

import json
import statistics
from functools import cache
from pathlib import Path

ROWS = Path(__file__).resolve().parent.parent / "rows"


def rows_of(name: str) -> list[dict]:
    """Return the rows of one file, the caller's own, or none where nothing was measured yet."""
    return [dict(row) for row in _parsed(ROWS / f"{name}.jsonl")]


@cache
def _parsed(path: Path) -> list[dict]:
    """Parse a file once: the tables ask for the same ones many times."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(values: list[float], digits: int) -> str:
    """Return the median, with the range in brackets where there is one."""
    middle = statistics.median(values)
    if min(values) == max(values):
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
