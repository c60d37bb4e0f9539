"""Tiles: a log as static files that a reader checks against its signature alone."""

from __future__ import annotations

import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.errors import AccessError, EarmarkError, LedgerError, SignatureError, UsageError
from earmark.ledger.log import SqliteLedger
from earmark.ledger.merkle import leaf_hash, node_hash
from earmark.ledger.note import SignerKey
from earmark.ledger.port import Finality, Watcher, verify_receipt
from earmark.ledger.tiles import (
    TileLedger,
    bundle,
    export_tiles,
    from_folder,
    parse_path,
    path_of,
    paths,
    tile,
    unbundle,
)

from .conftest import ORIGIN, entry

SIZE = 600


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a log of 600 entries and its tiles; 256 + 256 + 88 leaves, two hashes one level up."""
    folder = tmp_path_factory.mktemp("tiles")
    signer = SignerKey.generate(ORIGIN)
    with SqliteLedger.create(folder / "l.sqlite", ORIGIN, signer=signer) as ledger:
        ledger.append_many([entry(number) for number in range(SIZE)])
        export_tiles(ledger, folder / "tiles")
        yield ledger, folder / "tiles", signer


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "copy")


def reader(ledger, folder):
    return TileLedger(from_folder(folder), ledger.vkey)


def test_names_are_those_of_the_specification():
    assert path_of(0, 1234067) == "tile/0/x001/x234/067"
    assert path_of(None, 0) == "tile/entries/000"
    assert path_of(1, 999, 255) == "tile/1/999.p/255"
    assert path_of(0, 1000) == "tile/0/x001/000"
    for bad in (
        *("", "tile", "tile/0", "tile/8/000", "tile/0/0", "tile/0/0000", "tile/0/x000/000"),
        *("tile/0/001.p/0", "tile/0/001.p/256", "tile/0/001.p/007", "tile/0/001.p/", "tile/0/x001"),
        *("tile/entries/../000", "/tile/0/000", "tile/0/000/", "tile/-1/000", "tile/0/001/002"),
    ):
        assert parse_path(bad) is None, bad


@given(st.one_of(st.none(), st.integers(0, 7)), st.integers(0, 2**40), st.integers(1, 256))
def test_names_are_read_back(level, number, width):
    assert parse_path(path_of(level, number, width)) == (level, number, width)


def test_the_files_are_exactly_these(made):
    _, folder, _ = made
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *("checkpoint", "tile/entries/000", "tile/entries/001", "tile/entries/002.p/88"),
        *("tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"),
    }
    assert (folder / "tile/0/000").read_bytes()[:32] == leaf_hash(entry(0))
    level = [leaf_hash(entry(number)) for number in range(256)]
    while len(level) > 1:
        level = [node_hash(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    assert (folder / "tile/1/000.p/2").read_bytes()[:32] == level[0]
    first = (folder / "tile/entries/000").read_bytes()
    assert first[:2] == len(entry(0)).to_bytes(2, "big")
    assert first[2:].startswith(entry(0))


def test_what_the_log_does_not_have_yet_is_no_tile(made):
    ledger, folder, _ = made
    for path in paths(SIZE):
        assert tile(ledger, path) == (folder / path).read_bytes()
    for path in ("tile/0/002", "tile/0/002.p/89", "tile/1/000", "tile/2/000.p/1", "tile/0/003.p/1"):
        assert tile(ledger, path) is None
    assert tile(ledger, "tile/0/002.p/87") == (folder / "tile/0/002.p/88").read_bytes()[:-32]
    assert tile(ledger, "../secret") is None


def test_a_reader_of_tiles_is_a_ledger(made):
    ledger, folder, _ = made
    other = reader(ledger, folder)
    assert str(other.head()) == str(ledger.head())
    assert (other.origin, other.vkey) == (ledger.origin, ledger.vkey)
    assert list(other.scan()) == list(ledger.scan())
    assert list(other.scan(510)) == list(ledger.scan(510))
    chance = random.Random(1)
    for _ in range(40):
        size = chance.randrange(1, SIZE + 1)
        index = chance.randrange(size)
        assert other.get(index) == entry(index)
        assert other.prove(index, size) == ledger.prove(index, size)
        assert other.prove_consistency(index, size) == ledger.prove_consistency(index, size)
    receipt = ledger.receipt(7)
    assert other.finality(receipt) is Finality.FINAL
    verify_receipt(entry(7), receipt, other.vkey)
    Watcher(ledger.vkey).follow(other)
    with pytest.raises(AccessError):
        other.append(entry(0))
    for ask in (lambda: other.get(SIZE), lambda: other.prove(0, SIZE + 1), lambda: other.get(-1)):
        with pytest.raises(UsageError):
            ask()


@pytest.mark.parametrize("path", [*paths(SIZE), "checkpoint"])
def test_a_changed_byte_anywhere_is_found_by_whoever_reads_it(made, copy, path):
    data = (copy / path).read_bytes()
    for at in random.Random(path).sample(range(len(data)), 4):
        changed = bytearray(data)
        changed[at] ^= 1
        (copy / path).write_bytes(changed)
        other = reader(made[0], copy)
        with pytest.raises((LedgerError, SignatureError)):
            other.head()
            list(other.scan())
            other.prove(0, SIZE)
    (copy / path).write_bytes(data[:-1])
    with pytest.raises((LedgerError, SignatureError)):
        list(reader(made[0], copy).scan())


def test_tiles_grow_with_the_log_and_old_ones_stay(tmp_path):
    with SqliteLedger.create(tmp_path / "l.sqlite", ORIGIN) as ledger:
        ledger.append_many([entry(number) for number in range(250)])
        folder = tmp_path / "tiles"
        export_tiles(ledger, folder)
        other = reader(ledger, folder)
        assert other.head().size == 250
        before = (folder / "tile/0/000.p/250").read_bytes()
        ledger.append_many([entry(number) for number in range(250, 300)])
        assert export_tiles(ledger, folder) == 6
        assert export_tiles(ledger, folder) == 1, "only the head is written again"
        assert (folder / "tile/0/000.p/250").read_bytes() == before
        assert other.head().size == 300
        assert [index for index, _ in other.scan()] == list(range(300))


def test_a_rewind_and_another_history_are_found(made, tmp_path):
    ledger, folder, signer = made
    other = reader(ledger, folder)
    other.head()
    with SqliteLedger.create(tmp_path / "fork.sqlite", ORIGIN, signer=signer) as fork:
        fork.append_many([entry(number, "b") for number in range(SIZE + 1)])
        export_tiles(fork, tmp_path / "fork")
        other._fetch = from_folder(tmp_path / "fork")
        with pytest.raises(LedgerError, match="another history"):
            other.head()
    with SqliteLedger.create(tmp_path / "short.sqlite", ORIGIN, signer=signer) as short:
        short.append(entry(0))
        export_tiles(short, tmp_path / "short")
        other._fetch = from_folder(tmp_path / "short")
        with pytest.raises(LedgerError, match="went back"):
            other.head()
    with pytest.raises(LedgerError):
        export_tiles(ledger, tmp_path / "x", checkpoint=str(fork_head(signer, tmp_path)))


def fork_head(signer, folder):
    with SqliteLedger.open(folder / "fork.sqlite") as fork:
        return fork.head()


def test_a_disaster_is_survived_with_tiles_checkpoint_and_key(made, tmp_path):
    """Records, tree hashes and signed head of the rebuilt log are those of the lost one."""
    ledger, folder, signer = made
    source = reader(ledger, folder)
    with SqliteLedger.create(tmp_path / "again.sqlite", ORIGIN, signer=signer) as again:
        again.append_many([record for _, record in source.scan()])
        assert str(again.head()) == str(ledger.head())
        for table in ("entries", "nodes", "checkpoints"):
            query = f"SELECT * FROM {table} ORDER BY id"
            assert again._db.execute(query).fetchall() == ledger._db.execute(query).fetchall()
        assert again.check(against=ledger.head()).size == SIZE


def test_bundles_hold_exactly_what_they_should():
    records = [b"", b"a", b"b" * 65535]
    assert unbundle(bundle(records), 3) == records
    for data, count in (
        *((bundle(records), 2), (bundle(records), 4), (bundle(records)[:-1], 3)),
        *((bundle(records) + b"\0", 3), (b"\0", 1), (b"", 1)),
    ):
        with pytest.raises(LedgerError):
            unbundle(data, count)
    with pytest.raises(LedgerError, match="no tile"):
        bundle([b"x" * 65536])


def test_what_is_missing_is_an_error_of_ours(made, tmp_path):
    with pytest.raises(EarmarkError):
        reader(made[0], tmp_path).head()
