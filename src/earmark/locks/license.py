"""Licenses: who may use which copy until when, signed, with a serial number that opens the copy.

A license is a :class:`earmark.records.License` under an Ed25519 signature of its issuer. Its serial
number is a keyed hash of the license's *grant* (issuer, model, customer, running number), so the
number is known before the copy is made and stays the same when the license is renewed. The weights
on disk are encrypted under a key derived from the number (:mod:`earmark.locks.wrap`).

What stands here is cryptography and holds as such: without the number the file is noise, and no
license can be forged, edited or moved to another copy. What it cannot do: a customer who has opened
his copy can keep the weights in memory, write them down and pass them on. Against that there is
only tracing (:mod:`earmark.locks.tracing`). Time is taken from the loader's own clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec, files
from earmark.codec import Json
from earmark.errors import FormatError, LicenseError, RecordError, SignatureError, UsageError
from earmark.keys.stream import derive
from earmark.ledger.note import ED25519, VerifierKey
from earmark.locks import wrap
from earmark.locks.serial import SERIAL_BYTES, format_serial
from earmark.records import License, Record, now

_SIGNED = "earmark/signed/1"


@dataclass(frozen=True, slots=True)
class Issued(Record):
    """What a ledger keeps of an issued license: enough to order and to count, no names.

    Args:
        issuer: The issuer's public key.
        license: Digest of the license record; it hides the customer, because the license holds
            a salted commitment.
        serial: Running number at the issuer.
        renews: Digest of the license that this one renews, or null.
        created: When the issuer says it was made.
    """

    SCHEMA: ClassVar[str] = "earmark/license-issued/1"
    issuer: str
    license: str
    serial: int
    renews: str | None
    created: str


@dataclass(frozen=True, slots=True)
class Revocation(Record):
    """An issuer's word that all licenses of one running number are void from now on.

    Args:
        issuer: The issuer's public key.
        serial: Running number at the issuer.
        reason: One sentence.
        created: When the issuer says it was made.
    """

    SCHEMA: ClassVar[str] = "earmark/license-revoked/1"
    issuer: str
    serial: int
    reason: str
    created: str


@dataclass(frozen=True, slots=True)
class Signed:
    """A record with its issuer's signature, as it stands in a file or on a ledger.

    Args:
        record: A license, an issue or a revocation.
        signature: Ed25519 over domain and canonical record, hexadecimal.
    """

    record: License | Issued | Revocation
    signature: str

    def encode(self) -> bytes:
        """Write the signed record, canonically."""
        body: Json = {
            "format": _SIGNED,
            "record": self.record.to_json(),
            "signature": self.signature,
        }
        return codec.canonical(body)

    @classmethod
    def parse(cls, data: bytes) -> Signed:
        """Read a signed record; nothing of it may be trusted before :meth:`verify`.

        Raises:
            FormatError: Not a signed record.
            RecordError: Edited, so that it is not canonical or breaks its schema.
        """
        body = codec.parse(data)
        if not isinstance(body, dict) or body.get("format") != _SIGNED or len(body) != 3:
            raise FormatError("This is no signed license.", expected=f"Format {_SIGNED}.")
        record, signature = body.get("record"), body.get("signature")
        schema = record.get("schema") if isinstance(record, dict) else None
        kinds: tuple[type[License | Issued | Revocation], ...] = (License, Issued, Revocation)
        kind = next((kind for kind in kinds if schema == kind.SCHEMA), None)
        if kind is None or not isinstance(signature, str):
            raise FormatError("This signed document holds no license.")
        return cls(kind.from_json(record), signature)

    def verify(self, issuer: str) -> None:
        """Check the signature by an issuer that the caller knows from elsewhere.

        Args:
            issuer: The issuer's public key, 64 hexadecimal digits. Never take it from the license.

        Raises:
            SignatureError: Another issuer, or the record was edited after it was signed.
        """
        if self.record.issuer != issuer:
            raise SignatureError(
                f"This license was issued by {self.record.issuer[:12]}…, not by {issuer[:12]}….",
                hint="Ask the issuer for his public key, and compare.",
            )
        try:
            raw = bytes.fromhex(self.signature)
        except ValueError as error:
            raise SignatureError("The license's signature is not hexadecimal.") from error
        key = VerifierKey("license", ED25519, bytes.fromhex(issuer))
        key.verify(_message(self.record), raw)


def _message(record: Record) -> bytes:
    return b"earmark/license-signature/1\n" + record.canonical()


@dataclass(frozen=True, slots=True)
class Grant:
    """What a serial number is a keyed hash of: fixed before the copy is made, kept by renewals.

    Args:
        issuer: The issuer's public key.
        model: Name of the model.
        customer: Identifier of the customer.
        number: Running number at the issuer.
    """

    issuer: str
    model: str
    customer: str
    number: int

    @classmethod
    def of(cls, license: License) -> Grant:  # noqa: A002 - the record's own word
        """Return the grant of a license."""
        return cls(license.issuer, license.model, license.customer, license.serial)

    def canonical(self) -> bytes:
        """Return the grant's one byte string."""
        body: Json = {
            "schema": "earmark/grant/1",
            "issuer": self.issuer,
            "model": self.model,
            "customer": self.customer,
            "number": self.number,
        }
        return codec.canonical(body)


