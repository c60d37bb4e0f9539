"""Panels, phases and the count of votes: per operator, commit first, then reveal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb, log2
from typing import TYPE_CHECKING, ClassVar

from earmark import codec
from earmark.policy import Policy, judge
from earmark.protocol import messages as m
from earmark.protocol.draws import Drawn
from earmark.protocol.rules import Code, Rules
from earmark.records import Evidence, Outcome, Record, Tried

if TYPE_CHECKING:
    from earmark.protocol.history import ClaimFile, History, Logged

MAX_RIVALS = 16
"""Rivals on the same suspect, each a key with its release, that a panel compares a claim with."""


@dataclass(frozen=True, slots=True)
class Question(Record):
    """Does this model carry this key's mark?

    Args:
        commitment: The key's commitment.
        model: SHA-256 of the model's file.
        claim: Digest of the claim that disclosed the key's shards.
    """

    SCHEMA: ClassVar[str] = "earmark/question/1"
    commitment: str
    model: str
    claim: str


@dataclass(frozen=True, slots=True)
class Tally(Record):
    """How a panel answered one question.

    Args:
        commitment: The key's commitment.
        model: SHA-256 of the model's file.
        outcome: What a quorum of the panel said, else inconclusive.
        shown: Operators who found the mark.
        not_shown: Operators who did not, with a test that would have found it.
        unmeasured: Operators whom the model offered nothing to measure (the carrier is missing).
        abstained: Operators who found nothing conclusive, the unmeasured among them.
        hits: The count that most operators report, with the trials.
        trials: See `hits`.
    """

    SCHEMA: ClassVar[str] = "earmark/tally/1"
    commitment: str
    model: str
    outcome: Outcome
    shown: int
    not_shown: int
    unmeasured: int
    abstained: int
    hits: int
    trials: int


@dataclass(frozen=True, slots=True)
class Voter(Record):
    """What became of one operator's vote.

    Args:
        operator: Name of the party.
        code: Counted, abstained, dissent, or why there is no vote.
    """

    SCHEMA: ClassVar[str] = "earmark/voter/1"
    operator: str
    code: Code


@dataclass(frozen=True, slots=True)
class Windows:
    """Until when voters commit and reveal, seconds since 1970."""

    commit: int
    reveal: int


def questions(history: History, file: ClaimFile) -> tuple[Question, ...]:
    """Return what a panel is asked about a claim.

    The key on the suspect and on the owner's own release; and against every earlier rival, each
    one's key on the other one's release.
    """
    asked = list(own(file))
    for rival in map(history.claims.__getitem__, file.rivals):
        asked.append(Question(rival.commitment, file.model, rival.id))
        asked.append(Question(file.commitment, rival.model, file.id))
    seen: dict[tuple[str, str], Question] = {}
    for item in asked:
        seen.setdefault((item.commitment, item.model), item)
    return tuple(seen.values())


def own(file: ClaimFile) -> tuple[Question, Question]:
    """Return what a claim stands or falls with: its key on the suspect, and on its release."""
    return (
        Question(file.commitment, file.claim.suspect, file.id),
        Question(file.commitment, file.model, file.id),
    )


def standing(history: History, owner: str, suspect: str) -> tuple[str, ...]:
    """Return the claims that one which comes now is compared with, by their digests.

    Of other owners' claims on the suspect those that were shown come first, then those that are
    still open, each in the log's order. One that closed without a mark is in no dispute and is left
    out, and of those with the same key and release the first stands for all. So whoever wants to
    crowd others out has to put a mark into the suspect for each place that he takes.

    Args:
        history: The log up to the claim.
        owner: The claimant.
        suspect: SHA-256 of the suspect's file.
    """
    shown: list[ClaimFile] = []
    still: list[ClaimFile] = []
    for item in history.claims.values():
        if item.claim.suspect != suspect or item.owner == owner:
            continue
        if item.shown is None:
            count = Count(history, item)
            item.shown = count.conclude()[0] is Outcome.SHOWN if count.closed else None
        if item.shown is not False:
            (still if item.shown is None else shown).append(item)
    kept: dict[tuple[str, str], str] = {}
    for item in shown + still:
        kept.setdefault((item.commitment, item.model), item.id)
    return tuple(kept.values())[:MAX_RIVALS]


def seed(history: History, file: ClaimFile, now: int = 0) -> Drawn | None:
    """Return the value from after a claim that its panel and its split are drawn by.

    Null while it is being drawn, and if it came to nothing. Without draws (`Rules.draw_seconds`) it
    is what the engine gives.
    """
    if history.rules.draw_seconds:
        return history.draws.value(file.id, max(now, history.time))
    entry = file.logged.entry
    return Drawn(entry.beacon or entry.head, entry.time)


def panel(file: ClaimFile, rules: Rules, drawn: Drawn) -> tuple[str, ...]:
    """Draw the operators who vote on a claim, by a value that came after the claim."""
    operators = sorted({member.operator for member in file.members})
    if len(operators) <= rules.panel:
        return tuple(operators)
    order = sorted(operators, key=lambda name: codec.digest(f"{drawn.value}\n{name}".encode()))
    return tuple(sorted(order[: rules.panel]))


def split_nonce(file: ClaimFile, drawn: Drawn) -> str:
    """Return the value that splits the trials: drawn after the claim, so nobody chose it."""
    return codec.digest(f"earmark/nonce/1\n{file.claim.suspect}\n{drawn.value}\n".encode())


def windows(file: ClaimFile, rules: Rules, begin: int) -> Windows:
    """Return a claim's deadlines; a challenge in time extends the first one, once.

    Args:
        file: The claim.
        rules: What the community agreed on.
        begin: When voting could begin: the time of the draw.
    """
    until = begin + rules.commit_seconds
    if any(item.entry.time <= until for item in file.challenges):
        until += rules.extension_seconds
    return Windows(until, until + rules.reveal_seconds)


@lru_cache(maxsize=4096)
def classify(
    finding: m.Finding, policy: Policy, guard: int, *, keys: int, suspects: int
) -> Outcome:
    """Judge a voter's count; inconclusive where a few hits more or less would change the outcome.

    The charge is asked for on top of the policy's bits: a record holds no number as large as the
    ways to choose half of 64 shards.

    Args:
        finding: The count.
        policy: Evidence asked for.
        guard: Hits by which counts may be off between machines.
        keys: Live commitments of the claimant, times the ways to choose as many shards, times the
            values that silence could pick, times the draws that the claim and its commitment took;
            charged.
        suspects: Suspects that this key was claimed on; charged.
    """
    if finding.trials == 0:
        return Outcome.INCONCLUSIVE
    charged = log2(max(keys, policy.tried_keys) * suspects)
    asked = replace(policy, bits=policy.bits + charged, tried_keys=1)
    tried = Tried(forms=finding.forms)
    ends = {max(0, finding.hits - guard), min(finding.trials, finding.hits + guard)}
    found = {
        judge(
            Evidence.of(
                "vote", hits=hits, trials=finding.trials, chance=finding.chance, tried=tried
            ),
            asked,
        ).outcome
        for hits in ends
    }
    return found.pop() if len(found) == 1 else Outcome.INCONCLUSIVE


def _place(item: Logged) -> int:
    return item.index


def _same(first: Logged, second: Logged) -> bool:
    one, other = first.message, second.message
    assert isinstance(one, m.VoteCommit)
    assert isinstance(other, m.VoteCommit)
    return (one.sender, one.ballot) == (other.sender, other.ballot)


class Count:
    """The count of one claim's votes.

    Args:
        history: The accepted messages.
        file: The claim.
        now: Seconds since 1970, if later than the newest entry.
    """

    def __init__(self, history: History, file: ClaimFile, *, now: int = 0) -> None:
        self.history, self.file, self.rules = history, file, history.rules
        self.now = max(now, history.time)
        self.drawn = seed(history, file, self.now)
        self.panel = () if self.drawn is None else panel(file, self.rules, self.drawn)
        begin = file.logged.entry.time if self.drawn is None else self.drawn.time
        self.windows = windows(file, self.rules, begin)
        self._operator = history.operators(file.members)
        self.codes: dict[str, Code] = {}
        self.outsiders: list[Logged] = []
        self.sealed = self._commits()
        self.ballots = self._reveals()
        if self.drawn is None:
            self.closed = not history.draws.pending(file.id, self.now)
        else:
            voted = len(self.ballots) == len(self.panel)
            self.closed = voted or self.now > self.windows.reveal

    def _by_operator(self, items: list[Logged]) -> dict[str, list[Logged]]:
        found: dict[str, list[Logged]] = {}
        for item in items:
            if item.entry.time > self.windows.reveal:
                continue  # the claim is closed: what comes now is as if it had not come
            name = self._operator.get(self.history.root(item.message.sender))
            if name in self.panel:
                found.setdefault(str(name), []).append(item)
            else:
                self.outsiders.append(item)
        return found

    def _commits(self) -> dict[str, Logged]:
        """Return each operator's one commitment in time."""
        kept: dict[str, Logged] = {}
        found = self._by_operator(self.file.commits)
        for item in sorted((one for items in found.values() for one in items), key=_place):
            name = self._operator[self.history.root(item.message.sender)]
            if len(kept) == len(self.panel):
                break  # the phase is over: what comes now changes nothing
            if name in self.codes:
                continue
            if item.entry.time > self.windows.commit:
                if name not in kept:
                    self.codes[name] = Code.LATE
            elif name in kept and _same(kept[name], item):
                continue  # sent again because no answer came
            elif name in kept:
                del kept[name]
                self.codes[name] = Code.EQUIVOCATION
            else:
                kept[name] = item
        return kept

    @property
    def reveals_from(self) -> int | None:
        """The index from which ballots may be shown because the whole panel has committed."""
        if not self.sealed or len(self.sealed) < len(self.panel):
            return None
        return max(item.index for item in self.sealed.values())

    def _reveals(self) -> dict[str, m.Ballot]:
        """Return the ballots that count."""
        kept: dict[str, m.Ballot] = {}
        complete = self.reveals_from
        found = self._by_operator(self.file.reveals)
        for name, sealed in self.sealed.items():
            code, ballot = self._reveal(sealed, found.get(name, []), complete)
            if ballot is None:
                self.codes[name] = code
            else:
                kept[name] = ballot
        return kept

    def _reveal(
        self, sealed: Logged, items: list[Logged], complete: int | None
    ) -> tuple[Code, m.Ballot | None]:
        assert isinstance(sealed.message, m.VoteCommit)
        code = Code.UNREVEALED
        for item in items:
            assert isinstance(item.message, m.VoteReveal)
            ballot = item.message.ballot
            begun = item.entry.time > self.windows.commit
            if not begun and (complete is None or item.index < complete):
                return Code.EARLY, None
            mine = ballot.voter == item.message.sender == sealed.message.sender
            if mine and ballot.claim == self.file.id and ballot.sealed() == sealed.message.ballot:
                return Code.COUNTED, ballot
            code = Code.MISMATCH
        return code, None

    def conclude(self) -> tuple[Outcome, Code]:
        """Return what became of the claim, and why."""
        if not self.closed:
            return Outcome.INCONCLUSIVE, Code.OPEN
        if self.drawn is None:
            return Outcome.INCONCLUSIVE, Code.NO_DRAW
        quorum = self.rules.quorum(len(self.panel))
        suspect, release = map(self._tally, own(self.file))
        for tally in (suspect, release):
            if tally.outcome is Outcome.INCONCLUSIVE:
                guard = max(tally.shown, tally.not_shown) + tally.abstained >= quorum
                code = Code.GUARD if guard and tally.abstained else Code.NO_QUORUM
                return Outcome.INCONCLUSIVE, code
        if suspect.outcome is Outcome.NOT_SHOWN:
            return Outcome.NOT_SHOWN, Code.QUORUM
        if release.outcome is Outcome.NOT_SHOWN:
            return Outcome.NOT_SHOWN, Code.UNVERIFIED_RELEASE
        return Outcome.SHOWN, Code.QUORUM

    def tallies(self) -> tuple[Tally, ...]:
        """Count every question."""
        return tuple(self._tally(item) for item in questions(self.history, self.file))

    def outcomes(self, question: Question) -> dict[str, tuple[Outcome, m.Finding | None]]:
        """Return what each operator whose ballot counts says to a question."""
        asker = self.history.claims[question.claim]
        made: dict[str, tuple[Outcome, m.Finding | None]] = {}
        for name, ballot in self.ballots.items():
            finding = next(
                (
                    item
                    for item in ballot.findings
                    if (item.commitment, item.model) == (question.commitment, question.model)
                ),
                None,
            )
            if finding is None or finding.trials > asker.claim.opening.layout.message_bits:
                made[name] = (Outcome.INCONCLUSIVE, None)
                continue
            layout = asker.claim.opening.layout
            outcome = classify(
                finding,
                self.rules.policy,
                self.rules.guard,
                keys=asker.keys
                * comb(layout.shards, len(asker.claim.shards))
                * asker.choices**2  # of the key's value, and of the claim's
                * asker.tries,
                suspects=asker.suspects,
            )
            made[name] = (outcome, finding)
        return made

    def _tally(self, question: Question) -> Tally:
        said = self.outcomes(question)
        votes = [outcome for outcome, _ in said.values()]
        quorum = self.rules.quorum(len(self.panel))
        agreed = [
            outcome
            for outcome in (Outcome.SHOWN, Outcome.NOT_SHOWN)
            if votes.count(outcome) >= quorum
        ]
        counts = [(item.hits, item.trials) for _, item in said.values() if item is not None]
        hits, trials = max(counts, key=lambda pair: (counts.count(pair), pair), default=(0, 0))
        return Tally(
            commitment=question.commitment,
            model=question.model,
            outcome=agreed[0] if agreed else Outcome.INCONCLUSIVE,
            shown=votes.count(Outcome.SHOWN),
            not_shown=votes.count(Outcome.NOT_SHOWN),
            unmeasured=sum(item is not None and item.trials == 0 for _, item in said.values()),
            abstained=votes.count(Outcome.INCONCLUSIVE),
            hits=hits,
            trials=trials,
        )

    def voters(self) -> tuple[Voter, ...]:
        """Say of every operator of the panel what became of its vote on the suspect."""
        question = questions(self.history, self.file)[0]
        said = self.outcomes(question)
        agreed = self._tally(question).outcome
        made = []
        for name in self.panel:
            code = self.codes.get(name, Code.ABSENT)
            if name in said:
                outcome, _ = said[name]
                code = Code.COUNTED
                if outcome is Outcome.INCONCLUSIVE:
                    code = Code.ABSTAINED
                elif outcome is not agreed and agreed is not Outcome.INCONCLUSIVE:
                    code = Code.DISSENT
            made.append(Voter(name, code))
        return tuple(made)
