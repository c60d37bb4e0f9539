"""`earmark bench`: rows, tables, the standard's layout and pages from a plan; finished cells stay."""

from __future__ import annotations

import json

PLAN = """
name = "small"
schemes = [{ name = "uchida", weight = 1.0 }]
networks = ["small-cnn"]
data = ["digits"]
attacks = ["none", "permute", "prune:65"]
seeds = [0]
unmarked = true
samples = 600
tests = 200
epochs = 1
recipe = { epochs = 4 }
"""


def test_a_plan_gives_rows_tables_and_pages_and_is_not_run_twice(
    earmark_json, earmark, tmp_path, monkeypatch
):
    import earmark.bench.run as running

    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(PLAN)
    code, document = earmark_json("bench", plan, "--out", out)
    assert code == 0
    assert len(document["trials"]) == 6
    assert (out / "table.md").read_text().count("| permute |") == 2
    lines = [json.loads(line) for line in (out / "ieee3304.jsonl").read_text().splitlines()]
    none = next(line for line in lines if line.get("modification") == "none")
    assert none["false_positive_ratio"] == 0
    assert none["false_negative_ratio"] == 0
    pages = sorted((out / "pages").iterdir())
    assert len(pages) == 2
    assert all("<svg" in page.read_text() for page in pages)
    monkeypatch.setattr(running, "measure", None)
    code, again, _ = earmark("bench", plan, "--out", out)
    assert code == 0
    assert "uchida" in again
