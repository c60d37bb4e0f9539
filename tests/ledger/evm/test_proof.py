"""Proofs from a block's state: recorded once from Anvil, checked on every run without any chain."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from chains import Anvil, anvil_program, record

from earmark import codec
from earmark.errors import AccessError, LedgerError
from earmark.ledger.evm.proof import BlockProof, keccak, prove
from earmark.ledger.merkle import leaf_hash

RECORDED = Path(__file__).parent / "block-proof.json"


@pytest.fixture
def proof():
    return BlockProof.from_bytes(RECORDED.read_bytes())


def test_a_recorded_proof_holds_without_the_chain(proof):
    index, moment = proof.verify(proof.block_hash)
    assert index == 2
    assert proof.subject == leaf_hash(record(2)).hex()
    assert moment.time > 1_700_000_000
    assert moment.source == f"chain 31337 {proof.contract}"
    assert len(RECORDED.read_bytes()) < 8000
    assert keccak(b"").hex().startswith("c5d2460186f7233c")


def test_it_holds_for_nothing_else(proof):
    block = proof.block_hash
    with pytest.raises(LedgerError, match="is of block"):
        proof.verify("00" * 32)
    for changed in (
        replace(proof, subject=leaf_hash(record(3)).hex()),
        replace(proof, what="stamps"),
        replace(proof, contract="0x" + "11" * 20),
        replace(proof, storage=proof.account),
        replace(proof, storage=proof.storage[:-1]),
        replace(proof, account=proof.account[1:]),
        replace(proof, account=(), storage=()),
    ):
        with pytest.raises(LedgerError):
            changed.verify(block)


def test_every_changed_byte_is_refused(proof):
    chance, block = random.Random(0), proof.block_hash
    for name in ("header", "account", "storage"):
        value = getattr(proof, name)
        items = [value] if isinstance(value, str) else list(value)
        for place, item in enumerate(items):
            for at in chance.sample(range(len(item) // 2), min(25, len(item) // 2)):
                data = bytearray.fromhex(item)
                data[at] ^= 1 << chance.randrange(8)
                parts = [*items[:place], data.hex(), *items[place + 1 :]]
                changed = parts[0] if isinstance(value, str) else tuple(parts)
                with pytest.raises(LedgerError):
                    replace(proof, **{name: changed}).verify(block)


def test_a_node_without_proofs_says_so(town):
    chain = town.deploy()
    chain.send("post", record(0))
    with pytest.raises(AccessError, match="no proof"):
        prove(chain, "places", leaf_hash(record(0)))


@pytest.mark.skipif(anvil_program() is None, reason="no Anvil")
def test_a_node_gives_proofs_of_records_and_stamps():
    town = Anvil("--slots-in-an-epoch", "1")
    try:
        chain = town.deploy()
        for number in range(4):
            chain.send("post", record(number))
        digest = bytes.fromhex(codec.digest(b"something"))
        chain.send("stamp", digest)
        town.mine(4)
        made = prove(chain, "places", leaf_hash(record(2)))
        index, moment = made.verify(made.block_hash)
        block = town.web3.eth.get_block(chain.since + 3)
        assert (index, moment.time) == (2, block["timestamp"])
        assert bytes(town.web3.eth.get_block(chain.final().number)["hash"]).hex() == made.block_hash
        stamped = prove(chain, "stamps", digest)
        assert stamped.verify(stamped.block_hash)[0] is None
        with pytest.raises(LedgerError, match="no such entry"):
            prove(chain, "places", leaf_hash(record(9)))
        if not RECORDED.exists():
            RECORDED.write_bytes(made.canonical())
    finally:
        town.stop()
