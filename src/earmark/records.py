"""The records that earmark writes, signs, logs and reads back: frozen, validated, versioned.

A record is a frozen dataclass with one canonical JSON form (RFC 8785) and therefore one digest.
Records hold facts, no opinions; the one exception is :class:`Verdict`, which only
:func:`earmark.policy.judge` makes. Secrets never stand in a record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, NoReturn

from earmark import codec
from earmark.codec import Json
from earmark.errors import RecordError

if TYPE_CHECKING:
    from typing_extensions import Self

_HEX = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def now() -> str:
    """Return the present time in UTC to the second, as records write it.

    Example:
        >>> now().endswith("Z")
        True
    """
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _need(condition: bool, sentence: str) -> None:  # noqa: FBT001 - a check reads best so
    if not condition:
        raise RecordError(sentence)


def _need_digest(value: str | None, name: str) -> None:
    _need(
        value is None or bool(_HEX.fullmatch(value)),
        f"{name} is {value!r}; expected 64 lower-case hexadecimal digits.",
    )


def _need_time(value: str | None, name: str) -> None:
    good = value is None or bool(_TIME.fullmatch(value))
    if good and value is not None:
        try:
            datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            good = False
    _need(good, f"{name} is {value!r}; expected UTC like 2027-02-11T09:30:00Z.")


class Record:
    """What all records share: canonical bytes, digest, strict reading."""

    __slots__ = ()
    SCHEMA: ClassVar[str] = ""

    def to_json(self) -> dict[str, Json]:
        """Return the record as plain JSON."""
        body = codec.encode(self)
        assert isinstance(body, dict)
        return body

    def canonical(self) -> bytes:
        """Return the record's one canonical byte string."""
        return codec.canonical(self.to_json())

    def digest(self) -> str:
        """Return SHA-256 of the canonical bytes, hexadecimal."""
        return codec.digest(self.canonical())

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """Build the record from plain JSON.

        Raises:
            RecordError: Wrong schema, unknown or missing fields, or values out of range.
        """
        return codec.decode(cls, value)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the record from its canonical bytes.

        Raises:
            RecordError: Not canonical, or not a valid record of this class.
        """
        value = codec.parse(data, strict=False)
        codec.fields_of(cls, value)  # first: cheap, where a stranger's bytes are no such record
        codec.require_canonical(value, data)
        return cls.from_json(value)


class Access(str, Enum):
    """What a host lets its reader see."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    SCORES = "scores"
    LABELS = "labels"


class Outcome(str, Enum):
    """What a policy concludes."""

    SHOWN = "shown"
    NOT_SHOWN = "not shown"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Layout(Record):
    """The public half of a key: all that verification needs besides the secret.

    Args:
        scheme: Name of the scheme in the registry.
        version: Version of the scheme's measurement.
        carrier: Names of the layers or tensors that bear the mark.
        message_bits: Number of bits (or labels) in the message.
        shards: Number of shards into which the message is split.
        params: The scheme's further public settings.
        inputs: Digest of the key's inputs (for schemes that have some), else null.

    Example:
        >>> layout = Layout("mtlsign", 1, ("fc",), 2048, 8, {})
        >>> Layout.from_bytes(layout.canonical()) == layout
        True
    """

    SCHEMA: ClassVar[str] = "earmark/layout/1"
    scheme: str
    version: int
    carrier: tuple[str, ...]
    message_bits: int
    shards: int
    params: Mapping[str, Json] = field(default_factory=dict)
    inputs: str | None = None

    def __post_init__(self) -> None:
        _need(bool(self.scheme), "A layout names no scheme.")
        alone = len(set(self.carrier)) == len(self.carrier)
        _need(alone, "A layout names a layer or tensor more than once as its carrier.")
        _need(self.version >= 1, f"Layout version {self.version} is below 1.")
        _need(self.message_bits >= 1, f"A message of {self.message_bits} bits is empty.")
        _need(
            1 <= self.shards <= self.message_bits,
            f"{self.shards} shards do not fit {self.message_bits} bits.",
        )
        _need_digest(self.inputs, "Layout.inputs")

    def __hash__(self) -> int:
        return hash(self.digest())


@dataclass(frozen=True, slots=True)
class Commitment(Record):
    """A hash that fixes key, layout and owner before release; it reveals none of them.

    Args:
        owner: The owner's public Ed25519 key, 64 hexadecimal digits.
        commitment: SHA-256 over domain, owner, layout, Merkle root of the key's shards, and salt.
        created: When the owner says it was made. The ledger's order decides, not this.
    """

    SCHEMA: ClassVar[str] = "earmark/commitment/1"
    owner: str
    commitment: str
    created: str

    def __post_init__(self) -> None:
        _need_digest(self.owner, "Commitment.owner")
        _need_digest(self.commitment, "Commitment.commitment")
        _need_time(self.created, "Commitment.created")


