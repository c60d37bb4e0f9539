"""Read a ledger's entries in order and keep what counts; refuse the rest, each with its reason.

Pure: no file, no clock, no network. What an entry means depends on the entries before it alone, so
nothing that is appended later changes what was accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from earmark.errors import EarmarkError, SignatureError
from earmark.ledger.checkpoint import Checkpoint
from earmark.ledger.merkle import EMPTY_ROOT
from earmark.ledger.service import Seen
from earmark.policy import exact
from earmark.protocol import messages as m
from earmark.protocol.draws import RESERVE, Draws, choices
from earmark.protocol.rules import Code, Rules
from earmark.protocol.voting import standing
from earmark.records import Record


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log, with what its checkpoint proves. Whoever makes entries verified that.

    Args:
        index: Position in the log.
        record: The bytes: an envelope.
        time: Not later than this, seconds since 1970: the median of the witnesses' clocks.
        beacon: `earmark.ledger.port.beacon` of the entry's receipt, or null if it has none.
        size: Entries under the first checkpoint that holds this one.
        head: `earmark.protocol.messages.checkpoint_digest` of that checkpoint.
    """

    index: int
    record: bytes
    time: int
    beacon: str | None
    size: int
    head: str


@dataclass(frozen=True, slots=True)
class Logged:
    """An accepted message with its place."""

    entry: Entry
    digest: str
    message: m.Message

    @property
    def index(self) -> int:
        """Position in the log."""
        return self.entry.index


@dataclass(frozen=True, slots=True)
class Refusal(Record):
    """A record that does not count.

    Args:
        index: Position in the log.
        code: Why.
        detail: One sentence.
    """

    SCHEMA: ClassVar[str] = "earmark/refusal/1"
    index: int
    code: Code
    detail: str


class _RefusedError(Exception):
    """Internal: an entry does not count."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(slots=True)
class ClaimFile:
    """One accepted claim with what belongs to it, by the order of the log.

    `tries` are the draws that it and its commitment took, those that came to nothing among them.
    `rivals` are the claims that it is compared with (see `earmark.protocol.voting.standing`);
    `shown` is kept for later ones once it has closed.
    """

    logged: Logged
    claim: m.Claim
    owner: str
    commitment: str
    committed: Logged
    release: Logged
    members: tuple[m.Member, ...]
    keys: int
    suspects: int
    choices: int
    tries: int = 1
    rivals: tuple[str, ...] = ()
    shown: bool | None = None
    commits: list[Logged] = field(default_factory=list)
    reveals: list[Logged] = field(default_factory=list)
    challenges: list[Logged] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Digest of the claim's envelope."""
        return self.logged.digest

    @property
    def model(self) -> str:
        """Digest of the released model."""
        assert isinstance(self.release.message, m.Publish)
        return self.release.message.model


def entry_of(seen: Seen) -> Entry:
    """Turn what a mirror accepted into what `resolve` reads."""
    body = seen.checkpoint.body
    head = m.checkpoint_digest(body.text)
    return Entry(seen.index, seen.record, seen.time, seen.beacon, body.size, head)


def genesis_digest(domain: str) -> str:
    """Return how messages refer to the empty log of a community."""
    return m.checkpoint_digest(Checkpoint(domain, 0, EMPTY_ROOT).text)


