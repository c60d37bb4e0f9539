"""Measure the lock: what it costs, how it refuses, and where it falls.

Run it again and it goes on where it stopped: finished cells stand in the rows file, trained models
in the cache folder.

    python benchmarks/dsn.py numbers,curve --network mlp-128 --epochs 30 --seeds 0-4
    python benchmarks/dsn.py search --network small-cnn --images 10000 --epochs 20 --seeds 0
    python benchmarks/dsn.py numbers --network reader --data topics --epochs 40 --seeds 0-4
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dsn_attacks import distil, excise, overwrite, search, transfer, tune
from dsn_bench import Bench, Row, accuracy_of, measure, options, shares_of
from dsn_customers import WAYS, copies, customers, odd_values
from earmark.locks.entry import Entry, Tokens, code_of, random_codes

ROWS = Path(__file__).parent / "rows" / "dsn.jsonl"


def numbers(b: Bench) -> Iterator[Row]:
    """D1 to D3: right, absent, random, near, relaxed and broken numbers."""
    bits = b.layout.message_bits
    teacher = b.work.teacher.evaluate(b.teacher)
    right = b.accuracy(b.code)
    yield {
        "what": "D1",
        "teacher": teacher,
        "valid": right,
        "lost": teacher - right,
        "absent": b.accuracy(None),
        "chance": b.chance,
        "bits": bits,
    }
    generator = torch.Generator().manual_seed(b.seed)
    codes = random_codes(b.args.draws, bits, generator)
    yield {"what": "D2 random codes at the right place"} | b.worst(codes[(codes != b.code).any(1)])
    draw = random.Random(b.seed)
    serials = [draw.randbytes(16) for _ in range(b.args.draws // 20)]
    yield {"what": "D2 random serial numbers"} | _serials(b, serials)
    yield from near(b, right)


def _serials(b: Bench, serials: list[bytes]) -> Row:
    """Try whole serial numbers, each at its own places, where they are not the right code."""
    bits, found = len(b.code), []
    for serial in serials:
        code, entry = code_of(serial, bits), b.lock.entry(b.layout, serial)
        if torch.equal(code, b.code) and _same(entry, b.entry):
            continue
        found.append(accuracy_of(b.model, entry, b.x[:100], b.y[:100], code))
    return {"tried": len(found), "worst": max(found), "mean": statistics.mean(found)}


def _same(one: Entry, other: Entry) -> bool:
    places = [getattr(entry, "places", torch.zeros(0)) for entry in (one, other)]
    return torch.equal(*places)


def near(b: Bench, valid: float) -> Iterator[Row]:
    bits = len(b.code)
    eye = 1 - 2 * torch.eye(bits)
    one = b.many(b.code * eye, 500)
    yield {
        "what": "D3 one wrong bit of the code",
        "tried": len(one),
        "worst": max(one),
        "mean": statistics.mean(one),
        "effective_bits": sum(a < (valid + b.chance) / 2 for a in one),
    }
    pairs = torch.combinations(torch.arange(bits))
    yield {"what": "D3 two wrong bits of the code"} | b.worst(
        b.code * eye[pairs[:, 0]] * eye[pairs[:, 1]]
    )
    number = int.from_bytes(b.serial, "big")
    neighbours = [number ^ 1 << i for i in range(128)]
    neighbours += [
        number ^ 1 << i ^ 1 << j
        for i, j in random.Random(b.seed).sample(
            [(i, j) for i in range(128) for j in range(i)], min(200, b.args.draws)
        )
    ]
    yield {"what": "D3 neighbours of the serial number, one and two bits"} | _serials(
        b, [item.to_bytes(16, "big") for item in neighbours]
    )
    if isinstance(b.entry, Tokens):
        odd = _odd_tokens(b)
    else:
        odd = {name: b.accuracy(values, 1000) for name, values in odd_values(b.code).items()}
    for name, accuracy in odd.items():
        yield {"what": "D3 other values", "values": name, "accuracy": accuracy}


def _odd_tokens(b: Bench) -> dict[str, float]:
    entry, bits = b.entry, len(b.code)
    assert isinstance(entry, Tokens)
    whole = b.code.view(-1, entry.width)
    odd = {
        "cut to half": whole[: len(whole) // 2],
        "one token short": whole[:-1],
        "one token more": torch.cat([whole, whole[:1]]),
        "given twice": torch.cat([whole, whole]),
        "backwards": whole.flip(0),
        "turned by one": whole.roll(1, 0),
        "inverted": -whole,
    }
    found = {}
    for name, values in odd.items():
        way = Tokens(first=entry.first, width=entry.width, bits=values.numel())
        given = values.flatten() if values.numel() != bits else values.reshape(bits)
        found[name] = accuracy_of(b.model, way, b.x[:1000], b.y[:1000], given)
    return found


def curve(b: Bench) -> Iterator[Row]:
    """Accuracy by Hamming distance, false acceptance, and width of the basin."""
    bits, generator = len(b.code), torch.Generator().manual_seed(b.seed)
    for distance in [n for n in (*range(9), 12, 16, 24, 32, 48, bits) if n <= bits]:
        rank = torch.rand(32, bits, generator=generator).argsort(1).argsort(1)
        found = b.many(torch.where(rank < distance, -b.code, b.code), 200)
        yield {
            "what": "Hamming curve",
            "distance": distance,
            "mean": statistics.mean(found),
            "worst": max(found),
        }
    opened, tried = 0, 0
    half = (b.accuracy(b.code, 1000) + b.chance) / 2
    probes = probes_of(b)
    for _ in range(b.args.stamps // 2000):
        codes = random_codes(2000, bits, generator)
        codes = codes[(codes != b.code).any(1)]
        rows = _answers(b, codes, probes) >= half
        tried += len(codes)
        if bool(rows.any()):
            opened += sum(a >= half for a in b.many(codes[rows], 50))
    bound = 3 / tried if not opened else (opened + 3 * opened**0.5 + 3) / tried
    yield {"what": "false acceptance", "opened": opened, "tried": tried, "bound_95": bound}
    if isinstance(b.entry, Tokens):
        return
    steps = torch.linspace(0, 1, 41)
    starts, widths = random_codes(16, bits, generator), []
    for start in starts:
        found = b.many(torch.stack([(1 - t) * start + t * b.code for t in steps]), 100)
        inside = [float(t) for t, a in zip(steps, found, strict=True) if a > half]
        widths.append(1 - min(inside, default=1.0))
    yield {"what": "basin width", "worst": max(widths), "mean": statistics.mean(widths)}


def probes_of(b: Bench) -> torch.Tensor:
    """Return four test samples that the right number answers rightly, of four labels if it can."""
    with torch.no_grad():
        x, y = b.x[:200], b.y[:200].flatten()
        best = b.entry.scores(b.model(b.entry.present(x, b.code))).argmax(1)
    if b.y.ndim > 1:
        return torch.arange(4)
    good = [i for i in range(len(y)) if best[i] == y[i]]
    chosen = {int(y[i]): i for i in reversed(good)}
    return torch.tensor([*chosen.values(), *good][:4])


def _answers(b: Bench, codes: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    """Return the accuracy in percent of each code on the four probes; few go any further."""
    x, y = b.x[probes], b.y[probes]
    with torch.no_grad():
        given = b.entry.present(
            x.repeat(len(codes), *[1] * (x.ndim - 1)), codes.repeat_interleave(4, 0)
        )
        best = b.entry.scores(b.model(given)).argmax(1)
    return 100 * (best.view(len(codes), -1) == y.flatten()).float().mean(1)


CELLS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "numbers": numbers,
    "curve": curve,
    "search": search,
    "tune": tune,
    "excise": excise,
    "distil": distil,
    "overwrite": overwrite,
    "transfer": transfer,
    "customers": customers,
    "copies": copies,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=lambda text: text.split(","), help=", ".join(CELLS))
    options(parser)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--stamps", type=int, default=100_000)
    parser.add_argument("--customers", type=int, default=100)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=WAYS)
    parser.add_argument("--trained", type=int, default=10)
    parser.add_argument("--short", type=int, default=3)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--restarts", type=int, default=10, help="of the evolution strategy")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--shares", type=shares_of, default=[1.0])
    torch.set_num_threads(1)
    args = parser.parse_args()
    for cell in args.cells:
        args.options = options_of(args, cell)
        measure(ROWS, args, cell, CELLS[cell])


def options_of(args: argparse.Namespace, cell: str) -> str:
    """Return the settings of one cell that tell its rows from others."""
    shares = ",".join(f"{share:g}" for share in args.shares)
    tries = f"{args.starts} starts, {args.steps} steps, {args.restarts} restarts"
    return {
        "search": f"shares {shares}, {tries}",
        "tune": f"shares {shares}",
        "overwrite": f"shares {shares}",
        "transfer": f"shares {shares}",
        "customers": f"{args.customers} and {args.trained}, {args.short} epochs each",
    }.get(cell, "")


if __name__ == "__main__":
    main()
