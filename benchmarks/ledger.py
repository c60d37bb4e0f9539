"""Measure the ledgers: durable appends side by side, proofs at a million entries, the full check.

Parts, each of which appends rows to ``benchmarks/rows/ledger.jsonl`` and is not run again where its
rows are there already:

* ``journals``: the embedded ledger with each of SQLite's journals; see decision 0010.
* ``sides``: SQLite, PostgreSQL, plain inserts into both, and pymerkle (a Merkle tree on SQLite by
  others), in turn within one process, so that they meet the same disk and the same load.
* ``large-sqlite``, ``large-postgres``: batches, proofs and the full check at a million entries.

Appends are measured on the file system of ``--folder``, because what they cost is what its syncs
cost. PostgreSQL is the server that the tests start, with its data on the same file system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from earmark.ledger.log import SqliteLedger
from earmark.ledger.merkle import leaf_hash, verify_consistency, verify_inclusion
from earmark.ledger.port import verify_receipt
from earmark.ledger.treelog import TreeLog
from earmark.records import Receipt

ROWS = Path(__file__).parent / "rows" / "ledger.jsonl"
SEED = 7
RECORD = b'{"number":%d,"padding":"' + b"x" * 150 + b'"}'


def row(what: str, **values: object) -> dict[str, object]:
    """Complete one row and print it."""
    made = {
        "benchmark": "ledger",
        "what": what,
        **values,
        "seed": SEED,
        "versions": {
            "earmark": version("earmark"),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "cryptography": version("cryptography"),
        },
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
    }
    print(json.dumps(made))
    return made


def singles(folder: Path, journal: str, count: int) -> dict[str, object]:
    """Append records one by one, each waiting for the disk."""
    with SqliteLedger.create(folder / f"{journal}.sqlite", "bench.example/log") as ledger:
        ledger._db.execute(f"PRAGMA journal_mode = {journal}")  # noqa: SLF001 - to compare them
        times, cpu = [], time.process_time()
        for number in range(count):
            start = time.perf_counter()
            ledger.append(RECORD % number)
            times.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
    return row(
        "append one by one, durable",
        journal=journal,
        entries=count,
        seconds=round(sum(times), 4),
        per_second=round(count / sum(times), 1),
        median_ms=round(1e3 * statistics.median(times), 3),
        slowest_ms=round(1e3 * max(times), 3),
        cpu_ms_each=round(1e3 * cpu / count, 3),
    )


def batches(ledger: TreeLog, size: int, count: int) -> dict[str, object]:
    """Append records in batches, one durable transaction each, receipts included."""
    first, start, cpu = ledger.head().size, time.perf_counter(), time.process_time()
    for batch in range(count):
        ledger.append_many([RECORD % (first + batch * size + k) for k in range(size)])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return row(
        f"append in batches of {size}",
        engine=type(ledger).__name__,
        entries_before=first,
        entries=size * count,
        seconds=round(seconds, 4),
        per_second=round(size * count / seconds, 1),
        cpu_ms_each=round(1e3 * cpu / (size * count), 4),
    )


class Timed:
    """Calls timed: milliseconds of wall and of this process's processor time for each."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def __call__(
        self, name: str, work: list[tuple[object, ...]], function: Callable[..., object]
    ) -> list[Any]:
        """Call a function with each of `work` and keep the times under a name."""
        wall, cpu = time.perf_counter(), time.process_time()
        results = [function(*arguments) for arguments in work]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.values[f"{name}_ms"] = round(1e3 * wall / len(work), 4)
        self.values[f"{name}_cpu_ms"] = round(1e3 * cpu / len(work), 4)
        return results


