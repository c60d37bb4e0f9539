"""The time of a finalised block, as a proof of time for any digest."""

from __future__ import annotations

import time

from earmark.errors import LedgerError, NetworkError, RecordError
from earmark.ledger.evm.chain import Chain, Wait
from earmark.ledger.timeproof import Moment, TimeProof, TimeSource, require_digest

BLOCK_SECONDS = 15
"""How far a block's time may be off on today's proof-of-stake and BFT chains."""


class BlockTime(TimeSource):
    """A contract that keeps when it first saw a digest; anyone may stamp, nobody owns a stamp.

    Args:
        chain: The contract, opened with an account to stamp, without one to verify.
        uncertainty: How far the chain lets a block's time be off, seconds.
        wait: Called between two looks at a chain that has not got on yet.
        seconds: How long `stamp` waits for finality.
    """

    kind = "block"

    def __init__(
        self,
        chain: Chain,
        *,
        uncertainty: int = BLOCK_SECONDS,
        wait: Wait | None = None,
        seconds: float = 300.0,
    ) -> None:
        self.chain, self._uncertainty, self._seconds = chain, uncertainty, seconds
        self._wait = wait or (lambda: time.sleep(1.0))

    @property
    def _name(self) -> str:
        return f"chain {self.chain.id} {self.chain.address}"

    def stamp(self, digest: str) -> TimeProof:
        """See `TimeSource.stamp`; returns once the block is final.

        Raises:
            NetworkError: It is not final in time; ask again, nothing is stamped twice.
            OutputError: The chain refuses.
        """
        require_digest(digest)
        key = bytes.fromhex(digest)
        if not self.chain.call("stamps", key, at=self.chain.newest()):
            self.chain.send("stamp", key)
        until = time.monotonic() + self._seconds
        while not (self._final() and self.chain.call("stamps", key)):
            if time.monotonic() > until:
                raise NetworkError("The stamp is in a block that is not final yet.")
            self._wait()
        return TimeProof(self.kind, digest, self._name)

    def verify(self, proof: TimeProof) -> Moment:
        """See `TimeSource.verify`; asks the chain."""
        self._mine(proof)
        if proof.data != self._name:
            raise LedgerError(f"The stamp is on {proof.data[:80]}.", expected=f"{self._name}.")
        found = int(self.chain.call("stamps", bytes.fromhex(proof.subject))) if self._final() else 0
        if not found:
            raise LedgerError(f"No finalised block of {self._name} holds this stamp.")
        return unpack(self._name, found, self._uncertainty)

    def _final(self) -> bool:
        return self.chain.there(self.chain.final().number)


def unpack(source: str, value: int, uncertainty: int) -> Moment:
    """Read what the contract packs into one word: 1 or index + 1, time, height, 64 bits each.

    Raises:
        RecordError: The time is none.
    """
    when = (value >> 64) & (2**64 - 1)
    if not when:
        raise RecordError("A stamp without a time is none.")
    return Moment(source, when, uncertainty)
