"""Writers and readers in every order that a seed gives: they take turns at each SQL statement."""

from __future__ import annotations

import itertools
import random
import threading

import linear
import pytest

from earmark.errors import LedgerError, OutputError
from earmark.ledger.log import SqliteLedger
from earmark.ledger.port import Watcher

from .conftest import ORIGIN, entry


class Turns:
    """One worker runs at a time; at every statement the seed decides who is next."""

    def __init__(self, seed, count):
        self.chance, self.lock = random.Random(seed), threading.Condition()
        self.alive, self.turn = set(range(count)), None
        self.clock = itertools.count()
        self.errors = []

    def wait(self, who):
        """Give up the turn and wait for the next one."""
        with self.lock:
            self.turn = self.chance.choice(sorted(self.alive))
            self.lock.notify_all()
            if not self.lock.wait_for(lambda: self.turn == who, timeout=60):
                raise TimeoutError

    def end(self, who):
        with self.lock:
            self.alive.discard(who)
            self.turn = self.chance.choice(sorted(self.alive)) if self.alive else None
            self.lock.notify_all()

    def run(self, *works):
        def guarded(who, work):
            try:
                with self.lock:
                    self.lock.wait_for(lambda: self.turn == who, timeout=60)
                work(who)
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                self.errors.append(error)
            finally:
                self.end(who)

        threads = [threading.Thread(target=guarded, args=item) for item in enumerate(works)]
        for thread in threads:
            thread.start()
        with self.lock:
            self.turn = 0
            self.lock.notify_all()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


def play(path, seed):
    turns = Turns(seed, 4)
    appends, reads, switches = [], [], [0]

    def opened(who):
        ledger = SqliteLedger.open(path, timeout=0)

        def pause(statement):
            switches[0] += 1
            turns.wait(who)

        ledger._db.execute("PRAGMA synchronous = OFF")  # the order is tested, not the disk
        ledger._db.set_trace_callback(pause)
        return ledger

    def again(action):
        while True:
            begun = next(turns.clock)
            try:
                found = action()
            except OutputError:  # another one is writing
                continue
            return found, begun, next(turns.clock)

    def writer(who):
        with opened(who) as ledger:
            for number in range(2):
                found, begun, ended = again(lambda n=number: ledger.append(entry(n, str(who))))
                appends.append((found.index, begun, ended))
            ledger._db.set_trace_callback(None)

    def reader(who):
        with opened(who) as ledger:
            watcher = Watcher(ledger.vkey)
            for _ in range(4):
                found, begun, ended = again(lambda: watcher.follow(ledger).size)
                reads.append((found, begun, ended))
            ledger._db.set_trace_callback(None)

    turns.run(writer, writer, reader, reader)
    linear.check(appends, reads)
    with SqliteLedger.open(path) as ledger:
        assert ledger.check().size == 4
    return switches[0]


@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_schedule_is_linearizable(tmp_path, count):
    switches = 0
    for seed in range(count):
        path = tmp_path / "ledger.sqlite"
        SqliteLedger.create(path, ORIGIN).close()
        switches += play(path, seed)
        for left in tmp_path.iterdir():
            left.unlink()
    assert switches > 30 * count


@pytest.mark.parametrize(
    ("appends", "reads"),
    [
        ([(0, 0, 1), (2, 2, 3)], []),
        ([(0, 0, 1), (0, 2, 3)], []),
        ([(0, 2, 3), (1, 0, 1)], []),
        ([(0, 0, 1)], [(0, 2, 3)]),
        ([(0, 4, 5)], [(1, 2, 3)]),
        ([(0, 0, 9)], [(1, 1, 2), (0, 3, 4)]),
    ],
)
def test_the_checker_finds_what_is_not(appends, reads):
    with pytest.raises(AssertionError):
        linear.check(appends, reads)


def test_the_checker_takes_what_is():
    linear.check([(0, 0, 9), (1, 1, 2)], [(0, 0, 1), (2, 3, 4), (2, 5, 6)])


def test_a_ledger_that_reads_its_head_outside_the_lock_is_found_out(tmp_path, monkeypatch):
    """The test can fail: an append that trusts a head from before its transaction forks or breaks."""
    from earmark.ledger import treelog

    real = treelog.TreeLog._verified_head

    def stale(self):
        if not hasattr(self, "_kept"):
            self._kept = real(self)
        return self._kept

    monkeypatch.setattr(treelog.TreeLog, "_verified_head", stale)
    path = tmp_path / "ledger.sqlite"
    SqliteLedger.create(path, ORIGIN).close()
    with pytest.raises((LedgerError, AssertionError)):
        play(path, 1)
