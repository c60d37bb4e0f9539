"""How the library reports progress: to an object, never to a terminal.

The command line passes an object that draws bars; the default one says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Events(Protocol):
    """What a listener offers."""

    def note(self, text: str) -> None:
        """Take one sentence about what happens."""

    def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        """Pass items through and show how far they are."""


class Silent:
    """A listener that says nothing.

    Example:
        >>> list(Silent().track([1, 2], label="work"))
        [1, 2]
    """

    def note(self, text: str) -> None:
        """Ignore a note."""

    def track(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:  # noqa: ARG002
        """Pass items through."""
        yield from items


SILENT = Silent()
