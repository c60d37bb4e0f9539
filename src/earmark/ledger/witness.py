"""Witnesses: independent parties who vouch that a log only ever grew, and when they saw it.

A `Witness` remembers, for every log that it follows, the newest head that it cosigned. It cosigns
another one only after a proof that this one continues it, and it writes that down *before* it
hands the cosignature out, in one transaction, so that two requests at once or a crash between the
two cannot make it sign two histories. If a log ever signs two roots for one size, the witness keeps
the pair: together they convict the log before anyone.

A reader accepts a head that k of n witnesses cosigned, of whom at most f are faulty (`Quorum`).
Two such heads cannot contradict each other if ``2k - n > f``, and there are always enough honest
witnesses if ``n - f >= k``. Both together imply ``k >= 2f + 1``, so that the median of the
cosignatures' times lies between two honest clocks.

Source: C2SP tlog-witness and tlog-cosignature (c2sp.org); status numbers as there. We are stricter:
every head that was cosigned is kept, a clock that went back by more than a minute is not used, and
a database that is missing is an error and no fresh start.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from earmark.errors import FileError, IntegrityError, LedgerError, OutputError, UsageError
from earmark.ledger.checkpoint import SignedCheckpoint, cosign, cosigned_at
from earmark.ledger.merkle import verify_consistency
from earmark.ledger.note import (
    COSIGNATURE,
    MAX_LINES,
    MAX_NOTE_BYTES,
    Note,
    NoteSignature,
    SignerKey,
    VerifierKey,
    from_base64,
    to_base64,
)

Clock = Callable[[], float]

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_BACK_SECONDS = 60
_SCHEMA = """
CREATE TABLE heads (origin TEXT, size INTEGER, note TEXT, time INTEGER, PRIMARY KEY (origin, size));
CREATE TABLE faults (origin TEXT, size INTEGER, kept TEXT, shown TEXT,
                     PRIMARY KEY (origin, size, shown));
"""
_MAX_FAULTS = 64


class WitnessError(LedgerError):
    """A witness does not cosign.

    Args:
        what: What happened.
        status: Number of the refusal in C2SP tlog-witness.
        size: The size that the witness has cosigned, where the answer is to say so.
    """

    def __init__(self, what: str, *, status: int, size: int | None = None) -> None:
        super().__init__(what)
        self.status, self.size = status, size


@dataclass(frozen=True, slots=True)
class Request:
    """What a witness is asked: cosign this head, which continues the one of `old` entries.

    Args:
        old: Size that the witness cosigned last, as the sender believes.
        proof: Consistency proof from there, hexadecimal.
        checkpoint: The signed checkpoint.

    Example:
        >>> request = Request(1, ("00" * 32,), "a note")
        >>> Request.parse(request.encode()) == request
        True
    """

    old: int
    proof: tuple[str, ...]
    checkpoint: str

    def encode(self) -> bytes:
        """Write the request as it goes over HTTP."""
        hashes = [to_base64(bytes.fromhex(item)) for item in self.proof]
        return "\n".join([f"old {self.old}", *hashes, "", self.checkpoint]).encode()

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Read a request.

        Raises:
            WitnessError: Malformed, status 400.
        """
        if len(data) > MAX_NOTE_BYTES:
            raise WitnessError("The request is too large.", status=400)
        try:
            head, blank, note = data.decode("utf-8").partition("\n\n")
            first, *rest = head.split("\n")
            found = _OLD.fullmatch(first)
            hashes = [from_base64(line).hex() for line in rest]
        except (UnicodeDecodeError, LedgerError) as error:
            raise WitnessError("The request is not in the agreed form.", status=400) from error
        if not blank or found is None or len(rest) > MAX_LINES or any(len(h) != 64 for h in hashes):
            raise WitnessError("The request is not in the agreed form.", status=400)
        return cls(int(found.group(1)), tuple(hashes), note)


