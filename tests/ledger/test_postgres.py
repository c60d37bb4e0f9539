"""The same log on a real PostgreSQL server: equal bytes, one history, nothing acknowledged lost."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import linear
import pytest

from earmark.errors import (
    FileError,
    FormatError,
    LedgerError,
    NetworkError,
    OutputError,
    RecordError,
    SignatureError,
    UsageError,
)
from earmark.ledger.log import SqliteLedger
from earmark.ledger.merkle import address, verify_consistency
from earmark.ledger.note import SignerKey
from earmark.ledger.port import Finality, Watcher, verify_receipt
from earmark.ledger.postgres import PostgresLedger, PostgresRows, without_password

from .conftest import ORIGIN, entry

WORKER = Path(__file__).parent / "postgres_worker.py"
_numbers = itertools.count()


@pytest.fixture
def place(postgres, tmp_path):
    """Name a schema and a key file that are not there yet."""
    return {"schema": f"log{next(_numbers)}", "key": tmp_path / "log.key"}


@pytest.fixture
def ledger(postgres, place):
    with PostgresLedger.create(postgres.dsn, ORIGIN, **place) as made:
        yield made


def sql(ledger, statement, *values):
    return ledger.rows.db.execute(statement, values)


def test_it_is_the_embedded_ledger_byte_for_byte(postgres, place, tmp_path):
    signer = SignerKey.generate(ORIGIN)
    chance = random.Random(5)
    with (
        SqliteLedger.create(tmp_path / "l.sqlite", ORIGIN, signer=signer) as left,
        PostgresLedger.create(postgres.dsn, ORIGIN, signer=signer, **place) as right,
    ):
        number = 0
        for _ in range(40):
            batch = [entry(number + k) for k in range(chance.choice((0, 1, 1, 2, 7)))]
            number += len(batch)
            assert left.append_many(batch) == right.append_many(batch)
        assert list(left.scan()) == list(right.scan())
        assert [str(item.head()) for item in (left, right)] == [str(left.head())] * 2
        for index in range(0, number, 3):
            assert left.receipt(index) == right.receipt(index)
            assert left.root_after(index) == right.root_after(index)
            assert left.prove_consistency(index, number) == right.prove_consistency(index, number)
            verify_receipt(entry(index), right.receipt(index), right.vkey)
            assert right.finality(right.receipt(index)) is Finality.FINAL
        assert left.check() == right.check()


def test_it_is_opened_again_and_followed(postgres, place):
    with PostgresLedger.create(postgres.dsn, ORIGIN, **place) as ledger:
        ledger.append(entry(0))
        watcher = Watcher(ledger.vkey)
        watcher.follow(ledger)
        vkey = ledger.vkey
    with PostgresLedger.open(postgres.dsn, vkey=vkey, **place) as ledger:
        for number in range(1, 5):
            assert ledger.append(entry(number)).index == number
            watcher.follow(ledger)
        assert len(ledger) == 5
        with pytest.raises(UsageError, match="no entry 5"):
            ledger.get(5)
        with pytest.raises(UsageError, match="not yet 6"):
            ledger.prove(0, 6)
        with pytest.raises(RecordError):
            ledger.append(b"{ }")
    with pytest.raises(UsageError, match="closed"):
        ledger.head()


def test_nothing_is_overwritten_and_names_are_plain(postgres, place, ledger, tmp_path):
    with pytest.raises(UsageError, match="without its ledger"):
        PostgresLedger.create(postgres.dsn, ORIGIN, **place)
    other = tmp_path / "other.key"
    with pytest.raises(UsageError, match="exists already"):
        PostgresLedger.create(postgres.dsn, ORIGIN, key=other, schema=place["schema"])
    assert not other.exists()
    for schema in ("", "Log", "a b", 'a"b', "a;drop", "1a"):
        with pytest.raises(UsageError):
            PostgresLedger.open(postgres.dsn, schema=schema)


def test_what_is_missing_says_so(postgres, place, ledger, tmp_path):
    with pytest.raises(FileError, match="no ledger at"):
        PostgresLedger.open(postgres.dsn, schema="nowhere")
    with pytest.raises(NetworkError, match="does not answer"):
        PostgresLedger.open(f"postgresql://postgres@/postgres?host={tmp_path}", seconds=2)
    with pytest.raises(LedgerError, match="has the key"):
        PostgresLedger.open(
            postgres.dsn, schema=place["schema"], vkey=str(SignerKey.generate(ORIGIN).verifier)
        )
    with PostgresLedger.open(postgres.dsn, schema=place["schema"]) as reader:
        assert reader.check().size == 0
        with pytest.raises(FileError, match="without its private key"):
            reader.append(entry(0))
    sql(ledger, "UPDATE about SET version = 2")
    with pytest.raises(FormatError, match="version 2"):
        PostgresLedger.open(postgres.dsn, **place)


CASES = {
    "changed record": ("UPDATE entries SET record = '{}' WHERE id = 3", 3),
    "changed hash": (
        f"UPDATE nodes SET hash = decode(repeat('00', 32), 'hex') WHERE id = {address(0, 3)}",
        3,
    ),
    "short hash": (f"UPDATE nodes SET hash = '' WHERE id = {address(0, 3)}", 3),
    "dropped record": ("DELETE FROM entries WHERE id = 3", 3),
    "dropped hash": (f"DELETE FROM nodes WHERE id = {address(0, 3)}", 3),
    "changed checkpoint": ("UPDATE checkpoints SET note = 'x' WHERE id = 3", 3),
    "added record": ("INSERT INTO entries VALUES (8, '{}')", 8),
    "negative record": ("INSERT INTO entries VALUES (-9223372036854775808, '{}')", 0),
    "dropped last": ("DELETE FROM entries WHERE id = 7", 7),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_changed_is_found_where_it_is(ledger, case):
    for number in range(8):
        ledger.append(entry(number))
    ledger.check()
    statement, intact = CASES[case]
    sql(ledger, statement)
    assert ledger.audit().intact == intact
    with pytest.raises((LedgerError, SignatureError)):
        ledger.check()
    if case in {"changed record", "dropped record", "changed hash"}:
        with pytest.raises(LedgerError):
            ledger.get(3)
        with pytest.raises(LedgerError):
            list(ledger.scan())
    if case == "added record":
        with pytest.raises(LedgerError):
            ledger.append(entry(8))


def test_a_trigger_a_rule_and_a_view_are_no_tables_of_ours(postgres, place, ledger):
    for make, undo in (
        ("CREATE RULE r AS ON DELETE TO entries DO INSTEAD NOTHING", "DROP RULE r ON entries"),
        (
            "CREATE TRIGGER t BEFORE INSERT ON entries EXECUTE FUNCTION "
            "suppress_redundant_updates_trigger()",
            "DROP TRIGGER t ON entries",
        ),
        ("CREATE TABLE more (id bigint)", "DROP TABLE more"),
    ):
        sql(ledger, make)
        with pytest.raises(LedgerError, match="were changed"):
            PostgresLedger.open(postgres.dsn, **place)
        sql(ledger, undo)
    PostgresLedger.open(postgres.dsn, **place).close()


def test_another_writer_is_waited_for_and_not_for_ever(postgres, place, ledger):
    with PostgresLedger.open(postgres.dsn, seconds=1, **place) as other:
        with ledger.rows.writing():
            with pytest.raises(OutputError, match="in use by another writer"):
                other.append(entry(0))
            assert len(other) == 0, "readers do not wait"
        assert other.append(entry(0)).index == 0
        other.check()


def test_an_error_inside_an_append_adds_nothing(ledger, monkeypatch):
    for name in ("inclusion_proof", "grow", "fold"):
        with monkeypatch.context() as patch:

            def broken(*arguments):
                raise KeyboardInterrupt

            patch.setattr(f"earmark.ledger.treelog.{name}", broken)
            with pytest.raises(KeyboardInterrupt):
                ledger.append(entry(0))
        assert ledger.check().size == 0
    assert ledger.append(entry(0)).index == 0


def test_a_writer_killed_before_any_statement_leaves_all_or_nothing(ledger, postgres, place):
    """The client dies just before each of its statements, then just after the last."""
    said = []
    for at in range(1, 30):
        size = len(ledger)
        command = [sys.executable, WORKER, "die", postgres.dsn, place["schema"], place["key"]]
        done = subprocess.run([*command, str(at)], check=False, capture_output=True, text=True)
        said.append(done.returncode)
        now = ledger.check().size
        if done.returncode == 0:
            assert now == size + 2
            assert done.stdout.strip() == str(size + 1)
            break
        assert now in {size, size + 2}
        assert done.stdout == ""
    assert 5 < len(said) < 29
    assert said[-1] == 0


@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_server_killed_at_a_random_moment_loses_nothing_it_acknowledged(
    postgres, place, ledger, rounds
):
    chance = random.Random(rounds)
    for _ in range(rounds):
        command = [sys.executable, WORKER, "append", postgres.dsn, place["schema"], place["key"]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            first = writer.stdout.readline()
            time.sleep(chance.uniform(0, 0.1))
            postgres.crash()
            acknowledged = int((first + writer.stdout.read()).split()[-1])
        assert writer.returncode in {3, 4}, "the writer noticed"
        postgres.start()
        with pytest.raises(NetworkError):
            len(ledger)  # its connection broke; the next call makes another
        found = ledger.check()
        assert found.size > acknowledged
        assert [record for _, record in ledger.scan()] == [entry(k) for k in range(found.size)]


def test_writers_in_processes_and_threads_make_one_history(postgres, place, ledger):
    """Linearizable: places are unique and dense, and each read fits what was acknowledged."""
    count = 25
    command = [sys.executable, WORKER, "compete", postgres.dsn, place["schema"], place["key"]]
    sides = [
        subprocess.Popen([*command, side, str(count)], stdout=subprocess.PIPE, text=True)
        for side in "ab"
    ]
    log, errors, stop = [], [], threading.Event()

    def read():
        try:
            with PostgresLedger.open(postgres.dsn, schema=place["schema"]) as reader:
                watcher = Watcher(reader.vkey)
                while not stop.is_set():
                    started = time.monotonic()
                    size = watcher.follow(reader).size
                    log.append((started, time.monotonic(), size))
        except Exception as error:  # noqa: BLE001 - the main thread asserts
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    done = [side.communicate()[0] for side in sides]
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    history = [tuple(line.split()) for text in done for line in text.splitlines()]
    appends = sorted((int(place), float(begun), float(ended)) for place, begun, ended in history)
    assert len(appends) == 2 * count
    linear.check(appends, [(size, begun, ended) for begun, ended, size in log])
    assert ledger.check().size == 2 * count
    assert len({size for _, _, size in log}) > 3


def test_two_restored_states_of_one_log_are_told_apart(postgres, place, ledger):
    for number in range(6):
        ledger.append(entry(number))
    kept = str(ledger.head())
    watcher = Watcher(ledger.vkey, kept)
    sql(ledger, "DELETE FROM entries WHERE id >= 4")
    sql(ledger, f"DELETE FROM nodes WHERE id >= {address(0, 4)}")
    sql(ledger, "DELETE FROM checkpoints WHERE id > 4")
    with PostgresLedger.open(postgres.dsn, **place) as old:
        assert old.check().size == 4
        with pytest.raises(LedgerError, match="went back"):
            old.check(against=kept)
        with pytest.raises(LedgerError, match="went back"):
            watcher.follow(old)
        old.append(entry(4, "other"))
        old.append(entry(5, "other"))
        with pytest.raises(LedgerError, match="two histories"):
            watcher.follow(old)
        assert watcher.evidence is not None


def test_a_server_that_does_not_sync_is_refused(postgres, place, ledger, monkeypatch):
    import psycopg

    real = psycopg.connect

    class Lying:
        def __init__(self, made):
            self.made = made

        def execute(self, statement, *values):
            return self.made.execute(
                "SELECT 'off', 'on'" if "fsync" in statement else statement, *values
            )

        def close(self):
            self.made.close()

    monkeypatch.setattr(psycopg, "connect", lambda *a, **k: Lying(real(*a, **k)))
    with pytest.raises(UsageError, match="does not sync"):
        PostgresLedger.open(postgres.dsn, **place)


def test_commits_wait_for_the_disk_whatever_the_servers_default(postgres, place, ledger):
    sql(ledger, "ALTER SYSTEM SET synchronous_commit = off")
    sql(ledger, "SELECT pg_reload_conf()")
    with PostgresLedger.open(postgres.dsn, **place) as fresh:
        assert sql(fresh, "SHOW synchronous_commit").fetchone() == ("on",)
    sql(ledger, "ALTER SYSTEM RESET synchronous_commit")


def test_a_password_is_in_no_message(tmp_path):
    dsn = f"postgresql://me:hunter2@/db?host={tmp_path}"
    with pytest.raises(NetworkError) as caught:
        PostgresLedger.open(dsn, seconds=2)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(PostgresRows(dsn, "x").name)
    assert without_password("host=h password='a b' user=u") == "host=h password=... user=u"


def test_consistency_between_any_two_sizes(ledger):
    ledger.append_many([entry(number) for number in range(9)])
    ledger.append_many([entry(number) for number in range(9, 14)])
    old, new = ledger.root_after(0), ledger.head()
    assert (old.size, new.size) == (9, 14)
    proof = [bytes.fromhex(item) for item in ledger.prove_consistency(9, 14)]
    verify_consistency(9, 14, old.root, new.root, proof)
    assert ledger._secret.stat().st_mode & 0o077 == 0
