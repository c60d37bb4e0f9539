"""Opt-in: the ledger on four CometBFT validators, of which some are killed.

Set EARMARK_NET to the program of `scripts/net` (and EARMARK_NET_LIB to the folder of its libraries).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chains import Net, record

from earmark.errors import NetworkError, OutputError
from earmark.ledger.evm.chain import Chain
from earmark.ledger.port import Finality

PROGRAM = os.environ.get("EARMARK_NET")
SCRIPT = Path(__file__).parents[3] / "scripts" / "net"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PROGRAM is None, reason="opt-in: set EARMARK_NET, see scripts/net"),
]


class Running(Net):
    def __init__(self, folder):
        command = [sys.executable, SCRIPT, folder, "--program", PROGRAM]
        if "EARMARK_NET_LIB" in os.environ:
            command += ["--lib", os.environ["EARMARK_NET_LIB"]]
        self.script = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.script.stdout.readline().startswith("ready")
        super().__init__(folder)

    def tell(self, what, number):
        self.script.stdin.write(f"{what} {number}\n")
        self.script.stdin.flush()
        assert self.script.stdout.readline() == "done\n"

    def height(self, number=0):
        from web3 import HTTPProvider, Web3

        try:
            return Web3(HTTPProvider(self.urls[number])).eth.block_number
        except OSError:
            return -1

    def wait(self, question, seconds=180):
        until = time.monotonic() + seconds
        while not question():
            assert time.monotonic() < until
            time.sleep(0.5)

    def stop(self):
        self.script.stdin.close()
        self.script.wait()
        self.script.stdout.close()


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    made = Running(tmp_path_factory.mktemp("net") / "net")
    yield made
    made.stop()


def test_validators_die_and_come_back(net):
    chain = net.deploy()
    ledger = net.ledger(chain, seconds=60)
    first = ledger.append(record(0))
    from web3 import HTTPProvider, Web3

    for url in net.urls:  # every validator's node tells the same
        other = Chain(Web3(HTTPProvider(url)), chain.address, since=chain.since)
        reader = net.ledger(other, signer=ledger._observer)
        net.wait(lambda reader=reader: reader.head().size == 1)
        assert reader.finality(first) is Finality.FINAL

    net.tell("kill", 3)  # one of four: it goes on
    second = ledger.append(record(1))
    assert second.index == 1

    net.tell("kill", 2)  # two of four: it halts, and nothing forks
    time.sleep(5)
    height = net.height()
    ledger._seconds = 5
    with pytest.raises((NetworkError, OutputError)):
        ledger.append(record(2))
    assert net.height() <= height + 1
    assert ledger.head().size == 2

    for number in (2, 3):  # they come back: it heals
        net.tell("start", number)
    ledger._seconds = 120
    net.wait(lambda: net.height() > height + 3)
    third = ledger.append(record(2))
    assert third.index == 2
    assert [item for _, item in ledger.scan()] == [record(0), record(1), record(2)]
    for receipt in (first, second, third):
        assert ledger.finality(receipt) is Finality.FINAL
    net.wait(lambda: min(net.height(i) for i in range(4)) > height)
