"""Measure the embedded ledger: durable appends, proofs at a million entries, the full check.

Run ``python benchmarks/ledger.py``; it appends rows to ``benchmarks/rows/ledger.jsonl``. Appends
are measured on the file system of ``--folder`` (the present folder by default), because what they
cost is what its syncs cost. Journals are measured in turn within one run, so that they meet the
same disk; see the decision record on the journal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from earmark.ledger.log import SqliteLedger
from earmark.ledger.merkle import leaf_hash, verify_consistency, verify_inclusion
from earmark.ledger.port import verify_receipt
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


def batches(ledger: SqliteLedger, size: int, count: int) -> dict[str, object]:
    """Append records in batches, one durable transaction each, receipts included."""
    first, start = len(ledger), time.perf_counter()
    for batch in range(count):
        ledger.append_many([RECORD % (first + batch * size + k) for k in range(size)])
    seconds = time.perf_counter() - start
    return row(
        f"append in batches of {size}",
        entries_before=first,
        entries=size * count,
        seconds=round(seconds, 4),
        per_second=round(size * count / seconds, 1),
    )


def timed(work: list[tuple[object, ...]], function: object) -> tuple[float, list[object]]:
    """Return milliseconds for each call, and the results."""
    start = time.perf_counter()
    results = [function(*arguments) for arguments in work]  # type: ignore[operator]
    return 1e3 * (time.perf_counter() - start) / len(work), results


def proofs(ledger: SqliteLedger, count: int) -> dict[str, object]:
    """Make and verify inclusion and consistency proofs at random places."""
    chance, head = random.Random(SEED), ledger.head()
    size = head.size
    places = [chance.randrange(size) for _ in range(count)]
    prove_ms, paths = timed([(place, size) for place in places], ledger.prove)
    records = [ledger.get(place) for place in places]
    hashes = [[bytes.fromhex(item) for item in path] for path in paths]
    path_ms, _ = timed(
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
    receipt_ms, _ = timed(
        [(record, receipt, ledger.vkey) for record, receipt in zip(records, receipts, strict=True)],
        verify_receipt,
    )
    olds = [ledger.root_after(place) for place in places]
    steps_ms, steps = timed([(old.size, size) for old in olds], ledger.prove_consistency)
    step_ms, _ = timed(
        [
            (old.size, size, old.root, head.root, [bytes.fromhex(item) for item in path])
            for old, path in zip(olds, steps, strict=True)
        ],
        verify_consistency,
    )
    return row(
        "proofs",
        entries=size,
        proofs=count,
        inclusion_hashes=max(len(path) for path in paths),
        inclusion_bytes=32 * max(len(path) for path in paths),
        receipt_json_bytes=max(len(receipt.canonical()) for receipt in receipts),
        prove_ms=round(prove_ms, 4),
        verify_path_ms=round(path_ms, 4),
        verify_receipt_ms=round(receipt_ms, 4),
        consistency_hashes=max(len(path) for path in steps),
        prove_consistency_ms=round(steps_ms, 4),
        verify_consistency_ms=round(step_ms, 4),
    )


def full_check(ledger: SqliteLedger) -> dict[str, object]:
    """Derive everything anew."""
    start = time.perf_counter()
    found = ledger.check()
    seconds = time.perf_counter() - start
    return row(
        "full check",
        entries=found.size,
        checkpoints=found.checkpoints,
        seconds=round(seconds, 3),
        per_second=round(found.size / seconds),
        file_bytes=ledger.path.stat().st_size,
    )


def main() -> None:
    """Run all measurements and append their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=".", help="measure on this folder's file system")
    parser.add_argument("--entries", type=int, default=1_000_000, help="size for the proofs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows = [singles(folder, journal, 400) for journal in ("TRUNCATE", "DELETE", "WAL")]
        with SqliteLedger.create(folder / "large.sqlite", "bench.example/log") as ledger:
            rows.append(batches(ledger, 1000, 10))
            rows.append(batches(ledger, 10_000, (options.entries - 10_000) // 10_000))
            rows.append(batches(ledger, 1000, 10))
            rows.append(proofs(ledger, 1000))
            rows.append(full_check(ledger))
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(made) + "\n" for made in rows)


if __name__ == "__main__":
    main()
