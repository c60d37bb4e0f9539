"""What a lock is: it distils a private teacher into copies that work only with a serial number.

Adding one is a new file with one frozen dataclass and one line in :mod:`earmark.registry`.

A neural lock deters casual use of weights that were dumped or passed on. It is no cryptography: a
licensee can wrap his copy (:class:`earmark.locks.entry.Opened`) or distil it, and whoever holds the
weights and enough skill can find the number in them. Real security lies in the encrypted file
around it (:mod:`earmark.locks.license`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from earmark.errors import KeyLayoutError
from earmark.events import SILENT, Events
from earmark.hosts.batches import Tree
from earmark.locks.entry import Entry, Opened, code_of, entry_of
from earmark.records import Layout
from earmark.task import Task


class Lock(ABC):
    """A way to make a model need a serial number. Subclasses are frozen dataclasses.

    Class attributes:
        name: Name in the registry.
        summary: One sentence.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""

    @abstractmethod
    def layout(self, task: Task) -> Layout:
        """Describe the way in that fits a task; public, and shipped beside the copy.

        Raises:
            CapacityError: The inputs have no room for so many bits.
            HostError: Inputs of a kind that the lock has no way into.
        """

    @abstractmethod
    def fit(
        self,
        task: Task,
        teacher: nn.Module,
        serial: bytes,
        *,
        layout: Layout,
        seed: int,
        model: nn.Module | None = None,
        others: Sequence[bytes] = (),
        events: Events = SILENT,
    ) -> nn.Module:
        """Distil a teacher into a copy that works only with a serial number.

        Args:
            task: The owner's work; its training batches are used.
            teacher: The private model, not changed.
            serial: The serial number, 16 bytes.
            layout: From :meth:`layout`.
            seed: Seed of everything that is drawn besides the number.
            model: A model to start from, changed in place; a fresh one of the task if null.
            others: Other customers' numbers, which must not open this copy.
            events: Who hears of the progress.

        Returns:
            The locked copy, of the task's own class, in evaluation mode.
        """

    def entry(self, layout: Layout, serial: bytes) -> Entry:
        """Return the way in for a serial number.

        Raises:
            KeyLayoutError: The layout is of another lock.
        """
        if layout.scheme != "dsn":
            raise KeyLayoutError(f"This layout is of '{layout.scheme}', not of a lock.")
        return entry_of(layout, serial)

    def present(self, batch: Tree, layout: Layout, serial: bytes) -> Tree:
        """Return a batch with the serial number presented."""
        return self.entry(layout, serial).present(batch, code_of(serial, layout.message_bits))

    def opened(self, model: nn.Module, layout: Layout, serial: bytes) -> Opened:
        """Return the copy with a number built in, as its licensee uses it; training mode is off."""
        made = Opened(model, self.entry(layout, serial), code_of(serial, layout.message_bits))
        return made.eval()
