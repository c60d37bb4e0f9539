"""A changed ledger is found, and the message says from where on it cannot be trusted."""

from __future__ import annotations

import random
import sqlite3

import pytest

from earmark.errors import EarmarkError, FormatError, IntegrityError, LedgerError, SignatureError
from earmark.ledger import merkle
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.log import SqliteLedger, key_path
from earmark.ledger.note import SignerKey

from .conftest import ORIGIN, duplicate, entry


def edit(path, *statements):
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(*((statement,) if isinstance(statement, str) else statement))
    db.close()


def node(level, index):
    return merkle.address(level, index)


def audited(path, **kwargs):
    with SqliteLedger.open(path, **kwargs) as ledger:
        return ledger.audit()


SWAP = [
    "UPDATE entries SET id = -1 WHERE id = 0",
    "UPDATE entries SET id = 0 WHERE id = 1",
    "UPDATE entries SET id = 1 WHERE id = -1",
]
CASES = {
    # what is done, how many entries are still intact, what the message says
    "first record": (
        [("UPDATE entries SET record = ? WHERE id = 0", (b"{}",))],
        0,
        "Entry 0 does not match its hash",
    ),
    "number for a record": (["UPDATE entries SET record = 5 WHERE id = 1"], 1, "wrong type"),
    "record": ([("UPDATE entries SET record = ? WHERE id = 1", (b"{}",))], 1, "Entry 1 does not"),
    "record in a batch": (
        [("UPDATE entries SET record = ? WHERE id = 5", (b"{}",))],
        5,
        "Entry 5 does not match",
    ),
    "record and its leaf hash": (
        [
            ("UPDATE entries SET record = ? WHERE id = 4", (b"{}",)),
            ("UPDATE nodes SET hash = ? WHERE id = ?", (merkle.leaf_hash(b"{}"), node(0, 4))),
        ],
        2,
        "checkpoint of 7 entries signs another root|does not match",
    ),
    "tree hash": (
        [("UPDATE nodes SET hash = ? WHERE id = ?", (bytes(32), node(1, 1)))],
        3,
        "A tree hash above entry 3 does not match",
    ),
    "short tree hash": (
        [("UPDATE nodes SET hash = ? WHERE id = ?", (b"", node(0, 7)))],
        7,
        "Entry 7 does not match",
    ),
    "swapped": (SWAP, 0, "Entry 0 does not match"),
    "dropped record": (["DELETE FROM entries WHERE id = 3"], 3, "Entry 3 is missing"),
    "dropped tree hash": ([f"DELETE FROM nodes WHERE id = {node(0, 1)}"], 1, "Entry 1"),
    "dropped last record": (["DELETE FROM entries WHERE id = 7"], 7, "Entry 7 is missing"),
    "negative record": (
        [("INSERT INTO entries VALUES (-1, ?)", (b"{}",))],
        0,
        "Entry 0 is missing",
    ),
    "unsigned record": (
        [("INSERT INTO entries VALUES (8, ?)", (b"{}",))],
        8,
        "under no signed checkpoint",
    ),
    "unsigned tree hash": (
        [("INSERT INTO nodes VALUES (15, ?)", (bytes(32),))],
        8,
        "entries that do not exist",
    ),
    "dropped first checkpoint": (["DELETE FROM checkpoints WHERE id = 0"], 0, "signs another root"),
    "renumbered checkpoint": (
        ["UPDATE checkpoints SET id = 3 WHERE id = 7"],
        3,
        "checkpoint of 3 entries signs another root",
    ),
    "number for a checkpoint": (["UPDATE checkpoints SET note = 5 WHERE id = 2"], 1, "wrong type"),
    "mangled checkpoint": (
        [("UPDATE checkpoints SET note = ? WHERE id = 2", (b"x",))],
        2,
        "checkpoint of 2 entries does not verify. A note lacks its signatures",
    ),
    "added signature": (
        [
            (
                "UPDATE checkpoints SET note = note || ? WHERE id = 2",
                ("— else.example AAAAAAA=\n".encode(),),
            )
        ],
        2,
        "checkpoint of 2 entries is not as it was written",
    ),
    "copied checkpoint": (
        ["UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE id=1) WHERE id=2"],
        2,
        "checkpoint of 2 entries signs another root",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_changed_is_found_where_it_is(path, case):
    statements, intact, says = CASES[case]
    edit(path, *statements)
    found = audited(path)
    assert isinstance(found.problem, IntegrityError)
    assert found.intact == intact
    with SqliteLedger.open(path) as ledger, pytest.raises(IntegrityError, match=says) as caught:
        ledger.check()
    expected = f"Entries 0 to {intact - 1} are intact" if intact else "No entry is known"
    assert expected in str(caught.value)


def test_a_record_whose_tree_hashes_were_all_changed_to_match_is_found_by_the_signature(path):
    statements, peaks = [("UPDATE entries SET record = ? WHERE id = 5", (b"{}",))], ()
    for number in range(8):
        leaf = merkle.leaf_hash(b"{}" if number == 5 else entry(number))
        peaks, new = merkle.grow(peaks, number, leaf)
        statements += [
            ("UPDATE nodes SET hash = ? WHERE id = ?", (value, place))
            for place, value in enumerate(new, start=merkle.node_count(number))
        ]
    edit(path, *statements)
    with SqliteLedger.open(path) as ledger:
        assert ledger.get(5) == b"{}"
        with pytest.raises(
            LedgerError, match="checkpoint of 7 entries signs another root"
        ) as caught:
            ledger.check()
        assert "Entries 0 to 1 are intact" in str(caught.value)
        with pytest.raises(LedgerError, match="does not match its checkpoint"):
            ledger.append(entry(8))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM checkpoints",
        "UPDATE checkpoints SET note = 'x' WHERE id = 8",
        "UPDATE checkpoints SET note = x'00' WHERE id = 8",
        "DELETE FROM about",
        "INSERT INTO about SELECT * FROM about",
        "UPDATE about SET origin = 5",
        "UPDATE about SET origin = x'00'",
        "UPDATE about SET vkey = x'00'",
        "UPDATE about SET vkey = x'ff'",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE INDEX i ON entries (record)",
        "DROP TABLE nodes",
        "ALTER TABLE nodes RENAME COLUMN hash TO hush",
    ],
)
def test_a_ledger_whose_frame_was_changed_does_not_open(path, statement):
    edit(path, statement)
    with pytest.raises(IntegrityError):
        SqliteLedger.open(path)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE nodes SET hash = ? WHERE id = ?", (bytes(32), node(3, 0))),
        ("UPDATE nodes SET hash = ? WHERE id = ?", (b"", node(3, 0))),
        ("DELETE FROM nodes WHERE id = ?", (node(3, 0),)),
        ("INSERT INTO entries VALUES (8, ?)", (b"{}",)),
        ("INSERT INTO nodes VALUES (99, ?)", (bytes(32),)),
        ("DELETE FROM checkpoints WHERE id = ?", (8,)),
        ("UPDATE checkpoints SET id = 9 WHERE id = ?", (7,)),
    ],
)
def test_nothing_is_appended_to_a_head_that_does_not_hold(path, statement, values):
    edit(path, (statement, values))
    before = path.read_bytes()
    with SqliteLedger.open(path) as ledger:
        with pytest.raises(LedgerError):
            ledger.append(entry(8))
        with pytest.raises(LedgerError):
            ledger.append_many([entry(8), entry(9)])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE entries SET record = ? WHERE id = ?", (b"{}", 3)),
        ("UPDATE entries SET record = ? WHERE id = ?", ("text", 3)),
        ("UPDATE nodes SET hash = ? WHERE id = ?", (bytes(32), node(0, 3))),
        ("DELETE FROM entries WHERE id = ?", (3,)),
        ("DELETE FROM nodes WHERE id = ?", (node(0, 3),)),
    ],
)
def test_a_changed_entry_is_not_read(path, statement, values):
    edit(path, (statement, values))
    with SqliteLedger.open(path) as ledger:
        assert ledger.get(2) == entry(2)
        with pytest.raises(LedgerError):
            ledger.get(3)
        with pytest.raises(LedgerError):
            list(ledger.scan())
        assert len(list(ledger.scan(4))) == 4


