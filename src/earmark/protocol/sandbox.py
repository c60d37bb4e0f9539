"""The process in which a node measures strangers' files; started by `verifier`, fed on stdin.

Nothing of the claimant's is executed: weights are safetensors, the key is JSON, the scheme is the
node's own installed one, and a model class, where a scheme needs one, comes from a task file that
lies on the node and whose digest the node was told. Limits on memory, processor time and files are
set before anything is read; network, processes and writing are refused by an audit hook, and by an
empty network namespace where the system allows one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from earmark import codec, files
from earmark.errors import CarrierError, EarmarkError, UsageError
from earmark.records import Access, Layout, Opening, Record

_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.fork", "os.system")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


@dataclass(frozen=True, slots=True)
class Job(Record):
    """One question for the sandbox.

    Args:
        opening: Opens the commitment.
        disclosure: Path of the file with the revealed shards.
        shards: Shards that it must reveal.
        beacon: The value that it must be bound to.
        suspect: Path of the model's file.
        inputs: Path of the key's inputs, or null.
        task: Path of a task file on this node, or null.
        nonce: What splits the trials.
        memory: Bytes of address space.
        seconds: Processor seconds.
    """

    SCHEMA: ClassVar[str] = "earmark/job/1"
    opening: Opening
    disclosure: str
    shards: tuple[int, ...]
    beacon: str | None
    suspect: str
    inputs: str | None
    task: str | None
    nonce: str
    memory: int
    seconds: int


def confine(memory: int, seconds: int) -> None:
    """Limit this process for good.

    Args:
        memory: Bytes of address space.
        seconds: Processor seconds.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None, use_errno=True)
        library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    for name, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(name, (value, value))


def forbid() -> None:
    """Refuse network, new processes and writing from here on."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:  # Any: as the interpreter passes it
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"'{event}' is not allowed here.")
        if event == "open" and isinstance(arguments[2], int):
            writing = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writing and arguments[0] != os.devnull:
                raise PermissionError("Writing is not allowed here.")

    sys.addaudithook(hook)


def measure(job: Job) -> dict[str, codec.Json]:
    """Answer a job: the counts, or that there is nothing to measure."""
    from earmark import registry
    from earmark.protocol.disclosure import DisclosureFile

    made = DisclosureFile.from_bytes(files.read_bytes(job.disclosure, limit=1 << 24))
    made.require(job.shards, job.beacon)
    layout = job.opening.layout
    scheme = registry.scheme(layout.scheme)
    inputs = None if job.inputs is None else _inputs(job.inputs, layout)
    key = made.disclosure(job.opening, inputs=inputs)
    try:
        evidence = scheme.measure(_host(scheme, job), key, nonce=job.nonce)
    except CarrierError as error:
        return {"hits": 0, "trials": 0, "chance": "1/2", "forms": 1, "note": error.what}
    return {
        "hits": evidence.hits,
        "trials": evidence.trials,
        "chance": f"{evidence.chance.numerator}/{evidence.chance.denominator}",
        "forms": evidence.tried.forms,
        "note": "",
    }


def _inputs(path: str, layout: Layout) -> Any:  # Any: a tree of arrays
    from earmark.hosts import batches
    from earmark.protocol.disclosure import by_shard

    tree = batches.load(Path(path))
    if not by_shard(layout) and batches.tree_digest(tree) != layout.inputs:
        raise UsageError("The key's inputs are not those that were committed to.")
    return tree


def _host(scheme: Any, job: Job) -> Any:  # Any: a Scheme and a Host, loaded late
    from earmark.hosts.files import FilesHost

    if scheme.needs <= {Access.WEIGHTS}:
        return FilesHost(job.suspect)
    if job.task is None:
        raise UsageError(f"This node has no task file for the scheme '{scheme.name}'.")
    from earmark.hosts.suspects import load_suspect
    from earmark.task import load_task

    task = load_task(job.task)
    return task.host(load_suspect(task.model(), job.suspect))


def main() -> int:
    """Read a job from stdin, write one JSON document to stdout."""
    job = Job.from_bytes(sys.stdin.buffer.read(1 << 20))
    confine(job.memory, job.seconds)
    forbid()
    answer: Mapping[str, codec.Json]
    try:
        answer = measure(job)
    except EarmarkError as error:
        answer = {"error": error.code, "message": error.what}
    except MemoryError:
        answer = {"error": "memory", "message": "The files need more memory than is allowed."}
    except Exception as error:  # noqa: BLE001 - whatever a hostile file provokes ends here
        answer = {"error": type(error).__name__, "message": str(error)[:500]}
    sys.stdout.write(json.dumps(answer))
    return 0
