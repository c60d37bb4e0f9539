"""The exceptions a caller may meet, each with a stable code, an exit code and a hint.

::

    EarmarkError
    ├── UsageError          E1xx  the call or its arguments (exit 2)
    │   ├── TaskError       E120  a task file lacks something
    │   ├── UnknownNameError E113  no scheme, attack or lock of that name
    │   ├── CarrierError    E114  a carrier or tap matches nothing
    │   ├── CapacityError   E131  more bits than the carrier holds
    │   ├── KeyLayoutError  E140  a key made for another layout
    │   └── PassphraseError E150  a passphrase does not open a sealed file
    ├── AccessError         E201  the suspect grants too little access (exit 3)
    ├── IntegrityError      E3xx  something was changed after the fact (exit 4)
    │   ├── RecordError     E301  a record breaks its schema
    │   ├── LedgerError     E302  a ledger does not match its own proofs
    │   ├── DossierError    E303  a dossier does not match its manifest
    │   ├── SignatureError  E304  a signature does not verify
    │   └── KeyFileError    E305  a key or what it needs was changed
    └── RunError            E4xx, E5xx  the work could not be done (exit 5)
        ├── FileError       E401  a file is missing, truncated or unreadable
        ├── FormatError     E402  a file's content lies about itself
        ├── OutputError     E403  an output cannot be written
        ├── HostError       E404  a model does not fit what is asked of it
        ├── NetworkError    E405  a remote party did not answer
        ├── LicenseError    E406  a license does not open this: wrong number, expired, revoked
        └── ExtraError      E501  an optional dependency is missing
"""

from __future__ import annotations

from typing import ClassVar


class EarmarkError(Exception):
    """Base of every error that earmark raises on purpose.

    Args:
        what: What happened, with the caller's own values, as one sentence.
        expected: What was expected instead; may be empty.
        hint: What to do now; may be empty.

    Example:
        >>> error = CarrierError("Carrier 'fc9' matches nothing.", hint="Use 'fc'.")
        >>> print(error)
        E114  Carrier 'fc9' matches nothing. Use 'fc'.
    """

    code: ClassVar[str] = "E000"
    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, *, expected: str = "", hint: str = "") -> None:
        self.what = what
        self.expected = expected
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what, _expectation(self.expected), self.hint]
        return f"{self.code}  {' '.join(part for part in parts if part)}"


_SENTENCES = frozenset({"It", "This", "Their", "Nobody", "Weights", "Bits", "Keys", "Licenses"})


def _expectation(text: str) -> str:
    """Put "Expected:" before what is no sentence and no list with a heading of its own."""
    first = text.partition(" ")[0]
    if not text or first.endswith(":") or first in _SENTENCES:
        return text
    return f"Expected: {text}"


class UsageError(EarmarkError):
    """The call or one of its arguments makes no sense."""

    code = "E101"
    exit_code = 2


class UnknownNameError(UsageError):
    """No scheme, attack, lock or metric has that name."""

    code = "E113"


class CarrierError(UsageError):
    """A carrier or tap matches no tensor or layer of the model."""

    code = "E114"


class TaskError(UsageError):
    """A task file lacks a function or one of them breaks its contract."""

    code = "E120"


class CapacityError(UsageError):
    """The carrier holds fewer bits than were asked for."""

    code = "E131"


class KeyLayoutError(UsageError):
    """A key was made for another layout than the one at hand."""

    code = "E140"


class PassphraseError(UsageError):
    """A passphrase does not open a sealed file, or the file was changed."""

    code = "E150"


class AccessError(EarmarkError):
    """The suspect grants too little access for what the scheme must read."""

    code = "E201"
    exit_code = 3


class IntegrityError(EarmarkError):
    """Something was changed after it was recorded."""

    code = "E300"
    exit_code = 4


class RecordError(IntegrityError):
    """A record breaks its schema or is not in canonical form."""

    code = "E301"


class LedgerError(IntegrityError):
    """A ledger does not match its own hashes, proofs or signatures."""

    code = "E302"


class DossierError(IntegrityError):
    """A dossier does not match its manifest."""

    code = "E303"


class SignatureError(IntegrityError):
    """A signature does not verify."""

    code = "E304"


class KeyFileError(IntegrityError):
    """A key, or the inputs or shards that it needs, are not those that were committed."""

    code = "E305"


class RunError(EarmarkError):
    """The work could not be done."""

    code = "E400"
    exit_code = 5


class FileError(RunError):
    """A file is missing, truncated or unreadable."""

    code = "E401"


class FormatError(RunError):
    """A file's content lies about itself or is not of a format that we read."""

    code = "E402"


class OutputError(RunError):
    """An output cannot be written; nothing half-written is left behind."""

    code = "E403"


class HostError(RunError):
    """A model does not fit what is asked of it."""

    code = "E404"


class NetworkError(RunError):
    """A remote party did not answer, or not in the agreed form."""

    code = "E405"


class LicenseError(RunError):
    """A license does not open this copy: wrong number, expired, revoked, or another copy."""

    code = "E406"


class ExtraError(RunError):
    """An optional dependency is missing."""

    code = "E501"
