"""The contract on py-evm: nobody can change, block, copy or hurry anything."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from chains import ORIGIN, record

from earmark.errors import OutputError, UsageError
from earmark.ledger.evm.chain import Chain, artifact
from earmark.ledger.merkle import EMPTY_ROOT, fold, grow, leaf_hash

ROOT = Path(__file__).parents[3]
SHOWN, NOT_SHOWN, INCONCLUSIVE, NO_QUORUM = 1, 2, 3, 4
COMMITMENT, SUSPECT, EVIDENCE = (hashlib.sha256(item).digest() for item in (b"c", b"s", b"e"))
_numbers = itertools.count()


def fresh():
    return record(next(_numbers), "fresh")


@pytest.fixture
def court(town):
    return town.deploy(voters=(1, 2, 3, 4))


@pytest.fixture
def case(town, court):
    """Open a case and return its docket."""
    claim = fresh()
    parts = (hashlib.sha256(claim).digest(), COMMITMENT, SUSPECT, EVIDENCE)
    court.send("open_claim", claim, COMMITMENT, SUSPECT, EVIDENCE)
    return hashlib.sha256(b"".join(parts)).digest()


class Voter:
    def __init__(self, town, court, number, docket):
        self.chain = town.as_account(court, number)
        self.docket = docket
        self.salt = hashlib.sha256(b"salt%d" % number).digest()

    def seal(self, verdict, salt=None):
        arguments = (self.docket, self.chain.account, verdict, EVIDENCE, salt or self.salt)
        seal = self.chain.call("ballot_seal", *arguments)
        self.chain.send("vote_commit", fresh(), self.docket, seal)
        return seal

    def show(self, verdict, salt=None):
        self.chain.send("vote_reveal", fresh(), self.docket, verdict, EVIDENCE, salt or self.salt)


def refused(why, function, *arguments):
    with pytest.raises(OutputError, match=why):
        function(*arguments)


def test_what_is_shipped_is_what_its_source_gives():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "contract", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nobody_owns_it_and_nothing_upgrades_it():
    functions = {item["name"]: item for item in artifact()["abi"] if item["type"] == "function"}
    writing = {
        name for name, item in functions.items() if item["stateMutability"] not in {"view", "pure"}
    }
    assert writing == {
        *("post", "stamp", "open_claim", "challenge", "vote_commit", "vote_reveal", "resolve")
    }
    assert all(item["stateMutability"] != "payable" for item in functions.values())
    source = (ROOT / "src/earmark/ledger/evm/court.vy").read_text()
    for power in ("raw_call", "send(", "selfdestruct", "create_", "extcall", "payable", "owner:"):
        assert power not in source


def test_its_tree_is_that_of_rfc_6962(town):
    court = town.deploy()
    assert court.call("head") == [0, EMPTY_ROOT]
    peaks = ()
    for number in range(9):
        court.send("post", record(number))
        peaks, _ = grow(peaks, number, leaf_hash(record(number)))
        assert court.call("head") == [number + 1, fold(peaks)]
        block = court.final()
        place = court.call("places", leaf_hash(record(number)))
        assert place == (number + 1) | block.time << 64 | block.number << 128


def test_a_record_is_entered_once_and_nobody_gains_by_being_first(town, court):
    mine = fresh()
    town.as_account(court, 5).send("post", mine)  # a stranger copies it from the wire
    court.send("post", mine)  # the owner's own comes later, and is not refused
    assert court.call("size") == 1
    assert len(list(court.posted(0, court.final().number))) == 1
    digest = hashlib.sha256(mine).digest()
    town.as_account(court, 5).send("stamp", digest)
    first = court.call("stamps", digest)
    town.later(100)
    court.send("stamp", digest)
    assert court.call("stamps", digest) == first
    assert court.call("stamps", bytes(32)) == 0


def test_records_have_a_size(town, court):
    court.send("post", b"x" * 32768)
    refused("refuses", court.send, "post", b"x" * 32769)


def test_a_copied_claim_with_other_digests_is_another_case(town, court):
    claim = fresh()
    town.as_account(court, 5).send("open_claim", claim, COMMITMENT, bytes(32), EVIDENCE)
    court.send("open_claim", claim, COMMITMENT, SUSPECT, EVIDENCE)
    assert court.call("size") == 1
    refused("open already", court.send, "open_claim", claim, COMMITMENT, SUSPECT, EVIDENCE)


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [
        ((SHOWN, SHOWN, SHOWN, NOT_SHOWN), SHOWN),
        ((SHOWN, NOT_SHOWN, NOT_SHOWN, NOT_SHOWN), NOT_SHOWN),
        ((SHOWN, SHOWN, NOT_SHOWN, NOT_SHOWN), NO_QUORUM),
        ((INCONCLUSIVE,) * 4, INCONCLUSIVE),
        ((SHOWN, SHOWN, SHOWN, None), SHOWN),
        ((SHOWN, SHOWN, None, None), NO_QUORUM),
    ],
)
def test_a_quorum_decides_and_nothing_less(town, court, case, votes, outcome):
    voters = [Voter(town, court, i, case) for i in (1, 2, 3, 4)]
    for voter, verdict in zip(voters, votes, strict=True):
        if verdict is not None:
            voter.seal(verdict)
    refused("voting goes on", court.send, "resolve", case)
    if None in votes:
        refused("too early", voters[0].show, SHOWN)
        town.later(601)
    for voter, verdict in zip(voters, votes, strict=True):
        if verdict is not None:
            voter.show(verdict)
    if votes.count(None) == 2:
        refused("voting goes on", court.send, "resolve", case)
        town.later(601)
    court.send("resolve", case)
    assert court.call("cases", case)[-1] == outcome
    refused("resolved before", court.send, "resolve", case)


def test_votes_that_do_not_count(town, court, case):
    one, two = Voter(town, court, 1, case), Voter(town, court, 2, case)
    stranger = Voter(town, court, 6, case)
    refused("no voter", stranger.seal, SHOWN)
    seal = one.seal(SHOWN)
    refused("voted before", one.seal, NOT_SHOWN)
    two.chain.send("vote_commit", fresh(), case, seal)  # a copied ballot
    refused("no seal", town.as_account(court, 3).send, "vote_commit", fresh(), case, bytes(32))
    refused("too early", one.show, SHOWN)
    town.later(601)
    refused("too late", Voter(town, court, 3, case).seal, SHOWN)
    refused("not what was sealed", two.show, SHOWN, one.salt)
    refused("not what was sealed", one.show, NOT_SHOWN)
    refused("no verdict", one.show, NO_QUORUM)
    refused("no verdict", one.show, 0)
    one.show(SHOWN)
    refused("shown before", one.show, SHOWN)
    town.later(1201)
    refused("too late", two.show, SHOWN, one.salt)
    court.send("resolve", case)
    assert court.call("cases", case)[-1] == NO_QUORUM


def test_a_ballot_is_bound_to_its_case_its_contract_and_its_chain(town, court, case):
    voter = Voter(town, court, 1, case)
    twin = town.deploy(voters=(1, 2, 3, 4))
    arguments = (case, voter.chain.account, SHOWN, EVIDENCE, voter.salt)
    assert court.call("ballot_seal", *arguments) != twin.call("ballot_seal", *arguments)
    changed = (bytes(32), *arguments[1:])
    assert court.call("ballot_seal", *arguments) != court.call("ballot_seal", *changed)
    seal = hashlib.sha256(
        hashlib.sha256(b"earmark/ballot/evm/1").digest()
        + town.web3.eth.chain_id.to_bytes(32, "big")
        + bytes(12) + bytes.fromhex(court.address[2:])
        + case
        + bytes(12) + bytes.fromhex(voter.chain.account[2:])
        + SHOWN.to_bytes(32, "big") + EVIDENCE + voter.salt
    ).digest()  # fmt: skip
    assert bytes(court.call("ballot_seal", *arguments)) == seal


def test_a_challenge_in_time_gives_more_time_once(town, court, case):
    until = court.call("cases", case)[0]
    stranger = town.as_account(court, 6)
    stranger.send("challenge", fresh(), case)
    stranger.send("challenge", fresh(), case)
    assert court.call("cases", case)[0] == until + 600
    town.later(700)
    Voter(town, court, 1, case).seal(SHOWN)
    town.later(600)
    refused("too late", stranger.send, "challenge", fresh(), case)
    refused("no such case", stranger.send, "challenge", fresh(), bytes(32))
    refused("no such case", court.send, "resolve", bytes(32))


def test_an_electorate_names_nobody_twice(town):
    refused("named twice", lambda: town.deploy(voters=(1, 1)))
    for n, quorum in ((0, 1), (1, 1), (3, 3), (4, 3), (7, 5), (10, 7)):
        accounts = [f"0x{number + 1:040x}" for number in range(n)]
        chain = Chain.deploy(town.web3, town.secrets[0], name=ORIGIN, voters=accounts)
        assert chain.call("quorum") == quorum


def test_where_there_is_no_contract(town, court):
    with pytest.raises(UsageError, match="no contract"):
        Chain(town.web3, "0x" + "11" * 20)
    reader = Chain(town.web3, court.address)
    with pytest.raises(UsageError, match="read only"):
        reader.send("post", fresh())