@dataclass(frozen=True, slots=True)
class Opening(Record):
    """What opens a commitment without giving away a single shard.

    Args:
        owner: As committed.
        layout: As committed.
        shard_root: Merkle root over the key's shard leaves.
        salt: 64 hexadecimal digits.
    """

    SCHEMA: ClassVar[str] = "earmark/opening/1"
    owner: str
    layout: Layout
    shard_root: str
    salt: str

    def __post_init__(self) -> None:
        for name in ("owner", "shard_root", "salt"):
            _need_digest(getattr(self, name), f"Opening.{name}")

    def commitment(self) -> str:
        """Return the digest that this opening opens."""
        return codec.digest(b"earmark/commit/1\n" + self.canonical())


@dataclass(frozen=True, slots=True)
class Release(Record):
    """What was released under a commitment: the digests of the files.

    Args:
        owner: The owner's public key.
        commitment: The commitment that was registered before.
        files: File name to SHA-256 of its bytes.
        beacon: The ledger value the key's labels were bound to, or null.
        created: When the owner says it was made.
    """

    SCHEMA: ClassVar[str] = "earmark/release/1"
    owner: str
    commitment: str
    files: Mapping[str, str]
    beacon: str | None
    created: str

    def __post_init__(self) -> None:
        _need_digest(self.owner, "Release.owner")
        _need_digest(self.commitment, "Release.commitment")
        _need_digest(self.beacon, "Release.beacon")
        _need(bool(self.files), "A release lists no files.")
        for name, value in self.files.items():
            _need_digest(value, f"Release.files[{name!r}]")
        _need_time(self.created, "Release.created")


@dataclass(frozen=True, slots=True)
class Tried(Record):
    """How often the question was asked; every try is charged against the evidence.

    Args:
        keys: Keys tried on this suspect.
        suspects: Suspects tried with this key.
        forms: Layers, alignments or readers from which the best was taken.
        of_shards: Shards that the key has, if only some of them were used: whoever chose them could
            have chosen others. 0 if all were used.
    """

    SCHEMA: ClassVar[str] = "earmark/tried/1"
    keys: int = 1
    suspects: int = 1
    forms: int = 1
    of_shards: int = 0

    def __post_init__(self) -> None:
        for name in ("keys", "suspects", "forms"):
            _need(getattr(self, name) >= 1, f"Tried.{name} is {getattr(self, name)}; at least 1.")
        _need(0 <= self.of_shards <= 1 << 16, f"Tried.of_shards is {self.of_shards}; 0 to 65,536.")

    @property
    def total(self) -> int:
        """Number of questions asked in all."""
        return self.keys * self.suspects * self.forms


