"""Decide: a log's entries and a community's rules go in, one resolution comes out. Pure.

Anyone replays it offline and gets the same bytes. No clock is read: a claim is open until its
panel has voted, or until an entry (or the caller's `now`) is later than its windows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from earmark.protocol.dispute import Dispute, disputes
from earmark.protocol.history import ClaimFile, Entry, History, Refusal
from earmark.protocol.rules import Code, Rules
from earmark.protocol.voting import Count, Tally, Voter
from earmark.records import Outcome, Record


@dataclass(frozen=True, slots=True)
class ClaimResult(Record):
    """What became of a claim.

    Args:
        claim: Digest of the claim's envelope.
        index: Its place in the log.
        owner: The first key of the owner's line of keys.
        commitment: The opened commitment.
        suspect: SHA-256 of the suspect's file.
        closed: No later entry changes this result.
        outcome: Shown, not shown or inconclusive.
        code: Why.
        tallies: The panel's answers; the first is about the suspect, the second about the release.
        voters: What became of each operator's vote.
        keys: Commitments of this owner that were charged.
        suspects: Suspects of this key that were charged.
    """

    SCHEMA: ClassVar[str] = "earmark/claim-result/1"
    claim: str
    index: int
    owner: str
    commitment: str
    suspect: str
    closed: bool
    outcome: Outcome
    code: Code
    tallies: tuple[Tally, ...]
    voters: tuple[Voter, ...]
    keys: int
    suspects: int


@dataclass(frozen=True, slots=True)
class Resolution(Record):
    """What a log says under some rules.

    Args:
        size: Entries that were read.
        rules: Digest of the rules.
        claims: Accepted claims in the log's order.
        disputes: Suspects that several owners have shown their marks on.
        refused: Records that do not count.
    """

    SCHEMA: ClassVar[str] = "earmark/resolution/1"
    size: int
    rules: str
    claims: tuple[ClaimResult, ...]
    disputes: tuple[Dispute, ...]
    refused: tuple[Refusal, ...]

    def claim(self, digest: str) -> ClaimResult | None:
        """Return the result of one claim, or null if it was refused or is not there."""
        return next((item for item in self.claims if item.claim == digest), None)


def resolve(entries: Iterable[Entry], rules: Rules, *, now: int = 0) -> Resolution:
    """Decide every claim of a log.

    Args:
        entries: All entries, in the order of the log.
        rules: What the community agreed on.
        now: Seconds since 1970, if later than the newest entry; closes windows.

    Returns:
        The resolution. The same entries, rules and `now` give the same bytes everywhere.
    """
    history = History(entries, rules)
    return resolve_history(history, now=now)


def resolve_history(history: History, *, now: int = 0) -> Resolution:
    """Decide every claim of entries that were read already; see `resolve`."""
    results = {name: _result(history, file, now) for name, file in history.claims.items()}
    shown = [
        (history.claims[name], result.tallies)
        for name, result in results.items()
        if result.closed and result.outcome is Outcome.SHOWN
    ]
    return Resolution(
        size=history.size,
        rules=history.rules.digest(),
        claims=tuple(results.values()),
        disputes=disputes(history.rules, shown),
        refused=tuple(history.refusals),
    )


def _result(history: History, file: ClaimFile, now: int) -> ClaimResult:
    count = Count(history, file, now=now)
    outcome, code = count.conclude()
    return ClaimResult(
        claim=file.id,
        index=file.logged.index,
        owner=file.owner,
        commitment=file.commitment,
        suspect=file.claim.suspect,
        closed=count.closed,
        outcome=outcome,
        code=code,
        tallies=count.tallies(),
        voters=count.voters(),
        keys=file.keys,
        suspects=file.suspects,
    )
