"""The `Ledger` port on an EVM chain: order and time from finalised blocks, trees as everywhere.

The contract keeps the records in the same RFC 6962 tree as every other log, so inclusion and
consistency proofs, roots and checkpoint texts are those of the other engines. What differs is who
vouches for a head. A chain signs no checkpoints; an *observer* does, who has read the entries from
his node, derived the tree, and compared its root with the contract's at the same final block. His
checkpoints name that block in an extension line, so that anyone can ask the chain instead.

An entry counts once the block *after* its own is final too, because that block's hash is its
beacon: nobody could know it when the entry was sent, and only who proposes that block has any
influence on it, at the price of a block.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence

from earmark import codec
from earmark.errors import LedgerError, NetworkError, OutputError, UsageError
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.evm.chain import MAX_RECORD_BYTES, Block, Chain, Posted, Wait
from earmark.ledger.merkle import (
    EMPTY_ROOT,
    address,
    consistency_proof,
    fold,
    grow,
    inclusion_proof,
    leaf_hash,
    node_count,
    root_at,
)
from earmark.ledger.note import SignerKey
from earmark.ledger.port import Finality, Ledger, verify_receipt
from earmark.ledger.service import Seen
from earmark.records import Receipt

_BEACON_DOMAIN = b"earmark/beacon/evm/1\n"
_SECONDS = 300.0


class EvmLedger(Ledger):
    """A log in a contract.

    Args:
        chain: The contract.
        observer: Signs what this reader has seen; its name must be the log's.
        wait: Called between two looks at a chain that has not got on yet.
        seconds: How long `append` waits for finality.

    Raises:
        LedgerError: The contract keeps another log than the observer's name says.
    """

    def __init__(
        self,
        chain: Chain,
        observer: SignerKey,
        *,
        wait: Wait | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        self.chain, self._observer = chain, observer
        self._wait = wait or (lambda: time.sleep(1.0))
        self._seconds = seconds
        self._lock = threading.RLock()
        self._entries: list[Posted] = []
        self._beacons: list[str] = []
        self._times: list[int] = []
        self._places: dict[bytes, int] = {}
        self._nodes: list[bytes] = []
        self._peaks: tuple[bytes, ...] = ()
        self._next = chain.since
        self._settled: Block | None = None
        name = str(chain.call("name", at=chain.newest()))
        if name != observer.verifier.name:
            raise LedgerError(
                f"The contract keeps the log '{name}'.", expected=f"'{observer.verifier.name}'."
            )

    # -- the port ----------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """Name of the log."""
        return self._observer.verifier.name

    @property
    def vkey(self) -> str:
        """Public key of the observer."""
        return str(self._observer.verifier)

    def append(self, record: bytes) -> Receipt:
        """Enter a record and wait until it is final; see `Ledger.append`.

        A record that is there already is not entered again: its receipt is returned.

        Raises:
            OutputError: The contract or the chain refuses; nothing was added.
            NetworkError: It was sent and is not final yet; ask again with the same record.
        """
        self.send(record)
        return self.settle(record)

    def append_many(self, records: Sequence[bytes]) -> tuple[Receipt, ...]:
        """Enter records one after another and wait once, until the last one is final."""
        for record in records:
            self.send(record)
        return tuple(self.settle(record) for record in reversed(records))[::-1]

    def send(self, record: bytes) -> None:
        """Enter a record, if it is not there, without waiting for finality."""
        require_record(record)
        leaf = leaf_hash(record)
        with self._lock:
            self.sync()
            if leaf not in self._places and not self._pending(leaf):
                self.chain.send("post", record)

    def settle(self, record: bytes) -> Receipt:
        """Wait until a record that was sent is final, and return its receipt.

        Raises:
            NetworkError: It is not final in time.
        """
        until = time.monotonic() + self._seconds
        leaf = leaf_hash(record)
        while True:
            with self._lock:
                self.sync()
                if leaf in self._places:
                    return self.receipt(self._places[leaf])
            if time.monotonic() > until:
                raise NetworkError(
                    "The record was sent to the chain and is not final yet.",
                    hint="Ask again with the same record; it is not entered twice.",
                )
            self._wait()

    def get(self, index: int) -> bytes:
        """Return the record at an index; see `Ledger.get`."""
        with self._lock:
            self.sync()
            if not 0 <= index < len(self._entries):
                raise UsageError(
                    f"The log '{self.origin}' has {len(self._entries)} entries, no entry {index}."
                )
            return self._entries[index].record

    def scan(self, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (index, record) from `since` to the present head; see `Ledger.scan`."""
        with self._lock:
            self.sync()
            chosen = self._entries[max(0, since) :]
        for item in chosen:
            yield item.index, item.record

    def head(self) -> SignedCheckpoint:
        """Return a checkpoint of all settled entries, signed by the observer."""
        with self._lock:
            self.sync()
            return self._signed(len(self._entries), fold(self._peaks))

    def prove(self, index: int, size: int) -> tuple[str, ...]:
        """Prove that the first `size` entries hold entry `index`; see `Ledger.prove`."""
        with self._lock:
            self._require(size)
            return tuple(item.hex() for item in inclusion_proof(self._node, index, size))

    def prove_consistency(self, old: int, new: int) -> tuple[str, ...]:
        """Prove that nothing below `old` changed up to `new`; see `Ledger.prove_consistency`."""
        with self._lock:
            self._require(new)
            return tuple(item.hex() for item in consistency_proof(self._node, old, new))

    def finality(self, receipt: Receipt) -> Finality:
        """Return `Finality.FINAL` if the receipt's entry is settled; see `Ledger.finality`.

        A receipt is made for settled entries only, so there is no other answer but an error.
        """
        with self._lock:
            self.sync()
            signed = SignedCheckpoint.open(receipt.checkpoint, self._observer.verifier)
            if signed.size > len(self._entries) or receipt.index >= signed.size:
                raise LedgerError("The receipt is of a history that the chain does not hold.")
            if root_at(self._node, signed.size) != signed.root:
                raise LedgerError("The receipt is of another history than the chain's.")
            verify_receipt(self.get(receipt.index), receipt, self._observer.verifier)
            return Finality.FINAL

    # -- beyond the port ---------------------------------------------------------------------

    def status(self, record: bytes) -> Finality | None:
        """Say whether a record is final, in a block that may yet be taken back, or neither."""
        leaf = leaf_hash(record)
        with self._lock:
            self.sync()
            if leaf in self._places:
                return Finality.FINAL
            return Finality.PENDING if self._pending(leaf) else None

    def receipt(self, index: int) -> Receipt:
        """Make the receipt of a settled entry under the present head."""
        with self._lock:
            signed = self.head()
            record = self.get(index)
            proof = self.prove(index, signed.size)
            return Receipt(self.origin, index, leaf_hash(record).hex(), str(signed), proof)

    def seen(self, since: int = 0) -> list[Seen]:
        """Return settled entries with block time and beacon, as `earmark.protocol` reads them.

        Each entry's checkpoint is the one that ends with it, signed by the observer without
        naming a block, so that its text is the same in every tier.
        """
        with self._lock:
            self.sync()
            made = []
            for item in self._entries[since:]:
                size = item.index + 1
                body = Checkpoint(self.origin, size, root_at(self._node, size))
                signed = SignedCheckpoint.sign(body, self._observer)
                when, drawn = self._times[item.index], self._beacons[item.index]
                made.append(Seen(item.index, item.record, when, drawn, signed))
            return made

    def sync(self) -> None:
        """Read what has become final since the last time.

        Raises:
            LedgerError: The node shows another history than before, or one that does not give the
                contract's root.
            NetworkError: The node does not answer.
        """
        with self._lock:
            last = self.chain.final()
            settled = self.chain.block(last.number - 1) if last.number else last
            self._require_kept()
            if settled.number < self._next or not self.chain.there(settled.number):
                return
            fresh = list(self.chain.posted(self._next, settled.number))
            peaks = self._peaks
            nodes: list[bytes] = []
            for size, item in enumerate(fresh, start=len(self._entries)):
                if item.index != size or leaf_hash(item.record) != item.leaf:
                    raise self._broken(f"entry {size} is missing or another")
                peaks, new = grow(peaks, size, item.leaf)
                nodes += new
            count, root = self.chain.call("head", at=settled.number)
            if (int(count), bytes(root)) != (len(self._entries) + len(fresh), fold(peaks)):
                raise self._broken("its entries do not give the contract's root")
            blocks = {item.block: self.chain.block(item.block) for item in fresh}
            later = {number: self.chain.block(number + 1) for number in blocks}
            for item in fresh:
                self._places[item.leaf] = item.index
                self._times.append(blocks[item.block].time)
                self._beacons.append(draw(self.origin, item, later[item.block]))
            self._entries += fresh
            self._nodes += nodes
            self._peaks, self._next, self._settled = peaks, settled.number + 1, settled

    # -- within ------------------------------------------------------------------------------

    def _require_kept(self) -> None:
        """Refuse a chain that took back what it had called final."""
        if self._settled is None:
            return
        if self.chain.block(self._settled.number).hash != self._settled.hash:
            raise self._broken(f"it took back block {self._settled.number}, which was final")

    def _pending(self, leaf: bytes) -> bool:
        newest = self.chain.newest()
        return bool(self.chain.call("places", leaf, at=newest))

    def _signed(self, size: int, root: bytes) -> SignedCheckpoint:
        settled = self._settled
        lines = () if settled is None else (f"block {settled.number} {settled.hash.hex()}",)
        body = Checkpoint(self.origin, size, root if size else EMPTY_ROOT, lines)
        return SignedCheckpoint.sign(body, self._observer)

    def _node(self, level: int, index: int) -> bytes:
        return self._nodes[address(level, index)]

    def _require(self, size: int) -> None:
        self.sync()
        if size > len(self._entries):
            raise UsageError(
                f"The log '{self.origin}' has {len(self._entries)} entries, not yet {size}."
            )
        assert len(self._nodes) == node_count(len(self._entries))

    def _broken(self, why: str) -> LedgerError:
        return LedgerError(
            f"The node of chain {self.chain.id} shows a history that cannot be: {why}.",
            hint="Ask another node; do not rely on this one.",
        )


def require_record(record: bytes) -> None:
    """Refuse what the contract would not take.

    Raises:
        RecordError: No canonical JSON document.
        OutputError: Too large.
    """
    codec.parse(record)
    if len(record) > MAX_RECORD_BYTES:
        raise OutputError(
            f"A record of {len(record):,} bytes; the contract takes {MAX_RECORD_BYTES:,}."
        )


def draw(origin: str, item: Posted, later: Block) -> str:
    """Derive an entry's beacon from the block after its own: 64 hexadecimal digits."""
    text = f"{origin}\n{item.index}\n{item.leaf.hex()}\n{later.hash.hex()}\n"
    return hashlib.sha256(_BEACON_DOMAIN + text.encode()).hexdigest()
