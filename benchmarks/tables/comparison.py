"""Tables of the comparison: what survives what, at which utility, and what removes it cheapest."""

import statistics
from collections.abc import Sequence

from common import rows_of, spread

SHOWN, WIDE, TIGHT = 64.0, 5.0, 2.0
OURS = ("mtlsign", "deepsigns", "deepsigns-blackbox", "deepwater")
PAPER = ("mtlsign-paper", "deepsigns-paper", "deepsigns-blackbox-paper")
BASELINES = ("uchida", "deepmarks", "adi")
LOCKS = ("dsn", "dsn-paper")
SHORT = {
    "deepsigns-blackbox": "deepsigns-bb",
    "deepsigns-paper": "deepsigns, paper",
    "deepsigns-blackbox-paper": "deepsigns-bb, paper",
    "mtlsign-paper": "mtlsign, paper",
    "dsn-paper": "dsn, paper",
}
NOTHING = "Not measured yet."
Groups = dict[tuple[str, str], list[dict]]


def _bits(row: dict) -> float:
    """Return net bits; a mark that cannot be read any more has none."""
    return row["bits"] or 0.0


def _lost(row: dict) -> float:
    lost: float = row["utility_before"] - row["utility"]
    return lost


def _broken(row: dict) -> bool:
    """Tell whether the attack itself failed: then nothing was measured."""
    return row["error"] is not None and row["utility"] is None


def _groups(data: str, systems: Sequence[str]) -> Groups:
    found = {}
    for row in rows_of("comparison"):
        if row["data"] == data and row["system"] in systems:
            found.setdefault((row["system"], row["attack"]), []).append(row)
    return found


def _cell(rows: list[dict]) -> str:
    if not rows:
        return ""
    good = [row for row in rows if not _broken(row)]
    if not good:
        return "does not apply"
    shown = sum(_bits(row) >= SHOWN for row in good)
    text = f"{statistics.median(_bits(row) for row in good):,.0f}"
    lost = statistics.median(_lost(row) for row in good)
    if shown == len(good):
        return f"**{text}**"
    return f"{text}, {shown} of {len(good)}" if lost <= WIDE else f"({text})"


def _order(groups: Groups) -> list[str]:
    """Return the attacks in the order in which most systems ran them, none first."""
    places: dict[str, list[int]] = {}
    runs: dict[tuple[str, int], int] = {}
    for (system, attack), rows in groups.items():
        for row in rows:
            run = (system, row["seed"])
            places.setdefault(attack, []).append(runs.get(run, 0))
            runs[run] = runs.get(run, 0) + 1
    return sorted(places, key=lambda name: (name != "none", statistics.median(places[name])))


def _matrix(data: str, systems: Sequence[str], *, least: int = 1, most: int = 99) -> str:
    groups = _groups(data, systems)
    systems = [name for name in systems if any(key[0] == name for key in groups)]
    if not systems:
        return NOTHING
    lines = [
        "| attack | points lost | " + " | ".join(SHORT.get(name, name) for name in systems) + " |",
        "|" + "---|" * (len(systems) + 2),
    ]
    for attack in _order(groups):
        cells = [groups.get((name, attack), []) for name in systems]
        if not least <= max(len(rows) for rows in cells) <= most:
            continue
        lost = [_lost(row) for rows in cells for row in rows if row["utility"] is not None]
        lines.append(
            f"| {attack} | {spread(lost, 1) if lost else ''} | "
            + " | ".join(_cell(rows) for rows in cells)
            + " |"
        )
    return "\n".join(lines)


def _attacks(groups: Groups, system: str) -> list[tuple[str, list[dict]]]:
    """Return (attack, runs) of a system for attacks that could be run on it."""
    found = []
    for (name, attack), rows in groups.items():
        good = [row for row in rows if not _broken(row)]
        if name == system and attack != "none" and good:
            found.append((attack, good))
    return found


