"""Read a mark as a careful owner would: in place first, then after alignment.

Suspects are aligned to what the model was before its training, which knows nothing of the message.
Where that is not known, Deep Water is aligned to the release without its carrier, and DeepSigns is
read in place only.

Whatever is tried is charged: where a suspect can be aligned, two forms are charged, whether or not
the second one was needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from earmark.errors import EarmarkError, UsageError
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
        ground: The subject; its start, or for Deep Water else its model, is aligned to.
        suspect: The attacked model.
        policy: Evidence in place that suffices for it ends the search.

    Raises:
        EarmarkError: Neither form could be read; the error is that of the reading in place.
    """
    first = ground.start
    if first is None and hasattr(ground.scheme, "aligned"):
        first = ground.model
    if first is None or not aligns(ground.scheme):
        return ground.scheme.measure(suspect, ground.key)
    reference = ground.task.host(first)

    def bring_back() -> Host:
        return aligned(ground.scheme, ground.key, suspect, reference, ground.model)

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
        scheme: One that :func:`aligns`.
        key: The key.
        suspect: The model under test.
        bring_back: Returns the suspect aligned.
        policy: Evidence in place that suffices for it ends the search.

    Raises:
        EarmarkError: Neither form could be read; the error is that of the reading in place.
        UsageError: The suspect cannot be aligned to what was given.
    """
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
        except UsageError:
            raise
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
