"""Stamp and verify a checkpoint of seven billion parameters, and read it beside that.

The checkpoint is laid out like a decoder-only language model and written shard by shard, in bf16,
with random weights whose spread and tails are like those of trained ones. Every phase runs in a
process of its own, whose peak memory is recorded; files are put out of the page cache before each
reading.

    python benchmarks/deepwater_scale.py --folder scale
    python benchmarks/deepwater_scale.py --folder scale --layers 2 --repeat 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import earmark
from earmark.hosts import direct as past
from earmark.hosts import tensorfile
from earmark.hosts.files import FilesHost
from earmark.keys.secret import Key
from earmark.policy import log2_p
from earmark.schemes.deepwater import DeepWater, stamp_files

ROWS = Path(__file__).parent / "rows" / "deepwater_scale.jsonl"
WIDTH, INNER, WORDS = 4096, 11008, 32000
SECRET = bytes(range(32))


def shapes(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors of each shard."""
    found: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (WORDS, WIDTH)}]
    for i in range(layers):
        stem = f"model.layers.{i}"
        part: dict[str, tuple[int, ...]] = {
            f"{stem}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"
        }
        part[f"{stem}.mlp.gate_proj.weight"] = part[f"{stem}.mlp.up_proj.weight"] = (INNER, WIDTH)
        part[f"{stem}.mlp.down_proj.weight"] = (WIDTH, INNER)
        part[f"{stem}.input_layernorm.weight"] = (WIDTH,)
        part[f"{stem}.post_attention_layernorm.weight"] = (WIDTH,)
        if i % 3 == 0:
            found.append(part)
        else:
            found[-1] |= part
    found.append({"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)})
    return found


def write(folder: Path, layers: int) -> dict[str, Any]:
    """Write the checkpoint."""
    rng = np.random.default_rng(0)
    noise = (0.02 * 0.8 * rng.standard_t(6, 1 << 24)).astype(np.float32)
    pool = np.frombuffer(tensorfile.encode(noise, "BF16"), "<u2")
    folder.mkdir(parents=True, exist_ok=True)
    parts = shapes(layers)
    index = {}
    total = 0
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        with (folder / file).open("wb") as out:
            header = {name: ("BF16", shape) for name, shape in part.items()}
            out.write(tensorfile.header_bytes(header, {"format": "pt"}))
            for name, shape in part.items():
                index[name] = file
                left = int(np.prod(shape))
                total += left
                while left:
                    start = int(rng.integers(0, len(pool) - 1))
                    piece = pool[start : start + min(left, 1 << 22)]
                    out.write(piece.tobytes())
                    left -= len(piece)
    body = {"metadata": {"total_size": 2 * total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))
    return {"parameters": total}


def make_key(folder: Path) -> Key:
    return DeepWater().new_key(FilesHost(folder), secret=SECRET)


def stamp(folder: Path, target: Path) -> dict[str, Any]:
    """Stamp the checkpoint, shard by shard."""
    stamp_files(DeepWater(), folder, target, make_key(folder))
    return {}


def verify(folder: Path) -> dict[str, Any]:
    """Measure the whole way: headers, weights, digest and the evidence's tail."""
    evidence = DeepWater().measure(FilesHost(folder), make_key(folder))
    return {"hits": evidence.hits, "trials": evidence.trials, "bits": round(-log2_p(evidence), 1)}


def read(folder: Path) -> dict[str, Any]:
    """Read the same bytes and do nothing with them."""
    return {"bytes": sum(len(piece) for piece in pieces(folder))}


def direct(folder: Path) -> dict[str, Any]:
    """Read the same bytes past the page cache, as verification does."""
    size, buffer = 1 << 24, past.buffer(1 << 24)
    for path in sorted(folder.glob("*.safetensors")):
        with closing(past.Source(path, past_cache=True)) as source:
            at = 0
            while got := len(source.read(buffer, at, size)):
                at += got
    return {}


def digest(folder: Path) -> dict[str, Any]:
    """Read the same bytes and hash them, as whoever says which file he means has to."""
    state = hashlib.sha256()
    for piece in pieces(folder):
        state.update(piece)
    return {}


def pieces(folder: Path) -> Iterator[memoryview]:
    """Yield a folder's bytes."""
    buffer = memoryview(bytearray(1 << 24))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                yield buffer[:got]


def forget(folder: Path) -> None:
    """Put a folder's files out of the page cache."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def phase(name: str, act: Callable[..., dict[str, Any]], *args: Path | int) -> dict[str, Any]:
    """Run a phase in a process of its own and return what it took."""
    mailbox: Any = multiprocessing.get_context("spawn").SimpleQueue()
    process = multiprocessing.get_context("spawn").Process(
        target=_inside, args=(mailbox, act, args)
    )
    process.start()
    found: dict[str, Any] = mailbox.get()
    process.join()
    print(name, found, flush=True)
    return {f"{name}_{key}": value for key, value in found.items()}


def _inside(mailbox: Any, act: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    started, busy = time.perf_counter(), time.process_time()
    found = act(*args)
    found["seconds"] = round(time.perf_counter() - started, 2)
    found["cpu_seconds"] = round(time.process_time() - busy, 2)
    found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    mailbox.put(found)


PHASES = {"read": read, "direct": direct, "digest": digest, "verify": verify}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="an empty place; removed after")
    parser.add_argument("--layers", type=int, default=34)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    plain, marked = args.folder / "plain", args.folder / "marked"
    try:
        row = phase("write", write, plain, args.layers)
        forget(plain)
        row |= phase("stamp", stamp, plain, marked)
        forget(plain)
        row |= {f"null_{key}": value for key, value in phase("verify", verify, plain).items()}
        shutil.rmtree(plain, ignore_errors=True)
        pairs = []
        for _ in range(args.repeat):
            found: dict[str, Any] = {}
            for name, act in PHASES.items():
                forget(marked)
                found |= phase(name, act, marked)
            pairs.append(found)
            row |= found

        def middle(one: str, other: str) -> float:
            return round(statistics.median(pair[one] / pair[other] for pair in pairs), 3)

        row |= {
            "phases": list(PHASES),
            "seconds": [[pair[f"{name}_seconds"] for name in PHASES] for pair in pairs],
            "cpu_seconds": [[pair[f"{name}_cpu_seconds"] for name in PHASES] for pair in pairs],
            "ratio_median": middle("verify_seconds", "read_seconds"),
            "ratio_best": min(
                round(pair["verify_seconds"] / pair["read_seconds"], 3) for pair in pairs
            ),
            "direct_ratio_median": middle("verify_seconds", "direct_seconds"),
            "digest_ratio_median": middle("digest_seconds", "read_seconds"),
            "cpu_ratio_median": middle("verify_cpu_seconds", "read_cpu_seconds"),
            "hash_ratio_median": middle("verify_cpu_seconds", "digest_cpu_seconds"),
            "layers": args.layers,
            "earmark": earmark.__version__,
            "load": round(os.getloadavg()[0], 2),
            "machine": f"{os.cpu_count()} x {platform.machine()}",
        }
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
