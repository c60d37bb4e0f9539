"""A contract on an EVM chain as one account sees it, through any JSON-RPC node.

What a node says about a block that is not final is never passed on: all reading is done at the
newest *final* block. A chain without the ``finalized`` tag takes a depth instead; then final is a
matter of belief, and a second time proof is advisable.

The node is trusted as far as the caller trusts it. Use one's own.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from earmark.errors import (
    AccessError,
    ExtraError,
    LedgerError,
    NetworkError,
    OutputError,
    UsageError,
)

if TYPE_CHECKING:
    from web3 import Web3
    from web3.contract import Contract

MAX_RECORD_BYTES = 32768
_PAGE_BLOCKS = 2000


@dataclass(frozen=True, slots=True)
class Block:
    """What counts of a block.

    Args:
        number: Its height.
        time: Seconds since 1970, as the chain's validators agreed.
        hash: 32 bytes.
    """

    number: int
    time: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Posted:
    """One entry that the contract took.

    Args:
        index: Its place.
        leaf: RFC 6962 leaf hash of the record, as the contract computed it.
        record: The record.
        block: The block's height.
    """

    index: int
    leaf: bytes
    record: bytes
    block: int


@lru_cache(maxsize=1)
def artifact() -> dict[str, Any]:  # Any: ABI
    """Return the shipped ABI and bytecode."""
    text = resources.files(__package__).joinpath("court.json").read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def connect(where: str | Web3, *, seconds: float = 30.0) -> Web3:
    """Connect to a JSON-RPC node over HTTP; a `web3.Web3` that was made elsewhere is taken as is.

    Raises:
        ExtraError: The extra ``evm`` is not installed.
    """
    if importlib.util.find_spec("web3") is None:
        raise ExtraError(
            "A ledger on a chain needs the extra 'evm'.", hint="pip install 'earmark[evm]'"
        )
    from web3 import HTTPProvider, Web3

    if isinstance(where, Web3):
        return where
    return Web3(HTTPProvider(where, request_kwargs={"timeout": seconds}))


class Chain:
    """The contract at one address, read at final blocks and written to by one account.

    Args:
        where: A node's address, or a `web3.Web3`.
        address: The contract's.
        secret: The account's private key, 32 bytes; null to read only.
        depth: Blocks that must lie above a block before it counts as final, for chains that do
            not say what is final; null to ask the chain.
        since: Height of the contract's first block, if known: nothing below it is read.

    Raises:
        UsageError: There is no contract at the address.
        NetworkError: The node does not answer.
        ExtraError: The extra ``evm`` is not installed.
    """

    def __init__(
        self,
        where: str | Web3,
        address: str,
        *,
        secret: bytes | None = None,
        depth: int | None = None,
        since: int = 0,
    ) -> None:
        self.web3 = connect(where)
        self.depth, self.since = depth, since
        self._account = None if secret is None else self.web3.eth.account.from_key(secret)
        with answered():
            self.id: int = self.web3.eth.chain_id
            checked = self.web3.to_checksum_address(address)
            if not self.web3.eth.get_code(checked):
                raise UsageError(f"There is no contract at {address} on chain {self.id}.")
            self.contract: Contract = self.web3.eth.contract(address=checked, abi=artifact()["abi"])
        self.address = str(checked)

    @classmethod
    def deploy(
        cls,
        where: str | Web3,
        secret: bytes,
        *,
        name: str,
        voters: Sequence[str] = (),
        windows: tuple[int, int, int] = (600, 600, 600),
        depth: int | None = None,
    ) -> Chain:
        """Put a new contract on a chain.

        Args:
            where: A node's address, or a `web3.Web3`.
            secret: Private key of the account that pays.
            name: Name of the log.
            voters: Addresses of the voters; another electorate takes another contract.
            windows: Seconds to seal a ballot, to add after a challenge, and to reveal.
            depth: See `Chain`.

        Raises:
            OutputError: The chain refuses.
        """
        web3 = connect(where)
        code = web3.eth.contract(abi=artifact()["abi"], bytecode=artifact()["bytecode"])
        account = web3.eth.account.from_key(secret)
        call = code.constructor(name, [web3.to_checksum_address(item) for item in voters], *windows)
        receipt = _transact(web3, account, call)
        place, since = str(receipt["contractAddress"]), int(receipt["blockNumber"])
        return cls(web3, place, secret=secret, depth=depth, since=since)

    @property
    def account(self) -> str | None:
        """The account that writes, or null."""
        return None if self._account is None else str(self._account.address)

    def final(self) -> Block:
        """Return the newest block that the chain will not take back.

        Raises:
            AccessError: The node does not say what is final, and no depth was agreed on.
            NetworkError: The node does not answer.
        """
        if self.depth is not None:
            return self.block(max(0, self.newest() - self.depth))
        try:
            with answered():
                found = self.web3.eth.get_block("finalized")
        except NetworkError as error:
            raise AccessError(
                f"The node does not say which block is final: {error.what}",
                hint="Agree on a depth for this chain.",
            ) from error
        return _block(found)

    def newest(self) -> int:
        """Return the height of the newest block, which may yet be taken back."""
        with answered():
            return int(self.web3.eth.block_number)

    def there(self, number: int) -> bool:
        """Tell whether the contract was there at a block."""
        with answered():
            code = self.web3.eth.get_code(self.contract.address, block_identifier=number)
        return bool(code)

    def block(self, number: int) -> Block:
        """Return a block by its height."""
        with answered():
            return _block(self.web3.eth.get_block(number))

    def posted(self, first: int, last: int) -> Iterator[Posted]:
        """Yield what was entered in blocks `first` .. `last`, in order."""
        event = self.contract.events.Posted
        for start in range(first, last + 1, _PAGE_BLOCKS):
            stop = min(start + _PAGE_BLOCKS - 1, last)
            with answered():
                logs = event().get_logs(from_block=start, to_block=stop)
            for log in sorted(logs, key=lambda item: (item["blockNumber"], item["logIndex"])):
                found = log["args"]
                yield Posted(
                    int(found["index"]),
                    bytes(found["leaf"]),
                    bytes(found["record"]),
                    int(log["blockNumber"]),
                )

    def call(self, function: str, *arguments: object, at: int | None = None) -> Any:  # Any: ABI
        """Read from the contract as of a block, by default the newest final one."""
        number = self.final().number if at is None else at
        with answered():
            return self.contract.functions[function](*arguments).call(block_identifier=number)

    def send(self, function: str, *arguments: object) -> Any:  # Any: a receipt
        """Call a function in a transaction and wait until some block holds it; it is not final yet.

        Raises:
            OutputError: The contract or the chain refuses; the reason is in the message.
            UsageError: There is no account to sign with.
        """
        if self._account is None:
            raise UsageError("A chain that was opened without an account is read only.")
        return _transact(self.web3, self._account, self.contract.functions[function](*arguments))


class answered:  # noqa: N801 - a context manager that reads as a word
    """Turn what web3 raises into errors of this project."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if error is None or not isinstance(error, Exception):
            return
        from web3.exceptions import Web3Exception

        if isinstance(error, (Web3Exception, OSError)):
            raise NetworkError(f"The chain's node does not answer: {_said(error)}") from error
        if isinstance(error, (KeyError, TypeError, ValueError)):
            raise LedgerError(f"The chain's node sent something else: {_said(error)}") from error


