"""Serial numbers as people type them: 128 bits, six groups of five characters, with a check.

A serial number is a secret that opens one copy. Its text form carries a check of twenty bits, so
that a mistyped number is refused at once, by name, and never reaches a network, which would answer
it with confident nonsense. No part of a number is ever quoted in an error.
"""

from __future__ import annotations

import hashlib
import unicodedata

from earmark.errors import LicenseError

SERIAL_BYTES = 16
GROUP = 5
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKALIKES = str.maketrans({"O": "0", "I": "1", "L": "1"})
_DATA, _CHECK = 26, 4


def _check(serial: bytes) -> int:
    state = hashlib.sha256(b"earmark/serial-check/1\n" + serial).digest()
    return int.from_bytes(state[:4], "big") >> 12


def format_serial(serial: bytes) -> str:
    """Write a serial number in groups, with its check.

    Raises:
        LicenseError: Not 16 bytes.

    Example:
        >>> format_serial(bytes(16))
        '00000-00000-00000-00000-00000-0ZDW7'
    """
    if len(serial) != SERIAL_BYTES:
        raise LicenseError(
            f"A serial number has {len(serial)} bytes.", expected=f"Exactly {SERIAL_BYTES}."
        )
    value = int.from_bytes(serial, "big") << (5 * _CHECK) | _check(serial)
    digits = "".join(_ALPHABET[value >> 5 * i & 31] for i in reversed(range(_DATA + _CHECK)))
    return "-".join(digits[i : i + GROUP] for i in range(0, len(digits), GROUP))


def parse_serial(text: str) -> bytes:
    """Read a serial number as typed: case, spaces and hyphens do not matter; O is 0, I and L are 1.

    Raises:
        LicenseError: Wrong length, a character that no number has, or the check does not match.

    Example:
        >>> parse_serial("00000 00000 00000 00000 00000 ozdw7") == bytes(16)
        True
    """
    plain = unicodedata.normalize("NFKC", text).upper()
    digits = "".join(char for char in plain if char not in "-‐–— \t\r\n").translate(_LOOKALIKES)
    if len(digits) != _DATA + _CHECK:
        raise LicenseError(
            f"The serial number has {len(digits)} characters.",
            expected=f"{_DATA + _CHECK} in groups of {GROUP}.",
            hint="Copy it whole, from the message that came with the license.",
        )
    strange = [place + 1 for place, char in enumerate(digits) if char not in _ALPHABET]
    if strange:
        raise LicenseError(
            f"Character {strange[0]} of the serial number is none that such a number has.",
            expected="Digits and letters without I, L, O and U.",
        )
    value = 0
    for char in digits:
        value = value << 5 | _ALPHABET.index(char)
    data, check = value >> (5 * _CHECK), value & ((1 << 5 * _CHECK) - 1)
    serial = (data & ((1 << 128) - 1)).to_bytes(SERIAL_BYTES, "big")
    if data >> 128 or _check(serial) != check:
        raise LicenseError(
            "The serial number is mistyped: its check does not match.",
            hint="Copy it whole, from the message that came with the license.",
        )
    return serial
