"""Tables of DeepSigns from `rows/deepsigns.jsonl`, for `scripts/docs`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from common import rows_of

ASKED: dict[str, tuple[str, str]] = {
    "R1 fine-tune 1e-4 x5": ("64", "64"),
    "R1 fine-tune 1e-3 x20": ("64", "64"),
    "R2 fine-tune 5e-3 x20": ("20", "20, target"),
    "R4 reset last, last layer": ("as before", "20, target"),
    "R4 reset last, all layers": ("64", "20, target"),
    "R5 prune .5 global": ("report", "64"),
    "R5 prune .8 global": ("64", "report"),
    "R5 prune .8 layer": ("64", "report"),
    "R5 prune .8 layer, norms anew": ("64", "report"),
    "R5 channels .3 x5": ("report", "report"),
    "R7 int8": ("as before", "64"),
    "R7 int4": ("128", "report"),
    "R7 fp16": ("as before", "as before"),
    "R9 noise .1": ("64", "report"),
    "R10 permute, scale": ("as before", "as before"),
    "R11 dummies .1": ("error .02", "as before"),
    "R11 dummies .8": ("error .02", "as before"),
    "R12 noise before the rest": ("error .05", "as before"),
    "R12 active dummies, noise": ("report", "report"),
    "R13 fine-tune, dummies": ("64, target", "20, target"),
    "R14 norms folded": ("as before", "as before"),
    "R16 overwrite": ("64", "64, target"),
    "R16 overwrite x40": ("64", "64, target"),
    "R16 overwrite double": ("64", "64, target"),
    "R16 overwrite three keys": ("64", "64, target"),
    "filter that turns away 2 %": ("", "64"),
    "filter that turns away 10 %": ("", "report"),
}
NETWORKS = ("mlp", "small-cnn", "wide-resnet")

Row = dict[str, Any]


def rows(part: str) -> list[Row]:
    """Rows of one part; those on more than 10,000 training images are on other data."""
    found = [row for row in rows_of("deepsigns") if row["part"] == part and "failed" not in row]
    for row in found:
        if row["samples"] > 10_000:
            row["data"] = f"{row['data']}, all {row['samples']:,}"
    return found


def spread(values: list[float], form: str, *, high: bool = False) -> str:
    """The worst of some values and their median, or the one value."""
    if not values:
        return "-"
    worst, middle = (max if high else min)(values), statistics.median(values)
    return f"{worst:{form}}" if len(values) == 1 else f"{worst:{form}} / {middle:{form}}"


def lines(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    if not body:
        return "Not measured yet."
    made = ["| " + " | ".join(row) + " |" for row in (head, *body)]
    return "\n".join([made[0], "|" + "---|" * len(head), *made[1:]])


def fidelity() -> str:
    """Utility, error rate and evidence of marked models, worst / median over seeds."""
    body = []
    for form in ("white", "black"):
        marked = [row for row in rows(form) if row["item"] == "marked"]
        groups = sorted({(row["data"], row["network"]) for row in marked})
        for data, network in groups:
            some = [row for row in marked if (row["data"], row["network"]) == (data, network)]
            change = [row["accuracy"] - row["control"] for row in some]
            body.append(
                [
                    f"{form}-box",
                    data,
                    network,
                    str(len(some)),
                    spread([row["control"] for row in some], ".2f"),
                    spread(change, "+.2f"),
                    spread([row["error_rate"] for row in some], ".3f", high=True),
                    spread([row["bits"] for row in some], ".0f"),
                    spread([row["control_bits"] for row in some], ".1f", high=True),
                ]
            )
    head = ["form", "data", "network", "seeds", "unmarked", "marked less unmarked (points)",
            "error rate", "bits", "bits, unmarked"]  # fmt: skip
    return lines(head, body)


def column(form: str, data: str = "fashion-mnist", part: str = "") -> Callable[[], str]:
    """One column of the battery: evidence, error rate, utility and weight correlation."""

    def cell(some: list[Row]) -> str:
        if not some:
            return "-"
        known = [row["correlation"] for row in some if row.get("correlation") is not None]
        alike = f"{statistics.median(known):.2f}" if known else "-"
        return (
            f"{spread([row['bits'] for row in some], '.0f')}; "
            f"{spread([row['error_rate'] for row in some], '.3f', high=True)}; "
            f"{statistics.median(row['accuracy'] for row in some):.1f}; {alike}; {len(some)}"
        )

    def make() -> str:
        found = [row for row in rows(part or form) if row["data"] == data]
        body = []
        for item in ("marked", *ASKED):
            cells = [
                cell([row for row in found if (row["item"], row["network"]) == (item, network)])
                for network in NETWORKS
            ]
            asked = "" if item == "marked" else ASKED[item][form == "black"]
            if set(cells) != {"-"}:
                body.append([item, asked, *cells])
        return lines(["attack", "asked", *NETWORKS], body)

    return make


def capacity() -> str:
    """Accuracy and error rate against the number of bits."""
    found = rows("capacity")
    body = []
    for network in NETWORKS:
        own = [row for row in found if row["network"] == network]
        sizes = [row["item"] for row in own if "margin" in row]
        for item in dict.fromkeys(sizes):
            cells = [
                [row for row in own if row["item"] == name]
                for name in (item, f"{item}, prune .8", f"{item}, fine-tune")
            ]
            change = [row["accuracy"] - row["control"] for row in cells[0]]
            rates = [
                spread([row["error_rate"] for row in some], ".3f", high=True) for some in cells
            ]
            body.append(
                [network, item, f"{cells[0][0]['margin']:g}", spread(change, "+.2f"), *rates]
            )
    head = ["network", "message", "margin", "marked less unmarked (points)", "error rate",
            "after pruning 80 %", "after fine-tuning"]  # fmt: skip
    return lines(head, body)


def overwriting() -> str:
    """Overwriting at the same strength, DeepSigns and Uchida side by side."""
    found = rows("overwrite")
    body = []
    for network in NETWORKS:
        for bits in (64, 128, 256, 512):
            cells = []
            for name in ("deepsigns", "uchida"):
                for item in (f"{name} {bits}", f"{name} {bits}, overwritten"):
                    some = [r for r in found if (r["network"], r["item"]) == (network, item)]
                    cells.append(spread([row["error_rate"] for row in some], ".3f", high=True))
                    cells.append(spread([row["accuracy"] for row in some], ".1f"))
            if set(cells) != {"-"}:
                body.append([network, str(bits), *cells])
    head = ["network", "bits"] + [
        f"{name}, {what}" for name in ("DeepSigns", "Uchida")
        for what in ("error rate", "accuracy", "error rate overwritten", "accuracy then")
    ]  # fmt: skip
    return lines(head, body)


def integrity() -> str:
    """Hits of random keys and of aligned innocent models, against what chance gives."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows("integrity"):
        kind = row["item"].rstrip("0123456789 ")
        groups.setdefault((row["network"], kind), []).append(row)
    body = []
    for network in NETWORKS:
        for (name, kind), found in sorted(groups.items()):
            if name != network:
                continue
            keys, first = sum(row["keys"] for row in found), found[0]
            mean = sum(row["keys"] * row["mean"] for row in found) / keys
            square = sum(
                row["keys"] * (row["deviation"] ** 2 + (row["mean"] - mean) ** 2) for row in found
            )
            body.append(
                [
                    network,
                    kind,
                    str(len({row["seed"] for row in found})),
                    f"{keys:,}",
                    f"{first['expected']:g} of {first['trials']}",
                    f"{mean:.2f}",
                    f"{first['expected_deviation']:.2f}",
                    f"{(square / keys) ** 0.5:.2f}",
                    str(max(row["most"] for row in found)),
                ]
            )
    head = ["network", "model", "seeds", "readings", "expected", "mean hits",
            "deviation expected", "deviation", "most hits"]  # fmt: skip
    return lines(head, body)


