"""A suspect behind an address: how `earmark verify https://...` opens and asks it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earmark import codec, registry
from earmark.cli.output import Bars, line
from earmark.errors import UsageError
from earmark.policy import Policy
from earmark.records import Access, Evidence

if TYPE_CHECKING:
    from earmark.hosts.endpoint import EndpointHost
    from earmark.keys.secret import Key
    from earmark.vault import Vault


_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
_ADDRESS = re.compile(rf"{_SCHEME.pattern}.+|www\..+|[\w.-]+:\d+(?:/.*)?", re.IGNORECASE)
"""What somebody writes for a service without http or https, or with another scheme or a port."""


def is_address(suspect: str) -> bool:
    """Return whether a suspect's argument is an address instead of a path.

    Example:
        >>> is_address("https://api.example/v1"), is_address("suspect.safetensors")
        (True, False)
    """
    return suspect.lower().startswith(("http://", "https://"))


def refuse(suspect: str, *options: object) -> None:
    """Refuse the options of a service for a suspect that is none, and an address without scheme.

    Raises:
        UsageError: One of them was given, or no file has the name and it looks like an address.
    """
    if _ADDRESS.fullmatch(suspect) and not Path(suspect).exists():
        raise UsageError(
            f"'{suspect}' is no file, and no address either: it does not say http or https.",
            hint=f"If it is a service, write http://{_SCHEME.sub('', suspect)}",
        )
    if any(options):
        raise UsageError(
            f"'{suspect}' is no address; --adapter, --budget and --transcript go with one.",
            expected="http://... or https://...",
        )


def nonce_of(suspect: str, root: str) -> str:
    """Return what splits or orders the trials: fixed by the suspect and the ledger's head.

    The claimant names the suspect first; whoever keeps the ledger then fixes the root. Anyone
    computes the same value from the claim.
    """
    return codec.digest(f"earmark/nonce/1\n{suspect}\n{root}\n".encode())


@dataclass(frozen=True)
class Service:
    """A remote suspect with the key and the policy that it is asked for.

    Args:
        host: The suspect.
        path: Its transcript.
        known: Answers that the transcript held before.
    """

    host: EndpointHost
    path: Path
    known: int

    @classmethod
    def open(
        cls,
        address: str,
        key: Key,
        vault: Vault,
        *,
        adapter: Path | None,
        budget: int | None,
        transcript: Path | None,
    ) -> Service:
        """Open an address; nothing is asked yet.

        Args:
            address: The address, which replaces the adapter file's own.
            key: The owner's key.
            vault: Where transcripts are kept unless a file is named.
            adapter: The adapter file; null asks with JSON arrays and reads `predictions`.
            budget: Different inputs that may be asked in all; null leaves the adapter's limit.
            transcript: The transcript's file.

        Raises:
            UsageError: The key's scheme needs more than labels, or the transcript is another's or
                holds more answers than the budget allows.
            FileError, FormatError: The adapter or the transcript cannot be read.
        """
        from earmark.hosts.adapter import Adapter
        from earmark.hosts.endpoint import EndpointHost

        needs = registry.scheme(key.layout.scheme).needs
        if not needs <= {Access.LABELS}:
            wanted = ", ".join(sorted(item.value for item in needs))
            raise UsageError(
                f"Scheme '{key.layout.scheme}' reads {wanted}; an address shows labels only.",
                hint="Protect with --scheme deepsigns-blackbox, or verify the model's file.",
            )
        asked = (
            Adapter.of({"url": address}) if adapter is None else Adapter.load(adapter, url=address)
        )
        asked = asked if budget is None else asked.within(budget)
        name = hashlib.sha256(asked.source().encode()).hexdigest()
        path = transcript or vault.transcript(f"{key.layout.digest()[:12]}-{name[:12]}")
        nonce = nonce_of(name, vault.ledger.head().root.hex())
        host = EndpointHost(asked, transcript=path, nonce=nonce)
        known = len(host.transcript.answers)
        if asked.limits.budget is not None and known > asked.limits.budget:
            raise UsageError(
                f"Transcript '{path}' holds {known} answers, more than a budget of "
                f"{asked.limits.budget}.",
                hint="Raise the budget: whoever leaves out known answers chooses among them.",
            )
        return cls(host, path, known)

    def measure(self, key: Key, policy: Policy, bars: Bars) -> Evidence:
        """Ask until the evidence suffices for the policy, or the budget or the key ends.

        Args:
            key: The owner's key.
            policy: What is asked for; its `tried_keys` are all tries that will be charged.
            bars: Who is told.
        """
        limits = self.host.adapter.limits
        most = key.layout.message_bits
        most = most if limits.budget is None else min(most, limits.budget)
        bars.note(
            f"asking at most {most} questions, {limits.per_second:g} a second at most; "
            f"{self.known} answers are known ..."
        )
        if sent := self.host.adapter.variables():
            bars.note(f"The adapter sends what the environment holds as {', '.join(sent)}.")
        if self.host.adapter.exposed():
            bars.note("The adapter's secret headers travel unencrypted: the address is http.")
        enough = policy.bits + math.log2(policy.tried_keys)
        scheme = registry.scheme(key.layout.scheme, stop_bits=enough)
        return scheme.measure(self.host, key, nonce=self.host.nonce)

    def lines(self) -> list[str]:
        """Describe what was asked."""
        total = len(self.host.transcript.answers)
        return [
            line("asked", f"{total - self.known} questions now, {total} in all"),
            line("transcript", str(self.path)),
        ]

    def attachments(self) -> dict[str, bytes]:
        """Return the transcript for a dossier: who recomputes the suspect's digest needs it."""
        from earmark.report.dossier import TRANSCRIPT

        return {TRANSCRIPT: self.path.read_bytes()}


def service_options(function: Callable[..., Any]) -> Callable[..., Any]:  # Any: a command
    """Add the options that hold for an address only."""
    import click

    path, count = click.Path(path_type=Path), click.IntRange(min=1)
    record = "Record of an address's answers; by default in the vault."
    for option in (
        click.option("--transcript", type=path, help=record),
        click.option("--budget", type=count, help="Questions that an address may be asked in all."),
        click.option("--adapter", type=path, help="TOML file that says how to ask an address."),
    ):
        function = option(function)
    return function
