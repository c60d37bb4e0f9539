"""Seeded schedules of faults: whatever the order, the stated invariants hold after every step."""

from __future__ import annotations

import random
import sqlite3

import pytest
from world import Party, World, sha

from earmark.errors import LedgerError
from earmark.ledger import witness as module
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint, cosign
from earmark.ledger.merkle import address, consistency_proof, fold, grow, leaf_hash
from earmark.ledger.note import COSIGNATURE, SignerKey
from earmark.ledger.witness import Quorum, Request, Witness, WitnessError, attach
from earmark.protocol import messages as m
from earmark.protocol.voting import Count
from earmark.records import Outcome

ORIGIN = "log.example/simulated"
LONG = 60


class Tree:
    def __init__(self, records, signer):
        self.nodes, peaks, self.heads = [], (), []
        for size in range(len(records) + 1):
            body = Checkpoint(ORIGIN, size, fold(peaks))
            self.heads.append(str(SignedCheckpoint.sign(body, signer)))
            if size < len(records):
                peaks, fresh = grow(peaks, size, leaf_hash(records[size]))
                self.nodes += fresh

    def ask(self, old, new):
        def read(level, index):
            return self.nodes[address(level, index)]

        proof = consistency_proof(read, old, new) if old <= new else ()
        return Request(old, tuple(item.hex() for item in proof), self.heads[new])


