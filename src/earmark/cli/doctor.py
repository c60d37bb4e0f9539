"""`earmark doctor`: versions, extras, devices and the self-test vectors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re

import click

from earmark import registry
from earmark.cli.options import json_option
from earmark.cli.output import emit, line
from earmark.codec import Json
from earmark.errors import RunError
from earmark.keys.stream import KeyStream
from earmark.stats import log2_binomial_tail

_PACKAGES = (
    "click", "cryptography", "rfc8785", "segno", "numpy", "torch", "safetensors", "scikit-learn",
)  # fmt: skip


def self_test() -> dict[str, bool]:
    """Run the self-test vectors: keyed stream, exact tail."""
    from fractions import Fraction

    return {
        "keyed stream": KeyStream(bytes(32), "doctor").bytes(8).hex() == VECTOR,
        "exact tail": log2_binomial_tail(512, 512, Fraction(1, 2)) == -512.0,
    }


def extras() -> dict[str, list[str]]:
    """Return the package's extras, each with what it lacks here."""
    found: dict[str, list[str]] = {}
    try:
        wants = importlib.metadata.requires("earmark") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return found
    for wanted in wants:
        name, _, condition = wanted.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)", condition)
        package = re.match(r"[\w.-]+", name)
        if extra is None or package is None or extra[1] == "all":
            continue
        lacking = found.setdefault(extra[1], [])
        try:
            importlib.metadata.version(package[0])
        except importlib.metadata.PackageNotFoundError:
            lacking.append(package[0])
    return found


def devices() -> list[str]:
    """Name what PyTorch can compute on, or nothing where it is not there or does not load."""
    try:
        import torch
    except (ImportError, OSError):
        return []
    cards = [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


VECTOR = "80d1960e90f812b9"


@click.command("doctor", epilog="Example:  earmark doctor --json")
@json_option
def command(*, as_json: bool) -> int:
    """Show versions, extras and devices, and run the self-test."""
    versions = {"python": platform.python_version()}
    for name in ("earmark", *_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    checks = self_test()
    lines = [line(name, value) for name, value in versions.items()]
    found, usable = extras(), devices()
    for name, lacking in found.items():
        install = f'lacks {", ".join(lacking)}   pip install "earmark[{name}]"'
        lines.append(line(f"extra {name}", install if lacking else "installed"))
    lines.append(line("cores", str(os.cpu_count())))
    lines.append(line("devices", ", ".join(usable) or "none: PyTorch is not there"))
    for kind in ("scheme", "lock", "attack"):
        lines.append(line(f"{kind}s", str(len(registry.names(kind)))))
    lines += [line(name, "ok" if good else "FAILED") for name, good in checks.items()]
    if not all(checks.values()):
        raise RunError("The self-test failed: this installation must not be used for evidence.")
    if versions["torch"] == "not installed":
        lines.append('To protect and verify with activations:  pip install "earmark[torch]"')
    payload: dict[str, Json] = {
        "versions": dict(versions),
        "extras": {name: not lacking for name, lacking in found.items()},
        "devices": [*usable],
        "checks": dict(checks),
    }
    return emit("doctor", lines, payload, as_json=as_json)
