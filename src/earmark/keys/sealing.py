"""Seal secrets on disk: scrypt stretches a passphrase, ChaCha20-Poly1305 seals.

A sealed file is JSON: what is public about the secret stands in clear and is bound to the sealed
part as associated data, so that neither can be exchanged without the other.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from earmark import codec, files
from earmark.codec import Json
from earmark.errors import FormatError, PassphraseError, RecordError, UsageError

_KDF: dict[str, Json] = {"name": "scrypt", "n": 1 << 15, "r": 8, "p": 1}


def seal(
    path: str | Path,
    passphrase: str,
    secret: bytes,
    public: Mapping[str, Json],
    *,
    format: str,  # noqa: A002 - the file's own word
    overwrite: bool = False,
) -> None:
    """Write a secret to disk, encrypted, readable by its owner only (mode 0600).

    Args:
        path: The file.
        passphrase: Not empty.
        secret: What is sealed.
        public: What stands in clear beside it.
        format: Name of the file format.
        overwrite: Allow an existing file to be replaced.

    Raises:
        UsageError: The passphrase is empty, or the file exists and may not be overwritten.
        OutputError: The file cannot be written.
    """
    if not passphrase:
        raise UsageError(
            "A secret cannot be sealed with an empty passphrase.",
            hint="Set EARMARK_PASSPHRASE or use --passphrase-file.",
        )
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    clear: dict[str, Json] = {
        "format": format,
        "kdf": {**_KDF, "salt": salt.hex()},
        "public": dict(public),
    }
    sealed = _cipher(passphrase, salt).encrypt(nonce, secret, codec.canonical(clear))
    body = clear | {"nonce": nonce.hex(), "sealed": sealed.hex()}
    data = json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
    files.write_bytes(path, data, overwrite=overwrite, mode=0o600)


def unseal(
    path: str | Path,
    passphrase: str,
    *,
    format: str,  # noqa: A002 - the file's own word
) -> tuple[bytes, dict[str, Json]]:
    """Read a sealed file.

    Returns:
        The secret, and what stood in clear beside it.

    Raises:
        FileError: Missing or unreadable.
        FormatError: Not a sealed file of that format.
        PassphraseError: Wrong passphrase, or the file was changed.
    """
    try:
        body = codec.parse(files.read_bytes(path, limit=1 << 22), strict=False)
    except RecordError as error:
        raise FormatError(f"File '{path}' is not a sealed file: {error.what}") from error
    if not isinstance(body, dict) or body.get("format") != format:
        raise FormatError(f"File '{path}' is not what it should be.", expected=f"Format {format}.")
    kdf, public = body.get("kdf"), body.get("public")
    if not isinstance(kdf, dict) or not isinstance(public, dict):
        raise FormatError(f"Sealed file '{path}' lacks a field.")
    clear: dict[str, Json] = {"format": format, "kdf": kdf, "public": public}
    try:
        salt = bytes.fromhex(str(kdf.get("salt")))
        nonce, sealed = (bytes.fromhex(str(body.get(name))) for name in ("nonce", "sealed"))
        known = {name: kdf.get(name) for name in _KDF} == _KDF and len(nonce) == 12
    except ValueError as error:
        raise FormatError(f"Sealed file '{path}' breaks a field: {error}.") from error
    if not known:
        raise FormatError(f"Sealed file '{path}' uses settings that this version does not read.")
    try:
        secret = _cipher(passphrase, salt).decrypt(nonce, sealed, codec.canonical(clear))
    except InvalidTag as error:
        raise PassphraseError(
            f"Sealed file '{path}' does not open: wrong passphrase, or the file was changed.",
            hint="Check the passphrase; restore the file from a backup.",
        ) from error
    return secret, public


def _cipher(passphrase: str, salt: bytes) -> ChaCha20Poly1305:
    kdf = Scrypt(salt=salt, length=32, n=1 << 15, r=8, p=1)
    return ChaCha20Poly1305(kdf.derive(passphrase.encode()))
