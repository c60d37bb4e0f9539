"""What a scheme is: it makes keys, attaches a mark to a training loop, and counts.

Adding one is a new file with one frozen dataclass and one line in :mod:`earmark.registry`. Hold it
to the house's rules with :func:`earmark.testing.check_scheme`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from earmark.errors import KeyLayoutError, UsageError
from earmark.hosts.access import Forward, Host, Tree, plain_forward
from earmark.keys.secret import Disclosure, Key
from earmark.records import Access, Evidence

if TYPE_CHECKING:
    from torch import Tensor, nn


class Mark(ABC):
    """A mark while it is being embedded: a term to add to the user's own loss.

    In each step: ``batch = mark.mix(batch)`` (optional, where inputs of the key ride in the task's
    batches), then ``loss = task_loss + mark.loss()``, then the optimizer's step, then
    ``mark.after_step(lr)`` (optional, where the scheme updates weights by itself).
    """

    def mix(self, batch: Tree) -> Tree:
        """Return the batch with some samples replaced by inputs of the key; by default as it is."""
        return batch

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the mark's term, a scalar in float32 with its weight applied."""

    def after_step(self, lr: float) -> None:
        """Do what the scheme does after an optimizer step at learning rate `lr`."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return parameters of the mark's own (a private head) that the mark trains by itself."""
        yield from ()

    def state_dict(self) -> Mapping[str, Any]:  # Any: tensors and plain values
        """Return what a resumed training needs of the mark."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take back what :meth:`state_dict` gave."""


class Scheme(ABC):
    """A way to embed and measure a mark. Subclasses are frozen dataclasses.

    Class attributes:
        name: Name in the registry.
        version: Version of the measurement; a key of another version is refused.
        needs: Access that measuring needs.
        needs_inputs: Whether new keys need inputs (a batch of the task's own kind).
        claims_distillation: Whether the mark is claimed to survive distillation.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Access]]
    needs_inputs: ClassVar[bool] = False
    summary: ClassVar[str] = ""

    @abstractmethod
    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key that fits a host.

        Args:
            host: The model to be marked (its shapes and names are read, nothing else).
            inputs: Candidate inputs, for schemes that need some: a batch of the task's own kind.
            secret: 32 bytes, or null to draw them.

        Raises:
            CapacityError: The host cannot carry so many bits.
            CarrierError: A carrier or tap matches nothing.
            UsageError: The scheme needs inputs and there are none.
        """

    @abstractmethod
    def attach(
        self, model: nn.Module, key: Key, *, forward: Forward = plain_forward
    ) -> AbstractContextManager[Mark]:
        """Attach a mark to a model for the time of a `with` block.

        After the block the model has the same class, the same state-dict keys and no hook.

        Raises:
            KeyLayoutError: The key was made for another scheme or layout.
            CarrierError: The model lacks the key's carrier.
        """

    def prepare(self, model: nn.Module, key: Key) -> None:
        """Ready fresh parameters for :meth:`begin`, from the secret alone; usually nothing is done.

        Suspects are aligned to what this leaves: it is known before the message is.
        """

    def begin(self, model: nn.Module, key: Key, *, fresh: bool) -> None:
        """Change a model's weights, in place, before the training that embeds the mark.

        Args:
            model: The model that will be trained.
            key: The key.
            fresh: Whether the model was just initialized; otherwise it was trained before.

        Raises:
            KeyLayoutError: The key was made for another scheme or layout.
            CarrierError: The model lacks the key's carrier.
        """

    @abstractmethod
    def measure(
        self, suspect: Host, key: Key | Disclosure, *, nonce: str | None = None
    ) -> Evidence:
        """Count on a suspect. No opinion, no threshold; the suspect is not changed.

        Args:
            suspect: The model under test.
            key: The key, or the part of it that a claim reveals.
            nonce: 64 hexadecimal digits that the claimant did not choose, for schemes that split
                or order their trials; null derives one from the suspect and the layout, which is
                good enough for the key's own holder and for nobody else.

        Raises:
            AccessError: The suspect grants too little.
            KeyLayoutError: The key was made for another scheme or version.
            CarrierError: The suspect lacks the carrier.
        """

    def inputs_wanted(self) -> int:
        """Return how many candidate inputs a new key wants; 0 if the scheme needs none."""
        return 0

    def check_key(self, key: Key | Disclosure) -> None:
        """Refuse a key of another scheme or version, and shards that do not belong to their key.

        Raises:
            KeyLayoutError: Scheme or version differ.
            KeyFileError: A disclosure's shards are not those that were committed to.
        """
        layout = key.layout
        if (layout.scheme, layout.version) != (self.name, self.version):
            raise KeyLayoutError(
                f"This key was made for '{layout.scheme}' version {layout.version}, "
                f"not for '{self.name}' version {self.version}.",
                hint="Use the scheme that the key names:  earmark schemes",
            )
        if isinstance(key, Disclosure):
            key.check()

    def need_inputs(self, inputs: Tree | None) -> Tree:
        """Return the inputs, or refuse their absence.

        Raises:
            UsageError: There are none.
        """
        if inputs is None:
            raise UsageError(
                f"Scheme '{self.name}' needs inputs of the task's own kind for a new key.",
                hint="Pass inputs=..., a batch of samples that you keep to yourself.",
            )
        return inputs
