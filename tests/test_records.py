"""Records: canonical, strict, digest-stable, with published schemas."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark import codec
from earmark.errors import RecordError
from earmark.records import (
    RECORDS,
    Access,
    Claim,
    Commitment,
    Evidence,
    Layout,
    License,
    Opening,
    Outcome,
    Receipt,
    Release,
    Trial,
    Tried,
    Verdict,
)

SCHEMAS = Path(__file__).parent.parent / "docs" / "schemas"
A, B = "a" * 64, "b" * 64
NOW = "2027-02-11T09:30:00Z"
LAYOUT = Layout("demo", 1, ("fc",), 256, 4, {"taps": ["fc"], "margin": 1.5}, A)
OPENING = Opening(A, LAYOUT, B, A)
EVIDENCE = Evidence.of("demo", hits=60, trials=64, weights=(1, 2, 3), score=-2, shards=(0, 2))
EXAMPLES = (
    LAYOUT,
    Commitment(A, B, NOW),
    OPENING,
    Release(A, B, {"a.safetensors": A}, None, NOW),
    Tried(2, 3, 4, 8),
    EVIDENCE,
    Claim(A, OPENING, B, A, (1, 3), B, NOW),
    Verdict(Outcome.SHOWN, 70.5, 72.0, -21.2, 64.0, "claim", 0.999, 0.9, "r", ("l",), A, (B,)),
    License(A, "m", B, "acme", ("all",), NOW, "2028-02-11T09:30:00Z", A, 3),
    Receipt("log", 4, A, "note", (B,)),
    Trial(
        "s", "h", "d", "none", 1, 90.0, 89.5, EVIDENCE, 12.0, 1.5, None, {"earmark": "0"}, "2", None
    ),
)


def test_every_record_has_an_example() -> None:
    assert {type(example) for example in EXAMPLES} == set(RECORDS)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_round_trip_is_exact(record) -> None:
    again = type(record).from_bytes(record.canonical())
    assert again == record
    assert again.digest() == record.digest()


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_published_schema_accepts_and_refuses(record) -> None:
    cls = type(record)
    path = SCHEMAS / f"{cls.SCHEMA.replace('/', '-')}.json"
    schema = json.loads(path.read_text())
    assert schema == codec.json_schema(cls), "run scripts/docs to write the schemas again"
    body = record.to_json()
    jsonschema.validate(body, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body | {"extra": 1}, schema)
    for name in body:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: body[key] for key in body if key != name}, schema)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_every_lacking_or_extra_field_is_refused(record) -> None:
    body = record.to_json()
    for name in body:
        with pytest.raises(RecordError):
            type(record).from_json({key: body[key] for key in body if key != name})
    with pytest.raises(RecordError, match="unknown fields"):
        type(record).from_json(body | {"extra": 1})


def test_other_bytes_for_the_same_record_are_refused() -> None:
    spaced = json.dumps(LAYOUT.to_json(), indent=1).encode()
    with pytest.raises(RecordError, match="canonical"):
        Layout.from_bytes(spaced)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"\xff",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"a":1e400}',
        b'{"a":01}',
        b'{"a":"\\ud800"}',
    ],
)
def test_bad_json_is_refused(data) -> None:
    with pytest.raises(RecordError):
        codec.parse(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Commitment(A, "B" * 64, NOW), "hexadecimal"),
        (lambda: Commitment(A, B, "2027-02-11"), "UTC"),
        (lambda: Commitment(A, B, "2027-02-31T00:00:00Z"), "UTC"),
        (lambda: Layout("", 1, (), 1, 1), "no scheme"),
        (lambda: Layout("s", 0, (), 1, 1), "version"),
        (lambda: Layout("s", 1, ("w", "b", "w"), 1, 1), "more than once"),
        (lambda: Evidence.of("s", hits=1, trials=2, shards=(3, 3)), "stands in it twice"),
        (lambda: Layout("s", 1, (), 0, 1), "empty"),
        (lambda: Layout("s", 1, (), 2, 3), "do not fit"),
        (lambda: Evidence.of("s", hits=5, trials=4), "5 of 4"),
        (lambda: Evidence.of("s", hits=-1, trials=4), "-1"),
        (lambda: Evidence.of("s", hits=0, trials=0, chance=Fraction(1)), "between"),
        (lambda: Evidence.of("s", hits=0, trials=1, weights=(1,)), "score"),
        (lambda: Evidence.of("s", hits=0, trials=1, weights=(1,), score=2), "beyond"),
        (lambda: Evidence.of("s", hits=0, trials=1, weights=(-1,), score=0), "negative"),
        (lambda: Tried(0), "at least 1"),
        (lambda: Claim(A, OPENING, B, A, (1, 1), B, NOW), "twice"),
        (lambda: Claim(A, OPENING, B, A, (4,), B, NOW), "shards"),
        (lambda: License(A, "m", B, "", (), NOW, NOW, A, 0), "customer"),
        (lambda: License(A, "m", B, "c", (), NOW, NOW, A, 0), "before it begins"),
        (lambda: Receipt("o", -1, A, "", ()), "index"),
        (lambda: Release(A, B, {}, None, NOW), "no files"),
        (
            lambda: Trial("s", "h", "d", "a", 1, None, None, None, None, 1, None, {}, "", None),
            "error",
        ),
    ],
)
def test_values_out_of_range_name_themselves(make, message) -> None:
    with pytest.raises(RecordError, match=message):
        make()


def test_a_verdict_is_no_boolean() -> None:
    verdict = next(item for item in EXAMPLES if isinstance(item, Verdict))
    with pytest.raises(TypeError, match="no boolean"):
        bool(verdict)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hits", "60"), ("hits", 60.0), ("hits", True), ("chance", "2/4"), ("chance", "1/0"),
        ("chance", 0.5), ("access", "soul"), ("shards", 1), ("shards", ["a"]), ("details", []),
        ("notes", [1]), ("tried", {}), ("schema", "earmark/evidence/2"), ("score", "x"),
    ],
)  # fmt: skip
def test_wrong_types_are_refused(field, value) -> None:
    with pytest.raises(RecordError):
        Evidence.from_json(EVIDENCE.to_json() | {field: value})


@given(
    st.integers(0, 500),
    st.integers(0, 500),
    st.fractions(Fraction(1, 1000), Fraction(999, 1000)),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.integers(-(2**53) + 1, 2**53 - 1), max_size=3),
)
def test_any_evidence_survives_the_wire(hits, more, chance, note, details) -> None:
    try:
        note.encode()
        [name.encode() for name in details]
    except UnicodeEncodeError:
        return
    made = Evidence.of(
        "s", hits=hits, trials=hits + more, chance=chance, notes=(note,), details=details,
        access=Access.LABELS,
    )  # fmt: skip
    assert Evidence.from_bytes(made.canonical()) == made


def test_commitment_hides_and_binds() -> None:
    other = Opening(A, LAYOUT, B, B)
    assert OPENING.commitment() != other.commitment()
    assert OPENING.commitment() == Opening.from_bytes(OPENING.canonical()).commitment()


def test_deep_nesting_is_refused_before_the_reader_recurses():
    """Other packages raise the recursion limit so far that the reader would overrun the stack."""
    import sys

    from earmark.errors import RecordError

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        for bad in (b"[" * 200_000, b'{"a":' * 100_000, b'["\\"[",' + b"[" * 100_000):
            with pytest.raises(RecordError, match="nested deeper"):
                codec.parse(bad)
        assert codec.parse(b'["' + b"[" * 100 + b'"]') == ["[" * 100]
        assert codec.parse(b"[" + b",".join([b"[]"] * 100) + b"]") == [[]] * 100
    finally:
        sys.setrecursionlimit(limit)
