"""Signed notes: a short text and the Ed25519 signatures of those who vouch for it.

A note is text that ends in a newline, a blank line, and one line per signature::

    — NAME BASE64(key id, 4 bytes ‖ signature)

Reading is strict. Whatever could be written in two ways is refused, so that a note that was
accepted has exactly one byte string. Signatures of unknown keys are kept and ignored, which is what
lets witnesses add theirs; a signature of a known key that does not verify refuses the whole note.

Source: C2SP signed-note (c2sp.org/signed-note); key encodings of golang.org/x/mod/sumdb/note.
We are stricter: no second signature by the same key, at most `MAX_LINES` signatures, no public key
of small order (which would verify any text), base64 and hexadecimal only in canonical form.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from earmark.errors import LedgerError, SignatureError, UsageError

ED25519 = 0x01
"""Signature type of a plain Ed25519 note signature."""
COSIGNATURE = 0x04
"""Signature type of a timestamped Ed25519 witness cosignature."""

MAX_LINES = 63
MAX_NOTE_BYTES = 1 << 17
KEY_BYTES = 32
SIGNATURE_BYTES = 64

_DASH = "— "
_SECRET = "PRIVATE+KEY+"  # noqa: S105 - the prefix of the encoding, no secret
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_FIELD_PRIME = 2**255 - 19
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8_Y, _FIELD_PRIME - _ORDER_8_Y})


def _malformed(what: str) -> LedgerError:
    return LedgerError(what, expected="A signed note as C2SP describes it, byte for byte.")


def _unkey(what: str) -> SignatureError:
    return SignatureError(what, expected="NAME+8 hexadecimal digits+BASE64.")


def to_base64(data: bytes) -> str:
    """Encode bytes in standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str) -> bytes:
    r"""Decode standard base64 in its one canonical form.

    Raises:
        LedgerError: Other characters, missing padding, or bits that are not zero at the end.

    Example:
        >>> from_base64("AAA=")
        b'\x00\x00'
    """
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise _malformed(f"'{text[:48]}' is not base64.") from error
    if to_base64(data) != text:
        raise _malformed(f"'{text[:48]}' is not canonical base64.")
    return data


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _malformed("A note is not valid Unicode.") from error


def _check_name(name: str) -> None:
    if not name or "+" in name or _CONTROL.search(name) or any(char.isspace() for char in name):
        raise _malformed(f"'{name[:48]}' is no key name: empty, or with spaces, plus or controls.")
    _encode(name)


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise _malformed("A note's text does not end in a newline.")
    if _CONTROL.search(text):
        raise _malformed("A note holds control characters (carriage returns, tabs, ...).")


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """Compute the four bytes that point to a key on a signature line."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line of a note.

    Args:
        name: Name of the key.
        key_id: Four bytes that, with the name, identify the key and its signature type.
        blob: The signature itself; what it means depends on the type.
    """

    name: str
    key_id: bytes
    blob: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.key_id) != 4 or not self.blob:
            raise _malformed("A signature line holds fewer than five bytes.")

    def line(self) -> str:
        """Write the signature line, without its newline."""
        return f"{_DASH}{self.name} {to_base64(self.key_id + self.blob)}"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name and signature type: what a reader pins.

    Args:
        name: Name of the key; for a log, its origin.
        kind: `ED25519` or `COSIGNATURE`.
        public: The Ed25519 public key, 32 bytes.

    Raises:
        SignatureError: A bad name, an unknown type, or a public key of small order.

    Example:
        >>> vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        >>> str(VerifierKey.parse(vkey)) == vkey
        True
    """

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        try:
            _check_name(self.name)
        except LedgerError as error:
            raise _unkey(error.what) from error
        if self.kind not in (ED25519, COSIGNATURE):
            raise _unkey(f"Key '{self.name}' has the unknown signature type {self.kind}.")
        if len(self.public) != KEY_BYTES:
            raise _unkey(f"Key '{self.name}' has {len(self.public)} bytes, not {KEY_BYTES}.")
        y = int.from_bytes(self.public, "little") & (2**255 - 1)
        if y >= _FIELD_PRIME or y in _SMALL_ORDER_Y:
            raise _unkey(f"Key '{self.name}' is weak: signatures under it prove nothing.")

    @classmethod
    def parse(cls, vkey: str) -> VerifierKey:
        """Read ``NAME+ID+BASE64``.

        Raises:
            SignatureError: Malformed, or the id does not belong to the key.
        """
        name, kind, public, found = _split_key(vkey)
        key = cls(name, kind, public)
        if found != key.key_id:
            raise _unkey(f"Key '{name}' does not match its id {found.hex()}.")
        return key

    @property
    def key_id(self) -> bytes:
        """Four bytes that stand for this key on a signature line."""
        return key_id(self.name, self.kind, self.public)

    def __str__(self) -> str:
        material = to_base64(bytes([self.kind]) + self.public)
        return f"{self.name}+{self.key_id.hex()}+{material}"

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a bare Ed25519 signature.

        Raises:
            SignatureError: It does not verify.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError(
                f"The signature by '{self.name}' does not verify.",
                hint="The text or the signature was changed, or another key signed.",
            ) from error


def _split_key(text: str) -> tuple[str, int, bytes, bytes]:
    """Split NAME+ID+BASE64 into name, type, key bytes and id."""
    parts = text.split("+", 2)
    if len(parts) != 3 or not re.fullmatch(r"[0-9a-f]{8}", parts[1]):
        raise _unkey("A key is not of the form NAME+ID+BASE64.")
    try:
        material = from_base64(parts[2])
    except LedgerError as error:
        raise _unkey("A key's last part is not canonical base64.") from error
    if not material:
        raise _unkey("A key is empty.")
    return parts[0], material[0], material[1:], bytes.fromhex(parts[1])


class SignerKey:
    """A private key with its name and signature type. Its secret is in no repr.

    Args:
        name: Name of the key; for a log, its origin.
        private: The Ed25519 private key.
        kind: `ED25519` for notes, `COSIGNATURE` for witnesses. Never use one private key for both.

    Raises:
        SignatureError: A bad name or an unknown type.
    """

    __slots__ = ("_private", "verifier")

    def __init__(self, name: str, private: Ed25519PrivateKey, *, kind: int = ED25519) -> None:
        self._private = private
        self.verifier = VerifierKey(name, kind, private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str, *, kind: int = ED25519) -> SignerKey:
        """Make a new key from the operating system's randomness."""
        return cls(name, Ed25519PrivateKey.generate(), kind=kind)

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """Read ``PRIVATE+KEY+NAME+ID+BASE64``.

        Raises:
            SignatureError: Malformed, or the id does not belong to the key. The error does not
                quote the text.
        """
        if not text.startswith(_SECRET):
            raise _unkey("A signing key does not begin with PRIVATE+KEY+.")
        name, kind, seed, found = _split_key(text.removeprefix(_SECRET))
        if len(seed) != KEY_BYTES:
            raise _unkey(f"Signing key '{name}' has {len(seed)} bytes, not {KEY_BYTES}.")
        key = cls(name, Ed25519PrivateKey.from_private_bytes(seed), kind=kind)
        if found != key.verifier.key_id:
            raise _unkey(f"Signing key '{name}' does not match its id {found.hex()}.")
        return key

    def export(self) -> str:
        """Write the secret as ``PRIVATE+KEY+NAME+ID+BASE64``, for a file that only you can read."""
        seed = bytes([self.verifier.kind]) + self._private.private_bytes_raw()
        return f"{_SECRET}{self.verifier.name}+{self.verifier.key_id.hex()}+{to_base64(seed)}"

    def __repr__(self) -> str:
        return f"SignerKey({self.verifier.name!r}, id={self.verifier.key_id.hex()})"

    def raw(self, message: bytes) -> bytes:
        """Sign bytes as they are, 64 bytes; `sign` and `cosign` say what to sign."""
        return self._private.sign(message)

    def sign(self, text: str) -> NoteSignature:
        """Sign a note's text.

        Raises:
            UsageError: The key is a witness's, or the text could pass for a cosignature.
            LedgerError: The text is no note text.
        """
        if self.verifier.kind != ED25519 or text.startswith("cosignature/"):
            raise UsageError(f"Key '{self.verifier.name}' may not sign this text as a note.")
        _check_text(text)
        return NoteSignature(self.verifier.name, self.verifier.key_id, self.raw(_encode(text)))


