"""Talk to a node: plain HTTP, small answers, nothing believed that is not checked elsewhere."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from earmark import codec
from earmark.errors import IntegrityError, LedgerError, NetworkError, RecordError
from earmark.ledger.note import Note, NoteSignature
from earmark.ledger.service import Row
from earmark.ledger.witness import Request, WitnessError
from earmark.records import Receipt

MAX_ANSWER = 1 << 25
MAX_REFUSAL = 1 << 12
"""Bytes that are read of a refusal; the rest is left."""


class _AsItComes(urllib.request.HTTPErrorProcessor):
    """Hands out every answer: a stranger's redirect would lead into the asker's own network."""

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        del request
        return response

    https_response = http_response


class Client:
    """A node as seen from outside.

    Args:
        url: Where it listens.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout

    def call(self, path: str, data: bytes | None = None, *, limit: int = MAX_ANSWER) -> bytes:
        """Get a path, or post to it.

        Raises:
            NetworkError: No answer, a refusal, or an answer that is too large.
        """
        status, body = self.exchange(path, data, limit=limit)
        if status != 200:
            raise NetworkError(
                f"'{self.url}{path}' answered {status}: {body[:300].decode('utf-8', 'replace')!r}"
            )
        return body

    def exchange(
        self, path: str, data: bytes | None = None, *, limit: int = MAX_ANSWER
    ) -> tuple[int, bytes]:
        """Get or post, and return status and body; redirects are not followed.

        Raises:
            NetworkError: No answer, or one that is too large or too slow.
        """
        request = urllib.request.Request(self.url + path, data=data)  # noqa: S310 - http(s) by Card
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AsItComes)
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                status = answer.status
                body = self._read(answer, limit + 1 if status == 200 else MAX_REFUSAL)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NetworkError(f"'{self.url}' does not answer: {error}.") from error
        if len(body) > limit:
            raise NetworkError(f"'{self.url}{path}' answered with more than {limit:,} bytes.")
        return status, body

    def _read(self, answer: http.client.HTTPResponse, most: int) -> bytes:
        """Read an answer within ten times the timeout, which begins anew with each byte."""
        parts, held, until = list[bytes](), 0, time.monotonic() + 10 * self.timeout
        while held < most and (part := answer.read1(most - held)):
            parts.append(part)
            held += len(part)
            if time.monotonic() > until:
                raise TimeoutError("the answer took too long")
        return b"".join(parts)

    def json(self, path: str) -> Any:  # Any: plain JSON
        """Get a JSON document.

        Raises:
            NetworkError: No answer, or no JSON.
        """
        try:
            return codec.read_json(self.call(path))
        except (RecordError, ValueError) as error:
            raise NetworkError(f"'{self.url}{path}' is no JSON.") from error

    def page(self, since: int) -> list[Row]:
        """Return entries of the log from an index on, not verified."""
        body = self.json(f"/api/log?since={since}")
        if not isinstance(body, dict) or not isinstance(body.get("rows"), list):
            raise NetworkError(f"'{self.url}' sent no page of the log.")
        return [Row.from_json(row) for row in body["rows"]]

    def append(self, record: bytes) -> Receipt:
        """Have a record added to the log; the receipt is not verified."""
        return Receipt.from_bytes(self.call("/api/records", record))

    def put(self, data: bytes) -> str:
        """Leave a file with the node and return its digest."""
        self.call("/api/blobs", data)
        return hashlib.sha256(data).hexdigest()

    def blob(self, digest: str, *, limit: int = 1 << 28) -> bytes:
        """Fetch a file by its digest.

        Raises:
            NetworkError: No answer.
            LedgerError: The bytes have another digest.
        """
        data = self.call(f"/api/blobs/{digest}", limit=limit)
        if hashlib.sha256(data).hexdigest() != digest:
            raise LedgerError(f"'{self.url}' sent another file than {digest[:16]}.")
        return data


def witness(url: str, name: str) -> Callable[[Request], NoteSignature]:
    """Return a function that asks the witness at a node; see `earmark.ledger.witness`."""
    client = Client(url, timeout=3.0)

    def ask(request: Request) -> NoteSignature:
        status, body = client.exchange("/add-checkpoint", request.encode(), limit=1 << 16)
        text = body.decode("utf-8", "replace")
        if status != 200:
            told = text.strip()
            known = status == 409 and told.isascii() and told.isdigit() and len(told) < 20
            size = int(told) if known else None
            raise WitnessError(f"'{name}' refuses: {status}.", status=status, size=size)
        try:
            (item,) = Note.parse("cosignature\n\n" + text).signatures
        except (IntegrityError, ValueError) as error:
            raise NetworkError(f"'{url}' sent no cosignature.") from error
        return item

    return ask