def test_what_only_sqlite_can_see_is_reported_too(path):
    data = bytearray(path.read_bytes())
    data[36:40] = (1).to_bytes(4, "big")  # a free page that does not exist
    path.write_bytes(data)
    with (
        SqliteLedger.open(path) as ledger,
        pytest.raises(LedgerError, match=r"(?s)SQLite reports.*Entries 0 to 7 are intact"),
    ):
        ledger.check()


def rewound(path, size):
    """Take a ledger back to a state that it once had, as a restored backup would."""
    edit(
        path,
        f"DELETE FROM entries WHERE id >= {size}",
        f"DELETE FROM nodes WHERE id >= {merkle.node_count(size)}",
        f"DELETE FROM checkpoints WHERE id > {size}",
    )


def test_a_rewind_is_found_only_with_a_checkpoint_that_was_kept(path, grown):
    kept = grown[2][-1].checkpoint
    rewound(path, 7)
    with SqliteLedger.open(path) as ledger:
        assert ledger.check().size == 7
        assert ledger.check(against=grown[2][6].checkpoint).size == 7
        with pytest.raises(LedgerError, match=r"has 7 entries.*has 8: it went back"):
            ledger.check(against=kept)
        ledger.append(entry(8, "other"))
        ledger.check()
        with pytest.raises(LedgerError, match="another history of its first 8 entries"):
            ledger.check(against=SignedCheckpoint.parse(kept))


