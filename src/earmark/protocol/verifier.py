"""Measure a question in a process of its own, and turn what comes back into a finding."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import earmark
from earmark import codec
from earmark.errors import EarmarkError, HostError, RecordError, RunError
from earmark.protocol.messages import Finding
from earmark.protocol.sandbox import Job
from earmark.protocol.voting import Question

_MAX_ANSWER = 1 << 16
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from earmark.protocol.sandbox import main
sys.exit(main())
"""
"""Runs the sandbox of this very package, whatever else is installed: what `code_digest` names."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one measurement may use.

    Args:
        memory: Bytes of address space.
        seconds: Processor seconds; the wall clock is given four times as much.
    """

    memory: int = 4 << 30
    seconds: int = 120


MEASURING = (
    "codec.py",
    "errors.py",
    "files.py",
    "records.py",
    "registry.py",
    "task.py",
    "hosts",
    "keys",
    "schemes",
    "stats",
    "protocol/disclosure.py",
    "protocol/sandbox.py",
)
"""The part of the package that a measurement runs."""


@cache
def code_digest() -> str:
    """Return SHA-256 over the installed code that measures: what a community may pin."""
    root = Path(earmark.__file__).parent
    chosen = sorted(path for name in MEASURING for path in _sources(root / name))
    listed = {str(path.relative_to(root)): codec.digest(path.read_bytes()) for path in chosen}
    return codec.digest(b"earmark/verifier/1\n" + codec.canonical({**listed}))


def _sources(path: Path) -> Iterator[Path]:
    return path.rglob("*.py") if path.is_dir() else iter((path,))


def ask(question: Question, job: Job) -> Finding:
    """Run one job and return the finding for a question.

    Args:
        question: What is asked.
        job: The files and limits.

    Raises:
        HostError: The files cannot be measured within the limits, or are not what they should be.
        RunError: The sandbox was told to stop, as where a node is; it says nothing of the files.
    """
    answer = run(job)
    if "error" in answer:
        raise HostError(
            f"A model cannot be measured: {answer['error']} {answer.get('message', '')}"
        )
    try:
        return Finding(
            question.commitment,
            question.model,
            int(str(answer["hits"])),
            int(str(answer["trials"])),
            Fraction(str(answer["chance"])),
            int(str(answer["forms"])),
        )
    except (KeyError, ValueError, EarmarkError) as error:
        raise HostError("The sandbox gave no valid answer.") from error


def run(job: Job) -> dict[str, object]:
    """Run the sandbox on a job; what goes wrong is in the answer's ``error``."""
    keep = {
        name: os.environ[name] for name in ("PATH", "LANG", "EARMARK_DATA") if name in os.environ
    }
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    threads = dict.fromkeys(names, "1")
    command = [sys.executable, "-I", "-B", "-c", _PROGRAM, str(Path(earmark.__file__).parents[1])]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(  # noqa: S603 - our own module, fixed arguments
                command,
                input=job.canonical(),
                capture_output=True,
                cwd=folder,
                env={**keep, **threads, "HOME": folder},
                timeout=4 * job.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": "time", "message": "The files need more time than is allowed."}
    if -done.returncode in (signal.SIGINT, signal.SIGTERM):
        raise RunError("A measurement was stopped before it was done.")
    if done.returncode != 0 or len(done.stdout) > _MAX_ANSWER:
        return {"error": "died", "message": f"The sandbox ended with {done.returncode}."}
    try:
        answer = codec.read_json(done.stdout)
    except (RecordError, ValueError):
        return {"error": "answer", "message": "The sandbox wrote something else."}
    return answer if isinstance(answer, dict) else {"error": "answer"}
