"""Checkpoints: the signed head of a log, and the cosignatures of its witnesses.

A checkpoint says "log ORIGIN had SIZE entries with this root". It is a note whose text is ::

    ORIGIN
    SIZE in decimal
    BASE64 of the root
    further lines, if any

The log signs it as a note; a witness that has checked that the log only grew adds a cosignature
with the time of its own clock.

Source: C2SP tlog-checkpoint and tlog-cosignature (c2sp.org), Ed25519 form. We ask in addition that
the log's key carries the origin as its name, so that a key cannot speak for two logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from earmark.errors import LedgerError, SignatureError, UsageError
from earmark.ledger.merkle import HASH_BYTES, MAX_SIZE
from earmark.ledger.note import (
    COSIGNATURE,
    MAX_LINES,
    SIGNATURE_BYTES,
    Note,
    NoteSignature,
    SignerKey,
    VerifierKey,
    from_base64,
    to_base64,
)

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_LINE = re.compile(r"[^\x00-\x1f]+")
_TIME_BYTES = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: a log's name, its number of entries and its root.

    Args:
        origin: Name of the log, one line.
        size: Number of entries, below 2**63.
        root: RFC 6962 root of these entries, 32 bytes.
        extensions: Further lines; we write none.

    Raises:
        LedgerError: A field that cannot stand in a checkpoint.

    Example:
        >>> print(Checkpoint("example.com/log", 0, bytes(32)).text, end="")
        example.com/log
        0
        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(_LINE.fullmatch(line) for line in (self.origin, *self.extensions)):
            raise LedgerError("A checkpoint has an empty line or control characters.")
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise LedgerError(f"A checkpoint of '{self.origin}' has no valid size and root.")
        if len(self.extensions) > MAX_LINES:
            raise LedgerError(f"A checkpoint has more than {MAX_LINES} extension lines.")

    @property
    def text(self) -> str:
        """The note text that is signed."""
        lines = (self.origin, str(self.size), to_base64(self.root), *self.extensions)
        return "".join(line + "\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint's text; the inverse of `text`.

        Raises:
            LedgerError: Fewer than three lines, leading zeros, a root that is no hash, ...
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() or not _SIZE.fullmatch(lines[1]):
            raise LedgerError(
                "A note is no checkpoint.", expected="Lines with origin, decimal size and root."
            )
        return cls(lines[0], int(lines[1]), from_base64(lines[2]), tuple(lines[3:]))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the signatures it came with.

    Args:
        body: The parsed text.
        note: The note it was read from.
    """

    body: Checkpoint
    note: Note

    @classmethod
    def sign(cls, body: Checkpoint, signer: SignerKey) -> SignedCheckpoint:
        """Sign a checkpoint as its log.

        Raises:
            UsageError: The key carries another name than the log.
        """
        if signer.verifier.name != body.origin:
            raise UsageError(
                f"Key '{signer.verifier.name}' cannot sign for the log '{body.origin}'."
            )
        return cls(body, Note(body.text, (signer.sign(body.text),)))

    @classmethod
    def parse(cls, data: str | bytes) -> SignedCheckpoint:
        """Read a signed checkpoint; nothing is verified yet.

        Raises:
            LedgerError: Not a note, or not a checkpoint.
        """
        note = Note.parse(data)
        return cls(Checkpoint.parse(note.text), note)

    @classmethod
    def open(cls, data: str | bytes, key: VerifierKey) -> SignedCheckpoint:
        """Read a signed checkpoint and verify that the log signed it.

        Raises:
            LedgerError: Not a checkpoint, or one of another log.
            SignatureError: Not signed by the key.
        """
        signed = cls.parse(data)
        if signed.origin != key.name:
            raise LedgerError(
                f"The checkpoint is of the log '{signed.origin}'.", expected=f"'{key.name}'."
            )
        signed.note.verify(key)
        return signed

    @property
    def origin(self) -> str:
        """Name of the log."""
        return self.body.origin

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.body.size

    @property
    def root(self) -> bytes:
        """Root over these entries, 32 bytes."""
        return self.body.root

    def __str__(self) -> str:
        return self.note.encode()


def _cosigned(body: Checkpoint, timestamp: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{body.text}".encode()


def cosign(signed: SignedCheckpoint, witness: SignerKey, *, timestamp: int) -> SignedCheckpoint:
    """Add a witness's cosignature. Check the log's signature and consistency *before* this.

    Args:
        signed: The checkpoint, verified by the caller.
        witness: A key of type `COSIGNATURE`.
        timestamp: Seconds since 1970, by the witness's own clock.

    Raises:
        UsageError: The key is of another type, or the time cannot be written.
        LedgerError: The witness has signed this note already.
    """
    key = witness.verifier
    if key.kind != COSIGNATURE or not 0 <= timestamp <= MAX_SIZE:
        raise UsageError(
            f"Key '{key.name}' cannot cosign at time {timestamp}.",
            expected="A witness key (type 4) and seconds since 1970.",
        )
    blob = timestamp.to_bytes(_TIME_BYTES, "big") + witness.raw(_cosigned(signed.body, timestamp))
    item = NoteSignature(key.name, key.key_id, blob)
    note = Note(signed.note.text, (*signed.note.signatures, item))
    return SignedCheckpoint(signed.body, note)


def cosigned_at(signed: SignedCheckpoint, witness: VerifierKey) -> int:
    """Verify a witness's cosignature and return its time.

    Returns:
        Seconds since 1970 by the witness's clock.

    Raises:
        SignatureError: Not cosigned by this witness, or the cosignature does not verify.
    """
    if witness.kind != COSIGNATURE:
        raise SignatureError(f"Key '{witness.name}' is not a witness's (type 4).")
    blob = signed.note.find(witness).blob
    timestamp = int.from_bytes(blob[:_TIME_BYTES], "big")
    if len(blob) != _TIME_BYTES + SIGNATURE_BYTES or timestamp > MAX_SIZE:
        raise SignatureError(f"The cosignature by '{witness.name}' is malformed.")
    witness.verify(_cosigned(signed.body, timestamp), blob[_TIME_BYTES:])
    return timestamp
