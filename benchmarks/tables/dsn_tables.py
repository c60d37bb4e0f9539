"""The tables and pictures of the lock: numbers, searches, removal, customers, tracing."""

import math
import statistics
from collections.abc import Callable, Iterable

from charts import chart
from common import rows_of, spread

NOTHING = "Nothing was measured yet."
WORKS = {
    ("mlp-128", "fashion-mnist"): "Fashion-MNIST, dense",
    ("mlp-128", "mnist"): "MNIST, dense",
    ("small-cnn", "fashion-mnist"): "Fashion-MNIST, convolutions",
    ("small-cnn", "mnist"): "MNIST, convolutions",
    ("small-cnn", "cifar10"): "CIFAR-10, convolutions",
    ("reader", "topics"): "news groups, eight topics",
    ("reader", "letters"): "news, next letter",
    ("rows", "tumours"): "tumours, a table",
}
LOCKS = {
    "dsn": "default",
    "dsn-unscanned": "default, no scans",
    "paper-random": "paper, random",
    "paper-raw": "paper, raw",
}


def _rows(cell: str, what: str) -> list[dict]:
    return [row for row in rows_of("dsn") if row["cell"] == cell and row["what"] == what]


def _groups(rows: Iterable[dict], *keys: str) -> dict[tuple, list[dict]]:
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return found


SETTING = ("images_trained", "epochs")