def proofs(ledger: TreeLog, count: int) -> dict[str, object]:
    """Make and verify inclusion and consistency proofs at random places."""
    chance, head = random.Random(SEED), ledger.head()
    size = head.size
    places = [chance.randrange(size) for _ in range(count)]
    timed = Timed()
    paths = timed("prove", [(place, size) for place in places], ledger.prove)
    records = [ledger.get(place) for place in places]
    hashes = [[bytes.fromhex(item) for item in path] for path in paths]
    timed(
        "verify_path",
        [
            (leaf_hash(record), place, size, path, head.root)
            for record, place, path in zip(records, places, hashes, strict=True)
        ],
        verify_inclusion,
    )
    receipts = [
        Receipt(ledger.origin, place, leaf_hash(record).hex(), str(head), path)
        for place, record, path in zip(places, records, paths, strict=True)
    ]
    timed(
        "verify_receipt",
        [(record, receipt, ledger.vkey) for record, receipt in zip(records, receipts, strict=True)],
        verify_receipt,
    )
    olds = [ledger.root_after(place) for place in places]
    asked = [(old.size, size) for old in olds]
    steps = timed("prove_consistency", asked, ledger.prove_consistency)
    timed(
        "verify_consistency",
        [
            (old.size, size, old.root, head.root, [bytes.fromhex(item) for item in path])
            for old, path in zip(olds, steps, strict=True)
        ],
        verify_consistency,
    )
    return row(
        "proofs",
        engine=type(ledger).__name__,
        entries=size,
        proofs=count,
        inclusion_hashes=max(len(path) for path in paths),
        inclusion_bytes=32 * max(len(path) for path in paths),
        receipt_json_bytes=max(len(receipt.canonical()) for receipt in receipts),
        consistency_hashes=max(len(path) for path in steps),
        load=round(os.getloadavg()[0], 1),
        **timed.values,
    )


def full_check(ledger: TreeLog) -> dict[str, object]:
    """Derive everything anew."""
    start, cpu = time.perf_counter(), time.process_time()
    found = ledger.check()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return row(
        "full check",
        engine=type(ledger).__name__,
        entries=found.size,
        checkpoints=found.checkpoints,
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu, 3),
        per_second=round(found.size / seconds),
        file_bytes=stored(ledger),
    )


def stored(ledger: TreeLog) -> int:
    """Return the bytes that a ledger takes."""
    if isinstance(ledger, SqliteLedger):
        return ledger.path.stat().st_size
    sql = (
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c "
        "JOIN pg_namespace n ON relnamespace = n.oid WHERE nspname = 'large' AND relkind = 'r'"
    )
    found = ledger.rows.db.execute(sql).fetchone()  # type: ignore[attr-defined]
    return int(str(found[0]))


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start the tests' own server with its data below a folder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "ledger"))
    from server import Server

    server = Server(folder)
    try:
        yield server.start().dsn
    finally:
        server.stop()


def plain_sqlite(folder: Path) -> Callable[[list[bytes]], None]:
    """Insert records into a table, durably, and nothing else."""
    db = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = TRUNCATE")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, record BLOB)")

    def add(records: list[bytes]) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO entries (record) VALUES (?)", [(item,) for item in records])
        db.execute("COMMIT")

    return add


def plain_postgres(dsn: str) -> Callable[[list[bytes]], None]:
    """Insert records into a table of the server, durably, and nothing else."""
    import psycopg

    db = psycopg.connect(dsn, autocommit=True)
    db.execute("CREATE TABLE plain (id bigserial PRIMARY KEY, record bytea)")
    sql = "INSERT INTO plain (record) SELECT * FROM unnest(%b::bytea[])"
    return lambda records: db.execute(sql, (records,)) and None


def by_others(folder: Path) -> Callable[[list[bytes]], None] | None:
    """Append to pymerkle's tree on SQLite, if it is installed; it signs nothing."""
    try:
        from pymerkle import SqliteTree
    except ImportError:
        return None
    tree = SqliteTree(str(folder / "pymerkle.sqlite"))

    def add(records: list[bytes]) -> None:
        if len(records) == 1:
            tree.append_entry(records[0])
        else:
            tree.append_entries(records)

    return add


