"""`earmark verify`: measure a suspect, judge, and say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earmark import policy, registry
from earmark.cli import options
from earmark.cli.output import Bars, emit_outcome, line, more_answers, too_small, verdict_lines
from earmark.cli.report import write_claim
from earmark.cli.service import Service, is_address, nonce_of, refuse, service_options
from earmark.codec import Json
from earmark.errors import CarrierError, HostError, KeyLayoutError, UsageError
from earmark.keys.secret import START
from earmark.records import Access, Evidence, Outcome, Verdict
from earmark.report.archive import require_room
from earmark.vault import Registration, Vault

if TYPE_CHECKING:
    from earmark.hosts.access import Host
    from earmark.keys.secret import Key
    from earmark.schemes.base import Scheme
    from earmark.task import Task


@click.command(
    "verify",
    epilog="Example:  earmark verify suspect.safetensors --task task.py --key 3f0a",
)
@click.argument("suspect")
@options.task_option
@click.option("--key", "key_name", default="", help="Beginning of the key's id, if there are many.")
@click.option(
    "--level",
    type=click.Choice([name for name, _ in policy.LEVELS]),
    default="claim",
    show_default=True,
    help="Net bits asked for: trace 20, claim 64, contested claim 128.",
)
@click.option(
    "--suspects",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many suspects this key is tried on in all; each is charged.",
)
@click.option(
    "--dossier", type=click.Path(path_type=Path), help="Write a dossier that proves the claim."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Weights by which reordered or added neurons are brought back; needs --task. By default "
    "those that protect kept.",
)
@service_options
@click.option("--force", is_flag=True, help="Replace a dossier that is there already.")
@options.vault_option
@options.passphrase_option
@options.quiet_option
@options.json_option
def command(
    *,
    suspect: str,
    task_path: Path | None,
    key_name: str,
    level: str,
    suspects: int,
    dossier: Path | None,
    reference: Path | None,
    adapter: Path | None,
    budget: int | None,
    transcript: Path | None,
    force: bool,
    vault_path: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Say whether a suspect carries your mark, and with what certainty.

    SUSPECT is a safetensors file, a folder of them, or the address of a service, http(s)://...
    Schemes that read activations need --task, for the model's class. A service is asked for labels
    only, within --budget, as the file --adapter says; every answer goes into a transcript, an
    interrupted run goes on from it, and asking stops once the evidence suffices. Exit codes: 0 mark
    shown, 1 not shown, 2 usage, 3 inconclusive, 4 ledger or key was changed, 5 could not run.

    Deep Water and DeepSigns, white-box, read neurons in their order. Where a thief may have changed
    it, give --task: suspects are aligned to the weights before their mark, which protect keeps in
    the vault, under starts/; where it did not, give them as --reference. A second form is charged
    then. MTL-Sign needs none.
    """
    if dossier is not None:
        require_room(dossier, overwrite=force)
    vault = Vault.open(vault_path)
    registration = vault.registration(key_name)
    word, asked = options.passphrase(passphrase_file), policy.Policy.at(level)
    key = vault.key(registration.id, word)
    task = _loaded(task_path)
    if not is_address(suspect):
        reference = reference or kept(vault, registration, task_path)
    fixed = reference is None or START in key.layout.params
    if dossier is not None and not fixed:
        raise proves_nothing(registration)
    service, more, order, read = None, list[str](), "", dict[str, Json]()
    charging = dataclasses.replace(asked, tried_keys=suspects * vault.keys_tried())
    if is_address(suspect):
        service = Service.open(
            suspect, key, vault, adapter=adapter, budget=budget, transcript=transcript
        )
        found = service.measure(key, charging, Bars(quiet=quiet or as_json))
    else:
        refuse(suspect, adapter, budget, transcript)
        scheme = registry.scheme(key.layout.scheme)
        with fitting(key, registration, suspect, task_path):
            host = open_suspect(suspect, scheme, task)
            nonce = nonce_of(host.digest(), vault.ledger.head().root.hex())
            if reference is None:
                found = scheme.measure(host, key, nonce=nonce)
                order = _unaligned(scheme, vault, registration, task_path)
            else:
                found, host = realigned(scheme, host, key, reference, task, charging)
        found = dataclasses.replace(found, nonce=found.nonce or nonce)
        more, read = read_back(scheme, host, key, found)
    evidence = charged(found, registration, suspects, keys=vault.keys_tried())
    verdict = policy.judge(evidence, asked)
    lines = verdict_lines(verdict, evidence, inexact=inexact(key.layout.scheme, fixed=fixed))
    claim = line("claim", f"key {registration.id}, ledger #{registration.receipt.index}")
    more += service.lines() if service else _advice(verdict, evidence, order)
    lines += [*more, claim]
    if not quiet:
        lines.append(line("says not", verdict.limits[0 if verdict.outcome is Outcome.SHOWN else 2]))
    payload: dict[str, Json] = {
        "suspect": suspect,
        "key": registration.id,
        "evidence": evidence.to_json(),
        "verdict": verdict.to_json(),
        **read,
    }
    if dossier is not None:
        attached = service.attachments() if service else {}
        name = service.host.adapter.place() if service else Path(suspect).name
        write_claim(
            dossier, vault, registration, evidence, asked, name, word, attached, overwrite=force
        )
        lines.append(line("dossier", f"{dossier}   Check it with:  earmark report {dossier}"))
    return emit_outcome("verify", lines, payload, verdict.outcome, as_json=as_json)