class Witness:
    """A witness with its memory in one SQLite file; see `create` and `open`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        signer: SignerKey,
        logs: Mapping[str, VerifierKey],
        clock: Clock,
    ) -> None:
        if signer.verifier.kind != COSIGNATURE:
            raise UsageError(
                f"Key '{signer.verifier.name}' cannot cosign.", expected="A key of type 4."
            )
        self._db, self._signer, self._clock = db, signer, clock
        self._logs = dict(logs)
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        path: str | Path,
        signer: SignerKey,
        logs: Sequence[VerifierKey],
        *,
        clock: Clock = time.time,
    ) -> Witness:
        """Make a witness that has seen nothing yet.

        A witness that lost its memory must not be made again under the same key: it would cosign
        another history of a log that it has cosigned before. Retire the key.

        Args:
            path: The file to make; must not exist.
            signer: The witness's key, of type `COSIGNATURE`.
            logs: Public keys of the logs that it follows.
            clock: Returns seconds since 1970.

        Raises:
            UsageError: The file exists, or the key is of another type.
            OutputError: The file cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise UsageError(f"Witness '{path}' exists already.", hint="Open it.")
        try:
            db = _connect(path)
            db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise OutputError(f"Witness '{path}' cannot be written: {error}.") from error
        return cls(db, signer, {key.name: key for key in logs}, clock)

    @classmethod
    def open(
        cls,
        path: str | Path,
        signer: SignerKey,
        logs: Sequence[VerifierKey],
        *,
        clock: Clock = time.time,
    ) -> Witness:
        """Open a witness with what it remembers; see `create`.

        Raises:
            FileError: Its file is missing or is none.
        """
        path = Path(path)
        if not path.is_file():
            raise FileError(
                f"The memory of witness '{path}' is missing.",
                hint="Restore it from a backup; if there is none, retire the key and make another: "
                "a witness without memory can be led astray.",
            )
        try:
            db = _connect(path)
            db.execute("SELECT count(*) FROM heads").fetchone()
        except sqlite3.Error as error:
            raise FileError(f"'{path}' is not the memory of a witness: {error}.") from error
        return cls(db, signer, {key.name: key for key in logs}, clock)

    @property
    def verifier(self) -> VerifierKey:
        """The witness's public key."""
        return self._signer.verifier

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def size(self, origin: str) -> int:
        """Return the size of a log's newest head that this witness cosigned; 0 if none."""
        with self._lock:
            head = self._newest(origin)
        return 0 if head is None else head[0].size

    def faults(self, origin: str) -> tuple[tuple[str, str], ...]:
        """Return pairs of heads of one size that a log signed with two roots."""
        with self._lock:
            rows = self._db.execute(
                "SELECT kept, shown FROM faults WHERE origin = ? ORDER BY size, shown", (origin,)
            ).fetchall()
        return tuple((str(kept), str(shown)) for kept, shown in rows)

    def add(self, request: Request) -> NoteSignature:
        """Cosign a head if it continues the one that was cosigned last.

        Args:
            request: What the log, or anybody else, asks for.

        Returns:
            The cosignature; it is on the disk that this head was cosigned.

        Raises:
            WitnessError: Refused, with the status number of C2SP: 404 an unknown log, 403 not
                signed by it, 400 malformed, 409 another size or root than was cosigned last, 422 a
                proof that does not hold, 503 this witness's clock went back.
        """
        signed = self._verified(request)
        with self._lock, self._writing():
            newest = self._newest(signed.origin)
            self._convict(signed)
            self._continues(request, signed, newest)
            stamp = self._now(0 if newest is None else newest[1])
            made = cosign(signed, self._signer, timestamp=stamp)
            self._db.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?)",
                (signed.origin, signed.size, _bare(signed), stamp),
            )
        return made.note.signatures[-1]

    def _verified(self, request: Request) -> SignedCheckpoint:
        try:
            signed = SignedCheckpoint.parse(request.checkpoint)
        except LedgerError as error:
            raise WitnessError(error.what, status=400) from error
        key = self._logs.get(signed.origin)
        if key is None:
            raise WitnessError(f"The log '{signed.origin}' is not followed.", status=404)
        try:
            signed.note.verify(key)
        except IntegrityError as error:
            raise WitnessError(error.what, status=403) from error
        if request.old > signed.size:
            raise WitnessError("The old size is beyond the checkpoint.", status=400)
        # what others cosigned is none of this witness's business
        return SignedCheckpoint.parse(_bare(signed, key))

    def _continues(
        self,
        request: Request,
        signed: SignedCheckpoint,
        newest: tuple[SignedCheckpoint, int] | None,
    ) -> None:
        known = 0 if newest is None else newest[0].size
        if request.old != known:
            raise WitnessError(
                f"This witness has cosigned {known} entries of '{signed.origin}'.",
                status=409,
                size=known,
            )
        if newest is None:
            return
        if signed.size == known and signed.root != newest[0].root:
            raise WitnessError(
                f"'{signed.origin}' signed two histories of {known} entries.",
                status=409,
                size=known,
            )
        hashes = [bytes.fromhex(item) for item in request.proof]
        try:
            verify_consistency(known, signed.size, newest[0].root, signed.root, hashes)
        except LedgerError as error:
            raise WitnessError(error.what, status=422) from error

    def _convict(self, signed: SignedCheckpoint) -> None:
        """Keep the pair if this witness has cosigned another root of the same size before."""
        row = self._db.execute(
            "SELECT note FROM heads WHERE origin = ? AND size = ?", (signed.origin, signed.size)
        ).fetchone()
        if row is None or SignedCheckpoint.parse(str(row[0])).root == signed.root:
            return
        count = self._db.execute(
            "SELECT count(*) FROM faults WHERE origin = ?", (signed.origin,)
        ).fetchone()
        if count[0] < _MAX_FAULTS:
            self._db.execute(
                "INSERT OR IGNORE INTO faults VALUES (?, ?, ?, ?)",
                (signed.origin, signed.size, str(row[0]), _bare(signed)),
            )
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")

    def _newest(self, origin: str) -> tuple[SignedCheckpoint, int] | None:
        row = self._db.execute(
            "SELECT note, time FROM heads WHERE origin = ? ORDER BY size DESC LIMIT 1", (origin,)
        ).fetchone()
        return None if row is None else (SignedCheckpoint.parse(str(row[0])), int(row[1]))

    def _now(self, last: int) -> int:
        now = int(self._clock())
        if now < max(1, last - _BACK_SECONDS):
            raise WitnessError(
                f"This witness's clock says {now}, and it has cosigned at {last}.", status=503
            )
        return max(now, last)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    db.execute("PRAGMA synchronous = FULL")
    return db


