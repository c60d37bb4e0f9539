"""`earmark license`: issue, list, renew and revoke licenses of locked copies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import files
from earmark.cli import locking, options
from earmark.cli.output import emit, line, table
from earmark.codec import Json
from earmark.errors import CapacityError, UsageError
from earmark.locks.parent import Parent
from earmark.records import License, now
from earmark.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from earmark.keys.secret import Key
    from earmark.locks.license import Issuer, Revocation, Signed
    from earmark.task import Task

_UNMEASURED = "no; with --teacher it says what the copy's lock costs and where it falls short"
_TOO_SMALL = "This network is too small for a fingerprint: pass --no-fingerprint."


@click.group("license", epilog="Example:  earmark license list --vault vault")
def command() -> None:
    """Lock models; issue, list, renew and revoke licenses of locked copies."""


command.add_command(locking.command)


@command.command(
    "issue",
    epilog="Example:  earmark license issue release.safetensors --customer acme -o acme.locked",
)
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--customer", required=True, help="Who gets the copy.")
@click.option("--model", "model_name", default="", help="Name of the model; by default the file's.")
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True)
@click.option("--feature", "features", multiple=True, help="A granted feature; may be repeated.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--fingerprint/--no-fingerprint",
    default=True,
    show_default=True,
    help="Write the customer's codeword into the weights, so that a leak names him.",
)
@click.option(
    "--lock",
    "lock_path",
    type=click.Path(path_type=Path),
    help="WEIGHTS are a locked parent and this is its .lock file: give the copy its own number.",
)
@options.task_option
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="With --lock: your unlocked weights, to measure the copy beside, and to distil it from.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="With --teacher: distil the copy so long instead of giving the parent another number; "
    "two such copies and one number do not give the other.",
)
@click.option("--force", is_flag=True, help="Replace existing output files.")
@options.vault_option
@options.passphrase_option
@options.json_option
def issue(
    *,
    weights: Path,
    customer: str,
    model_name: str,
    days: int,
    features: tuple[str, ...],
    output: Path,
    fingerprint: bool,
    lock_path: Path | None,
    task_path: Path | None,
    teacher: Path | None,
    epochs: int | None,
    force: bool,
    vault_path: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> int:
    """Sign a license for a copy of WEIGHTS and encrypt the copy under its serial number.

    Writes OUTPUT (the locked copy), OUTPUT.license, and OUTPUT.serial, which is secret: send it
    another way than the copy. With --lock also OUTPUT.layout, which says how the network is given
    its number; with --teacher, says what the copy's lock costs and warns where it falls short.
    """
    from earmark.locks import license as licenses

    _require_lock(lock_path, {"--epochs": epochs, "--teacher": teacher, "--task": task_path})
    public = ["license", *(["layout"] if lock_path else [])]
    beside = [_beside(output, item) for item in ("serial", *public)]
    options.require_free(output, *beside, force=force)
    vault, phrase = Vault.open(vault_path), options.passphrase(passphrase_file)
    issuer = licenses.Issuer(vault.identity(phrase))
    number = _next_number(vault)
    name, trace, way, cost = model_name or weights.stem, None, "", None
    offer = issuer.offer(customer, model=name, number=number)
    with tempfile.TemporaryDirectory() as folder:
        if lock_path is not None:
            parent, task = Parent.read(lock_path), _task(task_path)
            offer = locking.fitting(issuer, parent, customer, name, number)
            place = Path(folder) / "own.safetensors"
            way = locking.copy_of(
                parent,
                weights,
                task,
                offer.serial,
                teacher=teacher,
                epochs=epochs,
                others=[_serial_of(issuer, held) for held in held_licenses(vault)],
                output=place,
            )
            weights = place
        copy = files.read_bytes(weights, limit=1 << 34)
        if fingerprint:
            key, trace = _tracing_key(vault, phrase, weights)
            copy = _fingerprinted(weights, key, copy_name(offer.grant.number, customer))
        if lock_path is not None and teacher is not None:
            cost = locking.cost_of(parent, task, teacher, copy, offer.serial)
    signed = issuer.issue(offer, copy, days=days, features=features, trace=trace)
    locked = licenses.wrap_copy(copy, signed, offer)
    _keep(vault, signed)
    receipt = vault.ledger.append(issuer.announce(signed).encode())
    vault.close()
    files.write_bytes(output, locked, overwrite=force)
    files.write_bytes(_beside(output, "license"), signed.encode(), overwrite=force)
    text = offer.text.encode() + b"\n"
    files.write_bytes(_beside(output, "serial"), text, overwrite=force, mode=0o600)
    if lock_path is not None:
        files.write_bytes(_beside(output, "layout"), parent.layout.canonical(), overwrite=force)
    record = _record(signed)
    lines = [
        line("license", f"#{record.serial} for '{customer}', until {record.not_after}"),
        line("copy", f"{output}   encrypted; opens with the serial number only"),
        line("to send", f"{output}, {', '.join(str(_beside(output, item)) for item in public)}"),
        line("serial number", f"{_beside(output, 'serial')}   secret; send it another way"),
        *([line("lock", f"a number of its own, {way}")] if way else []),
        *(locking.cost_lines(cost) if cost else [line("measured", _UNMEASURED)] if way else []),
        line("fingerprint", _traces(key) if trace else "none"),
        line("ledger", f"#{receipt.index}"),
        line("issuer", f"{issuer.public}   your customers need it to unlock"),
        line("says not", "that a customer cannot pass on what he has opened"),
    ]
    payload: dict[str, Json] = {"license": record.to_json(), "ledger": receipt.index}
    payload |= locking.cost_payload(cost) if cost else {}
    return emit("license", lines, payload, as_json=as_json)


def _require_lock(lock_path: Path | None, for_locks: Mapping[str, object]) -> None:
    """Refuse what is for copies of a locked parent, where there is none."""
    given = [name for name, value in for_locks.items() if value is not None]
    if lock_path is None and given:
        raise UsageError(f"{given[0]} is for copies of a locked parent.", hint="Pass --lock.")


@command.command("list", epilog="Example:  earmark license list --json")
@options.vault_option
@options.json_option
def list_(*, vault_path: Path, as_json: bool) -> int:
    """List the licenses of a vault, and what the ledger says of them."""
    vault = Vault.open(vault_path)
    void, rows = _void(vault), []
    found: list[Json] = []
    for held in held_licenses(vault):
        record = _record(held)
        state = _state(record, void)
        rows.append([record.serial, record.customer, record.model, record.not_after, state])
        found.append({"license": record.to_json(), "state": state})
    vault.close()
    lines = table(rows, head=["number", "customer", "model", "until", "state"])
    if rows:
        lines.append(line("issuer", f"{record.issuer}   your customers need it to unlock"))
    payload: dict[str, Json] = {"licenses": found}
    return emit("license", lines if rows else ["no licenses"], payload, as_json=as_json)


@command.command("revoke", epilog="Example:  earmark license revoke 3 --reason 'unpaid'")
@click.argument("number", type=click.IntRange(min=0))
@click.option("--reason", required=True, help="One sentence; it stands on the ledger.")
@options.vault_option
@options.passphrase_option
@options.json_option
def revoke(
    *, number: int, reason: str, vault_path: Path, passphrase_file: Path | None, as_json: bool
) -> int:
    """Declare a license and its renewals void, on the ledger.

    A loader that is given the ledger refuses the license from now on. A copy that was opened
    before stays open. A license that was revoked already stays so, and nothing is written. One
    whose file is gone can be revoked, too, where the ledger has heard of it.
    """
    vault = Vault.open(vault_path)
    if number not in _numbers(vault):
        raise _no_license(vault, number)
    earlier = _void(vault).get(number)
    if earlier is not None:
        vault.close()
        told = f"#{number} already, since {earlier.created}: {earlier.reason}"
        payload: dict[str, Json] = {"revoked": number, "since": earlier.created}
        return emit("license", [line("revoked", told)], payload, as_json=as_json)
    issuer = _issuer(vault, passphrase_file)
    receipt = vault.ledger.append(issuer.revoke(number, reason=reason).encode())
    vault.close()
    lines = [line("revoked", f"#{number}, ledger #{receipt.index}: {reason}")]
    return emit("license", lines, {"revoked": number, "ledger": receipt.index}, as_json=as_json)


@command.command("renew", epilog="Example:  earmark license renew 3 --days 365 -o acme.license")
@click.argument("number", type=click.IntRange(min=0))
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@options.vault_option
@options.passphrase_option
@options.json_option
def renew(
    *,
    number: int,
    days: int,
    output: Path,
    force: bool,
    vault_path: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> int:
    """Extend a license; the locked copy and its serial number stay as they are.

    The days are added to its end, or to today if it has expired.
    """
    options.require_free(output, force=force)
    vault = Vault.open(vault_path)
    held = next((item for item in held_licenses(vault) if _record(item).serial == number), None)
    if held is None:
        raise _no_license(vault, number)
    if number in _void(vault):
        raise UsageError(f"License {number} was revoked.", hint="Issue a new one.")
    issuer = _issuer(vault, passphrase_file)
    renewed = issuer.renew(held, days=days)
    receipt = vault.ledger.append(issuer.announce(renewed, renews=held).encode())
    vault.close()
    _keep(vault, renewed, overwrite=True)
    files.write_bytes(output, renewed.encode(), overwrite=force)
    record = _record(renewed)
    lines = [line("renewed", f"#{number} until {record.not_after}, ledger #{receipt.index}")]
    payload: dict[str, Json] = {"license": record.to_json(), "ledger": receipt.index}
    return emit("license", lines, payload, as_json=as_json)


def held_licenses(vault: Vault) -> list[Signed]:
    """Return a vault's licenses by number, each verified as the vault owner's own.

    Raises:
        IntegrityError: A license file was edited.
    """
    from earmark.locks import license as licenses

    found = []
    for path in sorted((vault.path / "licenses").glob("*.license")):
        signed = licenses.read(str(path))
        signed.verify(vault.owner)
        found.append(signed)
    return sorted(found, key=lambda item: _record(item).serial)


def _next_number(vault: Vault) -> int:
    """Return a running number that neither the vault's licenses nor its ledger have used.

    Licenses of one number are revoked together, so a number whose file was deleted stays used.
    """
    return 1 + max(_numbers(vault), default=0)


def _numbers(vault: Vault) -> set[int]:
    """Return the running numbers that the vault's licenses or its ledger know."""
    from earmark.locks import license as licenses

    told = licenses.signed_by((data for _, data in vault.ledger.scan()), vault.owner)
    return {item.record.serial for item in [*held_licenses(vault), *told]}


