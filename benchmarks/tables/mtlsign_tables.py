"""Tables of MTL-Sign's rows: attacks, nulls, detection, kinds, cost, and the papers' own tables."""

import statistics
from collections.abc import Callable

from common import rows_of, spread

ADAPTIVE = "64, or 20 at 2 to 5 points"
ASKED: dict[str, str] = {
    "none": "128",
    "ftal": "200",
    "ftal-lr.1": "64",
    "rtll": "128",
    "rtal": "128",
    "prune-65": "128",
    "prune-80": "128",
    "channels-30": "64",
    "int8": "as released",
    "int4": "128",
    "noise-10": "as released",
    "permute-scale": "as released",
    "dummies": "as released",
    "dummies-zero": "as released",
    "dummies-split": "as released",
    "dummies-active": "as released",
    "obfuscate": "as released",
    "overwrite": "128",
    "erase-half": "64",
    "scramble-noise-1": ADAPTIVE,
    "scramble-own-1": ADAPTIVE,
    "scramble-noise-10": ADAPTIVE,
    "scramble-own-10": ADAPTIVE,
    "collapse-3": ADAPTIVE,
    "collapse-30": ADAPTIVE,
    "collapse-everywhere": ADAPTIVE,
    "collapse-everywhere-30": ADAPTIVE,
    "collapse-100": ADAPTIVE,
    "distill-features": ADAPTIVE,
    "distill": "not claimed",
    "scratch": "none",
    "twin": "none",
}


def _settings(row: dict) -> str:
    named = {
        name: " and ".join(value) if isinstance(value, list) else value
        for name, value in row["settings"].items()
    }
    plain = {k: f"{v:g}" if isinstance(v, float) else v for k, v in named.items()}
    return ", ".join(f"{k} {v}" for k, v in sorted(plain.items())) or "the default"


def _label(row: dict) -> str:
    size = f"{row['images']:,} images, {row['epochs']} epochs"
    return f"{row['network']}, {row['data']}, {size}; {_settings(row)}"


def _bits(row: dict) -> float:
    return row.get("kept_bits", row["bits"])


def _asked(name: str, lost: float) -> float:
    """Return the bits asked for after an attack that cost so many points; nothing beyond five."""
    asked = ASKED.get(name, "")
    if asked == ADAPTIVE:
        return 64 if lost <= 2 else 20 if lost <= 5 else -1
    return float(asked) if asked.isdigit() else -1


def _attacks(rows: list[dict]) -> list[str]:
    released = {row["seed"]: row["utility"] for row in rows if row["attack"] == "none"}
    twins = {row["seed"]: row["utility"] for row in rows if row["attack"] == "twin"}
    lines = [
        "| attack | seeds | accuracy against the release | bits, worst | bits, median | asked | "
        "held in |",
        "|---|---|---|---|---|---|---|",
    ]
    known = [name for name in ASKED if any(row["attack"] == name for row in rows)]
    more = sorted({row["attack"] for row in rows} - set(ASKED) - {"cost"})
    for name in known + more:
        some = [row for row in rows if row["attack"] == name and row["seed"] in released]
        fine = [row for row in some if "bits" in row]
        if not fine:
            continue
        changes = [row["utility"] - released[row["seed"]] for row in fine]
        bits = [_bits(row) for row in fine]
        wanted = [_asked(name, -change) for change in changes]
        due = [had >= want for had, want in zip(bits, wanted, strict=True) if want > 0]
        held = f"{sum(due)} of {len(due)}" if due else ""
        lines.append(
            f"| {name} | {len(fine)} | {spread(changes, 2)} | {min(bits):,.0f} | "
            f"{statistics.median(bits):,.0f} | {ASKED.get(name, '')} | "
            f"{held or ('beyond 5 points' if ASKED.get(name) == ADAPTIVE else '')} |"
        )
    both = sorted(set(released) & set(twins))
    if both:
        cost = spread([released[seed] - twins[seed] for seed in both], 2)
        shards = [row["least_shard_bits"] for row in rows if "least_shard_bits" in row]
        lines += [
            "",
            f"Release minus unmarked twin, same seed and schedule: {cost} points. Weakest shard "
            f"alone: {min(shards):,.0f} bits.",
        ]
    return lines


def attacks() -> str:
    """Return a table for each network, data set and choice of settings."""
    rows = [row for row in rows_of("mtlsign") if row["attack"] != "cost"]
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(_label(row), []).append(row)
    parts = []
    for label, some in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        parts += [f"**{label}**", "", *_attacks(some), ""]
    return "\n".join(parts).rstrip() or "Not measured yet."


