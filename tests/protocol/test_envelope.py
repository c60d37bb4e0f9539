from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark import codec
from earmark.errors import EarmarkError, RecordError, SignatureError
from earmark.protocol import messages as m
from earmark.protocol.envelope import PAYLOAD_TYPE, Envelope, Statement, pae

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw().hex()


def commit(**changes):
    body = {"domain": "d", "sender": PUBLIC, "nonce": "0" * 64, "after": "1" * 64}
    return m.Commit(**{**body, "commitment": "2" * 64, "recovery": None, **changes})


def test_pae_is_that_of_dsse():
    text = pae("http://example.com/HelloWorld", b"hello world")
    assert text == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_round_trip():
    data = commit().sign(KEY).encode()
    message, envelope = m.open_message(data)
    assert message == commit()
    assert envelope.encode() == data
    assert envelope.statement.subjects == (("commitment", "2" * 64),)


def test_every_flipped_bit_is_refused():
    data = commit().sign(KEY).encode()
    for place in range(0, len(data) * 8, 3):
        bad = bytearray(data)
        bad[place // 8] ^= 1 << (place % 8)
        with pytest.raises(EarmarkError):
            m.open_message(bytes(bad))


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig", "x"]),
                inner,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
)
@settings(max_examples=150, deadline=None)
def test_anything_else_is_refused_with_a_reason(data):
    with pytest.raises((RecordError, SignatureError)):
        m.open_message(data)


def test_other_forms_of_the_same_envelope_are_refused():
    envelope = commit().sign(KEY)
    body = json.loads(envelope.encode())
    twice = {**body, "signatures": body["signatures"] * 2}
    more = {**body, "extra": 1}
    kind = {**body, "payloadType": "text/plain"}
    for changed in (twice, more, kind):
        with pytest.raises(RecordError):
            Envelope.open(codec.canonical(changed))
    with pytest.raises(RecordError):
        Envelope.open(json.dumps(body, indent=1).encode())


def test_a_signature_binds_the_payload_type():
    payload = commit().sign(KEY).payload
    bare = Envelope(payload, PUBLIC, KEY.sign(payload))
    other = Envelope(payload, PUBLIC, KEY.sign(pae(PAYLOAD_TYPE + "x", payload)))
    for forged in (bare, other):
        with pytest.raises(SignatureError):
            Envelope.open(forged.encode())


def test_the_sender_must_sign():
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(SignatureError):
        commit().sign(other)
    statement = commit().sign(KEY).statement
    with pytest.raises(SignatureError, match="another sender"):
        m.open_message(Envelope.sign(statement, other).encode())


def test_subject_and_kind_must_fit_the_message():
    message = commit()
    lying = Statement("urn:earmark:commit:1", (("commitment", "3" * 64),), message.to_json())
    with pytest.raises(RecordError, match="subjects"):
        m.open_message(Envelope.sign(lying, KEY).encode())
    for kind in ("urn:earmark:claim:1", "urn:earmark:other:1", "urn:earmark:commit:2"):
        statement = Statement(kind, message.subjects(), message.to_json())
        with pytest.raises(RecordError):
            m.open_message(Envelope.sign(statement, KEY).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": ""},
        {"nonce": "0" * 63},
        {"nonce": "G" * 64},
        {"after": "A" * 64},
        {"commitment": "2" * 65},
        {"recovery": "none"},
    ],
)
def test_malformed_messages_are_refused(changes):
    with pytest.raises(RecordError):
        commit(**changes)


def test_a_weak_key_signs_nothing():
    weak = "01" + "00" * 31
    with pytest.raises(SignatureError, match="weak"):
        Envelope.open(Envelope(commit().sign(KEY).payload, weak, bytes(64)).encode())
