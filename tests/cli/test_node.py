"""`earmark node`: what stands in its way is said before anything is made."""

from __future__ import annotations

import pytest


@pytest.fixture
def nodes(earmark, tmp_path):
    """Make two nodes; return their folders and cards."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        assert earmark("node", "init", folder, "--operator", f"Lab {folder.name}")[0] == 0
    return folders, [folder / "card.json" for folder in folders]


def test_an_output_that_exists_is_refused_before_a_log_is_made(nodes, earmark, tmp_path):
    (first, _), cards = nodes
    there, fresh = tmp_path / "text.txt", tmp_path / "community.json"
    there.write_text("mine")
    found = ["node", "found", first, *cards, "--domain", "lab.example/c", "--output"]
    before = sorted(first.iterdir())
    code, _, err = earmark(*found, there)
    assert (code, sorted(first.iterdir())) == (2, before)
    assert f"Output '{there}' exists already. Choose another name." in err
    assert "--force" not in err
    assert there.read_text() == "mine"
    code, out, err = earmark(*found, fresh)
    assert code == 0, err
    assert f"earmark node join NODE {fresh}" in out


def test_what_has_to_come_first_is_named(nodes, earmark, tmp_path):
    (first, _), cards = nodes
    empty, file = tmp_path / "no node", tmp_path / "community.json"
    init = f"There is no node in '{empty}'. Make one with:  earmark node init '{empty}' --operator"
    for words in (
        ["found", empty, *cards, "--domain", "lab.example/c", "--output", file],
        ["join", empty, file],
        ["serve", empty],
    ):
        code, _, err = earmark("node", *words)
        assert (code, init in err) == (5, True), (words, err)
    code, _, err = earmark("node", "serve", first)
    assert code == 5
    assert f"'{first}' has joined no community." in err
    assert f"earmark node join {first} community.json" in err
    assert not file.exists()