def _bare(signed: SignedCheckpoint, key: VerifierKey | None = None) -> str:
    """Write a checkpoint with the log's own signature only."""
    kept = signed.note.signatures if key is None else (signed.note.find(key),)
    return "".join([signed.note.text, "\n", *(item.line() + "\n" for item in kept[:1])])


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many witnesses a reader wants to see.

    Args:
        witnesses: Public keys of type `COSIGNATURE`, one per operator.
        faulty: How many of them may be faulty: f.
        threshold: How many must have cosigned: k.

    Raises:
        UsageError: The numbers do not protect against f faulty witnesses.
    """

    witnesses: tuple[VerifierKey, ...]
    faulty: int
    threshold: int

    def __post_init__(self) -> None:
        n, f, k = len(self.witnesses), self.faulty, self.threshold
        if len({key.public for key in self.witnesses}) != n:
            raise UsageError("A quorum names a witness twice.")
        if not sound(n, f, k):
            raise UsageError(
                f"{k} of {n} witnesses do not withstand {f} faulty ones.",
                expected="2k - n > f and n - f >= k: 3 of 4 for one, 5 of 7 for two.",
            )

    @classmethod
    def of(cls, witnesses: Sequence[VerifierKey]) -> Quorum:
        """Return the quorum that withstands as many faulty witnesses as can be: f of 3f + 1."""
        n = len(witnesses)
        f = max(0, (n - 1) // 3)
        return cls(tuple(witnesses), f, max(1, n - f))

    def cosigned(self, signed: SignedCheckpoint) -> Mapping[str, int]:
        """Return the names of the witnesses whose cosignature verifies, with their times.

        A cosignature that is there and does not verify is passed over, as is a witness that is
        not in the quorum.
        """
        found: dict[str, int] = {}
        for key in self.witnesses:
            try:
                found[key.name] = cosigned_at(signed, key)
            except IntegrityError:
                continue
        return found

    def time(self, signed: SignedCheckpoint) -> int:
        """Accept a head and return its time: the median of the witnesses' clocks.

        Args:
            signed: A checkpoint whose log signature the caller has verified.

        Returns:
            Seconds since 1970. With at most f faulty witnesses it lies between two honest clocks.

        Raises:
            LedgerError: Fewer than k witnesses have cosigned.
        """
        found = sorted(self.cosigned(signed).values())
        if len(found) < self.threshold:
            raise LedgerError(
                f"{len(found)} of {len(self.witnesses)} witnesses have cosigned the head of "
                f"{signed.size} entries.",
                expected=f"{self.threshold}.",
                hint="Do not rely on this head; ask again, or ask another source.",
            )
        return found[len(found) // 2]


def sound(n: int, f: int, k: int) -> bool:
    """Tell whether k of n witnesses are safe and live with f faulty ones.

    Example:
        >>> [sound(4, 1, 3), sound(7, 2, 5), sound(3, 1, 2)]
        [True, True, False]
    """
    return 0 <= f < n and 1 <= k <= n and 2 * k - n > f and n - f >= k


def attach(signed: SignedCheckpoint, cosignatures: Sequence[NoteSignature]) -> SignedCheckpoint:
    """Return a checkpoint with cosignatures added, in the order given; nothing is verified."""
    have = {(item.name, item.key_id) for item in signed.note.signatures}
    fresh = tuple(item for item in cosignatures if (item.name, item.key_id) not in have)
    return SignedCheckpoint(signed.body, Note(signed.note.text, (*signed.note.signatures, *fresh)))
