"""Somebody who talks to a community and believes none of its nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark.errors import NetworkError, UsageError
from earmark.ledger.note import VerifierKey
from earmark.ledger.service import Mirror, Row, Seen
from earmark.protocol import messages as m
from earmark.protocol.client import Client
from earmark.protocol.community import Community
from earmark.protocol.history import History, Logged, Refusal, entry_of, genesis_digest
from earmark.protocol.resolve import Resolution, resolve_history


class Party:
    """A reader of a community's log who may also sign messages.

    Args:
        community: The community's file, from a source that you trust.
        key: Signs messages; null for somebody who only reads.
    """

    def __init__(self, community: Community, key: Ed25519PrivateKey | None = None) -> None:
        self.community, self.rules = community, community.rules
        self.client = Client(community.url, timeout=30.0)
        self.mirror = Mirror(VerifierKey.parse(community.log), community.quorum)
        self.history = History((), self.rules)
        self._key = key

    @classmethod
    def open(cls, path: str | Path, key: Ed25519PrivateKey | None = None) -> Party:
        """Read the community's file; see `Community.load` for what is raised."""
        return cls(Community.load(path), key)

    def sync(self) -> None:
        """Fetch the log, derive it again, and accept what the witnesses cosigned.

        Raises:
            NetworkError: The node that keeps the log does not answer.
            LedgerError, SignatureError: The log does not hold.
        """
        while fresh := self.mirror.take(self.client.page(self.mirror.size)):
            for seen in fresh:
                self.history.read(entry_of(seen))

    def send(self, kind: type[m.Message], **body: object) -> str:
        """Sign a message, have it logged, and return its digest.

        Raises:
            UsageError: There is no key to sign with.
            NetworkError: The log does not take it.
        """
        if self._key is None:
            raise UsageError("A reader without a key cannot sign.")
        self.sync()
        after = genesis_digest(self.rules.domain)
        if self.entries:
            after = m.checkpoint_digest(self.entries[-1].checkpoint.body.text)
        common = {
            "domain": self.rules.domain,
            "sender": self.public,
            "nonce": m.fresh_nonce(),
            "after": after,
        }
        envelope = kind(**common, **body).sign(self._key)  # type: ignore[arg-type]
        self._add(envelope.encode())
        self.sync()
        return envelope.digest()

    @property
    def public(self) -> str:
        """The public key that this party signs for.

        Raises:
            UsageError: There is no key to sign with.
        """
        if self._key is None:
            raise UsageError("A reader without a key cannot sign.")
        return self._key.public_key().public_bytes_raw().hex()

    def _add(self, record: bytes) -> None:
        self.client.append(record)

    @property
    def entries(self) -> Sequence[Seen]:
        """The entries that were accepted."""
        return self.mirror.entries

    def record(self, digest: str) -> bytes:
        """Return the record that a message's digest names.

        Raises:
            UsageError: The log holds none, as far as it was accepted.
        """
        from earmark import codec

        for item in reversed(self.mirror.entries):
            if codec.digest(item.record) == digest:
                return item.record
        raise UsageError(f"The log holds no record {digest[:16]} yet.")

    def committed(self, commitment: str) -> Logged | None:
        """Return the entry from which a commitment of this party's counts, or null.

        Without a key it is that of the first who sent it.
        """
        self.sync()
        sent = self.history.commits.get(commitment)
        if not sent:
            return None
        owner = sent[0].message.sender if self._key is None else self.public
        return self.history.committed(commitment, owner)

    def beacon(self, commitment: str, *, patience: float = 0.0) -> str | None:
        """Return the value that was drawn for a commitment, or null.

        Args:
            commitment: The commitment.
            patience: Seconds to wait for it, unless the draw comes to nothing before.

        Raises:
            LedgerError, SignatureError: See `sync`.
            NetworkError: The log does not answer when patience ends; it may be silent before.
        """
        until = time.monotonic() + patience
        while True:
            try:
                found = self.committed(commitment)
                drawn = None if found is None else self.history.beacon(found)
                failed = found is not None and self.failed(found.digest)
                if drawn is not None or failed or time.monotonic() >= until:
                    return drawn
            except NetworkError:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.2)

    def failed(self, entry: str) -> bool:
        """Tell whether what was to be drawn for a commit or a claim came to nothing."""
        return self.history.draws.failed(entry, self.history.time)

    def rows(self) -> list[Row]:
        """Return the entries that were accepted, as anybody can check them again."""
        made = []
        for item in self.entries:
            own = item.checkpoint.size == item.index + 1
            made.append(Row(item.record.decode(), str(item.checkpoint) if own else None))
        return made

    def refusal(self, digest: str) -> Refusal | None:
        """Return why a message does not count, or null if it does or is not there."""
        from earmark import codec

        for item in self.history.refusals:
            if codec.digest(self.entries[item.index].record) == digest:
                return item
        return None

    def resolution(self) -> Resolution:
        """Decide all claims from the records."""
        return resolve_history(self.history)
