"""Locked files: weights under authenticated encryption, with a key that the serial number gives.

A file is one line of magic, a header (canonical JSON, with its length before it) and pieces of one
mebibyte. Each piece is sealed with ChaCha20-Poly1305 under its own nonce, which counts the pieces
and marks the last one; so no piece can be changed, moved, dropped or added. The header is bound to
every piece as associated data. The file's key comes from the serial number and a fresh salt by
HKDF-SHA256.

Source: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar 2015, as age uses it.
Changed: the header is associated data of every piece.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from earmark import codec
from earmark.codec import Json
from earmark.errors import FormatError, LicenseError, RecordError
from earmark.keys.stream import derive

MAGIC = b"earmark locked weights 1\n"
PIECE = 1 << 20
_TAG = 16
_MOST_HEADER = 1 << 16
_FETCH = "Fetch the file anew."


def _cipher(serial: bytes, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(derive(serial, "license/wrap", salt=salt))


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])


def wrap(data: bytes, serial: bytes, binding: Mapping[str, Json]) -> bytes:
    """Encrypt bytes under a serial number.

    Args:
        data: The plain file.
        serial: 16 secret bytes.
        binding: What the file belongs to; stands in clear in the header and cannot be exchanged.

    Returns:
        The locked file.

    Example:
        >>> locked = wrap(b"weights", bytes(16), {"copy": "a"})
        >>> unwrap(locked, bytes(16), {"copy": "a"})
        b'weights'
    """
    salt = secrets.token_bytes(32)
    header = codec.canonical({"salt": salt.hex(), "size": len(data), "binding": dict(binding)})
    cipher, parts = _cipher(serial, salt), [MAGIC, len(header).to_bytes(4, "big"), header]
    count = max(1, -(-len(data) // PIECE))
    for index in range(count):
        piece = data[index * PIECE : (index + 1) * PIECE]
        parts.append(cipher.encrypt(_nonce(index, last=index == count - 1), piece, header))
    return b"".join(parts)


def read_header(locked: bytes) -> tuple[dict[str, Json], bytes, int]:
    """Return a locked file's header as JSON and as bytes, and where its pieces begin.

    Raises:
        FormatError: Not a locked file, or cut.
    """
    start = len(MAGIC) + 4
    if not locked.startswith(MAGIC) or len(locked) < start:
        raise FormatError(
            "This is no locked file.",
            expected=f"It begins with {MAGIC!r}.",
            hint="Name the copy as it came with its license; weights in clear need no unlocking.",
        )
    length = int.from_bytes(locked[len(MAGIC) : start], "big")
    raw = locked[start : start + length]
    if not 0 < length <= _MOST_HEADER or len(raw) != length:
        raise FormatError("This locked file was cut within its header.", hint=_FETCH)
    try:
        header = codec.parse(raw)
    except RecordError as error:
        raise FormatError("The header of this locked file was changed.", hint=_FETCH) from error
    if not isinstance(header, dict) or set(header) != {"salt", "size", "binding"}:
        raise FormatError("The header of this locked file was changed.", hint=_FETCH)
    return header, raw, start + length


def unwrap(locked: bytes, serial: bytes, binding: Mapping[str, Json]) -> bytes:
    """Decrypt a locked file, or refuse; nothing is returned unless every piece is as it was.

    Args:
        locked: The locked file.
        serial: 16 secret bytes.
        binding: What the caller expects the file to belong to.

    Raises:
        FormatError: Not a locked file, or one that was cut or changed.
        LicenseError: It belongs to another license, or the number is wrong.
    """
    header, raw, start = read_header(locked)
    if header["binding"] != dict(binding):
        raise LicenseError(
            "This locked copy belongs to another license.",
            hint="Use the license that came with it.",
        )
    try:
        cipher = _cipher(serial, bytes.fromhex(str(header["salt"])))
    except ValueError as error:
        raise FormatError("The header of this locked file was changed.", hint=_FETCH) from error
    body, step = memoryview(locked)[start:], PIECE + _TAG
    count = max(1, -(-len(body) // step))
    parts = []
    for index in range(count):
        piece = bytes(body[index * step : (index + 1) * step])
        try:
            parts.append(cipher.decrypt(_nonce(index, last=index == count - 1), piece, raw))
        except InvalidTag as error:
            raise _refusal(index) from error
    data = b"".join(parts)
    if len(data) != header["size"]:
        raise FormatError("This locked file has another size than its header says.", hint=_FETCH)
    return data


def _refusal(index: int) -> LicenseError:
    if index == 0:
        return LicenseError(
            "The serial number does not open this copy, or the file was changed.",
            expected="The number that came with the license.",
            hint="Check the number first; then fetch the file anew.",
        )
    return LicenseError(
        f"Piece {index} of this locked file was changed, moved or cut.", hint=_FETCH
    )
