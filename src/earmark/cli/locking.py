"""`earmark license lock`, and how `earmark license issue` makes a customer's copy from a parent."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import files, registry
from earmark.cli import options
from earmark.cli.output import Bars, emit, line
from earmark.codec import Json
from earmark.errors import HostError, KeyLayoutError, UsageError
from earmark.records import now

if TYPE_CHECKING:
    from earmark.locks.cost import Cost
    from earmark.locks.license import Issuer, Offer
    from earmark.locks.parent import Parent
    from earmark.task import Task

_TRIES = 1000  # one number in four fits


@click.command(
    "lock",
    epilog="Example:  earmark license lock task.py --teacher release.safetensors "
    "-o parent.safetensors",
)
@click.argument("task_path", metavar="TASK", type=click.Path(path_type=Path))
@click.option(
    "--teacher", type=click.Path(path_type=Path), required=True, help="Your unlocked weights."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--lock", "lock_name", default="dsn", show_default=True)
@options.settings_option
@click.option("--seed", type=int, help="Seed of the training; drawn and shown if not given.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a page about the lock here.")
@click.option("--force", is_flag=True, help="Replace existing output files.")
@options.quiet_option
@options.json_option
def command(
    *,
    task_path: Path,
    teacher: Path,
    output: Path,
    lock_name: str,
    settings: tuple[str, ...],
    seed: int | None,
    report: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train the locked parent from which customers' copies are made.

    Writes OUTPUT (safetensors) and OUTPUT.lock, which holds the parent's own number and is secret.
    The page of --report says what the lock costs, and what no lock does.
    """
    from earmark.hosts.files import save_release
    from earmark.hosts.suspects import load_suspect
    from earmark.locks.cost import Measure
    from earmark.locks.parent import Parent
    from earmark.report.locks import Locked, locked_page
    from earmark.report.page import write_page
    from earmark.task import load_task

    options.require_safetensors(output)
    secret = output.with_name(f"{output.name}.lock")
    options.require_free(output, secret, report, force=force)
    task, lock = load_task(task_path), registry.lock(lock_name, **options.parse_settings(settings))
    layout, serial = lock.layout(task), secrets.token_bytes(16)
    drawn = secrets.randbelow(1 << 31) if seed is None else seed
    private = load_suspect(task.model(), teacher)
    model = lock.fit(
        task,
        private,
        serial,
        layout=layout,
        seed=drawn,
        events=Bars(quiet=quiet or as_json),
    )
    digest = save_release(model, output, overwrite=force)
    kept = Parent(lock_name, layout, serial, digest).encode()
    files.write_bytes(secret, kept, overwrite=force, mode=0o600)
    cost = Measure(task, lock, layout).cost(private, model, serial)
    if report is not None:
        bits = layout.message_bits
        page = Locked(output.name, lock_name, now(), bits, cost.unlocked, cost.right, cost.absent)
        write_page(report, locked_page(page), overwrite=force)
    lines = [
        *cost_lines(cost),
        line("parent", f"{output}   keep it: customers' copies are made from it"),
        line("its number", f"{secret}   secret"),
        line("seed", str(drawn)),
        line("says not", "that a lock in the weights is cryptography; the locked file is"),
        f"Next: earmark license issue {output} --lock {secret} --task {task_path} --customer …",
    ]
    payload: dict[str, Json] = {
        **cost_payload(cost),
        "seed": drawn,
        "layout": layout.to_json(),
    }
    return emit("license", lines, payload, as_json=as_json)


def cost_lines(cost: Cost) -> list[str]:
    """Say what a lock costs and leaves open; warn where it falls short."""
    lines = [
        line(
            "utility",
            f"{cost.unlocked:.2f} unlocked, {cost.right:.2f} with the number, "
            f"{cost.absent:.2f} without",
        ),
        line(
            "near misses",
            f"{cost.one:.1f} % of the right answers at worst with one wrong bit, {cost.two:.1f} "
            f"with two; a constant answer has {cost.constant:.1f}",
        ),
    ]
    return lines + [line("warning", text) for text in cost.warnings()]


