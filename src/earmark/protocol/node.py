"""A node: it follows the log, witnesses it, verifies claims by itself, and votes.

A node believes nothing that it has not derived: entries are accepted by its own `Mirror`, verdicts
come from `resolve`, files are fetched by digest and measured in a sandbox. What it must not forget
(its ballots, its witness's memory) is on the disk before anyone hears of it.
"""

from __future__ import annotations

import hmac
import logging
import secrets as system
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from earmark import files
from earmark.errors import (
    EarmarkError,
    HostError,
    LedgerError,
    NetworkError,
    RecordError,
    UsageError,
)
from earmark.ledger.merkle import address, grow, inclusion_proof, leaf_hash, peaks_at
from earmark.ledger.note import VerifierKey
from earmark.ledger.service import BlobStore, LogService, Mirror, Row, Seen
from earmark.ledger.witness import Witness
from earmark.protocol import client, community, verifier
from earmark.protocol import messages as m
from earmark.protocol.history import ClaimFile, History, entry_of, genesis_digest
from earmark.protocol.resolve import Resolution, resolve_history
from earmark.protocol.sandbox import Job
from earmark.protocol.voting import Count, Question, own, questions, seed, split_nonce
from earmark.records import Receipt

_LOG = logging.getLogger("earmark.node")
SEALS = 256
"""Unused sealed values that a node keeps in the log: anybody may commit, and uses up one."""


