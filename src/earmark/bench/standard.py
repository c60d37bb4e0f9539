"""Rows in the layout of IEEE 3304-2023 (MPAI-NNW): M networks, D payloads, one entry an attack.

The standard asks how a mark holds against modifications: each of M networks is marked with D
payloads and also left unmarked, all are modified, and three figures are reported for each
modification: the ratio of false positives among the unmarked, the ratio of false negatives among
the marked, and the mean symbol error rate. It is a way of measuring without a pass mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from earmark import codec
from earmark.bench.rows import Row
from earmark.codec import Json
from earmark.policy import Policy, judge
from earmark.records import Evidence


class _Counts(TypedDict):
    marked: list[Evidence]
    unmarked: list[Evidence]
    failed: int
    networks: set[str]
    payloads: set[str]


def export(rows: Sequence[Row], policy: Policy | None = None) -> dict[str, Json]:
    """Return the rows' figures in the standard's layout.

    Args:
        rows: Rows of one plan with unmarked twins and several payloads.
        policy: Says how many bits count as shown; by default 64.

    Returns:
        Plain JSON: imperceptibility, robustness and computational cost. Figures for which there
        are no rows are null.
    """
    asked = policy or Policy()
    groups: dict[tuple[str, str], _Counts] = {}
    for row in rows:
        scheme = row.trial.scheme
        empty: _Counts = {
            "marked": [], "unmarked": [], "failed": 0, "networks": set(), "payloads": set(),
        }  # fmt: skip
        entry = groups.setdefault((scheme, row.trial.attack), empty)
        about = row.cell.subject
        entry["networks"].add(f"{about.get('network')}/{about.get('data')}/{about.get('seed')}")
        entry["payloads"].add(str(about.get("payload", 0)))
        if row.trial.evidence is None:
            entry["failed"] += 1
        elif about.get("marked", True):
            entry["marked"].append(row.trial.evidence)
        else:
            entry["unmarked"].append(row.trial.evidence)
    machines: list[Json] = [*sorted({row.trial.machine for row in rows})]
    return {
        "layout": "IEEE 3304-2023 / MPAI-NNW",
        "threshold_bits": asked.bits,
        "imperceptibility": _imperceptibility(rows),
        "robustness": [_entry(key, counts, asked) for key, counts in groups.items()],
        "computational_cost": {
            "attack_seconds": round(sum(row.trial.seconds for row in rows), 3),
            "machine": machines,
        },
    }


def lines(rows: Sequence[Row], policy: Policy | None = None) -> bytes:
    """Return the same figures as JSON lines: one for each modification, then what is common.

    Args:
        rows: Rows of one plan or battery.
        policy: As in :func:`export`.
    """
    made = export(rows, policy)
    entries = made.pop("robustness")
    assert isinstance(entries, list)
    every: list[Json] = [*entries, made]
    return b"".join(codec.canonical(entry) + b"\n" for entry in every)


def _entry(key: tuple[str, str], counts: _Counts, policy: Policy) -> dict[str, Json]:
    def shown(found: Sequence[Evidence]) -> int:
        return sum(judge(item, policy).bits >= policy.bits for item in found)

    marked, unmarked = counts["marked"], counts["unmarked"]
    errors = [1 - item.hits / item.trials for item in marked if item.trials]
    return {
        "scheme": key[0],
        "modification": key[1],
        "M": len(counts["networks"]),
        "D": len(counts["payloads"]),
        "marked_networks": len(marked),
        "unmarked_networks": len(unmarked),
        "failed": counts["failed"],
        "false_positive_ratio": shown(unmarked) / len(unmarked) if unmarked else None,
        "false_negative_ratio": 1 - shown(marked) / len(marked) if marked else None,
        "mean_symbol_error_rate": sum(errors) / len(errors) if errors else None,
    }


def _imperceptibility(rows: Sequence[Row]) -> dict[str, Json]:
    """Compare the utility of marked networks and of their unmarked twins, before any attack."""

    def utilities(*, marked: bool) -> list[float]:
        return [
            row.trial.utility
            for row in rows
            if not row.cell.attack
            and row.trial.utility is not None
            and bool(row.cell.subject.get("marked", True)) == marked
        ]

    with_mark, without = utilities(marked=True), utilities(marked=False)
    means = [sum(found) / len(found) if found else None for found in (with_mark, without)]
    return {
        "mean_utility_marked": means[0],
        "mean_utility_unmarked": means[1],
        "networks": [len(with_mark), len(without)],
    }