@dataclass(frozen=True, slots=True)
class Evidence(Record):
    """What was counted on a suspect; no opinion.

    Under the hypothesis that the suspect was made without the key, `hits` is exactly
    Binomial(`trials`, `chance`), because the message is uniform and independent of the suspect.
    A soft reading is carried by `weights` and `score`: then `score` is a sum of the `weights`
    under independent fair signs.

    Args:
        scheme: Name of the scheme.
        layout: Digest of the key's layout.
        suspect: Digest of the suspect as it was seen (weights, or transcript of its answers).
        access: What was read.
        hits: Right answers.
        trials: Answers scored; never more than the message's bits that were not used up.
        chance: Probability of a hit without the key.
        tried: Multiplicity.
        commitment: Commitment of the key, or null if none was named.
        nonce: What split or ordered the trials; null if nothing was.
        shards: Indices of the shards that were used.
        queries: Inputs sent to the suspect.
        weights: Non-negative integer weights of a soft reading, or empty.
        score: Signed integer score of a soft reading, or null.
        details: Further counts by name: per layer, per shard.
        notes: What the reader should know, one sentence each.

    Example:
        >>> evidence = Evidence.of("demo", hits=1000, trials=1024)
        >>> Evidence.from_bytes(evidence.canonical()) == evidence
        True
    """

    SCHEMA: ClassVar[str] = "earmark/evidence/1"
    scheme: str
    layout: str
    suspect: str
    access: Access
    hits: int
    trials: int
    chance: Fraction
    tried: Tried
    commitment: str | None
    nonce: str | None
    shards: tuple[int, ...]
    queries: int
    weights: tuple[int, ...]
    score: int | None
    details: Mapping[str, Json]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        _need(self.trials >= 0, f"Evidence.trials is {self.trials}; at least 0.")
        _need(
            0 <= self.hits <= self.trials,
            f"Evidence.hits is {self.hits} of {self.trials} trials.",
        )
        _need(0 < self.chance < 1, f"Evidence.chance is {self.chance}; strictly between 0 and 1.")
        _need(self.queries >= 0, f"Evidence.queries is {self.queries}; at least 0.")
        _need(all(w >= 0 for w in self.weights), "Evidence.weights has a negative weight.")
        _need((self.score is None) == (not self.weights), "Evidence.score goes with weights.")
        if self.score is not None:
            _need(
                abs(self.score) <= sum(self.weights),
                f"Evidence.score is {self.score}; beyond the sum of its weights.",
            )
        twice = len(set(self.shards)) < len(self.shards)
        _need(not twice, f"Evidence.shards is {self.shards}; a shard stands in it twice.")
        _need_digest(self.layout, "Evidence.layout")
        _need_digest(self.suspect, "Evidence.suspect")
        _need_digest(self.commitment, "Evidence.commitment")
        _need_digest(self.nonce, "Evidence.nonce")

    @property
    def signs(self) -> int:
        """Independent signs that a soft reading weighed; several may stand behind one answer.

        Example:
            >>> Evidence.of("demo", hits=1, trials=1, weights=(3, 2, 0), score=5).signs
            2
        """
        return sum(weight > 0 for weight in self.weights)

    @classmethod
    def of(
        cls,
        scheme: str,
        *,
        hits: int,
        trials: int,
        chance: Fraction = Fraction(1, 2),
        layout: str = "0" * 64,
        suspect: str = "0" * 64,
        access: Access = Access.WEIGHTS,
        tried: Tried | None = None,
        commitment: str | None = None,
        nonce: str | None = None,
        shards: tuple[int, ...] = (),
        queries: int = 0,
        weights: tuple[int, ...] = (),
        score: int | None = None,
        details: Mapping[str, Json] | None = None,
        notes: tuple[str, ...] = (),
    ) -> Self:
        """Build evidence with the usual defaults filled in."""
        return cls(
            scheme=scheme,
            layout=layout,
            suspect=suspect,
            access=access,
            hits=hits,
            trials=trials,
            chance=chance,
            tried=tried or Tried(),
            commitment=commitment,
            nonce=nonce,
            shards=shards,
            queries=queries,
            weights=weights,
            score=score,
            details=details or {},
            notes=notes,
        )

    def __hash__(self) -> int:
        return hash(self.digest())


@dataclass(frozen=True, slots=True)
class Claim(Record):
    """A statement that a suspect carries a committed mark, bound to one claimant and one suspect.

    Args:
        claimant: The claimant's public key.
        opening: Opens the commitment.
        suspect: Digest of the suspect.
        nonce: Value that the claimant did not choose, fixed after the suspect was named.
        shards: Shards revealed, and thereby burnt.
        evidence: Digest of the evidence record.
        created: When the claimant says it was made.
    """

    SCHEMA: ClassVar[str] = "earmark/claim/1"
    claimant: str
    opening: Opening
    suspect: str
    nonce: str
    shards: tuple[int, ...]
    evidence: str
    created: str

    def __post_init__(self) -> None:
        for name in ("claimant", "suspect", "nonce", "evidence"):
            _need_digest(getattr(self, name), f"Claim.{name}")
        _need(len(set(self.shards)) == len(self.shards), "A claim names a shard twice.")
        _need(
            all(0 <= shard < self.opening.layout.shards for shard in self.shards),
            f"A claim names shards {list(self.shards)} of {self.opening.layout.shards}.",
        )
        _need_time(self.created, "Claim.created")


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """What a policy concludes from evidence. It is no boolean.

    Args:
        outcome: Shown, not shown or inconclusive.
        bits: Bits of evidence net of everything that was tried; never below 0.
        bits_gross: Bits of evidence before that.
        log10_p: Common logarithm of the corrected probability of so much by chance.
        threshold: Bits that the policy asks for.
        level: Name of the highest level reached: none, trace, claim, contested claim.
        power: Probability that this test would have shown a model that gives `power_rate` of the
            key's answers.
        power_rate: The rate of hits that `power` speaks of.
        reason: One sentence.
        limits: What the verdict does not say, one sentence each.
        policy: Digest of the policy.
        evidence: Digests of the evidence records.
    """

    SCHEMA: ClassVar[str] = "earmark/verdict/1"
    outcome: Outcome
    bits: float
    bits_gross: float
    log10_p: float
    threshold: float
    level: str
    power: float
    power_rate: float
    reason: str
    limits: tuple[str, ...]
    policy: str
    evidence: tuple[str, ...]

    def __post_init__(self) -> None:
        _need(self.bits >= 0, f"Verdict.bits is {self.bits}; at least 0.")
        _need(0 <= self.power <= 1, f"Verdict.power is {self.power}; between 0 and 1.")
        _need_digest(self.policy, "Verdict.policy")

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "A verdict is no boolean: compare verdict.outcome with Outcome.SHOWN, "
            "Outcome.NOT_SHOWN or Outcome.INCONCLUSIVE."
        )


