"""Values that nobody chose: drawn by the operators after an entry is fixed. Pure.

A root of the log is no such value. It follows from the records, so whoever is next to append can
try any number of nonces and append the one whose root he likes. Here every operator seals values
in advance (`earmark.protocol.messages.Seal`). An entry that needs a value takes the oldest unused
seal of each operator; once the entry is in the log they show what they sealed (`Draw`), and the
value is a hash over all of them. One honest operator makes it unpredictable to everybody when the
entry was made.

What is left is to say nothing: of n operators up to f may be missing, so whoever controls those,
or the log's delivery, picks among at most `choices` values. That many tries are charged.

Source: commit, then reveal, as in coin flipping by telephone (Blum 1983); bounded and charged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import comb

from earmark import codec
from earmark.protocol import messages as m
from earmark.protocol.rules import Rules

MAX_WAITING = 1024
"""Unused seals that are kept for an operator."""

RESERVE = 4
"""Seals of each operator that commitments leave for claims: anybody may commit, to anything."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A value, with the time from which everybody could know it."""

    value: str
    time: int


@dataclass(slots=True)
class _Open:
    entry: str
    deadline: int
    seals: dict[str, str]
    operators: int
    shown: dict[str, str] = field(default_factory=dict)
    complete: int | None = None


def choices(operators: int) -> int:
    """Count the values among which the faulty ones of some operators can pick by silence.

    Example:
        >>> choices(1), choices(4), choices(7)
        (1, 5, 29)
    """
    return sum(comb(operators, missing) for missing in range(Rules.faulty(operators) + 1))


class Draws:
    """The draws of a log, in its order.

    Args:
        rules: What the community agreed on; without `Rules.draw_seconds` nothing is drawn.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._waiting: dict[str, list[str]] = {}
        self._ever: set[str] = set()
        self._open: dict[str, _Open] = {}

    def waiting(self, operator: str) -> int:
        """Return how many seals of an operator are unused."""
        return len(self._waiting.get(operator, ()))

    def known(self, seal: str) -> bool:
        """Tell whether somebody has sealed this before."""
        return seal in self._ever

    def seal(self, operator: str, seals: Iterable[str]) -> None:
        """Take in sealed values; one that was sealed before, by anybody, is passed over."""
        mine = self._waiting.setdefault(operator, [])
        for item in seals:
            if item not in self._ever and len(mine) < MAX_WAITING:
                self._ever.add(item)
                mine.append(item)

    def begin(self, entry: str, time: int, operators: Iterable[str], *, reserve: int = 0) -> None:
        """Draw for an entry: each operator's oldest unused seal is the one that it must open.

        Args:
            entry: Digest of the commit's or the claim's envelope.
            time: When it was logged, seconds since 1970.
            operators: Who draws.
            reserve: Seals of each operator that are left for others.
        """
        names = sorted(set(operators))
        seals = {name: self._waiting[name].pop(0) for name in names if self.waiting(name) > reserve}
        self._open[entry] = _Open(entry, time + self.rules.draw_seconds, seals, len(names))

    def show(self, entry: str, operator: str, message: m.Draw, time: int) -> str | None:
        """Take in what an operator shows; return why it does not count, or null if it does."""
        found = self._open.get(entry)
        if found is None:
            return "Nothing is drawn for that entry."
        if operator in found.shown or time > found.deadline:
            return "It is too late, or was shown before."
        if found.seals.get(operator) != m.sealed(message.sealer, message.value):
            return "It is not what was sealed."
        found.shown[operator] = message.value
        if len(found.shown) == found.operators:
            found.complete = time
        return None

    def due(self, operator: str, time: int) -> Mapping[str, str]:
        """Return entry to seal for what an operator has yet to show."""
        return {
            name: item.seals[operator]
            for name, item in self._open.items()
            if operator in item.seals and operator not in item.shown and time <= item.deadline
        }

    def pending(self, entry: str, time: int) -> bool:
        """Tell whether an entry's value may still come."""
        found = self._open.get(entry)
        return found is not None and found.complete is None and time <= found.deadline

    def failed(self, entry: str, time: int) -> bool:
        """Tell whether a value was to be drawn for an entry and came to nothing."""
        ended = entry in self._open and not self.pending(entry, time)
        return ended and self.value(entry, time) is None

    def overdue(self, time: int, now: int) -> bool:
        """Tell whether a draw waits for an entry later than its deadline, and it is that late."""
        return any(
            item.complete is None and time <= item.deadline < now for item in self._open.values()
        )

    def value(self, entry: str, time: int) -> Drawn | None:
        """Return what was drawn for an entry, as of a time; null if it is open or came to nothing.

        Args:
            entry: Digest of the commit's or the claim's envelope.
            time: Seconds since 1970, not before the newest entry.
        """
        found = self._open.get(entry)
        if found is None or self.pending(entry, time):
            return None
        if len(found.shown) < self.rules.quorum(found.operators):
            return None
        listed = "".join(f"{name}\n{value}\n" for name, value in sorted(found.shown.items()))
        text = f"earmark/draw/1\n{self.rules.domain}\n{entry}\n{listed}"
        when = found.deadline if found.complete is None else found.complete
        return Drawn(codec.digest(text.encode()), when)
