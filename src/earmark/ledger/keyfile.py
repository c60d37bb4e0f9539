"""The private key beside an embedded ledger: ``NAME.key``, one line of text, mode 0600.

Mode 0600 keeps other accounts of the machine out. The key is not encrypted: root, backups and
whatever runs as you can read it. Whoever has it can sign new entries and fork the log, but cannot
change anything below a checkpoint that somebody else has kept. A key that other accounts may read
is refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from earmark.errors import FileError, LedgerError, UsageError
from earmark.ledger.note import SignerKey, VerifierKey

_PUBLIC_BITS = stat.S_IRWXG | stat.S_IRWXO


def key_path(path: str | Path) -> Path:
    """Return where the private key of a ledger file lies.

    Example:
        >>> key_path("ledger.sqlite").name
        'ledger.sqlite.key'
    """
    path = Path(path)
    return path.with_name(path.name + ".key")


def write_key(path: Path, signer: SignerKey) -> None:
    """Write a new private key file; it is on the disk when this returns.

    Raises:
        UsageError: There is one already.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(
            f"There is a private key '{path}' without its ledger.",
            hint="Move it away: it is never overwritten.",
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(signer.export() + "\n")
            file.flush()
            os.fsync(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_key(path: Path, key: VerifierKey) -> SignerKey:
    """Read the private key that belongs to a public one.

    Raises:
        FileError: Missing, unreadable, or readable by other accounts.
        SignatureError: Not a key.
        LedgerError: The key of another ledger.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"The private key '{path}' cannot be read; without it the ledger cannot be added to.",
            hint="Put it back beside the ledger; reading and checking work without it.",
        ) from error
    if os.name == "posix" and mode & _PUBLIC_BITS:
        raise FileError(
            f"Other accounts may read the private key '{path}' (mode {stat.S_IMODE(mode):04o}).",
            expected="Mode 0600.",
            hint=f"chmod 600 '{path}'; if others may have read it, start a new ledger.",
        )
    signer = SignerKey.parse(text.removesuffix("\n"))
    if signer.verifier != key:
        raise LedgerError(
            f"The private key '{path}' belongs to another ledger.", expected=f"{key}."
        )
    return signer
