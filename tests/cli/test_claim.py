"""`earmark claim`: what is missing or mistaken is named before a node is asked."""

from __future__ import annotations

import pytest

from earmark.report import archive
from earmark.report.dossier import Manifest


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


def test_the_two_kinds_of_dossiers_are_told_apart(earmark, tmp_path):
    alone, decided = tmp_path / "dos", tmp_path / "case"
    for folder, names in (
        (alone, ("records/claim.json", "README.txt")),
        (decided, ("claim.txt", "community.json")),
    ):
        contents = dict.fromkeys(names, b"{}")
        archive.write(folder, contents | {archive.MANIFEST: Manifest.of(contents).canonical()})
    code, _, err = earmark("claim", "check", alone)
    assert code == 5
    assert f"E402  '{alone}' is a dossier of earmark verify" in err
    assert f"Check it with:  earmark report {alone}" in err
    code, _, err = earmark("report", decided)
    assert code == 5
    assert f"E402  '{decided}' is a dossier of what a community decided." in err
    assert f"Check it with:  earmark claim check {decided}" in err