@dataclass(frozen=True, slots=True)
class License(Record):
    """What a customer may do with which copy; signed by the issuer beside this record.

    Args:
        issuer: The issuer's public key.
        model: Name of the model.
        weights: Digest of the licensed copy's weights.
        customer: Identifier of the customer.
        features: Granted features.
        not_before: Start of validity.
        not_after: End of validity.
        commitment: Commitment to the serial number and to the key that the copy is traced by.
        serial: Running number at the issuer.
    """

    SCHEMA: ClassVar[str] = "earmark/license/1"
    issuer: str
    model: str
    weights: str
    customer: str
    features: tuple[str, ...]
    not_before: str
    not_after: str
    commitment: str
    serial: int

    def __post_init__(self) -> None:
        for name in ("issuer", "weights", "commitment"):
            _need_digest(getattr(self, name), f"License.{name}")
        _need(bool(self.customer), "A license names no customer.")
        _need_time(self.not_before, "License.not_before")
        _need_time(self.not_after, "License.not_after")
        _need(self.not_before < self.not_after, "A license ends before it begins.")
        _need(self.serial >= 0, f"License.serial is {self.serial}; at least 0.")


@dataclass(frozen=True, slots=True)
class Receipt(Record):
    """Proof that a ledger holds a record: enough to check it offline.

    Args:
        origin: Name of the ledger.
        index: Position of the record, from 0.
        leaf_hash: RFC 6962 leaf hash of the record's bytes, hexadecimal.
        checkpoint: The signed checkpoint (C2SP note) that includes the record.
        proof: Inclusion path, hexadecimal hashes from the leaf upwards.
    """

    SCHEMA: ClassVar[str] = "earmark/receipt/1"
    origin: str
    index: int
    leaf_hash: str
    checkpoint: str
    proof: tuple[str, ...]

    def __post_init__(self) -> None:
        _need(self.index >= 0, f"Receipt.index is {self.index}; at least 0.")
        _need_digest(self.leaf_hash, "Receipt.leaf_hash")
        for item in self.proof:
            _need_digest(item, "Receipt.proof")


@dataclass(frozen=True, slots=True)
class Trial(Record):
    """One measured cell of a battery or benchmark; a failure is a row too.

    Args:
        scheme: Name and settings of the scheme.
        host: Name of the network.
        data: Name of the data set.
        attack: Name and settings of the attack, or "none".
        seed: Seed of the cell.
        utility_before: Utility before the attack, on the task's own scale.
        utility: Utility after the attack, or null if it failed.
        evidence: What was counted, or null if it failed.
        bits: Net bits of evidence, or null.
        seconds: Wall seconds of the cell.
        cost: Compute of the attack relative to training the model, or null.
        versions: Versions of the software.
        machine: Cores and architecture.
        error: Null, or why the cell failed.
    """

    SCHEMA: ClassVar[str] = "earmark/trial/1"
    scheme: str
    host: str
    data: str
    attack: str
    seed: int
    utility_before: float | None
    utility: float | None
    evidence: Evidence | None
    bits: float | None
    seconds: float
    cost: float | None
    versions: Mapping[str, str]
    machine: str
    error: str | None

    def __post_init__(self) -> None:
        _need(self.seconds >= 0, f"Trial.seconds is {self.seconds}; at least 0.")
        _need(
            (self.error is None) == (self.evidence is not None),
            "A trial has evidence or an error, not both and not neither.",
        )


RECORDS: tuple[type[Record], ...] = (
    Layout,
    Commitment,
    Opening,
    Release,
    Tried,
    Evidence,
    Claim,
    Verdict,
    License,
    Receipt,
    Trial,
)
"""Every record class, for the published schemas."""