class History:
    """The accepted messages of a log, in order.

    Args:
        entries: In the order of the log.
        rules: What the community agreed on.
    """

    def __init__(self, entries: Iterable[Entry], rules: Rules) -> None:
        self.rules = rules
        self.refusals: list[Refusal] = []
        self.claims: dict[str, ClaimFile] = {}
        self.commits: dict[str, list[Logged]] = {}
        self._attempts: dict[tuple[str, str], list[Logged]] = {}
        self.publishes: list[Logged] = []
        self.members = rules.members
        self.roster = m.roster_digest(rules.members)
        self.draws = Draws(rules)
        self.size = 0
        self.time = 0
        self._heads = {genesis_digest(rules.domain): 0}
        self._nonces: set[tuple[str, str]] = set()
        self._senders: set[str] = set()
        self._voters = {member.key for member in rules.members}
        self._root: dict[str, str] = {}
        self._gone: set[str] = set()
        self._recovery: dict[str, set[str]] = {}
        self._first_seen: dict[str, int] = {}
        for entry in entries:
            self.read(entry)

    def root(self, key: str) -> str:
        """Return the first key of the line of keys that a key belongs to."""
        return self._root.get(key, key)

    def committed(self, commitment: str, owner: str) -> Logged | None:
        """Return the entry from which an owner's commitment counts, or null; no copy.

        It is the first one that its owner sent or, if keys are bound and what was drawn for that
        one came to nothing, the first that he sent afterwards.

        Args:
            commitment: The commitment.
            owner: A key of the owner's line.
        """
        attempts = self._attempts.get((commitment, self.root(owner)))
        return attempts[-1] if attempts else None

    def read(self, entry: Entry) -> None:
        """Take in the next entry of the log.

        Args:
            entry: Its index must be the number of entries read so far.
        """
        entry = replace(entry, time=max(self.time, entry.time))
        self.size, self.time = entry.index + 1, entry.time
        try:
            try:
                message, envelope = m.open_message(entry.record)
            except SignatureError as error:
                raise _RefusedError(Code.SIGNATURE, error.what) from error
            except EarmarkError as error:
                raise _RefusedError(Code.MALFORMED, error.what) from error
            self._general(message, entry)
            logged = Logged(entry, envelope.digest(), message)
            try:
                self._accept(logged)
            except EarmarkError as error:  # nobody's entry keeps those after it from being read
                raise _RefusedError(Code.MALFORMED, error.what) from error
            self._senders.add(message.sender)
        except _RefusedError as refused:
            self.refusals.append(Refusal(entry.index, refused.code, refused.detail))
        self._heads.setdefault(entry.head, entry.size)

    def _general(self, message: m.Message, entry: Entry) -> None:
        """Refuse what is wrong with a message of any kind."""
        if message.domain != self.rules.domain:
            raise _RefusedError(Code.DOMAIN, f"It was made for '{message.domain[:80]}'.")
        if (message.sender, message.nonce) in self._nonces:
            raise _RefusedError(Code.REPLAY, "Its sender has used this nonce before.")
        if self._heads.get(message.after, entry.index + 1) > entry.index:
            raise _RefusedError(Code.AFTER, "It refers to no earlier checkpoint of this log.")
        if message.sender in self._gone:
            raise _RefusedError(Code.REVOKED, "Its sender's key was replaced or revoked before.")
        self._nonces.add((message.sender, message.nonce))

    def _accept(self, logged: Logged) -> None:
        message = logged.message
        if isinstance(message, m.Commit):
            owner = self.root(message.sender)
            before = self.committed(message.commitment, owner)
            self.commits.setdefault(message.commitment, []).append(logged)
            spoilt = before is not None and self.draws.failed(before.digest, self.time)
            if before is None or (spoilt and self.rules.bound):
                self._attempts.setdefault((message.commitment, owner), []).append(logged)
                self._begin(logged, reserve=RESERVE)
            if message.recovery is not None:
                self._recovery.setdefault(owner, set()).add(message.recovery)
        elif isinstance(message, m.Publish):
            self.publishes.append(logged)
            for value in message.files.values():
                self._first_seen.setdefault(value, logged.index)
        elif isinstance(message, m.Claim):
            self._claim(logged, message)
        elif isinstance(message, (m.Challenge, m.VoteCommit, m.VoteReveal, m.Resolve)):
            self._about_claim(logged, message)
        elif isinstance(message, (m.Seal, m.Draw)):
            self._draw(logged, message)
        elif isinstance(message, m.Roster):
            self._roster(message)
        elif isinstance(message, m.Rotate):
            self._rotate(message)
        elif isinstance(message, m.Revoke):
            self._authority(message.sender, message.key)
            self._gone.add(message.key)

    # -- draws -------------------------------------------------------------------------------

    def beacon(self, logged: Logged) -> str | None:
        """Return the value that came after an entry and that nobody chose, or null."""
        if not self.rules.draw_seconds:
            return logged.entry.beacon
        drawn = self.draws.value(logged.digest, self.time)
        return None if drawn is None else drawn.value

    def _begin(self, logged: Logged, reserve: int = 0) -> None:
        if self.rules.draw_seconds:
            names = self.operators().values()
            self.draws.begin(logged.digest, logged.entry.time, names, reserve=reserve)

    def _draw(self, logged: Logged, message: m.Seal | m.Draw) -> None:
        operator = self.operators().get(self.root(message.sender))
        if operator is None:
            raise _RefusedError(Code.AUTHORITY, "Its sender is no member.")
        if isinstance(message, m.Seal):
            self.draws.seal(operator, message.seals)
            return
        wrong = self.draws.show(message.entry, operator, message, logged.entry.time)
        if wrong is not None:
            raise _RefusedError(Code.DRAW, wrong)

    # -- claims ------------------------------------------------------------------------------

    def _claim(self, logged: Logged, claim: m.Claim) -> None:
        commitment = claim.opening.commitment()
        committed = self.committed(commitment, claim.opening.owner)
        first_seen = self._first_seen.setdefault(claim.suspect, logged.index)
        owner = self.root(claim.opening.owner)
        if self.root(claim.sender) != owner:
            copied = self.committed(commitment, claim.sender) is not None
            code = Code.COPIED if copied else Code.OWNER
            raise _RefusedError(code, "The commitment opens to another owner than the claimant.")
        if committed is None:
            raise _RefusedError(Code.NO_COMMIT, "The opening matches no commitment of its owner's.")
        if not exact(claim.opening.layout.scheme):
            raise _RefusedError(Code.SCHEME, "Nobody can say how its scheme's answers were drawn.")
        if committed.index >= first_seen:
            raise _RefusedError(
                Code.LATE_KEY,
                f"The key was committed at #{committed.index}; the suspect is known since "
                f"#{first_seen}.",
            )
        release = self._release(commitment, owner, committed)
        earlier = self._of(commitment)
        failed = [item for item in earlier if self.draws.failed(item.id, self.time)]
        counted = [item for item in earlier if item not in failed]
        shards = {shard for item in counted for shard in item.claim.shards}
        if shards & set(claim.shards):
            raise _RefusedError(Code.BURNT, f"Shards {sorted(shards & set(claim.shards))} again.")
        keys = {
            name
            for name, items in self.commits.items()
            if any(self.root(item.message.sender) == owner for item in items)
        }
        suspects = {item.claim.suspect for item in earlier} | {claim.suspect}
        self.claims[logged.digest] = ClaimFile(
            logged=logged,
            claim=claim,
            owner=owner,
            commitment=commitment,
            committed=committed,
            release=release,
            members=self.members,
            keys=max(1, len(keys)),
            suspects=len(suspects),
            choices=choices(len(set(self.operators().values()))) if self.rules.draw_seconds else 1,
            tries=(1 + len(failed)) * len(self._attempts[commitment, owner]),
            rivals=standing(self, owner, claim.suspect),
        )
        self._begin(logged)

    def _of(self, commitment: str) -> list[ClaimFile]:
        return [item for item in self.claims.values() if item.commitment == commitment]

    def _release(self, commitment: str, owner: str, committed: Logged) -> Logged:
        """Return the owner's first release under a commitment, bound to the beacon."""
        late = Code.NO_RELEASE
        for item in self.publishes:
            message = item.message
            assert isinstance(message, m.Publish)
            if message.commitment != commitment or self.root(message.sender) != owner:
                continue
            if item.index < committed.index:
                continue
            if self.rules.bound and (
                message.beacon is None or message.beacon != self.beacon(committed)
            ):
                late = Code.BEACON
                continue
            return item
        detail = {
            Code.NO_RELEASE: "Nothing was published under the commitment before the claim.",
            Code.BEACON: "What was published is not bound to the commitment's beacon.",
        }
        raise _RefusedError(late, detail[late])

    def _about_claim(
        self, logged: Logged, message: m.Challenge | m.VoteCommit | m.VoteReveal | m.Resolve
    ) -> None:
        file = self.claims.get(message.claim)
        if file is None:
            raise _RefusedError(Code.UNKNOWN_CLAIM, "No accepted claim before it has this digest.")
        if message.suspect != file.claim.suspect:
            raise _RefusedError(Code.SUSPECT, "It names another suspect than its claim.")
        places = {
            m.Challenge: file.challenges,
            m.VoteCommit: file.commits,
            m.VoteReveal: file.reveals,
        }
        place = places.get(type(message))
        if place is not None:
            place.append(logged)

    # -- keys and members --------------------------------------------------------------------

    def operators(self, members: Iterable[m.Member] | None = None) -> Mapping[str, str]:
        """Return root key to operator for some members, by default the present ones."""
        chosen = self.members if members is None else members
        return {self.root(member.key): member.operator for member in chosen}

    def _roster(self, message: m.Roster) -> None:
        if message.before != self.roster:
            raise _RefusedError(Code.ROSTER, "It replaces another roster than the present one.")
        known = self.operators()
        voices = {
            known[self.root(key)]
            for key in message.endorsers()
            if key not in self._gone and self.root(key) in known
        }
        if len(voices) < self.rules.quorum(len(set(known.values()))):
            raise _RefusedError(Code.ROSTER, f"{len(voices)} operators endorse it; too few.")
        self.members = message.members
        self.roster = m.roster_digest(message.members, message.nonce)
        self._voters |= {member.key for member in message.members}

    def _authority(self, sender: str, key: str) -> None:
        recoveries = self._recovery.get(self.root(key), set())
        if sender != key and m.key_digest(sender) not in recoveries:
            raise _RefusedError(Code.AUTHORITY, "Its sender has no say over this key.")

    def _rotate(self, message: m.Rotate) -> None:
        self._authority(message.sender, message.old)
        used = message.new in self._senders | self._voters or message.new in self._root
        if used or message.new in self._gone or not message.agreed():
            raise _RefusedError(Code.AUTHORITY, "The new key was used before or does not consent.")
        root = self.root(message.old)
        line = {key for key, first in self._root.items() if first == root} | {root}
        self._gone |= line
        self._root[message.new] = root
