"""`earmark trace`: name the customer whose copy leaked, or say that it cannot be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark.cli import options
from earmark.cli.license import copy_name, held_licenses, tracing_keys
from earmark.cli.output import emit_outcome, line, table
from earmark.codec import Json
from earmark.errors import CarrierError, UsageError
from earmark.records import License, Outcome, now
from earmark.vault import Vault
from earmark.wording import counted

if TYPE_CHECKING:
    from earmark.hosts.access import Host
    from earmark.hosts.files import FilesHost
    from earmark.keys.secret import Key
    from earmark.locks.tracing import Trace
    from earmark.report.locks import Leak

    Fleet = tuple[Key, dict[str, License]]


_ORDER = (
    "neurons were read as they come; if they may have been reordered: --parent MODEL --task task.py"
)


@click.command("trace", epilog="Example:  earmark trace leak.safetensors --vault vault")
@click.argument("suspect", type=click.Path(path_type=Path))
@click.option(
    "--forms",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Forms of the suspect that you tried in all; each is charged.",
)
@click.option(
    "--parent",
    type=click.Path(path_type=Path),
    help="The model that the copies were made from: undo reordered and rescaled neurons first; "
    "needs --task.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a page about the leak here.")
@click.option("--force", is_flag=True, help="Replace a report that is there already.")
@options.task_option
@options.vault_option
@options.passphrase_option
@options.json_option
def command(
    *,
    suspect: Path,
    forms: int,
    parent: Path | None,
    report: Path | None,
    force: bool,
    task_path: Path | None,
    vault_path: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> int:
    """Name the customers whose copies a SUSPECT was made from.

    Reads the fingerprint in the weights; no data and no serial number are needed. An innocent
    customer is named with a probability below one in a million, whatever the others did. Exit
    codes: 0 somebody is named, 3 it cannot be told.
    """
    from earmark.locks.tracing import NAMED_BITS
    from earmark.report.locks import leak_page
    from earmark.report.page import write_page

    options.require_free(report, force=force)
    vault = Vault.open(vault_path)
    fleets = _fleets(vault, passphrase_file)
    vault.close()
    forms *= len(fleets) * (1 if parent is None else 2)
    try:
        found, copies = _traced(suspect, parent, task_path, fleets, forms)
    except CarrierError as error:
        lines = [line("CANNOT TELL", error.what)]
        lines += [line("report", "none is written: nothing could be read")] if report else []
        payload: dict[str, Json] = {"reason": error.what, "ranking": [], "report": None}
        return emit_outcome("trace", lines, payload, Outcome.INCONCLUSIVE, as_json=as_json)
    named = {item.name for item in found.named}
    rows = [
        [copies[item.name].customer, copies[item.name].serial, f"{item.bits:.1f}", mark]
        for item in found.ranking[:10]
        for mark in ("<- named" if item.name in named else "",)
    ]
    people = ", ".join(sorted({copies[name].customer for name in named}))
    tried = f"{counted(len(copies), 'copy', 'copies')}, {counted(forms, 'form')}"
    head = line("NAMED", people) if named else line("CANNOT TELL", "nobody's copy stands out")
    lines = [
        head,
        *table(rows, head=["customer", "license", "bits", ""]),
        line("asked for", f"{NAMED_BITS:g} bits net of {tried}"),
        line("read", f"{found.read} of {found.length} bits of the code"),
        *(line("note", note) for note in found.notes),
        *([] if named or parent else [line("order", _ORDER)]),
        line("says not", "that anybody who is not named is innocent"),
    ]
    if report is not None:
        page = leak_page(_page(suspect, found, copies, forms))
        write_page(report, page, overwrite=force)
        lines.append(line("report", f"{report} written"))
    payload = {
        "named": [*sorted(named)],
        "ranking": [{"copy": item.name, "bits": item.bits} for item in found.ranking],
        "threshold": NAMED_BITS,
        "read": found.read,
        "length": found.length,
        "report": None if report is None else str(report),
    }
    return emit_outcome("trace", lines, payload, found.outcome, as_json=as_json)


def _page(suspect: Path, found: Trace, copies: Mapping[str, License], forms: int) -> Leak:
    from earmark.report.locks import Leak, Suspicion

    named = {item.name for item in found.named}
    ranking = [
        Suspicion(
            copies[item.name].customer,
            copies[item.name].serial,
            item.bits,
            named=item.name in named,
        )
        for item in found.ranking[: max(10, len(named))]
    ]
    return Leak(
        suspect.name,
        now(),
        ranking,
        found.threshold,
        customers=len(copies),
        forms=forms,
        read=found.read,
        length=found.length,
        notes=found.notes,
    )


def _fleets(vault: Vault, passphrase_file: Path | None) -> list[Fleet]:
    """Return the tracing keys, one a network, with the copies whose licenses commit to each.

    Raises:
        UsageError: No copy bears a fingerprint.
    """
    from earmark.locks.license import Issuer

    held = [item.record for item in held_licenses(vault) if isinstance(item.record, License)]
    if not held:
        raise UsageError("This vault has issued no licenses, so nobody can be named.")
    phrase = options.passphrase(passphrase_file)
    issuer = Issuer(vault.identity(phrase))
    offers = [issuer.offer(one.customer, model=one.model, number=one.serial) for one in held]
    found = []
    for key, commitment in tracing_keys(vault, phrase):
        copies = {
            copy_name(one.serial, one.customer): one
            for one, offer in zip(held, offers, strict=True)
            if one.commitment == offer.commitment(commitment)
        }
        if copies:
            found.append((key, copies))
    if not found:
        raise UsageError(
            "No copy of this vault was fingerprinted, so nobody can be named.",
            hint="Issue copies with:  earmark license issue",
        )
    return found


def _traced(
    suspect: Path, parent: Path | None, task_path: Path | None, fleets: list[Fleet], forms: int
) -> tuple[Trace, Mapping[str, License]]:
    """Trace a suspect by the keys of all networks; return what says most, with its copies.

    Raises:
        CarrierError: The suspect has the tensors of none of them.
        UsageError: There is no task, or the parent is none of the networks, or a customer's copy.
    """
    from earmark.hosts.files import FilesHost
    from earmark.locks.tracing import fits, trace

    host: Host = FilesHost(suspect)
    if parent is not None:
        if task_path is None:
            raise UsageError("--parent needs --task, the task file with model().")
        first = FilesHost(parent)
        fleets = [fleet for fleet in fleets if fits(first, fleet[0])]
        if not fleets:
            raise UsageError(f"'{parent}' is no network of which copies were fingerprinted.")
        host = _aligned(host, first, task_path, fleets)
    found, problem = [], None
    for key, copies in fleets:
        try:
            found.append((trace(host, key, list(copies), forms=forms), copies))
        except CarrierError as error:
            problem = error
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda item: item[0].ranking[0].bits)


def _aligned(suspect: Host, parent: FilesHost, task_path: Path, fleets: list[Fleet]) -> Host:
    """Align a suspect to the copies' parent.

    Raises:
        UsageError: The parent is a customer's copy: whatever is aligned to a codeword comes to
            resemble it, and its customer would be named for strangers' models.
    """
    from earmark.hosts.align import align
    from earmark.hosts.graph import channels
    from earmark.locks.tracing import trace
    from earmark.task import load_task

    for key, copies in fleets:
        borne = trace(parent, key, list(copies)).named
        if borne:
            raise UsageError(
                f"'{parent.path}' bears the fingerprint of copy {borne[0].name}.",
                expected="The model that the copies were made from, without a fingerprint.",
                hint="Aligned to a customer's copy, models of strangers come to bear his codeword.",
            )
    return align(suspect, parent, channels(load_task(task_path).model()))
