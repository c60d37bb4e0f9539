"""The vault: an owner's folder with an identity, sealed keys, their inputs and a ledger.

::

    vault/
      vault.json            owner's name and public key
      identity.key          the owner's Ed25519 key, sealed under the passphrase
      ledger.sqlite         the embedded ledger (its signing key lies beside it)
      keys/<id>.key         sealed keys
      keys/<id>.json        what was registered for the key, with receipts
      keys/<id>.binding     the part of a community's log that the key is bound to, if it is
      inputs/<digest>.safetensors    inputs of keys, stored once
      starts/<id>.safetensors        networks before their marks, to align suspects to
      transcripts/<name>.jsonl       what remote suspects were asked and answered

Nothing here is needed to check a claim: what a stranger needs is in the dossier.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec, files
from earmark.codec import Json
from earmark.errors import (
    FileError,
    IntegrityError,
    KeyFileError,
    OutputError,
    PassphraseError,
    UsageError,
)
from earmark.keys import sealing
from earmark.keys.secret import Key
from earmark.ledger.log import SqliteLedger
from earmark.ledger.port import beacon, verify_receipt
from earmark.records import Claim, Commitment, Evidence, Opening, Receipt, Record, Release, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earmark.protocol.binding import Binding

_IDENTITY = "earmark/sealed-identity/1"


@dataclass(frozen=True, slots=True)
class Registration(Record):
    """What a vault keeps of one registered key.

    Args:
        opening: Opens the commitment.
        commitment: The record that was registered first.
        receipt: The ledger's receipt for it.
        releases: Records of what was released under it, in order.
        release_receipts: The ledger's receipts for them.
        note: The owner's own words, for example the file's name.
    """

    SCHEMA: ClassVar[str] = "earmark/registration/1"
    opening: Opening
    commitment: Commitment
    receipt: Receipt
    releases: tuple[Release, ...]
    release_receipts: tuple[Receipt, ...]
    note: str

    @property
    def id(self) -> str:
        """Short name of the key: the first twelve digits of its commitment."""
        return self.commitment.commitment[:12]

    @property
    def made(self) -> str:
        """The day on which the owner says that the key was made."""
        return self.commitment.created[:10]

    @property
    def title(self) -> str:
        """What tells the key from others: its id, scheme, the owner's words and the day."""
        about = (self.opening.layout.scheme, self.note, self.made)
        return f"{self.id} ({', '.join(part for part in about if part)})"

    @property
    def traces(self) -> bool:
        """Whether the key fingerprints customers' copies, instead of marking a release."""
        return self.opening.layout.scheme == "tracing"


