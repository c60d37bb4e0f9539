"""Run by the tests in a process of its own: fork children that append, and let them die.

Prints one JSON document. A child is killed, or one of its system calls is made to fail; then this
process opens the ledger as anyone would after a crash and reports what it finds.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from earmark.errors import EarmarkError
from earmark.ledger import store
from earmark.ledger.log import SqliteLedger, key_path

NOTHING, KILL, TEAR, FAIL_IO, FAIL_SPACE = range(5)


def entry(number):
    return b'{"number":%d,"side":"a"}' % number


def arm(folder, at, action, log=-1):
    ctypes.CDLL(None).faults_arm(str(folder).encode() + b"/", ctypes.c_long(at), action, log)


def calls_seen():
    return ctypes.CDLL(None).faults_seen()


def restore(snapshot, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(snapshot, folder)
    return folder / "ledger.sqlite"


def in_child(work):
    """Fork, run `work(say)`, and return what it said and whether it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(lambda value: os.write(writing, json.dumps(value).encode() + b"\n"))
        except BaseException as error:  # noqa: BLE001 - the parent is told
            os.write(writing, json.dumps({"broken": repr(error)}).encode() + b"\n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = [json.loads(line) for line in file]
    _, status = os.waitpid(child, 0)
    return said, os.WIFSIGNALED(status)


def found(path):
    """Open a ledger after a crash, check it, read it, and append to it."""
    hot = path.with_name(path.name + "-journal")
    report = {"hot": hot.exists() and hot.stat().st_size > 0}
    try:
        with SqliteLedger.open(path) as ledger:
            report["size"] = ledger.check().size
            report["right"] = all(record == entry(index) for index, record in ledger.scan())
            report["next"] = ledger.append(entry(report["size"])).index
            ledger.check()
    except EarmarkError as error:
        report["problem"] = str(error)
    return report


def step_through(snapshot, folder, action, count):
    """Append `count` entries again and again, with the fault one system call later each time."""
    reports = []
    for at in range(1, 1000):
        path = restore(snapshot, folder)

        def work(say, path=path, at=at):
            arm(folder, at, action)
            try:
                with SqliteLedger.open(path) as ledger:
                    if count > 1:
                        say(ledger.append_many([entry(8 + k) for k in range(count)])[-1].index)
                    else:
                        say(ledger.append(entry(8)).index)
            except EarmarkError as error:
                say({"error": type(error).__name__})
            done = calls_seen() < at
            arm("", 0, NOTHING)
            say({"done": done})

        said, killed = in_child(work)
        reports.append({"at": at, "said": said, "killed": killed, **found(path)})
        if {"done": True} in said:
            return reports
    raise AssertionError


def recover_through(snapshot, folder):
    """Kill an append at each call, then kill the recovery at each of its calls, then recover."""
    reports = []
    for at in range(1, 1000):
        for again in range(1, 1000):
            path = restore(snapshot, folder)

            def append(say, path=path, at=at):
                arm(folder, at, KILL)
                with SqliteLedger.open(path) as ledger:
                    say(ledger.append(entry(8)).index)
                say({"done": calls_seen() < at})

            def reopen(say, path=path, again=again):
                arm(folder, again, KILL)
                SqliteLedger.open(path).close()
                say({"done": calls_seen() < again})

            said, killed = in_child(append)
            recovered, _ = in_child(reopen)
            reports.append({"at": [at, again], "said": said, "killed": killed, **found(path)})
            if {"done": True} in recovered:
                break
        if {"done": True} in said:
            return reports
    raise AssertionError


def create_through(folder):
    """Kill the creation of a ledger at each of its system calls, then create it."""
    reports = []
    for at in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / "ledger.sqlite"

        def work(say, path=path, at=at):
            arm(folder, at, KILL)
            SqliteLedger.create(path, "log.example/lab").close()
            say({"done": calls_seen() < at})

        said, _ = in_child(work)
        report = {"at": at, "exists": path.exists(), "said": said}
        if not path.exists():
            key_path(path).unlink(missing_ok=True)
            SqliteLedger.create(path, "log.example/lab").close()
        reports.append(report | found(path))
        if {"done": True} in said:
            return reports
    raise AssertionError


def record(snapshot, folder, log, unsynced):
    """Record every system call of two appends; the calls so far are noted at each promise."""
    path = restore(snapshot, folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    promises = []
    with SqliteLedger.open(path) as ledger:
        if unsynced:
            ledger._db.execute("PRAGMA synchronous = OFF")
        arm(folder, 0, NOTHING, handle)
        for number in (8, 9):
            ledger.append(entry(number))
            promises.append(calls_seen())
        arm("", 0, NOTHING)
    return promises


def statements(snapshot, folder):
    """Kill an append just before each of its SQL statements."""
    reports, connect = [], store.connect
    for at in range(1, 1000):
        path = restore(snapshot, folder)

        def work(say, path=path, at=at):
            left = [at]

            def count(statement):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            def traced(*arguments, **options):
                db = connect(*arguments, **options)
                db.set_trace_callback(count)
                return db

            store.connect = traced
            with SqliteLedger.open(path) as ledger:
                say(ledger.append_many([entry(8), entry(9)])[-1].index)
            say({"done": True})

        said, killed = in_child(work)
        reports.append({"at": at, "said": said, "killed": killed, **found(path)})
        if {"done": True} in said:
            return reports
    raise AssertionError


def at_random(path, rounds, seed):
    """Let a child append until it is killed at a random moment, over and over on one ledger."""
    chance, reports = random.Random(seed), []
    for _ in range(rounds):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with SqliteLedger.open(path) as ledger:
                number = len(ledger)
                while True:
                    last = ledger.append_many([entry(number + k) for k in range(1 + number % 3)])
                    number = last[-1].index + 1
                    os.write(writing, b"%d\n" % number)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            first = file.readline()
            time.sleep(chance.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            acknowledged = (first + file.read()).rpartition(b"\n")[0].split(b"\n")[-1]
        os.waitpid(child, 0)
        reports.append({"acknowledged": int(acknowledged), **found(path)})
    return reports


def compete(path, side, count):
    """Append `count` entries one by one, and in batches, and say which places they got."""
    places = []
    with SqliteLedger.open(path) as ledger:
        os.write(2, b"ready\n")
        sys.stdin.readline()
        for number in range(count):
            batch = [b'{"number":%d,"side":"%s"}' % (number, side.encode())] * (1 + number % 2)
            places += [receipt.index for receipt in ledger.append_many(batch)]
    return places


def main(what, *arguments):
    if what == "compete":
        path, side, count = arguments
        return compete(Path(path), side, int(count))
    if what == "at_random":
        path, rounds, seed = arguments
        return at_random(Path(path), int(rounds), int(seed))
    if what == "create":
        return create_through(Path(arguments[0]))
    snapshot, folder = Path(arguments[0]), Path(arguments[1])
    if what == "step":
        return step_through(snapshot, folder, int(arguments[2]), int(arguments[3]))
    if what == "recover":
        return recover_through(snapshot, folder)
    if what == "record":
        return record(snapshot, folder, arguments[2], arguments[3] == "unsynced")
    return statements(snapshot, folder)


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