@dataclass(frozen=True, slots=True)
class Offer:
    """A grant with its secrets, made before the copy is: the serial number and the commitment.

    Args:
        grant: Issuer, model, customer, running number.
        serial: The serial number, 16 secret bytes.
        salt: Hides the serial number in the commitment.
    """

    grant: Grant
    serial: bytes = field(repr=False)
    salt: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The serial number as the customer types it."""
        return format_serial(self.serial)

    def commitment(self, trace: str | None = None) -> str:
        """Commit to the serial number, and to the commitment of the key that traces the copy.

        Reveal number and salt of one license, and a stranger can check that the number was fixed
        before the copy was shipped: a rival who finds another number that works has no such entry.
        """
        return serial_commitment(self.serial, self.salt, trace)


def serial_commitment(serial: bytes, salt: bytes, trace: str | None) -> str:
    """Return the commitment to a serial number and to a tracing key's commitment.

    Example:
        >>> serial_commitment(bytes(16), bytes(32), None)[:8]
        'a74f87dc'
    """
    body: Json = {"serial": serial.hex(), "salt": salt.hex(), "trace": trace}
    return codec.digest(b"earmark/serial-commitment/1\n" + codec.canonical(body))


class Issuer:
    """Who issues licenses: an Ed25519 key from which everything else is derived.

    Args:
        private: The owner's signing key, for example the vault's identity.

    Example:
        >>> issuer = Issuer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
        >>> offer = issuer.offer("acme", model="tagger", number=1)
        >>> weights = b"the licensed copy"
        >>> license = issuer.issue(offer, weights, days=365)
        >>> wrapped = wrap_copy(weights, license, offer)
        >>> unlock(wrapped, license, offer.serial, issuer=issuer.public) == weights
        True
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"Issuer({self.public[:12]}…)"

    def offer(self, customer: str, *, model: str, number: int) -> Offer:
        """Fix a customer's serial number, before his copy is made.

        Args:
            customer: Identifier of the customer.
            model: Name of the model.
            number: A running number that was not used before.

        Raises:
            UsageError: Empty names or a negative number.
        """
        if not customer.strip() or not model.strip() or number < 0:
            raise UsageError("A license names a customer, a model and a number from 0 on.")
        grant = Grant(self.public, model, customer, number)
        secret, salt = self._private.private_bytes_raw(), grant.canonical()
        serial = derive(secret, "license/serial", salt=salt, size=SERIAL_BYTES)
        return Offer(grant, serial, derive(secret, "license/commitment", salt=salt))

    def issue(
        self,
        offer: Offer,
        weights: bytes,
        *,
        days: int = 365,
        features: Iterable[str] = (),
        start: str | None = None,
        trace: str | None = None,
    ) -> Signed:
        """Sign a license for a copy.

        Args:
            offer: From :meth:`offer`.
            weights: The copy's file (safetensors) as the customer will have it after unlocking.
            days: Days of validity.
            features: Granted features.
            start: Start of validity in UTC; now if null.
            trace: Commitment of the key that traces the copy, or null.

        Raises:
            UsageError: Another issuer's offer, or no validity.
        """
        if offer.grant.issuer != self.public:
            raise UsageError("This offer was made by another issuer.")
        if days < 1:
            raise UsageError(f"A license for {days} days is void.", expected="At least one day.")
        first = start or now()
        made = License(
            issuer=self.public,
            model=offer.grant.model,
            weights=codec.digest(weights),
            customer=offer.grant.customer,
            features=tuple(sorted(set(features))),
            not_before=first,
            not_after=_later(first, days),
            commitment=offer.commitment(trace),
            serial=offer.grant.number,
        )
        return self.sign(made)

    def renew(self, old: Signed, *, days: int) -> Signed:
        """Sign the same license for longer; copy and serial number stay as they are.

        The days are added to the end of the old license, or to now if it has expired.

        Raises:
            SignatureError: The old license is not ours or was edited.
            UsageError: Not a license, or no validity.
        """
        old.verify(self.public)
        if not isinstance(old.record, License) or days < 1:
            raise UsageError("Only a license can be renewed, for at least one day.")
        end = max(old.record.not_after, now(), key=_plain)
        return self.sign(replace(old.record, not_after=_later(end, days)))

    def revoke(self, number: int, *, reason: str) -> Signed:
        """Sign that the license of a running number, and every renewal of it, is void.

        Raises:
            UsageError: No reason.
        """
        if not reason.strip():
            raise UsageError("Revoking needs a reason.")
        return self.sign(Revocation(self.public, number, reason.strip(), now()))

    def announce(self, license: Signed, *, renews: Signed | None = None) -> Signed:  # noqa: A002
        """Sign what the ledger keeps of a license."""
        assert isinstance(license.record, License)
        before = None if renews is None else renews.record.digest()
        record = license.record
        return self.sign(Issued(self.public, record.digest(), record.serial, before, now()))

    def sign(self, record: License | Issued | Revocation) -> Signed:
        """Sign a record."""
        return Signed(record, self._private.sign(_message(record)).hex())


