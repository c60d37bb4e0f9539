"""The executor port: run many jobs and give each result as soon as it is there.

Two engines: one after another in this process, or on worker processes of this machine. A worker
that dies takes no finished result along: its job is tried again on a new worker, and given up with
a reason when that dies too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from earmark.errors import UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """A job that gave no result.

    Args:
        reason: Why, one sentence.
    """

    reason: str


class Executor(Protocol):
    """What an engine offers."""

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | Lost]]:
        """Run `work` on every job; yield (position of the job, result) in any order."""


class Inline:
    """Run jobs one after another in this process.

    Example:
        >>> list(Inline().run(abs, [-1, -2]))
        [(0, 1), (1, 2)]
    """

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | Lost]]:
        """Run every job in order."""
        for index, job in enumerate(jobs):
            try:
                result: Result | Lost = work(job)
            except Exception as error:  # noqa: BLE001 - one job's failure must not stop the others
                result = Lost(f"{type(error).__name__}: {error}")
            yield index, result


@dataclass
class _Worker:
    process: Any  # Any: a process of the spawn context
    pipe: Connection
    job: tuple[int, int] | None = None  # position and attempt


class Processes:
    """Run jobs on worker processes, one thread each.

    Args:
        workers: Number of processes.
        attempts: How often a job is tried whose worker dies.

    Raises:
        UsageError: No worker or no attempt.
    """

    def __init__(self, workers: int, *, attempts: int = 2) -> None:
        if workers < 1 or attempts < 1:
            raise UsageError(f"{workers} workers with {attempts} attempts.", expected="At least 1.")
        self.workers = workers
        self.attempts = attempts

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | Lost]]:
        """Run every job; `work` and the jobs must be picklable."""
        todo = deque((index, 1) for index in range(len(jobs)))
        crew: list[_Worker] = []
        try:
            while todo or any(worker.job for worker in crew):
                idle = [worker for worker in crew if worker.job is None]
                while len(crew) < self.workers and len(idle) < len(todo):
                    crew.append(_hire())
                    idle.append(crew[-1])
                for worker in idle:
                    if todo:
                        worker.job = todo.popleft()
                        _hand(worker, work, jobs[worker.job[0]])
                yield from self._collect(crew, todo)
        finally:
            for worker in crew:
                worker.process.terminate()
            for worker in crew:
                worker.process.join()
                worker.pipe.close()

    def _collect(
        self, crew: list[_Worker], todo: deque[tuple[int, int]]
    ) -> Iterator[tuple[int, Any]]:  # Any: results of any type
        """Wait until some worker has answered or died, and yield what is finished."""
        busy = [worker for worker in crew if worker.job is not None]
        wait([worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy])
        for worker in busy:
            assert worker.job is not None
            index, attempt = worker.job
            if worker.pipe.poll():
                with contextlib.suppress(EOFError, OSError):
                    result = worker.pipe.recv()
                    worker.job = None
                    yield index, result
                    continue
            if not worker.process.is_alive():
                crew.remove(worker)
                worker.process.join()
                worker.pipe.close()
                if attempt < self.attempts:
                    todo.append((index, attempt + 1))
                else:
                    code = worker.process.exitcode
                    yield index, Lost(f"The worker died {attempt} times, last with code {code}.")


def _hire() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    theirs.close()
    return _Worker(process, ours)


def _hand(worker: _Worker, work: Callable[[Any], Any], job: Any) -> None:  # Any: any job
    with contextlib.suppress(BrokenPipeError, OSError):  # found dead when results are collected
        worker.pipe.send((work, job))


def _serve(pipe: Connection) -> None:
    """Answer jobs until the pipe closes; an interrupt is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            work, job = pipe.recv()
        except EOFError:
            return
        try:
            result: Any = work(job)  # Any: any result
        except Exception as error:  # noqa: BLE001 - one job's failure must not stop the others
            result = Lost(f"{type(error).__name__}: {error}")
        pipe.send(result)
