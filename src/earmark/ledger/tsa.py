"""RFC 3161: a time-stamping authority signs a digest together with the time on its clock.

The token stands on its own: a verifier needs the authority's root certificate from a source that
he trusts, and nothing else, no network. Tokens do not outlive their algorithms: have the newest
ledger head stamped again before that. Needs the extra ``tsa``.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import urllib.request
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cryptography import x509

from earmark.errors import ExtraError, FormatError, LedgerError, NetworkError, UsageError
from earmark.ledger.timeproof import Moment, TimeProof, TimeSource, require_digest

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse

MAX_TOKEN_BYTES = 1 << 16
UNSTATED_SECONDS = 60
"""What is taken for an authority's accuracy where its token states none."""
_SHA256_BYTES = 32


class Rfc3161Time(TimeSource):
    """A time-stamping authority.

    Args:
        roots: Its root certificates, PEM, from a source that you trust.
        ask: Sends a request (DER) and returns the answer; see `over_http`. Null to verify only.

    Raises:
        UsageError: No root certificate.
        FormatError: They are no certificates.
        ExtraError: The extra ``tsa`` is not installed.
    """

    kind = "rfc3161"

    def __init__(self, roots: Sequence[bytes], ask: Callable[[bytes], bytes] | None = None) -> None:
        if importlib.util.find_spec("rfc3161_client") is None:
            raise ExtraError(
                "Time stamps of authorities need the extra 'tsa'.",
                hint="pip install 'earmark[tsa]'",
            )
        try:
            self._roots = [found for pem in roots for found in x509.load_pem_x509_certificates(pem)]
        except ValueError as error:
            raise FormatError("A root certificate is not PEM.") from error
        if not self._roots:
            raise UsageError("An authority without a root certificate cannot be verified.")
        self._ask = ask

    def stamp(self, digest: str) -> TimeProof:
        """See `TimeSource.stamp`; the token is verified before it is returned."""
        if self._ask is None:
            raise UsageError("This authority was opened for verifying only.")
        require_digest(digest)
        from rfc3161_client import TimestampRequestBuilder

        # the builder hashes what it is given: the digest's own bytes are what is stamped
        asked = TimestampRequestBuilder().data(bytes.fromhex(digest)).build()
        answer = self._ask(asked.as_bytes())
        proof = TimeProof(self.kind, digest, base64.b64encode(answer).decode("ascii"))
        response = self._verified(proof)
        if response.tst_info.nonce != asked.nonce:
            raise LedgerError("The authority answered another request.")
        return proof

    def verify(self, proof: TimeProof) -> Moment:
        """See `TimeSource.verify`: signature, chain at the token's time, purpose, digest."""
        info = self._verified(proof).tst_info
        stated: Any = info.accuracy  # Any: absent in some tokens
        if stated is None:
            uncertainty = UNSTATED_SECONDS
        else:
            parts = (stated.seconds or 0, bool(stated.millis), bool(stated.micros))
            uncertainty = int(parts[0]) + (1 if any(parts[1:]) else 0)
        name = "" if info.name is None else f" {info.name}"
        return Moment(f"RFC 3161{name[:200]}", int(info.gen_time.timestamp()), uncertainty)

    def _verified(self, proof: TimeProof) -> TimeStampResponse:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

        self._mine(proof)
        try:
            token = base64.b64decode(proof.data, validate=True)
            if len(token) > MAX_TOKEN_BYTES:
                raise LedgerError(f"A time stamp of {len(token):,} bytes is none.")
            response = decode_timestamp_response(token)
            builder = VerifierBuilder(roots=list(self._roots))
            builder.build().verify_message(response, bytes.fromhex(proof.subject))
        except (VerificationError, ValueError, TypeError, binascii.Error) as error:
            raise LedgerError(
                f"The time stamp does not hold: {str(error)[:200].rstrip('.')}."
            ) from error
        return response


def over_http(url: str, *, seconds: float = 30.0) -> Callable[[bytes], bytes]:
    """Return a function that asks an authority over HTTP, as RFC 3161 (section 3.4) describes it.

    Args:
        url: Its address, http or https.
        seconds: How long to wait.

    Raises:
        UsageError: Not http or https.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"'{url[:80]}' is no address of an authority.", expected="http(s)://...")

    def ask(request: bytes) -> bytes:
        headers = {"Content-Type": "application/timestamp-query"}
        made = urllib.request.Request(url, data=request, headers=headers)  # noqa: S310 - see above
        try:
            with urllib.request.urlopen(made, timeout=seconds) as answer:  # noqa: S310 - see above
                data: bytes = answer.read(MAX_TOKEN_BYTES + 1)
        except OSError as error:
            raise NetworkError(f"The authority at '{url}' does not answer: {error}.") from error
        return data

    return ask