def test_a_kept_checkpoint_of_every_size_is_accepted_while_the_ledger_grows(path, grown):
    with SqliteLedger.open(path) as ledger:
        ledger.append_many([entry(number) for number in range(8, 20)])
        for receipt in grown[2]:
            assert ledger.check(against=receipt.checkpoint).size == 20


def test_a_kept_checkpoint_must_be_the_ledgers_own(path, tmp_path):
    with SqliteLedger.create(tmp_path / "other.sqlite", ORIGIN) as other:
        foreign = str(other.head())
    with SqliteLedger.open(path) as ledger:
        with pytest.raises(SignatureError):
            ledger.check(against=foreign)
        with pytest.raises(LedgerError):
            ledger.check(against="nonsense")


def test_a_history_signed_anew_is_found_by_the_pinned_key_and_by_the_private_key(path, grown):
    """Somebody without the private key replaces everything, the public key included."""
    thief = SignerKey.generate(ORIGIN)
    read, sizes = {}, [0, 1, 2, 7, 8]
    statements = [("UPDATE about SET vkey = ?", (str(thief.verifier).encode(),))]
    peaks = ()
    for number in range(8):
        peaks, new = merkle.grow(peaks, number, merkle.leaf_hash(entry(number, "thief")))
        read.update(enumerate(new, start=merkle.node_count(number)))
        statements.append(
            ("UPDATE entries SET record = ? WHERE id = ?", (entry(number, "thief"), number))
        )
    statements += [
        ("UPDATE nodes SET hash = ? WHERE id = ?", (value, key)) for key, value in read.items()
    ]
    for size in sizes:
        root = merkle.root_at(lambda level, index: read[node(level, index)], size)
        note = str(SignedCheckpoint.sign(Checkpoint(ORIGIN, size, root), thief)).encode()
        statements.append(("UPDATE checkpoints SET note = ? WHERE id = ?", (note, size)))
    edit(path, *statements)
    with SqliteLedger.open(path) as ledger:
        with pytest.raises(LedgerError, match="another ledger"):
            ledger.check()
        with pytest.raises(SignatureError):
            ledger.check(against=grown[2][0].checkpoint)
    key_path(path).unlink()
    with SqliteLedger.open(path) as ledger:
        ledger.check()  # nothing in the file gives it away: pin the key
    with pytest.raises(LedgerError, match="has the key"):
        SqliteLedger.open(path, vkey=grown[1])


def test_an_audit_beside_a_writer_never_raises_a_false_alarm(path):
    with SqliteLedger.open(path) as ledger, SqliteLedger.open(path) as other:
        calls = []

        def appending(statement):
            if statement.startswith("SELECT") and "LIMIT" in statement:
                calls.append(other.append(entry(8 + len(calls))).index)

        ledger._db.set_trace_callback(appending)
        found = ledger.audit()
        ledger._db.set_trace_callback(None)
        assert found.problem is None
        assert found.size == 8
        assert len(calls) > 5
        assert ledger.check().size == 8 + len(calls)