def sides(folder: Path) -> list[dict[str, object]]:
    """Append one by one and in batches to every engine in turn; medians over rounds."""
    from earmark.ledger.postgres import PostgresLedger

    origin, rows = "bench.example/log", []
    with postgres(folder) as dsn, contextlib.ExitStack() as stack:
        left = stack.enter_context(SqliteLedger.create(folder / "side.sqlite", origin))
        right = stack.enter_context(PostgresLedger.create(dsn, origin, key=folder / "side.key"))
        engines: dict[str, Callable[[list[bytes]], object] | None] = {
            "embedded (SQLite)": left.append_many,
            "service (PostgreSQL)": right.append_many,
            "plain inserts, SQLite": plain_sqlite(folder),
            "plain inserts, PostgreSQL": plain_postgres(dsn),
            "pymerkle on SQLite": by_others(folder),
        }
        for size, count, rounds in ((1, 40, 9), (1000, 1, 9)):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
            for turn in range(rounds):
                for name, add in engines.items():
                    if add is None:
                        continue
                    number = (turn * count) * size
                    work = [
                        [RECORD % (number + batch * size + k) for k in range(size)]
                        for batch in range(count)
                    ]
                    wall, cpu = time.perf_counter(), time.process_time()
                    for records in work:
                        add(records)
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                    found[name].append((size * count / wall, 1e3 * cpu / (size * count)))
            for name, values in found.items():
                if values:
                    rows.append(side(name, size, count, values))
    return rows


def side(name: str, size: int, count: int, values: list[tuple[float, float]]) -> dict[str, object]:
    """Make the row of one engine."""
    rates = [rate for rate, _ in values]
    return row(
        "side by side",
        engine=name,
        batch=size,
        rounds=len(values),
        appends_each=count * size,
        per_second=round(statistics.median(rates), 1),
        slowest_round=round(min(rates), 1),
        fastest_round=round(max(rates), 1),
        client_cpu_ms_each=round(statistics.median(cpu for _, cpu in values), 4),
        load=round(os.getloadavg()[0], 1),
    )


def large(ledger: TreeLog, entries: int) -> list[dict[str, object]]:
    """Measure a ledger of many entries."""
    return [
        batches(ledger, 1000, 10),
        batches(ledger, 10_000, (entries - 10_000) // 10_000),
        batches(ledger, 1000, 10),
        proofs(ledger, 1000),
        full_check(ledger),
    ]


def measure(part: str, folder: Path, entries: int) -> list[dict[str, object]]:
    """Run one part."""
    origin = "bench.example/log"
    if part == "journals":
        return [singles(folder, journal, 400) for journal in ("TRUNCATE", "DELETE", "WAL")]
    if part == "sides":
        return sides(folder)
    if part == "large-sqlite":
        with SqliteLedger.create(folder / "large.sqlite", origin) as ledger:
            return large(ledger, entries)
    from earmark.ledger.postgres import PostgresLedger

    with (
        postgres(folder) as dsn,
        PostgresLedger.create(dsn, origin, key=folder / "k", schema="large") as shared,
    ):
        return large(shared, entries)


def main() -> None:
    """Run the parts whose rows are missing and append them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=["journals", "sides", "large-sqlite", "large-postgres"]
    )
    parser.add_argument("--folder", default=".", help="measure on this folder's file system")
    parser.add_argument("--entries", type=int, default=1_000_000, help="size for the proofs")
    options = parser.parse_args()
    done = set()
    if ROWS.exists():
        done = {json.loads(line).get("part") for line in ROWS.read_text().splitlines()}
    for part in options.parts:
        if part in done:
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            Path(name).chmod(0o755)
            rows = measure(part, Path(name).resolve(), options.entries)
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**made, "part": part}) + "\n" for made in rows)


if __name__ == "__main__":
    main()