class Node:
    """One member of a community.

    Args:
        folder: Made by `earmark.protocol.community.init_node`; it has joined a community
            (`earmark.protocol.community.join`).
        limits: What one measurement may use.
        tasks: A folder with task files that this node's operator has read and trusts, for schemes
            that need a model's class; they are found by their digest.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        limits: verifier.Limits | None = None,
        tasks: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder).resolve()  # the sandbox runs elsewhere
        self.card = community.Card.load(self.folder / community.CARD)
        self.community = community.Community.load(self.folder / community.COMMUNITY)
        self.rules = self.community.rules
        self.limits = limits or verifier.Limits()
        self.tasks = {} if tasks is None else _digests(Path(tasks))
        self._secrets = community.Secrets.load(self.folder)
        self.public = self._secrets.vote.public_key().public_bytes_raw().hex()
        key = VerifierKey.parse(self.community.log)
        self.mirror = Mirror(key, self.community.quorum)
        self.history = History((), self.rules)
        self.blobs = BlobStore(self.folder / "blobs")
        self.ballots = self.folder / community.BALLOTS
        self.witness = Witness.open(self.folder / community.WITNESS, self._secrets.witness, [key])
        self.ballots.mkdir(exist_ok=True)
        self.service = self._open_log()
        self.source = client.Client(self.community.url)
        self.lock = threading.RLock()
        self.verifier = verifier.code_digest()
        self.trouble: str | None = None
        self._sent: set[tuple[str, ...]] = set()
        self._wanted: list[ClaimFile] = []
        self._waiting: list[ClaimFile] = []
        self._asked = threading.Event()
        self._failed: dict[str, EarmarkError] = {}
        self._failures: Counter[str] = Counter()
        self._seals: dict[str, int] = {}
        self._next, self._sealed_at = 0, -1
        self._tree: list[bytes] = []

    def _open_log(self) -> LogService | None:
        if self.community.keeper != self.card.operator:
            return None
        ledger, notes = community.open_log_of(self.folder, self.community.log)
        asks = {
            card.witness: client.witness(card.url, card.operator)
            for card in self.community.nodes
            if card.operator != self.card.operator
        }
        asks[self.card.witness] = self.witness.add
        return LogService(ledger, notes, self.community.quorum, asks)

    def close(self) -> None:
        """Close all files."""
        if self.service is not None:
            self.service.close()
            self.service.ledger.close()
        self.witness.close()

    # -- the log -----------------------------------------------------------------------------

    def append(self, record: bytes) -> Receipt:
        """Add a message to the log; only on the node that keeps it.

        Raises:
            RecordError: This node keeps no log, or the record is no message of this community.
            SignatureError: The message is not signed by its sender.
        """
        message, _ = m.open_message(record)
        if self.service is None or message.domain != self.rules.domain:
            raise RecordError("This node does not keep the log of that community.")
        return self.service.append(record)

    def page(self, since: int) -> list[Row]:
        """Return entries for others: of the log if this node keeps it, else of its mirror."""
        if self.service is not None:
            return self.service.page(since)
        with self.lock:
            chosen = self.mirror.entries[since : since + 256]
        return [
            Row(
                item.record.decode(),
                str(item.checkpoint) if item.checkpoint.size == item.index + 1 else None,
            )
            for item in chosen
        ]

    def sync(self) -> None:
        """Fetch what is new in the log and accept what a quorum of witnesses has cosigned.

        Raises:
            NetworkError: The log does not answer.
            LedgerError, SignatureError: It shows something that it should not.
        """
        while True:
            size = self.mirror.size
            rows = self.service.page(size) if self.service else self.source.page(size)
            with self.lock:
                fresh = self.mirror.take(rows)
                for seen in fresh:
                    self._grow(seen)
                for seen in self.mirror.entries[self.history.size :]:
                    self.history.read(entry_of(seen))
            if not fresh:
                return

    def _grow(self, seen: Seen) -> None:
        read = self._tree.__getitem__
        peaks = peaks_at(lambda level, index: read(address(level, index)), seen.index)
        self._tree += grow(peaks, seen.index, leaf_hash(seen.record))[1]

    def prove(self, index: int, size: int) -> tuple[str, ...]:
        """Prove that the tree of `size` entries holds entry `index`.

        Raises:
            UsageError: No such entry, or this node has not accepted as many.
        """
        if self.service is not None:
            return self.service.ledger.prove(index, size)
        with self.lock:
            if not 0 <= index < size <= self.mirror.size:
                raise UsageError(
                    f"There is no proof of entry {index} among {size} entries.",
                    expected=f"At most {self.mirror.size} entries.",
                )
            read = self._tree.__getitem__
            proof = inclusion_proof(lambda level, at: read(address(level, at)), index, size)
        return tuple(item.hex() for item in proof)

    def resolution(self) -> Resolution:
        """Resolve the log as this node has it."""
        with self.lock:
            return resolve_history(self.history)

    # -- voting ------------------------------------------------------------------------------

    def step(self) -> None:
        """Do what is due: follow the log, draw, vote, and let windows close.

        Nothing is measured here: what has to be is put down for `work`, so that a slow claim holds
        up no draw and no other vote.
        """
        self.sync()
        self.draw()
        if self.rules.verifiers and self.verifier not in self.rules.verifiers:
            self.trouble = f"This node's verifier {self.verifier[:16]} is not the pinned one."
            return
        with self.lock:
            counts = [(file, Count(self.history, file)) for file in self.history.claims.values()]
        self._wanted = []
        for file, count in fairly([item for item in counts if not item[1].closed]):
            if self.card.operator in count.panel:
                try:
                    self.duty(file, count)
                except EarmarkError as error:  # one claim's trouble is not the others'
                    self.trouble = f"claim {file.id[:12]}: {error}"
                    _LOG.warning("%s", self.trouble)
        with self.lock:
            self._waiting = self._wanted  # in place of older ones: nobody's claims pile up
        self._asked.set()

    def work(self) -> None:
        """Make the ballots that the newest `step` wanted, one by one, in its fair order.

        What failed more often comes later: a claim that never gets done holds up no other.
        """
        while True:
            with self.lock:
                if not self._waiting:
                    return
                self._waiting.sort(key=lambda item: self._failures[item.id])
                file = self._waiting.pop(0)
            try:
                self.answer(file)
            except EarmarkError as error:  # the next step tells of it, and wants it again
                self._failures[file.id] += 1
                self._failed[file.id] = error

    def draw(self) -> None:
        """Keep sealed values in the log, and show those that are drawn."""
        if not self.rules.draw_seconds:
            return
        now = int(time.time())
        with self.lock:
            draws, size = self.history.draws, self.mirror.size
            while draws.known(self._seal(self._next)):
                self._next += 1
            few = SEALS - draws.waiting(self.card.operator) if size > self._sealed_at else 0
            due = draws.due(self.card.operator, self.history.time)
            overdue = draws.overdue(self.history.time, now)
        if few > 0:
            for first in range(0, few, m.MAX_SEALS):
                self._send_seals(first, m.MAX_SEALS)
        elif overdue and self._due("overdue", f"{now // 2}"):
            self._send_seals(0, 1)  # any entry passes time on
            self._done("overdue", f"{now // 2}")
        for entry, seal in due.items():
            if seal in self._seals and self._due(entry, "draw"):
                value = self._value(self._seals[seal])
                self.send(m.Draw, entry=entry, sealer=self.public, value=value)
                self._done(entry, "draw")

    def _send_seals(self, first: int, count: int) -> None:
        seals = tuple(self._seal(self._next + first + more) for more in range(count))
        self._sealed_at = self.send(m.Seal, seals=seals)

    def _value(self, number: int) -> str:
        """Return the value that this node seals as its so-manieth; nobody else can compute it."""
        text = f"earmark/draw/1\n{self.rules.domain}\n{number}\n".encode()
        return hmac.digest(self._secrets.vote.private_bytes_raw(), text, "sha256").hex()

    def _seal(self, number: int) -> str:
        made = m.sealed(self.public, self._value(number))
        self._seals[made] = number
        return made

    def _due(self, *about: str) -> bool:
        """Tell whether something was not done since this node was started."""
        return about not in self._sent

    def _done(self, *about: str) -> None:
        self._sent.add(about)

    def duty(self, file: ClaimFile, count: Count) -> None:
        """Do what is due for one open claim."""
        now = int(time.time())
        mine = any(item.message.sender == self.public for item in file.commits)
        if not mine and now <= count.windows.commit:
            self.commit(file)
        elif mine and (count.reveals_from is not None or self.history.time > count.windows.commit):
            self.reveal(file)
        elif now > count.windows.commit and self.history.time <= count.windows.commit:
            self.tick(file, now)
        if now > count.windows.reveal >= self.history.time:
            self.tick(file, now)

    def commit(self, file: ClaimFile) -> None:
        """Send the digest of the ballot; if there is none yet, put the claim down for `work`."""
        if not self._due(file.id, "commit"):
            return
        if not self._place(file).exists():
            self._wanted.append(file)
            if file.id in self._failed:
                raise self._failed.pop(file.id)
            return
        sealed = self.ballot(file).sealed()
        self.send(m.VoteCommit, claim=file.id, suspect=file.claim.suspect, ballot=sealed)
        self._done(file.id, "commit")

    def reveal(self, file: ClaimFile) -> None:
        """Send the ballot."""
        if not self._due(file.id, "reveal"):
            return
        made = self.ballot(file)
        self.send(m.VoteReveal, claim=file.id, suspect=file.claim.suspect, ballot=made)
        self._done(file.id, "reveal")

    def tick(self, file: ClaimFile, now: int) -> None:
        """Sign what the claim resolves to now; being later than a window, it closes it."""
        if not self._due(file.id, f"tick {now // 2}"):
            return
        self._done(file.id, f"tick {now // 2}")
        with self.lock:
            result = resolve_history(self.history, now=now).claim(file.id)
        if result is not None:
            self.send(
                m.Resolve,
                claim=file.id,
                suspect=file.claim.suspect,
                outcome=result.outcome,
                result=result.digest(),
            )

    def ballot(self, file: ClaimFile) -> m.Ballot:
        """Return the ballot on a claim; it is on the disk before anyone hears of it."""
        return m.Ballot.from_bytes(files.read_bytes(self._place(file), limit=1 << 20))

    def answer(self, file: ClaimFile) -> None:
        """Measure a claim and keep the ballot, once."""
        if not self._place(file).exists():
            made = m.Ballot(self.public, file.id, self.findings(file), system.token_hex(32))
            files.write_bytes(self._place(file), made.canonical())

    def _place(self, file: ClaimFile) -> Path:
        return self.ballots / f"{file.id}.json"

    def findings(self, file: ClaimFile) -> tuple[m.Finding, ...]:
        """Measure every question of a claim; what cannot be measured is left out.

        So is a comparison whose files are not to be had, or for which no time is left: rivals who
        keep theirs back, or make them slow, would otherwise keep others' claims from a vote.

        Raises:
            NetworkError, LedgerError: A file of the claim's own is not to be had yet; try again.
        """
        with self.lock:
            asked = questions(self.history, file)
            ends = Count(self.history, file).windows.commit
        until = ends - min(self.limits.seconds, self.rules.commit_seconds // 4)
        made = []
        for question in asked:
            if question not in own(file) and time.time() > until:
                _LOG.warning("claim %s: no time is left to compare it.", file.id[:12])
                break
            try:
                made.append(self.measure(question))
            except (HostError, NetworkError, LedgerError) as error:
                if question in own(file) and not isinstance(error, HostError):
                    raise
                _LOG.warning("claim %s: %s", file.id[:12], error)
        return tuple(made)

    def measure(self, question: Question) -> m.Finding:
        """Fetch the files of a question and measure them in the sandbox.

        Raises:
            NetworkError, LedgerError: A file is not to be had, or is another one.
            HostError: It cannot be measured within the limits.
        """
        file = self.history.claims[question.claim]
        claim = file.claim
        with self.lock:
            drawn = seed(self.history, file)
        if drawn is None:
            raise HostError("What splits the trials of that claim has not been drawn.")
        assert isinstance(file.release.message, m.Publish)
        published = file.release.message.files.values()
        task = next((self.tasks[item] for item in published if item in self.tasks), None)
        job = Job(
            opening=claim.opening,
            disclosure=str(self.fetch(claim.disclosure)),
            shards=claim.shards,
            beacon=file.release.message.beacon,
            suspect=str(self.fetch(question.model)),
            inputs=None if claim.inputs is None else str(self.fetch(claim.inputs)),
            task=None if task is None else str(task),
            nonce=split_nonce(file, drawn),
            memory=self.limits.memory,
            seconds=self.limits.seconds,
        )
        return verifier.ask(question, job)

    def fetch(self, digest: str) -> Path:
        """Return where a file lies, fetching it if it is not here."""
        path = self.blobs.path(digest)
        if path is None:
            self.blobs.put(self.source.blob(digest, limit=self.blobs.limit))
            path = self.blobs.folder / digest
        return path

    def send(self, kind: type[m.Message], **body: object) -> int:
        """Sign a message, have it added to the log, and return its index."""
        with self.lock:
            after = genesis_digest(self.rules.domain)
            if self.mirror.entries:
                after = m.checkpoint_digest(self.mirror.entries[-1].checkpoint.body.text)
        common = {
            "domain": self.rules.domain,
            "sender": self.public,
            "nonce": m.fresh_nonce(),
            "after": after,
        }
        record = kind(**common, **body).sign(self._secrets.vote).encode()  # type: ignore[arg-type]
        add = self.source.append if self.service is None else self.append
        return add(record).index

    def run(self, stop: threading.Event, *, seconds: float = 1.0) -> None:
        """Do what is due, again and again, and measure beside it, until told to stop.

        Args:
            stop: Set it to stop; it is set at the end, in any case.
            seconds: Pause between two rounds.
        """
        with ThreadPoolExecutor(1, "measure") as pool:
            working = pool.submit(self._work_on, stop)
            try:
                while not (stop.wait(seconds) or working.done()):
                    try:
                        self.trouble = None
                        self.step()
                    except EarmarkError as error:
                        self.trouble = str(error)
                        _LOG.warning("%s", error)
            finally:
                stop.set()
                with self.lock:
                    self._waiting = []
                self._asked.set()
        working.result()  # who can measure no more stops, with the reason

    def _work_on(self, stop: threading.Event) -> None:
        while self._asked.wait() and not stop.is_set():
            self._asked.clear()
            self.work()


def fairly(items: list[tuple[ClaimFile, Count]]) -> list[tuple[ClaimFile, Count]]:
    """Order open claims so that nobody waits for more than one claim of every other owner.

    Each owner's first open claim comes first, then the second ones: who floods waits for himself.
    """
    seen: dict[str, int] = {}
    ranked = []
    for item in items:
        rank = seen[item[0].owner] = seen.get(item[0].owner, -1) + 1
        ranked.append((rank, item[0].logged.index, item))
    return [item for _, _, item in sorted(ranked, key=lambda one: one[:2])]


def _digests(folder: Path) -> dict[str, Path]:
    return {files.file_digest(path): path for path in sorted(folder.glob("*.py"))}