def copy_name(number: int, customer: str) -> str:
    """Return the name under which a copy's codeword is drawn."""
    return f"{number}:{customer}"


def tracing_keys(vault: Vault, phrase: str) -> list[tuple[Key, str]]:
    """Return a vault's tracing keys, oldest first, and their commitments."""
    return [
        (vault.key(item.id, phrase), item.commitment.commitment)
        for item in vault.registrations()
        if item.traces
    ]


def _tracing_key(vault: Vault, phrase: str, weights: Path) -> tuple[Key, str]:
    """Return the tracing key for copies of a network; make and register one if there is none."""
    from earmark.hosts.files import FilesHost
    from earmark.locks.tracing import Tracer, fits

    host = FilesHost(weights)
    for known, commitment in reversed(tracing_keys(vault, phrase)):
        if fits(host, known):
            return known, commitment
    for colluders in (3, 2, 1):
        try:
            key = Tracer(colluders=colluders).new_key(host)
        except CapacityError as error:
            if colluders == 1:
                raise CapacityError(error.what, hint=_TOO_SMALL) from error
        else:
            break
    made, registration = vault.commit(key, phrase, note=f"tracing {weights.name}")
    return made, registration.commitment.commitment


def _traces(key: Key) -> str:
    """Say against whom a tracing key helps."""
    most = key.layout.params["colluders"]
    return "yes: a leak names the customer" + (
        f", and one of up to {most} who mix their copies" if most != 1 else ", who leaks alone"
    )