def content(path):
    """Read everything that a ledger says."""
    with SqliteLedger.open(path) as ledger:
        ledger.check()
        receipts = [ledger.receipt(number) for number in range(len(ledger))]
        return ledger.vkey, str(ledger.head()), list(ledger.scan()), receipts


@pytest.fixture(scope="module")
def compact(grown, tmp_path_factory):
    """Pack the grown ledger into the smallest pages, so that most bytes carry content."""
    path = duplicate(grown[0], tmp_path_factory.mktemp("compact") / "ledger.sqlite")
    edit(path, "PRAGMA page_size = 512", "VACUUM")
    return path


def flip_found(compact, path, data, place, mask):
    """Change one byte; return whether that was noticed. Unnoticed, it must not matter."""
    changed = bytearray(data)
    changed[place] ^= mask
    path.write_bytes(changed)
    try:
        found = content(path)
    except EarmarkError:
        return True
    finally:
        for name in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + name).unlink(missing_ok=True)
    assert found == content(compact), f"byte {place} of the file changes what is read"
    return False


def test_a_changed_byte_is_found_or_carries_no_content(compact, tmp_path):
    data = compact.read_bytes()
    chance = random.Random(11)
    path = duplicate(compact, tmp_path / "flipped.sqlite")
    places = [*range(0, 100, 3), *chance.sample(range(100, len(data)), 170)]
    found = sum(
        flip_found(compact, path, data, place, 1 << chance.randrange(8)) for place in places
    )
    assert found > len(places) / 4


@pytest.mark.slow
def test_every_changed_byte_is_found_or_carries_no_content(compact, tmp_path):
    data = compact.read_bytes()
    path = duplicate(compact, tmp_path / "flipped.sqlite")
    found = [
        place
        for place in range(len(data))
        if flip_found(compact, path, data, place, 0xFF) | flip_found(compact, path, data, place, 1)
    ]
    stored = [value for row in content(compact)[2] for value in row if isinstance(value, bytes)]
    for value in stored:
        start = data.index(value)
        assert set(range(start, start + len(value))) <= set(found)


def test_a_byte_changed_in_any_stored_value_is_found(compact, tmp_path):
    data = compact.read_bytes()
    path = duplicate(compact, tmp_path / "flipped.sqlite")
    db = sqlite3.connect(compact)
    values = [
        row[0]
        for table, column in (("entries", "record"), ("nodes", "hash"), ("checkpoints", "note"))
        for row in db.execute(f"SELECT {column} FROM {table}")
    ]
    values += list(db.execute("SELECT origin, vkey FROM about").fetchone())
    db.close()
    chance = random.Random(5)
    assert len(values) == 8 + 15 + 5 + 2
    for value in values:
        start = data.index(value)
        place = start + chance.randrange(len(value))
        assert flip_found(compact, path, data, place, 1 << chance.randrange(8))


def test_a_ledger_cut_short_anywhere_is_found(compact, tmp_path):
    data = compact.read_bytes()
    path = duplicate(compact, tmp_path / "cut.sqlite")
    lengths = {*range(0, len(data), 211), *range(0, len(data), 512), 15, 16, 99, len(data) - 1}
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        with pytest.raises(EarmarkError):
            content(path)


def test_a_ledger_with_a_page_of_zeros_or_of_another_file_is_found(compact, tmp_path):
    data = compact.read_bytes()
    path = duplicate(compact, tmp_path / "torn.sqlite")
    for start in range(512, len(data), 512):
        for page in (bytes(512), data[512:1024] if start != 512 else data[1024:1536]):
            path.write_bytes(data[:start] + page + data[start + 512 :])
            with pytest.raises((IntegrityError, FormatError)):
                content(path)


def test_the_copy_that_is_compared_says_the_same_in_fewer_bytes(compact, grown):
    assert content(compact) == content(grown[0])
    assert compact.stat().st_size < grown[0].stat().st_size