def _removes(rows: list[dict], limit: float) -> bool:
    lost = statistics.median(_lost(row) for row in rows)
    return lost <= limit and any(_bits(row) < SHOWN for row in rows)


def _summary_line(groups: Groups, system: str) -> str | None:
    attacks = _attacks(groups, system)
    bare = groups.get((system, "none"), [])
    if not attacks or not bare:
        return None
    kept = [(a, rows) for a, rows in attacks if statistics.median(map(_lost, rows)) <= WIDE]
    removing = [(a, rows) for a, rows in kept if _removes(rows, WIDE)]
    cost = {a: statistics.median(row["cost"] or 0.0 for row in rows) for a, rows in removing}
    tight = str(sum(_removes(rows, TIGHT) for _, rows in kept))
    bits = spread([_bits(row) for row in bare], 0)
    utility = spread([row["utility"] for row in bare], 1)
    seeds = len({row["seed"] for row in bare})
    if removing:
        first = min(removing, key=lambda item: cost[item[0]])
        lost = statistics.median(map(_lost, first[1]))
        said = f"{first[0]}: {lost:.1f} points, {100 * cost[first[0]]:.1f} % of a training"
    else:
        said = "none of these"
    stands = f"{len(kept) - len(removing)} of {len(kept)}"
    if statistics.median(_bits(row) for row in bare) < SHOWN:
        stands, tight, said = "none to survive", "", "has fewer bits than 64 before any attack"
    return (
        f"| {SHORT.get(system, system)} | {seeds} | {bits} | {utility} | "
        f"{stands} | {tight} | {said} |"
    )


def _summary(data: str, systems: Sequence[str]) -> str:
    groups = _groups(data, systems)
    lines = [line for name in systems if (line := _summary_line(groups, name))]
    if not lines:
        return NOTHING
    head = [
        "| system | seeds | bits before | accuracy before | survives, within 5 points | "
        "removed within 2 points | cheapest removal |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + lines)


def short() -> str:
    """Return the README's table: how many attacks each mark survives, and its cheapest removal."""
    lines = [_summary_line(_groups("fashion-mnist", OURS + BASELINES), name)
             for name in OURS + BASELINES]  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line]
    if not rows:
        return NOTHING
    head = ["| mark | survives, of attacks that cost at most 5 points | cheapest removal |"]
    return "\n".join(
        [*head, "|---|---|---|", *(f"| {row[0]} | {row[4]} | {row[6]} |" for row in rows)]
    )


def sentences() -> str:
    """Say for each system which attack removes the mark at what cost."""
    groups = _groups("fashion-mnist", OURS + PAPER + BASELINES)
    said = []
    for system in OURS + PAPER + BASELINES:
        removing = [
            (statistics.median(row["cost"] or 0.0 for row in rows), attack, rows)
            for attack, rows in _attacks(groups, system)
            if _removes(rows, WIDE)
        ]
        bare = [_bits(row) for row in groups.get((system, "none"), [])]
        if not removing or not bare or statistics.median(bare) < SHOWN:
            continue
        removing.sort(key=lambda item: item[0])
        parts = [
            f"{attack} ({statistics.median(map(_lost, rows)):.1f} points, {100 * cost:.1f} %)"
            for cost, attack, rows in removing
        ]
        said.append(f"* **{SHORT.get(system, system)}**: {'; '.join(parts)}.")
    return "\n".join(said) or NOTHING