def fairness() -> str:
    """Hits of innocent models, in place, aligned and matched to the release, over many keys."""
    readings = (
        ("fairness base", "placed", "in place"),
        ("fairness base", "aligned", "aligned to the network before its mark"),
        ("fairness base", "released", "refused: to the release, by weights"),
        ("fairness", "aligned", "refused: to the release, by answers"),
    )
    body = []
    for network in NETWORKS:
        for part, name, what in readings:
            own = [row for row in rows(part) if row["network"] == network]
            if not own:
                continue
            means = [statistics.mean(row[name]) for row in own]
            error = statistics.stdev(means) / len(means) ** 0.5
            body.append(
                [
                    network,
                    what,
                    str(len(own)),
                    str(sum(len(row[name]) for row in own)),
                    f"{own[0]['trials'] // 2} of {own[0]['trials']}",
                    f"{statistics.mean(means):.1f} ({error:.1f})",
                    str(max(max(row[name]) for row in own)),
                ]
            )
    head = ["network", "read", "keys", "readings", "expected", "mean hits (standard error)",
            "most hits"]  # fmt: skip
    return lines(head, body)


def key_inputs() -> str:
    """Kinds of inputs and of teaching for black-box keys."""
    found = rows("inputs") or rows("inputs before")
    body = []
    for network in NETWORKS:
        own = [row for row in found if row["network"] == network]
        for item in dict.fromkeys(row["item"] for row in own if "area_distance" in row):
            plain, tuned, pruned = (
                [row for row in own if row["item"] == f"{item}{more}"]
                for more in ("", ", fine-tuned", ", prune .5")
            )
            body.append(
                [
                    network,
                    item,
                    str(len(plain)),
                    spread([row["accuracy"] - row["control"] for row in plain], "+.2f"),
                    *(
                        spread([row["bits"] for row in some], ".0f")
                        for some in (plain, tuned, pruned)
                    ),
                    *(
                        spread([row[name] for row in plain], ".2f", high=True)
                        for name in ("area_distance", "area_confidence", "area_roughness")
                    ),
                    *(
                        spread([row[name] for row in plain], ".0f")
                        for name in ("bits_2", "bits_10")
                    ),
                ]
            )
    head = ["network", "inputs and teaching", "seeds", "marked less unmarked (points)", "bits",
            "fine-tuned", "pruned 50 %", "by distance", "by confidence", "by roughness",
            "bits, 2 % turned away", "bits, 10 %"]  # fmt: skip
    return lines(head, body)