def wrap_copy(weights: bytes, license: Signed, offer: Offer) -> bytes:  # noqa: A002 - our word
    """Encrypt a copy under its serial number, bound to its license's grant.

    Raises:
        LicenseError: The license is for other weights or another grant.
    """
    record = _license(license)
    if Grant.of(record) != offer.grant or record.weights != codec.digest(weights):
        raise LicenseError("This license was issued for another copy or another customer.")
    return wrap.wrap(weights, offer.serial, _binding(record))


def _binding(record: License) -> Mapping[str, Json]:
    grant: Json = codec.parse(Grant.of(record).canonical())
    return {"grant": grant, "weights": record.weights}


def _license(signed: Signed) -> License:
    if not isinstance(signed.record, License):
        raise FormatError(f"This signed record is no license but a {signed.record.SCHEMA}.")
    return signed.record


def signed_by(entries: Iterable[bytes], issuer: str) -> Iterator[Signed]:
    """Yield what an issuer has signed about licenses, out of a ledger's entries.

    Entries of other kinds or of other issuers are passed over, and so are those in the issuer's
    name that he did not sign, since anybody may write to a public ledger.

    Args:
        entries: Records as a ledger's ``scan`` yields them.
        issuer: The issuer's public key.
    """
    for data in entries:
        try:
            signed = Signed.parse(data)
            signed.verify(issuer)
        except (RecordError, FormatError, SignatureError):
            continue
        yield signed


def revoked(entries: Iterable[bytes], issuer: str) -> dict[int, Revocation]:
    """Read an issuer's revocations out of a ledger's entries, by running number.

    Args:
        entries: Records as a ledger's ``scan`` yields them.
        issuer: The issuer's public key.
    """
    found: dict[int, Revocation] = {}
    for signed in signed_by(entries, issuer):
        if isinstance(signed.record, Revocation):
            found.setdefault(signed.record.serial, signed.record)
    return found


def announced(entries: Iterable[bytes], license: Signed, issuer: str) -> bool:  # noqa: A002
    """Tell whether a ledger's entries hold a license; if not, they cannot say if it was revoked.

    Args:
        entries: Records as a ledger's ``scan`` yields them.
        license: The license.
        issuer: The issuer's public key.
    """
    wanted = license.record.digest()
    return any(
        isinstance(signed.record, Issued) and signed.record.license == wanted
        for signed in signed_by(entries, issuer)
    )