def _locks(data: str) -> str:
    """Return what a thief without the serial number gets out of a locked copy."""
    groups = _groups(data, LOCKS)
    if not groups:
        return NOTHING
    systems = [name for name in LOCKS if any(key[0] == name for key in groups)]
    lines = [
        "| attack without the number | "
        + " | ".join(f"{SHORT.get(name, name)}: accuracy" for name in systems)
        + " |",
        "|" + "---|" * (len(systems) + 1),
    ]
    attacks = list(dict.fromkeys(attack for _, attack in groups))
    for name in ("licensed", *attacks):
        cells = []
        for system in systems:
            if name == "licensed":
                rows = groups.get((system, "none"), [])
                values = [row["utility_before"] for row in rows]
            else:
                rows = groups.get((system, name), [])
                values = [row["utility"] for row in rows if row["utility"] is not None]
            cells.append(spread(values, 1) if values else "does not apply" if rows else "")
        label = {
            "licensed": "with the number", "none": "none, no number",
            "scratch": "a new model on the same data",
        }.get(name, name)  # fmt: skip
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def forgeries() -> str:
    """Return what became of each forgery."""
    rows = rows_of("forgeries")
    if not rows:
        return NOTHING
    lines = [
        "| forgery | fools a verifier that | accepted by it | accepted by ours | most bits |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['fools']} | {row['fooled']} of {row['naive']} | "
        f"{row['accepted']} of {row['tries']:,} | "
        + (f"{row['best']:.1f} |" if row["best"] else "none to count |")
        for row in sorted(rows, key=lambda row: row["name"])
    ]
    return "\n".join(lines)


def nulls() -> str:
    """Return how often published rules accuse unmarked models."""
    rows = rows_of("baseline_nulls")
    if not rows:
        return NOTHING
    rules = {
        "uchida": "every bit of a layer reads right",
        "deepmarks": "the word that correlates most names a customer",
        "adi": "more right answers than a normal fit to other models passes in 1 of 20",
    }
    lines = [
        "| baseline | published rule | accuses unmarked models | exact test | most bits |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        rates = [100 * rate for rate in row["published_rate"]]
        lines.append(
            f"| {row['scheme']} | {rules[row['scheme']]} | {spread(rates, 1)} % of keys | "
            f"{row['exact_accusations']} of {row['measured']:,} | {row['best_bits']:.1f} |"
        )
    return "\n".join(lines)


def batteries() -> str:
    """Return what whole batteries cost, and what they removed."""
    rows = [row for row in rows_of("battery") if "battery" in row]
    if not rows:
        return NOTHING
    lines = [
        "| battery | mark | attacks | failed | minutes on one core | on two | bits before | "
        "removed within 5 points | within 2 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        minutes = (row["wall_seconds"] + row["train_cpu_seconds"]) / 60
        lines.append(
            f"| {row['battery']} | {row['scheme']} | {row['attacks']} | {row['failed']} | "
            f"{minutes:.1f} | {minutes / 2:.1f} | {row['bits_before']:,.0f} | "
            f"{', '.join(row['removed_within_5']) or 'none'} | "
            f"{', '.join(row['removed_within_2']) or 'none'} |"
        )
    return "\n".join(lines)


def searches() -> str:
    """Return the cheapest chains that searches found."""
    rows = [row for row in rows_of("battery") if "search" in row]
    if not rows:
        return NOTHING
    lines = [
        "| mark | chains measured | within 2 points | the one that leaves least | bits | "
        "points lost | compute, of a training |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['scheme']} | {row['measured']} | {row['kept']} | {row['cheapest']} | "
        f"{row['bits']:,.0f} | {row['lost']:.1f} | {100 * row['cost']:.0f} % |"
        for row in rows
    ]
    return "\n".join(lines)


TABLES = {
    "batteries": batteries,
    "searches": searches,
    "comparison-short": short,
    "comparison-summary": lambda: _summary("fashion-mnist", OURS + PAPER + BASELINES),
    "comparison-ours": lambda: _matrix("fashion-mnist", OURS + BASELINES, least=2),
    "comparison-dear": lambda: _matrix("fashion-mnist", OURS + BASELINES, most=1),
    "comparison-paper": lambda: _matrix("fashion-mnist", PAPER, least=2),
    "comparison-cifar10": lambda: _matrix("cifar10", OURS + PAPER + BASELINES),
    "comparison-sentences": sentences,
    "comparison-locks": lambda: _locks("fashion-mnist"),
    "comparison-locks-cifar10": lambda: _locks("cifar10"),
    "forgeries": forgeries,
    "baseline-nulls": nulls,
}
