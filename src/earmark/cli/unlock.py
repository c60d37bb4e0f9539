"""`earmark unlock`: open a locked copy, or refuse loudly."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import files
from earmark.cli.options import json_option
from earmark.cli.output import emit, line
from earmark.codec import Json
from earmark.errors import FormatError, LicenseError, UsageError

if TYPE_CHECKING:
    from earmark.locks.license import Signed

ENV_SERIAL = "EARMARK_SERIAL"
_NEEDS = "its number to answer: load it with earmark.hosts.front.load_copy (docs/concepts/locks.md)"


@click.command(
    "unlock",
    epilog="Example:  earmark unlock acme.locked --license acme.locked.license "
    "--issuer 5d0e… --serial-file acme.locked.serial -o acme.safetensors",
)
@click.argument("locked", type=click.Path(path_type=Path))
@click.option("--license", "license_path", type=click.Path(path_type=Path), required=True)
@click.option("--issuer", required=True, help="The issuer's public key, as he gave it to you.")
@click.option(
    "--serial-file",
    type=click.Path(path_type=Path),
    help=f"File with the serial number; else ${ENV_SERIAL}, else you are asked.",
)
@click.option("--feature", help="Refuse a license that does not grant this feature.")
@click.option(
    "--ledger",
    "ledger_path",
    type=click.Path(path_type=Path),
    help="A copy of the issuer's ledger, to refuse revoked licenses.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the weights go.")
@click.option("--check", "only_check", is_flag=True, help="Check everything, write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@json_option
def command(
    *,
    locked: Path,
    license_path: Path,
    issuer: str,
    serial_file: Path | None,
    feature: str | None,
    ledger_path: Path | None,
    output: Path | None,
    only_check: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Open a LOCKED copy with its license and serial number.

    Refuses an edited, expired or revoked license, one of another issuer or for another copy, and a
    wrong or mistyped number. Nothing is written then.
    """
    from earmark.locks import license as licenses
    from earmark.locks.serial import parse_serial

    if (output is None) == (not only_check):
        raise UsageError("Say where the weights go with -o, or pass --check.")
    if len(issuer) != 64 or set(issuer) - set("0123456789abcdef"):
        raise UsageError("--issuer is no public key.", expected="64 hexadecimal digits.")
    signed = licenses.read(str(license_path))
    signed.verify(issuer)
    void = frozenset[int]() if ledger_path is None else _void(ledger_path, signed, issuer)
    record = licenses.check(signed, issuer=issuer, void=void, feature=feature)
    serial = parse_serial(_serial(serial_file))
    data = files.read_bytes(locked, limit=1 << 34)
    try:
        weights = licenses.unlock(data, signed, serial, issuer=issuer, void=void, feature=feature)
    except (FormatError, LicenseError) as error:
        what = f"'{locked}' was not opened with '{license_path}'. {error.what}"
        raise type(error)(what, expected=error.expected, hint=error.hint) from error
    if output is not None:
        files.write_bytes(output, weights, overwrite=force, mode=0o600)
    checked = "not checked: pass --ledger" if ledger_path is None else f"none in '{ledger_path}'"
    lines = [
        line("license", f"#{record.serial} for '{record.customer}', until {record.not_after}"),
        line("revocation", checked),
        line("weights", f"{output} written" if output else "open; nothing written"),
    ]
    fronted = _has_front(weights)
    if fronted:
        lines.append(line("needs", _NEEDS))
    payload: dict[str, Json] = {
        "license": record.to_json(),
        "revocation_checked": ledger_path is not None,
        "output": None if output is None else str(output),
        "needs_number": fronted,
    }
    return emit("unlock", lines, payload, as_json=as_json)


def _has_front(weights: bytes) -> bool:
    """Tell whether a safetensors header names a front's tensors: such a copy needs its number."""
    size = int.from_bytes(weights[:8], "little")
    return b'"input_front_' in weights[8 : 8 + min(size, 1 << 24)]


def _void(path: Path, signed: Signed, issuer: str) -> frozenset[int]:
    """Return what a ledger says was revoked; refuse one that has never heard of the license."""
    from earmark.ledger.log import SqliteLedger
    from earmark.locks.license import announced, revoked

    with SqliteLedger.open(path, readonly=True) as ledger:
        ledger.check()
        entries = [data for _, data in ledger.scan()]
    if not announced(entries, signed, issuer):
        raise LicenseError(
            f"Ledger '{path}' does not hold this license, so it cannot say if it was revoked.",
            hint="Fetch the issuer's ledger anew: it is another's, or older than the license.",
        )
    return frozenset(revoked(entries, issuer))


def _serial(path: Path | None) -> str:
    if path is not None:
        return files.read_bytes(path, limit=1 << 12).decode("utf-8", "replace").strip()
    if ENV_SERIAL in os.environ:
        return os.environ[ENV_SERIAL]
    if not sys.stdin.isatty():
        raise UsageError(
            "No serial number was given.",
            expected=f"${ENV_SERIAL} or --serial-file when nobody can be asked.",
        )
    return str(click.prompt("Serial number", hide_input=True, err=True))
