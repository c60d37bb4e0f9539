"""The embedded ledger as its users meet it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark import codec, files
from earmark.errors import (
    FileError,
    FormatError,
    LedgerError,
    OutputError,
    RecordError,
    SignatureError,
    UsageError,
)
from earmark.ledger import keyfile, store
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.log import SqliteLedger, key_path
from earmark.ledger.merkle import EMPTY_ROOT
from earmark.ledger.note import COSIGNATURE, SignerKey
from earmark.ledger.port import Finality, Ledger, verify_receipt

from .conftest import ORIGIN, duplicate, entry

posix = pytest.mark.skipif(os.name != "posix", reason="file modes")


def test_a_new_ledger_is_empty_signed_and_alone_in_its_folder(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with SqliteLedger.create(path, ORIGIN) as ledger:
        assert isinstance(ledger, Ledger)
        assert (len(ledger), ledger.head().root, ledger.origin) == (0, EMPTY_ROOT, ORIGIN)
        assert list(ledger.scan()) == []
        assert ledger.check().checkpoints == 1
        assert "sqlite" in repr(ledger)
        assert ledger.append_many([]) == ()
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "ledger.sqlite",
        "ledger.sqlite.key",
    ]


def test_the_private_key_is_readable_by_its_owner_only_and_lies_nowhere_else(tmp_path):
    path = tmp_path / "ledger.sqlite"
    SqliteLedger.create(path, ORIGIN).close()
    secret = key_path(path).read_text()
    assert stat.S_IMODE(key_path(path).stat().st_mode) == 0o600
    *_, body = secret.strip().split("+", 4)  # base64 has pluses of its own
    assert len(body) > 40
    assert body.encode()[:20] not in path.read_bytes()


def test_what_was_appended_is_read_back(ledger, grown):
    _, vkey, receipts = grown
    assert ledger.vkey == vkey
    assert list(ledger.scan()) == [(number, entry(number)) for number in range(8)]
    assert list(ledger.scan(6)) == [(6, entry(6)), (7, entry(7))]
    assert list(ledger.scan(2**70)) == []
    assert list(ledger.scan(-5)) == list(ledger.scan())
    assert [ledger.get(number) for number in range(8)] == [entry(number) for number in range(8)]
    assert [ledger.receipt(number) for number in range(8)] == list(receipts)


def test_each_append_has_its_own_checkpoint_and_a_batch_has_one(ledger):
    assert [ledger.root_after(number).size for number in range(8)] == [1, 2, 7, 7, 7, 7, 7, 8]


def test_proofs_of_every_size_verify(ledger):
    head = ledger.head()
    for number in range(8):
        receipt = ledger.receipt(number)
        fresh = type(receipt)(
            receipt.origin, number, receipt.leaf_hash, str(head), ledger.prove(number, 8)
        )
        assert verify_receipt(entry(number), fresh, ledger.vkey) == head
    assert ledger.prove_consistency(8, 8) == ()
    assert len(ledger.prove_consistency(3, 8)) == 4


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.get(8),
        lambda ledger: ledger.get(-1),
        lambda ledger: ledger.get(2**70),
        lambda ledger: ledger.receipt(8),
        lambda ledger: ledger.root_after(8),
        lambda ledger: ledger.root_after(-1),
        lambda ledger: ledger.root_after(2**70),
        lambda ledger: ledger.prove(0, 9),
        lambda ledger: ledger.prove(8, 8),
        lambda ledger: ledger.prove(-1, 8),
        lambda ledger: ledger.prove_consistency(3, 9),
        lambda ledger: ledger.prove_consistency(4, 3),
    ],
)
def test_what_is_not_there_cannot_be_asked_for(ledger, ask):
    with pytest.raises(UsageError):
        ask(ledger)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"text",
        b"{",
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":01}',
        b'{"a":1.0}',
        b'{"a":1e400}',
        b'{"a":NaN}',
        b'{"a":"\\u0061"}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":9007199254740993}',
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b"[" * 40 + b"]" * 40,
    ],
    ids=range(19),
)
def test_only_canonical_json_is_a_record(ledger, record):
    with pytest.raises(RecordError):
        ledger.append_many([entry(8), record])
    assert len(ledger) == 8


def test_a_record_is_bytes(ledger):
    with pytest.raises(UsageError):
        ledger.append('{"a":1}')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(json_values, max_size=6), min_size=1, max_size=4))
def test_any_batches_of_any_records_read_back_and_check(batches):
    records = [[codec.canonical(value) for value in batch] for batch in batches]
    with in_memory() as ledger:
        receipts = [receipt for batch in records for receipt in ledger.append_many(batch)]
        flat = [record for batch in records for record in batch]
        assert list(ledger.scan()) == list(enumerate(flat))
        for number, (record, receipt) in enumerate(zip(flat, receipts, strict=True)):
            verify_receipt(record, receipt, ledger.vkey)
            assert ledger.receipt(number) == receipt
        assert ledger.check().size == len(flat)


def in_memory():
    """Make a ledger that never touches a disk."""
    signer = SignerKey.generate(ORIGIN)
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.text_factory = bytes
    for sql in store._TABLES.values():
        db.execute(sql)
    first = SignedCheckpoint.sign(Checkpoint(ORIGIN, 0, EMPTY_ROOT), signer)
    db.execute("INSERT INTO checkpoints VALUES (0, ?)", (str(first).encode(),))
    ledger = SqliteLedger(db, Path("memory"), signer.verifier)
    ledger._signer = signer
    return ledger


def test_finality_is_reached_at_once(ledger, grown):
    for receipt in grown[2]:
        assert ledger.finality(receipt) is Finality.FINAL


def test_a_receipt_of_another_history_is_not_final(path, tmp_path):
    other = duplicate(path, tmp_path / "other.sqlite")
    with SqliteLedger.open(path) as left, SqliteLedger.open(other) as right:
        receipt = left.append(entry(8, "left"))
        with pytest.raises(LedgerError, match="went back"):
            right.finality(receipt)
        right.append(entry(8, "right"))
        with pytest.raises(LedgerError, match="another history"):
            right.finality(receipt)
        far = type(receipt)(ORIGIN, 2**70, receipt.leaf_hash, receipt.checkpoint, receipt.proof)
        with pytest.raises(LedgerError, match="does not hold entry"):
            left.finality(far)
        near = type(receipt)(ORIGIN, 3, receipt.leaf_hash, receipt.checkpoint, receipt.proof)
        with pytest.raises(LedgerError, match="another record"):
            left.finality(near)
    with (
        SqliteLedger.create(tmp_path / "false.sqlite", ORIGIN) as false,
        pytest.raises(SignatureError),
    ):
        false.finality(receipt)


@pytest.mark.parametrize(
    "origin", ["", "two words", "plus+", "tab\t", "line\n", "bücher", "a" * 256]
)
def test_an_origin_is_a_plain_name(tmp_path, origin):
    with pytest.raises(UsageError, match="cannot be the name"):
        SqliteLedger.create(tmp_path / "ledger.sqlite", origin)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(path, tmp_path):
    before = path.read_bytes(), key_path(path).read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        SqliteLedger.create(path, ORIGIN)
    assert (path.read_bytes(), key_path(path).read_bytes()) == before
    lonely = tmp_path / "new.sqlite"
    key_path(lonely).write_text("somebody's key")
    with pytest.raises(UsageError, match="without its ledger"):
        SqliteLedger.create(lonely, ORIGIN)
    assert not lonely.exists()
    assert key_path(lonely).read_text() == "somebody's key"


def test_a_ledger_is_made_with_a_given_key(tmp_path):
    signer = SignerKey.generate(ORIGIN)
    with SqliteLedger.create(tmp_path / "a.sqlite", ORIGIN, signer=signer) as ledger:
        assert ledger.vkey == str(signer.verifier)
    for wrong in (SignerKey.generate("other"), SignerKey.generate(ORIGIN, kind=COSIGNATURE)):
        with pytest.raises(UsageError):
            SqliteLedger.create(tmp_path / "b.sqlite", ORIGIN, signer=wrong)
    assert not (tmp_path / "b.sqlite").exists()


def test_a_creation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(OutputError):
        SqliteLedger.create(tmp_path / "missing" / "ledger.sqlite", ORIGIN)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    for place, name in ((store, "create_file"), (os, "replace"), (keyfile.os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(OutputError):
                SqliteLedger.create(tmp_path / "ledger.sqlite", ORIGIN)
        assert list(tmp_path.iterdir()) == []


def test_a_creation_whose_last_sync_fails_says_so_and_leaves_a_whole_ledger(tmp_path, monkeypatch):
    def failing(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_sync_folder", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        SqliteLedger.create(tmp_path / "ledger.sqlite", ORIGIN)
    with SqliteLedger.open(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.append(entry(0)).index == 0


def test_files_that_are_no_ledger_have_their_own_errors(tmp_path, path):
    with pytest.raises(FileError, match="No such file"):
        SqliteLedger.open(tmp_path / "missing.sqlite")
    with pytest.raises(FileError, match="directory"):
        SqliteLedger.open(tmp_path)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(FileError, match="empty"):
        SqliteLedger.open(empty)
    text = tmp_path / "text"
    text.write_text("this is no database, but it is longer than sixteen bytes" * 20)
    with pytest.raises(FormatError, match="not a ledger"):
        SqliteLedger.open(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(FormatError, match="not a ledger"):
        SqliteLedger.open(other)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(FormatError, match="schema version 2"):
        SqliteLedger.open(path)


def test_a_truncated_ledger_says_so(path):
    data = path.read_bytes()
    path.write_bytes(data[:5000])
    with pytest.raises((LedgerError, FormatError)):
        SqliteLedger.open(path)


def test_a_pinned_key_must_be_the_ledgers(path, grown):
    SqliteLedger.open(path, vkey=grown[1]).close()
    with pytest.raises(LedgerError, match="has the key"):
        SqliteLedger.open(path, vkey=str(SignerKey.generate(ORIGIN).verifier))


def test_without_its_key_a_ledger_is_read_and_checked_but_not_added_to(path):
    key_path(path).unlink()
    with SqliteLedger.open(path) as ledger:
        assert ledger.check().intact == 8
        with pytest.raises(FileError, match="private key"):
            ledger.append(entry(8))


@posix
def test_a_key_that_others_may_read_is_refused(path):
    key_path(path).chmod(0o640)
    with SqliteLedger.open(path) as ledger:
        with pytest.raises(FileError, match="mode 0640"):
            ledger.append(entry(8))
        assert ledger.check().intact == 8


def test_the_key_of_another_ledger_is_refused(path, tmp_path):
    other = SignerKey.generate(ORIGIN)
    key_path(path).unlink()
    keyfile.write_key(key_path(path), other)
    with SqliteLedger.open(path) as ledger:
        with pytest.raises(LedgerError, match="another ledger"):
            ledger.append(entry(8))
        with pytest.raises(LedgerError, match="another ledger"):
            ledger.check()
    key_path(path).write_text("PRIVATE+KEY+nonsense")
    with SqliteLedger.open(path) as ledger, pytest.raises(SignatureError) as caught:
        ledger.append(entry(8))
    assert "nonsense" not in str(caught.value)


def test_a_read_only_ledger_is_read_and_checked_but_not_added_to(path):
    before = path.read_bytes()
    with SqliteLedger.open(path, readonly=True) as ledger:
        assert ledger.check().intact == 8
        with pytest.raises(OutputError, match="readonly"):
            ledger.append(entry(8))
        assert len(ledger) == 8
    assert path.read_bytes() == before


def test_an_unfinished_write_is_taken_back_by_the_next_writer(path, tmp_path):
    copy = duplicate(path, tmp_path / "copy.sqlite")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA cache_size = 1")
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE entries SET record = zeroblob(1000000)")
    copy.write_bytes(path.read_bytes())
    journal = path.with_name("ledger.sqlite-journal")
    copy.with_name("copy.sqlite-journal").write_bytes(journal.read_bytes())
    db.execute("ROLLBACK")
    db.close()
    with pytest.raises(FileError, match="unfinished write"):
        SqliteLedger.open(copy, readonly=True)
    with SqliteLedger.open(copy) as ledger:
        assert ledger.check().intact == 8
    with SqliteLedger.open(copy, readonly=True) as ledger:
        assert list(ledger.scan()) == [(number, entry(number)) for number in range(8)]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("file is not a database", FormatError),
        ("attempt to write a readonly database", OutputError),
        ("database or disk is full", OutputError),
        ("disk I/O error", OutputError),
        ("database is locked", OutputError),
        ("unable to open database file", FileError),
        ("Cannot operate on a closed database.", UsageError),
        ("database disk image is malformed", LedgerError),
        ("no such column: hash", LedgerError),
    ],
)
def test_what_sqlite_says_is_told_in_plain_words(said, kind):
    with pytest.raises(kind, match=r"(?s)ledger\.sqlite"), store.explained(Path("ledger.sqlite")):
        raise sqlite3.DatabaseError(said)


def test_an_error_message_that_is_no_text_is_told_too():
    with pytest.raises(LedgerError, match="damaged"), store.explained(Path("ledger.sqlite")):
        b"\xff".decode()


def test_a_file_that_allows_no_rollback_journal_is_refused():
    db = sqlite3.connect(":memory:")
    with pytest.raises(OutputError, match="rollback journal"):
        store._use_rollback_journal(db, Path("ledger.sqlite"))
    db.close()


def test_values_of_the_wrong_type_are_refused():
    for row in (None, ("text",), (b"8",), (None,)):
        with pytest.raises(LedgerError):
            store.integer(row)


def test_an_error_after_which_sqlite_has_rolled_back_is_still_told(path):
    db = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(LedgerError, match="no transaction"), store.writing(db, path):
        db.execute("ROLLBACK")  # then the commit fails
    db.close()


def test_a_closed_ledger_says_so(path):
    ledger = SqliteLedger.open(path)
    ledger.close()
    ledger.close()
    with pytest.raises(UsageError, match="closed"):
        ledger.head()


def test_a_ledger_held_by_another_writer_says_so(path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with SqliteLedger.open(path, timeout=0.01) as ledger:
        assert len(ledger) == 8
        with pytest.raises(OutputError, match="in use by another process"):
            ledger.append(entry(8))
    holder.execute("ROLLBACK")
    holder.close()


def test_an_error_inside_an_append_adds_nothing(ledger, monkeypatch):
    for name in ("inclusion_proof", "grow", "fold"):
        with monkeypatch.context() as patch:

            def broken(*arguments):
                raise KeyboardInterrupt

            patch.setattr(f"earmark.ledger.treelog.{name}", broken)
            with pytest.raises(KeyboardInterrupt):
                ledger.append(entry(8))
        assert len(ledger) == 8
        assert ledger.check().intact == 8
    assert ledger.append(entry(8)).index == 8


def test_a_slow_reader_does_not_stop_a_writer(path):
    with SqliteLedger.open(path) as reader, SqliteLedger.open(path, timeout=0.5) as writer:
        rows = reader.scan()
        assert next(rows) == (0, entry(0))
        writer.append(entry(8))
        assert len(list(rows)) == 7
        assert len(list(reader.scan())) == 9


def test_threads_share_a_ledger(ledger):
    found, errors = [], []

    def work(side):
        try:
            for number in range(5):
                found.append(ledger.append(entry(number, side)).index)
                ledger.get(number)
        except Exception as error:  # noqa: BLE001 - the main thread asserts
            errors.append(error)

    threads = [threading.Thread(target=work, args=(side,)) for side in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(found) == list(range(8, 23))
    assert ledger.check().intact == 23


def test_the_ledger_imports_neither_torch_nor_numpy():
    code = (
        "import sys, earmark.ledger.log; "
        "print([name for name in ('torch', 'numpy', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
