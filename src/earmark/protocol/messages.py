"""The messages of the protocol: frozen records, each bound to community, sender and nonce.

Every message names the community's `domain`, its `sender`, a fresh `nonce` and in `after` the
digest of a checkpoint that the sender had seen: it was made *after* that one, and the ledger's
index says what it came *before*. No message carries a time of its own, so there is none to
backdate. What concerns a suspect names the suspect, so that no message can be moved to another.

============  ==================================================================================
`Commit`      an owner fixes a key before release
`Publish`     the owner names the files that are released under a commitment
`Claim`       a suspect carries the committed mark; opens the commitment, burns shards
`Challenge`   somebody objects in time; extends the window once
`VoteCommit`  digest of a voter's ballot
`VoteReveal`  the ballot
`Resolve`     a node signs what it resolved a claim to
`Seal`        an operator seals values that will be drawn from
`Draw`        it shows one of them
`Roster`      the operators who vote from now on, endorsed by a quorum of those before
`Rotate`      a key is replaced by another one
`Revoke`      a key signs nothing more from here on
============  ==================================================================================
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec
from earmark.errors import RecordError, SignatureError
from earmark.protocol.envelope import Envelope, Statement, verify_key
from earmark.records import Opening, Outcome, Record

_DIGITS = frozenset("0123456789abcdef")
_MAX_TEXT = 2000
MAX_SEALS = 64
"""Values that one message seals at most."""


def fresh_nonce() -> str:
    """Draw a nonce: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def _digest(value: str | None, name: str) -> None:
    if value is not None and (len(value) != 64 or set(value) - _DIGITS):
        raise RecordError(f"{name} is {value[:80]!r}; expected 64 hexadecimal digits.")


def _text(value: str, name: str) -> None:
    if len(value) > _MAX_TEXT:
        raise RecordError(f"{name} has {len(value):,} characters; at most {_MAX_TEXT:,}.")


@dataclass(frozen=True, slots=True)
class Message(Record):
    """What all messages share.

    Args:
        domain: Name of the community; a message of another one is refused.
        sender: The sender's public key, which must also sign.
        nonce: 64 hexadecimal digits that the sender uses once.
        after: Digest of a checkpoint that the sender had seen; see `checkpoint_digest`.
    """

    KIND: ClassVar[str] = ""
    domain: str
    sender: str
    nonce: str
    after: str

    def __post_init__(self) -> None:
        if not self.domain:
            raise RecordError("A message names no domain.")
        for name in ("sender", "nonce", "after", *self._digests()):
            _digest(getattr(self, name), f"{type(self).__name__}.{name}")

    def _digests(self) -> tuple[str, ...]:
        return ()

    def subjects(self) -> tuple[tuple[str, str], ...]:
        """Return name and digest of what the message speaks of."""
        return tuple(
            (name, value) for name in self._digests() if (value := getattr(self, name)) is not None
        )

    def sign(self, key: Ed25519PrivateKey) -> Envelope:
        """Put the message into a signed envelope.

        Raises:
            SignatureError: The key is not the sender's.
        """
        if key.public_key().public_bytes_raw().hex() != self.sender:
            raise SignatureError("A message can be signed by its sender only.")
        kind = f"urn:earmark:{self.KIND}:1"
        return Envelope.sign(Statement(kind, self.subjects(), self.to_json()), key)


def checkpoint_digest(text: str) -> str:
    """Return how messages refer to a checkpoint: SHA-256 over its signed text, no signatures."""
    return codec.digest(b"earmark/after/1\n" + text.encode())


@dataclass(frozen=True, slots=True)
class Commit(Message):
    """An owner fixes a key before release.

    Args:
        commitment: The digest that an `earmark.records.Opening` opens; the owner is inside.
        recovery: Digest of a public key that may replace or revoke the sender's; see `key_digest`.
    """

    SCHEMA: ClassVar[str] = "earmark/message-commit/1"
    KIND: ClassVar[str] = "commit"
    commitment: str
    recovery: str | None

    def _digests(self) -> tuple[str, ...]:
        return ("commitment", "recovery")


