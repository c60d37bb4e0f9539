"""The demo with a training of two epochs, for a test that stops it after the training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

from earmark.cli.main import run
from earmark.demo import journey


def main(folder, out):
    """Run `earmark demo` on the digits with a shortened task file, kept in a folder."""
    text = Path(journey.demo_task.__file__).read_text()
    short = text.replace("(20, 0.05)", "(2, 0.05)")
    assert short != text
    path = Path(folder) / "short_task.py"
    path.write_text(short)
    journey.demo_task = SimpleNamespace(__file__=str(path))
    return run(["demo", "--data", "digits", "--out", out])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
