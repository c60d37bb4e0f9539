"""Finished weights are marked, registered and verified without a task file."""

from __future__ import annotations

import numpy as np
import pytest

from earmark.hosts.files import FilesHost, write_tensors
from earmark.vault import Vault


@pytest.fixture
def weights(tmp_path):
    """Write finished weights of a small network."""
    draw = np.random.default_rng(1)
    tensors = {
        "conv.weight": draw.normal(size=(64, 32, 3, 3)).astype(np.float32),
        "last.weight": draw.normal(size=(64, 64, 3, 3)).astype(np.float32),
        "last.bias": draw.normal(size=64).astype(np.float32),
    }
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    return path, tensors


def test_stamped_weights_are_shown_and_read_back(earmark, earmark_json, weights, tmp_path):
    path, _ = weights
    vault = ["--vault", tmp_path / "vault"]
    settings = ["--set", "payload=c0ffee", "--set", "weights_per_bit=400"]
    folder = tmp_path / "release"
    code, out, err = earmark("stamp", path, "-o", folder, "--owner", "Acme", *vault, *settings)
    assert code == 0, err
    release = folder / path.name
    assert f"earmark verify {release}" in out
    registration = Vault.open(tmp_path / "vault").registration()
    assert registration.release_receipts
    code, found = earmark_json("verify", release, *vault)
    assert code == 0
    assert found["payload"] == "c0ffee"
    whole = registration.commitment.commitment  # the ledger shows more of it than a key's id
    code, out, _ = earmark("verify", release, *vault, "--key", whole[:16])
    assert "every bit right in 2 of 2 tensors" in out
    assert "c0ffee  (0 of " in out
    code, found = earmark_json("verify", path, *vault)
    assert code in (1, 3)
    assert found["payload"] is None


def test_only_the_carrier_changes(earmark, weights, tmp_path):
    path, tensors = weights
    folder = tmp_path / "release"
    code, _, err = earmark(
        "stamp", path, "-o", folder, "--owner", "Acme", "--vault", tmp_path / "vault"
    )
    assert code == 0, err
    stamped = FilesHost(folder / path.name)
    assert np.array_equal(tensors["last.bias"], stamped.tensor("last.bias"))
    for name in ("conv.weight", "last.weight"):
        found = stamped.tensor(name)
        assert not np.array_equal(tensors[name], found)
        assert np.array_equal(np.sort(tensors[name], None), np.sort(found, None))


def test_bad_input_leaves_nothing_behind(earmark, weights, tmp_path):
    path, _ = weights
    vault = tmp_path / "vault"
    common = ["--owner", "Acme", "--vault", vault]
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for arguments, said in (
        ([path, "-o", full], "is there already"),
        ([tmp_path / "nothing.safetensors", "-o", tmp_path / "new"], "does not exist"),
        ([path, "-o", tmp_path / "new", "--set", "margin=99"], "margin 99"),
        ([path, "-o", tmp_path / "new", "--set", "payload=" + "ff" * 40], ""),
    ):
        code, _, err = earmark("stamp", *arguments, *common)
        assert code in (2, 5), err
        assert said in err
    assert not vault.exists()
    assert not (tmp_path / "new").exists()
    assert [item.name for item in full.iterdir()] == ["notes.txt"]
