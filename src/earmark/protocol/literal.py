"""The protocol as it was published, word for word, kept to show what it admits. Not for use.

An owner broadcasts ``key, time, hash(backend)``, signed; clients check signature and time and store
it. To claim, he broadcasts the places of the model and of the backend. A client finds the
publication, compares the hash, runs the verification, and says yes or no; the simple majority
decides, and of several accepted claims the earliest publication wins.

The hash does not bind the one who publishes it. Whoever sees the broadcast and has it ordered first
holds the same publication under his own name, validly signed; once the owner shows the backend he
can show it too, and his is the earlier one. `earmark.protocol.history` puts the owner inside the
hash instead.

Source: Li and Wang, "Secure watermark for deep neural networks with multi-task learning" (2021),
the sections on publication and claim; messages and order of checks as there. We add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec
from earmark.errors import SignatureError
from earmark.protocol.envelope import verify_key

WINDOW = 600
"""Seconds by which a publication's own time may differ from a client's clock."""

Verify = Callable[[bytes, str, bytes], bool]
"""Tells whether a model carries the mark of a key, read by a backend: (model, key, backend)."""


@dataclass(frozen=True, slots=True)
class LiteralPublish:
    """``⟨Publish : key ‖ time ‖ hash(backend)⟩`` as ordered by the consensus layer.

    Args:
        sender: Public key of who signed it.
        key: The key, in the clear.
        time: What the sender says.
        backend: SHA-256 of the backend.
        signature: Over ``text``.
    """

    sender: str
    key: str
    time: int
    backend: str
    signature: bytes = b""

    def text(self) -> bytes:
        """Return what is signed; the sender is not in it."""
        return f"Publish\n{self.key}\n{self.time}\n{self.backend}\n".encode()

    def signed(self, by: Ed25519PrivateKey) -> LiteralPublish:
        """Return the same publication under somebody's name."""
        sender = by.public_key().public_bytes_raw().hex()
        return replace(self, sender=sender, signature=by.sign(self.text()))


@dataclass(frozen=True, slots=True)
class LiteralClaim:
    """``⟨OwnershipVerification : model ‖ backend⟩``, fetched by every client.

    Args:
        sender: Public key of who signed it.
        model: The model's bytes.
        backend: The backend's bytes.
        signature: Over ``text``.
    """

    sender: str
    model: bytes
    backend: bytes
    signature: bytes = b""

    def text(self) -> bytes:
        """Return what is signed: the places, here digests, of both objects."""
        places = f"{codec.digest(self.model)}\n{codec.digest(self.backend)}\n"
        return b"OwnershipVerification\n" + places.encode()

    def signed(self, by: Ed25519PrivateKey) -> LiteralClaim:
        """Return the same claim under somebody's name."""
        sender = by.public_key().public_bytes_raw().hex()
        return replace(self, sender=sender, signature=by.sign(self.text()))


def _valid(message: LiteralPublish | LiteralClaim) -> bool:
    try:
        verify_key(message.sender, message.text(), message.signature)
    except SignatureError:
        return False
    return True


def stores(message: LiteralPublish, now: int) -> bool:
    """Tell whether a client stores a publication: validly signed, and its time is about now."""
    return _valid(message) and abs(message.time - now) <= WINDOW


def vote(
    log: Sequence[LiteralPublish], claim: LiteralClaim, verify: Verify
) -> LiteralPublish | None:
    """Do what one client does with a claim: return the publication that it accepts, or null."""
    if not _valid(claim):
        return None
    for item in log:
        if item.sender != claim.sender or item.backend != codec.digest(claim.backend):
            continue
        if verify(claim.model, item.key, claim.backend):
            return item
    return None


def resolve_literal(
    log: Sequence[LiteralPublish], claims: Sequence[LiteralClaim], clients: Sequence[Verify]
) -> str | None:
    """Decide as published: simple majority for each claim, then the earliest publication.

    Args:
        log: Publications that clients have stored, in the order of the consensus layer.
        claims: Claims on one model.
        clients: Each client's own run of the verification.

    Returns:
        The owner, or null if no claim has a majority.
    """
    accepted: list[LiteralPublish] = []
    for claim in claims:
        votes = [vote(log, claim, verify) for verify in clients]
        found = next((item for item in votes if item is not None), None)
        if found is not None and 2 * sum(item is not None for item in votes) > len(clients):
            accepted.append(found)
    return min(accepted, key=log.index).sender if accepted else None
