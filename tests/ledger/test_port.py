"""What a receipt proves offline, what a beacon is, and what a watcher refuses."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from earmark.errors import IntegrityError, LedgerError, SignatureError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.log import SqliteLedger, key_path
from earmark.ledger.note import SignerKey, VerifierKey
from earmark.ledger.port import Watcher, beacon, from_hex, verify_receipt
from earmark.records import Receipt

from .conftest import ORIGIN, duplicate, entry


def flips(data):
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_every_receipt_proves_its_record_from_three_values_alone(grown):
    _, vkey, receipts = grown
    for number, receipt in enumerate(receipts):
        stored = Receipt.from_bytes(receipt.canonical())
        signed = verify_receipt(entry(number), stored, vkey)
        assert signed.size == (7 if 2 <= number <= 6 else number + 1)
        assert verify_receipt(entry(number), stored, VerifierKey.parse(vkey)) == signed


def test_a_receipt_proves_no_other_record(grown):
    _, vkey, receipts = grown
    for bad in flips(entry(3)):
        with pytest.raises(LedgerError, match="another record"):
            verify_receipt(bad, receipts[3], vkey)


def test_every_single_bit_change_of_a_receipt_is_refused(grown):
    _, vkey, receipts = grown
    receipt = receipts[3]
    changed = [
        dataclasses.replace(receipt, leaf_hash=bad.hex())
        for bad in flips(from_hex(receipt.leaf_hash))
    ]
    changed += [dataclasses.replace(receipt, index=3 ^ 1 << bit) for bit in range(63)]
    for place, item in enumerate(receipt.proof):
        for bad in flips(from_hex(item)):
            proof = (*receipt.proof[:place], bad.hex(), *receipt.proof[place + 1 :])
            changed.append(dataclasses.replace(receipt, proof=proof))
    for bad in flips(receipt.checkpoint.encode()):
        text = bad.decode("utf-8", "surrogateescape")
        changed.append(dataclasses.replace(receipt, checkpoint=text))
    for text in flips(receipt.origin.encode()):
        changed.append(dataclasses.replace(receipt, origin=text.decode("latin-1")))
    for proof in ((), receipt.proof[1:], receipt.proof[:-1], (*receipt.proof, "0" * 64)):
        changed.append(dataclasses.replace(receipt, proof=proof))
    assert len(changed) > 2500
    for bad in changed:
        with pytest.raises(IntegrityError):
            verify_receipt(entry(3), bad, vkey)


def test_a_receipt_holds_under_no_other_key(grown):
    _, vkey, receipts = grown
    with pytest.raises(SignatureError):
        verify_receipt(entry(3), receipts[3], str(SignerKey.generate(ORIGIN).verifier))
    with pytest.raises(LedgerError, match="of the log"):
        verify_receipt(entry(3), receipts[3], str(SignerKey.generate("other").verifier))
    with pytest.raises(SignatureError):
        verify_receipt(entry(3), receipts[3], vkey[:-1])


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "0" * 64 + "\n", "A" * 64, " " + "0" * 63]
)
def test_only_canonical_hashes_are_read(text):
    with pytest.raises(LedgerError):
        from_hex(text)


def test_a_beacon_is_a_hash_of_the_signed_head_that_the_record_ended(grown):
    _, _, receipts = grown
    lines = receipts[1].checkpoint.split("\n\n")[0] + "\n"
    assert lines.split("\n")[:2] == [ORIGIN, "2"]
    assert beacon(receipts[1]) == hashlib.sha256(b"earmark/beacon/1\n" + lines.encode()).hexdigest()
    assert len({beacon(receipts[number]) for number in (0, 1, 6, 7)}) == 4


def test_a_beacon_leaves_no_choice_of_checkpoint(grown, ledger):
    _, _, receipts = grown
    for number in range(2, 6):
        with pytest.raises(LedgerError, match="not the one"):
            beacon(receipts[number])
    later = dataclasses.replace(
        receipts[1], checkpoint=str(ledger.head()), proof=ledger.prove(1, len(ledger))
    )
    verify_receipt(entry(1), later, ledger.vkey)
    with pytest.raises(LedgerError, match="not the one"):
        beacon(later)


def test_a_beacon_allows_no_extension_lines(grown):
    _, _, receipts = grown
    note = receipts[0].checkpoint.replace("\n\n", "\nchosen\n\n")
    with pytest.raises(LedgerError):
        beacon(dataclasses.replace(receipts[0], checkpoint=note))


def test_a_watcher_follows_a_ledger_that_grows(ledger):
    watcher = Watcher(ledger.vkey)
    assert watcher.head is None
    for size in (8, 8, 9, 10):
        if size > len(ledger):
            ledger.append(entry(size))
        assert watcher.follow(ledger).size == size
    again = Watcher(ledger.vkey, str(watcher.head))
    ledger.append_many([entry(number) for number in range(10, 20)])
    assert again.follow(ledger).size == 20


def test_a_watcher_refuses_a_rewind_and_keeps_what_it_knew(path, tmp_path):
    backup = duplicate(path, tmp_path / "backup.sqlite")
    with SqliteLedger.open(path) as ledger, SqliteLedger.open(backup) as old:
        ledger.append(entry(8))
        watcher = Watcher(ledger.vkey)
        watcher.follow(ledger)
        with pytest.raises(LedgerError, match="went back from 9 to 8"):
            watcher.follow(old)
        assert watcher.head.size == 9
        assert watcher.evidence is None


def test_a_watcher_refuses_a_split_view_and_keeps_the_evidence(path, tmp_path):
    other = duplicate(path, tmp_path / "other.sqlite")
    with SqliteLedger.open(path) as left, SqliteLedger.open(other) as right:
        left.append(entry(8, "left"))
        right.append(entry(8, "right"))
        watcher = Watcher(left.vkey)
        watcher.follow(left)
        with pytest.raises(LedgerError, match="two histories"):
            watcher.follow(right)
        first, second = (SignedCheckpoint.open(item, watcher.key) for item in watcher.evidence)
        assert first.size == second.size
        assert first.root != second.root
        right.append(entry(9, "right"))
        with pytest.raises(LedgerError, match="does not continue"):
            watcher.follow(right)
        with pytest.raises(LedgerError, match=r"does not continue|empty"):
            watcher.observe(str(right.head()))
        assert str(watcher.head) == str(left.head())


def test_a_watcher_refuses_a_head_of_another_key(path, tmp_path):
    with SqliteLedger.open(path) as ledger:
        watcher = Watcher(ledger.vkey)
    with SqliteLedger.create(tmp_path / "false.sqlite", ORIGIN) as false:
        with pytest.raises(SignatureError):
            watcher.follow(false)
        with pytest.raises(SignatureError):
            Watcher(watcher.key, str(false.head()))
    assert key_path(path).exists()