def published() -> str:
    """The published forms, worst / median over seeds."""
    found = rows("paper")
    body = []
    for network in NETWORKS:
        own = [row for row in found if row["network"] == network]
        for item in dict.fromkeys(row["item"] for row in own):
            some = [row for row in own if row["item"] == item]
            body.append(
                [
                    network,
                    item,
                    str(len(some)),
                    spread([row["error_rate"] for row in some], ".3f", high=True),
                    spread([row["bits"] for row in some], ".0f"),
                    spread([row["accuracy"] for row in some], ".1f"),
                ]
            )
    return lines(["network", "form", "seeds", "error rate", "bits", "accuracy"], body)


def overhead() -> str:
    """Processor time with the mark over without."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows("overhead"):
        groups.setdefault((row["network"], row["item"]), []).append(row["ratio"])
    body = [
        [network, f"{form}-box", str(len(found)), f"{statistics.median(found):.3f}",
         f"{min(found):.3f} to {max(found):.3f}"]
        for (network, form), found in sorted(groups.items())
    ]  # fmt: skip
    return lines(["network", "form", "seeds", "ratio, median", "range"], body)


TABLES: dict[str, Callable[[], str]] = {
    "deepsigns-fidelity": fidelity,
    "deepsigns-white": column("white"),
    "deepsigns-scratch": column("white", part="scratch"),
    "deepsigns-black": column("black"),
    "deepsigns-white-mnist": column("white", "mnist"),
    "deepsigns-black-mnist": column("black", "mnist"),
    "deepsigns-white-cifar": column("white", "cifar10"),
    "deepsigns-black-cifar": column("black", "cifar10"),
    "deepsigns-black-cifar-all": column("black", "cifar10, all 50,000"),
    "deepsigns-capacity": capacity,
    "deepsigns-overwriting": overwriting,
    "deepsigns-integrity": integrity,
    "deepsigns-fairness": fairness,
    "deepsigns-inputs": key_inputs,
    "deepsigns-published": published,
    "deepsigns-overhead": overhead,
}