def _fingerprinted(weights: Path, key: Key, name: str) -> bytes:
    import torch
    from safetensors.torch import save

    from earmark.hosts.files import FilesHost, exact_tensor
    from earmark.locks.tracing import Tracer

    host = FilesHost(weights)
    marked = Tracer().mark(host, key, name)
    copy = {item: exact_tensor(host, item) for item in host.tensor_names()}
    copy |= {item: torch.from_numpy(marked.tensor(item)) for item in key.layout.carrier}
    return save(copy, metadata={"format": "pt"})


def _issuer(vault: Vault, passphrase_file: Path | None) -> Issuer:
    from earmark.locks import license as licenses

    return licenses.Issuer(vault.identity(options.passphrase(passphrase_file)))


def _no_license(vault: Vault, number: int) -> UsageError:
    known = ", ".join(str(_record(held).serial) for held in held_licenses(vault)) or "none"
    return UsageError(f"There is no license {number}.", expected=f"Licenses here: {known}.")


def _void(vault: Vault) -> dict[int, Revocation]:
    from earmark.locks import license as licenses

    return licenses.revoked((data for _, data in vault.ledger.scan()), vault.owner)


def _state(record: License, void: dict[int, Revocation]) -> str:
    if record.serial in void:
        return f"revoked: {void[record.serial].reason}"
    return "expired" if record.not_after <= now() else "valid"


def _record(signed: Signed) -> License:
    if not isinstance(signed.record, License):
        raise UsageError("This file holds no license but another signed record.")
    return signed.record


def _serial_of(issuer: Issuer, held: Signed) -> bytes:
    record = _record(held)
    return issuer.offer(record.customer, model=record.model, number=record.serial).serial


def _task(path: Path | None) -> Task:
    from earmark.task import load_task

    if path is None:
        raise UsageError("--lock needs --task, the task file with model().")
    return load_task(path)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _keep(vault: Vault, signed: Signed, *, overwrite: bool = False) -> None:
    folder = vault.path / "licenses"
    folder.mkdir(exist_ok=True)
    name = f"{_record(signed).serial:06d}.license"
    files.write_bytes(folder / name, signed.encode(), overwrite=overwrite)
