"""The chain behind the `Ledger` port: finalised blocks only, the trees and proofs of every tier."""

from __future__ import annotations

import pytest
from chains import ORIGIN, record

from earmark.errors import (
    AccessError,
    ExtraError,
    LedgerError,
    NetworkError,
    OutputError,
    RecordError,
    UsageError,
)
from earmark.ledger.evm import chain as chain_module
from earmark.ledger.evm.chain import Chain
from earmark.ledger.log import SqliteLedger
from earmark.ledger.note import SignerKey
from earmark.ledger.port import Finality, Watcher, beacon, verify_receipt


@pytest.fixture(scope="module")
def filled(town):
    """Make a contract with seven entries, and their receipts."""
    chain = town.deploy()
    ledger = town.ledger(chain)
    return chain, ledger, [ledger.append(record(number)) for number in range(7)]


@pytest.fixture
def chain(filled):
    return filled[0]


def test_every_receipt_proves_its_record_without_the_chain(filled, town):
    _, ledger, receipts = filled
    for number, receipt in enumerate(receipts):
        signed = verify_receipt(record(number), receipt, ledger.vkey)
        assert receipt.index == number
        assert ledger.finality(receipt) is Finality.FINAL
        kind, height, digest = signed.body.extensions[0].split(" ")
        assert kind == "block"
        assert town.web3.eth.get_block(int(height))["hash"].hex() == digest
        with pytest.raises(LedgerError):
            verify_receipt(record(number + 1), receipt, ledger.vkey)
        with pytest.raises(LedgerError):  # its beacon is the next block's, not the log's root
            beacon(receipt)


def test_roots_proofs_and_texts_are_those_of_the_embedded_ledger(filled, tmp_path):
    _, ledger, _ = filled
    with SqliteLedger.create(tmp_path / "l.sqlite", ORIGIN) as other:
        made = [other.append(record(number)) for number in range(7)]
        assert list(other.scan()) == list(ledger.scan())
        assert list(other.scan(3)) == list(ledger.scan(3))
        assert other.head().root == ledger.head().root
        for seen, receipt in zip(ledger.seen(), made, strict=True):
            assert seen.checkpoint.body == other.root_after(seen.index).body
            assert ledger.get(seen.index) == other.get(seen.index)
            assert ledger.prove(seen.index, 7) == other.prove(seen.index, 7)
            assert receipt.leaf_hash == ledger.receipt(seen.index).leaf_hash
        for old in range(8):
            assert ledger.prove_consistency(old, 7) == other.prove_consistency(old, 7)


def test_times_rise_and_beacons_are_drawn_from_the_block_after(filled, town):
    chain, ledger, _ = filled
    seen = ledger.seen()
    assert [item.time for item in seen] == sorted(item.time for item in seen)
    assert len({item.beacon for item in seen}) == 7
    again = town.ledger(chain).seen()
    assert [(item.time, item.beacon) for item in again] == [
        (item.time, item.beacon) for item in seen
    ]
    assert ledger.seen(5) == seen[5:]


def test_a_watcher_follows_it(filled, town):
    chain, ledger, _ = filled
    other = town.ledger(chain, signer=ledger._observer)
    watcher = Watcher(ledger.vkey)
    assert watcher.follow(ledger).size == 7
    assert watcher.follow(other).size == 7


def test_what_is_not_there_cannot_be_asked_for(filled):
    _, ledger, _ = filled
    for ask in (
        lambda: ledger.get(7),
        lambda: ledger.get(-1),
        lambda: ledger.prove(0, 8),
        lambda: ledger.prove(7, 7),
        lambda: ledger.prove_consistency(3, 8),
    ):
        with pytest.raises(UsageError):
            ask()
    for bad in (b"", b"{ }", b'{"a":1,"a":1}'):
        with pytest.raises(RecordError):
            ledger.append(bad)
    with pytest.raises(OutputError, match="takes 32,768"):
        ledger.append(b'"' + b"x" * 32768 + b'"')


