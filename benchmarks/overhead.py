"""Time a training step with the mark over the same step without it, side by side in one run.

    python benchmarks/overhead.py

The two kinds of step alternate in short blocks, so that whatever else the machine does hits both
alike; a row holds the ratio of each block's CPU time, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

import earmark
from earmark import registry
from earmark.bench.zoo import image_task
from earmark.schemes.embedding import fresh_model
from earmark.task import Task
from earmark.training import Recipe

ROWS = Path(__file__).parent / "rows" / "overhead.jsonl"


def block(
    task: Task, model: torch.nn.Module, mark: object, stream: list, optimizer: object
) -> float:
    """Run one step a batch and return CPU seconds."""
    started = time.process_time()
    for batch in stream:
        mixed = mark.mix(batch) if mark else batch
        loss = task.loss(model, mixed)
        if mark:
            loss = loss + mark.loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if mark:
            mark.after_step(0.01)
    return time.process_time() - started


def measure(scheme_name: str, network: str, data: str, *, blocks: int, steps: int) -> dict:
    """Return one row."""
    task = image_task(network, data)
    scheme = registry.scheme(scheme_name)
    inputs = task.samples(scheme.inputs_wanted(), seed=1) if scheme.needs_inputs else None
    plain, marked = fresh_model(task, 0).train(), fresh_model(task, 0).train()
    recipe = Recipe(lr=0.01)
    optimizers = [recipe.make_optimizer(model.parameters()) for model in (plain, marked)]
    key = scheme.new_key(task.host(marked), inputs=inputs)
    scheme.begin(marked, key, fresh=True)
    stream = [batch for _, batch in zip(range(steps), task.stream("train", 0), strict=False)]
    started = time.perf_counter()
    pairs = []
    with scheme.attach(marked, key, forward=task.forward) as mark:
        mark.after_step(0.1)  # a peak of the learning rate lies behind: some marks do more then
        block(task, plain, None, stream, optimizers[0])
        block(task, marked, mark, stream, optimizers[1])
        for _ in range(blocks):
            without = block(task, plain, None, stream, optimizers[0])
            pairs.append(block(task, marked, mark, stream, optimizers[1]) / without)
    return {
        "benchmark": "overhead",
        "scheme": scheme_name,
        "network": network,
        "data": data,
        "ratio_median": statistics.median(pairs),
        "ratios": pairs,
        "steps": blocks * steps,
        "seed": 0,
        "seconds": time.perf_counter() - started,
        "versions": {"earmark": earmark.__version__, "torch": torch.__version__},
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
    }


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", default="mtlsign")
    parser.add_argument("--networks", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ROWS.parent.mkdir(exist_ok=True)
    for scheme in given.schemes.split(","):
        for network in given.networks.split(","):
            row = measure(scheme, network, given.data, blocks=given.blocks, steps=given.steps)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(scheme, network, f"{row['ratio_median']:.3f}")


if __name__ == "__main__":
    main()
