"""Hostile files meet the sandbox: refused within its limits, nothing executed, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from world import sha

from earmark import codec
from earmark.errors import HostError, RunError
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.files import write_tensors
from earmark.protocol import verifier
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.sandbox import Job
from earmark.protocol.voting import Question
from earmark.schemes.deepwater import DeepWater

OWNER = "ab" * 32
QUESTION = Question(sha(1), sha(2), sha(3))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    weights = {f"fc{i}.weight": rng.normal(size=(64, 64)).astype(np.float32) for i in range(3)} | {
        "head.weight": rng.normal(size=(10, 64)).astype(np.float32)
    }
    scheme = DeepWater(weights_per_bit=64)
    key = scheme.new_key(ArrayHost(weights), secret=bytes(32)).bind("cd" * 32)
    write_tensors(
        folder / "marked.safetensors", dict(scheme.stamp(ArrayHost(weights), key).tensors)
    )
    write_tensors(folder / "plain.safetensors", weights)
    (folder / "disclosure").write_bytes(DisclosureFile.of(key, (0, 1, 2)).canonical())
    return Job(
        opening=key.opening(OWNER),
        disclosure=str(folder / "disclosure"),
        shards=(0, 1, 2),
        beacon=key.beacon,
        suspect=str(folder / "marked.safetensors"),
        inputs=None,
        task=None,
        nonce=sha("nonce"),
        memory=2 << 30,
        seconds=20,
    )


def beside(job, name):
    return str(Path(job.suspect).with_name(name))


def test_it_counts_what_is_there(job):
    marked = verifier.ask(QUESTION, job)
    plain = verifier.ask(QUESTION, replace(job, suspect=beside(job, "plain.safetensors")))
    assert marked.trials == plain.trials == 72
    assert marked.hits == 72
    assert plain.hits < 55


def test_the_sandbox_runs_this_very_package(job, tmp_path, monkeypatch):
    """Not another one that happens to be installed: here a copy that counts nothing."""
    import shutil

    import earmark

    copy = tmp_path / "earmark"
    shutil.copytree(Path(earmark.__file__).parent, copy)
    (copy / "protocol" / "sandbox.py").write_text("def main():\n    print('{}')\n    return 0\n")
    monkeypatch.setattr(earmark, "__file__", str(copy / "__init__.py"))
    assert verifier.run(job) == {}
    code = verifier.code_digest.__wrapped__()
    monkeypatch.undo()
    assert code != verifier.code_digest.__wrapped__()


def test_a_model_without_the_carrier_is_unmeasured(job, tmp_path):
    write_tensors(tmp_path / "other.safetensors", {"w": np.ones((64, 64), np.float32)})
    found = verifier.ask(QUESTION, replace(job, suspect=str(tmp_path / "other.safetensors")))
    assert (found.hits, found.trials) == (0, 0)


TASK = """
from earmark.bench import zoo
from earmark.bench.data import load

recipe = {"epochs": 4, "lr": 0.05}
loss = zoo.cross_entropy


def model():
    return zoo.SmallCnn((1, 8, 8), 10)


def batches(split, seed=0):
    return load("digits").batches(split, size=64, seed=seed)


def evaluate(network):
    return zoo.accuracy(network, batches("test"))
"""


@pytest.fixture(scope="module")
def read_by_activations(tmp_path_factory):
    """An MTL-Sign claim on three of four shards: needs a model's class, and shows no more."""
    from earmark.hosts import batches
    from earmark.hosts.files import save_release
    from earmark.protocol.disclosure import inputs_of
    from earmark.schemes.mtlsign import MtlSign
    from earmark.task import load_task
    from earmark.training import train

    folder = tmp_path_factory.mktemp("activations")
    (folder / "task.py").write_text(TASK)
    task = load_task(folder / "task.py")
    scheme = MtlSign(triggers=256, share=0.25, settle=0)
    candidates = batches.join(list(task.stream("train", 0))[:16])
    key = scheme.new_key(task.host(task.model()), inputs=candidates, secret=bytes(32))
    key = key.bind("ab" * 32)
    model = task.model()
    with scheme.attach(model, key) as mark:
        save_release(train(task, seed=1, model=model, mark=mark).model, folder / "m.safetensors")
    (folder / "disclosure").write_bytes(DisclosureFile.of(key, (2, 0, 1)).canonical())
    (folder / "inputs").write_bytes(inputs_of(key, (2, 0, 1)))
    assert batches.size(batches.load(folder / "inputs")) == 192
    return Job(
        opening=key.opening(OWNER),
        disclosure=str(folder / "disclosure"),
        shards=(0, 1, 2),
        beacon=key.beacon,
        suspect=str(folder / "m.safetensors"),
        inputs=str(folder / "inputs"),
        task=str(folder / "task.py"),
        nonce=sha("nonce"),
        memory=4 << 30,
        seconds=60,
    )