def _transact(web3: Web3, account: Any, call: Any) -> Any:  # Any: web3's own types
    from web3.exceptions import ContractLogicError, Web3Exception

    try:
        nonce = web3.eth.get_transaction_count(account.address, "pending")
        made = call.build_transaction({"from": account.address, "nonce": nonce})
        sent = web3.eth.send_raw_transaction(account.sign_transaction(made).raw_transaction)
        receipt = web3.eth.wait_for_transaction_receipt(sent, timeout=120, poll_latency=0.05)
    except ContractLogicError as error:
        raise OutputError(f"The contract refuses: {_said(error)}") from error
    except (Web3Exception, ValueError) as error:
        raise OutputError(f"The chain refuses: {_said(error)}") from error
    except OSError as error:
        raise NetworkError(f"The chain's node does not answer: {_said(error)}") from error
    if receipt["status"] != 1:
        raise OutputError("The contract refused the transaction; nothing was added.")
    return receipt


def _block(found: Any) -> Block:  # Any: web3's own types
    return Block(int(found["number"]), int(found["timestamp"]), bytes(found["hash"]))


def _said(error: BaseException) -> str:
    text = str(getattr(error, "message", None) or error) or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".") + "."


Wait = Callable[[], None]
"""Called between two looks at a chain that has not got on yet."""
