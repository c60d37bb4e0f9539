"""The battery page: what each attack cost its attacker, and what it left of the mark."""

from __future__ import annotations

from collections.abc import Sequence

from earmark.policy import Policy
from earmark.report import parts
from earmark.report.content import BatteryContent
from earmark.report.markup import Markup, join, name, tag
from earmark.report.numbers import THIN, bits, fixed, number, rate_interval
from earmark.report.plane import Dot, plane
from earmark.report.rows import AttackRow, Spread, summarize


def render_battery(content: BatteryContent) -> str:
    """Write the battery page as one HTML page without scripts or anything remote.

    Args:
        content: Trial records and a few words.

    Returns:
        The page. The same content gives the same bytes.
    """
    rows = summarize(content.trials, content.policy)
    first, *others = removal_sentences(rows, content.policy)
    return parts.page(
        f"Attacks on {content.model}",
        parts.sample_note() if content.sample else "",
        parts.header("earmark attack battery", content.model, content.created),
        tag("h1", first),
        *(tag("p", item, class_="lead") for item in others),
        parts.facts(_facts(content, rows)),
        _picture(content, rows),
        parts.section("Every attack", attack_table(rows, content.utility_name), _how_to_read()),
        _limits(content),
        _made_with(content),
        tag(
            "p",
            f"Written by earmark {content.version} from {_runs(len(content.trials))}.",
            class_="foot",
        ),
    )


def removal_sentences(rows: Sequence[AttackRow], policy: Policy) -> list[Markup]:
    """Say which attacks remove the mark and at what cost; or which came closest.

    Args:
        rows: Attacks, summed up; rows of untouched models are left out.
        policy: Says how many bits count as shown.

    Returns:
        One sentence or more, the most important first.
    """
    attacks = [item for item in rows if not item.untouched]
    measured = [item for item in attacks if item.runs and item.bits is not None]
    asked = f"{number(policy.bits)} bits"
    if not measured:
        return [
            join("No attack was measured, so nothing is known about which ones remove this mark.")
        ]
    removing = sorted((item for item in measured if item.removed), key=_price)
    if removing:
        said = [_removes(item, asked) for item in removing[:4]]
        if len(removing) > 4:
            said.append(join(f"{len(removing) - 4} more are in the table."))
        left = len(measured) - len(removing)
        if left:
            said.append(join(f"The other {_attacks(left)} left at least {asked} in every run."))
    else:
        closest = min(measured, key=lambda item: (item.bits or (0.0,))[0])
        runs = sum(item.runs for item in measured)
        low = (closest.bits or (0.0,))[0]
        said = [
            join(
                f"None of the {_attacks(len(measured))} brought the mark below {asked} in any of "
                f"{_runs(runs)}."
            ),
            join(
                "The closest was ",
                name(closest.label),
                f", with {bits(low)} bits left in its worst run{_cost(closest)}.",
            ),
        ]
    failed = sum(len(item.errors) for item in attacks)
    if failed:
        said.append(
            join(
                f"{_runs(failed)} failed and {'says' if failed == 1 else 'say'} nothing "
                "either way; the table shows why."
            )
        )
    return said


def _removes(item: AttackRow, asked: str) -> Markup:
    if item.runs == 1:
        often = "in its only run"
    elif item.removed == item.runs:
        often = f"in all {_runs(item.runs)}"
    else:
        often = f"in {item.removed} of {_runs(item.runs)}"
    return join(name(item.label), f" removes this mark: below {asked} {often}{_cost(item)}.")


def _cost(item: AttackRow) -> str:
    """Say what the attacker paid, with the range over runs."""
    compute = ""
    if item.cost is not None:
        compute = f" and {number(100 * item.cost[1])}{THIN}% of a training's compute"
    if item.lost is None:
        return f", at a cost{compute.replace(' and', ' of')} and in utility that was not measured"
    low, median, high = item.lost
    around = ""
    if item.runs > 1 and low != high:
        around = f" ({number(low)} to {number(high)})"
    if median <= 0:
        return f", at no cost in utility{around}{compute}"
    return f", at a cost of {number(median)} points of utility{around}{compute}"


def _price(item: AttackRow) -> float:
    return float("inf") if item.lost is None else item.lost[1]


def _attacks(count: int) -> str:
    return f"{count:,} attack{'' if count == 1 else 's'}"


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _facts(content: BatteryContent, rows: Sequence[AttackRow]) -> list[tuple[object, object]]:
    attacks = [item for item in rows if not item.untouched]
    failed = sum(len(item.errors) for item in rows)
    stood = sum(item.runs > 0 and item.removed == 0 for item in attacks)
    return [
        (
            f"{stood} of {_attacks(len(attacks))}",
            "left the mark standing in every run that finished",
        ),
        (f"{_runs(len(content.trials))}", f"in all, {failed} of them failed"),
        (
            f"{number(content.policy.bits)} bits",
            "of evidence count as standing, net of everything tried",
        ),
    ]


