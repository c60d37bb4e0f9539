"""Checkpoints and cosignatures: the published example, strict reading, and what is signed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.errors import IntegrityError, LedgerError, SignatureError, UsageError
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint, cosign, cosigned_at
from earmark.ledger.note import (
    COSIGNATURE,
    Note,
    NoteSignature,
    SignerKey,
    VerifierKey,
    key_id,
)

# c2sp.org/tlog-cosignature
SOFA = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv"
    "2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2"
    "oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
ROOT = bytes(range(32))
ROOT64 = base64.b64encode(ROOT).decode()


@pytest.fixture(scope="module")
def log():
    return SignerKey.generate("log.example/a")


@pytest.fixture(scope="module")
def witness():
    return SignerKey.generate("w.example/1", kind=COSIGNATURE)


def test_the_published_example_is_read():
    signed = SignedCheckpoint.parse(SOFA)
    assert (signed.origin, signed.size) == ("example.com/behind-the-sofa", 20852163)
    assert signed.root.hex().startswith("0ac5186a")
    assert str(signed) == SOFA
    line = signed.note.signatures[1]
    assert line.key_id.hex() == "8d66cf3f"
    assert int.from_bytes(line.blob[:8], "big") == 1679315147
    assert len(line.blob) == 72


def test_the_cosigned_message_is_that_of_the_specification():
    seen = []

    class Recorder(SignerKey):
        def raw(self, message):
            seen.append(message)
            return bytes(64)

    body = SignedCheckpoint.parse(SOFA)
    recorder = SignerKey.generate("witness.example.com/w2", kind=COSIGNATURE)
    cosign(
        body, Recorder("witness.example.com/w2", recorder._private, kind=4), timestamp=1679315147
    )
    assert seen == [
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "log\n1\n",
        f"log\n1\n{ROOT64}",
        f"log\n01\n{ROOT64}\n",
        f"log\n+1\n{ROOT64}\n",
        f"log\n-1\n{ROOT64}\n",
        f"log\n 1\n{ROOT64}\n",
        f"log\n1 \n{ROOT64}\n",
        f"log\n1_0\n{ROOT64}\n",
        f"log\n１\n{ROOT64}\n",
        f"log\n1e1\n{ROOT64}\n",
        f"log\n0x1\n{ROOT64}\n",
        f"log\n\n{ROOT64}\n",
        f"log\n{2**63}\n{ROOT64}\n",
        f"log\n{'9' * 5000}\n{ROOT64}\n",
        f"\n1\n{ROOT64}\n",
        f"log\n1\n{ROOT64}\n\n",
        f"log\n1\n{ROOT64}\nextension\n\n",
        f"log\n1\n{ROOT64}\n\nextension\n",
        f"log\n1\n{ROOT64}\n" + "extension\n" * 64,
        f"log\r\n1\r\n{ROOT64}\r\n",
        f"log\n1\n{ROOT64[:-1]}\n",
        f"log\n1\n{ROOT64} \n",
        f"log\n1\n{ROOT64.replace('8=', '9=')}\n",
        f"log\n1\n{ROOT.hex()}\n",
        f"log\n1\n{base64.b64encode(ROOT[:-1]).decode()}\n",
        f"log\n1\n{base64.b64encode(ROOT + b'x').decode()}\n",
    ],
    ids=range(28),
)
def test_malformed_checkpoints_are_refused(text):
    with pytest.raises(LedgerError):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        ("", 0, ROOT),
        ("two\nlines", 0, ROOT),
        ("log", -1, ROOT),
        ("log", 2**63, ROOT),
        ("log", 0, ROOT[1:]),
        ("log", 0, ROOT, ("",)),
        ("log", 0, ROOT, ("a\nb",)),
        ("log", 0, ROOT, ("a",) * 64),
    ],
)
def test_a_checkpoint_that_could_not_be_read_back_cannot_be_made(fields):
    with pytest.raises(LedgerError):
        Checkpoint(*fields)


line = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in range(32)]),
    min_size=1,
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        Checkpoint,
        line,
        st.integers(0, 2**63 - 1),
        st.binary(min_size=32, max_size=32),
        st.lists(line, max_size=4).map(tuple),
    )
)
def test_reading_what_was_written_gives_it_back(body):
    assert Checkpoint.parse(body.text) == body


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=45) | st.just(ROOT64) | st.just("7"), max_size=6))
def test_what_is_read_is_written_back_byte_for_byte(parts):
    text = "\n".join(parts)
    try:
        body = Checkpoint.parse(text)
    except LedgerError:
        return
    assert body.text == text


def test_a_log_signs_for_itself_only(log):
    with pytest.raises(UsageError):
        SignedCheckpoint.sign(Checkpoint("log.example/b", 0, ROOT), log)
    signed = SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)
    assert SignedCheckpoint.open(str(signed), log.verifier) == signed
    assert SignedCheckpoint.open(str(signed).encode(), log.verifier) == signed
    with pytest.raises(SignatureError):
        SignedCheckpoint.open(str(signed), SignerKey.generate("log.example/a").verifier)


def test_a_checkpoint_of_another_log_is_refused_even_if_the_key_is_shared(log):
    twin = VerifierKey("log.example/b", 1, log.verifier.public)
    signed = SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)
    with pytest.raises(LedgerError, match="of the log 'log"):
        SignedCheckpoint.open(str(signed), twin)


def test_every_single_bit_change_of_a_signed_checkpoint_is_refused(log):
    data = str(SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)).encode()
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            SignedCheckpoint.open(bytes(changed), log.verifier)


def test_a_cosignature_carries_the_time_and_leaves_the_log_signature(log, witness):
    signed = SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)
    both = SignedCheckpoint.parse(str(cosign(signed, witness, timestamp=1_800_000_000)))
    assert cosigned_at(both, witness.verifier) == 1_800_000_000
    SignedCheckpoint.open(str(both), log.verifier)
    assert both.body == signed.body


def test_every_single_bit_change_of_a_cosignature_is_refused(log, witness):
    signed = SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)
    item = cosign(signed, witness, timestamp=5).note.signatures[-1]
    for bit in range(len(item.blob) * 8):
        blob = bytearray(item.blob)
        blob[bit // 8] ^= 1 << bit % 8
        forged = NoteSignature(item.name, item.key_id, bytes(blob))
        note = Note(signed.note.text, (*signed.note.signatures, forged))
        with pytest.raises(SignatureError):
            cosigned_at(SignedCheckpoint(signed.body, note), witness.verifier)


def test_cosignatures_do_not_carry_over(log, witness):
    first = SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)
    other = SignedCheckpoint.sign(Checkpoint("log.example/a", 4, ROOT), log)
    item = cosign(first, witness, timestamp=5).note.signatures[-1]
    moved = SignedCheckpoint(other.body, Note(other.note.text, (*other.note.signatures, item)))
    with pytest.raises(SignatureError, match="does not verify"):
        cosigned_at(moved, witness.verifier)
    with pytest.raises(SignatureError, match="not signed by"):
        cosigned_at(first, witness.verifier)
    with pytest.raises(SignatureError, match="not a witness"):
        cosigned_at(first, log.verifier)
    with pytest.raises(LedgerError, match="twice"):
        cosign(cosign(first, witness, timestamp=5), witness, timestamp=6)
    short = NoteSignature(item.name, item.key_id, item.blob[:-1])
    note = Note(first.note.text, (*first.note.signatures, short))
    with pytest.raises(SignatureError, match="malformed"):
        cosigned_at(SignedCheckpoint(first.body, note), witness.verifier)


def test_only_a_witness_key_cosigns_and_only_at_a_time_that_can_be_written(log, witness):
    signed = SignedCheckpoint.sign(Checkpoint("log.example/a", 3, ROOT), log)
    with pytest.raises(UsageError):
        cosign(signed, log, timestamp=5)
    for timestamp in (-1, 2**63):
        with pytest.raises(UsageError):
            cosign(signed, witness, timestamp=timestamp)
    late = NoteSignature("w.example/1", witness.verifier.key_id, b"\xff" * 72)
    note = Note(signed.note.text, (*signed.note.signatures, late))
    with pytest.raises(SignatureError, match="malformed"):
        cosigned_at(SignedCheckpoint(signed.body, note), witness.verifier)


def test_the_same_key_has_another_id_for_each_type(log):
    public = log.verifier.public
    assert key_id("a", 1, public) != key_id("a", 4, public)
