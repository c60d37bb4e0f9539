"""What a community agreed on before it began, and the codes in which it gives its reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from earmark.errors import UsageError
from earmark.policy import Policy
from earmark.protocol.messages import Member
from earmark.records import Record


class Code(str, Enum):
    """Why something counted or did not. The value is stable; programs compare it."""

    # of a record
    MALFORMED = "malformed"
    SIGNATURE = "signature"
    DOMAIN = "domain"
    REPLAY = "replay"
    AFTER = "after"
    REVOKED = "revoked"
    AUTHORITY = "authority"
    ROSTER = "roster"
    DRAW = "draw"
    UNKNOWN_CLAIM = "unknown-claim"
    SUSPECT = "suspect"
    # of a claim that is refused before anyone votes
    NO_COMMIT = "no-commit"
    NO_RELEASE = "no-release"
    COPIED = "copied-commitment"
    OWNER = "not-the-owner"
    SCHEME = "inexact-scheme"
    LATE_KEY = "late-key"
    BEACON = "beacon"
    BURNT = "burnt-shard"
    # of a claim that was voted on
    OPEN = "open"
    QUORUM = "quorum"
    NO_DRAW = "no-draw"
    NO_QUORUM = "no-quorum"
    GUARD = "guard-band"
    UNVERIFIED_RELEASE = "unverified-release"
    # of a voter
    COUNTED = "counted"
    ABSTAINED = "abstained"
    DISSENT = "dissent"
    ABSENT = "absent"
    UNREVEALED = "unrevealed"
    MISMATCH = "mismatch"
    EQUIVOCATION = "equivocation"
    LATE = "late"
    EARLY = "early-reveal"
    NOT_IN_PANEL = "not-in-panel"
    # of a dispute
    CONTAINMENT = "containment"
    PRIORITY = "priority"
    UNDECIDABLE = "undecidable"


@dataclass(frozen=True, slots=True)
class Rules(Record):
    """What a community agreed on; its digest is pinned by everybody.

    Args:
        domain: Name of the community: the origin of its log.
        members: The founding voters; later ones come by `earmark.protocol.messages.Roster`.
        policy: Evidence asked for.
        panel: Operators drawn for a claim; all of them vote if there are no more than that.
        guard: Hits by which a count may be off between machines; nearer to the threshold than
            this it is inconclusive.
        commit_seconds: Time for voters to commit, from the claim on.
        extension_seconds: Added once if somebody challenges in time.
        reveal_seconds: Time to reveal after that.
        draw_seconds: Time to show what is drawn for a commitment or a claim. 0 leaves that to the
            engine: a finalised block, or the log's root for those who trust its keeper.
        verifiers: Digests of code that may measure, `earmark.protocol.verifier.code_digest`; none
            leaves it to each node.
        bound: Keys must be bound to the beacon of their commitment.
        earlier_wins: Where containment does not tell, the earlier published release wins. Without
            this, such a dispute is undecidable; see `earmark.protocol.dispute`.

    Example:
        >>> rules = Rules("example.org/log", (Member("lab", "0" * 64),))
        >>> rules.faulty(7), rules.quorum(7), rules.quorum(4)
        (2, 5, 3)
    """

    SCHEMA: ClassVar[str] = "earmark/rules/1"
    domain: str
    members: tuple[Member, ...]
    policy: Policy = field(default_factory=Policy)
    panel: int = 13
    guard: int = 2
    commit_seconds: int = 600
    extension_seconds: int = 600
    reveal_seconds: int = 600
    draw_seconds: int = 0
    verifiers: tuple[str, ...] = ()
    bound: bool = True
    earlier_wins: bool = False

    def __post_init__(self) -> None:
        if len({member.key for member in self.members}) != len(self.members):
            raise UsageError("The rules name a member's key twice.")
        if self.panel < 1 or self.guard < 0:
            raise UsageError(f"A panel of {self.panel} with a guard of {self.guard} hits is none.")
        times = (self.commit_seconds, self.extension_seconds, self.reveal_seconds)
        if min(*times, self.draw_seconds) < 0:
            raise UsageError("The rules name a negative time.")

    @staticmethod
    def faulty(panel: int) -> int:
        """Return how many of a panel may be Byzantine: f of n >= 3f + 1."""
        return max(0, (panel - 1) // 3)

    @classmethod
    def quorum(cls, panel: int) -> int:
        """Return the equal votes that decide: n - f, which is 2f + 1 of 3f + 1."""
        return max(1, panel - cls.faulty(panel))
