"""Licenses: the loader refuses whatever is wrong, edited, expired, revoked or exchanged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark import codec
from earmark.errors import EarmarkError, FormatError, LicenseError, SignatureError, UsageError
from earmark.ledger.log import SqliteLedger
from earmark.locks import license as lic
from earmark.locks.wrap import PIECE, unwrap, wrap

WEIGHTS = b"weights of the licensed copy " * 40
AT = "2030-06-01T00:00:00Z"


def issuer(byte=1):
    return lic.Issuer(Ed25519PrivateKey.from_private_bytes(bytes([byte]) * 32))


@pytest.fixture(name="sold")
def fixture_sold():
    made = issuer()
    offer = made.offer("acme", model="tagger", number=7)
    signed = made.issue(
        offer, WEIGHTS, days=365, features=["infer"], start="2030-01-01T00:00:00Z", trace="ab" * 32
    )
    return made, offer, signed, lic.wrap_copy(WEIGHTS, signed, offer)


def test_the_right_number_opens_the_copy(sold):
    made, offer, signed, locked = sold
    again = lic.Signed.parse(signed.encode())
    opened = lic.unlock(locked, again, offer.serial, issuer=made.public, at=AT, feature="infer")
    assert opened == WEIGHTS


def test_the_locked_file_holds_neither_weights_nor_number(sold):
    _, offer, signed, locked = sold
    for data in (locked, signed.encode(), repr(offer).encode(), repr(signed).encode()):
        assert offer.serial not in data
        assert offer.serial.hex().encode() not in data
        assert offer.text.encode() not in data
        assert WEIGHTS[:16] not in data


def test_every_bit_of_the_number_counts(sold):
    made, offer, signed, locked = sold
    for bit in range(128):
        near = (int.from_bytes(offer.serial, "big") ^ 1 << bit).to_bytes(16, "big")
        with pytest.raises(LicenseError):
            lic.unlock(locked, signed, near, issuer=made.public, at=AT)


@pytest.mark.parametrize("serial", [bytes(16), bytes(32), b"x" * 17])
def test_another_number_is_refused(sold, serial):
    made, _, signed, locked = sold
    with pytest.raises(LicenseError):
        lic.unlock(locked, signed, serial, issuer=made.public, at=AT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("customer", "eve"),
        ("model", "other"),
        ("weights", "00" * 32),
        ("features", ["infer", "train"]),
        ("not_after", "2099-01-01T00:00:00Z"),
        ("not_before", "2000-01-01T00:00:00Z"),
        ("serial", 8),
        ("commitment", "00" * 32),
    ],
)
def test_an_edited_license_is_refused(sold, field, value):
    made, offer, signed, locked = sold
    body = json.loads(signed.encode())
    body["record"][field] = value
    edited = lic.Signed.parse(codec.canonical(body))
    with pytest.raises(SignatureError):
        lic.unlock(locked, edited, offer.serial, issuer=made.public, at=AT)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_a_license_is_accepted(data):
    made = issuer()
    offer = made.offer("acme", model="tagger", number=7)
    raw = bytearray(made.issue(offer, WEIGHTS).encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EarmarkError):
        lic.check(lic.Signed.parse(bytes(raw)), issuer=made.public)


def test_another_issuers_license_is_refused(sold):
    made, _, _, locked = sold
    rival = issuer(2)
    offer = rival.offer("acme", model="tagger", number=7)
    forged = rival.issue(offer, WEIGHTS)
    with pytest.raises(SignatureError):
        lic.unlock(locked, forged, offer.serial, issuer=made.public)
    disguised = lic.Signed(replace(forged.record, issuer=made.public), forged.signature)
    with pytest.raises(SignatureError):
        lic.unlock(locked, disguised, offer.serial, issuer=made.public)


@pytest.mark.parametrize("at", ["2029-12-31T23:59:59Z", "2031-01-01T00:00:00Z"])
def test_outside_its_days_a_license_is_refused(sold, at):
    made, offer, signed, locked = sold
    with pytest.raises(LicenseError):
        lic.unlock(locked, signed, offer.serial, issuer=made.public, at=at)


def test_fractions_of_a_second_do_not_stretch_a_license(sold):
    made, _, signed, _ = sold
    lic.check(signed, issuer=made.public, at="2030-12-31T23:59:59.999Z")
    with pytest.raises(LicenseError):
        lic.check(signed, issuer=made.public, at="2031-01-01T00:00:00.000Z")


def test_a_missing_feature_is_refused(sold):
    made, _, signed, _ = sold
    with pytest.raises(LicenseError, match="train"):
        lic.check(signed, issuer=made.public, at=AT, feature="train")


def test_a_renewed_license_opens_the_same_file(sold):
    made, offer, signed, locked = sold
    renewed = made.renew(signed, days=365)
    late = "2031-06-01T00:00:00Z"
    assert lic.unlock(locked, renewed, offer.serial, issuer=made.public, at=late) == WEIGHTS


def test_revocation_stands_on_the_ledger_and_covers_renewals(sold, tmp_path):
    made, offer, signed, locked = sold
    with SqliteLedger.create(tmp_path / "ledger.sqlite", "example.com/lab") as ledger:
        ledger.append(made.announce(signed).encode())
        ledger.append(b'{"other":1}')
        rival = issuer(2)
        ledger.append(rival.revoke(7, reason="spite").encode())
        assert lic.revoked((data for _, data in ledger.scan()), made.public) == {}
        ledger.append(made.revoke(7, reason="unpaid").encode())
        void = lic.revoked((data for _, data in ledger.scan()), made.public)
    assert void[7].reason == "unpaid"
    for held in (signed, made.renew(signed, days=365)):
        with pytest.raises(LicenseError, match="revoked"):
            lic.unlock(locked, held, offer.serial, issuer=made.public, at=AT, void=void)


def test_a_forged_revocation_in_the_issuers_name_is_passed_over(sold):
    made, _, _, _ = sold
    real = made.revoke(7, reason="unpaid")
    forged = lic.Signed(replace(real.record, serial=9), real.signature)
    assert lic.revoked([forged.encode()], made.public) == {}


def test_a_copy_does_not_open_with_another_customers_license(sold):
    made, _, _, locked = sold
    other = made.offer("bolt", model="tagger", number=8)
    license_ = made.issue(other, WEIGHTS, start="2030-01-01T00:00:00Z")
    with pytest.raises(LicenseError, match="another license"):
        lic.unlock(locked, license_, other.serial, issuer=made.public, at=AT)


def test_serials_are_a_keyed_hash_of_every_part_of_the_grant():
    made = issuer()
    offers = [
        made.offer("acme", model="tagger", number=7),
        made.offer("acme ", model="tagger", number=7),
        made.offer("acme", model="tagger2", number=7),
        made.offer("acme", model="tagger", number=8),
        issuer(2).offer("acme", model="tagger", number=7),
    ]
    assert len({offer.serial for offer in offers}) == 5
    assert len({offer.commitment() for offer in offers}) == 5
    assert made.offer("acme", model="tagger", number=7) == offers[0]
    assert made.offer("acme", model="tagger", number=7).serial.hex() == (
        "a35e5f2c278ae804e5b9ac3b62d19316"
    )


def test_a_commitment_opens_only_to_its_number(sold):
    _, offer, signed, _ = sold
    opened = lic.serial_commitment(offer.serial, offer.salt, "ab" * 32)
    assert opened == signed.record.commitment
    assert lic.serial_commitment(bytes(16), offer.salt, "ab" * 32) != opened


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_wrapping_round_trips_at_every_piece_boundary(size):
    data = bytes(size)
    assert unwrap(wrap(data, bytes(16), {"a": 1}), bytes(16), {"a": 1}) == data


def test_pieces_cannot_be_cut_moved_or_changed():
    locked = wrap(bytes(2 * PIECE + 5), bytes(16), {})
    start = len(locked) - (2 * (PIECE + 16) + 21)
    first, second = locked[start : start + PIECE + 16], locked[start + PIECE + 16 : -21]
    head, tail = locked[:start], locked[-21:]
    for bad in (
        head + first,
        head + first + second,
        head + second + first + tail,
        head + first + tail,
        locked + b"\x00",
        locked[:-1],
        head,
    ):
        with pytest.raises((LicenseError, FormatError)):
            unwrap(bad, bytes(16), {})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_locked_file_is_accepted(data):
    locked = bytearray(wrap(WEIGHTS, bytes(16), {"copy": "a"}))
    place = data.draw(st.integers(0, len(locked) - 1))
    locked[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((LicenseError, FormatError)):
        unwrap(bytes(locked), bytes(16), {"copy": "a"})


def test_calls_that_make_no_sense_are_refused(sold):
    made, offer, signed, _ = sold
    revocation = made.revoke(7, reason="unpaid")
    with pytest.raises(UsageError):
        made.offer(" ", model="tagger", number=1)
    with pytest.raises(UsageError):
        made.issue(offer, WEIGHTS, days=0)
    with pytest.raises(UsageError):
        issuer(2).issue(offer, WEIGHTS)
    with pytest.raises(UsageError):
        made.renew(revocation, days=3)
    with pytest.raises(UsageError):
        made.revoke(7, reason=" ")
    with pytest.raises(LicenseError):
        lic.wrap_copy(b"other weights", signed, offer)
    with pytest.raises(FormatError):
        lic.check(revocation, issuer=made.public)
    for data in (b"{}", b"[]", b'{"format":"earmark/signed/1","record":{},"signature":""}'):
        with pytest.raises(FormatError):
            lic.Signed.parse(data)


def test_the_court_side_of_licenses_needs_no_torch_and_no_numpy():
    import subprocess
    import sys

    code = (
        "import earmark.locks.license, sys; "
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_expired_license_is_renewed_from_now():
    made = issuer()
    offer = made.offer("acme", model="tagger", number=7)
    old = made.issue(offer, WEIGHTS, days=1, start="2020-01-01T00:00:00Z")
    lic.check(made.renew(old, days=30), issuer=made.public)


@pytest.mark.parametrize(
    "record",
    [
        {"schema": []},
        {"schema": lic.Revocation.SCHEMA, "issuer": "é", "serial": 7, "reason": "", "created": ""},
    ],
)
def test_what_strangers_write_on_a_ledger_stops_nobody(sold, record):
    made, _, signed, _ = sold
    hostile = codec.canonical({"format": "earmark/signed/1", "record": record, "signature": "00"})
    told = made.announce(signed).encode()
    void = made.revoke(7, reason="unpaid").encode()
    assert set(lic.revoked([hostile, told, void], made.public)) == {7}
    assert lic.announced([hostile, told], signed, made.public)


def test_a_ledger_without_the_license_has_not_heard_of_it(sold):
    made, _, signed, _ = sold
    rival = issuer(2)
    other = made.issue(made.offer("bolt", model="tagger", number=8), WEIGHTS)
    forged = lic.Signed(made.announce(signed).record, rival.announce(signed).signature)
    entries = [b"{}", made.announce(other).encode(), forged.encode(), signed.encode()]
    assert not lic.announced(entries, signed, made.public)
