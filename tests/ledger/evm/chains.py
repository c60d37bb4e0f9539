"""Chains for the tests: py-evm in process, and Anvil as a process where it is installed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from earmark.ledger.evm.chain import Chain
from earmark.ledger.evm.ledger import EvmLedger
from earmark.ledger.note import SignerKey

ORIGIN = "log.example/lab"
MNEMONIC = "test test test test test test test test test test test junk"  # Anvil's own accounts


def record(number, side="a"):
    return b'{"number":%d,"side":"%s"}' % (number, side.encode())


class Town:
    """A chain with funded accounts."""

    def __init__(self, web3, secrets):
        self.web3, self.secrets = web3, secrets

    @property
    def addresses(self):
        return [self.web3.eth.account.from_key(item).address for item in self.secrets]

    def deploy(self, *, voters=(), windows=(600, 600, 600), depth=None, name=ORIGIN):
        addresses = self.addresses
        return Chain.deploy(
            self.web3,
            self.secrets[0],
            name=name,
            voters=[addresses[i] for i in voters],
            windows=windows,
            depth=depth,
        )

    def as_account(self, chain, number):
        return Chain(
            self.web3,
            chain.address,
            secret=self.secrets[number],
            depth=chain.depth,
            since=chain.since,
        )

    def ledger(self, chain, *, signer=None, seconds=30.0):
        signer = signer or SignerKey.generate(ORIGIN)
        return EvmLedger(chain, signer, wait=self.mine, seconds=seconds)


def in_process(tester):
    """Answer a refused call as a node over HTTP does, instead of raising eth-tester's own error."""
    from eth_tester.exceptions import TransactionFailed
    from web3 import EthereumTesterProvider

    class Provider(EthereumTesterProvider):
        def make_request(self, method, params):
            try:
                return super().make_request(method, params)
            except TransactionFailed as error:
                return {"jsonrpc": "2.0", "id": 1, "error": {"code": 3, "message": str(error)}}

    return Provider(tester)


class PyEvm(Town):
    """A chain in this process; what is mined is final."""

    def __init__(self):
        limit = sys.getrecursionlimit()
        from eth.estimators.gas import binary_gas_search
        from eth_tester import EthereumTester, PyEVMBackend
        from web3 import Web3

        self.backend = PyEVMBackend()
        made = self.backend.chain  # gas costs nothing here: half a block will do, found at once
        made.gas_estimator = binary_gas_search(tolerance=made.get_block().header.gas_limit // 2)
        self.tester = EthereumTester(self.backend)
        keys = [bytes(item.to_bytes()) for item in self.backend._key_lookup.values()]
        super().__init__(Web3(in_process(self.tester)), keys)
        sys.setrecursionlimit(limit)  # py-evm raised it so far that other tests overrun the stack

    def mine(self, count=1):
        self.tester.mine_blocks(count)

    def later(self, seconds):
        now = self.web3.eth.get_block("latest")["timestamp"]
        self.tester.time_travel(now + seconds)


def anvil_program():
    """Return Anvil's program, or null."""
    named = os.environ.get("EARMARK_ANVIL")
    beside = Path(sys.prefix) / "node" / "node_modules" / "@foundry-rs"
    found = [Path(named)] if named else sorted(beside.glob("anvil-*/bin/anvil"))
    if found and found[0].exists():
        return found[0]
    return shutil.which("anvil")


class Net(Town):
    """The four validators that `scripts/net` has started in a folder."""

    def __init__(self, folder):
        from web3 import HTTPProvider, Web3

        about = json.loads((Path(folder) / "net.json").read_text())
        self.urls = about["urls"]
        web3 = Web3(HTTPProvider(self.urls[0], request_kwargs={"timeout": 30}))
        super().__init__(web3, [bytes.fromhex(item) for item in about["secrets"]])

    def mine(self, count=1):
        time.sleep(0.5 * count)  # blocks come by themselves


class Anvil(Town):
    """A chain as a process of its own, which can be made to reorganise."""

    def __init__(self, *options):
        from web3 import HTTPProvider, Web3

        with contextlib.closing(socket.socket()) as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        command = [anvil_program(), "--host", "127.0.0.1", "--port", str(port), "--silent"]
        self.process = subprocess.Popen([*command, *options])
        web3 = Web3(HTTPProvider(f"http://127.0.0.1:{port}"))
        until = time.monotonic() + 60
        while not web3.is_connected():
            assert self.process.poll() is None, "Anvil stopped"
            assert time.monotonic() < until, "Anvil does not start"
            time.sleep(0.05)
        web3.eth.account.enable_unaudited_hdwallet_features()
        secrets = [
            bytes(web3.eth.account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{i}").key)
            for i in range(8)
        ]
        super().__init__(web3, secrets)

    def rpc(self, method, *arguments):
        answer = self.web3.provider.make_request(method, list(arguments))
        assert "error" not in answer, answer
        return answer.get("result")

    def mine(self, count=1):
        self.rpc("anvil_mine", hex(count))

    def later(self, seconds):
        self.rpc("evm_increaseTime", seconds)
        self.mine()

    def stop(self):
        self.process.kill()
        self.process.wait()