def test_a_scheme_that_reads_activations_is_measured_within_the_limits(read_by_activations):
    found = verifier.ask(QUESTION, read_by_activations)
    assert found.trials >= 80
    assert found.hits > 0.8 * found.trials
    with pytest.raises(HostError, match="no task file"):
        verifier.ask(QUESTION, replace(read_by_activations, task=None))


def test_inputs_must_be_those_of_the_shards(read_by_activations, tmp_path):
    from earmark.hosts import batches

    job = read_by_activations
    tree = batches.load(Path(job.inputs))
    batches.save(batches.take(tree, list(range(191, -1, -1))), tmp_path / "reversed")
    with pytest.raises(HostError, match="E305"):
        verifier.ask(QUESTION, replace(job, inputs=str(tmp_path / "reversed")))


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/earmark-was-here",)


def tensor_file(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


HOSTILE = {
    "pickle": pickle.dumps(Bomb()),
    "empty": b"",
    "huge header": struct.pack("<Q", 1 << 62) + b"{}",
    "huge tensor": tensor_file(
        {"fc0.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ),
    "lying shape": tensor_file(
        {"fc0.weight": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "deep header": struct.pack("<Q", 60_000) + b"[" * 60_000,
    "zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_models_are_refused_within_the_limits(job, tmp_path, name):
    path = tmp_path / "suspect.safetensors"
    path.write_bytes(HOSTILE[name])
    tight = replace(job, suspect=str(path), memory=1 << 30, seconds=10)
    with pytest.raises(HostError):
        verifier.ask(QUESTION, tight)
    assert not Path("/tmp/earmark-was-here").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["suspect.safetensors"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sandbox_that_was_stopped_says_nothing_of_its_files(job, monkeypatch, number):
    """Who stops a node stops its sandboxes too; a ballot must not come of that."""
    program = f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    monkeypatch.setattr(verifier, "_PROGRAM", program)
    with pytest.raises(RunError) as caught:
        verifier.ask(QUESTION, job)
    assert isinstance(caught.value, HostError) is (number == signal.SIGKILL)


def test_a_path_is_only_ever_a_digest(job, tmp_path):
    """Names that a claim could give do not reach the file system; the store knows digests alone."""
    from earmark.ledger.service import BlobStore

    store = BlobStore(tmp_path / "blobs")
    digest = store.put(b"a model")
    assert store.path(digest).read_bytes() == b"a model"
    (tmp_path / "secret").write_bytes(b"s")
    for name in ("../secret", "..%2fsecret", digest + "/../../secret", digest.upper(), "", "."):
        assert store.path(name) is None


def test_nan_never_counts(job, tmp_path):
    weights = {f"fc{i}.weight": np.full((64, 64), np.nan, np.float32) for i in range(3)}
    write_tensors(tmp_path / "nan.safetensors", weights)
    answer = verifier.run(replace(job, suspect=str(tmp_path / "nan.safetensors")))
    assert "error" in answer or int(answer["hits"]) < 55


def test_memory_and_time_are_limited(job):
    answer = verifier.run(replace(job, memory=80 << 20))
    assert "error" in answer
    begin = time.monotonic()
    assert "error" in verifier.run(replace(job, suspect="/dev/zero", seconds=2))
    assert time.monotonic() - begin < 30


def test_a_disclosure_must_be_the_one_that_was_claimed(job, tmp_path):
    for changes in ({"shards": (0, 1)}, {"beacon": "ee" * 32}):
        with pytest.raises(HostError, match="E305"):
            verifier.ask(QUESTION, replace(job, **changes))
    body = codec.parse(Path(job.disclosure).read_bytes())
    body["shards"][0]["secret"] = "00" * 32
    (tmp_path / "forged").write_bytes(codec.canonical(body))
    with pytest.raises(HostError, match="E305"):
        verifier.ask(QUESTION, replace(job, disclosure=str(tmp_path / "forged")))


def test_the_process_can_neither_write_nor_connect_nor_start_another(job, tmp_path):
    """Run code in the sandbox's own conditions, as a hostile file would if it could."""
    import subprocess
    import sys

    program = """
import os, socket, subprocess, sys
from earmark.protocol.sandbox import confine, forbid
confine(2 << 30, 10); forbid()
tries = {
    "write": lambda: open(sys.argv[1], "w"),
    "connect": lambda: socket.create_connection(("127.0.0.1", 9), 1),
    "run": lambda: subprocess.run(["true"]),
    "shell": lambda: os.system("true"),
    "fork": os.fork,
}
for name, one in tries.items():
    try:
        one()
    except PermissionError:
        print(name, "refused")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split("\n")[:-1] == [
        f"{name} refused" for name in ("write", "connect", "run", "shell", "fork")
    ], done.stderr
    assert list(tmp_path.iterdir()) == []
