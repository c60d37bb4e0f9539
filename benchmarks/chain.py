"""Measure the contract: gas and time of each step in the life of a claim with seven voters.

``python benchmarks/chain.py`` appends rows to ``benchmarks/rows/chain.jsonl``: on py-evm, on Anvil
where it is installed, and with ``--net FOLDER`` on the four validators that ``scripts/net`` has
started there. An engine whose rows are there is not measured again. Records are real signed
messages of the protocol; gas is what the chain charged, so it is the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "rows" / "chain.jsonl"
sys.path += [str(ROOT / "tests" / part) for part in ("protocol", "ledger", "ledger/evm")]

from chains import Anvil, Net, PyEvm, Town, anvil_program  # noqa: E402 - the tests' own chains
from test_tiers import OWNER, RealWorld, sha  # noqa: E402 - and their story
from world import DOMAIN  # noqa: E402

from earmark.ledger.evm.ledger import EvmLedger  # noqa: E402
from earmark.ledger.note import SignerKey  # noqa: E402
from earmark.protocol.onchain import OnChain  # noqa: E402

VOTERS = 7
NET = "4 validators (CometBFT)"


class Meter:
    """Sends messages and notes what each cost."""

    def __init__(self, town: Town, engine: str) -> None:
        self.town, self.engine = town, engine
        self.rows: list[dict[str, object]] = []

    def note(self, step: str, receipt: Any, seconds: float, record: bytes = b"") -> None:
        """Make the row of one transaction."""
        made = {
            "benchmark": "chain",
            "engine": self.engine,
            "step": step,
            "record_bytes": len(record),
            "gas": int(receipt["gasUsed"]),
            "seconds": round(seconds, 3),
            "versions": {
                name: version(name) for name in ("earmark", "web3", "py-evm", "eth-tester")
            },
            "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        }
        self.rows.append(made)
        print(json.dumps(made))

    def watch(self, chain: Any, steps: list[str]) -> None:
        """Note the transactions of a chain under the names of `steps`, one after another."""
        send = chain.send

        def noted(function: str, *arguments: object) -> Any:
            start = time.perf_counter()
            receipt = send(function, *arguments)
            record = arguments[0] if isinstance(arguments[0], bytes) else b""
            record = b"" if function in {"stamp", "resolve"} else record
            self.note(steps.pop(0), receipt, time.perf_counter() - start, record)
            return receipt

        chain.send = noted


def life(town: Town, engine: str) -> list[dict[str, object]]:
    """Let a claim live from its commitment to its verdict."""
    meter, signer = Meter(town, engine), SignerKey.generate(DOMAIN)
    accounts = town.secrets[: VOTERS + 1]
    start = time.perf_counter()
    voters = range(1, len(accounts)) if len(accounts) > 1 else ()
    chain = town.deploy(voters=voters, name=DOMAIN, windows=(30, 30, 30))
    deployed = town.web3.eth.get_block(chain.since)["transactions"][-1]
    receipt = town.web3.eth.get_transaction_receipt(deployed)
    meter.note(f"deploy, {len(voters)} voters", receipt, time.perf_counter() - start)

    def court(number: int, steps: list[str]) -> OnChain:
        one = town.as_account(chain, number)
        meter.watch(one, steps)
        return OnChain(EvmLedger(one, signer, wait=town.mine))

    story, sent = RealWorld(voters=len(voters)), [0]
    story.truth |= {("owner", "S"), ("owner", "M")}

    def post(where: OnChain, **how: object) -> None:
        for entry in story.entries[sent[0] :]:
            where.append(entry.record, **how)  # type: ignore[arg-type]
        sent[0] = len(story.entries)

    public = court(0, ["stamp a digest", "commit", "publish", "claim", "challenge", "resolve"])
    public.ledger.chain.send("stamp", bytes.fromhex(sha("anything")))
    story.register(OWNER, "M")
    claim = story.claim(OWNER, "S")
    post(public)
    from earmark.protocol import messages as m

    about = {"claim": claim, "suspect": story.suspect_of(claim)}
    story.send(story.voters[0], m.Challenge, reason="other", counter=None, **about)
    post(public)
    file = story.history.claims[claim]
    ballots = []
    for i, voter in enumerate(story.voters):
        ballot = story.ballot(voter, claim)
        place = "first" if i == 0 else "later"
        one = court(i + 1, [f"vote, sealed ({place})", f"vote, shown ({place})"])
        sealed = one.seal(story.history, file, ballot, sha("chain salt", i))
        story.seal(voter, claim, ballot)
        post(one, vote=sealed)
        ballots.append((one, voter, ballot, sealed))
    for one, voter, ballot, sealed in ballots:
        story.reveal(voter, claim, ballot)
        post(one, vote=sealed)
    assert public.resolve(file) == 1
    return meter.rows


def main() -> None:
    """Measure every engine whose rows are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", type=Path, help="folder of a running net of scripts/net")
    options = parser.parse_args()
    done = set()
    if ROWS.exists():
        done = {json.loads(line)["engine"] for line in ROWS.read_text().splitlines()}
    made: list[dict[str, object]] = []
    if "py-evm" not in done:
        made += life(PyEvm(), "py-evm")
    if "anvil" not in done and anvil_program() is not None:
        town = Anvil("--slots-in-an-epoch", "1", "--accounts", "8")
        try:
            made += life(town, "anvil")
        finally:
            town.stop()
    if options.net is not None and NET not in done:
        made += life(Net(options.net), NET)
    with ROWS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in made)


if __name__ == "__main__":
    main()