class Vault:
    """An owner's vault; see the module's text for what lies where.

    Args:
        path: The folder.
        name: The owner's name.
        owner: The owner's public key, 64 hexadecimal digits.
    """

    def __init__(self, path: Path, name: str, owner: str) -> None:
        self.path, self.name, self.owner = path, name, owner
        self._ledger: SqliteLedger | None = None

    @classmethod
    def create(cls, path: str | Path, *, name: str, passphrase: str) -> Vault:
        """Make a vault with a new identity and an empty ledger.

        Raises:
            UsageError: The folder holds a vault already, or name or passphrase is empty.
            OutputError: The folder cannot be written.
        """
        folder = Path(path)
        if not name.strip() or not passphrase:
            raise UsageError("A vault needs an owner's name and a passphrase.")
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"Folder '{folder}' is not empty.",
                hint="Use the vault that is there, or choose another folder with --vault.",
            )
        whole = folder.resolve()
        try:
            whole.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=f".{whole.name}.", dir=whole.parent))
        except OSError as error:
            raise OutputError(f"Folder '{folder}' cannot be made: {error.strerror}.") from error
        try:
            made = cls._build(building, name, passphrase)
            building.replace(whole)
        except OSError as error:
            raise OutputError(f"Folder '{folder}' cannot be made: {error.strerror}.") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return cls(folder, name, made.owner)

    @classmethod
    def _build(cls, folder: Path, name: str, passphrase: str) -> Vault:
        """Write everything into a folder that takes the vault's place when it is whole."""
        for part in (folder, folder / "keys", folder / "inputs"):
            _make_folder(part)
        identity = Ed25519PrivateKey.generate()
        owner = identity.public_key().public_bytes_raw().hex()
        SqliteLedger.create(folder / "ledger.sqlite", f"earmark-vault/{owner[:16]}").close()
        secret = identity.private_bytes_raw()
        sealing.seal(
            folder / "identity.key", passphrase, secret, {"owner": owner}, format=_IDENTITY
        )
        about: Json = {"format": "earmark/vault/1", "name": name, "owner": owner, "created": now()}
        files.write_bytes(folder / "vault.json", codec.canonical(about))
        return cls(folder, name, owner)

    @classmethod
    def open(cls, path: str | Path) -> Vault:
        """Open a vault; no passphrase is needed until a secret is.

        Raises:
            FileError: No vault there.
            IntegrityError: Its description was changed.
        """
        folder = Path(path)
        if not (folder / "vault.json").is_file():
            raise FileError(
                f"There is no vault at '{folder}'.",
                hint="Pass --vault, or make one with:  earmark protect  or  earmark stamp",
            )
        about = codec.parse(files.read_bytes(folder / "vault.json", limit=1 << 16))
        if (
            not isinstance(about, dict)
            or about.get("format") != "earmark/vault/1"
            or not {"name", "owner"} <= set(about)
        ):
            raise IntegrityError(f"'{folder / 'vault.json'}' does not describe a vault.")
        return cls(folder, str(about["name"]), str(about["owner"]))

    @property
    def ledger(self) -> SqliteLedger:
        """The vault's embedded ledger."""
        if self._ledger is None:
            self._ledger = SqliteLedger.open(self.path / "ledger.sqlite")
        return self._ledger

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def identity(self, passphrase: str) -> Ed25519PrivateKey:
        """Unseal the owner's signing key.

        Raises:
            PassphraseError: Wrong passphrase, or the file was changed.
        """
        secret, _ = sealing.unseal(self.path / "identity.key", passphrase, format=_IDENTITY)
        return Ed25519PrivateKey.from_private_bytes(secret)

    def commit(
        self,
        key: Key,
        passphrase: str,
        *,
        note: str = "",
        shared: Callable[[str], Binding] | None = None,
    ) -> tuple[Key, Registration]:
        """Register a key's commitment, bind the key to a value from after that, and seal it.

        Call it before the mark is embedded: the message depends on the beacon.

        Args:
            key: A new, unbound key.
            passphrase: Seals the key.
            note: The owner's own words.
            shared: Commits in a community's log too, and returns what was drawn there (see
                `earmark.protocol.binding.bind`); without it the value is this ledger's own
                beacon, which binds nobody who runs the ledger alone.

        Returns:
            The bound key and its registration.

        Raises:
            UsageError: The key is bound already.
            LedgerError: The ledger does not match its own proofs.
            OutputError: The vault cannot be written.
            NetworkError: The community does not answer; then the vault is as before.
        """
        if key.beacon is not None:
            raise UsageError("This key is bound already; make a new one for a new commitment.")
        self.identity(passphrase)
        opening = key.opening(self.owner)
        commitment = key.commit(self.owner)
        binding = None if shared is None else shared(commitment.commitment)  # or nothing is kept
        self._store_inputs(key)
        receipt = self.ledger.append(commitment.canonical())
        made = Registration(opening, commitment, receipt, (), (), note)
        if binding is not None:
            files.write_bytes(self._binding_path(made.id), binding.canonical())
        bound = key.bind(self.beacon(made))
        bound.seal(self._key_path(made.id), passphrase)
        self._keep(made, overwrite=False)
        return bound, made

    def binding(self, registration: Registration) -> Binding | None:
        """Return the proof that a key is bound to a community's log, or null if it is not.

        Raises:
            LedgerError, SignatureError: It does not hold.
        """
        path = self._binding_path(registration.id)
        if not path.exists():
            return None
        from earmark.protocol.binding import Binding

        made = Binding.from_bytes(files.read_bytes(path, limit=1 << 28))
        made.verify(registration.commitment.commitment, self.owner)
        return made

    def beacon(self, registration: Registration) -> str:
        """Return the value that a key is bound to."""
        binding = self.binding(registration)
        return beacon(registration.receipt) if binding is None else binding.beacon

    def release(self, registration: Registration, digests: Mapping[str, str]) -> Registration:
        """Register the digests of files that are about to be released.

        Args:
            registration: The key's registration.
            digests: File name to SHA-256.

        Returns:
            The registration with the release added.
        """
        record = Release(
            self.owner,
            registration.commitment.commitment,
            dict(digests),
            self.beacon(registration),
            now(),
        )
        receipt = self.ledger.append(record.canonical())
        made = replace(
            registration,
            releases=(*registration.releases, record),
            release_receipts=(*registration.release_receipts, receipt),
        )
        self._keep(made, overwrite=True)
        return made

    def claim(self, registration: Registration, evidence: Evidence) -> tuple[Claim, Receipt]:
        """Record a claim in the ledger: this suspect, this evidence, these shards.

        Args:
            registration: The key's registration.
            evidence: What was counted on the suspect, with the nonce that split the trials.

        Raises:
            UsageError: The evidence names no nonce, so anyone could have chosen its split.
        """
        if evidence.nonce is None:
            raise UsageError("Evidence without a nonce cannot be claimed on.")
        record = Claim(
            claimant=self.owner,
            opening=registration.opening,
            suspect=evidence.suspect,
            nonce=evidence.nonce,
            shards=evidence.shards,
            evidence=evidence.digest(),
            created=now(),
        )
        return record, self.ledger.append(record.canonical())

    def registrations(self) -> Iterator[Registration]:
        """Yield what was registered, oldest first."""
        found = [self._read(path) for path in sorted((self.path / "keys").glob("*.json"))]
        yield from sorted(found, key=lambda item: item.receipt.index)

    def keys_tried(self) -> int:
        """Return how many keys are charged when one of them is read: all that could have been."""
        return max(1, sum(not item.traces for item in self.registrations()))

    def registration(self, name: str = "") -> Registration:
        """Return the mark's registration whose key id begins with `name`; the only one if empty.

        Raises:
            UsageError: None or several fit, or the key that fits traces copies.
        """
        found = self._named(name)
        if found.traces:
            raise UsageError(
                f"Key {found.title} traces copies; it marks no release.",
                hint="Name the customer whose copy leaked with:  earmark trace SUSPECT",
            )
        return found

    def _named(self, name: str) -> Registration:
        """Return the registration whose key id begins with `name`; the only mark's if empty."""
        held = list(self.registrations())
        marks = [item for item in held if not item.traces]
        found = [item for item in held if item.commitment.commitment.startswith(name)]
        found = found if name else marks
        if len(found) != 1:
            known = ", ".join(item.title for item in found or marks)
            asked = f"begin with '{name}'" if name else "are in this vault"
            raise UsageError(
                f"{len(found)} keys {asked}; exactly one was expected.",
                expected=f"Keys here: {known or 'none'}.",
                hint="Name one with --key; more about them:  earmark keys",
            )
        return found[0]

    def start(self, registration: Registration) -> Path:
        """Return where a model is kept as it was before its mark, for suspects to be aligned to."""
        return self.path / "starts" / f"{registration.id}.safetensors"

    def key(self, name: str, passphrase: str, *, inputs: bool = True) -> Key:
        """Unseal a key, with its inputs if it has some.

        Raises:
            UsageError: No such key, or several.
            PassphraseError: Wrong passphrase.
            KeyFileError: Key or inputs were changed.
        """
        registration = self._named(name)
        try:
            key = Key.open(self._key_path(registration.id), passphrase)
        except PassphraseError as error:
            self.identity(passphrase)  # raises where the passphrase is wrong
            raise KeyFileError(
                f"Key file '{self._key_path(registration.id)}' was changed: the passphrase opens "
                "the vault, and not this file.",
                hint="Restore the file from a backup.",
            ) from error
        same = key.opening(self.owner) == registration.opening
        if not same or key.beacon != self.beacon(registration):
            raise KeyFileError(
                f"Key file '{self._key_path(registration.id)}' is not the key that was registered.",
                hint="Restore the file from a backup.",
            )
        if not inputs or key.layout.inputs is None:
            return key
        return self._with_inputs(key, key.layout.inputs)

    def _with_inputs(self, key: Key, wanted: str) -> Key:
        from earmark.hosts import batches

        path = self.path / "inputs" / f"{wanted}.safetensors"
        tree = batches.load(path)
        if batches.tree_digest(tree) != wanted:
            raise KeyFileError(
                f"The key's inputs '{path}' were changed since they were committed.",
                hint="Restore the file from a backup.",
            )
        return replace(key, inputs=tree)

    def transcript(self, name: str) -> Path:
        """Return where the transcript of a remote suspect is kept; its folder is made."""
        folder = self.path / "transcripts"
        _make_folder(folder)
        return folder / f"{name}.jsonl"

    def _store_inputs(self, key: Key) -> None:
        if key.layout.inputs is None:
            return
        from earmark.hosts import batches

        path = self.path / "inputs" / f"{key.layout.inputs}.safetensors"
        if not path.exists():
            batches.save(key.inputs, path, mode=0o600)

    def _binding_path(self, name: str) -> Path:
        return self.path / "keys" / f"{name}.binding"

    def _key_path(self, name: str) -> Path:
        return self.path / "keys" / f"{name}.key"

    def _keep(self, registration: Registration, *, overwrite: bool) -> None:
        path = self.path / "keys" / f"{registration.id}.json"
        files.write_bytes(path, registration.canonical(), overwrite=overwrite)

    def _read(self, path: Path) -> Registration:
        made = Registration.from_bytes(files.read_bytes(path, limit=1 << 24))
        verify_receipt(made.commitment.canonical(), made.receipt, self.ledger.vkey)
        return made


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{path}' cannot be made: {error.strerror}.") from error
