"""For other people's tools: a model-signing bundle of a release, a SCITT statement of a record.

`sign_release` writes an OMS bundle (OpenSSF model signing) that the `model_signing` command
verifies without earmark. It signs with a P-256 key, because that is what its key mode takes. The
key is derived one-way from the owner's identity, and the publication in the log names the digests
of bundle and public key, which binds them to that identity.

`scitt_statement` writes a record's statement as a SCITT signed statement (RFC 9943: COSE_Sign1 with
CWT claims), signed by the record's own key. It is the form that a transparency service registers;
its receipt would come beside ours.

Needs the extras ``earmark[oms]`` and ``earmark[scitt]``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from earmark import files
from earmark.errors import ExtraError, FileError, SignatureError
from earmark.protocol.envelope import PAYLOAD_TYPE, Envelope
from earmark.protocol.messages import open_message

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def signing_key(identity: Ed25519PrivateKey) -> ec.EllipticCurvePrivateKey:
    """Derive the P-256 key that an owner signs model bundles with.

    Example:
        >>> one = signing_key(Ed25519PrivateKey.from_private_bytes(bytes(32)))
        >>> one.curve.name
        'secp256r1'
    """
    kdf = HKDF(hashes.SHA256(), 48, salt=None, info=b"earmark/oms-key/1")
    number = int.from_bytes(kdf.derive(identity.private_bytes_raw()), "big")
    return ec.derive_private_key(number % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def public_pem(identity: Ed25519PrivateKey) -> bytes:
    """Return the public half of `signing_key`, as ``model_signing verify key`` takes it."""
    return (
        signing_key(identity)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def sign_release(release: str | Path, bundle: str | Path, identity: Ed25519PrivateKey) -> None:
    """Write an OMS bundle for a released file or folder.

    Args:
        release: What is released.
        bundle: The bundle to write, usually ``model.sig``; must not lie in the release's folder.
        identity: The owner's key.

    Raises:
        ExtraError: `model_signing` is not installed.
        FileError: The release cannot be read.
    """
    try:
        from model_signing import signing
    except ImportError as error:
        raise ExtraError(
            "Model-signing bundles need an extra.", hint='pip install "earmark[oms]"'
        ) from error
    if not Path(release).exists():
        raise FileError(f"There is no '{release}'.")
    pem = signing_key(identity).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with tempfile.TemporaryDirectory() as folder:  # it takes a path, and nothing else
        key = Path(folder) / "key.pem"
        files.write_bytes(key, pem, mode=0o600)
        made = Path(folder) / "model.sig"
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key)
        config.sign(Path(release), made)
        files.write_bytes(Path(bundle), made.read_bytes(), overwrite=True)


def verify_release(release: str | Path, bundle: str | Path, public: str | Path) -> None:
    """Verify an OMS bundle.

    Args:
        release: The file or folder.
        bundle: The bundle.
        public: The public key's PEM file, from a source that you trust.

    Raises:
        ExtraError: `model_signing` is not installed.
        SignatureError: The release was changed, or signed by another key.
    """
    try:
        from model_signing import verifying
    except ImportError as error:
        raise ExtraError(
            "Model-signing bundles need an extra.", hint='pip install "earmark[oms]"'
        ) from error
    config = verifying.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=Path(public))
    try:
        config.verify(Path(release), Path(bundle))
    except Exception as error:  # whatever the library raises, it does not verify
        raise SignatureError(f"The bundle '{bundle}' does not verify: {error}") from error


def scitt_statement(record: bytes, key: Ed25519PrivateKey) -> bytes:
    """Write a record of the log as a SCITT signed statement.

    Args:
        record: An envelope that this key has signed.
        key: The sender's key; it signs again, over COSE's structure.

    Returns:
        COSE_Sign1, CBOR; the payload is the record's in-toto statement.

    Raises:
        ExtraError: `scitt_cose` is not installed.
        RecordError, SignatureError: The record is none, or another party's.
    """
    try:
        from scitt_cose import build_signed_statement
    except ImportError as error:
        raise ExtraError(
            "SCITT statements need an extra.", hint='pip install "earmark[scitt]"'
        ) from error
    message, envelope = open_message(record)
    if key.public_key().public_bytes_raw().hex() != message.sender:
        raise SignatureError("A record is stated again by its sender only.")
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    made: bytes = build_signed_statement(
        envelope.payload,
        alg="EdDSA",
        private_key_pem=pem,
        issuer=f"urn:earmark:key:{message.sender}",
        subject=f"urn:earmark:record:{envelope.digest()}",
        content_type=PAYLOAD_TYPE,
        kid=bytes.fromhex(message.sender),
    )
    return made


def read_scitt_statement(statement: bytes, record: bytes) -> None:
    """Check that a SCITT statement states a record, signed by the same party.

    Args:
        statement: What `scitt_statement` wrote.
        record: The record of the log.

    Raises:
        ExtraError: `scitt_cose` is not installed.
        SignatureError: It does not verify, or states something else.
    """
    try:
        from scitt_cose import parse_signed_statement
    except ImportError as error:
        raise ExtraError(
            "SCITT statements need an extra.", hint='pip install "earmark[scitt]"'
        ) from error
    envelope = Envelope.open(record)
    pem = Ed25519PublicKey.from_public_bytes(bytes.fromhex(envelope.signer)).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    found = parse_signed_statement(statement, public_key_pem=pem)
    wanted = {
        "signature_verified": True,
        "issuer": f"urn:earmark:key:{envelope.signer}",
        "subject": f"urn:earmark:record:{envelope.digest()}",
        "content_type": PAYLOAD_TYPE,
        "payload": envelope.payload,
    }
    if any(found[name] != value for name, value in wanted.items()):
        raise SignatureError("The SCITT statement does not verify, or states something else.")
