"""An export proves itself, an import is the same tree, and neither takes what does not fit."""

from __future__ import annotations

import json

import pytest

from earmark import codec
from earmark.errors import EarmarkError, FormatError, LedgerError, SignatureError, UsageError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.log import SqliteLedger
from earmark.ledger.moving import Archive, Move, export_log, import_log
from earmark.ledger.note import SignerKey
from earmark.ledger.timeproof import TimeProof

from .conftest import ORIGIN, entry

PROOF = TimeProof("rfc3161", codec.digest(b"head"), "token")


@pytest.fixture
def exported(ledger, tmp_path):
    export_log(ledger, tmp_path / "e.jsonl", proofs=[PROOF])
    return tmp_path / "e.jsonl"


def test_an_export_holds_everything(ledger, exported, grown):
    archive = Archive.read(exported, vkey=grown[1])
    assert list(archive.records()) == [record for _, record in ledger.scan()]
    assert archive.header.proofs == (PROOF,)
    assert str(archive.head) == str(ledger.head())
    has = [row.checkpoint is not None for row in archive.rows]
    assert has == [True, True, False, False, False, False, True, True], "as it was appended"
    with pytest.raises(UsageError):
        export_log(ledger, exported)
    assert export_log(ledger, exported, overwrite=True) == 8


def test_an_import_is_the_same_tree_with_the_same_checkpoints(ledger, exported, tmp_path):
    archive = Archive.read(exported)
    with SqliteLedger.create(tmp_path / "new.sqlite", "log.example/new") as new:
        move = Move.from_bytes(import_log(archive, new).canonical())
        assert move.verify() == 8
        assert new.head().root == ledger.head().root
        assert new.check().checkpoints == ledger.check().checkpoints
        for index in range(8):
            assert new.root_after(index).size == ledger.root_after(index).size
        assert import_log(archive, new) == move
        new.append(entry(8))
        with pytest.raises(UsageError, match="other entries"):
            import_log(archive, new)


def test_an_import_that_was_interrupted_goes_on(ledger, exported, tmp_path):
    archive = Archive.read(exported)
    with SqliteLedger.create(tmp_path / "new.sqlite", ORIGIN) as new:
        new.append(entry(0))
        new.append(entry(1))
        assert import_log(archive, new).verify() == 8
    with SqliteLedger.create(tmp_path / "other.sqlite", ORIGIN) as other:
        other.append(entry(5))
        with pytest.raises(UsageError, match="other entries"):
            import_log(archive, other)


def test_every_changed_line_is_found(exported, tmp_path):
    lines = exported.read_bytes().split(b"\n")
    for at in range(len(lines)):
        for changed in (
            [*lines[:at], *lines[at + 1 :]],
            [
                *lines[:at],
                lines[at].replace(b"number", b"numbex").replace(b"lab", b"lax"),
                *lines[at + 1 :],
            ],
            [*lines[:at], lines[at], *lines[at:]],
        ):
            if changed == lines or (at == len(lines) - 1 and changed[-1] == b""):
                continue
            path = tmp_path / "changed"
            path.write_bytes(b"\n".join(changed))
            with pytest.raises(EarmarkError):
                Archive.read(path)
    for cut in range(0, len(exported.read_bytes()) - 1, 97):
        (tmp_path / "cut").write_bytes(exported.read_bytes()[:cut])
        with pytest.raises(EarmarkError):
            Archive.read(tmp_path / "cut")


def test_the_head_and_the_key_must_be_right(exported, grown, tmp_path):
    with pytest.raises(LedgerError, match="is of the log"):
        Archive.read(exported, vkey=str(SignerKey.generate(ORIGIN).verifier))
    lines = exported.read_bytes().split(b"\n")
    header = json.loads(lines[0])
    header["head"] = grown[2][0].checkpoint  # an older head of the same log
    (tmp_path / "h").write_bytes(b"\n".join([codec.canonical(header), *lines[1:]]))
    with pytest.raises(LedgerError, match="does not lead to its head"):
        Archive.read(tmp_path / "h")
    (tmp_path / "no").write_bytes(b"x")
    with pytest.raises(FormatError):
        Archive.read(tmp_path / "no")


def test_a_move_between_two_trees_is_none(ledger, grown, tmp_path):
    with SqliteLedger.create(tmp_path / "new.sqlite", ORIGIN) as new:
        for number in range(8):
            new.append(entry(number, "b"))
        move = Move(ledger.vkey, str(ledger.head()), new.vkey, str(new.head()))
        with pytest.raises(LedgerError, match="is not that of"):
            move.verify()
        with pytest.raises(SignatureError):
            Move(new.vkey, str(ledger.head()), new.vkey, str(new.head())).verify()
    assert SignedCheckpoint.parse(grown[2][7].checkpoint).size == 8


def test_an_empty_ledger_is_exported_too(tmp_path):
    with SqliteLedger.create(tmp_path / "l.sqlite", ORIGIN) as ledger:
        assert export_log(ledger, tmp_path / "e") == 0
    assert Archive.read(tmp_path / "e").rows == ()
