"""A community on paper: keys, a log of entries without a ledger, and voters with set findings."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark.protocol import messages as m
from earmark.protocol.history import Entry, History, genesis_digest
from earmark.protocol.resolve import resolve_history
from earmark.protocol.rules import Rules
from earmark.protocol.voting import questions
from earmark.records import Layout, Opening, Outcome

DOMAIN = "example.org/community"
LAYOUT = Layout("deepwater", 1, ("fc",), 256, 8)


def sha(*parts):
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()


class Party:
    def __init__(self, name):
        self.name = name
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.public = self.key.public_key().public_bytes_raw().hex()


class World:
    """Entries in a list; truth is a set of (owner's name, model) pairs that carry the mark."""

    def __init__(self, voters=4, step=1, **settings):
        self.voters = [Party(f"voter {i}") for i in range(voters)]
        members = tuple(m.Member(voter.name, voter.public) for voter in self.voters)
        self.rules = Rules(DOMAIN, members, **settings)
        self.entries: list[Entry] = []
        self.time, self.step, self.count = 1000, step, 0
        self.truth: set[tuple[str, str]] = set()
        self.names: dict[str, str] = {}
        self.burnt = 0
        self._history: History | None = None

    @property
    def history(self):
        """The history so far, read entry by entry."""
        if self._history is None or self._history.rules is not self.rules:
            self._history = History([], self.rules)
        for entry in self.entries[self._history.size :]:
            self._history.read(entry)
        return self._history

    def head(self):
        return {
            "domain": DOMAIN,
            "after": self.entries[-1].head if self.entries else genesis_digest(DOMAIN),
        }

    def log(self, record, *, wait=0):
        self.time += self.step + wait
        index = len(self.entries)
        entry = Entry(index, record, self.time, sha("beacon", index), index + 1, sha("head", index))
        self.entries.append(entry)
        return entry

    def nonce(self):
        self.count += 1
        return sha("nonce", self.count)

    def send(self, party, cls, *, wait=0, **body):
        message = cls(**{**self.head(), "sender": party.public, "nonce": self.nonce(), **body})
        envelope = message.sign(party.key)
        self.log(envelope.encode(), wait=wait)
        return envelope.digest()

    def opening(self, owner, label=""):
        return Opening(owner.public, LAYOUT, sha("root", owner.name, label), sha("salt", label))

    def commit(self, owner, label="", recovery=None, sender=None):
        commitment = self.opening(owner, label).commitment()
        self.names[commitment] = owner.name + label
        self.send(sender or owner, m.Commit, commitment=commitment, recovery=recovery)
        return self.entries[-1]

    def publish(self, owner, model, beacon, label="", sender=None):
        return self.send(
            sender or owner,
            m.Publish,
            commitment=self.opening(owner, label).commitment(),
            model=sha(model),
            files={"model.safetensors": sha(model)},
            beacon=beacon,
            license="none",
            where="here",
        )

    def register(self, owner, model, label=""):
        """Commit and publish a release that carries the mark."""
        entry = self.commit(owner, label)
        self.truth.add((owner.name + label, model))
        self.publish(owner, model, entry.beacon, label)

    def claim(self, owner, suspect, label="", sender=None, shards=None, **body):
        if shards is None:
            shards, self.burnt = (self.burnt % 8,), self.burnt + 1
        return self.send(
            sender or owner,
            m.Claim,
            opening=self.opening(owner, label),
            suspect=sha(suspect),
            shards=shards,
            disclosure=sha("disclosure"),
            inputs=None,
            **body,
        )

    def findings(self, claim, flip=False, hits=None):
        made = []
        for item in questions(self.history, self.history.claims[claim]):
            marked = any(
                item.commitment == commitment and sha(model) == item.model
                for commitment, name in self.names.items()
                for owner, model in self.truth
                if owner == name
            )
            count = 256 if marked != flip else 128
            if hits is not None:
                count = hits
            made.append(m.Finding(item.commitment, item.model, count, 256, Fraction(1, 2), 1))
        return tuple(made)

    def ballot(self, voter, claim, **how):
        return m.Ballot(voter.public, claim, self.findings(claim, **how), sha("salt", voter.name))

    def suspect_of(self, claim):
        return self.history.claims[claim].claim.suspect

    def seal(self, voter, claim, ballot, **how):
        about = {"claim": claim, "suspect": self.suspect_of(claim)}
        return self.send(voter, m.VoteCommit, ballot=ballot.sealed(), **about, **how)

    def reveal(self, voter, claim, ballot, **how):
        about = {"claim": claim, "suspect": self.suspect_of(claim)}
        return self.send(voter, m.VoteReveal, ballot=ballot, **about, **how)

    def vote(self, claim, liars=(), silent=(), hits=None):
        """All voters vote; some lie, some are silent. The window closes afterwards."""
        ballots = {
            voter: self.ballot(voter, claim, flip=i in liars, hits=hits)
            for i, voter in enumerate(self.voters)
            if i not in silent
        }
        for voter, ballot in ballots.items():
            self.seal(voter, claim, ballot)
        if silent:
            self.time += self.rules.commit_seconds
        for voter, ballot in ballots.items():
            self.reveal(voter, claim, ballot)
        if silent:
            self.close()

    def close(self):
        """Let all windows pass; any entry shows the time."""
        rules = self.rules
        wait = rules.commit_seconds + rules.extension_seconds + rules.reveal_seconds + 1
        self.log(b"{}", wait=wait)

    def resolve(self, **how):
        return resolve_history(self.history, **how)

    def result(self, claim, **how):
        return self.resolve(**how).claim(claim)

    def codes(self):
        """Return the refusals but the ticks of `close`."""
        return [
            item.code.value
            for item in self.resolve().refused
            if self.entries[item.index].record != b"{}"
        ]


def moved(entry, **changes):
    return replace(entry, **changes)


OWNER, THIEF = Party("owner"), Party("thief")


def protected(**how):
    """Return a world in which the owner has released M, and S is a copy of it."""
    world = World(**how)
    world.register(OWNER, "M")
    world.truth.add(("owner", "S"))
    return world


def claimed(world, owner=OWNER, suspect="S", **how):
    claim = world.claim(owner, suspect)
    world.vote(claim, **how)
    return claim, world.result(claim)


def overwritten(order=("owner", "thief"), **how):
    """The thief marks the owner's release, publishes that, and both claim it."""
    world = protected(**how)
    world.register(THIEF, "S")
    claims = {}
    for name in order:
        claims[name], result = claimed(world, OWNER if name == "owner" else THIEF, "S")
        assert result.outcome is Outcome.SHOWN
    return world, claims
