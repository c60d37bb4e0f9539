from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from earmark.errors import UsageError
from earmark.report.locks import (
    NOT_BY_A_LOCK,
    NOT_BY_A_TRACE,
    Leak,
    Locked,
    Suspicion,
    leak_page,
    locked_page,
)

_SPEC = importlib.util.spec_from_file_location(
    "report_page_tests", Path(__file__).with_name("test_page.py")
)
page_tests = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page_tests)
read = page_tests.read
WHEN = "2027-07-04T08:00:00Z"


def leak(*ranking, **changes):
    settings = {"threshold": 20, "customers": 100, "forms": 2, "read": 980, "length": 991}
    return Leak("leak.safetensors", WHEN, ranking, **settings | changes)


def limits_of(html):
    return read(html).text.split("What this does not say")[1]


def test_a_locked_models_page_says_what_it_costs_and_what_no_lock_does():
    html = locked_page(Locked("net", "dsn", WHEN, 64, 86.3, 85.7, 10.0))
    found = read(html).text
    assert "85.70" in found
    assert "with the number: 0.60 lost" in found
    said = limits_of(html)
    assert all(sentence in said for sentence in NOT_BY_A_LOCK)
    assert "wrap his copy" in said
    assert "distil it" in said
    assert "no cryptography" in said


def test_a_leaks_page_names_only_whom_the_trace_named():
    guilty = Suspicion("acme", 3, 310.25, named=True)
    others = [Suspicion("bolt", 4, 19.9, named=False), Suspicion("cato", 5, -2.0, named=False)]
    html = leak_page(leak(guilty, *others, notes=("One tensor was not found.",)))
    found = read(html).text
    assert "was made from the copy of <bdi>acme</bdi>.</h1>" in html
    assert "20 bits, net of 100 customers and 2 forms" in found
    assert "980 of 991 bits" in found
    said = limits_of(html)
    assert all(sentence in said for sentence in (*NOT_BY_A_TRACE, *NOT_BY_A_LOCK))
    assert "One tensor was not found." in said


def test_a_leaks_page_that_names_nobody_says_that_it_cannot_be_told():
    found = read(leak_page(leak(Suspicion("bolt", 4, 3.0, named=False)))).text
    assert "It cannot be told from whose copy leak.safetensors was made." in found
    assert "Nobody is cleared" in found


def test_two_colluders_are_both_in_the_sentence_and_names_are_escaped():
    pair = [Suspicion(who, 1, 50.0, named=True) for who in ("<b>acme", "bolt")]
    html = leak_page(leak(*pair))
    assert "the copies of <bdi>&lt;b&gt;acme</bdi>, <bdi>bolt</bdi>.</h1>" in html


@pytest.mark.parametrize(("bits", "named"), [(19.9, True), (20.0, False)])
def test_nobody_is_named_but_at_the_threshold(bits, named):
    with pytest.raises(UsageError):
        leak(Suspicion("acme", 1, bits, named=named))
