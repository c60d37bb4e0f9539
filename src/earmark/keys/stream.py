"""Keyed randomness: bytes, bits, signs, integers and permutations from a secret and a label.

Everything secret that a scheme draws comes from here: HKDF-SHA256 turns a secret, a label and a
salt into a ChaCha20 key, and the ChaCha20 keystream is read from its beginning. Integers are drawn
by rejection, so they are exactly uniform. The construction is frozen: `tests/keys/vectors.json`
holds outputs that must never change. No library's generator is involved.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from earmark.errors import UsageError

_CHUNK = 1 << 20
DOMAIN = b"earmark/v1/"


def derive(secret: bytes, label: str, *, salt: bytes = b"", size: int = 32) -> bytes:
    """Derive bytes from a secret for one purpose.

    Args:
        secret: At least 16 secret bytes.
        label: The purpose; different labels give independent outputs.
        salt: Public salt, for example a beacon.
        size: Number of bytes, at most 8160.

    Returns:
        HKDF-SHA256 output.

    Raises:
        UsageError: The secret is too short.

    Example:
        >>> derive(bytes(32), "example").hex()[:16]
        'e2d4445bd5cbd85f'
    """
    if len(secret) < 16:
        raise UsageError(f"A secret of {len(secret)} bytes is too short.", expected="At least 16.")
    info = DOMAIN + label.encode()
    kdf = HKDF(algorithm=hashes.SHA256(), length=size, salt=salt or None, info=info)
    return kdf.derive(secret)


class KeyStream:
    """An endless stream of keyed bytes, read in order.

    Args:
        secret: At least 16 secret bytes.
        label: The purpose.
        salt: Public salt, for example a beacon.

    Example:
        >>> stream = KeyStream(bytes(32), "example")
        >>> stream.bits(8)
        [0, 1, 0, 0, 1, 1, 0, 0]
        >>> KeyStream(bytes(32), "example").integers(3, 10)
        [0, 2, 1]
    """

    def __init__(self, secret: bytes, label: str, *, salt: bytes = b"") -> None:
        key = derive(secret, label, salt=salt)
        self._encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
        self._buffer = b""

    def __repr__(self) -> str:
        return "KeyStream(<secret>)"

    def bytes(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            UsageError: `count` is negative.
        """
        if count < 0:
            raise UsageError(f"A stream cannot give {count} bytes.")
        if count > len(self._buffer):
            need = count - len(self._buffer)
            size = need if need >= _CHUNK else min(_CHUNK, max(256, 2 * need))
            self._buffer += self._encryptor.update(bytes(size))
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def bits(self, count: int) -> list[int]:
        """Return `count` fair bits; each byte gives eight, least significant first."""
        data = self.bytes((count + 7) // 8)
        return [data[i // 8] >> (i % 8) & 1 for i in range(count)]

    def signs(self, count: int) -> list[int]:
        """Return `count` fair signs, +1 for bit 1 and -1 for bit 0."""
        return [2 * bit - 1 for bit in self.bits(count)]

    def integer(self, below: int) -> int:
        """Return one integer, uniform in 0 .. `below` - 1, by rejection.

        Raises:
            UsageError: `below` is smaller than 1.
        """
        if below < 1:
            raise UsageError(f"No integer lies below {below}.", expected="A bound of at least 1.")
        width = max(1, ((below - 1).bit_length() + 7) // 8)
        limit = (1 << (8 * width)) // below * below
        while True:
            value = int.from_bytes(self.bytes(width), "little")
            if value < limit:
                return value % below

    def integers(self, count: int, below: int) -> list[int]:
        """Return `count` integers, each uniform in 0 .. `below` - 1."""
        return [self.integer(below) for _ in range(count)]

    def permutation(self, count: int) -> list[int]:
        """Return a uniform permutation of 0 .. `count` - 1 (Fisher and Yates)."""
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = self.integer(i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    def sample(self, count: int, below: int) -> list[int]:
        """Return `count` distinct integers below `below`, in random order.

        Raises:
            UsageError: More are asked for than there are.
        """
        if count > below:
            raise UsageError(f"{count} distinct integers do not fit below {below}.")
        swapped: dict[int, int] = {}
        taken = []
        for i in range(count):
            j = i + self.integer(below - i)
            taken.append(swapped.get(j, j))
            swapped[j] = swapped.get(i, i)
        return taken


def public_stream(label: str, *parts: bytes) -> KeyStream:
    """Return a stream that anybody can derive: for splits by a nonce, panels and test vectors.

    Args:
        label: The purpose.
        parts: Public values; each is hashed with its length, so that they cannot be confused.

    Example:
        >>> public_stream("split", b"nonce").integers(2, 100)
        [15, 55]
    """
    state = hashlib.sha256(DOMAIN + b"public/" + label.encode())
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return KeyStream(state.digest(), label)
