"""Read a mark as a careful owner would: in place first, then after alignment.

Deep Water is aligned to what the model was before its training, where that is known: alignment to a
release that was marked from scratch favours the claim. Other schemes are aligned to the release.

Whatever is tried is charged: a scheme that can align is charged two forms on every suspect, whether
or not the second one was needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from earmark.errors import EarmarkError
from earmark.policy import Policy, judge
from earmark.records import Evidence

if TYPE_CHECKING:
    from earmark.bench.subjects import Ground
    from earmark.hosts.access import Host
    from earmark.hosts.module import ModuleHost

FORMS = 2


def read(ground: Ground, suspect: ModuleHost, *, policy: Policy | None = None) -> Evidence:
    """Return the best evidence on a suspect, every form charged.

    Args:
        ground: The subject; its start, or else its model, is what Deep Water is aligned to.
        suspect: The attacked model.
        policy: Evidence in place that suffices for it ends the search.

    Raises:
        EarmarkError: Neither form could be read; the error is that of the reading in place.
    """
    if not _aligns(ground):
        return ground.scheme.measure(suspect, ground.key)
    asked = policy or Policy()
    problem: EarmarkError | None = None
    found: list[Evidence] = []
    try:
        found.append(_charged(ground.scheme.measure(suspect, ground.key)))
    except EarmarkError as error:
        problem = error
    if not found or judge(found[0], asked).bits < asked.bits:
        try:
            found.append(_charged(ground.scheme.measure(_aligned(ground, suspect), ground.key)))
        except EarmarkError as error:
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda item: judge(item, asked).bits)


def _charged(evidence: Evidence) -> Evidence:
    tried = evidence.tried
    forms = max(FORMS, tried.forms)
    return replace(evidence, tried=replace(tried, forms=forms))


def _aligns(ground: Ground) -> bool:
    return hasattr(ground.scheme, "aligned") or hasattr(ground.scheme, "align")


def _aligned(ground: Ground, suspect: ModuleHost) -> Host:
    """Return the suspect aligned the scheme's own way."""
    scheme = ground.scheme
    if hasattr(scheme, "aligned"):
        from earmark.hosts.graph import channels

        first = ground.task.host(ground.start or ground.model)
        made: Host = scheme.aligned(suspect, first, ground.key, channels(ground.model))
    else:
        made = scheme.align(suspect, ground.task.host(ground.model), ground.key)  # type: ignore[attr-defined]
    return made
