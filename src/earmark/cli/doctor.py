"""`earmark doctor`: versions, extras and the self-test vectors."""

from __future__ import annotations

import importlib.metadata
import os
import platform

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
    lines.append(line("cores", str(os.cpu_count())))
    for kind in ("scheme", "lock", "attack"):
        lines.append(line(f"{kind}s", str(len(registry.names(kind)))))
    lines += [line(name, "ok" if good else "FAILED") for name, good in checks.items()]
    if not all(checks.values()):
        raise RunError("The self-test failed: this installation must not be used for evidence.")
    if versions["torch"] == "not installed":
        lines.append('To protect and verify with activations:  pip install "earmark[torch]"')
    listed: Json = dict(versions)
    return emit("doctor", lines, {"versions": listed, "checks": dict(checks)}, as_json=as_json)