def _advice(verdict: Verdict, evidence: Evidence, order: str) -> list[str]:
    """Say what to do where a mark is not shown: bring neurons back, or mark with more next time."""
    if verdict.outcome is Outcome.SHOWN:
        return []
    lines = [line("order", order)] if order else []
    small = too_small(verdict, evidence)
    if verdict.outcome is not Outcome.INCONCLUSIVE or not small:
        return lines
    next_time = f"mark the next release with more:  {more_answers(evidence.scheme)}"
    next_time = f"if they were not, {next_time}" if order else next_time
    return [line("too small", small), *lines, line("try", next_time)]


def _unaligned(
    scheme: Scheme, vault: Vault, registration: Registration, task_path: Path | None
) -> str:
    """Say how neurons are brought back that were read in their order, where a scheme can do so."""
    from earmark.bench.reading import aligns

    if not aligns(scheme):
        return ""
    lacking = ["--task TASK.py"] if task_path is None else []
    if not vault.start(registration).is_file():
        lacking.append("--reference WEIGHTS_BEFORE_THE_MARK")
    return (
        "neurons were read in their order; if they may have been reordered, pass  "
        f"{' '.join(lacking)}"
    )


def _loaded(task_path: Path | None) -> Task | None:
    """Load a task file wherever one is named, so that one with mistakes is never passed over."""
    if task_path is None:
        return None
    from earmark.task import load_task

    return load_task(task_path)


@contextmanager
def fitting(
    key: Key,
    registration: Registration,
    suspect: str,
    task_path: Path | None,
    *,
    what: str = "Suspect",
) -> Iterator[None]:
    """Say which does not fit where key, task and suspect are not of one network.

    Args:
        key: The key.
        registration: Its registration, which names it.
        suspect: The model under test.
        task_path: The task file, if there is one.
        what: What the model is called.

    Raises:
        KeyLayoutError: The key does not even fit the task's own fresh model.
        HostError: The suspect does not fit the key, whatever its scheme calls that.
    """
    try:
        yield
    except (CarrierError, HostError) as error:
        see = "see which is which with:  earmark keys"
        if task_path is not None and not _fits(key, task_path):
            carrier = key.layout.carrier
            reads = ", ".join(carrier[:3]) + (", ..." if carrier[3:] else "")
            raise KeyLayoutError(
                f"Key {registration.title} was made for another network than the model() of "
                f"'{task_path}': it reads {reads} there, which that lacks or has otherwise.",
                hint=f"Pass the --task of the key's network, or the --key of this one; {see}",
            ) from error
        task = "" if task_path is None else f", which fits the model() of '{task_path}'"
        raise HostError(
            f"{what} '{suspect}' does not fit key {registration.title}{task}. {error.what}",
            expected=error.expected,
            hint=f"{error.hint} If it is of another network of yours, pass the --key of that; "
            f"{see}",
        ) from error


def _fits(key: Key, task_path: Path) -> bool:
    from earmark.schemes.embedding import fresh_model
    from earmark.task import load_task

    task = load_task(task_path)
    try:
        registry.scheme(key.layout.scheme).measure(task.host(fresh_model(task, 0)), key)
    except (CarrierError, HostError):
        return False
    return True


def charged(
    evidence: Evidence, registration: Registration, suspects: int, *, keys: int
) -> Evidence:
    """Return evidence with its commitment named and the numbers of suspects and keys charged."""
    tried = dataclasses.replace(evidence.tried, suspects=suspects, keys=keys)
    return dataclasses.replace(evidence, commitment=registration.commitment.commitment, tried=tried)


def read_release(
    host: Host,
    key: Key,
    vault: Vault,
    registration: Registration,
    bring_back: Callable[[], Host] | None = None,
) -> Evidence:
    """Read one's own release as `verify` will: split by the ledger's head, everything charged.

    Args:
        host: The release, which is registered.
        key: Its key.
        vault: Holds the key.
        registration: The key's registration.
        bring_back: Returns the release aligned to its start, where `verify` would do so.
    """
    from earmark.bench.reading import read_twice

    scheme, keys = registry.scheme(key.layout.scheme), vault.keys_tried()
    nonce = nonce_of(host.digest(), vault.ledger.head().root.hex())
    if bring_back is None:
        found = scheme.measure(host, key, nonce=nonce)
    else:
        asked = policy.Policy(tried_keys=keys)
        found, _ = read_twice(scheme, key, host, bring_back, policy=asked)
    found = dataclasses.replace(found, nonce=found.nonce or nonce)
    return charged(found, registration, 1, keys=keys)