@dataclass(frozen=True, slots=True)
class Publish(Message):
    """The owner names what is released under a commitment.

    Args:
        commitment: The commitment.
        model: Digest of the released model's file; one of `files`.
        files: File name to SHA-256.
        beacon: The ledger value that the key is bound to, or null.
        license: A name or sentence.
        where: Where the model is offered.
    """

    SCHEMA: ClassVar[str] = "earmark/message-publish/1"
    KIND: ClassVar[str] = "publish"
    commitment: str
    model: str
    files: Mapping[str, str]
    beacon: str | None
    license: str
    where: str

    def __post_init__(self) -> None:
        super(Publish, self).__post_init__()
        for name, value in self.files.items():
            _text(name, "A file's name")
            _digest(value, f"Publish.files[{name[:80]!r}]")
        if self.model not in self.files.values():
            raise RecordError("Publish.model is none of the published files.")
        _text(self.license, "Publish.license")
        _text(self.where, "Publish.where")

    def _digests(self) -> tuple[str, ...]:
        return ("commitment", "model", "beacon")


@dataclass(frozen=True, slots=True)
class Claim(Message):
    """A suspect carries the committed mark.

    Args:
        opening: Opens the commitment; names the owner.
        suspect: SHA-256 of the suspect's file.
        shards: Shards that are revealed and thereby burnt.
        disclosure: SHA-256 of the file with the revealed shards.
        inputs: SHA-256 of the file with the key's inputs, or null if the scheme has none.
    """

    SCHEMA: ClassVar[str] = "earmark/message-claim/1"
    KIND: ClassVar[str] = "claim"
    opening: Opening
    suspect: str
    shards: tuple[int, ...]
    disclosure: str
    inputs: str | None

    def __post_init__(self) -> None:
        super(Claim, self).__post_init__()
        bound = range(self.opening.layout.shards)
        if not self.shards or len(set(self.shards)) != len(self.shards):
            raise RecordError("A claim reveals no shard, or one twice.")
        if any(shard not in bound for shard in self.shards):
            raise RecordError(f"A claim reveals shards that a key of {len(bound)} does not have.")

    def _digests(self) -> tuple[str, ...]:
        return ("suspect", "disclosure", "inputs")


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """Somebody objects to a claim while it is open; extends the window once.

    Args:
        claim: Digest of the claim's envelope.
        suspect: The suspect.
        reason: One sentence.
        counter: Digest of the challenger's own claim on the same suspect, or null.
    """

    SCHEMA: ClassVar[str] = "earmark/message-challenge/1"
    KIND: ClassVar[str] = "challenge"
    claim: str
    suspect: str
    reason: str
    counter: str | None

    def __post_init__(self) -> None:
        super(Challenge, self).__post_init__()
        _text(self.reason, "Challenge.reason")

    def _digests(self) -> tuple[str, ...]:
        return ("claim", "suspect", "counter")


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """What a voter counted for one question: does this model carry this key's mark?

    Args:
        commitment: The key's commitment.
        model: SHA-256 of the model's file.
        hits: Right answers.
        trials: Answers scored; 0 if the model could not be measured.
        chance: Probability of a hit without the key.
        forms: Layers, alignments or readers from which the best was taken.
    """

    SCHEMA: ClassVar[str] = "earmark/finding/1"
    commitment: str
    model: str
    hits: int
    trials: int
    chance: Fraction
    forms: int

    def __post_init__(self) -> None:
        _digest(self.commitment, "Finding.commitment")
        _digest(self.model, "Finding.model")
        if not 0 <= self.hits <= self.trials or not 0 < self.chance < 1 or self.forms < 1:
            raise RecordError(f"A finding counts {self.hits} of {self.trials} answers.")
        if max(self.trials, self.forms, self.chance.denominator) > 1 << 22:
            raise RecordError("A finding counts more than anybody needs to.")


@dataclass(frozen=True, slots=True)
class Ballot(Record):
    """What a voter found on one claim; its digest is committed to before anyone shows theirs.

    Args:
        voter: The voter's public key, inside the digest: a copied digest opens for nobody else.
        claim: Digest of the claim's envelope.
        findings: One for each question.
        salt: 64 hexadecimal digits that keep the ballot from being guessed.
    """

    SCHEMA: ClassVar[str] = "earmark/ballot/1"
    voter: str
    claim: str
    findings: tuple[Finding, ...]
    salt: str

    def __post_init__(self) -> None:
        for name in ("voter", "claim", "salt"):
            _digest(getattr(self, name), f"Ballot.{name}")
        asked = {(item.commitment, item.model) for item in self.findings}
        if len(asked) != len(self.findings):
            raise RecordError("A ballot answers a question twice.")

    def sealed(self) -> str:
        """Return the digest that a `VoteCommit` carries."""
        return codec.digest(b"earmark/ballot/1\n" + self.canonical())


