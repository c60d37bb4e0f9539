"""Jobs of an executor that load nothing heavy, so that their workers start at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def double(value):
    if value < 0:
        raise ValueError("negative")
    return 2 * value, os.getpid()


def die_once(job):
    """Kill the own worker on the first attempt at job 2."""
    folder, value = job
    marker = Path(folder) / "died"
    if value == 2 and not marker.exists():
        marker.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die(value):
    if value == 1:
        os._exit(7)
    return value
