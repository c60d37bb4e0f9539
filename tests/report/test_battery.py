from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from earmark.policy import Policy
from earmark.report import render_battery
from earmark.report.battery import removal_sentences
from earmark.report.rows import bits_of, summarize

_SPEC = importlib.util.spec_from_file_location(
    "report_page_tests", Path(__file__).with_name("test_page.py")
)
page_tests = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(page_tests)
read = page_tests.read


def sentences(samples, attacks, **changes):
    rows = summarize(samples.trials(tuple(attacks), **changes), Policy())
    return [read_words(item) for item in removal_sentences(rows, Policy())]


def read_words(markup: str) -> str:
    return page_tests.Reader(markup).text


def test_the_sentence_that_matters_comes_first(samples):
    found = read(render_battery(samples.battery()))
    first = found.text.index("distill(data=0.1) removes this mark: below 64 bits in all 5 runs")
    assert first < found.text.index("Every attack")
    assert "at a cost of 6.8 points of utility (5.9 to 7.7)" in found.text


def test_where_nothing_removes_the_mark_the_closest_is_named(samples):
    said = sentences(samples, samples.ATTACKS[:6])
    assert said[0].startswith(
        "None of the 5 attacks brought the mark below 64 bits in any of 25 runs"
    )
    assert "overwrite(epochs=5)" in said[1]


def test_a_mark_removed_in_some_runs_is_removed(samples):
    trials = list(samples.trials((("prune(share=0.9)", 4.0, 0.1, 1000),), seeds=4))[:4]
    weak = samples.evidence(512)
    trials[2] = replace(trials[2], evidence=weak, bits=0.0)
    rows = summarize(tuple(trials), Policy())
    said = read_words(removal_sentences(rows, Policy())[0])
    assert "in 1 of 4 runs" in said
    assert (rows[0].removed, rows[0].shown) == (1, 3)


def test_the_cheapest_removal_comes_first_and_long_lists_are_cut(samples):
    attacks = [(f"attack {i}", 9.0 - i, 0.0, 512) for i in range(6)]
    said = sentences(samples, attacks)
    assert said[0].startswith("attack 5 removes")
    assert "2 more are in the table." in said


def test_a_free_removal_is_said_to_be_free(samples):
    said = sentences(samples, [("polish", -0.5, 0.0, 512)], seeds=1)
    assert said[0] == (
        "polish removes this mark: below 64 bits in its only run, at no cost in utility and "
        "70 % of a training's compute."
    )


def test_failures_are_rows_and_are_counted(samples):
    found = read(render_battery(samples.battery()))
    assert "the student's loss became infinite in epoch 3." in found.text
    assert "1 run failed and says nothing either way" in found.text
    only = [t for t in samples.trials() if t.error is not None]
    nothing = read(render_battery(samples.battery(trials=tuple(only))))
    assert "nothing is known" in nothing.text
    assert "Utility against evidence" not in nothing.headings


def test_rows_keep_apart_what_differs(samples):
    trials = samples.trials(samples.ATTACKS[:2], seeds=2)[:4]
    other = tuple(replace(item, scheme="deepsigns()") for item in trials)
    rows = summarize(trials + other, Policy())
    assert [row.label for row in rows] == [
        "no attack · mtlsign(bits=2048)",
        "finetune(epochs=5, rate=0.05) · mtlsign(bits=2048)",
        "no attack · deepsigns()",
        "finetune(epochs=5, rate=0.05) · deepsigns()",
    ]
    assert all(row.runs == 2 for row in rows)


def test_bits_are_judged_where_none_were_recorded(samples):
    trial = samples.trials()[0]
    assert bits_of(replace(trial, bits=None), Policy()) == pytest.approx(trial.bits)


def test_unknown_utility_is_said(samples):
    trials = tuple(replace(t, utility=None, utility_before=None) for t in samples.trials(seeds=1))
    found = read(render_battery(samples.battery(trials=trials)))
    assert "not measured" in found.text
    assert "and in utility that was not measured" in found.text
