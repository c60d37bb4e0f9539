"""Signed envelopes: a DSSE envelope around an in-toto statement, in one canonical form.

What is signed is DSSE's pre-authentication encoding of the payload's type and bytes, so that a
signature over one kind of payload never passes for another. Reading is strict: the envelope and
the statement inside must be canonical JSON, there is exactly one signature, and it must verify
under the key that it names. An accepted envelope therefore has one byte string and one digest.

Source: DSSE v1 (secure-systems-lab/dsse) and in-toto Statement v1. We are stricter: one signature,
canonical JSON (RFC 8785) inside and outside, canonical base64, the Ed25519 key itself as key id.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec
from earmark.codec import Json
from earmark.errors import LedgerError, RecordError, SignatureError
from earmark.ledger.note import ED25519, VerifierKey, from_base64, to_base64

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_ENVELOPE_BYTES = 1 << 20


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: what is signed.

    Example:
        >>> pae("http://example.com/HelloWorld", b"hello world")
        b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def verify_key(public: str, message: bytes, signature: bytes) -> None:
    """Check a bare Ed25519 signature under a public key of 64 hexadecimal digits.

    Raises:
        SignatureError: A weak or malformed key, or the signature does not verify.
    """
    try:
        raw = bytes.fromhex(public)
    except ValueError as error:
        raise SignatureError(f"'{public[:80]}' is no public key.") from error
    VerifierKey(public, ED25519, raw).verify(message, signature)


def _object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _items(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError
    return value


@dataclass(frozen=True, slots=True)
class Statement:
    """An in-toto statement.

    Args:
        predicate_type: Says what the predicate is.
        subjects: Name and SHA-256 of what it speaks of, in order of name.
        predicate: The message itself.
    """

    predicate_type: str
    subjects: tuple[tuple[str, str], ...]
    predicate: dict[str, Json]

    def payload(self) -> bytes:
        """Return the statement's canonical bytes."""
        listed: list[Json] = [
            {"name": name, "digest": {"sha256": value}} for name, value in self.subjects
        ]
        return codec.canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": listed,
                "predicateType": self.predicate_type,
                "predicate": dict(self.predicate),
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> Statement:
        """Read a statement; the inverse of `payload`.

        Raises:
            RecordError: Not canonical, or not of this form.
        """
        try:
            body = _object(codec.parse(payload))
            listed = [_object(item) for item in _items(body["subject"])]
            subjects = tuple(
                (str(item["name"]), str(_object(item["digest"])["sha256"])) for item in listed
            )
            made = cls(str(body["predicateType"]), subjects, _object(body["predicate"]))
        except (KeyError, TypeError) as error:
            raise RecordError("This is no in-toto statement of one predicate.") from error
        if made.payload() != payload:
            raise RecordError("A statement has further fields or another form than we write.")
        return made


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed statement.

    Args:
        payload: Canonical bytes of the statement.
        signer: The signer's public key, 64 hexadecimal digits.
        signature: Ed25519 over `pae`, 64 bytes.

    Example:
        >>> key = Ed25519PrivateKey.generate()
        >>> envelope = Envelope.sign(Statement("urn:example:1", (), {"a": 1}), key)
        >>> Envelope.open(envelope.encode()).statement.predicate
        {'a': 1}
    """

    payload: bytes
    signer: str
    signature: bytes

    @classmethod
    def sign(cls, statement: Statement, key: Ed25519PrivateKey) -> Envelope:
        """Sign a statement."""
        payload = statement.payload()
        public = key.public_key().public_bytes_raw().hex()
        return cls(payload, public, key.sign(pae(PAYLOAD_TYPE, payload)))

    @property
    def statement(self) -> Statement:
        """The statement inside; strict, see `Statement.parse`."""
        return Statement.parse(self.payload)

    def encode(self) -> bytes:
        """Write the envelope: canonical JSON, what a ledger keeps."""
        signature: Json = {"keyid": self.signer, "sig": to_base64(self.signature)}
        return codec.canonical(
            {
                "payload": to_base64(self.payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [signature],
            }
        )

    def digest(self) -> str:
        """Return SHA-256 of the encoded envelope; names the message everywhere."""
        return codec.digest(self.encode())

    @classmethod
    def open(cls, data: bytes) -> Envelope:
        """Read an envelope and verify its signature.

        Raises:
            RecordError: Not an envelope in the one form that we write.
            SignatureError: The signature does not verify under the key that it names.
        """
        if len(data) > MAX_ENVELOPE_BYTES:
            raise RecordError(f"An envelope of {len(data):,} bytes is too large.")
        try:
            body = _object(codec.parse(data))
            (item,) = (_object(item) for item in _items(body["signatures"]))
            made = cls(
                from_base64(str(body["payload"])), str(item["keyid"]), from_base64(str(item["sig"]))
            )
        except (KeyError, TypeError, ValueError, LedgerError) as error:
            raise RecordError("This is no envelope with one signature.") from error
        if made.encode() != data:
            raise RecordError("An envelope has further fields or another form than we write.")
        verify_key(made.signer, pae(PAYLOAD_TYPE, made.payload), made.signature)
        return made
