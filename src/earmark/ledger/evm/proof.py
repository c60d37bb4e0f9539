"""A block's own proof that a record or digest was entered, checked without the chain.

A chain of Ethereum's kind commits to all of its state in each block's header. With the header, a
path to the contract's account, and a path to one word of its storage (`eth_getProof`, EIP-1186),
anyone checks that the contract held an entry at that block, from 2 kB and the block's hash. That
the hash is a final block's is left to the reader, who has it from a node of his own, from a light
client, or from a witness.

Chains with another state tree (CometBFT's, for instance) answer `eth_getProof` in a form of their
own; their proofs are refused here.

Source: Ethereum yellow paper, sections 4.3.1 and 4.3.3 and appendices B and D; the trie is read by
the ``trie`` package. The header's fields are taken as RLP and hashed, so later fields do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from earmark.errors import AccessError, LedgerError
from earmark.ledger.evm.blocktime import BLOCK_SECONDS, unpack
from earmark.ledger.evm.chain import Chain, answered, artifact
from earmark.ledger.timeproof import Moment
from earmark.records import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

_STATE_ROOT, _NUMBER, _TIME = 3, 8, 11


@dataclass(frozen=True, slots=True)
class BlockProof(Record):
    """Proof that a contract held something at a block.

    Args:
        chain: The chain's id.
        contract: The contract's address.
        what: "places" for a record's leaf hash, "stamps" for a digest.
        subject: That hash, 64 hexadecimal digits.
        header: The block's header, RLP, hexadecimal.
        account: Nodes of the state tree down to the contract, RLP, hexadecimal.
        storage: Nodes of its storage tree down to the word.
    """

    SCHEMA: ClassVar[str] = "earmark/block-proof/1"
    chain: int
    contract: str
    what: str
    subject: str
    header: str
    account: tuple[str, ...]
    storage: tuple[str, ...]

    @property
    def block_hash(self) -> str:
        """The block's hash; the proof is worth as much as this is known to be final."""
        return keccak(bytes.fromhex(self.header)).hex()

    def verify(self, block_hash: str) -> tuple[int | None, Moment]:
        """Check the proof against a block's hash.

        Args:
            block_hash: Of a final block, from a source that you trust.

        Returns:
            The record's index (null for a stamped digest), and when it was entered.

        Raises:
            LedgerError: The proof does not hold.
        """
        import rlp

        if self.block_hash != block_hash.removeprefix("0x"):
            raise LedgerError(f"The proof is of block {self.block_hash}.", expected=block_hash)
        try:
            header = rlp.decode(bytes.fromhex(self.header))
            address = bytes.fromhex(self.contract.removeprefix("0x"))
            account = rlp.decode(_read(header[_STATE_ROOT], keccak(address), self.account))
            key = keccak(slot(self.what, bytes.fromhex(self.subject)))
            word = rlp.decode(_read(account[2], key, self.storage))
        except (ValueError, IndexError, TypeError, rlp.exceptions.RLPException) as error:
            raise LedgerError(f"The block's proof does not hold: {error}.") from error
        value = int.from_bytes(word, "big")
        moment = unpack(f"chain {self.chain} {self.contract}", value, BLOCK_SECONDS)
        entered, when = value >> 128, int.from_bytes(header[_TIME], "big")
        if entered > int.from_bytes(header[_NUMBER], "big") or moment.time > when:
            raise LedgerError("The block's proof speaks of a later block than its own.")
        index = (value & (2**64 - 1)) - 1 if self.what == "places" else None
        return index, moment


def prove(chain: Chain, what: str, subject: bytes) -> BlockProof:
    """Ask a node for the proof that the contract holds something, at the newest final block.

    Args:
        chain: The contract.
        what: "places" for a record's leaf hash, "stamps" for a digest.
        subject: That hash.

    Raises:
        AccessError: The node gives no proofs, or its chain's are of another kind.
        LedgerError: The contract does not hold it.
    """
    number = chain.final().number
    with answered():
        block = chain.web3.eth.get_block(number)
    try:
        ask: Any = chain.web3.eth.get_proof  # Any: web3's own types
        found = ask(chain.contract.address, [int.from_bytes(slot(what, subject), "big")], number)
        nodes = [bytes(item) for item in found["accountProof"]]
        storage = [bytes(item) for item in found["storageProof"][0]["proof"]]
    except Exception as error:
        raise AccessError(
            f"The node of chain {chain.id} gives no proof of its state: {error}"
        ) from error
    made = BlockProof(
        chain=chain.id,
        contract=chain.address,
        what=what,
        subject=subject.hex(),
        header=header_of(block).hex(),
        account=tuple(item.hex() for item in nodes),
        storage=tuple(item.hex() for item in storage),
    )
    if made.block_hash != bytes(block["hash"]).hex():
        raise AccessError(f"Chain {chain.id} has headers of another kind than Ethereum's.")
    made.verify(made.block_hash)
    return made


def header_of(block: Any) -> bytes:  # Any: web3's own type
    """Write a block's header as it is hashed, with the fields that later forks have added."""
    import rlp

    names = (
        *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot"),
        *("logsBloom", "difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData"),
        *("mixHash", "nonce", "baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas"),
        *("parentBeaconBlockRoot", "requestsHash"),
    )
    made: bytes = rlp.encode([_field(block[name]) for name in names if name in block])
    return made


def _field(value: Any) -> bytes:  # Any: web3's own types
    if isinstance(value, int):
        return value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else bytes(value)


def slot(what: str, subject: bytes) -> bytes:
    """Return the storage slot of an entry of one of the contract's maps (Vyper's layout)."""
    place = int(artifact()["slots"][what])
    return keccak(place.to_bytes(32, "big") + subject)


def keccak(data: bytes) -> bytes:
    """Hash as Ethereum does."""
    from eth_hash.auto import keccak as hashed

    return bytes(hashed(data))


def _read(root: bytes, key: bytes, nodes: Sequence[str]) -> bytes:
    """Read a value from a path of trie nodes; a key that is not there gives no bytes."""
    import rlp
    from trie.hexary import HexaryTrie

    try:
        path = [rlp.decode(bytes.fromhex(item)) for item in nodes]
        made: bytes = HexaryTrie.get_from_proof(root, key, path)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the trie makes of a stranger's bytes
        raise LedgerError(f"The block's proof does not hold: {type(error).__name__}.") from error
    if not made:
        raise LedgerError("The block holds no such entry.")
    return made
