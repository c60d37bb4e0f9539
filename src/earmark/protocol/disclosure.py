"""The file with a claim's revealed shards, and the key's part that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from earmark.errors import KeyFileError, RecordError
from earmark.keys.secret import Disclosure, Key, RevealedShard, Shard
from earmark.records import Layout, Opening, Record


@dataclass(frozen=True, slots=True)
class ShardItem(Record):
    """One revealed shard, hexadecimal.

    Args:
        index: Position in the key.
        secret: 64 digits.
        salt: 64 digits.
        path: Merkle inclusion path.
    """

    SCHEMA: ClassVar[str] = "earmark/shard/1"
    index: int
    secret: str
    salt: str
    path: tuple[str, ...]

    def __post_init__(self) -> None:
        for value in (self.secret, self.salt):
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise RecordError("A revealed shard is not of 64 hexadecimal digits.")

    def __repr__(self) -> str:
        return f"ShardItem({self.index})"


@dataclass(frozen=True, slots=True)
class DisclosureFile(Record):
    """What a claim reveals. Whoever has it can read these shards, and can erase them.

    Args:
        beacon: The ledger value that the key is bound to, or null.
        shards: The revealed shards.
    """

    SCHEMA: ClassVar[str] = "earmark/disclosure/1"
    beacon: str | None
    shards: tuple[ShardItem, ...]

    @classmethod
    def of(cls, key: Key, indices: Sequence[int]) -> DisclosureFile:
        """Reveal some shards of a key."""
        return cls(
            key.beacon,
            tuple(
                ShardItem(
                    item.shard.index,
                    item.shard.secret.hex(),
                    item.shard.salt.hex(),
                    item.path,
                )
                for item in key.reveal(sorted(set(indices)))
            ),
        )

    def disclosure(
        self,
        opening: Opening,
        *,
        inputs: Any = None,  # Any: a tree of arrays
    ) -> Disclosure:
        """Return what stands in for the key, checked against the opening.

        Args:
            opening: Opens the commitment.
            inputs: What `inputs_of` shows; whoever measures checks them against the layout.

        Raises:
            KeyFileError: A shard does not belong to the committed key.
        """
        revealed = tuple(
            RevealedShard(
                Shard(
                    item.index, bytes.fromhex(item.secret), bytes.fromhex(item.salt), self.beacon
                ),
                item.path,
            )
            for item in self.shards
        )
        made = Disclosure(opening, revealed, inputs)
        made.check()
        return made

    def require(self, shards: Sequence[int], beacon: str | None) -> None:
        """Refuse a file that reveals other shards, or is bound to another value, than agreed.

        Raises:
            KeyFileError: It does.
        """
        shown = [item.index for item in self.shards]
        if shown != sorted(set(shards)):
            raise KeyFileError(
                "The disclosure reveals other shards than the claim names, or not in their order.",
                expected=f"Shards {sorted(set(shards))}, in this order.",
            )
        if self.beacon != beacon:
            raise KeyFileError("The disclosure is bound to another beacon than its commitment.")


def by_shard(layout: Layout) -> bool:
    """Tell whether a layout fixes the inputs of each shard by a digest of their own."""
    listed = layout.params.get("inputs")
    return isinstance(listed, (list, tuple)) and len(listed) == layout.shards


def inputs_of(key: Key, indices: Sequence[int]) -> bytes:
    """Return the file with the inputs that a claim on some shards has to show, and no others.

    Args:
        key: With its inputs.
        indices: The shards; they are shown in their own order, whatever this one is.
    """
    import tempfile
    from pathlib import Path

    from earmark.hosts import batches

    shown = key.inputs
    if by_shard(key.layout):
        each = key.layout.message_bits // key.layout.shards
        rows = [
            row for index in sorted(set(indices)) for row in range(each * index, each * (index + 1))
        ]
        shown = batches.take(key.inputs, rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.safetensors"
        batches.save(shown, path, mode=0o600)
        return path.read_bytes()
