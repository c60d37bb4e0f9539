"""The key: 32 secret bytes and a public layout, from which everything else follows.

A key is split into shards. Each shard has its own secret, derived one-way from the key's, so that
a claim can reveal some shards ("burn" them) and keep the others. A commitment fixes owner, layout,
the Merkle root over all shards, and a salt; it goes on a ledger before release. The message (bits
or labels) may be bound to a *beacon*, a ledger value that came after the commitment: then nobody,
the owner included, could have chosen a key to suit a model.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from earmark import codec
from earmark.codec import Json
from earmark.errors import KeyFileError, LedgerError, UsageError
from earmark.keys import sealing
from earmark.keys.stream import KeyStream, derive
from earmark.ledger import merkle
from earmark.records import Commitment, Layout, Opening, Tried, now

_FORMAT = "earmark/sealed-key/1"


START = "start"
"""Name of the layout's parameter that fixes the network to which suspects are aligned."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a key: what a claim reveals, and all that verification of it needs.

    Args:
        index: Position in the key.
        secret: 32 bytes; reveal them and the shard is burnt.
        salt: 32 bytes that hide the secret in its Merkle leaf.
        beacon: The ledger value that the message is bound to, or null.
    """

    index: int
    secret: bytes = field(repr=False)
    salt: bytes = field(repr=False)
    beacon: str | None = None

    def stream(self, label: str) -> KeyStream:
        """Return the shard's keyed stream for one purpose, bound to the beacon if there is one."""
        return KeyStream(self.secret, label, salt=bytes.fromhex(self.beacon or ""))

    def early(self, label: str) -> KeyStream:
        """Return a stream that is fixed at commitment, before any beacon."""
        return KeyStream(self.secret, f"early/{label}")

    def leaf(self) -> bytes:
        """Return the bytes of the shard's Merkle leaf; the beacon is not part of it."""
        body: Json = {
            "index": self.index,
            "secret": codec.digest(b"earmark/shard/1\n" + self.secret),
            "salt": codec.digest(b"earmark/shard-salt/1\n" + self.salt),
        }
        return codec.canonical(body)


@dataclass(frozen=True, slots=True)
class RevealedShard:
    """A shard with the path that proves it belongs to a commitment.

    Args:
        shard: The shard, secret included.
        path: Merkle inclusion path, hexadecimal.
    """

    shard: Shard
    path: tuple[str, ...]

    def belongs_to(self, opening: Opening) -> bool:
        """Tell whether the shard is one of those that the opening's root fixes."""
        try:
            merkle.verify_inclusion(
                merkle.leaf_hash(self.shard.leaf()),
                self.shard.index,
                opening.layout.shards,
                [bytes.fromhex(item) for item in self.path],
                bytes.fromhex(opening.shard_root),
            )
        except (LedgerError, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Key:
    """A secret with its public layout.

    Args:
        layout: The public half.
        beacon: The ledger value that the message is bound to, or null while there is none.
        inputs: The key's inputs (a tree of arrays), for schemes that have some; see
            :mod:`earmark.hosts.batches`. Only their digest is in the layout.

    Example:
        >>> key = Key.generate(Layout("demo", 1, ("fc",), 256, 4))
        >>> key
        Key(demo, 256 bits in 4 shards, layout 99cf17b4)
        >>> len(key.shards), len(key.shard(0).stream("labels").bits(64))
        (4, 64)
    """

    layout: Layout
    _secret: bytes = field(repr=False)
    beacon: str | None = None
    inputs: Any = field(default=None, repr=False, compare=False)  # Any: a tree of arrays

    def __post_init__(self) -> None:
        if len(self._secret) != 32:
            raise UsageError(
                f"A key's secret has {len(self._secret)} bytes.", expected="Exactly 32."
            )

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"Key({layout.scheme}, {layout.message_bits} bits in {layout.shards} shards, "
            f"layout {layout.digest()[:8]})"
        )

    @classmethod
    def generate(
        cls,
        layout: Layout,
        *,
        secret: bytes | None = None,
        inputs: Any = None,  # Any: a tree of arrays
    ) -> Key:
        """Make a key from fresh randomness, or from a given secret (tests, child keys).

        Args:
            layout: The public half.
            secret: 32 bytes, or null to draw them.
            inputs: The key's inputs, if the scheme has some.

        Raises:
            UsageError: The secret has another length.
        """
        return cls(layout, secrets.token_bytes(32) if secret is None else secret, None, inputs)

    def child(self, label: str, *, layout: Layout | None = None) -> Key:
        """Return an independent key for a purpose or a customer, derived one-way from this one."""
        return Key(layout or self.layout, derive(self._secret, f"child/{label}"), None, self.inputs)

    def bind(self, beacon: str) -> Key:
        """Return the key with its message bound to a ledger value.

        Args:
            beacon: 64 hexadecimal digits, from a checkpoint that includes the commitment.

        Raises:
            UsageError: Not a digest, or the key is bound to another value already.
        """
        if len(beacon) != 64 or set(beacon) - set("0123456789abcdef"):
            raise UsageError(f"Beacon {beacon!r} is not 64 lower-case hexadecimal digits.")
        if self.beacon not in (None, beacon):
            raise UsageError("This key is bound to another beacon already.")
        return replace(self, beacon=beacon)

    def fixing(self, start: str) -> Key:
        """Return the unbound key with what suspects are aligned to fixed in its layout.

        Whoever may choose that after he knows the message can make any model look guilty.

        Args:
            start: Digest of the network before its mark, 64 hexadecimal digits.

        Raises:
            UsageError: Not a digest, or the key is bound already.
        """
        if len(start) != 64 or set(start) - set("0123456789abcdef"):
            raise UsageError(f"Digest {start!r} is not 64 lower-case hexadecimal digits.")
        if self.beacon is not None:
            raise UsageError("This key is bound already; its layout is fixed.")
        params = {**self.layout.params, START: start}
        return replace(self, layout=replace(self.layout, params=params))

    def shard(self, index: int) -> Shard:
        """Return one shard.

        Raises:
            UsageError: No shard has that index.
        """
        if not 0 <= index < self.layout.shards:
            raise UsageError(f"Shard {index} does not exist; this key has {self.layout.shards}.")
        return Shard(
            index,
            derive(self._secret, f"shard/{index}"),
            derive(self._secret, f"shard-salt/{index}"),
            self.beacon,
        )

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards in order."""
        return tuple(self.shard(index) for index in range(self.layout.shards))

    def reveal(self, indices: Sequence[int]) -> tuple[RevealedShard, ...]:
        """Return shards with their Merkle paths, for a claim."""
        nodes, _ = self._tree()

        def read(level: int, index: int) -> bytes:
            return nodes[merkle.address(level, index)]

        paths = [merkle.inclusion_proof(read, index, self.layout.shards) for index in indices]
        return tuple(
            RevealedShard(self.shard(index), tuple(item.hex() for item in path))
            for index, path in zip(indices, paths, strict=True)
        )

    def _tree(self) -> tuple[list[bytes], bytes]:
        """Return the complete nodes over the shards, by address, and the root."""
        peaks: tuple[bytes, ...] = ()
        nodes: list[bytes] = []
        for size, shard in enumerate(self.shards):
            peaks, new = merkle.grow(peaks, size, merkle.leaf_hash(shard.leaf()))
            nodes.extend(new)
        return nodes, merkle.fold(peaks)

    def opening(self, owner: str) -> Opening:
        """Return what opens the key's commitment without giving away a shard."""
        _, root = self._tree()
        salt = derive(self._secret, f"salt/{owner}/{self.layout.digest()}")
        return Opening(owner, self.layout, root.hex(), salt.hex())

    def commit(self, owner: str, *, created: str | None = None) -> Commitment:
        """Return the commitment that goes on a ledger before release.

        Args:
            owner: The owner's public key, 64 hexadecimal digits.
            created: A time in UTC; now if null.
        """
        return Commitment(owner, self.opening(owner).commitment(), created or now())

    def seal(self, path: str | Path, passphrase: str, *, overwrite: bool = False) -> None:
        """Write the key to disk, encrypted under a passphrase; inputs are not written here.

        Raises:
            UsageError: The passphrase is empty, or the file exists and may not be overwritten.
            OutputError: The file cannot be written.
        """
        public: dict[str, Json] = {"layout": self.layout.to_json(), "beacon": self.beacon}
        sealing.seal(path, passphrase, self._secret, public, format=_FORMAT, overwrite=overwrite)

    @classmethod
    def open(cls, path: str | Path, passphrase: str) -> Key:
        """Read a sealed key.

        Raises:
            FileError: Missing or unreadable.
            FormatError: Not a sealed key.
            PassphraseError: Wrong passphrase, or the file was changed.
        """
        secret, public = sealing.unseal(path, passphrase, format=_FORMAT)
        beacon = public.get("beacon")
        layout = Layout.from_json(public.get("layout"))
        return cls(layout, secret, None if beacon is None else str(beacon))


