"""What the service sends: records of their own for short answers, and problems for refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from earmark.codec import Json, json_schema
from earmark.errors import EarmarkError, FileError, OutputError, UsageError
from earmark.ledger.service import Row
from earmark.protocol.community import Community
from earmark.protocol.resolve import Resolution
from earmark.records import Receipt, Record


@dataclass(frozen=True, slots=True)
class Page(Record):
    """Entries of the log, in order.

    Args:
        rows: At most 256 of them; ask again from the next index for more.
    """

    SCHEMA: ClassVar[str] = "earmark/log-page/1"
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Status(Record):
    """How a node is.

    Args:
        operator: Who runs it.
        size: Entries that it has accepted.
        keeper: Whether it keeps the log.
        verifier: Digest of the code that it measures with.
        trouble: What went wrong last, or null.
    """

    SCHEMA: ClassVar[str] = "earmark/node-status/1"
    operator: str
    size: int
    keeper: bool
    verifier: str
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Proof(Record):
    """That the tree of a size holds an entry (RFC 9162).

    Args:
        proof: Hashes from the leaf's side up, hexadecimal.
    """

    SCHEMA: ClassVar[str] = "earmark/inclusion/1"
    proof: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored(Record):
    """Under which name a file is kept.

    Args:
        sha256: Of its bytes.
    """

    SCHEMA: ClassVar[str] = "earmark/stored/1"
    sha256: str


@dataclass(frozen=True, slots=True)
class Problem(Record):
    """Why a request was refused (RFC 9457).

    Args:
        title: One sentence.
        status: HTTP status.
        code: Stable code of earmark, such as E302.
    """

    SCHEMA: ClassVar[str] = "earmark/problem/1"
    title: str
    status: int
    code: str


ANSWERS: tuple[type[Record], ...] = (
    Community,
    Page,
    Problem,
    Proof,
    Receipt,
    Resolution,
    Status,
    Stored,
)
"""Everything that is sent as JSON; the service's description is made from these classes."""

ENVELOPE: dict[str, Json] = {
    "type": "object",
    "description": "A DSSE envelope around an in-toto statement; canonical JSON (RFC 8785).",
    "properties": {
        "payload": {"type": "string", "contentEncoding": "base64"},
        "payloadType": {"const": "application/vnd.in-toto+json"},
        "signatures": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "keyid": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    "sig": {"type": "string", "contentEncoding": "base64"},
                },
                "required": ["keyid", "sig"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["payload", "payloadType", "signatures"],
    "additionalProperties": False,
}


def schemas() -> dict[str, Json]:
    """Return the JSON schema of everything that is sent or taken, by name."""
    made: dict[str, Json] = {"Envelope": ENVELOPE}
    for cls in ANSWERS:
        schema = {key: value for key, value in json_schema(cls).items() if key != "$schema"}
        made[cls.__name__] = {**schema, "description": (cls.__doc__ or "").split("\n")[0]}
    return made


def status_of(error: EarmarkError) -> int:
    """Return the HTTP status for an error of the library."""
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, FileError):
        return 404
    return 507 if isinstance(error, OutputError) else 422
