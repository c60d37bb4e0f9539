"""A classifier behind HTTP as host: labels only, within a budget, politely, on the record."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from earmark import codec
from earmark.errors import HostError, NetworkError, RecordError
from earmark.hosts import batches
from earmark.hosts.access import Host
from earmark.hosts.adapter import Adapter
from earmark.hosts.batches import Tree
from earmark.hosts.callable import check_budget
from earmark.hosts.transcript import Transcript
from earmark.records import Access

_LOG = logging.getLogger("earmark.endpoint")
_ADAPTER = "Check that the adapter asks as the service wants to be asked; then run again."
_ADDRESS = "Check the address's host and port, and that the service runs there; then run again."
_LARGEST_REPLY = 1 << 20
_LONGEST_PAUSE = 300.0
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


class EndpointHost(Host):
    """A remote classifier.

    Every answer is written to the transcript before it is used; inputs that stand there already
    are not asked again. Refusals (429, 503) and failures are tried again, after the time that the
    server names or after pauses that double. Redirects are not followed.

    Args:
        adapter: How to ask; see :mod:`earmark.hosts.adapter`.
        transcript: File of the transcript; null keeps it in memory.
        nonce: Value that orders the questions; a transcript that was begun keeps its own, so that
            a resumed measurement asks what the first one would have asked.
        sleep: Waits so many seconds; tests replace it.

    Raises:
        UsageError: The transcript belongs to another suspect.
    """

    access: ClassVar[frozenset[Access]] = frozenset({Access.LABELS})

    def __init__(
        self,
        adapter: Adapter,
        *,
        transcript: str | Path | None = None,
        nonce: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.adapter = adapter
        self.budget = adapter.limits.budget
        self.transcript = Transcript(transcript, adapter.source(), nonce=nonce)
        self._address, self._sleep = urlsplit(adapter.url), sleep
        self._connection: http.client.HTTPConnection | None = None
        self._next = 0.0

    def __repr__(self) -> str:
        return f"EndpointHost({self._address.hostname}, {len(self.transcript.answers)} answers)"

    @property
    def nonce(self) -> str | None:
        """The value that orders the questions, as the transcript has it."""
        return self.transcript.nonce

    @property
    def names(self) -> tuple[str, ...]:
        """The words that the service answers in, in the order of the classes; none for numbers."""
        return self.adapter.names

    def digest(self) -> str:
        """Return a digest over the address and the answers so far: all that is known of it."""
        return self.transcript.digest()

    def labels(self, inputs: Tree) -> NDArray[np.int64]:
        """Return the labels that the endpoint gives.

        Args:
            inputs: Samples; a tree with exactly one tensor.

        Raises:
            AccessError: The budget does not suffice; nothing was asked.
            HostError: Samples have more than one tensor.
            NetworkError: The endpoint did not answer, or not in the agreed form.
        """
        leaves = batches.leaves(inputs)
        if len(leaves) != 1:
            raise HostError(f"An endpoint takes samples of one tensor; these have {len(leaves)}.")
        rows: NDArray[Any] = next(iter(leaves.values())).detach().cpu().numpy()  # Any: numbers
        names = [digest.hex() for digest in batches.sample_digests(inputs)]
        fresh = [i for i, name in enumerate(names) if name not in self.transcript.answers]
        check_budget(self.budget, len(self.transcript.answers), len(fresh))
        try:
            for start in range(0, len(fresh), self.adapter.batch):
                part = fresh[start : start + self.adapter.batch]
                for i, label, extra in self._ask(rows, part):
                    self.transcript.add(names[i], label, extra)
        finally:
            self._close()
        return np.array([self.transcript.answers[name] for name in names], dtype=np.int64)

    def _ask(
        self, rows: NDArray[Any], part: list[int]
    ) -> list[tuple[int, int, dict[str, Any]]]:  # Any: numbers; plain JSON
        """Ask for some samples, trying again where that may help."""
        body, headers = self.adapter.request(rows[part])
        limits = self.adapter.limits
        problem, hint = "", _ADAPTER
        for attempt in range(limits.retries + 1):
            self._pace()
            pause = min(_LONGEST_PAUSE, 0.5 * 2**attempt * (1 + random.random() / 4))  # noqa: S311
            try:
                status, reply, after = self._send(body, headers)
            except (OSError, http.client.HTTPException) as error:
                self._close()
                problem = f"{type(error).__name__}: {error}"
                unreached = isinstance(error, (ConnectionRefusedError, socket.gaierror))
                hint = _ADDRESS if unreached else _ADAPTER
            else:
                if status == 200:
                    labels = self.adapter.read_all(_parsed(reply), len(part))
                    extra = {"status": status, "tries": attempt + 1}
                    return [(i, label, extra) for i, label in zip(part, labels, strict=True)]
                problem, hint = f"status {status}", _ADAPTER
                if status not in _LATER:
                    break
                pause = pause if after is None else min(_LONGEST_PAUSE, after)
            if attempt < limits.retries:
                _LOG.info("Endpoint: %s; next try in %.1f s.", problem, pause)
                self._sleep(pause)
        done = len(self.transcript.answers)
        raise NetworkError(
            f"'{self._address.hostname}' did not answer question {done + 1}: {problem}.",
            hint=f"{done} answers are in the transcript; run again with it to go on."
            if done
            else hint,
        )

    def _pace(self) -> None:
        """Wait until the next request is due."""
        wait = self._next - time.monotonic()
        if wait > 0:
            self._sleep(wait)
        self._next = max(time.monotonic(), self._next) + 1 / self.adapter.limits.per_second

    def _send(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, float | None]:
        """Send one request; return status, body, and the seconds that the server asks to wait."""
        if self._connection is None:
            self._connection = self._connect()
        path = self._address.path or "/"
        path += f"?{self._address.query}" if self._address.query else ""
        with self._deadline(self._connection):
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            reply = response.read(_LARGEST_REPLY + 1)
        if len(reply) > _LARGEST_REPLY:
            raise NetworkError(f"A reply is larger than {_LARGEST_REPLY} bytes.")
        return response.status, reply, _seconds(response.getheader("Retry-After"))

    @contextlib.contextmanager
    def _deadline(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """Cut off a server that drips: the socket's own timeout begins anew with each byte."""
        if connection.sock is None:
            connection.connect()
        connected, late = connection.sock, threading.Event()

        def cut() -> None:
            late.set()
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.adapter.limits.timeout, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException):
            if late.is_set():
                raise TimeoutError("timed out") from None
            raise
        finally:
            timer.cancel()
        if late.is_set():
            raise TimeoutError("timed out")

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        timeout = self.adapter.limits.timeout
        if self._address.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None


def _parsed(reply: bytes) -> Any:  # Any: JSON of a stranger
    try:
        return codec.read_json(reply)
    except (RecordError, ValueError) as error:
        raise NetworkError(
            f"A reply is no JSON: {reply[:60]!r}.", hint="Correct the adapter's url or body."
        ) from error


def _seconds(value: str | None) -> float | None:
    """Return what a Retry-After header asks for: seconds, or a date."""
    if value is None:
        return None
    stripped = value.strip()
    if stripped.isascii() and stripped.isdigit() and len(stripped) < 10:
        return float(stripped)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return None
