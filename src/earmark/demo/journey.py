"""The demo's steps, as a library: what `earmark demo` runs."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from earmark import codec, files, policy, registry
from earmark.attacks.base import Budget, Knowledge
from earmark.bench.cells import Step
from earmark.bench.data import load
from earmark.bench.run import build
from earmark.demo import task as demo_task
from earmark.errors import FileError, OutputError, RunError, UsageError
from earmark.events import Events
from earmark.hosts.files import save_release
from earmark.hosts.suspects import load_suspect
from earmark.keys.secret import Key
from earmark.records import Claim, Evidence, Receipt, Verdict
from earmark.schemes.embedding import embed, fresh_model
from earmark.task import Task, load_task
from earmark.training import Recipe, train
from earmark.vault import Registration, Vault

ATTACKS: tuple[tuple[str, tuple[Step, ...], str], ...] = (
    (
        "fine-tuned",
        (Step("finetune", {"epochs": 2, "lr": 0.05}),),
        "all layers, 2 epochs, half the data",
    ),
    ("pruned", (Step("prune", {"share": 0.65}),), "65 % of the weights set to zero"),
    ("int8", (Step("quantize", {"bits": 8}),), "weights rounded to 8 bits"),
    ("disguised", (Step("obfuscate"),), "neurons permuted, rescaled, dummies added"),
    (
        "overwritten",
        (Step("overwrite", {"epochs": 2, "lr": 0.05}),),
        "another key, same scheme",
    ),
    (
        "chained",
        (
            Step("finetune", {"epochs": 1, "lr": 0.05}),
            Step("prune", {"share": 0.65}),
            Step("quantize", {"bits": 8}),
            Step("obfuscate"),
        ),
        "fine-tuned, pruned 65 %, rounded to 8 bits, then disguised",
    ),
)
"""Copy's name, the attacks in order, and what was done in a few words."""

SETTINGS: Mapping[str, Any] = {  # Any: fields of MtlSign
    "shards": 8,
    "directions": 4,
    "share": 0.0625,
    "weight": 0.05,
    "settle": 0.0,
}
"""A light mark: in so short a training the default, settled one would cost a point of accuracy."""
_MARKER = ".earmark-demo"


def settings_for(task: Task) -> Mapping[str, Any]:  # Any: fields of MtlSign
    """Return the scheme's settings: stronger ones where the small digits stand in."""
    if "digits" in task.name:
        more = {"triggers": 512, "shards": 8, "directions": 4, "share": 0.25, "weight": 0.2}
        return {**SETTINGS, **more}
    return SETTINGS


@dataclass
class Model:
    """One model of the journey.

    Args:
        name: File name without its ending.
        kind: "release", "stolen" or "innocent".
        done: What was done to it.
        path: Where it lies.
        utility: Test accuracy in percent.
        evidence: What was counted on it, once it was.
        verdict: What follows.
    """

    name: str
    kind: str
    done: str
    path: Path
    utility: float
    evidence: Evidence | None = None
    verdict: Verdict | None = None


@dataclass
class Journey:
    """What the demo leaves behind.

    Args:
        folder: Where everything lies.
        task: The task.
        twin: Accuracy of the unmarked twin.
        models: Release, stolen copies and innocents.
        claim: The claim on the first stolen copy.
        word: The vault's passphrase; it lies beside the vault, which only a demo may do.
    """

    folder: Path
    task: Task
    vault: Vault
    registration: Registration
    word: str = field(repr=False)
    twin: float = 0.0
    models: list[Model] = field(default_factory=list)
    claim: tuple[Claim, Receipt] | None = None


def run(
    folder: Path, events: Events, *, seed: int = 7, force: bool = False, data: str | None = None
) -> Journey:
    """Run the journey.

    Args:
        folder: Where everything is written; made here.
        events: Who hears of the progress.
        seed: Seed of the trainings and thefts; the key is drawn afresh in any case.
        force: Replace a folder that an earlier demo left.
        data: "fashion-mnist" or "digits"; null takes the digits where the other is missing.

    Raises:
        UsageError: The folder exists.
        OutputError: It cannot be written.
        FileError: The data set that was asked for is not on this machine.
    """
    _prepare(folder, _data(data, events), force=force)
    task = load_task(folder / "task.py")
    word = secrets.token_urlsafe(12)
    files.write_bytes(folder / "passphrase.txt", word.encode() + b"\n", mode=0o600)
    vault = Vault.create(folder / "vault", name="Demo owner", passphrase=word)
    scheme = registry.scheme("mtlsign", **settings_for(task))
    inputs = task.samples(scheme.inputs_wanted(), seed=secrets.randbelow(1 << 31))
    new = scheme.new_key(task.host(fresh_model(task, 0)), inputs=inputs)
    key, registration = vault.commit(new, word, note="release.safetensors")
    events.note(f"ledger #{registration.receipt.index}: commitment, before any training")
    journey = Journey(folder, task, vault, registration, word)
    workers = max(1, (os.cpu_count() or 1) - 1)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        _work(journey, key, pool, events, seed)
        _verify(journey, key, events)
    finally:
        torch.set_num_threads(threads)
        _stop(pool)
        for torn in (folder / "models").glob(".*"):
            torn.unlink()
        vault.close()
    return journey


def _data(wanted: str | None, events: Events) -> str:
    """Return the data set to use, and say so where a smaller one stands in."""
    try:
        return load(wanted or "fashion-mnist").name
    except FileError as error:
        if wanted:
            raise
        events.note(f"{error} The 8x8 digits of scikit-learn stand in.")
        return "digits"