class Witnessing:
    """A log that forks at will, four witnesses of whom one signs anything, a lossy network."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        log = SignerKey.generate(ORIGIN)
        fork = self.draw.randrange(LONG // 2)
        common = [b"%d" % i for i in range(fork)]
        self.trees = [
            Tree(common + [b"%s %d" % (side, i) for i in range(LONG - fork)], log)
            for side in (b"a", b"b")
        ]
        self.fork = fork
        keys = [SignerKey.generate(f"w{i}/w", kind=COSIGNATURE) for i in range(4)]
        self.evil, self.log = keys[3], log.verifier
        self.quorum = Quorum.of([key.verifier for key in keys])
        self.now = 1_000_000
        self.skew = [0, 0, 0]
        self.stores = [sqlite3.connect(":memory:", isolation_level=None) for _ in range(3)]
        for store in self.stores:
            store.executescript(module._SCHEMA)
        self.keys = keys
        self.witnesses = [self.start(i) for i in range(3)]
        self.wire = []
        self.target = (self.trees[0], 0)
        self.given = {}
        self.accepted = {}

    def start(self, i):
        """Start a witness from what it has on disk."""
        clock = lambda: self.now + self.skew[i]  # noqa: E731
        return Witness(self.stores[i], self.keys[i], {ORIGIN: self.log}, clock)

    def step(self):
        draw = self.draw
        self.now += draw.choice((0, 0, 1, 7))
        act = draw.random()
        if act < 0.45:  # the log, or anybody, asks a witness for anything
            if draw.random() < 0.1:
                side = 0 if draw.random() < 0.8 else 1
                self.target = (self.trees[side], min(LONG, self.target[1] + draw.choice((0, 1, 2))))
            who = draw.randrange(4)
            known = self.witnesses[who].size(ORIGIN) if who < 3 else 0
            tree, new, old = (*self.target, known)
            if draw.random() < 0.1:
                tree, new = draw.choice(self.trees), min(LONG, known + draw.randrange(3))
            if draw.random() < 0.1:
                old = draw.randrange(LONG + 1)
            self.wire.append((who, tree, old, new))
            if draw.random() < 0.2:
                self.wire.append(self.wire[-1])
        elif act < 0.97 and self.wire:
            message = self.wire.pop(draw.randrange(len(self.wire)))
            if draw.random() > 0.1:
                self.deliver(*message)
        elif act < 0.985:
            i = draw.randrange(3)
            self.witnesses[i] = self.start(i)
        else:
            self.skew = [draw.choice((0, 0, -30, 40)) for _ in range(3)]

    def deliver(self, who, tree, old, new):
        if old > new:
            return
        request = tree.ask(old, new)
        signed = SignedCheckpoint.parse(request.checkpoint)
        if who == 3:
            stamp = self.draw.choice((1, self.now, 4_000_000_000))
            line = cosign(signed, self.evil, timestamp=stamp).note.signatures[-1]
        else:
            try:
                line = self.witnesses[who].add(request)
            except WitnessError:
                return
        place = self.given.setdefault((new, signed.root), {})
        place[who] = line
        self.read(signed, list(place.values()))

    def read(self, signed, lines):
        """A reader accepts what a quorum cosigned; no two such heads may contradict each other."""
        try:
            when = self.quorum.time(attach(signed, lines))
        except LedgerError:
            return
        assert self.accepted.setdefault(signed.size, signed.root) == signed.root
        assert when <= self.now + 40
        assert when >= 1_000_000 - 30
        sides = {
            side
            for side in (0, 1)
            for size, root in self.accepted.items()
            if size > self.fork
            and root == SignedCheckpoint.parse(self.trees[side].heads[size]).root
        }
        assert len(sides) <= 1, "two histories were accepted"


def witness_steps(seeds, steps):
    accepted = 0
    for seed in seeds:
        town = Witnessing(seed)
        for _ in range(steps):
            town.step()
        accepted += len(town.accepted)
    return accepted


def test_witnesses_hold_in_three_thousand_steps():
    assert witness_steps(range(6), 500) > 10


@pytest.mark.slow
@pytest.mark.ci
def test_witnesses_hold_in_sixty_thousand_steps():
    assert witness_steps(range(100, 160), 1000) > 200


class Voting:
    """Four voters, one of them Byzantine, a thief, and records in any order."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.world = World(step=0, commit_seconds=60, extension_seconds=30, reveal_seconds=60)
        self.owner, self.thief = Party("owner"), Party("thief")
        self.world.register(self.owner, "M")
        self.world.register(self.thief, "S")
        self.world.truth.add(("owner", "S"))
        self.liar = self.draw.randrange(4)
        self.claims = {}
        self.closed = {}
        self.shards = iter(range(8))

    def step(self):
        draw, world = self.draw, self.world
        world.time += draw.choice((0, 0, 0, 1, 3))
        act = draw.random()
        if len(self.claims) < 6 and act < 0.03:
            party = draw.choice((self.owner, self.thief))
            suspect = draw.choice(("S", "innocent"))
            shard = next(self.shards)
            self.claims[world.claim(party, suspect, shards=(shard,))] = suspect
        elif self.claims and act < 0.7:
            self.honest(draw.choice(list(self.claims)), draw.randrange(4))
        elif self.claims and act < 0.9:
            self.byzantine(draw.choice(list(self.claims)))
        elif act < 0.95:
            world.log(draw.choice(world.entries).record)
        else:
            world.log(b'{"noise":%d}' % draw.randrange(9))

    def honest(self, claim, i):
        world = self.world
        if i == self.liar or claim not in world.history.claims:
            return
        voter, count = world.voters[i], Count(world.history, world.history.claims[claim])
        file = count.file
        sealed = any(item.message.sender == voter.public for item in file.commits)
        shown = any(item.message.sender == voter.public for item in file.reveals)
        if not sealed and world.time <= count.windows.commit:
            world.seal(voter, claim, world.ballot(voter, claim))
        elif (
            sealed
            and not shown
            and (count.reveals_from is not None or world.history.time > count.windows.commit)
        ):
            # the very ballot that was sealed: questions do not change after the claim
            world.reveal(voter, claim, world.ballot(voter, claim))

    def byzantine(self, claim):
        draw, world, voter = self.draw, self.world, self.world.voters[self.liar]
        if claim not in world.history.claims:
            return
        file = world.history.claims[claim]
        ballot = world.ballot(voter, claim, flip=draw.random() < 0.7)
        act = draw.randrange(6)
        if act == 0:
            world.seal(voter, claim, ballot)
        elif act == 1:
            world.reveal(voter, claim, ballot)
        elif act == 2 and file.commits:
            stolen = draw.choice(file.commits).message.ballot
            world.send(voter, m.VoteCommit, claim=claim, suspect=file.claim.suspect, ballot=stolen)
        elif act == 3 and file.reveals:
            stolen = draw.choice(file.reveals).message.ballot
            world.reveal(voter, claim, stolen)
        elif act == 4:
            world.send(
                self.thief,
                m.Challenge,
                claim=claim,
                suspect=file.claim.suspect,
                reason="no",
                counter=None,
            )
        else:
            world.send(voter, m.VoteReveal, claim=sha("none"), suspect=sha("S"), ballot=ballot)

    def check(self):
        found = self.world.resolve()
        for result in found.claims:
            if not result.closed:
                continue
            assert self.closed.setdefault(result.claim, result) == result, "a verdict changed"
            true = self.claims[result.claim] == "S"
            wrong = Outcome.NOT_SHOWN if true else Outcome.SHOWN
            assert result.outcome is not wrong
        for dispute in found.disputes:
            if dispute.holder is not None:
                assert found.claim(dispute.holder).owner == self.owner.public


def voting_steps(seeds, steps, every):
    decided = 0
    for seed in seeds:
        town = Voting(seed)
        for number in range(steps):
            town.step()
            if number % every == 0:
                town.check()
        decided += sum(item.outcome is not Outcome.INCONCLUSIVE for item in town.closed.values())
    return decided


def test_votes_hold_in_one_thousand_steps():
    assert voting_steps(range(4), 250, 5) > 0


@pytest.mark.slow
@pytest.mark.ci
def test_votes_hold_in_forty_thousand_steps():
    assert voting_steps(range(100, 200), 400, 10) > 50