def inexact(scheme: str, *, fixed: bool) -> str:
    """Say why the null of a reading is not exact, if it is not."""
    if not getattr(registry.load("scheme", scheme), "exact_null", True):
        return "this published form drops answers afterwards"
    return "" if fixed else "nothing fixed what the suspect was aligned to before the message"


def proves_nothing(registration: Registration) -> UsageError:
    """Return the error for a claim on what was aligned to a network that the key did not fix."""
    return UsageError(
        f"Key {registration.id} did not fix what suspects are aligned to, so that a claim with "
        "--reference would prove nothing.",
        hint="Leave --reference out, or protect anew: keys fix it now.",
    )


def kept(vault: Vault, registration: Registration, task_path: Path | None) -> Path | None:
    """Return the weights before the mark, if protect kept them and there is a task to run them."""
    start = vault.start(registration)
    return start if task_path is not None and start.is_file() else None


def realigned(
    scheme: Scheme,
    suspect: Host,
    key: Key,
    reference: Path,
    task: Task | None,
    asked: policy.Policy,
) -> tuple[Evidence, Host]:
    """Read a suspect in place and, if that does not suffice, aligned; return what was read.

    Raises:
        UsageError: The scheme needs no alignment, or there is no task file.
    """
    from earmark.bench.reading import aligned, aligns, read_twice
    from earmark.hosts.files import FilesHost
    from earmark.hosts.suspects import load_suspect

    if not aligns(scheme):
        raise UsageError(
            f"Scheme '{scheme.name}' does not read neurons in an order.",
            hint="Leave --reference out.",
        )
    if task is None:
        raise UsageError("--reference needs --task, the task file with model().")
    digest, fixed = FilesHost(reference).digest(), key.layout.params.get(START, "")
    if fixed and fixed != digest:
        raise UsageError(
            f"'{reference}' is not the network before its mark that key and commitment fixed.",
            expected=f"Weights with digest {str(fixed)[:12]}…; protect keeps them under starts/.",
        )
    model = load_suspect(task.model(), reference)
    first = task.host(model)
    found, read = read_twice(
        scheme, key, suspect, lambda: aligned(scheme, key, suspect, first, model), policy=asked
    )
    note = f"Read in place and, where that was too little, aligned to '{reference.name}'"
    note += ", which the key fixed." if fixed else ", which nothing fixed before the message."
    details = {**found.details, "reference": digest}
    return dataclasses.replace(found, notes=(*found.notes, note), details=details), read


def read_back(
    scheme: Scheme, host: Host, key: Key, evidence: Evidence
) -> tuple[list[str], dict[str, Json]]:
    """Say where the mark is still alive, and what it says, for schemes that can tell.

    Returns:
        Lines, and the same for JSON.
    """
    lines: list[str] = []
    read: dict[str, Json] = {}
    layers: Any = evidence.details.get("layers")  # Any: JSON
    if layers:
        counts = {name: (row["hits"], row["trials"]) for name, row in layers.items()}
        whole = sum(hits == trials for hits, trials in counts.values())
        weakest = min(counts, key=lambda name: counts[name][0] / counts[name][1])
        text = f"every bit right in {whole} of {len(counts)} tensors"
        if whole < len(counts):
            text += f"; weakest: {weakest}, {counts[weakest][0]} of {counts[weakest][1]}"
        lines.append(line("where", text))
    if key.layout.params.get("payload") and hasattr(scheme, "read_payload"):
        found = scheme.read_payload(host, key)
        said = found.message.hex() if found.ok else "not to be read; its checksum does not fit"
        wrong = f"  ({found.corrected} of {key.layout.message_bits} bits wrong)" if found.ok else ""
        lines.append(line("payload", said + wrong))
        read["payload"] = found.message.hex() if found.ok else None
    return lines, read


def open_suspect(suspect: str, scheme: Scheme, task: Task | None) -> Host:
    """Open what a suspect's argument names, with the access that the scheme needs.

    Raises:
        UsageError: The scheme needs a task file and there is none.
        FileError: There is no such file.
    """
    from earmark.hosts.files import FilesHost

    host = FilesHost(suspect)
    if scheme.needs <= {Access.WEIGHTS}:
        return host
    if task is None:
        raise UsageError(
            f"Scheme '{scheme.name}' runs the suspect, and '{suspect}' holds weights only.",
            hint="Pass --task, the task file with model().",
        )
    from earmark.hosts.suspects import load_suspect

    return task.host(load_suspect(task.model(), suspect))