def settings() -> str:
    """Return what other settings leave after collapse behind every stage, with drops in points."""
    base = [row for row in rows_of("mtlsign") if row["network"] == "resnet8-small"]
    base = [row for row in base if row["data"] == "fashion-mnist" and row["epochs"] == 16]
    base = [row for row in base if not row["settings"]]
    twins = {row["seed"]: row["utility"] for row in base if row["attack"] == "twin"}
    rows = [row for row in base if row["seed"] in (1, 4)]
    groups: dict[tuple[str, int], dict[str, dict]] = {}
    for row in [*rows, *rows_of("mtlsign_settings")]:
        groups.setdefault((_settings(row), row["seed"]), {})[row["attack"]] = row
    lines = [
        "| settings | seed | released against the twin | bits | left, drop | left by the heavier, "
        "drop |",
        "|---|---|---|---|---|---|",
    ]
    for (label, seed), found in sorted(groups.items()):
        released = found["none"]
        left = [
            f"{row['bits']:,.0f}, {released['utility'] - row['utility']:.1f}" if row else ""
            for row in map(found.get, ("collapse-everywhere", "collapse-everywhere-30"))
        ]
        against = f"{released['utility'] - twins[seed]:+.1f}"
        cells = [label, str(seed), against, f"{released['bits']:,.0f}", *left]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def orders() -> str:
    """Return bits in single orders beside the valid readings over all of them."""
    lines = [
        "| taps read | attack | seeds | one order, mean | most less least | averaged "
        "| best, charged |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows_of("mtlsign_orders"):
        groups.setdefault((", ".join(row["carrier"]), row["attack"]), []).append(row)
    for (taps, attack), some in groups.items():
        found = [
            spread([figure(row) for row in some], 0)
            for figure in (
                lambda row: statistics.mean(row["bits"]),
                lambda row: max(row["bits"]) - min(row["bits"]),
                lambda row: row["averaged"],
                lambda row: row["best_charged"],
            )
        ]
        lines.append(f"| {taps} | {attack} | {len(some)} | {' | '.join(found)} |")
    return "\n".join(lines)


def cost() -> str:
    """Return the table of step and verification costs."""
    lines = [
        "| network | settings | step with the mark / without | verification / (pass + refit) |",
        "|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows_of("mtlsign"):
        if row["attack"] == "cost":
            groups.setdefault((row["network"], _settings(row)), []).append(row)
    for (network, settings), some in groups.items():
        step = spread([row["step_ratio"] for row in some], 3)
        verify = spread([row["verification_ratio"] for row in some], 3)
        lines.append(f"| {network} | {settings} | {step} | {verify} |")
    return "\n".join(lines)


def nulls() -> str:
    """Return the table of nulls: keys through the whole measurement, and draws of labels."""
    rows = rows_of("mtlsign_nulls")
    drawn = {row["null"]: row for row in rows if not row["keys"]}
    lines = [
        "| model | keys | rate of hits | standard errors off | fit, p | most bits | most e-bits | "
        "fit of 7,000 draws, p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["keys"]:
            draws = drawn.get(row["null"])
            last = f"{draws['fit_p']:.3f}" if draws else "-"
            lines.append(
                f"| {row['null']} | {row['keys']} | {row['rate']:.4f} | "
                f"{row['standard_errors']:+.2f} | {row['fit_p']:.3f} | {row['bits_most']:.1f} | "
                f"{row['e_bits_most']:.1f} | {last} |"
            )
    return "\n".join(lines)


def stealth() -> str:
    """Return the table of detection tests."""
    lines = [
        "| network | settings | models without the mark | models | statistics | accuracy clean / "
        "marked | bits, worst / median | weight variance | clusters | logistic | forest | "
        "with norms, biases and answers | by others | by those chosen last | by all |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows_of("mtlsign_stealth"):
        settings, kind = _settings(row), "trained alike" if row.get("alike") else "plain"
        if row.get("conceal"):
            kind = "settled" if row["settings"].get("settle") else "plain"
            more = f", {settings}" if row["settings"] else ""
            settings = f"concealed within {row['conceal']:g}{more}"
        tests = [
            f"{row[f'auc_{t}']:.2f} (to {row[f'auc_{t}_interval'][1]:.2f})"
            for t in ("variance", "clusters", "meta_logistic", "meta_forest")
        ]
        wider = [_judged(row, what) for what in ("everything", "unkept", "fresh", "all")]
        bits = f"{row['bits_least']:.0f} / {row['bits_median']:.0f}" if "bits_least" in row else "-"
        lines.append(
            f"| {row['network']}, {row['data']} | {settings} | "
            f"{kind} | {row['shadows']} | "
            f"{row['statistics']} | {row['utility_clean']:.2f} / {row['utility_marked']:.2f} | "
            f"{bits} | {' | '.join(tests + wider)} |"
        )
    return "\n".join(lines)


def _judged(row: dict, what: str) -> str:
    names = [f"auc_{what}_{judge}" for judge in ("logistic", "forest")]
    return " / ".join(f"{row[name]:.2f}" for name in names if name in row) or "-"


def kinds() -> str:
    """Return the table of kinds of network."""
    groups: dict[tuple[str, int], list[dict]] = {}
    rows = rows_of("mtlsign_kinds")
    for row in rows:
        usual = rows[0]["settings"]
        other = {k: v for k, v in row["settings"].items() if v != usual.get(k, v)}
        name = row["network"] + (f"; {_settings({'settings': other})}" if other else "")
        groups.setdefault((name, row["epochs"]), []).append(row)
    lines = [
        "| kind | epochs | seeds | utility without the mark | with it | bits | fine-tuned | "
        "pruned 65 % | unmarked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, epochs), some in sorted(groups.items()):
        marked = [row for row in some if row["attack"] == "none"]
        utilities = [
            spread([row[name] for row in marked], 2) for name in ("utility_twin", "utility")
        ]
        by_attack = [
            [row["bits"] for row in some if row["attack"] == attack]
            for attack in ("none", "finetune", "prune-65", "twin")
        ]
        bits = [spread(values, 0) if values else "-" for values in by_attack]
        cells = [kind, str(epochs), str(len(marked)), *utilities, *bits]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _group(table: str, *names: str) -> dict[tuple, list[dict]]:
    found: dict[tuple, list[dict]] = {}
    for row in rows_of("mtlsign_paper"):
        if row["table"] == table:
            found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def paper() -> str:
    """Return the published scheme's tables: ablation, foreign keys, overwriting, forged heads."""
    lines = [
        "Right answers of 600; 420 are asked for.",
        "",
        "| data | regularizers | accuracy clean / marked | right | fine-tuned | fine-pruned |",
        "|---|---|---|---|---|---|",
    ]
    names = {"none": "none", "func": "R_func", "da": "R_DA", "func+da": "both", "frozen": "frozen"}
    for (data, mode), some in _group("ablation", "data", "mode").items():
        both = [spread([r[f"utility, {k}"] for r in some], 2) for k in ("clean", "none")]
        right = [
            spread([r[f"right, {k}"] for r in some], 0)
            for k in ("none", "fine-tuned", "fine-pruned")
        ]
        lines.append(f"| {data} | {names[mode]} | {' / '.join(both)} | {' | '.join(right)} |")
    lines += [
        "",
        "| data | foreign keys | mean rate | deviation | least to most | accepted |",
        "|---|---|---|---|---|---|",
    ]
    for (data,), some in _group("foreign", "data").items():
        for r in some:
            lines.append(
                f"| {data} | {r['count']:,} | {r['rate_mean']:.4f} | {r['rate_deviation']:.4f} | "
                f"{r['rate_least']:.3f} to {r['rate_most']:.3f} | {r['accepted']} |"
            )
    lines += [
        "",
        "| data | seeds | rounds of overwriting | owner's right answers | thief's | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for (data,), some in _group("overwrite", "data").items():
        for i, rounds in enumerate([0, *some[0]["overwriting_rounds"]]):
            own = spread([r["right, owner"][i] for r in some], 0)
            his = spread([r["right, thief"][i - 1] for r in some], 0) if i else "-"
            utility = spread([r["utility"][i] for r in some], 2)
            lines.append(f"| {data} | {len(some)} | {rounds} | {own} | {his} | {utility} |")
    lines += [
        "",
        "| data | head fitted afterwards: right | accepted | refitting judge: hits | bits |",
        "|---|---|---|---|---|",
    ]
    for (data,), some in _group("forge", "data").items():
        for r in some:
            lines.append(
                f"| {data} | {r['right, published']} | {'yes' if r['published_accepts'] else 'no'} "
                f"| {r['right, refit']} of {r['trials, refit']} | {r['bits, refit']} |"
            )
    return "\n".join(lines)


def requirements() -> str:
    """Return the formal requirements, measured: medians with ranges over seeds."""
    lines = ["| requirement | seeds | holds in | figures |", "|---|---|---|---|"]
    groups: dict[str, list[dict]] = {}
    for row in rows_of("mtlsign_requirements"):
        groups.setdefault(row["requirement"], []).append(row)
    for name, some in groups.items():
        held = sum(row["holds"] for row in some)
        found = [row["figures"] for row in some]
        figures = "; ".join(f"{key} {_together([one[key] for one in found])}" for key in found[0])
        held_in = f"{held}" if held == len(some) else f"**{held}**"
        lines.append(f"| {name} | {len(some)} | {held_in} | {figures} |")
    return "\n".join(lines)


def _together(values: list[float | bool]) -> str:
    """Return figures of several seeds as one: how often yes, or the median with the range."""
    if isinstance(values[0], bool):
        return f"{sum(values)} of {len(values)}"
    return spread(values, 0 if all(isinstance(value, int) for value in values) else 2)


TABLES: dict[str, Callable[[], str]] = {
    "mtlsign-attacks": attacks,
    "mtlsign-settings": settings,
    "mtlsign-orders": orders,
    "mtlsign-cost": cost,
    "mtlsign-nulls": nulls,
    "mtlsign-stealth": stealth,
    "mtlsign-kinds": kinds,
    "mtlsign-paper": paper,
    "mtlsign-requirements": requirements,
}
