"""What the members of a community share: its rules, its log's key, and where its nodes are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import files
from earmark.errors import FileError, OutputError, UsageError
from earmark.ledger.engines import create_log, open_log, open_notes
from earmark.ledger.note import COSIGNATURE, SignerKey, VerifierKey
from earmark.ledger.service import Notes
from earmark.ledger.treelog import TreeLog
from earmark.ledger.witness import Quorum, Witness
from earmark.protocol.messages import Member
from earmark.protocol.rules import Rules
from earmark.records import Record

CARD, COMMUNITY = "card.json", "community.json"
LOG, LOG_NOTES, WITNESS = "log.sqlite", "log-cosigned.sqlite", "witness.sqlite"
BALLOTS = "ballots"
DATABASE, LOG_KEY = "database", "log.key"
_VOTE_KEY, _WITNESS_KEY = "vote.key", "witness.key"


@dataclass(frozen=True, slots=True)
class Card(Record):
    """What a node shows of itself.

    Args:
        operator: Name of the party that runs it.
        url: Where it listens.
        member: Its public voting key, 64 hexadecimal digits.
        witness: Its public witness key, ``NAME+ID+BASE64``.
    """

    SCHEMA: ClassVar[str] = "earmark/node-card/1"
    operator: str
    url: str
    member: str
    witness: str

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"'{self.url}' is no address.", expected="http:// or https://")
        VerifierKey.parse(self.witness)
        Member(self.operator, self.member)

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read a node's card; raises as :meth:`Community.load`."""
        return files.read_as(
            path, cls.from_bytes, kind="node's card", sign=cls.SCHEMA, limit=1 << 16
        )


@dataclass(frozen=True, slots=True)
class Community(Record):
    """What everybody pins before trusting anything that a node says.

    Args:
        rules: What was agreed on.
        log: Public key of the log.
        keeper: Operator of the node that keeps the log.
        nodes: The nodes; each is a witness and a voter.
    """

    SCHEMA: ClassVar[str] = "earmark/community/1"
    rules: Rules
    log: str
    keeper: str
    nodes: tuple[Card, ...]

    def __post_init__(self) -> None:
        if VerifierKey.parse(self.log).name != self.rules.domain:
            raise UsageError("The community's log has another name than its rules.")
        if self.keeper not in {card.operator for card in self.nodes}:
            raise UsageError(f"'{self.keeper}' keeps the log and is no node of the community.")

    @property
    def url(self) -> str:
        """Where the log is."""
        return next(card.url for card in self.nodes if card.operator == self.keeper)

    @property
    def quorum(self) -> Quorum:
        """The witnesses, and how many must cosign."""
        return Quorum.of([VerifierKey.parse(card.witness) for card in self.nodes])

    @classmethod
    def load(cls, path: str | Path) -> Community:
        """Read a community file.

        Raises:
            FileError: Missing or unreadable.
            FormatError: Not a community.
            RecordError: Not a valid one, or not in canonical form.
        """
        return files.read_as(
            path, cls.from_bytes, kind="community file", sign=cls.SCHEMA, limit=1 << 20
        )


@dataclass(frozen=True, slots=True)
class Secrets:
    """A node's private keys; in no repr."""

    vote: Ed25519PrivateKey
    witness: SignerKey

    def __repr__(self) -> str:
        return "Secrets(...)"

    @classmethod
    def load(cls, folder: Path) -> Secrets:
        """Read a node's keys.

        Raises:
            FileError: Missing, malformed, or readable by other accounts.
        """
        vote = _read_secret(folder / _VOTE_KEY)
        try:
            key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vote))
        except ValueError as error:
            raise FileError(f"'{folder / _VOTE_KEY}' is no key.") from error
        return cls(key, SignerKey.parse(_read_secret(folder / _WITNESS_KEY)))