def cost_payload(cost: Cost) -> dict[str, Json]:
    """Return the same for programs."""
    return {
        "utility": {
            "unlocked": cost.unlocked,
            "with_number": cost.right,
            "without": cost.absent,
        },
        "near_misses": {
            "one_wrong_bit": cost.one,
            "two_wrong_bits": cost.two,
            "constant_answer": cost.constant,
        },
        "warnings": [*cost.warnings()],
    }


def cost_of(parent: Parent, task: Task, teacher: Path, copy: bytes, serial: bytes) -> Cost:
    """Measure a customer's copy as it will be shipped, beside the unlocked weights."""
    from earmark.hosts.front import load_copy
    from earmark.hosts.suspects import load_suspect
    from earmark.locks.cost import Measure

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "copy.safetensors"
        place.write_bytes(copy)
        model = load_copy(task.model(), place)
    private = load_suspect(task.model(), teacher)
    return Measure(task, registry.lock(parent.lock), parent.layout).cost(private, model, serial)


def fitting(issuer: Issuer, parent: Parent, customer: str, model: str, number: int) -> Offer:
    """Return the first offer from a number on that enters a copy where the parent's own does.

    Where none does, because the code is spread over the whole image, the first offer is returned.
    """
    from earmark.locks.rekey import fits

    first = issuer.offer(customer, model=model, number=number)
    for i in range(_TRIES):
        offer = issuer.offer(customer, model=model, number=number + i)
        if fits(parent.layout, parent.serial, offer.serial):
            return offer
    return first


def copy_of(
    parent: Parent,
    weights: Path,
    task: Task,
    serial: bytes,
    *,
    teacher: Path | None,
    epochs: int | None,
    others: Sequence[bytes],
    output: Path,
) -> str:
    """Write a customer's copy, with a number of its own, and say how it was made.

    Args:
        parent: The locked parent's number and way in.
        weights: Its weights.
        task: The owner's task.
        serial: The customer's number.
        teacher: The unlocked weights, to distil from.
        epochs: How long to distil from them; null makes the copy without training.
        others: Other customers' numbers, which must not open a copy that is distilled.
        output: Where the copy goes.

    Raises:
        HostError: The weights are not the parent's, or the copy would not do what it does.
        KeyLayoutError: The copy cannot be made without training.
        UsageError: There is nothing to distil from.
    """
    from earmark.hosts.files import FilesHost, save_release
    from earmark.hosts.suspects import load_suspect
    from earmark.locks.entry import entry_of, require_taken
    from earmark.locks.rekey import rekey, require_same

    if FilesHost(weights).digest() != parent.weights:
        raise HostError(
            f"'{weights}' is not the locked parent that the .lock file is of.",
            hint="Pass the weights that earmark license lock wrote beside it.",
        )
    model = load_suspect(task.model(), weights)
    if epochs is None:
        way_in = entry_of(parent.layout, serial)
        require_taken(model, way_in, task.samples(2, seed=0), task.forward)
        try:
            made = rekey(model, parent.layout, parent.serial, serial)
        except KeyLayoutError as error:
            hint = "Pass --teacher, your unlocked weights, and --epochs 6 to distil the copy."
            raise KeyLayoutError(error.what, hint=hint) from error
        own, theirs = (model, parent.serial), (made, serial)
        require_same(task, parent.layout, own, theirs)
        way = "in front of the parent; it is loaded with earmark.hosts.front.load_copy"
    elif teacher is None:
        raise UsageError("--epochs distils the copy.", hint="Pass --teacher, your own weights.")
    else:
        made = registry.lock(parent.lock, epochs=epochs).fit(
            task,
            load_suspect(task.model(), teacher),
            serial,
            layout=parent.layout,
            seed=secrets.randbelow(1 << 31),
            model=model,
            others=[parent.serial, *others],
        )
        way = f"distilled for {epochs} epochs"
    save_release(made, output)
    return way