def tried(key: Key | Disclosure, *, forms: int = 1) -> Tried:
    """Return what a measurement with this key must be charged for.

    Args:
        key: The whole key, or the shards that a claim reveals.
        forms: Readings from which the best was taken.
    """
    whole = key.layout.shards
    return Tried(forms=forms, of_shards=whole if len(key.shards) < whole else 0)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """The part of a key that a claim reveals: stands in for the key in verification.

    Args:
        opening: Opens the commitment.
        revealed: The revealed shards with their Merkle paths.
        inputs: The inputs of those shards, for schemes that have some.
    """

    opening: Opening
    revealed: tuple[RevealedShard, ...] = field(repr=False)
    inputs: Any = field(default=None, repr=False, compare=False)  # Any: a tree of arrays

    @property
    def layout(self) -> Layout:
        """The key's layout."""
        return self.opening.layout

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The revealed shards."""
        return tuple(item.shard for item in self.revealed)

    def check(self) -> None:
        """Refuse shards that the opening does not fix, or whose messages could be one message.

        Shards of one secret have the same labels: whoever commits to one secret many times would
        have one coin count as many.

        Raises:
            KeyFileError: A shard does not belong to the commitment, one is named twice, two have
                the same secret, or they are bound to different ledger values.
        """
        if len({shard.index for shard in self.shards}) != len(self.shards):
            raise KeyFileError("A disclosure names a shard twice.")
        if len({shard.secret for shard in self.shards}) != len(self.shards):
            raise KeyFileError(
                "Two shards of this disclosure have the same secret.",
                expected="A secret of its own for each shard, as every honest key has.",
                hint="Do not count on this key: its answers are not independent.",
            )
        if len({shard.beacon for shard in self.shards}) > 1:
            raise KeyFileError(
                "The shards of this disclosure are bound to different ledger values.",
                expected="One value, the beacon of the key's commitment.",
            )
        for item in self.revealed:
            if not item.belongs_to(self.opening):
                raise KeyFileError(
                    f"Shard {item.shard.index} does not belong to the committed key.",
                    hint="Ask the claimant for the shards of the key that was registered.",
                )