def _prepare(folder: Path, data: str, *, force: bool) -> None:
    if folder.exists():
        if not force or not (folder / _MARKER).is_file():
            raise UsageError(
                f"Folder '{folder}' exists already.",
                hint="Choose another with --out; --force replaces only what a demo made.",
            )
        shutil.rmtree(folder)
    try:
        (folder / "models").mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"Folder '{folder}' cannot be made: {error.strerror}.") from error
    files.write_bytes(folder / _MARKER, b"Made by earmark demo; --force may remove all of it.\n")
    source = Path(demo_task.__file__).read_text().replace('"fashion-mnist"', f'"{data}"', 1)
    files.write_bytes(folder / "task.py", source.encode())


def _alone() -> None:
    torch.set_num_threads(1)


def _submit(
    pool: ProcessPoolExecutor,
    work: Callable[..., float],
    *arguments: Any,  # Any: what the work takes
) -> Future[float]:
    """Hand work over; a worker that starts for it is deaf to Ctrl-C from its first moment."""
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return pool.submit(work, *arguments)
    finally:
        signal.signal(signal.SIGINT, heard)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers now, whatever they are doing; an interrupt does not wait for trainings.

    The pool's own thread is waited for: left to the interpreter's exit, it closes the pipe that the
    exit is about to write to.
    """
    for process in list((pool._processes or {}).values()):  # noqa: SLF001 - no public way
        process.terminate()
    pool.shutdown(cancel_futures=True)


def _work(journey: Journey, key: Key, pool: ProcessPoolExecutor, events: Events, seed: int) -> None:
    """Train the release here and the innocents in the pool; then steal."""
    folder, task = journey.folder, journey.task
    path = folder / "models" / "release.safetensors"
    jobs: list[tuple[str, str, str, Future[float]]] = [
        (name, "innocent", done, _submit(pool, innocent, folder, name, seed))
        for name, done in INNOCENTS.items()
    ]
    scheme = registry.scheme("mtlsign", **settings_for(task))
    trained = embed(task, scheme, key, seed=seed, events=events, label="train with the mark")
    save_release(trained.model, path)
    digests = {path.name: files.file_digest(path)}
    journey.registration = journey.vault.release(journey.registration, digests)
    index = journey.registration.release_receipts[-1].index
    events.note(f"ledger #{index}: digest of the release, before it leaves the house")
    utility = task.evaluate(trained.model)
    journey.models.append(Model("release", "release", "trained with the mark", path, utility))
    elsewhere = {"overwritten", "chained"}
    for name, steps, done in ATTACKS:
        if name in elsewhere:
            jobs.append((name, "stolen", done, _submit(pool, steal, folder, name, steps, seed)))
    here = [item for item in ATTACKS if item[0] not in elsewhere]
    for name, steps, done in events.track(here, label="steal it", total=len(here)):
        utility = steal(folder, name, steps, seed)
        journey.models.append(Model(name, "stolen", done, _path(folder, name), utility))
    for name, kind, done, future in events.track(jobs, label="innocents, more thefts"):
        model = Model(name, kind, done, _path(folder, name), future.result())
        journey.models.append(model)
        if name == "twin":
            journey.twin = model.utility
    order = ["release", *(item[0] for item in ATTACKS), *INNOCENTS]
    journey.models.sort(key=lambda model: order.index(model.name))


def _path(folder: Path, name: str) -> Path:
    return folder / "models" / f"{name}.safetensors"


INNOCENTS: dict[str, str] = {
    "twin": "same seed and schedule, no mark",
    "other-seed": "another seed, no mark",
    "other-data": "another seed, other half of the data",
}
"""Models made without the key."""


def innocent(folder: Path, name: str, seed: int) -> float:
    """Train and write one innocent model; return its utility."""
    task = load_task(folder / "task.py")
    seed += name != "twin"
    recipe = Recipe.of(task.recipe)
    data = None
    if name == "other-data":
        data = lambda epoch: list(task.stream("train", epoch))[::2]  # noqa: E731
    model = train(task, seed=seed, recipe=recipe, model=fresh_model(task, seed), data=data).model
    save_release(model, _path(folder, name))
    return task.evaluate(model)


def steal(folder: Path, name: str, steps: tuple[Step, ...], seed: int) -> float:
    """Attack the release, write the copy, and return its utility."""
    task = load_task(folder / "task.py")
    attack = build(steps, registry.scheme("mtlsign", **settings_for(task)))
    model = load_suspect(task.model(), _path(folder, "release"))
    if attack is not None:
        budget = Budget(task, data_fraction=0.5, knowledge=Knowledge.SCHEME)
        model = attack.run(model, budget, seed=seed)
    save_release(model, _path(folder, name))
    return task.evaluate(model)


def _verify(journey: Journey, key: Key, events: Events) -> None:
    """Measure every model, charge for all of them, claim the first stolen one."""
    scheme = registry.scheme(key.layout.scheme)
    suspects = sum(model.kind != "release" for model in journey.models)
    root = journey.vault.ledger.head().root.hex()
    for model in events.track(journey.models, label="verify every model"):
        network = load_suspect(journey.task.model(), model.path)
        host = journey.task.host(network)
        nonce = codec.digest(f"earmark/nonce/1\n{host.digest()}\n{root}\n".encode())
        found = scheme.measure(host, key, nonce=nonce)
        asked = 1 if model.kind == "release" else suspects
        tried = dataclasses.replace(found.tried, suspects=asked)
        commitment = journey.registration.commitment.commitment
        model.evidence = dataclasses.replace(found, tried=tried, commitment=commitment)
        model.verdict = policy.judge(model.evidence)
    stolen = next(model for model in journey.models if model.kind == "stolen")
    if stolen.evidence is None:
        raise RunError("The stolen copy was not measured.")
    journey.claim = journey.vault.claim(journey.registration, stolen.evidence)
    events.note(f"ledger #{journey.claim[1].index}: claim on '{stolen.name}'")
