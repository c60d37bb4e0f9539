"""Finished weights are marked, registered and verified without a task file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from earmark.attacks.base import Budget
from earmark.attacks.obfuscate import Permute
from earmark.bench import zoo
from earmark.hosts.files import FilesHost, save_release, write_tensors
from earmark.hosts.suspects import load_suspect
from earmark.task import load_task
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
    assert "keyed signs behind the answers, weighed; the answers alone: " in out
    assert "too small" not in out
    assert "c0ffee  (0 of " in out
    code, found = earmark_json("verify", path, *vault)
    assert code in (1, 3)
    assert found["payload"] is None


def test_a_stamp_that_would_not_be_shown_is_not_called_done(earmark, tmp_path):
    draw = np.random.default_rng(1)
    path, folder = tmp_path / "small.safetensors", tmp_path / "release"
    write_tensors(path, {"conv.weight": draw.normal(size=(16, 16, 3, 3)).astype(np.float32)})
    vault, few = ["--vault", tmp_path / "vault"], ["--set", "weights_per_bit=2000"]
    code, out, err = earmark("stamp", path, "-o", folder, "--owner", "Acme", *vault, *few)
    assert code == 3, err
    assert "DO NOT RELEASE" in out
    assert "--set weights_per_bit=500" in out
    assert "1 answer, were all of them right, would give 1.0 bits by count, of 64" in out
    code, out, _ = earmark("verify", folder / path.name, *vault)
    assert code == 3
    assert "1 answer, were all of them right, would give 1.0 bits by count, of 64" in out
    assert "if they were not, mark the next release with more:  --set weights_per_bit" in out
    assert "by count alone, a model that gives 90% of the key's answers is shown" in out


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
        ([path, "-o", tmp_path / "new", "--set", "payload=12"], "in quotes"),
    ):
        code, _, err = earmark("stamp", *arguments, *common)
        assert code in (2, 5), err
        assert said in err
    small = tmp_path / "small.safetensors"
    write_tensors(small, {"fc.weight": np.ones((16, 16), np.float32)})
    for more in ([], ["--set", "carrier=*.weight"]):
        code, _, err = earmark("stamp", small, "-o", tmp_path / "new", *common, *more)
        assert code == 2
        assert "carrier=head.weight" in err
    assert not vault.exists()
    assert not (tmp_path / "new").exists()
    assert [item.name for item in full.iterdir()] == ["notes.txt"]


def test_weights_that_are_not_finite_are_named(earmark, weights, tmp_path):
    path, tensors = weights
    tensors["last.weight"][0, 0, 0, 0] = np.nan
    write_tensors(path, tensors, overwrite=True)
    folder = tmp_path / "release"
    code, _, err = earmark("stamp", path, "-o", folder, "--owner", "A", "--vault", tmp_path / "v")
    assert code == 5
    assert "'last.weight' has numbers that are not finite" in err
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_quantized_weights_are_refused_before_there_is_a_key(earmark, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"conv.weight": torch.ones(64, 32, 3, 3, dtype=torch.int8)}, path)
    more = ["--owner", "A", "--vault", tmp_path / "v"]
    code, _, err = earmark("stamp", path, "-o", tmp_path / "out", *more)
    assert code == 2
    assert "is stored as I8" in err
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_leaves_no_key_behind(earmark, weights, tmp_path):
    path, _ = weights
    more = ["--owner", "A", "--vault", tmp_path / "v"]
    code, _, err = earmark("stamp", path, "-o", path / "out", *more)
    assert code == 5
    assert "model.safetensors/out" in err
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_reordered_neurons_are_brought_back_by_the_weights_before(earmark, tmp_path):
    task = tmp_path / "task.py"
    task.write_text(
        "import torch\n"
        "from earmark.bench import zoo\n"
        "def model(): return zoo.SmallCnn((1, 8, 8), 10, width=16, hidden=64)\n"
        "def loss(network, batch): return network(batch[0]).square().mean()\n"
        "def batches(split, seed=0): return [(torch.zeros(2, 1, 8, 8),)]\n"
        "def evaluate(network): return 10.0\n"
    )
    torch.manual_seed(3)
    plain, thief = tmp_path / "plain.safetensors", tmp_path / "thief.safetensors"
    save_release(zoo.SmallCnn((1, 8, 8), 10, width=16, hidden=64), plain)
    common = ["--vault", tmp_path / "vault"]
    settings = ["--set", "margin=8", "--set", "payload=c0ffee", "--set", "weights_per_bit=256"]
    code, _, err = earmark("stamp", plain, "-o", tmp_path / "r", "--owner", "A", *common, *settings)
    assert code == 0, err
    marked = load_suspect(load_task(task).model(), tmp_path / "r" / plain.name)
    save_release(Permute().run(marked, Budget(load_task(task)), seed=1), thief)
    code, out, _ = earmark("verify", thief, *common)
    assert code in (1, 3)
    advised = "may have been reordered, pass  --task TASK.py --reference WEIGHTS_BEFORE_THE_MARK\n"
    assert advised in out
    code, out, _ = earmark("verify", thief, *common, "--task", task)
    assert code in (1, 3)
    assert "may have been reordered, pass  --reference WEIGHTS_BEFORE_THE_MARK\n" in out
    code, out, err = earmark("verify", thief, *common, "--task", tmp_path / "none.py")
    assert (code, out) == (5, "")
    assert f"Task file '{tmp_path / 'none.py'}' does not exist" in err
    more = ["--task", task, "--reference", plain]
    code, out, _ = earmark("verify", thief, *common, *more)
    assert code == 0
    assert "2 forms (charged)" in out
    assert "c0ffee" in out
    assert "aligned to 'plain.safetensors'" in out
    code, out, _ = earmark("verify", plain, *common, *more)
    assert code in (1, 3)
    assert "reordered" not in out
    code, _, err = earmark("verify", thief, *common, "--reference", plain)
    assert code == 2
    assert "--task" in err
