"""The embedded ledger: an RFC 6962 log in one SQLite file, with signed checkpoints.

Nothing to start and nothing to install. What an append does is told in `earmark.ledger.treelog`.

The private key lies beside the file; `earmark.ledger.keyfile` says what that means. Without it the
ledger can still be read and checked.

A connection must not be carried across ``fork``: open the ledger again in the child.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from earmark.errors import UsageError
from earmark.files import replacing
from earmark.ledger import store
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint
from earmark.ledger.keyfile import key_path, read_key, write_key
from earmark.ledger.merkle import EMPTY_ROOT
from earmark.ledger.note import SignerKey, VerifierKey
from earmark.ledger.treelog import TreeLog, read_vkey, require_origin


class SqliteLedger(TreeLog):
    """A ledger in one SQLite file; see `create` and `open`.

    Example:
        >>> import tempfile
        >>> from earmark.ledger.port import verify_receipt
        >>> place = Path(tempfile.mkdtemp()) / "ledger.sqlite"
        >>> with SqliteLedger.create(place, "example.com/lab") as ledger:
        ...     receipt = ledger.append(b'{"a":1}')
        ...     vkey = ledger.vkey
        >>> verify_receipt(b'{"a":1}', receipt, vkey).size
        1
    """

    def __init__(self, db: sqlite3.Connection, path: Path, key: VerifierKey) -> None:
        self.path = path
        self._db = db
        super().__init__(store.SqliteRows(db, path), key)

    # -- opening and closing -----------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, origin: str, *, signer: SignerKey | None = None
    ) -> SqliteLedger:
        """Make a new ledger, with a new signing key beside it.

        Args:
            path: The file to write; must not exist.
            origin: Name of the log: printable ASCII without spaces or plus, best a domain and path
                such as ``example.com/lab``. It can never be changed.
            signer: A signing key of that name, instead of a new one.

        Raises:
            UsageError: The file or its key exists, or the origin cannot be a name.
            OutputError: The folder is missing or cannot be written.
        """
        path = Path(path)
        require_origin(origin)
        signer = SignerKey.generate(origin) if signer is None else signer
        first = SignedCheckpoint.sign(Checkpoint(origin, 0, EMPTY_ROOT), signer)
        if path.exists():
            raise UsageError(
                f"Ledger '{path}' exists already.", hint="Open it, or use another name."
            )
        secret: Path | None = None
        try:
            with replacing(path) as temporary:
                store.create_file(temporary, origin, str(signer.verifier), str(first).encode())
                write_key(key_path(path), signer)
                secret = key_path(path)
        except BaseException:
            if secret is not None and not path.exists():
                secret.unlink(missing_ok=True)
            raise
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        vkey: str | None = None,
        readonly: bool = False,
        timeout: float = 30.0,
    ) -> SqliteLedger:
        """Open an existing ledger. Its head is verified; `check` verifies all of it.

        Args:
            path: The file.
            vkey: The public key that you expect, if you have pinned it.
            readonly: Open without the right to append.
            timeout: Seconds to wait while another process is writing.

        Raises:
            FileError: Missing, empty, or not readable.
            FormatError: Not a ledger, or one of a newer version.
            LedgerError: Damaged, or with another key than `vkey`.
            SignatureError: The head is not signed by the ledger's key.
        """
        path = Path(path)
        db = store.connect(path, readonly=readonly, timeout=timeout)
        try:
            with store.explained(path):
                ledger = cls(db, path, read_vkey(str(path), *store.about(db), vkey))
                ledger._verified_head()
        except BaseException:
            db.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        with self._lock:
            store.disconnect(self._db)

    def _read_signer(self) -> SignerKey:
        return read_key(key_path(self.path), self._key)