@dataclass(frozen=True, slots=True)
class VoteCommit(Message):
    """Digest of a voter's ballot.

    Args:
        claim: Digest of the claim's envelope.
        suspect: The suspect.
        ballot: `Ballot.sealed`.
    """

    SCHEMA: ClassVar[str] = "earmark/message-vote-commit/1"
    KIND: ClassVar[str] = "vote-commit"
    claim: str
    suspect: str
    ballot: str

    def _digests(self) -> tuple[str, ...]:
        return ("claim", "suspect", "ballot")


@dataclass(frozen=True, slots=True)
class VoteReveal(Message):
    """The ballot behind a vote.

    Args:
        claim: Digest of the claim's envelope.
        suspect: The suspect.
        ballot: What the voter found.
    """

    SCHEMA: ClassVar[str] = "earmark/message-vote-reveal/1"
    KIND: ClassVar[str] = "vote-reveal"
    claim: str
    suspect: str
    ballot: Ballot

    def _digests(self) -> tuple[str, ...]:
        return ("claim", "suspect")


@dataclass(frozen=True, slots=True)
class Resolve(Message):
    """A node signs what it resolved a claim to; anyone may replay it, nobody has to believe it.

    Args:
        claim: Digest of the claim's envelope.
        suspect: The suspect.
        outcome: What the claim was resolved to.
        result: Digest of the claim's `earmark.protocol.resolve.ClaimResult`.
    """

    SCHEMA: ClassVar[str] = "earmark/message-resolve/1"
    KIND: ClassVar[str] = "resolve"
    claim: str
    suspect: str
    outcome: Outcome
    result: str

    def _digests(self) -> tuple[str, ...]:
        return ("claim", "suspect", "result")


def sealed(sealer: str, value: str) -> str:
    """Return the digest that seals a value; the key that seals is inside, so a copy is another's.

    Args:
        sealer: A public key, 64 hexadecimal digits.
        value: 64 hexadecimal digits.
    """
    return codec.digest(f"earmark/seal/1\n{sealer}\n{value}\n".encode())


@dataclass(frozen=True, slots=True)
class Seal(Message):
    """An operator seals values for later draws; see `earmark.protocol.draws`.

    Args:
        seals: `sealed` of one value each, at most `MAX_SEALS`.
    """

    SCHEMA: ClassVar[str] = "earmark/message-seal/1"
    KIND: ClassVar[str] = "seal"
    seals: tuple[str, ...]

    def __post_init__(self) -> None:
        super(Seal, self).__post_init__()
        if not 0 < len(self.seals) <= MAX_SEALS:
            raise RecordError(
                f"A message seals {len(self.seals)} values; 1 to {MAX_SEALS} are taken."
            )
        for item in self.seals:
            _digest(item, "Seal.seals")


@dataclass(frozen=True, slots=True)
class Draw(Message):
    """An operator shows the value that it sealed for an entry.

    Args:
        entry: Digest of the envelope that the value is drawn for.
        sealer: The key that sealed it.
        value: 64 hexadecimal digits.
    """

    SCHEMA: ClassVar[str] = "earmark/message-draw/1"
    KIND: ClassVar[str] = "draw"
    entry: str
    sealer: str
    value: str

    def __post_init__(self) -> None:
        super(Draw, self).__post_init__()
        _digest(self.value, "Draw.value")

    def _digests(self) -> tuple[str, ...]:
        return ("entry", "sealer")


@dataclass(frozen=True, slots=True)
class Member(Record):
    """One voting key of an operator.

    Args:
        operator: Name of the party; however many keys it has, it votes once.
        key: A public key.
    """

    SCHEMA: ClassVar[str] = "earmark/member/1"
    operator: str
    key: str

    def __post_init__(self) -> None:
        _digest(self.key, "Member.key")
        if not self.operator:
            raise RecordError("A member names no operator.")
        _text(self.operator, "Member.operator")


def roster_digest(members: tuple[Member, ...], nonce: str | None = None) -> str:
    """Return how a roster names the one before it.

    Args:
        members: The members before.
        nonce: Of the message that made them members; null for those of the rules.
    """
    listed = [member.to_json() for member in members]
    return codec.digest(
        b"earmark/roster/1\n" + codec.canonical({"members": [*listed], "nonce": nonce})
    )


