"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from earmark import files
from earmark.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

ENV_PASSPHRASE = "EARMARK_PASSPHRASE"  # noqa: S105 - the name of a variable


def json_option(function: F) -> F:
    """Add ``--json``."""
    text = "Print exactly one JSON document, failures included."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def quiet_option(function: F) -> F:
    """Add ``--quiet``."""
    return click.option("--quiet", is_flag=True, help="No progress, no notes.")(function)


def vault_option(function: F) -> F:
    """Add ``--vault``."""
    return click.option(
        "--vault",
        "vault_path",
        type=click.Path(path_type=Path),
        default=Path("vault"),
        show_default=True,
        envvar="EARMARK_VAULT",
        help="Folder with your keys and your ledger.",
    )(function)


def new_key_options(function: F) -> F:
    """Add ``--community`` and ``--owner``, for commands that make a key."""
    owner = click.option("--owner", default="", help="Your name, for a vault that is made now.")
    community = click.option(
        "--community",
        "community_path",
        type=click.Path(path_type=Path),
        help="Bind the key to this community's log instead of your own ledger.",
    )
    return community(owner(function))


def training_options(function: F) -> F:
    """Add ``--seed`` and ``--checkpoint``, for commands that train."""
    seed = click.option(
        "--seed", type=int, help="Seed of the training; drawn and shown if not given."
    )
    checkpoint = click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="Write the training's state here after each epoch, or go on from it if it is there.",
    )
    return seed(checkpoint(function))


def passphrase_option(function: F) -> F:
    """Add ``--passphrase-file``."""
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        help=f"File with the passphrase; else ${ENV_PASSPHRASE}, else you are asked.",
    )(function)


_TASK = "Your task file: model(), loss(), batches(), evaluate()."


def task_option(function: F) -> F:
    """Add ``--task``."""
    path = click.Path(path_type=Path)
    return click.option("--task", "task_path", type=path, help=_TASK)(function)


def required_task_option(function: F) -> F:
    """Add ``--task``, which must be given."""
    path = click.Path(path_type=Path)
    return click.option("--task", "task_path", type=path, required=True, help=_TASK)(function)


def settings_option(function: F) -> F:
    """Add ``--set name=value``."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="A setting of the scheme or attack; may be repeated.",
    )(function)


def passphrase(path: Path | None, *, new: bool = False) -> str:
    """Return the passphrase from a file, the environment or the terminal.

    Raises:
        UsageError: There is none and nobody to ask.
        FileError: The file cannot be read.
    """
    if path is not None:
        try:
            return files.read_bytes(path, limit=1 << 16).decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"Passphrase file '{path}' is not UTF-8 text.") from error
    if ENV_PASSPHRASE in os.environ:
        return os.environ[ENV_PASSPHRASE].strip()
    if not sys.stdin.isatty():
        raise UsageError(
            "No passphrase was given, and there is no terminal to ask at.",
            hint=f"Set ${ENV_PASSPHRASE}, or pass --passphrase-file.",
        )
    text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)
    return text


def parse_settings(items: tuple[str, ...]) -> Mapping[str, Any]:  # Any: plain values
    """Turn ``name=value`` items into settings; values are read as JSON where they are JSON.

    Raises:
        UsageError: An item without an equals sign.

    Example:
        >>> parse_settings(("epochs=3", "taps=fc"))
        {'epochs': 3, 'taps': 'fc'}
    """
    import json

    made: dict[str, Any] = {}  # Any: plain values
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise UsageError(f"Setting '{item}' is not of the form NAME=VALUE.")
        try:
            made[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            made[name.replace("-", "_")] = value
    return made


def elsewhere(vault_path: Path) -> str:
    """Return the option that names a vault, for an advised command, unless it is the usual one.

    Example:
        >>> elsewhere(Path("vault")), elsewhere(Path("keys/v"))
        ('', ' --vault keys/v')
    """
    return "" if vault_path == Path("vault") else f" --vault {vault_path}"


def again(*more: str) -> str:
    """Return the running command as it would be typed once more, with further options."""
    given: tuple[str, ...] = click.get_current_context().obj
    return shlex.join(["earmark", *given, *more])


def require_free(*outputs: Path | None, force: bool | None = None) -> None:
    """Refuse outputs that exist or could not be written, before anything is done for them.

    Args:
        outputs: Files that will be written.
        force: Whether they may be replaced; null where a command has no --force.

    Raises:
        UsageError: One exists and may not be replaced, or is a folder.
        OutputError: The folder of one is missing or not writable.
    """
    for output in outputs:
        if output is None:
            continue
        if output.exists() and not force:
            way = "Choose another name." if force is None else "Pass --force to replace it."
            raise UsageError(f"Output '{output}' exists already.", hint=way)
        files.require_writable(output)


def require_safetensors(output: Path) -> None:
    """Refuse an output for weights whose name promises another format.

    Raises:
        UsageError: It does not end in .safetensors.
    """
    if output.suffix != ".safetensors":
        raise UsageError(
            f"Output '{output}' does not end in .safetensors, which is what is written.",
            hint=f"Name it '{output.with_suffix('.safetensors')}'.",
        )


def require_folder(folder: Path) -> None:
    """Refuse a folder that is in use or could not be made, before long work is done for it.

    Raises:
        UsageError: It is there already, and not empty.
        OutputError: It could not be made or written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"Output '{folder}' is there already.", expected="A new or empty folder.")
    place = folder
    while not place.exists():
        place = place.parent
    files.require_writable(place / folder.name)