def check(
    license: Signed,  # noqa: A002 - our word
    *,
    issuer: str,
    at: str | None = None,
    void: Collection[int] = (),
    feature: str | None = None,
) -> License:
    """Check everything about a license that needs no serial number.

    Args:
        license: As read from its file.
        issuer: The issuer's public key, known from elsewhere.
        at: Time in UTC; the clock's if null.
        void: Running numbers that were revoked, see :func:`revoked`.
        feature: A feature that must be granted, or null.

    Returns:
        The license, which may now be trusted.

    Raises:
        SignatureError: Edited, or not by this issuer.
        LicenseError: Not yet valid, expired, revoked, or without the feature.
    """
    license.verify(issuer)
    record, time = _license(license), at or now()
    name = f"License {record.serial} of '{record.customer}'"
    if record.serial in void:
        raise LicenseError(f"{name} was revoked.", hint="Ask the issuer for another one.")
    if _plain(time) < _plain(record.not_before):
        raise LicenseError(f"{name} is valid from {record.not_before} on; it is {time}.")
    if _plain(time) >= _plain(record.not_after):
        raise LicenseError(
            f"{name} expired at {record.not_after}; it is {time}.", hint="Have it renewed."
        )
    if feature is not None and feature not in record.features:
        granted = ", ".join(record.features) or "none"
        raise LicenseError(f"{name} does not grant '{feature}'.", expected=f"Granted: {granted}.")
    return record


def unlock(
    wrapped: bytes,
    license: Signed,  # noqa: A002 - our word
    serial: bytes,
    *,
    issuer: str,
    at: str | None = None,
    void: Collection[int] = (),
    feature: str | None = None,
) -> bytes:
    """Open a locked copy, or refuse loudly; nothing is returned unless everything fits.

    Args:
        wrapped: The locked file.
        license: Its license.
        serial: The serial number, see :func:`earmark.locks.serial.parse_serial`.
        issuer: The issuer's public key, known from elsewhere.
        at: Time in UTC; the clock's if null.
        void: Running numbers that were revoked, see :func:`revoked`.
        feature: A feature that must be granted, or null.

    Returns:
        The weights' file (safetensors), in memory.

    Raises:
        SignatureError: The license was edited, or is not by this issuer.
        LicenseError: Not yet valid, expired, revoked, for another copy, or a wrong number.
        FormatError: Not a locked file, or one that was changed or cut.
    """
    record = check(license, issuer=issuer, at=at, void=void, feature=feature)
    _require_own(wrapped, record)
    weights = wrap.unwrap(wrapped, serial, _binding(record))
    if codec.digest(weights) != record.weights:
        raise LicenseError("The opened weights are not those that the license names.")
    return weights


def _require_own(wrapped: bytes, record: License) -> None:
    """Refuse a copy of another license by both names; `wrap.unwrap` refuses every other copy."""
    bound = wrap.read_header(wrapped)[0]["binding"]
    grant = bound.get("grant") if isinstance(bound, dict) else None
    if isinstance(grant, dict) and grant != codec.parse(Grant.of(record).canonical()):
        made_for = f"#{grant.get('number')} of {str(grant.get('customer'))[:80]!r}"
        raise LicenseError(
            f"This locked copy belongs to another license: {made_for}, not #{record.serial} of "
            f"'{record.customer}'.",
            hint="Use the license that came with it.",
        )


def read(path: str) -> Signed:
    """Read a license file; raises as :meth:`Signed.parse`, and `FileError`."""
    return files.read_as(path, Signed.parse, kind="license", sign=_SIGNED, limit=1 << 20)


def _plain(time: str) -> str:
    """Return a time in one length, so that times compare as strings."""
    head, _, rest = time.removesuffix("Z").partition(".")
    return f"{head}.{rest:0<6}"


def _later(time: str, days: int) -> str:
    from datetime import datetime, timedelta

    try:
        moved = datetime.fromisoformat(time.replace("Z", "+00:00")) + timedelta(days=days)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{days} days after {time!r} is no time.") from error
    return moved.strftime("%Y-%m-%dT%H:%M:%SZ")