def init_node(folder: str | Path, *, operator: str, url: str) -> Card:
    """Make a node's folder with its keys and its card.

    Raises:
        UsageError: There is a node already, or name or address are none.
        OutputError: The folder cannot be written.
    """
    folder = Path(folder)
    if (folder / CARD).exists():
        raise UsageError(f"There is a node in '{folder}' already.")
    name = (
        "".join(char if char.isascii() and char.isalnum() else "-" for char in operator)
        + "/witness"
    )
    secrets = Secrets(Ed25519PrivateKey.generate(), SignerKey.generate(name, kind=COSIGNATURE))
    public = secrets.vote.public_key().public_bytes_raw().hex()
    card = Card(operator, url.rstrip("/"), public, str(secrets.witness.verifier))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Folder '{folder}' cannot be made: {error.strerror}.") from error
    files.write_bytes(
        folder / _VOTE_KEY, secrets.vote.private_bytes_raw().hex().encode(), mode=0o600
    )
    files.write_bytes(folder / _WITNESS_KEY, secrets.witness.export().encode(), mode=0o600)
    files.write_bytes(folder / CARD, card.canonical())
    return card


def found(
    folder: str | Path, cards: list[Card], rules: Rules, *, database: str | None = None
) -> Community:
    """Begin a community's log, in a node's folder or on a server.

    Args:
        folder: Folder of the node that keeps the log.
        cards: Cards of all nodes, this one's included.
        rules: What was agreed on; its members must be those of the cards.
        database: A PostgreSQL server's address, see `earmark.ledger.engines`; null for a file.

    Raises:
        UsageError: There is a log already, or cards and rules do not fit.
        NetworkError: The server does not answer.
    """
    folder = Path(folder)
    mine = Card.load(folder / CARD)
    if {(card.operator, card.member) for card in cards} != {
        (member.operator, member.key) for member in rules.members
    }:
        raise UsageError("The rules name other members than the cards.")
    key = None if database is None else folder / LOG_KEY
    with create_log(database or folder / LOG, rules.domain, key=key) as ledger:
        if database is not None:  # it may hold a password
            files.write_bytes(folder / DATABASE, database.encode(), mode=0o600)
        return Community(rules, ledger.vkey, mine.operator, tuple(cards))


def join(folder: str | Path, made: Community) -> None:
    """Put a community's file into a node's folder, and begin its witness's memory, once.

    Raises:
        UsageError: The node is not one of the community's, or has joined one before.
        FileError: The node has served before, and its witness's memory is missing.
        OutputError: The folder cannot be written.
    """
    folder = Path(folder)
    card = Card.load(folder / CARD)
    if card not in made.nodes:
        raise UsageError(f"'{card.operator}' is no node of this community.")
    if (folder / COMMUNITY).exists():
        raise UsageError(
            f"The node in '{folder}' has joined a community already.",
            hint="Make another node for another community.",
        )
    begun = (folder / WITNESS).exists() or (folder / BALLOTS).exists()
    make = Witness.open if begun else Witness.create
    make(folder / WITNESS, Secrets.load(folder).witness, [VerifierKey.parse(made.log)]).close()
    files.write_bytes(folder / COMMUNITY, made.canonical())


def open_log_of(folder: Path, vkey: str) -> tuple[TreeLog, Notes]:
    """Open the log that a node keeps, and its cosigned checkpoints.

    Args:
        folder: The node's folder.
        vkey: The log's public key, as the community's file names it.

    Raises:
        FileError: There is none.
        LedgerError, SignatureError: It is damaged, or another one.
        NetworkError: Its server does not answer.
    """
    if not (folder / DATABASE).exists():
        return open_log(folder / LOG, vkey=vkey), open_notes(folder / LOG_NOTES)
    where = _read_secret(folder / DATABASE)
    return open_log(where, key=folder / LOG_KEY, vkey=vkey), open_notes(where)


def _read_secret(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"The private key '{path}' cannot be read.") from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FileError(f"Other accounts may read '{path}'.", hint=f"chmod 600 '{path}'")
    return text