def _locked(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Group rows by task, lock and setting, in the order of the names above.

    The setting stands beside the task's name where it is not the one of the task's first table.
    """
    usual = {
        (row["network"], row["data"]): tuple(row[key] for key in SETTING)
        for row in _rows("numbers", "D1")
        if row["lock"] == "dsn"
    }
    found = _groups(rows, "network", "data", "lock", *SETTING)
    ordered = {}
    for work, name in WORKS.items():
        for lock, kind in LOCKS.items():
            for (*key, images, epochs), group in found.items():
                if tuple(key) == (*work, lock):
                    first = usual.get(work, (images, epochs))
                    setting = f", {images:,} images" if images != first[0] else ""
                    setting += f", {epochs} epochs" if epochs != first[1] else ""
                    ordered[name + setting, kind] = group
    return ordered


def _two(values: list[float], digits: int = 1, *, low: bool = False) -> str:
    """Return median and worst; the highest is worst, unless low is."""
    worst = min(values) if low else max(values)
    return f"{statistics.median(values):.{digits}f} / {worst:.{digits}f}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    if not lines:
        return NOTHING
    rule = "|".join("---" for _ in head)
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{rule}|"] + [f"| {' | '.join(x)} |" for x in lines]
    )


def numbers() -> str:
    """Return D1 to D3 by task and lock."""
    first = _locked(_rows("numbers", "D1"))
    kinds = (
        "D2 random codes at the right place",
        "D2 random serial numbers",
        "D3 neighbours of the serial number, one and two bits",
        "D3 one wrong bit of the code",
        "D3 two wrong bits of the code",
    )
    others = {kind: _locked(_rows("numbers", kind)) for kind in kinds}
    lines = []
    for name, rows in first.items():
        cells = [
            name[0],
            name[1],
            str(len(rows)),
            f"{rows[0]['bits']}",
            f"{statistics.median(row['teacher'] for row in rows):.1f}",
            _two([row["lost"] for row in rows], 2),
            f"{rows[0]['chance']:.1f}",
            _two([row["absent"] for row in rows]),
        ]
        cells += [
            _two([row["worst"] for row in others[kind].get(name, [])] or [0]) for kind in kinds
        ]
        one = others["D3 one wrong bit of the code"].get(name, [])
        cells.append(str(min(row["effective_bits"] for row in one)))
        lines.append(cells)
    head = ["task", "lock", "seeds", "bits", "teacher", "lost", "chance", "no number"]
    head += ["random codes", "random numbers", "neighbouring numbers", "one bit", "two bits"]
    return _table([*head, "effective bits"], lines)


def copies() -> str:
    """Return what other values than codes give on copies as they are issued."""
    return values("copies")


def values(cell: str = "numbers") -> str:
    """Return what other values than codes give, median and worst seed of each task."""
    found = _locked(_rows(cell, "D3 other values"))
    found = {name: rows for name, rows in found.items() if name[1] == "default"}
    kinds = list(dict.fromkeys(row["values"] for rows in found.values() for row in rows))
    lines = []
    for kind in kinds:
        cells = [kind]
        for rows in found.values():
            best = [row["accuracy"] for row in rows if row["values"] == kind]
            cells.append(_two(best) if best else "")
        lines.append(cells)
    return _table(["values", *(name for name, _ in found)], lines)


def keys() -> str:
    """Return false acceptance and basin width."""
    accepted = _locked(_rows("curve", "false acceptance"))
    basins = _locked(_rows("curve", "basin width"))
    lines = []
    for name, rows in accepted.items():
        tried, opened = (sum(row[key] for row in rows) for key in ("tried", "opened"))
        bound = 3 / tried if not opened else (opened + 3 * opened**0.5 + 3) / tried
        widths = [row["worst"] for row in basins.get(name, [])]
        width = f"{max(widths):.3f}" if widths else "tokens have none"
        lines.append([*name, f"{tried:,}", str(opened), f"{bound:.1e}", width])
    return _table(["task", "lock", "random codes", "opened", "bound, 95 %", "basin, widest"], lines)


def _half(row: dict) -> float:
    """Return the accuracy half-way between chance and the right number, for one row's lock."""
    same = ("network", "data", "lock", "seed", *SETTING)
    first = next(
        first for first in _rows("numbers", "D1") if all(first[key] == row[key] for key in same)
    )
    return (first["valid"] + first["chance"]) / 2


def search() -> str:
    """Return D4: what searches found."""
    lines = []
    for name, rows in _locked(_rows("search", "D4 search")).items():
        for (way, share, _), found in _groups(rows, "way", "share", "options").items():
            opened = sum(row["accuracy"] >= _half(row) for row in found)
            lines.append(
                [
                    *name,
                    way,
                    f"{share:g} %",
                    f"{opened} of {len(found)}",
                    _two([row["accuracy"] for row in found]),
                    f"{max(row['agreeing_bits'] for row in found)} of {found[0]['bits']}",
                    f"{max(row['trials'] for row in found):,}",
                    f"{max(row['search_seconds'] for row in found):.1f}",
                ]
            )
    head = ["task", "lock", "way", "data", "opened", "accuracy", "agreeing bits", "tries"]
    return _table([*head, "CPU seconds"], lines)


def tune() -> str:
    """Return D5: fine-tuning without the number beside training anew."""
    lines = []
    for name, rows in _locked(_rows("tune", "D5 fine-tuning without the number")).items():
        for (share,), found in sorted(_groups(rows, "share").items()):
            ways = _groups(found, "way")
            anew = {row["seed"]: row["accuracy"] for row in ways[("scratch",)]}
            cells = [*name, f"{share:g} %", str(found[0]["images"]), str(len(anew))]
            cells.append(spread(list(anew.values()), 1))
            for way in ("fine-tune", "fine-tune, rate 5", "head reset", "tail reset"):
                cells.append(_two([row["accuracy"] for row in ways[(way,)]]))
            gains = [
                max(
                    row["accuracy"]
                    for row in found
                    if row["seed"] == seed and row["way"] != "scratch"
                )
                - base
                for seed, base in anew.items()
            ]
            lines.append([*cells, _two(gains)])
    head = ["task", "lock", "data", "samples", "seeds", "anew", "tuned", "five times the rate"]
    return _table([*head, "head reset", "two layers reset", "best gain"], lines)


def excise() -> str:
    """Return D6: cutting out."""
    lines = []
    for name, rows in _locked(_rows("excise", "D6 excision")).items():
        for (layer,), found in _groups(rows, "layer").items():
            best = [max(g, key=lambda row: row["absent"]) for g in _groups(found, "seed").values()]
            top = max(best, key=lambda row: row["absent"])
            how = f"{top['way']}, {100 * top['share']:g} %"
            lines.append([*name, layer, str(len(found)), _two([r["absent"] for r in best]), how])
    return _table(["task", "lock", "layer", "cuts tried", "no number", "best cut"], lines)


def prune() -> str:
    """Return table 3: pruning, with and without the number."""
    lines = []
    for name, rows in _locked(_rows("excise", "pruning")).items():
        for (share,), found in sorted(_groups(rows, "share").items()):
            right = _two([row["valid"] for row in found], low=True)
            lines.append(
                [*name, f"{100 * share:g} %", right, _two([row["absent"] for row in found])]
            )
    return _table(["task", "lock", "pruned", "right number", "no number"], lines)


def holders() -> str:
    """Return what whoever holds a number can do: wrap and distil."""
    lines = []
    for what in ("D7 wrapper that stamps by itself", "D7 distilled with the number"):
        for name, rows in _locked(_rows("distil", what)).items():
            for (count,), found in sorted(_groups(rows, "unlabelled").items()):
                lines.append(
                    [*name, what[3:], f"{count:,}", _two([r["accuracy"] for r in found], low=True)]
                )
    return _table(["task", "lock", "way", "unlabelled samples", "accuracy without number"], lines)


def overwrite() -> str:
    """Return table 5: a number of the licensee's own."""
    lines = []
    for name, rows in _locked(_rows("overwrite", "table 5, overwriting")).items():
        for (share,), found in sorted(_groups(rows, "share").items()):
            cells = [
                _two([r[key] for r in found]) for key in ("absent", "first_number", "new_number")
            ]
            lines.append([*name, f"{share:g} %", str(len(found)), *cells])
    return _table(
        ["task", "lock", "data", "seeds", "no number", "first number", "new number"], lines
    )


def transfer() -> str:
    """Return table 4: another task on the stolen body."""
    lines = []
    rows = [row for row in rows_of("dsn") if row["cell"] == "transfer"]
    for name, found in _locked(rows).items():
        for (what, share), group in sorted(_groups(found, "what", "share").items()):
            ways = _groups(group, "way")
            cells = [_two([r["accuracy"] for r in ways[(w,)]]) for w in ("scratch", "stolen")]
            place = what.removeprefix("table 4, transfer to ")
            lines.append([*name, place, f"{share:g} %", str(len(ways[("scratch",)])), *cells])
    return _table(["task", "lock", "to", "data", "seeds", "anew", "on the stolen body"], lines)


def customers() -> str:
    """Return the ways to many customers, and whom each copy opens to."""
    lines = []
    for name, rows in _locked(_rows("customers", "unlock matrix")).items():
        mixes = _locked(_rows("customers", "D8 pooled numbers")).get(name, [])
        for (way, _), found in _groups(rows, "way", "customers").items():
            first = found[0]
            mixed = [row for row in mixes if row["way"] == way]
            shares = [row["cost_share"] for row in found if "cost_share" in row]
            each = statistics.median(row["cpu_seconds_each"] for row in found)
            lines.append(
                [
                    *name,
                    way,
                    f"{first['customers']}",
                    f"{len(found)}",
                    _two([row["parent"] - row["own_worst"] for row in found], 2),
                    f"{max(row['foreign_worst'] for row in found):.1f}",
                    f"{max(row['one_wrong_bit_worst'] for row in found):.1f}",
                    f"{max(row['worst'] for row in mixed):.1f}" if mixed else "",
                    f"{each:.3f} s" + (f", {100 * max(shares):.2g} %" if shares else ""),
                ]
            )
    head = ["task", "lock", "way", "customers", "seeds", "lost to the parent"]
    head += ["foreign numbers", "one wrong bit", "three pooled", "cost of one more"]
    return _table(head, lines)


def _traced(rows: list[dict], *keys: str) -> list[list[str]]:
    lines = []
    for (network, data, *name), found in _groups(rows, "network", "data", *keys).items():
        traced, right = (sum(row[key] for row in found) for key in ("traced", "right"))
        lines.append(
            [
                WORKS[network, data],
                *map(str, name),
                f"{right} of {traced}",
                f"{100 * right / traced:.1f} %",
                f"{sum(row['all_named'] for row in found)}",
                f"{min(row['bits_worst'] for row in found):.0f}",
                f"{sum(row['innocents_named'] for row in found)} of "
                f"{sum(row['innocents_tested'] for row in found):,}",
                *_works(found),
            ]
        )
    return lines


def _works(found: list[dict]) -> list[str]:
    """Return the accuracy that is left in leaks, least and most over seeds; nothing for mixes."""
    shown = [row["accuracy"] for row in found if "accuracy" in row]
    return [f"{min(shown):.0f} to {max(shown):.0f}"] if shown else []


def leaks() -> str:
    """Return how single leaks are traced."""
    rows = [row for row in rows_of("tracing") if row["what"] == "single leak"]
    head = ["network", "done to the copy", "named", "rate", "all named", "fewest bits"]
    head += ["innocents named", "accuracy"]
    return _table(head, _traced(rows, "damage"))


def colluders() -> str:
    """Return how coalitions are traced."""
    rows = [row for row in rows_of("tracing") if row["what"] == "collusion"]
    head = ["network", "colluders", "mix", "one named", "rate", "all named", "fewest bits"]
    return _table([*head, "innocents named"], _traced(rows, "colluders", "mix"))


def fingerprint() -> str:
    """Return what the codeword costs, and what it leaves of the lock."""
    lines = [
        [
            WORKS[row["network"], row["data"]],
            str(row["seed"]),
            str(row["bits"]),
            f"{row['before']:.2f}",
            f"{row['after_mean']:.2f}",
            f"{row['after_worst']:.2f}",
            f"{row['absent_worst']:.1f}",
            f"{row['one_wrong_bit_worst']:.1f}",
        ]
        for row in sorted(rows_of("tracing"), key=lambda row: (row["network"], row["seed"]))
        if row["what"] == "cost"
    ]
    head = [
        "network",
        "seed",
        "code's bits",
        "before",
        "after, mean",
        "after, worst of five copies",
    ]
    return _table([*head, "no number", "one wrong bit"], lines)


def innocents() -> str:
    """Return how many innocents were tested, and how many named."""
    rows = rows_of("tracing")
    tested = sum(row.get("innocents_tested", 0) for row in rows)
    named = sum(row.get("innocents_named", 0) for row in rows)
    if not tested:
        return NOTHING
    return (
        f"Innocents tested, over all leaks above and unmarked models: {tested:,}; named: {named}. "
        "Bound: 2^-20 a trace."
    )


def _drawn(cell: str, what: str) -> dict[tuple[str, str], list[dict]]:
    """Group the rows that pictures show: all but those of locks without scans, for clarity."""
    rows = [row for row in _rows(cell, what) if row["lock"] != "dsn-unscanned"]
    return _locked(rows)


def _hamming() -> dict[str, list[tuple[float, float]]]:
    series = {}
    for (name, kind), rows in _drawn("curve", "Hamming curve").items():
        points = {
            float(distance): statistics.median(row["mean"] for row in found)
            for (distance,), found in _groups(rows, "distance").items()
        }
        short = name if kind == "default" else f"{name.split(',')[0]}, {kind}"
        series[short] = sorted((x, y) for x, y in points.items() if x <= 16)
    return series


def _relaxed() -> dict[str, list[tuple[float, float]]]:
    series = {}
    for (name, kind), rows in _drawn("numbers", "D3 other values").items():
        points = {
            100 * float(values.removeprefix("relaxed to ")): max(row["accuracy"] for row in found)
            for (values,), found in _groups(rows, "values").items()
            if values.startswith("relaxed to ")
        }
        if points:
            short = name if kind == "default" else f"{name.split(',')[0]}, {kind}"
            series[short] = sorted(points.items())
    return series


def _by_seed(cell: str, what: str, value: Callable[[dict], float]) -> dict[str, list]:
    series = {}
    for i, ((name, kind), rows) in enumerate(_drawn(cell, what).items()):
        short = name if kind == "default" else f"{name.split(',')[0]}, {kind}"
        series[short] = [(row["seed"] + 0.05 * i, value(row)) for row in rows]  # side by side
    return series


PICTURES: dict[str, Callable[[], str]] = {
    "dsn-hamming": lambda: chart(
        _hamming(),
        title="Accuracy by the number of wrong bits of the code",
        x_name="wrong bits",
        y_name="accuracy, %, median of the seeds",
    ),
    "dsn-relaxed": lambda: chart(
        _relaxed(),
        title="Accuracy when the right code is presented too faintly",
        x_name="strength of the code, %",
        y_name="accuracy, %, worst seed",
    ),
    "dsn-lengths": lambda: chart(
        _by_seed(
            "numbers", "D3 one wrong bit of the code", lambda row: float(row["effective_bits"])
        ),
        title="Effective length of the key: bits whose flip alone locks the network",
        x_name="seed",
        y_name="bits",
        joined=False,
    ),
    "dsn-accepted": lambda: chart(
        _by_seed("curve", "false acceptance", lambda row: -math.log2(row["bound_95"])),
        title="Bound on false acceptance over random codes, in bits",
        x_name="seed",
        y_name="bits: -log2 of the bound, 95 %",
        joined=False,
    ),
    "dsn-basin": lambda: chart(
        _by_seed("curve", "basin width", lambda row: row["worst"]),
        title="Width of the basin around the right code, widest of 16 ways",
        x_name="seed",
        y_name="part of the way that opens",
        joined=False,
    ),
}

TABLES = {
    "dsn-numbers": numbers,
    "dsn-values": values,
    "dsn-copies": copies,
    "dsn-keys": keys,
    "dsn-search": search,
    "dsn-tune": tune,
    "dsn-excise": excise,
    "dsn-prune": prune,
    "dsn-holders": holders,
    "dsn-overwrite": overwrite,
    "dsn-transfer": transfer,
    "dsn-customers": customers,
    "dsn-leaks": leaks,
    "dsn-colluders": colluders,
    "dsn-fingerprint": fingerprint,
    "dsn-innocents": innocents,
}
