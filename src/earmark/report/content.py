"""What a page is made of: records, and the few words that no record holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from earmark import __version__
from earmark.errors import UsageError
from earmark.policy import Policy
from earmark.records import Claim, Commitment, Evidence, Record, Release, Trial, Verdict
from earmark.report.numbers import seconds_of
from earmark.report.proof import LedgerProof

KINDS: tuple[str, ...] = ("release", "stolen", "suspect", "innocent")
"""What a subject can be: our own release, a copy stolen from it, a suspect, a model of others."""
MOST_UTILITY = 1e9
MOST_SAMPLES = 1 << 32
MOST_SUBJECTS = 512


def _require_time(value: str | None) -> None:
    try:
        good = value is None or (seconds_of(value) > 0 and value.endswith("Z"))
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{value!r} is no time.", expected="UTC like 2027-02-11T09:30:00Z.")


@dataclass(frozen=True, slots=True)
class Subject(Record):
    """One model under test, as the report shows it.

    Args:
        name: What readers call it, for example its file name.
        evidence: What was counted on it.
        verdict: What the policy concluded.
        kind: One of :data:`KINDS`.
        utility: Utility on the task's own scale, in percent, or null if unknown.
        tested: Number of samples that the utility was measured on, for its interval, or null.
        done: What was done to it ("pruned 65 %"), or empty.

    Raises:
        UsageError: No kind of that name, or the verdict is about other evidence.
    """

    SCHEMA: ClassVar[str] = "earmark/report-subject/1"
    name: str
    evidence: Evidence
    verdict: Verdict
    kind: str = "suspect"
    utility: float | None = None
    tested: int | None = None
    done: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"'{self.kind}' is no kind of subject.", expected=f"One of {KINDS}.")
        if self.tested is not None and not 1 <= self.tested <= MOST_SAMPLES:
            raise UsageError(f"Utility was measured on {self.tested} samples; at least 1.")
        if self.utility is not None and not abs(self.utility) <= MOST_UTILITY:
            raise UsageError(f"A utility of {self.utility} cannot be drawn.")
        if self.evidence.digest() not in self.verdict.evidence:
            raise UsageError(f"The verdict on '{self.name}' is about other evidence.")


@dataclass(frozen=True, slots=True)
class Event(Record):
    """A point of the timeline beyond those that the records give.

    Args:
        when: UTC time as records write it.
        what: A few words.
    """

    SCHEMA: ClassVar[str] = "earmark/report-event/1"
    when: str
    what: str

    def __post_init__(self) -> None:
        _require_time(self.when)


@dataclass(frozen=True, slots=True)
class ReportContent(Record):
    """Everything that the ownership report shows.

    Args:
        model: Name of the owner's model.
        owner: Name of the owner.
        created: When the report was made.
        policy: What the verdicts were judged by.
        subjects: The models under test; at least one.
        main: Index of the subject that the verdict sentence speaks of.
        commitment: What was registered before release, or null.
        release: What was released, or null.
        claim: The claim, or null.
        proof: The ledger's part, or null.
        first_seen: When the main subject was first seen, or null.
        events: Further points of the timeline.
        robustness: What was measured before, by the owner, on his own model.
        utility_name: What the utility is called.
        baseline: Utility of an unmarked twin, or null.
        notes: What the reader should know besides, one sentence each.
        sample: Whether the content is invented; the page then says so at its top.
        version: Version of earmark that made the content.

    Raises:
        UsageError: No subjects, `main` names none, or a verdict is by another policy.
    """

    SCHEMA: ClassVar[str] = "earmark/report/1"
    model: str
    owner: str
    created: str
    policy: Policy
    subjects: tuple[Subject, ...]
    main: int = 0
    commitment: Commitment | None = None
    release: Release | None = None
    claim: Claim | None = None
    proof: LedgerProof | None = None
    first_seen: str | None = None
    events: tuple[Event, ...] = ()
    robustness: tuple[Trial, ...] = ()
    utility_name: str = "test accuracy"
    baseline: float | None = None
    notes: tuple[str, ...] = ()
    sample: bool = False
    version: str = __version__

    def __post_init__(self) -> None:
        _require_time(self.created)
        _require_time(self.first_seen)
        if not 0 <= self.main < len(self.subjects) <= MOST_SUBJECTS:
            raise UsageError(
                f"The report has {len(self.subjects)} subjects and is to speak of number "
                f"{self.main}.",
                expected=f"1 to {MOST_SUBJECTS} subjects, and the index of one of them.",
            )
        wanted = self.policy.digest()
        for subject in self.subjects:
            if subject.verdict.policy != wanted:
                raise UsageError(f"The verdict on '{subject.name}' was judged by another policy.")

    @property
    def subject(self) -> Subject:
        """The subject that the verdict sentence speaks of."""
        return self.subjects[self.main]


@dataclass(frozen=True, slots=True)
class BatteryContent(Record):
    """Everything that the battery page shows.

    Args:
        model: Name of the attacked model.
        trials: One record per attack and seed, failures included; at least one.
        created: When the page was made.
        policy: What "removed" is measured by.
        utility_name: What the utility is called.
        notes: What the reader should know besides, one sentence each.
        sample: Whether the content is invented.
        version: Version of earmark that made the content.

    Raises:
        UsageError: No trials, or `created` is no time.
    """

    SCHEMA: ClassVar[str] = "earmark/battery/1"
    model: str
    trials: tuple[Trial, ...]
    created: str
    policy: Policy = field(default_factory=Policy)
    utility_name: str = "test accuracy"
    notes: tuple[str, ...] = ()
    sample: bool = False
    version: str = __version__

    def __post_init__(self) -> None:
        _require_time(self.created)
        if not self.trials:
            raise UsageError("A battery page needs trials.", expected="At least one record.")
