"""Measure the protocol: witnessed appends, reading messages, resolving claims, one sandboxed count.

Run ``python benchmarks/protocol.py``; it appends rows to ``benchmarks/rows/protocol.jsonl``.
Process time is given beside the wall clock, which on a shared machine says little.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "protocol"))

from world import Party, World, sha

from earmark.hosts.arrays import ArrayHost
from earmark.hosts.files import FilesHost, write_tensors
from earmark.ledger.log import SqliteLedger
from earmark.ledger.note import COSIGNATURE, SignerKey, VerifierKey
from earmark.ledger.service import LogService, Mirror
from earmark.ledger.witness import Quorum, Witness
from earmark.protocol import messages as m
from earmark.protocol import verifier
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.resolve import resolve
from earmark.protocol.sandbox import Job
from earmark.protocol.voting import Question
from earmark.schemes.deepwater import DeepWater

ROWS = Path(__file__).parent / "rows" / "protocol.jsonl"


def measured(what: str, count: int, work: Callable[[], object], **values: object) -> None:
    """Run some work and append a row with its times."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu += after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    row = {
        "benchmark": "protocol",
        "what": what,
        **values,
        "count": count,
        "seconds": round(wall, 4),
        "cpu_ms_each": round(1000 * cpu / count, 4),
        "versions": {"earmark": version("earmark"), "python": platform.python_version()},
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
    }
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in (4, 7):
            witnessed(folder, n)
        claims()
        sandboxed(folder)
        for width in (128, 1024):
            voted(folder / f"node-{width}", width)


def witnessed(folder: Path, n: int) -> None:
    keys = [SignerKey.generate(f"w{i}/w", kind=COSIGNATURE) for i in range(n)]
    with SqliteLedger.create(folder / f"{n}.sqlite", "log.example/bench") as ledger:
        log = VerifierKey.parse(ledger.vkey)
        made = [Witness.create(folder / f"{n}-{i}.w", key, [log]) for i, key in enumerate(keys)]
        quorum = Quorum.of([key.verifier for key in keys])
        asks = {str(one.verifier): one.add for one in made}
        service = LogService(ledger, folder / f"{n}.notes", quorum, asks)
        count = 100
        about = {"witnesses": n, "threshold": quorum.threshold, "durable": True}
        measured(
            "append with witnesses in process",
            count,
            lambda: [service.append(b'{"n":%d}' % i) for i in range(count)],
            **about,
        )
        rows = service.page(0)
        measured("derive the log again", count, lambda: Mirror(log, quorum).take(rows), **about)
        service.close()


def claims() -> None:
    for voters in (4, 7, 13):
        world, owner = World(voters=voters), Party("owner")
        world.register(owner, "M")
        world.truth.add(("owner", "S"))
        for _ in range(8):
            world.vote(world.claim(owner, "S"))
        size = len(world.entries)
        measured(
            "resolve from the first record",
            size,
            partial(resolve, world.entries, world.rules),
            voters=voters,
            claims=8,
        )
    records = [entry.record for entry in world.entries]
    measured("open a message", len(records), lambda: [m.open_message(item) for item in records])


def sandboxed(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for width in (128, 1024):
        weights = {f"fc{i}.weight": rng.normal(size=(width, width)).astype("f4") for i in range(4)}
        scheme = DeepWater(weights_per_bit=64)
        key = scheme.new_key(ArrayHost(weights), secret=bytes(32)).bind("cd" * 32)
        write_tensors(folder / "m.safetensors", dict(scheme.stamp(ArrayHost(weights), key).tensors))
        (folder / "d").write_bytes(DisclosureFile.of(key, (0, 1, 2)).canonical())
        job = Job(
            opening=key.opening("ab" * 32),
            disclosure=str(folder / "d"),
            shards=(0, 1, 2),
            beacon=key.beacon,
            suspect=str(folder / "m.safetensors"),
            inputs=None,
            task=None,
            nonce=sha("n"),
            memory=4 << 30,
            seconds=60,
        )
        count = 3
        question = Question(sha(1), sha(2), sha(3))
        measured(
            "answer one question in the sandbox",
            count,
            partial(asked, question, job, count),
            parameters=4 * width * width,
            scheme="deepwater",
        )
        (folder / "m.safetensors").unlink()


def voted(folder: Path, width: int) -> None:
    """Let one node verify claims from the first to the last step, beside counting alone."""
    from earmark.policy import Policy
    from earmark.protocol import community
    from earmark.protocol.history import genesis_digest
    from earmark.protocol.node import Node
    from earmark.protocol.rules import Rules

    card = community.init_node(folder, operator="lab", url="http://127.0.0.1:9")
    members = (m.Member("lab", card.member),)
    rules = Rules("example.org/bench", members, Policy.at("trace"), draw_seconds=600)
    made = community.found(folder, [card], rules)
    community.join(folder, made)
    node, owner = Node(folder), Party("owner")

    def tell(cls: type[m.Message], **body: object) -> None:
        after = genesis_digest(rules.domain)
        if node.mirror.entries:
            after = m.checkpoint_digest(node.mirror.entries[-1].checkpoint.body.text)
        head = {"domain": rules.domain, "sender": owner.public, "nonce": m.fresh_nonce()}
        message = cls(**head, after=after, **body)  # type: ignore[arg-type]
        node.append(message.sign(owner.key).encode())

    rng = np.random.default_rng(0)
    weights = {f"fc{i}.weight": rng.normal(size=(width, width)).astype("f4") for i in range(4)}
    scheme = DeepWater(weights_per_bit=64)
    key = scheme.new_key(ArrayHost(weights), secret=bytes(32))
    opening = key.opening(owner.public)
    node.step()
    tell(m.Commit, commitment=opening.commitment(), recovery=None)
    node.step()
    node.step()
    value = node.history.beacon(node.history.commits[opening.commitment()][0])
    assert value is not None
    bound = key.bind(value)
    marked = dict(scheme.stamp(ArrayHost(weights), bound).tensors)
    models = []
    for i in range(6):
        noisy = {name: item + 0.01 * i * item.std() for name, item in marked.items()}
        write_tensors(folder / f"{i}.safetensors", noisy)
        models.append(node.blobs.put((folder / f"{i}.safetensors").read_bytes()))
    about = {"commitment": opening.commitment(), "model": models[0], "beacon": value}
    tell(m.Publish, files={"m": models[0]}, license="", where="", **about)
    count = len(models) - 1

    def verified() -> None:
        for i in range(count):
            disclosure = node.blobs.put(DisclosureFile.of(bound, (i,)).canonical())
            tell(
                m.Claim,
                opening=opening,
                suspect=models[1 + i],
                shards=(i,),
                disclosure=disclosure,
                inputs=None,
            )
        while sum(item.closed for item in node.resolution().claims) < count:
            node.step()
            node.work()

    def counted() -> None:
        for i in range(count):
            disclosed = DisclosureFile.of(bound, (i,)).disclosure(opening)
            for model in (models[1 + i], models[0]):
                scheme.measure(FilesHost(node.blobs.folder / model), disclosed, nonce=sha("n"))

    size = {"parameters": 4 * width * width, "scheme": "deepwater", "questions": 2}
    measured("count alone, in process", count, counted, **size)
    measured("verify a claim and vote, one node", count, verified, **size)
    node.close()


def asked(question: Question, job: Job, count: int) -> None:
    for _ in range(count):
        verifier.ask(question, job)


if __name__ == "__main__":
    main()
