"""Serial numbers: round trip, and every mistyped one is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.errors import LicenseError
from earmark.locks.serial import format_serial, parse_serial

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@given(st.binary(min_size=16, max_size=16))
def test_round_trip_survives_case_spaces_and_lookalikes(serial):
    text = format_serial(serial)
    assert parse_serial(text) == serial
    assert parse_serial(" ".join(text.lower().replace("-", ""))) == serial
    assert parse_serial(text.replace("0", "o").replace("1", "l")) == serial


@settings(max_examples=3)
@given(st.binary(min_size=16, max_size=16))
def test_every_single_wrong_character_is_refused(serial):
    digits = format_serial(serial).replace("-", "")
    for place, char in itertools.product(range(len(digits)), ALPHABET):
        if digits[place] != char:
            with pytest.raises(LicenseError):
                parse_serial(digits[:place] + char + digits[place + 1 :])


@given(st.binary(min_size=16, max_size=16), st.integers(0, 28))
def test_swapped_neighbours_are_refused(serial, place):
    digits = list(format_serial(serial).replace("-", ""))
    digits[place], digits[place + 1] = digits[place + 1], digits[place]
    text = "".join(digits)
    if text != format_serial(serial).replace("-", ""):
        with pytest.raises(LicenseError):
            parse_serial(text)


@pytest.mark.parametrize(
    "text", ["", "0", "U" * 30, "00000-00000-00000-00000-00000-0ZDW", "Z" * 30, "é" * 30, "nan"]
)
def test_other_text_is_refused_without_being_quoted(text):
    with pytest.raises(LicenseError) as caught:
        parse_serial(text)
    assert len(text) < 2 or text not in str(caught.value)


def test_a_number_of_another_size_is_refused():
    with pytest.raises(LicenseError):
        format_serial(bytes(15))
