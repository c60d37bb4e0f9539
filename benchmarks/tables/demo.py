"""The table of the demo."""

from common import rows_of, spread


def demo_table() -> str:
    """Return the table of the demo's rows: medians and ranges over seeds."""
    rows = rows_of("demo")
    if not rows:
        return "Not measured yet."
    names = list(dict.fromkeys(row["model"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"{rows[0]['data']}, {len(seeds)} seeds, median (range); net bits, 64 asked for.",
        "",
        "| model | what it is | accuracy | bits | mark shown |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        some = [row for row in rows if row["model"] == name]
        shown = sum(row["outcome"] == "shown" for row in some)
        lines.append(
            f"| {name} | {some[0]['done']} | {spread([row['utility'] for row in some], 2)} | "
            f"{spread([row['bits'] for row in some], 0)} | {shown} of {len(some)} |"
        )
    cost = [row["utility"] - row["twin"] for row in rows if row["model"] == "release"]
    lines += ["", f"Marked minus unmarked twin, same seed and schedule: {spread(cost, 2)} points."]
    return "\n".join(lines)


TABLES = {"demo": demo_table}
