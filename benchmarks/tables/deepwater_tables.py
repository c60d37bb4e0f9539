"""The tables of Deep Water: claims, the removal battery, innocents, stealth, scale."""

import statistics
from collections.abc import Callable

from common import rows_of, spread

PARTS = {
    "scratch": "from scratch",
    "finetune": "while fine-tuning",
    "distill": "while distilling",
    "stamp": "stamped at once",
    "stamp-settled": "stamped, norms settled",
}
ATTACKS = {
    "prune-layer-0.65": "prune 65 % of each layer",
    "prune-global-0.65": "prune 65 % of all",
    "prune-layer-0.8": "prune 80 % of each layer",
    "prune-global-0.8": "prune 80 % of all",
    "prune-layer-0.9": "prune 90 % of each layer",
    "prune-global-0.9": "prune 90 % of all",
    "int8": "8 bits",
    "int4": "4 bits",
    "noise-10": "noise of 10 %",
    "ftal-double-lr": "fine-tune at twice the rate",
    "ftal-prune-65": "fine-tune, prune 65 %",
    "overwrite": "overwrite at margin 8",
    "overwrite-double": "overwrite at margin 16",
    "overwrite-five": "overwrite with five keys at margin 8",
    "overwrite-five-double": "overwrite with five keys at margin 16",
    "transfer": "transfer to another data set",
}
NOTHING = "Nothing was measured yet."


def _errors(rows: list[dict]) -> str:
    found = [1 - row["hits"] / row["trials"] for row in rows]
    return f"{statistics.median(found):.3f} / {max(found):.3f}"


def _bits(rows: list[dict], key: str = "bits") -> str:
    found = [row[key] for row in rows]
    return f"{statistics.median(found):,.0f} / {min(found):,.0f}"


def _groups(rows: list[dict], *keys: str) -> dict[tuple, list[dict]]:
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return found