@dataclass(frozen=True, slots=True)
class Note:
    r"""A text with its signatures. Trust the text only after `verify`.

    Args:
        text: Ends in a newline; no control characters but newlines.
        signatures: At least one, no two by the same key.

    Example:
        >>> key = SignerKey.generate("example.com/me")
        >>> note = Note("hello\n", (key.sign("hello\n"),))
        >>> Note.parse(note.encode()).verify(key.verifier).name
        'example.com/me'
    """

    text: str
    signatures: tuple[NoteSignature, ...]

    def __post_init__(self) -> None:
        _check_text(self.text)
        if not 1 <= len(self.signatures) <= MAX_LINES:
            raise _malformed(f"A note has {len(self.signatures)} signatures, not 1 to {MAX_LINES}.")
        if len({(item.name, item.key_id) for item in self.signatures}) != len(self.signatures):
            raise _malformed("A note is signed twice by the same key.")

    @classmethod
    def parse(cls, data: str | bytes) -> Note:
        """Read a signed note.

        Raises:
            LedgerError: Not a note, not in canonical form, or too large.
        """
        if isinstance(data, bytes):
            try:
                data = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _malformed("A note is not valid UTF-8.") from error
        if len(_encode(data)) > MAX_NOTE_BYTES:
            raise _malformed(f"A note is larger than {MAX_NOTE_BYTES:,} bytes.")
        text, blank, tail = data.rpartition("\n\n")
        if not blank or not tail.endswith("\n"):
            raise _malformed("A note lacks its signatures.")
        lines = tail[:-1].split("\n")
        if len(lines) > MAX_LINES:
            raise _malformed(f"A note has {len(lines)} signatures, not 1 to {MAX_LINES}.")
        return cls(text + "\n", tuple(_parse_line(line) for line in lines))

    def encode(self) -> str:
        """Write the note: the inverse of `parse`."""
        return "".join([self.text, "\n", *(item.line() + "\n" for item in self.signatures)])

    def find(self, key: VerifierKey) -> NoteSignature:
        """Return the signature line of a key, not verified.

        Raises:
            SignatureError: The key has not signed.
        """
        for item in self.signatures:
            if item.name == key.name and item.key_id == key.key_id:
                return item
        raise SignatureError(
            f"The note is not signed by '{key.name}' (id {key.key_id.hex()}).",
            expected="Signers: " + ", ".join(sorted(item.name for item in self.signatures)) + ".",
        )

    def verify(self, key: VerifierKey) -> NoteSignature:
        """Check the signature of a key of type `ED25519`.

        Raises:
            SignatureError: Not signed by this key, or the signature does not verify.
        """
        if key.kind != ED25519:
            raise SignatureError(f"Key '{key.name}' is a witness's; it cosigns checkpoints only.")
        item = self.find(key)
        key.verify(_encode(self.text), item.blob)
        return item


def _parse_line(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise _malformed(f"'{line[:48]}' is no signature line.")
    blob = from_base64(encoded)
    return NoteSignature(name, blob[:4], blob[4:])
