"""Batteries, tables, the standard's layout and the search for the cheapest chain."""

from __future__ import annotations

import pytest

from earmark.bench import search, standard, tables
from earmark.bench.battery import run_battery
from earmark.bench.cells import Step
from earmark.bench.rows import trials
from earmark.bench.subjects import Ground, MemorySubject
from earmark.errors import UsageError
from earmark.keys.secret import Key
from earmark.schemes.embedding import embed
from earmark.testing import tiny_task


@pytest.fixture(scope="module")
def subject():
    from toy_mark import SignMark

    task = tiny_task("cnn", samples=256, recipe={"epochs": 25})
    scheme = SignMark(bits=96, carrier="fc.weight")
    key: Key = scheme.new_key(task.host(task.model()), secret=bytes(32))
    done = embed(task, scheme, key, seed=0)
    names = (scheme.name, "tiny", "noise")
    utility = task.evaluate(done.model)
    return MemorySubject(Ground(task, done.model, scheme, key, utility, 1.0, names))


def test_a_battery_measures_every_attack_and_resumes(subject, tmp_path):
    path = tmp_path / "rows.jsonl"
    found = run_battery(subject, "quick", path, seeds=(0, 1), more=["prune:90 >> permute"])
    labels = [row.trial.attack for row in found]
    assert labels[0] == "none"
    assert labels.count("permute") == 2
    assert "prune(share=0.9) >> permute" in labels
    by = {row.trial.attack: row.trial for row in found}
    assert by["none"].bits > 90
    assert by["none"].cost == 0
    assert by["permute"].bits < 10
    assert by["permute"].utility == by["permute"].utility_before
    assert by["quantize"].bits > 90
    assert by["finetune"].cost > 0
    failed = by["dummies"].error if "dummies" in by else by["obfuscate"].error
    assert "carrier has" in failed.lower() or "Carrier" in failed
    size = path.stat().st_size
    again = run_battery(subject, "quick", path, seeds=(0, 1), more=["prune:90 >> permute"])
    assert again == found
    assert path.stat().st_size == size
    said = tables.text(trials(found))
    assert "hides the mark" in said


def test_tables_give_medians_ranges_intervals_and_failures(row):
    found = [
        row(),
        row("noise", 0, hits=100, lost=0.5),
        row("noise", 1, hits=60, lost=1.5),
        row("noise", 2, error="E404  It broke."),
        row("prune", 0, hits=50, lost=30),
    ]
    lines = tables.lines(trials(found))
    noise = lines[1]
    assert (noise.runs, noise.failed, noise.shown) == (2, 1, 1)
    assert noise.lost == (0.5, 1.0, 1.5)
    assert noise.interval[0] < 0.5 < noise.interval[1]
    assert noise.removed()
    assert not lines[2].removed()
    text, page = tables.text(trials(found)), tables.markdown(trials(found))
    assert "1/2, 1 failed" in text
    assert "'noise' hides the mark in 1 of 2 runs" in text
    assert page.count("|") == 7 * 5
    assert tables.sentence([]) == "No attack was measured."
    assert "None of these 1 attacks" in tables.sentence([lines[0], lines[2]])
    bare = tables.lines(trials([row(hits=50), row("noise", hits=50)]))
    assert "No mark is shown before any attack" in tables.sentence(bare)


def test_the_standards_layout_counts_networks_payloads_and_errors(row):
    found = [
        row("noise", seed, hits=hits, marked=marked, payload=payload)
        for seed in (0, 1, 2)
        for payload in (0, 1)
        for marked, hits in ((True, 90 if seed else 60), (False, 50))
    ] + [row(seed=9), row(seed=9, marked=False, lost=-1.0)]
    made = standard.export(found)
    noise = next(item for item in made["robustness"] if item["modification"] == "noise")
    assert (noise["M"], noise["D"]) == (3, 2)
    assert noise["false_positive_ratio"] == 0
    assert noise["false_negative_ratio"] == 1  # 90 of 100 are 55 bits, below 64
    assert noise["mean_symbol_error_rate"] == pytest.approx((0.1 * 4 + 0.4 * 2) / 6)
    assert made["imperceptibility"]["mean_utility_marked"] == 90
    assert made["imperceptibility"]["mean_utility_unmarked"] == 91


def test_random_chains_are_distinct_and_repeat():
    chains = search.random_chains(20, seed=5)
    assert len(set(chains)) == 20
    assert all(len(chain) == 3 for chain in chains)
    assert chains == search.random_chains(20, seed=5)
    assert chains != search.random_chains(20, seed=6)


def test_the_search_finds_the_cheapest_chain_within_its_budget(row):
    """An invented world: noise then permute removes the mark, pruning ruins the model."""
    measured = []

    def evaluate(chain):
        measured.append(chain)
        names = [step.name for step in chain]
        hits = 100 - 20 * ("noise" in names) - 30 * ("permute" in names)
        return row("x", hits=hits, lost=50.0 if "prune" in names else 0.5).trial

    pool = ["noise", "permute", "prune:90", "quantize", "cast"]
    found = search.search(evaluate, evaluations=40, seed=1, pool=pool)
    assert len(measured) == len(set(measured)) == len(found) <= 40
    assert {step.name for step in found[0].chain} == {"noise", "permute"}
    assert found[0].kept
    assert not found[-1].kept
    with pytest.raises(UsageError):
        search.search(evaluate, evaluations=0, seed=1)
    with pytest.raises(UsageError):
        search.random_chains(1, seed=1, pool=["none"])
    assert search.steps_of(["noise >> cast"]) == [Step("noise"), Step("cast")]


def test_the_search_against_a_model_finds_what_removes_its_mark_and_resumes(subject, tmp_path):
    path = tmp_path / "rows.jsonl"
    pool = ["quantize:int8", "noise:1", "permute", "prune:50"]
    options = {"evaluations": 6, "seed": 2, "pool": pool, "tolerance": 10.0}
    found = search.search_subject(subject, path, **options)
    assert "permute" in {step.name for step in found[0].chain}
    assert found[0].kept
    assert found[0].trial.bits < 10
    size = path.stat().st_size
    assert search.search_subject(subject, path, **options) == found
    assert path.stat().st_size == size
