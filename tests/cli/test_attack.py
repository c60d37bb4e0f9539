"""`earmark attack`: one attack, a battery and a search measure in the same way, and resume."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from earmark.bench import run, zoo
from earmark.bench.cells import Cell, Means, parse
from earmark.bench.subjects import ReleaseSubject, training_seconds
from earmark.hosts.files import save_release
from earmark.task import load_task

LIGHT = ("--data", "0.3", "--epochs", "1")


@pytest.fixture
def attack(desk, earmark_json):
    def call(*words: str):
        base = ("attack", desk.release, "--task", desk.task, "--vault", desk.vault)
        return earmark_json(*base, *words)

    return call


def subject(desk):
    return ReleaseSubject(
        desk.release, desk.task, desk.vault, passphrase=os.environ["EARMARK_PASSPHRASE"]
    )


@pytest.mark.parametrize(
    "words",
    [("--attack", "permute"), ("--battery", "quick"), ("--search", "2")],
    ids=lambda w: w[0],
)
def test_what_does_not_fit_is_named_before_anything_is_done(desk, earmark, tmp_path, words):
    strange, task, out = (tmp_path / name for name in ("mlp.safetensors", "mlp.py", "out"))
    save_release(zoo.Mlp((1, 8, 8), 10), strange)
    task.write_text(Path(desk.task).read_text().replace("small-cnn", "mlp"))
    more = ("--vault", desk.vault, *words, "-o", out)
    code, _, err = earmark("attack", strange, "--task", task, *more)
    assert code == 2
    assert "(mtlsign, release.safetensors, " in err
    assert f"another network than the model() of '{task}': it reads fc" in err
    code, _, err = earmark("attack", strange, "--task", desk.task, *more)
    assert code == 5
    assert f"Release '{strange}' does not fit key " in err
    assert f"which fits the model() of '{desk.task}'" in err
    assert not out.exists()


def test_one_attack_is_measured_as_the_battery_does(desk, attack, tmp_path):
    text = "permute >> prune:50"
    code, document = attack("--attack", text, *LIGHT, "-o", str(tmp_path / "out.safetensors"))
    assert code == 0
    target = subject(desk)
    cell = Cell(target.describe(), parse(text, kind="attack"), 0, Means(0.3, epochs=1))
    trial = run.measure(target.open(), cell)
    assert trial.error is None
    assert document["evidence"] == trial.evidence.to_json()
    assert document["utility"] == pytest.approx(trial.utility, abs=1e-3)
    assert document["evidence"]["tried"]["forms"] == 1  # MTL-Sign reads in place only
    assert document["cost"] > 0
    assert (tmp_path / "out.safetensors").is_file()


def test_a_battery_writes_rows_the_standards_layout_and_a_page_and_resumes(
    desk, attack, tmp_path, monkeypatch
):
    out = tmp_path / "battery"
    words = ("--battery", "quick", *LIGHT, "-o", str(out))
    code, document = attack(*words)
    assert code == 0
    by = {trial["attack"]: trial for trial in document["trials"]}
    assert len(by) == 13
    assert by["none"]["cost"] == 0
    assert all(trial["cost"] is not None for trial in by.values() if trial["error"] is None)
    lines = [json.loads(line) for line in (out / "ieee3304.jsonl").read_text().splitlines()]
    assert {line["modification"] for line in lines[:-1]} == set(by)
    assert lines[-1]["layout"].startswith("IEEE 3304")
    page = (out / "battery.html").read_text()
    assert "Utility against evidence" in page
    assert "compute" in page
    rows = (out / "rows.jsonl").read_bytes()
    monkeypatch.setattr(run, "measure", None)
    assert attack(*words)[1]["trials"] == document["trials"]
    assert (out / "rows.jsonl").read_bytes() == rows


def test_a_search_names_the_cheapest_chain(desk, attack, tmp_path):
    out = tmp_path / "search"
    code, document = attack("--search", "2", *LIGHT, "-o", str(out))
    assert code == 0
    assert len(document["trials"]) == 2
    assert (out / "battery.html").is_file()


def test_knowledge_and_words_are_checked(desk, attack, tmp_path):
    out = str(tmp_path / "x")
    code, document = attack("--attack", "overwrite", "--level", "0", "-o", out)
    assert (code, "needs knowledge L1" in document["error"]["message"]) == (2, True)
    assert attack("-o", out)[0] == 2
    assert attack("--attack", "prune", "--battery", "quick", "-o", out)[0] == 2
    assert attack("--attack", "noise >> prune", "--set", "share=0.2", "-o", out)[0] == 2


def test_an_output_that_exists_is_refused_before_the_attack(desk, attack, tmp_path, monkeypatch):
    out = tmp_path / "there.safetensors"
    out.write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(run, "attacked", None)
        code, document = attack("--attack", "prune", "-o", str(out))
    assert (code, "--force" in document["error"]["message"]) == (2, True)
    assert out.read_bytes() == b"mine"
    assert attack("--attack", "prune", "-o", str(out), "--force")[0] == 0
    assert out.stat().st_size > 1000


def test_a_training_is_estimated_from_some_of_its_steps(desk):
    task = load_task(desk.task)
    assert 0 < training_seconds(task, steps=2) < 120
