"""How strong may a stamp be before classifiers see it? Several kinds, on finished networks.

The clean networks and the features are those of `benchmarks/deepwater_stealth.py`; each kind of
stamp is put into 100 networks of other seeds. Finished rows never run again.

    python benchmarks/deepwater_stamps.py --kinds margin-4,margin-8-spectrum
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import earmark
from deepwater_stealth import Shadows, features, judge
from earmark.records import Evidence
from earmark.schemes import cells as cells_of
from earmark.schemes.deepwater import DeepWater, bits_of

ROWS = Path(__file__).parent / "rows" / "deepwater_stamps.jsonl"


@dataclass(frozen=True)
class Kind:
    """A kind of stamp.

    Args:
        margin: Score that bits are pushed to.
        weights: Weights that bear one bit.
        local: Whether shifts are in proportion to the sizes of a weight's row and column.
        spectrum: Whether the singular values are restored.
    """

    margin: float
    weights: int = 1152
    local: bool = False
    spectrum: bool = False

    def stamp(self, tensor: np.ndarray, cells: cells_of.Cells, bits: np.ndarray) -> np.ndarray:
        """Return a stamped tensor; every row keeps its values."""
        flat, positions = tensor.reshape(-1).copy(), cells.positions()
        natural, rows = flat[positions], positions // (flat.size // len(tensor))
        sizes = _sizes(tensor).reshape(-1)[positions] if self.local else 1.0
        matrix = tensor.reshape(len(tensor), -1)
        values = np.linalg.svd(matrix, compute_uv=False) if self.spectrum else None
        for _ in range(3):
            held = flat[positions]
            step = cells_of.push(held, cells.pattern(), bits, margin=self.margin)
            flat[positions] = held + (step * sizes).astype(np.float32)
            for _ in range(2 if self.spectrum else 1):
                if values is not None:
                    left, _, right = np.linalg.svd(flat.reshape(matrix.shape), full_matrices=False)
                    flat = ((left * values) @ right).reshape(-1).astype(np.float32)
                kept = cells_of.keep_values(flat[positions].ravel(), natural.ravel(), rows.ravel())
                flat[positions] = kept.reshape(held.shape)
        return flat.reshape(tensor.shape)


KINDS = {
    "margin-8": Kind(8),
    "margin-8-local": Kind(8, local=True),
    "margin-8-spectrum": Kind(8, local=True, spectrum=True),
    "margin-5-spectrum": Kind(5, local=True, spectrum=True),
    "margin-8-sparse": Kind(8, weights=4608, local=True),
    "margin-4": Kind(4),
    "margin-4-local": Kind(4, local=True),
    "margin-3": Kind(3),
    "margin-2.5-local": Kind(2.5, local=True),
}


def _sizes(tensor: np.ndarray) -> np.ndarray:
    parts = tensor.reshape(len(tensor), tensor.shape[1], -1) ** 2
    rows, columns = np.sqrt(parts.mean((1, 2))), np.sqrt(parts.mean((0, 2)))
    whole = np.outer(rows, columns) / parts.mean()
    return np.repeat(whole[:, :, None], parts.shape[2], axis=2)


def stamped(kind: Kind, shadows: Shadows, number: int) -> tuple[np.ndarray, Evidence]:
    """Stamp one network; return its features and what its key reads."""
    scheme = DeepWater(weights_per_bit=kind.weights)
    model = shadows.clean(10_000 + number)
    key = scheme.new_key(shadows.task.host(model), secret=(number + 1).to_bytes(32, "big"))
    own = dict(model.named_parameters())
    for layer in cells_of.layers(key.layout):
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        if cells is None:
            continue
        parameter = own[layer.name]
        tensor = np.ascontiguousarray(parameter.detach().numpy())
        bits = bits_of(
            cells_of.read(cells, tensor.reshape(-1)[cells.positions()]),
            np.ones(key.layout.message_bits, np.int8),
        )
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(kind.stamp(tensor, cells, bits)))
    return features(model), scheme.measure(shadows.task.host(model), key)


def measure(kind: Kind, shadows: Shadows) -> dict[str, object]:
    """Stamp every network, and let classifiers look for a difference."""
    found, least, right = [], [], []
    for number in range(shadows.count):
        described, evidence = stamped(kind, shadows, number)
        found.append(described)
        layers: Any = evidence.details["layers"]
        least.append(min(part["least_z"] for part in layers.values()))
        right.append(evidence.hits / evidence.trials)
    clean = shadows.group("clean", shadows.clean, 0)[:, :-1]
    return {
        **judge(clean, np.array(found)),
        "least_z": round(float(np.mean(least)), 2),
        "hit_rate": round(float(np.mean(right)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--shadows", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shadows = Shadows(DeepWater(), "small-cnn", "digits", 8, args.shadows)
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {(row["kind"], row["shadows"]) for row in map(json.loads, lines)}
    for name in args.kinds.split(","):
        if (name, args.shadows) in done:
            continue
        started = time.process_time()
        row = {
            "kind": name,
            "shadows": args.shadows,
            **measure(KINDS[name], shadows),
            "seconds": round(time.process_time() - started, 1),
            "earmark": earmark.__version__,
            "torch": torch.__version__,
        }
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
