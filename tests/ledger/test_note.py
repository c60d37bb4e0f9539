"""Signed notes: published vectors, and refusal of whatever could be written in two ways."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.errors import IntegrityError, LedgerError, SignatureError, UsageError
from earmark.ledger import note as notes
from earmark.ledger.note import COSIGNATURE, ED25519, Note, NoteSignature, SignerKey, VerifierKey

# golang.org/x/mod/sumdb/note, note_test.go
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngo"
    "tpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox"
    "33WWd1RvMc+QQ=\n"
)
NOTE = TEXT + "\n" + PETER_LINE
# c2sp.org/signed-note, the example of its introduction
DANTE = (
    "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n"
    "— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFS"
    "QU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
)
# transparency-dev/formats, a witness key with the native cosignature type
REMORA = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"

LINE = NoteSignature("a.example/b", b"\x00\x01\x02\x03", b"signature").line() + "\n"


def parse(data):
    return Note.parse(data)


def test_the_published_note_verifies_under_the_published_keys():
    note = parse(NOTE + ENOCH_LINE)
    assert note.text == TEXT
    assert note.verify(VerifierKey.parse(PETER)).name == "PeterNeumann"
    assert note.verify(VerifierKey.parse(ENOCH)).key_id.hex() == "af0cfe78"
    assert note.encode() == NOTE + ENOCH_LINE


def test_signing_gives_the_published_note_byte_for_byte():
    key = SignerKey.parse(PETER_SECRET)
    assert str(key.verifier) == PETER
    assert Note(TEXT, (key.sign(TEXT),)).encode() == NOTE
    assert key.export() == PETER_SECRET


def test_a_text_with_blank_lines_ends_at_the_last_one():
    note = parse(DANTE)
    assert note.text.endswith("\n\ned è subito sera.\n")
    assert note.signatures[0].name == "quasimodo.example/salvatore"
    assert note.encode() == DANTE
    assert parse(DANTE.encode()) == note


def test_a_published_witness_key_is_read():
    key = VerifierKey.parse(REMORA)
    assert (key.kind, str(key)) == (COSIGNATURE, REMORA)


def test_no_part_of_a_key_is_a_key():
    for text, read in ((PETER, VerifierKey.parse), (PETER_SECRET, SignerKey.parse)):
        for start in range(len(text)):
            for stop in range(start, len(text) + 1):
                if (start, stop) != (0, len(text)):
                    with pytest.raises(SignatureError):
                        read(text[start:stop])


def test_no_key_with_one_character_changed_is_a_key():
    for text, read in ((PETER, VerifierKey.parse), (PETER_SECRET, SignerKey.parse)):
        for place, char in enumerate(text):
            with pytest.raises(SignatureError):
                read(text[:place] + chr(ord(char) + 1) + text[place + 1 :])


def with_id(name, material):
    digest = hashlib.sha256(name.encode() + b"\n" + material).hexdigest()[:8]
    return f"{name}+{digest}+{base64.b64encode(material).decode()}"


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3+",
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("+c74f", "+ c74f"),
        PETER + "\n",
        " " + PETER,
        PETER.replace("PeterNeumann", "Peter Neumann"),
        with_id("short", b"\x01" + bytes(31)),
        with_id("long", b"\x01" + bytes(33)),
        with_id("unknown.type", b"\x65" + base64.b64decode(PETER.split("+", 2)[2])[1:]),
        with_id("ecdsa", b"\x02" + base64.b64decode(PETER.split("+", 2)[2])[1:]),
        with_id("with space", base64.b64decode(PETER.split("+", 2)[2])),
        with_id("", base64.b64decode(PETER.split("+", 2)[2])),
    ],
)
def test_malformed_keys_are_refused(vkey):
    with pytest.raises(SignatureError):
        VerifierKey.parse(vkey)


def test_a_signing_key_of_the_wrong_length_is_refused_without_quoting_it():
    text = "PRIVATE+KEY+" + with_id("name", b"\x01" + b"Q" * 31)
    with pytest.raises(SignatureError) as caught:
        SignerKey.parse(text)
    assert "UVFR" not in str(caught.value)


def small_order_points():
    """Find the y of every point of order 1, 2, 4 or 8 by curve arithmetic."""
    prime = 2**255 - 19
    d = -121665 * pow(121666, -1, prime) % prime

    def root(square):
        candidate = pow(square, (prime + 3) // 8, prime)
        for value in (candidate, candidate * pow(2, (prime - 1) // 4, prime) % prime):
            if value * value % prime == square % prime:
                return value
        return None

    def add(one, two):
        (x1, y1), (x2, y2) = one, two
        t = d * x1 * x2 * y1 * y2
        return (
            (x1 * y2 + x2 * y1) * pow(1 + t, -1, prime) % prime,
            (y1 * y2 + x1 * x2) * pow(1 - t, -1, prime) % prime,
        )

    order = 2**252 + 27742317777372353535851937790883648493
    found = {(0, 1)}
    for y in range(2, 40):
        x = root((y * y - 1) * pow(d * y * y + 1, -1, prime))
        if x is None:
            continue
        point, power, result = (x, y), order, (0, 1)
        while power:
            result = add(result, point) if power & 1 else result
            point, power = add(point, point), power >> 1
        multiple = result
        for _ in range(8):
            found.add(multiple)
            multiple = add(multiple, result)
        if len(found) == 8:
            return {y for _, y in found}
    raise AssertionError


def test_public_keys_of_small_order_are_refused():
    weak = small_order_points()
    assert weak == notes._SMALL_ORDER_Y
    prime = 2**255 - 19
    for y in (*weak, *range(prime, 2**255)):
        for sign in (0, 1 << 255):
            with pytest.raises(SignatureError, match="weak"):
                VerifierKey("a", ED25519, (y | sign).to_bytes(32, "little"))


@pytest.mark.parametrize(
    "data",
    [
        "",
        "\n",
        "\n\n",
        TEXT,
        TEXT + "\n",
        PETER_LINE,
        "\n" + PETER_LINE,
        TEXT + PETER_LINE,
        NOTE[:-1],
        NOTE + "\n",
        NOTE + "\nmore\n",
        NOTE + "Unexpected line.\n",
        NOTE.replace("\n", "\r\n"),
        NOTE.replace("you", "you\t", 1),
        NOTE.replace("you", "you\x01", 1),
        NOTE.replace("you", "you\x00", 1),
        NOTE.replace("— ", "- "),
        NOTE.replace("— ", "—"),
        NOTE.replace("— ", "—\u00a0"),
        NOTE.replace("AM=", "AN="),
        NOTE.replace("AM=", "AM"),
        NOTE.replace("AM=", "AM=="),
        NOTE.replace("/ZJ", "_ZJ"),
        NOTE.replace("x08g", "x08 g"),
        NOTE.replace("PeterNeumann x", "Peter Neumann x"),
        NOTE.replace("PeterNeumann x", "Peter+Neumann x"),
        NOTE.replace("PeterNeumann x", "Peter\u2003Neumann x"),
        NOTE.replace("PeterNeumann x", " x"),
        NOTE.replace("PeterNeumann x", "PeterNeumann  x"),
        NOTE + PETER_LINE,
        TEXT + "\n— name AAAAAA==\n",
        TEXT + "\n— name \n",
        TEXT + "\n— name\n",
        TEXT + "\n" + "".join(LINE.replace("a.example", f"a{i}.example") for i in range(64)),
        "x" * notes.MAX_NOTE_BYTES + "\n\n" + LINE,
        "lone surrogate \ud800\n\n" + LINE,
        b"\xff" + NOTE.encode(),
        b"\xc0\x80" + NOTE.encode(),
        NOTE.encode("utf-16"),
    ],
    ids=range(39),
)
def test_malformed_notes_are_refused(data):
    with pytest.raises(LedgerError):
        parse(data)


def test_as_many_signatures_as_the_limit_are_read():
    many = "".join(LINE.replace("a.example", f"a{i}.example") for i in range(notes.MAX_LINES))
    assert len(parse(TEXT + "\n" + many).signatures) == 63


def test_unknown_signatures_are_ignored_and_known_ones_must_hold():
    peter = VerifierKey.parse(PETER)
    parse(TEXT + "\n" + LINE + PETER_LINE).verify(peter)
    with pytest.raises(SignatureError, match="not signed by"):
        parse(TEXT + "\n" + LINE).verify(peter)
    same_name = NoteSignature("PeterNeumann", b"\x00" * 4, b"else").line() + "\n"
    parse(TEXT + "\n" + same_name + PETER_LINE).verify(peter)
    with pytest.raises(SignatureError, match="does not verify"):
        parse(NOTE.replace("cryptography", "cryptographY")).verify(peter)
    short = NoteSignature("PeterNeumann", peter.key_id, b"short").line() + "\n"
    with pytest.raises(SignatureError):
        parse(TEXT + "\n" + short).verify(peter)


def test_every_single_bit_change_of_a_note_is_refused():
    peter, data = VerifierKey.parse(PETER), NOTE.encode()
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            parse(bytes(changed)).verify(peter)


def test_a_key_signs_only_what_is_its_business():
    key = SignerKey.generate("a.example")
    witness = SignerKey.generate("w.example", kind=COSIGNATURE)
    with pytest.raises(UsageError):
        witness.sign(TEXT)
    with pytest.raises(UsageError):
        key.sign("cosignature/v1\ntime 1\na.example\n0\nAAAA\n")
    for text in ("no newline", "tab\t\n", "\r\n", "\ud800\n"):
        with pytest.raises(LedgerError):
            key.sign(text)
    with pytest.raises(SignatureError):
        parse(NOTE).verify(witness.verifier)
    for name in ("", "two words", "plus+", "line\nbreak"):
        with pytest.raises(SignatureError):
            SignerKey.generate(name)
    with pytest.raises(SignatureError):
        SignerKey("a", Ed25519PrivateKey.generate(), kind=7)


def test_a_note_needs_text_and_signatures():
    line = NoteSignature("a", b"1234", b"5")
    with pytest.raises(LedgerError):
        Note("text\n", ())
    with pytest.raises(LedgerError):
        Note("text", (line,))
    with pytest.raises(LedgerError):
        NoteSignature("a", b"123", b"5")


def test_the_secret_is_in_no_repr():
    key = SignerKey.generate("a.example")
    secret = key.export()
    assert SignerKey.parse(secret).verifier == key.verifier
    for shown in (repr(key), str(key), repr(key.verifier), f"{key}"):
        assert secret.split("+", 4)[-1][:12] not in shown


plain_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32)]),
    max_size=20,
)
names = plain_text.filter(lambda name: name and "+" not in name and not any(map(str.isspace, name)))
lines = st.lists(plain_text, max_size=5).map(lambda parts: "".join(part + "\n" for part in parts))
signatures = st.lists(
    st.builds(NoteSignature, names, st.binary(min_size=4, max_size=4), st.binary(min_size=1)),
    min_size=1,
    max_size=5,
    unique_by=lambda item: (item.name, item.key_id),
).map(tuple)


@settings(max_examples=100, deadline=None)
@given(lines.filter(bool), signatures)
def test_reading_what_was_written_gives_it_back(text, signed):
    note = Note(text, signed)
    assert parse(note.encode()) == note
    assert parse(note.encode().encode()) == note


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100),
        st.tuples(lines, st.text("—+ aA=/\n", max_size=40)).map("\n".join),
    )
)
def test_what_is_read_is_written_back_byte_for_byte_and_nothing_else_escapes(data):
    try:
        note = parse(data)
    except LedgerError:
        return
    assert note.encode() == (data.decode() if isinstance(data, bytes) else data)


@settings(max_examples=100, deadline=None)
@given(names, st.sampled_from([ED25519, COSIGNATURE]), st.binary(min_size=32, max_size=32))
def test_keys_round_trip(name, kind, seed):
    key = SignerKey(name, Ed25519PrivateKey.from_private_bytes(seed), kind=kind)
    assert VerifierKey.parse(str(key.verifier)) == key.verifier
    assert SignerKey.parse(key.export()).verifier == key.verifier


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80) | st.text("+0aA=/", max_size=40))
def test_arbitrary_text_is_no_key(text):
    for read in (VerifierKey.parse, SignerKey.parse):
        with pytest.raises(SignatureError):
            read(text)
        with pytest.raises(SignatureError):
            read("PRIVATE+KEY+" + text)