def _picture(content: BatteryContent, rows: Sequence[AttackRow]) -> Markup:
    dots = []
    for place, item in enumerate(rows, 1):
        if item.bits is None or item.utility is None:
            continue
        kind = "release" if item.untouched else "stolen" if not item.removed else "innocent"
        ends = (
            {} if item.runs == 1 else {"x_range": _ends(item.utility), "y_range": _ends(item.bits)}
        )
        dots.append(Dot(item.utility[1], item.bits[1], item.label, place, kind, **ends))
    if not dots:
        return Markup("")
    title = f"{content.utility_name} against net bits of evidence, by attack"
    meanings = {
        "release": "no attack",
        "stolen": "mark stands in every run",
        "innocent": "mark removed in at least one run",
    }
    kinds = [(kind, said) for kind, said in meanings.items() if any(d.kind == kind for d in dots)]

    def draw(*, narrow: bool) -> Markup:
        return plane(
            dots, asked=content.policy.bits, x_name=content.utility_name, title=title, narrow=narrow
        )

    caption = (
        "Each mark is an attack: the median over its runs, with whiskers from the lowest to "
        "the highest. To the right the attacked model works better, higher up it carries more "
        "evidence. An attacker wants to be bottom right. Bits are drawn on a scale that "
        "compresses upwards."
    )
    return parts.section(
        "Utility against evidence",
        parts.figure(caption, draw(narrow=False), draw(narrow=True), parts.key(kinds)),
    )


def _ends(values: Spread) -> tuple[float, float]:
    return values[0], values[2]


def attack_table(rows: Sequence[AttackRow], utility_name: str) -> Markup:
    """Write one row per attack, and one per failure.

    Args:
        rows: Attacks, summed up.
        utility_name: What the utility is called.
    """
    columns = ("attack", utility_name, "points lost", "compute", "hits", "bits left", "mark stands")
    made: list[Markup] = []
    for place, item in enumerate(rows, 1):
        head = join(f"{place} ", name(item.label), tag("small", f"n = {item.runs}"))
        if item.runs:
            cells = (
                _spread_cell(item.utility, columns[1], "not measured", 1, f"{THIN}%"),
                _spread_cell(item.lost, columns[2], "not measured", 2),
                _compute_cell(item.cost, columns[3]),
                _hits_cell(item, columns[4]),
                _spread_cell(item.bits, columns[5], "none", None),
                parts.td(
                    f"{item.shown} of {item.runs}",
                    columns[6],
                    under=rate_interval(item.shown, item.runs),
                ),
            )
            made.append(parts.row(columns, head, cells))
        made += [_failure(item, place, error, len(columns)) for error in sorted(set(item.errors))]
    return parts.table(columns, made)


def _compute_cell(cost: Spread | None, label: str) -> Markup:
    """Write the compute of an attack, in percent of a training's."""
    if cost is None:
        return parts.td("not known", label)
    return _spread_cell(tuple(100 * item for item in cost), label, "", 1, f"{THIN}%")  # type: ignore[arg-type]


def _hits_cell(item: AttackRow, label: str) -> Markup:
    if item.runs == 1 or item.rate is None:
        return parts.hits_cell(item.hits, item.trials, label)
    low, _, high = item.rate
    under = f"{_rate(low)} to {_rate(high)}" if low != high else ""
    return parts.td(f"{item.hits:,} / {item.trials:,}", label, under=under)


def _rate(value: float) -> str:
    """Write a rate in percent; the ends are words."""
    if value <= 0 or value >= 100:
        return "all" if value >= 100 else "none"
    return f"{min(99.9, max(0.1, value)):.1f}{THIN}%"


def _spread_cell(
    value: Spread | None, label: str, otherwise: str, places: int | None, unit: str = ""
) -> Markup:
    """Write a median with its range; without a number of decimals, the values are bits."""
    if value is None:
        return parts.td(otherwise, label)
    low, median, high = (bits(item) if places is None else fixed(item, places) for item in value)
    return parts.td(median + unit, label, under=f"{low} to {high}" if low != high else "")


def _failure(item: AttackRow, place: int, error: str, columns: int) -> Markup:
    times = item.errors.count(error)
    return tag(
        "tr",
        tag(
            "th",
            f"{place} ",
            name(item.label),
            tag("small", f"failed, {_runs(times)}"),
            scope="row",
        ),
        tag("td", name(error, longest=400), colspan=columns - 1, class_="left"),
        class_="failed",
    )


def _how_to_read() -> Markup:
    return tag(
        "p",
        "Utility, points lost and bits are medians over runs, with the lowest and highest below; "
        "n is the number of runs that finished. Compute is that of the attack, in percent of a "
        "training's. Hits are those of all runs together, with the "
        "lowest and highest rate of a run below. Below the share of runs in which the mark stands, "
        "and below the hits of a single run, is the 95 % interval (Clopper-Pearson).",
        class_="small",
    )


def _limits(content: BatteryContent) -> Markup:
    said = [
        "It speaks of these attacks with these settings and budgets; an attacker may spend more.",
        "A mark that stands after an attack proves nothing about attacks that nobody tried.",
        "The runs were made by whoever publishes this page; the records let others repeat them.",
    ]
    extra = [name(item, longest=600) for item in content.notes]
    return parts.section("What this does not say", parts.bullets([*said, *extra]))


def _made_with(content: BatteryContent) -> Markup:
    trials = content.trials
    versions = sorted({f"{k} {v}" for trial in trials for k, v in trial.versions.items()})
    rows: list[tuple[str, object]] = [
        ("Schemes", _several({trial.scheme for trial in trials})),
        ("Networks", _several({trial.host for trial in trials})),
        ("Data", _several({trial.data for trial in trials})),
        ("Seeds", _several({str(trial.seed) for trial in trials})),
        ("Machines", _several({trial.machine for trial in trials})),
        ("Software", _several(set(versions))),
    ]
    return parts.section("How it was measured", parts.listing(rows))


def _several(values: set[str]) -> Markup:
    shown = sorted(values, key=lambda item: (len(item), item))
    more = f" and {len(shown) - 24} more" if len(shown) > 24 else ""
    items: list[object] = []
    for i, value in enumerate(shown[:24]):
        items += [", " if i else "", name(value)]
    return join(*items, more)
