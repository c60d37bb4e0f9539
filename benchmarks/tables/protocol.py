"""The tables of the protocol: what a claim costs a node, and how the scripts ended."""

from common import rows_of


def protocol_table() -> str:
    """Return the table of what each step costs."""
    rows = rows_of("protocol")
    alone = {
        row["parameters"]: row["cpu_ms_each"] for row in rows if row["what"].startswith("count")
    }
    lines = ["| step | CPU ms each | beside |", "|---|---|---|"]
    for row in rows:
        about = [f"{row['witnesses']} witnesses"] if "witnesses" in row else []
        about += [f"{row['voters']} voters"] if "voters" in row else []
        about += [f"{row['parameters']:,} weights"] if "parameters" in row else []
        what = ", ".join([row["what"], *about])
        beside = ""
        if row["what"].startswith("verify"):
            ratio = row["cpu_ms_each"] / alone[row["parameters"]]
            beside = (
                f"{60_000 / row['cpu_ms_each']:.0f} claims per minute and core; "
                f"{ratio:.1f} times the counting alone"
            )
        lines.append(f"| {what} | {row['cpu_ms_each']:,.1f} | {beside} |")
    return "\n".join(lines)


def community_table() -> str:
    """Return the table of how each script ended."""
    lines = [
        "| script | false claim | thief's claim | owner's claim | dispute | faulty ones' votes |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows_of("community"):
        said = [
            item["outcome"] if item["code"] == "quorum" else f"{item['outcome']} ({item['code']})"
            for item in row["claims"].values()
        ]
        names = [f"node {row['nodes'] - 1 - i}" for i in range(len(row["faulty"]))]
        codes = sorted({item["voters"][name] for item in row["claims"].values() for name in names})
        name = row["script"] if row["as_expected"] else f"**{row['script']}: wrong**"
        dispute = f"owner, by {row['disputes'][0]}" if row["disputes"] else "none"
        lines.append(f"| {name} | {' | '.join(said)} | {dispute} | {', '.join(codes)} |")
    return "\n".join(lines)


TABLES = {"protocol": protocol_table, "community": community_table}
