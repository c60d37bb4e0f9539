"""Read a mark as a careful owner would: in place first, then after alignment.

Deep Water is aligned to what the model was before its training, where that is known: alignment to a
release that was marked from scratch favours the claim. Other schemes are aligned to the release.

Whatever is tried is charged: a scheme that can align is charged two forms on every suspect, whether
or not the second one was needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from earmark.errors import EarmarkError
from earmark.policy import Policy, judge
from earmark.records import Evidence

if TYPE_CHECKING:
    from torch import nn

    from earmark.bench.subjects import Ground
    from earmark.hosts.access import Host
    from earmark.hosts.module import ModuleHost
    from earmark.keys.secret import Key
    from earmark.schemes.base import Scheme

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

    def bring_back() -> Host:
        first = ground.task.host(_first(ground))
        return aligned(ground.scheme, ground.key, suspect, first, ground.model)

    return read_twice(ground.scheme, ground.key, suspect, bring_back, policy=policy)[0]


def read_twice(
    scheme: Scheme,
    key: Key,
    suspect: Host,
    bring_back: Callable[[], Host],
    *,
    policy: Policy | None = None,
) -> tuple[Evidence, Host]:
    """Return the best evidence in place and, if that does not suffice, aligned; and what was read.

    Args:
        scheme: The scheme; one that cannot align is read in place.
        key: The key.
        suspect: The model under test.
        bring_back: Returns the suspect aligned.
        policy: Evidence in place that suffices for it ends the search.

    Raises:
        EarmarkError: Neither form could be read; the error is that of the reading in place.
    """
    if not aligns(scheme):
        return scheme.measure(suspect, key), suspect
    asked = policy or Policy()
    problem: EarmarkError | None = None
    found: list[tuple[Evidence, Host]] = []
    try:
        found.append((_charged(scheme.measure(suspect, key)), suspect))
    except EarmarkError as error:
        problem = error
    if not found or judge(found[0][0], asked).bits < asked.bits:
        try:
            moved = bring_back()
            found.append((_charged(scheme.measure(moved, key)), moved))
        except EarmarkError as error:
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda item: judge(item[0], asked).bits)


def _charged(evidence: Evidence) -> Evidence:
    tried = evidence.tried
    forms = max(FORMS, tried.forms)
    return replace(evidence, tried=replace(tried, forms=forms))


def aligns(scheme: Scheme) -> bool:
    """Tell whether a scheme can bring a suspect's neurons back to a known order."""
    return hasattr(scheme, "aligned") or hasattr(scheme, "align")


def aligned(scheme: Scheme, key: Key, suspect: Host, first: Host, model: nn.Module) -> Host:
    """Return a suspect aligned the scheme's own way.

    Args:
        scheme: One that :func:`aligns`.
        key: The key.
        suspect: The model under test.
        first: What it is aligned to.
        model: Any network of that architecture.
    """
    if hasattr(scheme, "aligned"):
        from earmark.hosts.graph import channels

        made: Host = scheme.aligned(suspect, first, key, channels(model))
    else:
        made = scheme.align(suspect, first, key)  # type: ignore[attr-defined]
    return made


def _first(ground: Ground) -> nn.Module:
    """Return what suspects are aligned to: for Deep Water the start, where it is known."""
    start = ground.start if hasattr(ground.scheme, "aligned") else None
    return start or ground.model
