"""Forgeries on the record: a claim registered too early, and evidence of others shown again.

They are played on a log on paper: entries in a list, four voters who tell the truth. What counts is
decided by :mod:`earmark.protocol`, as in a real community.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark.bench.forgeries import Forged, Forgery, Stage
from earmark.protocol import messages
from earmark.protocol.history import Entry, History, genesis_digest
from earmark.protocol.resolve import resolve_history
from earmark.protocol.rules import Code, Rules
from earmark.protocol.voting import questions
from earmark.records import Layout, Opening, Outcome

DOMAIN = "example.org/forgeries"
_LAYOUT = Layout("deepwater", 1, ("fc",), 256, 8)


def _sha(*parts: object) -> str:
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()


class _Party:
    def __init__(self, name: str) -> None:
        self.name = name
        self.key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(_sha(name)))
        self.public = self.key.public_key().public_bytes_raw().hex()

    def opening(self) -> Opening:
        return Opening(self.public, _LAYOUT, _sha("root", self.name), _sha("salt", self.name))


@dataclass
class PaperLog:
    """A log on paper.

    Args:
        truth: Pairs of a party's name and a model that bears his mark.
    """

    truth: set[tuple[str, str]] = field(default_factory=set)
    voters: tuple[_Party, ...] = tuple(_Party(f"voter {i}") for i in range(4))
    entries: list[Entry] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def history(self) -> History:
        """The history of all entries."""
        members = tuple(messages.Member(voter.name, voter.public) for voter in self.voters)
        return History(self.entries, Rules(DOMAIN, members))

    def log(self, record: bytes) -> Entry:
        """Append a record."""
        index = len(self.entries)
        head = _sha("head", index)
        entry = Entry(index, record, 1000 + index, _sha("beacon", index), index + 1, head)
        self.entries.append(entry)
        return entry

    def send(self, party: _Party, kind: Any, **body: Any) -> str:  # Any: a kind of message
        """Sign a message and append it; return its digest."""
        after = self.entries[-1].head if self.entries else genesis_digest(DOMAIN)
        common = {"domain": DOMAIN, "after": after, "sender": party.public}
        nonce = _sha("nonce", len(self.entries))
        envelope = kind(**common, nonce=nonce, **body).sign(party.key)
        self.log(envelope.encode())
        return str(envelope.digest())

    def commit(self, party: _Party) -> str:
        """Append a commitment; return the beacon that it gets."""
        commitment = party.opening().commitment()
        self.names[commitment] = party.name
        self.send(party, messages.Commit, commitment=commitment, recovery=None)
        return str(self.entries[-1].beacon)

    def publish(self, party: _Party, model: str, beacon: str) -> None:
        """Append a release."""
        self.send(
            party, messages.Publish, commitment=party.opening().commitment(), model=_sha(model),
            files={"model.safetensors": _sha(model)}, beacon=beacon, license="none", where="here",
        )  # fmt: skip

    def claim(self, party: _Party, suspect: str, opening: Opening | None = None) -> str:
        """Append a claim; return its digest."""
        return self.send(
            party, messages.Claim, opening=opening or party.opening(), suspect=_sha(suspect),
            shards=(0,), disclosure=_sha("disclosure"), inputs=None,
        )  # fmt: skip

    def vote(self, claim: str) -> None:
        """Let every voter answer truthfully."""
        file = self.history.claims[claim]
        found = []
        for item in questions(self.history, file):
            marked = any(
                self.names[item.commitment] == name and _sha(model) == item.model
                for name, model in self.truth
            )
            hits = 256 if marked else 128
            found.append(
                messages.Finding(item.commitment, item.model, hits, 256, Fraction(1, 2), 1)
            )
        about = {"claim": claim, "suspect": file.claim.suspect}
        ballots = {
            voter: messages.Ballot(voter.public, claim, tuple(found), _sha("salt", voter.name))
            for voter in self.voters
        }
        for voter, ballot in ballots.items():
            self.send(voter, messages.VoteCommit, ballot=ballot.sealed(), **about)
        for voter, ballot in ballots.items():
            self.send(voter, messages.VoteReveal, ballot=ballot, **about)


@dataclass(frozen=True)
class PreRegistration(Forgery):
    """Register a key before the owner does, embed it later into his model, and claim that.

    Source:
        The weakness of every rule that lets the earlier date win.
    """

    name: ClassVar[str] = "pre-registration"
    source: ClassVar[str] = "The weakness of rules by which the earlier date wins."
    summary: ClassVar[str] = "Register a key early, embed it later into the stolen model."
    fools: ClassVar[str] = "lets the earlier registration win among marks that are found"

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:  # noqa: ARG002 - on paper
        """Play it once; nothing is sampled."""
        log, thief, owner = PaperLog(), _Party("thief"), _Party("owner")
        log.publish(thief, "an empty model", log.commit(thief))
        log.publish(owner, "the owner's model", log.commit(owner))
        log.truth |= {("owner", "the owner's model"), ("owner", "stolen"), ("thief", "stolen")}
        first = next(name for name in log.names.values() if (name, "stolen") in log.truth)
        claim = log.claim(thief, "stolen")
        log.vote(claim)
        result = resolve_history(log.history).claim(claim)
        assert result is not None
        shown = int(result.outcome is Outcome.SHOWN)
        reason = f"a registration needs a release that verifies ({result.code.value})"
        return Forged(self.name, int(first == "thief"), 1, shown, 1, 0.0, reason)


@dataclass(frozen=True)
class Replay(Forgery):
    """Show a key that its owner has revealed in a claim of his own.

    Source:
        The oldest attack on any proof that is no secret any more.
    """

    name: ClassVar[str] = "replay"
    source: ClassVar[str] = "The oldest attack on any proof that has been shown."
    summary: ClassVar[str] = "Claim with a key that its owner has revealed."
    fools: ClassVar[str] = "believes whoever shows a key that measures"

    def run(self, stage: Stage, *, tries: int, seed: int) -> Forged:  # noqa: ARG002 - on paper
        """Let many strangers replay the owner's claim, as it is and under their own names."""
        log, owner = PaperLog(), _Party("owner")
        log.truth |= {("owner", "model"), ("owner", "stolen")}
        log.publish(owner, "model", log.commit(owner))
        log.claim(owner, "stolen")
        opening, before = owner.opening(), len(log.entries)
        naive = int(opening.commitment() in log.names and ("owner", "stolen") in log.truth)
        for index in range(tries):
            if index % 2:
                log.claim(_Party(f"stranger {index}"), "stolen", opening)
            else:
                log.log(log.entries[before - 1].record)
        history = log.history
        refused = {item.index: item.code for item in history.refusals}
        taken = sum(index not in refused for index in range(before, len(log.entries)))
        good = set(refused.values()) <= {Code.REPLAY, Code.OWNER}
        reason = "a claim is bound to its owner's key, suspect and nonce (replay, not-the-owner)"
        return Forged(self.name, naive, 1, taken + (not good), tries, 0.0, reason)
