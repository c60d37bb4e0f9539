"""Reorganisations and clocks, on Anvil: a chain as a process that can be made to take back blocks."""

from __future__ import annotations

import pytest
from chains import Anvil, anvil_program, record

from earmark.errors import LedgerError, OutputError
from earmark.ledger.port import Finality

pytestmark = pytest.mark.skipif(
    anvil_program() is None, reason="no Anvil: npm install @foundry-rs/anvil, or set EARMARK_ANVIL"
)


@pytest.fixture(scope="module")
def town():
    made = Anvil("--slots-in-an-epoch", "2")  # final is what lies four blocks below the newest
    yield made
    made.stop()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_a_reorganisation_takes_back_was_never_called_final(town, depth):
    chain = town.deploy()
    town.mine(8)
    ledger = town.ledger(chain)
    ledger.append(record(0))
    head = str(ledger.head().body.root)
    before = town.rpc("evm_snapshot")
    ledger.send(record(depth))
    town.mine(depth - 1)
    assert ledger.status(record(depth)) is Finality.PENDING
    town.rpc("anvil_reorg", depth, [])
    assert ledger.status(record(depth)) is None, "it vanished"
    assert ledger.head().size == 1
    assert str(ledger.head().body.root) == head
    receipt = ledger.append(record(depth))  # sent again, it enters
    assert receipt.index == 1
    assert ledger.finality(receipt) is Finality.FINAL
    town.rpc("evm_revert", before)


def test_a_reorganisation_that_reorders_leaves_one_history(town):
    chain = town.deploy()
    town.mine(8)
    ledger = town.ledger(chain)
    snapshot = town.rpc("evm_snapshot")
    ledger.send(record(1))
    ledger.send(record(2))
    assert ledger.head().size == 0
    town.rpc("evm_revert", snapshot)
    ledger.send(record(2))
    ledger.send(record(1))
    town.mine(8)
    assert [item for _, item in ledger.scan()] == [record(2), record(1)]
    assert [item for _, item in town.ledger(chain).scan()] == [record(2), record(1)]


def test_who_agreed_on_too_small_a_depth_finds_out(town):
    chain = town.deploy(depth=1)
    town.mine(4)
    ledger = town.ledger(chain)
    ledger.append(record(0))
    town.mine(1)
    assert ledger.head().size == 1
    town.rpc("anvil_reorg", 5, [])
    with pytest.raises(LedgerError, match=r"took back block|cannot be"):
        ledger.head()


def test_a_block_cannot_be_older_than_the_one_before(town):
    now = town.web3.eth.get_block("latest")["timestamp"]
    answer = town.web3.provider.make_request("evm_setNextBlockTimestamp", [now - 100])
    assert "error" in answer
    town.mine()
    assert town.web3.eth.get_block("latest")["timestamp"] >= now


def test_a_clock_that_jumps_ahead_closes_the_window(town):
    chain = town.deploy(voters=(0, 1, 2))
    chain.send("open_claim", record(9), bytes(32), bytes(32), bytes(32))
    docket = chain.contract.events.Opened().get_logs(from_block=chain.since)[0]["args"]["docket"]
    town.later(10 * 365 * 86400)
    with pytest.raises(OutputError, match="too late"):
        chain.send("vote_commit", record(10), docket, b"s" * 32)
    chain.send("resolve", docket)
    assert chain.call("cases", docket, at=chain.newest())[-1] == 4
    ledger = town.ledger(chain)
    ledger.append(record(11))
    times = [item.time for item in ledger.seen()]
    assert times[1] - times[0] >= 10 * 365 * 86400