def test_a_record_is_entered_once(filled):
    _, ledger, receipts = filled
    again = ledger.append(record(3))
    assert again.index == 3
    assert ledger.head().size == 7
    verify_receipt(record(3), again, ledger.vkey)
    assert receipts[3].index == 3


def test_an_entry_counts_once_the_block_after_it_is_final(town):
    chain = town.deploy()
    ledger = town.ledger(chain, seconds=0.0)
    ledger._wait = lambda: None
    assert ledger.status(record(0)) is None
    with pytest.raises(NetworkError, match="not final yet"):
        ledger.append(record(0))
    assert ledger.status(record(0)) is Finality.PENDING
    assert ledger.head().size == 0
    ledger.send(record(0))  # sent again: nothing happens
    town.mine()
    assert ledger.status(record(0)) is Finality.FINAL
    assert ledger.append(record(0)).index == 0
    assert ledger.head().size == 1


def test_a_depth_stands_in_where_the_chain_does_not_say_what_is_final(town):
    chain = town.deploy(depth=3)
    ledger = town.ledger(chain)
    ledger.send(record(0))
    assert ledger.head().size == 0
    town.mine(3)
    assert ledger.head().size == 0
    town.mine(1)
    assert ledger.head().size == 1
    reader = Chain(town.web3, chain.address)
    reader.web3 = type("Silent", (), {"eth": None})()
    with pytest.raises((AccessError, AttributeError)):
        reader.final()


class Lying(Chain):
    """A node that shows what it likes."""

    change = staticmethod(lambda entries: entries)
    took_back = False

    def posted(self, first, last):
        return iter(self.change(list(super().posted(first, last))))

    def block(self, number):
        found = super().block(number)
        if self.took_back:
            return chain_module.Block(found.number, found.time, bytes(32))
        return found


@pytest.mark.parametrize("lie", ["drops", "swaps", "changes", "adds", "renumbers"])
def test_a_node_that_shows_other_entries_is_found(town, filled, lie):
    def change(entries):
        first, second, *rest = entries
        other = chain_module.Posted(first.index, first.leaf, record(99), first.block)
        return {
            "drops": [*entries[:-1]],
            "swaps": [second, first, *rest],
            "changes": [other, second, *rest],
            "adds": [*entries, chain_module.Posted(7, entries[-1].leaf, entries[-1].record, 1)],
            "renumbers": [first, second, *entries[1:]],
        }[lie]

    node = Lying(town.web3, filled[0].address, since=filled[0].since)
    node.change = change
    with pytest.raises(LedgerError, match="history that cannot be"):
        town.ledger(node).head()


def test_a_chain_that_takes_back_a_final_block_is_found(town, filled):
    node = Lying(town.web3, filled[0].address, since=filled[0].since)
    ledger = town.ledger(node)
    assert ledger.head().size == 7
    node.took_back = True
    with pytest.raises(LedgerError, match="took back block"):
        ledger.head()


def test_the_observers_name_must_be_the_logs(town, chain):
    from earmark.ledger.evm.ledger import EvmLedger

    with pytest.raises(LedgerError, match="keeps the log"):
        EvmLedger(chain, SignerKey.generate("log.example/other"))


def test_a_receipt_of_another_history_is_not_final(town, filled):
    _, ledger, receipts = filled
    other = town.ledger(town.deploy(), signer=ledger._observer)
    with pytest.raises(LedgerError, match="does not hold"):
        other.finality(receipts[6])
    for number in range(7):
        other.append(record(number, "other"))
    with pytest.raises(LedgerError, match="another history"):
        other.finality(receipts[6])


def test_nothing_of_it_is_imported_before_it_is_used(monkeypatch):
    import subprocess
    import sys

    code = "import earmark.ledger.evm.ledger, sys; sys.exit('web3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match="evm"):
        chain_module.connect("http://127.0.0.1:1")


def test_a_node_that_does_not_answer_says_so():
    with pytest.raises(NetworkError, match="does not answer"):
        Chain("http://127.0.0.1:1", "0x" + "11" * 20)
