"""No acknowledged record is lost: kill -9, failing disks and power cuts at every system call."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from earmark.errors import EarmarkError
from earmark.ledger.log import SqliteLedger, key_path

from .conftest import duplicate, entry

WORKER = Path(__file__).with_name("crash_worker.py")
KILL, TEAR, FAIL_IO, FAIL_SPACE = 1, 2, 3, 4

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def run(*arguments, shim=None):
    environment = dict(os.environ)
    if shim is not None:
        environment["LD_PRELOAD"] = str(shim)
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """Compile the library that counts and breaks system calls."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = WORKER.with_name("faults.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def snapshot(grown, tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    duplicate(grown[0], folder / "ledger.sqlite")
    return folder


def acknowledged(report):
    return [value for value in report["said"] if isinstance(value, int)]


def require_whole(report, *sizes):
    """The ledger is whole, has one of these sizes, goes on, and lost nothing it promised."""
    assert "problem" not in report, report
    assert report["right"]
    assert report["size"] in sizes, report
    assert report["next"] == report["size"]
    for index in acknowledged(report):
        assert index < report["size"], report


def test_an_append_killed_before_any_sql_statement_leaves_all_or_nothing(snapshot, tmp_path):
    reports = run("statements", snapshot, tmp_path / "work")
    assert len(reports) > 10
    for report in reports:
        require_whole(report, 8, 10)
    assert [report["killed"] for report in reports] == [True] * (len(reports) - 1) + [False]


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("action", [KILL, TEAR], ids=["kill", "tear"])
def test_an_append_killed_at_any_system_call_leaves_all_or_nothing(
    shim, snapshot, tmp_path, action, count
):
    reports = run("step", snapshot, tmp_path / "work", action, count, shim=shim)
    assert len(reports) > 10
    for report in reports:
        require_whole(report, 8, 8 + count)
    sizes = [report["size"] for report in reports]
    assert sizes == sorted(sizes)
    assert any(report["hot"] for report in reports), "no crash left a journal to roll back"
    assert sum(report["killed"] for report in reports) == len(reports) - 1


@pytest.mark.parametrize("action", [FAIL_IO, FAIL_SPACE], ids=["EIO", "ENOSPC"])
def test_an_append_whose_system_calls_fail_is_an_error_or_durable(shim, snapshot, tmp_path, action):
    reports = run("step", snapshot, tmp_path / "work", action, 1, shim=shim)
    assert len(reports) > 10
    failed = 0
    for report in reports:
        require_whole(report, 8, 9)
        assert not report["killed"]
        assert not [
            value for value in report["said"] if isinstance(value, dict) and "broken" in value
        ]
        errors = [value["error"] for value in report["said"] if "error" in str(value)]
        assert set(errors) <= {"OutputError", "FileError"}, report
        assert bool(errors) != bool(acknowledged(report)), report
        failed += bool(errors)
    assert failed > 5


@pytest.mark.slow
def test_a_recovery_that_is_killed_at_any_system_call_is_recovered_from(shim, snapshot, tmp_path):
    reports = run("recover", snapshot, tmp_path / "work", shim=shim)
    assert len(reports) > 40
    for report in reports:
        require_whole(report, 8, 9)


def test_a_creation_killed_at_any_system_call_leaves_no_half_ledger(shim, tmp_path):
    reports = run("create", tmp_path / "work", shim=shim)
    assert len(reports) > 8
    assert {report["exists"] for report in reports} == {False, True}
    for report in reports:
        require_whole(report, 0)


@pytest.mark.parametrize("rounds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_writer_killed_at_random_loses_nothing_it_acknowledged(path, rounds):
    reports = run("at_random", path, rounds, 3)
    size = 8
    for report in reports:
        assert "problem" not in report, report
        assert report["right"]
        assert report["acknowledged"] > size
        assert report["size"] >= report["acknowledged"]
        size = report["size"]
    assert len(reports) == rounds


@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_writers_in_two_processes_make_one_history(path, count):
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), "compete", str(path), side, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for side in ("left", "right")
    ]
    for worker in workers:
        assert worker.stderr.readline() == b"ready\n"
    for worker in workers:
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
    places = {}
    for side, worker in zip(("left", "right"), workers, strict=True):
        output, said = worker.communicate()
        assert worker.returncode == 0, said
        places[side] = json.loads(output)
    taken = sorted(places["left"] + places["right"])
    assert taken == list(range(8, 8 + len(taken)))
    assert len(taken) == 2 * (count + count // 2)
    with SqliteLedger.open(path) as ledger:
        found = ledger.check()
        assert found.size == 8 + len(taken)
        assert found.checkpoints == 5 + 2 * count
        for side, mine in places.items():
            for place in mine:
                assert f'"side":"{side}"'.encode() in ledger.get(place)


# -- power cuts: what was not synced may be lost, in part and out of order ----------------------


def read_log(path):
    """Read the recorded system calls as (kind, file name, position, data or size)."""
    data, calls, place = path.read_bytes(), [], 0
    while place < len(data):
        kind, length = chr(data[place]), struct.unpack_from("i", data, place + 1)[0]
        name = data[place + 5 : place + 5 + length].decode()
        at, size = struct.unpack_from("qq", data, place + 5 + length)
        place += 21 + length
        content = data[place : place + size] if kind in "wa" else b""
        place += len(content)
        calls.append((kind, Path(name).name, at, content))
    return calls


def apply(files, call):
    kind, name, at, content = call
    if kind == "w":
        old = files.get(name, b"").ljust(at, b"\x00")
        files[name] = old[:at] + content + old[at + len(content) :]
    elif kind == "t":
        files[name] = files.get(name, b"")[:at].ljust(at, b"\x00")
    elif kind == "u":
        files.pop(name, None)


def after_cut(before, calls, cut):
    """Yield what a disk may hold if the power fails after `cut` calls."""
    safe, pending = dict(before), []
    for number, call in enumerate(calls[:cut]):
        kind, name = call[0], call[1]
        if kind == "s":
            for item in [item for item in pending if item[1][1] == name]:
                apply(safe, item[1])
                pending.remove(item)
        else:
            pending.append((number, call))
    numbers = range(len(pending))
    kept = {frozenset(), frozenset(numbers)}
    kept |= {frozenset([number]) for number in numbers}
    kept |= {frozenset(numbers) - {number} for number in numbers}
    kept |= {frozenset(numbers[:number]) for number in numbers}
    for choice in kept:
        files = dict(safe)
        for number in sorted(choice):
            apply(files, pending[number][1])
        yield files
    for torn in numbers:
        files = dict(safe)
        for number in numbers:
            kind, name, at, content = pending[number][1]
            half = content[: len(content) // 2] if number == torn else content
            apply(files, (kind, name, at, half))
        yield files


def states_after_power_cuts(shim, snapshot, tmp_path, mode):
    """Yield, for each state that a power cut may leave, whether every promise was kept."""
    log = tmp_path / "log"
    promises = run("record", snapshot, tmp_path / "work", log, mode, shim=shim)
    calls = read_log(log)
    before = {"ledger.sqlite": (snapshot / "ledger.sqlite").read_bytes()}
    states, folder = {}, tmp_path / "cut"
    for cut in range(len(calls) + 1):
        promised = 8 + sum(cut >= promise for promise in promises)
        for files in after_cut(before, calls, cut):
            key = tuple(sorted(files.items()))
            states[key] = max(promised, states.get(key, 0))
    folder.mkdir()
    path = folder / "ledger.sqlite"
    shutil.copy(key_path(snapshot / "ledger.sqlite"), key_path(path))
    for state, promised in states.items():
        for old in folder.glob("ledger.sqlite*[!y]"):
            old.unlink()
        for name, content in state:
            (folder / name).write_bytes(content)
        yield survives(path, promised)


def survives(path, promised):
    try:
        with SqliteLedger.open(path) as ledger:
            size = ledger.check().size
            right = all(record == entry(index) for index, record in ledger.scan())
    except EarmarkError:
        return False
    return right and size >= promised


def test_a_power_cut_at_any_system_call_loses_nothing_acknowledged(shim, snapshot, tmp_path):
    kept = list(states_after_power_cuts(shim, snapshot, tmp_path, "synced"))
    assert len(kept) > 60
    assert all(kept)


def test_the_power_cut_simulation_notices_commits_that_do_not_wait_for_the_disk(
    shim, snapshot, tmp_path
):
    assert not all(states_after_power_cuts(shim, snapshot, tmp_path, "unsynced"))
