"""Who holds a suspect that several owners have shown their marks on.

Every party here has committed a key before the suspect was known, and has published a release in
which the panel found that key's mark. Between two of them:

1. *Containment.* If one release carries the other's mark and not the other way round, the release
   that is free of the other's mark is the original: nobody can put a mark into a model that was
   published before he had it. A release that lacks the other's carrier altogether is free of it.
2. *Priority*, only where the community agreed to it: both releases are free of the other's mark,
   and the earlier published one wins.
3. Otherwise the records do not tell: the dispute is *undecidable*. A thief who registered a toy
   model early and then marked a stolen one looks the same as an owner whose model was marked by a
   thief with a toy. That is why priority alone is not the default.

Who was the first to publish the suspect's very bytes decides nothing: a thief is always the first
to publish what he made of a stolen model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from earmark.protocol.history import ClaimFile
from earmark.protocol.rules import Code, Rules
from earmark.protocol.voting import Tally
from earmark.records import Outcome, Record

Shown = tuple[ClaimFile, tuple[Tally, ...]]


@dataclass(frozen=True, slots=True)
class Dispute(Record):
    """A suspect with several owners' marks.

    Args:
        suspect: SHA-256 of the suspect's file.
        claims: The claims in dispute, in the log's order.
        holder: The claim that prevails, or null if the records do not tell.
        code: Containment, priority or undecidable.
    """

    SCHEMA: ClassVar[str] = "earmark/dispute/1"
    suspect: str
    claims: tuple[str, ...]
    holder: str | None
    code: Code


def disputes(rules: Rules, shown: Sequence[Shown]) -> tuple[Dispute, ...]:
    """Decide every suspect on which several owners have shown their marks.

    Args:
        rules: What the community agreed on.
        shown: The closed claims that were shown, each with its tallies, in the log's order.
    """
    suspects: dict[str, list[Shown]] = {}
    for item in shown:
        suspects.setdefault(item[0].claim.suspect, []).append(item)
    return tuple(
        _decide(rules, name, parties)
        for name, parties in suspects.items()
        if len({file.owner for file, _ in parties}) > 1
    )


def _decide(rules: Rules, suspect: str, parties: list[Shown]) -> Dispute:
    """Name the one party that prevails over every other owner's."""
    claims = tuple(file.id for file, _ in parties)
    for party in parties:
        rivals = [other for other in parties if other[0].owner != party[0].owner]
        found = [_between(rules, party, other) for other in rivals]
        if all(holder == party[0].id for holder, _ in found):
            codes = {code for _, code in found}
            code = Code.CONTAINMENT if codes == {Code.CONTAINMENT} else Code.PRIORITY
            return Dispute(suspect, claims, party[0].id, code)
    return Dispute(suspect, claims, None, Code.UNDECIDABLE)


def _between(rules: Rules, first: Shown, second: Shown) -> tuple[str | None, Code]:
    """Decide between two parties; the later claim's panel has compared them."""
    (old, _), (new, tallies) = sorted((first, second), key=lambda item: item[0].logged.index)
    quorum = rules.quorum(min(rules.panel, len({item.operator for item in new.members})))
    old_in_new = _carries(tallies, old.commitment, new.model, quorum)
    new_in_old = _carries(tallies, new.commitment, old.model, quorum)
    if (old_in_new, new_in_old) == (True, False):
        return old.id, Code.CONTAINMENT
    if (old_in_new, new_in_old) == (False, True):
        return new.id, Code.CONTAINMENT
    if rules.earlier_wins and old_in_new is new_in_old is False:
        return min((old, new), key=lambda file: file.release.index).id, Code.PRIORITY
    return None, Code.UNDECIDABLE


def _carries(tallies: tuple[Tally, ...], commitment: str, model: str, quorum: int) -> bool | None:
    """Tell whether a model carries a key's mark, or null if the panel could not say."""
    for item in tallies:
        if (item.commitment, item.model) == (commitment, model):
            if item.outcome is Outcome.SHOWN:
                return True
            if item.outcome is Outcome.NOT_SHOWN or item.unmeasured >= quorum:
                return False
    return None
