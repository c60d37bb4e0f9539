"""The tables of the ledgers: appends side by side, proofs at a million entries, gas."""

from common import rows_of, spread

NAMES = {"SqliteLedger": "embedded (SQLite)", "PostgresLedger": "service (PostgreSQL)"}


def appends_table() -> str:
    """Return appends per second of every engine, in turn on one disk."""
    rows = [row for row in rows_of("ledger") if row.get("part") == "sides"]
    lines = [
        "| engine | one by one, durable (slowest to fastest round) | in batches of 1,000 "
        "| client's CPU per append, ms |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["engine"] for row in rows):
        one, many = (
            next(row for row in rows if row["engine"] == name and row["batch"] == size)
            for size in (1, 1000)
        )
        cells = [
            f"{row['per_second']:,.0f} ({row['slowest_round']:,.0f} to {row['fastest_round']:,.0f})"
            for row in (one, many)
        ]
        cpu = f"{one['client_cpu_ms_each']:.2f}; {many['client_cpu_ms_each']:.3f} in batches"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {cpu} |")
    if rows:
        loads = spread([row["load"] for row in rows], 0)
        lines += ["", f"Per second, median of {rows[0]['rounds']} rounds; load average {loads}."]
    return "\n".join(lines)


def cost(row: dict, name: str) -> str:
    """Return the processor's time for one call, where it was taken, and the elapsed time."""
    elapsed = f"{row[f'{name}_ms']:.2f} ms elapsed"
    cpu = row.get(f"{name}_cpu_ms")
    return elapsed if cpu is None else f"{cpu:.3f} ms ({elapsed})"


def check_cost(row: dict) -> str:
    """Return the processor's time for a full check, where it was taken, and the elapsed time."""
    elapsed = f"{row['seconds']:,.0f} s elapsed"
    cpu = row.get("cpu_seconds")
    return elapsed if cpu is None else f"{cpu:.1f} s ({elapsed})"


def proofs_table() -> str:
    """Return what proofs cost at a million entries."""
    lines = [
        "| engine | entries | inclusion proof | receipt | made in | path verified in "
        "| receipt verified in | full check |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for part, name in (("large-sqlite", "SqliteLedger"), ("large-postgres", "PostgresLedger")):
        rows = [row for row in rows_of("ledger") if row.get("part") == part]
        if not rows:
            continue
        proof = next(row for row in rows if row["what"] == "proofs")
        whole = next(row for row in rows if row["what"] == "full check")
        lines.append(
            f"| {NAMES[name]} | {proof['entries']:,} | {proof['inclusion_bytes']} bytes "
            f"| {proof['receipt_json_bytes']:,} bytes | {cost(proof, 'prove')} "
            f"| {cost(proof, 'verify_path')} | {cost(proof, 'verify_receipt')} "
            f"| {check_cost(whole)} |"
        )
    return "\n".join(lines)


def gas_table() -> str:
    """Return the gas of each step, and how long a transaction took on each engine."""
    rows = rows_of("chain")
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    heads = " | ".join(f"{name}, s" for name in engines)
    lines = [f"| step | record, bytes | gas | {heads} |", "|---|---|---|" + "---|" * len(engines)]
    for step in dict.fromkeys(row["step"] for row in rows):
        chosen = [row for row in rows if row["step"] == step]
        size = chosen[0]["record_bytes"]
        gas = spread([row["gas"] for row in chosen], 0)
        times = [
            spread([row["seconds"] for row in chosen if row["engine"] == name], 2)
            for name in engines
        ]
        lines.append(f"| {step} | {size or ''} | {gas} | {' | '.join(times)} |")
    first = [row for row in rows if engines and row["engine"] == engines[0]]
    life = sum(
        row["gas"] for row in first if not row["step"].startswith(("deploy", "stamp", "challenge"))
    )
    if rows:
        lines += [
            "",
            f"A claim's whole life with {len([r for r in first if 'sealed' in r['step']])} voters, "
            f"from the commitment to the verdict: {life:,} gas.",
        ]
    return "\n".join(lines)


TABLES = {
    "ledger-appends": appends_table,
    "ledger-proofs": proofs_table,
    "chain-gas": gas_table,
}
