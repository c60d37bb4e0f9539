"""`earmark claim`: what is missing or mistaken is named before a node is asked."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ("register", "r.safetensors"),
        ("open", "s.safetensors", "--shards", "0"),
        ("status",),
        ("dossier", "3f0a", "-o", "case"),
    ],
    ids=lambda words: words[0],
)
def test_without_its_file_a_community_is_asked_for(words, earmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = earmark("claim", *words)
    assert (code, out) == (5, "")
    assert "There is no community file 'community.json'. Pass --community FILE" in err
    code, _, err = earmark("claim", *words, "--community", "else.json")
    assert (code, "no community file 'else.json'" in err) == (5, True)