@dataclass(frozen=True, slots=True)
class Roster(Message):
    """The voting members from the next claim on.

    Args:
        members: All of them.
        before: `roster_digest` of the members that they replace, so that it is sent once.
        endorsements: Public key to signature (hexadecimal) over `endorsed`, by members of the
            roster before; a quorum of their operators is needed.
    """

    SCHEMA: ClassVar[str] = "earmark/message-roster/2"
    KIND: ClassVar[str] = "roster"
    members: tuple[Member, ...]
    before: str
    endorsements: Mapping[str, str]

    def __post_init__(self) -> None:
        super(Roster, self).__post_init__()
        if len({member.key for member in self.members}) != len(self.members):
            raise RecordError("A roster names a key twice.")

    def _digests(self) -> tuple[str, ...]:
        return ("before",)

    @staticmethod
    def endorsed(
        domain: str, members: tuple[Member, ...], nonce: str, *, sender: str, before: str
    ) -> bytes:
        """Return the bytes that an endorsement signs."""
        listed = [member.to_json() for member in members]
        head = {"domain": domain, "nonce": nonce, "sender": sender, "before": before}
        return b"earmark/endorse/2\n" + codec.canonical({**head, "members": [*listed]})

    def endorsers(self) -> frozenset[str]:
        """Return the keys whose endorsement verifies."""
        text = self.endorsed(
            self.domain, self.members, self.nonce, sender=self.sender, before=self.before
        )
        good = set()
        for key, signature in self.endorsements.items():
            try:
                verify_key(key, text, bytes.fromhex(signature))
            except (SignatureError, ValueError):
                continue
            good.add(key)
        return frozenset(good)


@dataclass(frozen=True, slots=True)
class Rotate(Message):
    """A key is replaced. The sender is the old key, or the recovery key named in a commit.

    Args:
        old: The key that is replaced.
        new: The key that takes its place.
        consent: Signature by the new key over `consented`, hexadecimal.
    """

    SCHEMA: ClassVar[str] = "earmark/message-rotate/1"
    KIND: ClassVar[str] = "rotate"
    old: str
    new: str
    consent: str

    def _digests(self) -> tuple[str, ...]:
        return ("old", "new")

    @staticmethod
    def consented(domain: str, old: str, new: str) -> bytes:
        """Return the bytes that the new key signs."""
        return f"earmark/consent/1\n{domain}\n{old}\n{new}\n".encode()

    def agreed(self) -> bool:
        """Tell whether the new key has consented."""
        try:
            text = self.consented(self.domain, self.old, self.new)
            verify_key(self.new, text, bytes.fromhex(self.consent))
        except (SignatureError, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Revoke(Message):
    """A key signs nothing more from here on; what it signed before stays valid.

    Args:
        key: The key. The sender is the key itself, or the recovery key named in a commit.
        reason: One sentence.
    """

    SCHEMA: ClassVar[str] = "earmark/message-revoke/1"
    KIND: ClassVar[str] = "revoke"
    key: str
    reason: str

    def __post_init__(self) -> None:
        super(Revoke, self).__post_init__()
        _text(self.reason, "Revoke.reason")

    def _digests(self) -> tuple[str, ...]:
        return ("key",)


def key_digest(public: str) -> str:
    """Return how a commit names a recovery key without showing it.

    Args:
        public: A public key, 64 hexadecimal digits.
    """
    return codec.digest(b"earmark/recovery/1\n" + bytes.fromhex(public))


KINDS: dict[str, type[Message]] = {
    f"urn:earmark:{cls.KIND}:1": cls
    for cls in (
        Commit,
        Publish,
        Claim,
        Challenge,
        VoteCommit,
        VoteReveal,
        Resolve,
        Seal,
        Draw,
        Roster,
        Rotate,
        Revoke,
    )
}
"""Predicate type to message class."""


def open_message(data: bytes) -> tuple[Message, Envelope]:
    """Read an envelope, verify its signature, and read the message inside, strictly.

    Raises:
        RecordError: Not an envelope, an unknown kind, or a message that breaks its schema.
        SignatureError: Not signed by the sender.
    """
    envelope = Envelope.open(data)
    statement = envelope.statement
    cls = KINDS.get(statement.predicate_type)
    if cls is None:
        raise RecordError(f"'{statement.predicate_type[:80]}' is no kind of message.")
    message = cls.from_json(statement.predicate)
    if statement.subjects != message.subjects():
        raise RecordError("A statement's subjects are not those of its message.")
    if message.sender != envelope.signer:
        raise SignatureError("A message names another sender than the one who signed it.")
    return message, envelope