def _gap(values: list[float]) -> str:
    """Return the mean with its 95 % interval, or the value alone."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    return f"{mean:+.2f} ± {quantile * statistics.stdev(values) / len(values) ** 0.5:.2f}"


def fidelity() -> str:
    """Return what embedding costs and leaves, by network, data and situation."""
    rows = [row for row in rows_of("deepwater") if row["part"] in PARTS]
    if not rows:
        return NOTHING
    lines = [
        "| network | data | images x epochs | marked | seeds | accuracy "
        "| marked minus unmarked, points: mean, worst | bit errors, median / worst "
        "| bits of evidence, median / least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (network, data, samples, epochs, part), found in sorted(
        _groups(rows, "network", "data", "samples", "epochs", "part").items(),
        key=lambda item: (*item[0][:4], list(PARTS).index(item[0][4])),
    ):
        gaps = [row["accuracy"] - row["twin"] for row in found]
        lines.append(
            f"| {network} | {data} | {f'{samples:,}' if samples else 'all'} x {epochs} "
            f"| {PARTS[part]} | {len(found)} "
            f"| {spread([row['accuracy'] for row in found], 2)} | {_gap(gaps)}, {min(gaps):+.2f} "
            f"| {_errors(found)} | {_bits(found)} |"
        )
    for part, name in PARTS.items():
        cells = [row for row in rows if row["part"] == part]
        if cells:
            gaps = [row["accuracy"] - row["twin"] for row in cells]
            lines.append(
                f"| all | all | | {name} | {len(cells)} | | {_gap(gaps)}, {min(gaps):+.2f} "
                f"| {_errors(cells)} | {_bits(cells)} |"
            )
    return "\n".join(lines)


def births() -> str:
    """Return what being born with the mark costs, over very many short trainings."""
    rows = rows_of("deepwater_births")
    if not rows:
        return NOTHING
    lines = [
        "| network | data | marked | epochs | models of each kind "
        "| accuracy unmarked, marked: mean | median | marked minus unmarked, points (95 %) "
        "| wrong bits in all "
        "| the same to the last bit without the guard |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean, middle, wide = (
            [row[figure][kind] for kind in ("unmarked", "marked")]
            for figure in ("mean", "median", "deviation")
        )
        error = 1.96 * (sum(value**2 for value in wide) / row["models"]) ** 0.5
        lines.append(
            f"| {row['network']} | {row['data']} | {PARTS[row['part']]} | {row['epochs']} "
            f"| {row['models']} "
            f"| {mean[0]:.2f}, {mean[1]:.2f} | {middle[0]:.2f}, {middle[1]:.2f} "
            f"| {mean[1] - mean[0]:+.2f} ± {error:.2f} | {row['wrong_bits']} "
            f"| {row['same_unguarded']} of {row['again']} |"
        )
    again = [row["same"] for row in rows_of("deepwater") if row["part"] == "unguarded"]
    if again:
        lines.append(
            "| those of the table above | | from scratch | | | | | | "
            f"| {sum(again)} of {len(again)} |"
        )
    return "\n".join(lines)


def payload() -> str:
    """Return how an identifier with error correction is read back after attacks."""
    rows = [row for row in rows_of("deepwater") if row["part"] == "payload"]
    if not rows:
        return NOTHING
    lines = [
        "| attack | models | raw bit errors: in all, worst model | identifiers read right "
        "| read wrong, checksum right |",
        "|---|---|---|---|---|",
    ]
    for attack, name in ({"none": "none"} | ATTACKS).items():
        found = [row for row in rows if row["attack"] == attack]
        if not found:
            continue
        errors = [row["trials"] - row["hits"] for row in found]
        right = [row["read"] for row in found]
        forged = sum(row["checksum"] and not row["read"] for row in found)
        lines.append(
            f"| {name} | {len(found)} | {sum(errors)} of {sum(r['trials'] for r in found):,}, "
            f"{max(errors)} | {sum(right)} of {len(right)} | {forged} |"
        )
    return "\n".join(lines)


def attacks() -> str:
    """Return what the abstract's attacks leave of a mark from scratch."""
    rows = [row for row in rows_of("deepwater") if row["part"] in ("attacks", "transfer")]
    if not rows:
        return NOTHING
    for row in rows:
        row["kind"] = "transfer" if row["part"] == "transfer" else row["attack"]
    lines = [
        "| attack | networks x data | models | accuracy lost, median | bit errors, median / worst "
        "| bits of evidence, median / least | correlation with the marked weights, least |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = _groups(rows, "kind")
    for kind, name in ATTACKS.items():
        found = groups.get((kind,), [])
        if not found:
            continue
        kinds = {(row["network"], row["data"]) for row in found}
        lost = [row["clean"] - row["accuracy"] for row in found if "clean" in row]
        shown = f"{statistics.median(lost):.2f}" if lost else "-"
        lines.append(
            f"| {name} | {len(kinds)} | {len(found)} | {shown} | {_errors(found)} "
            f"| {_bits(found)} | {min(row['correlation'] for row in found):.2f} |"
        )
    return "\n".join(lines)


def kinds() -> str:
    """Return which kinds of layers lose bits to pruning."""
    rows = [row for row in rows_of("deepwater") if row["part"] == "kinds"]
    if not rows:
        return NOTHING
    lines = [
        "| pruning | models | wrong bits of convolutions | of linear layers |",
        "|---|---|---|---|",
    ]
    for attack, name in ATTACKS.items():
        found = [row for row in rows if row["attack"] == attack]
        if not found:
            continue
        lost = []
        for kind in ("convolution", "linear"):
            hits, trials = (sum(row[kind][i] for row in found) for i in (0, 1))
            lost.append(f"{trials - hits} of {trials:,}")
        lines.append(f"| {name} | {len(found)} | {lost[0]} | {lost[1]} |")
    return "\n".join(lines)


def histogram() -> str:
    """Return how far a mark moves what a histogram shows, beside what another seed moves it."""
    rows = [row for row in rows_of("deepwater") if "stealth" in row]
    if not rows:
        return NOTHING
    lines = [
        "| network | data | pair | models | std ratio: least, median of models, most "
        "| filter-mean ratio: median, most | KS distance: median, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for (network, data, part), found in sorted(
        _groups(rows, "network", "data", "part").items(),
        key=lambda item: (*item[0][:2], list(PARTS).index(item[0][2])),
    ):
        kinds = {"stealth": f"marked {PARTS[part]}, unmarked", "two_seeds": "two unmarked seeds"}
        for key, name in kinds.items():
            values = [row[key] for row in found if key in row]
            if not values:
                continue
            middle = statistics.median(
                (v["std_ratio_least"] + v["std_ratio_most"]) / 2 for v in values
            )
            means, distances = (
                [v[figure] for v in values] for figure in ("filter_mean_ratio_most", "ks_most")
            )
            lines.append(
                f"| {network} | {data} | {name} | {len(values)} "
                f"| {min(v['std_ratio_least'] for v in values):.3f}, {middle:.3f}, "
                f"{max(v['std_ratio_most'] for v in values):.3f} "
                f"| {statistics.median(means):.2f}, {max(means):.2f} "
                f"| {statistics.median(distances):.4f}, {max(distances):.4f} |"
            )
    return "\n".join(lines)


def stealth() -> str:
    """Return how well classifiers tell groups of networks apart."""
    rows = rows_of("deepwater_stealth")
    if not rows:
        return NOTHING
    names = {
        "same-recipe": "unmarked, unmarked",
        "other-recipe": "unmarked, unmarked but one epoch longer",
        "scratch": "unmarked, marked from scratch",
        "stamp": "unmarked, stamped",
        "finetune": "fine-tuned, marked while fine-tuning",
        "distill": "distilled, marked while distilling",
    }
    lines = [
        "| two groups | settings | models each | accuracy | logistic AUC | forest AUC |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: list(names).index(row["kind"])):
        low, high = row["auc_logistic_interval"], row["auc_forest_interval"]
        settings = ", ".join(f"{k} {v}" for k, v in row["settings"].items()) or "default"
        lines.append(
            f"| {names[row['kind']]} | {settings} | {row['shadows']} "
            f"| {row['accuracy_clean']:.2f}, {row['accuracy_other']:.2f} "
            f"| {row['auc_logistic']:.2f} ({low[0]:.2f} to {low[1]:.2f}) "
            f"| {row['auc_forest']:.2f} ({high[0]:.2f} to {high[1]:.2f}) |"
        )
    return "\n".join(lines)


def stamps() -> str:
    """Return how visible stamps of several kinds are."""
    rows = rows_of("deepwater_stamps")
    if not rows:
        return NOTHING
    lines = [
        "| stamp | score of the weakest bit | hit rate | logistic AUC | forest AUC |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["auc_logistic_interval"], row["auc_forest_interval"]
        lines.append(
            f"| {row['kind']} | {row['least_z']:.1f} | {row['hit_rate']:.3f} "
            f"| {row['auc_logistic']:.2f} ({low[0]:.2f} to {low[1]:.2f}) "
            f"| {row['auc_forest']:.2f} ({high[0]:.2f} to {high[1]:.2f}) |"
        )
    return "\n".join(lines)


def column() -> str:
    """Return the removal battery: as the file stands, and aligned to two references."""
    rows = [row for row in rows_of("deepwater_column") if row["row"] not in ("null", "R20")]
    if not rows:
        return NOTHING
    lines = [
        "| row | attack | network | models | accuracy, median "
        "| as the file stands: bit errors, worst; bits, least "
        "| aligned to the start: bit errors, median / worst | bits, median / least "
        "| aligned to the release: bit errors, worst; bits, least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["attack"] = row["attack"].split(" #")[0]
    order = sorted(
        _groups(rows, "row", "attack", "network").items(),
        key=lambda item: (item[0][2], int(item[0][0][1:]), item[0][1]),
    )
    for (number, attack, network), group in order:
        found = [row for row in group if "refused" not in row]
        if not found:
            lines.append(f"| {number} | {attack} | {network} | {len(group)} | does not apply |||||")
            continue
        aligned = [row for row in found if "bits" in row]
        tried = any("failed" in row for row in found)
        both = ("cannot be aligned", "-") if tried else ("-", "-")
        both = (_errors(aligned), _bits(aligned)) if aligned else both
        accuracy = statistics.median(row["accuracy"] for row in found)
        lines.append(
            f"| {number} | {attack} | {network} | {len(found)} | {accuracy:.1f} "
            f"| {_worst(found, 'raw_')} | {both[0]} | {both[1]} | {_worst(found, 'release_')} |"
        )
    return "\n".join(lines)


def _worst(rows: list[dict], kind: str) -> str:
    """Return the worst bit error rate and the fewest bits of one way of reading."""
    found = [row for row in rows if f"{kind}bits" in row]
    if not found:
        return "cannot be read" if kind == "raw_" else "cannot be aligned"
    errors = max(1 - row[f"{kind}hits"] / row[f"{kind}trials"] for row in found)
    return f"{errors:.3f}; {min(row[f'{kind}bits'] for row in found):,.0f}"


REFERENCES = {
    "start": "the network before its training, carrier projected out",
    "release": "the release, carrier projected out and whitened",
    "decoy": "the same, read with a decoy key",
    "unwhitened": "the release, carrier projected out",
    "naive": "the release as it is (control: must fail)",
}


def innocents() -> str:
    """Return what aligned innocents show: to the start, the release, a decoy, and naively."""
    rows = rows_of("deepwater_innocents")
    if not rows:
        return NOTHING
    lines = [
        "| network | suspects | aligned to | references | pairs | mean bit error rate (error) "
        "| standard score: mean (error) | spread | most | bits of evidence, most |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network, same in sorted({(row["network"], row["suspect"] == "same start") for row in rows}):
        found = [
            row
            for row in rows
            if (row["network"], row["suspect"] == "same start") == (network, same)
        ]
        for kind, name in REFERENCES.items():
            read = [row for row in found if kind in row]
            z = [row[kind]["z"] for row in read]
            rate, rate_error = _clustered(
                read, lambda row, k: 1 - row[k]["hits"] / row["trials"], kind
            )
            mean, error = _clustered(read, lambda row, k: row[k]["z"], kind)
            lines.append(
                f"| {network} | {'same start' if same else 'other start'} | {name} "
                f"| {len({row['cell'] for row in read})} | {len(read)} "
                f"| {rate:.3f} ({rate_error:.3f}) | {mean:+.2f} ({error:.2f}) "
                f"| {statistics.pstdev(z):.2f} | {max(z):.2f} "
                f"| {max(row[kind]['bits'] for row in read):.1f} |"
            )
    return "\n".join(lines)


def _clustered(rows: list[dict], value: Callable, kind: str) -> tuple[float, float]:
    """Return a mean over references and its standard error."""
    means = [
        statistics.mean(value(row, kind) for row in part) for part in _groups(rows, "cell").values()
    ]
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
    return statistics.mean(means), error


def collusion() -> str:
    """Return who is named where customers pool their copies."""
    rows = rows_of("deepwater_collusion")
    if not rows:
        return NOTHING
    lines = [
        "| stamp | colluders | how | models | accuracy, median | bits of the surest colluder: "
        "median, least | of the least sure: median, least | innocents read: keys, most bits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (margin, count, how), found in sorted(_groups(rows, "margin", "colluders", "how").items()):
        surest, other = ([pick(row["bits"]) for row in found] for pick in (max, min))
        keys = sum(row["innocents"] for row in found)
        most = f"{keys:,}, {max(row['innocent_bits'] for row in found):.1f}" if keys else "-"
        lines.append(
            f"| {f'margin {margin:g}' if margin else 'default'} | {count} | {how} | {len(found)} "
            f"| {statistics.median(row['accuracy'] for row in found):.2f} "
            f"| {statistics.median(surest):,.0f}, {min(surest):,.0f} "
            f"| {statistics.median(other):,.0f}, {min(other):,.0f} | {most} |"
        )
    return "\n".join(lines)


def scale() -> str:
    """Return the figures of the largest checkpoint."""
    rows = rows_of("deepwater_scale")
    if not rows:
        return NOTHING
    lines = [
        "| parameters | bits of message | stamp: CPU s, peak MiB | verify: peak MiB "
        "| verify over read, wall: median, best | over read past the page cache, wall "
        "| verify over read, CPU "
        "| verify over read and SHA-256, CPU "
        "| bits: marked, unmarked | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ("ratio_median", "ratio_best", "direct_ratio_median", "cpu_ratio_median")
    for row in rows:
        ratios = [f"{row[key]:.2f}" if key in row else "-" for key in (*keys, "hash_ratio_median")]
        lines.append(
            f"| {row['write_parameters']:,} | {row['verify_hits']:,} of {row['verify_trials']:,} "
            f"| {row['stamp_cpu_seconds']:.0f}, {row['stamp_peak_mib']} "
            f"| {row['verify_peak_mib']} | {ratios[0]}, {ratios[1]} | {ratios[2]} | {ratios[3]} "
            f"| {ratios[4]} "
            f"| {row['verify_bits']:,.0f}, {abs(row['null_verify_bits']):.1f} "
            f"| {row['load']:.0f} |"
        )
    return "\n".join(lines)


def references() -> str:
    """Return how real networks' weights are distributed, and what a stamp does to them."""
    rows = rows_of("weight_statistics")
    if not rows:
        return NOTHING
    lines = [
        "| network | tensors | weights | bulk over std: least, median, most "
        "| exponent: least, median, most | kurtosis, median | bits stamped, read "
        "| after pruning 65 % | std ratio, most | KS distance, most "
        "| keys never embedded: number, hit rate, most bits |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = row["least_median_most"]
        bulk, exponent = (
            ", ".join(f"{value:.2f}" for value in figures[key])
            for key in ("mad_over_std", "exponent")
        )
        lines.append(
            f"| {row['network']} | {row['tensors']} | {row['weights']:,} | {bulk} | {exponent} "
            f"| {figures['kurtosis'][1]:.1f} | {row['bits_of_message']}, {row['stamped_hits']} "
            f"| {row['pruned_65_hits']} | {row['std_ratio_most']:.3f} | {row['ks_most']:.3f} "
            f"| {row['null_keys']}, {row['null_hit_rate']:.3f}, {row['null_bits_most']:.1f} |"
        )
    return "\n".join(lines)


TABLES = {
    "deepwater-references": references,
    "deepwater-fidelity": fidelity,
    "deepwater-births": births,
    "deepwater-attacks": attacks,
    "deepwater-payload": payload,
    "deepwater-kinds": kinds,
    "deepwater-histogram": histogram,
    "deepwater-stamps": stamps,
    "deepwater-stealth": stealth,
    "deepwater-column": column,
    "deepwater-innocents": innocents,
    "deepwater-collusion": collusion,
    "deepwater-scale": scale,
}
