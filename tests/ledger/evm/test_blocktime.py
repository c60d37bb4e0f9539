from __future__ import annotations

import pytest

from earmark import codec
from earmark.errors import LedgerError, NetworkError, RecordError
from earmark.ledger.evm.blocktime import BlockTime, unpack
from earmark.ledger.evm.chain import Chain
from earmark.ledger.timeproof import TimeProof

DIGEST = codec.digest(b"something")


def test_a_block_proves_a_digest_and_the_first_stamp_stays(town):
    chain = town.deploy()
    source = BlockTime(chain, wait=town.mine)
    proof = source.stamp(DIGEST)
    found = BlockTime(Chain(town.web3, chain.address)).verify(proof)
    assert abs(found.time - chain.final().time) < 60
    assert found.uncertainty == 15
    town.later(1000)
    assert source.verify(source.stamp(DIGEST)) == found
    with pytest.raises(LedgerError, match="No finalised block"):
        source.verify(TimeProof("block", codec.digest(b"else"), proof.data))
    with pytest.raises(LedgerError, match="The stamp is on"):
        BlockTime(town.deploy()).verify(proof)
    with pytest.raises(LedgerError, match="kind"):
        source.verify(TimeProof("rfc3161", DIGEST, proof.data))
    with pytest.raises(RecordError):
        unpack("x", 1, 15)


def test_a_stamp_that_is_not_final_is_no_proof(town):
    chain = town.deploy(depth=5)
    source = BlockTime(chain, wait=lambda: None, seconds=0)
    with pytest.raises(NetworkError, match="not final yet"):
        source.stamp(DIGEST)
    with pytest.raises(LedgerError):
        source.verify(TimeProof("block", DIGEST, source._name))
    town.mine(6)
    source.verify(source.stamp(DIGEST))
