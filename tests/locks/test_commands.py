"""The commands: issue, list, unlock, trace, renew, revoke, and what each refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from earmark.cli.main import run
from earmark.hosts.files import FilesHost, write_tensors
from earmark.vault import Vault


@pytest.fixture(name="shop")
def fixture_shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EARMARK_PASSPHRASE", "a passphrase")
    vault = Vault.create("vault", name="Acme", passphrase="a passphrase")
    vault.close()
    rng = np.random.default_rng(0)
    write_tensors(
        tmp_path / "release.safetensors",
        {
            "fc.weight": (0.05 * rng.normal(size=(256, 256))).astype(np.float32),
            "fc.bias": np.zeros(256, np.float32),
            "head.weight": (0.05 * rng.normal(size=(10, 256))).astype(np.float32),
        },
    )
    return vault.owner


def call(capsys, *arguments):
    code = run([*arguments, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out)


def issue(capsys, customer):
    return call(
        capsys, "license", "issue", "release.safetensors", "--customer", customer, "-o", customer
    )


def unlock(capsys, owner, name, *more):
    arguments = ["--license", f"{name}.license", "--issuer", owner]
    return call(capsys, "unlock", name, *arguments, *more)


def test_from_issue_to_trace_to_revocation(shop, capsys, tmp_path):
    for customer in ("acme", "bolt"):
        code, found = issue(capsys, customer)
        assert (code, found["license"]["customer"]) == (0, customer)
    assert (tmp_path / "acme.serial").stat().st_mode & 0o077 == 0
    secret = (tmp_path / "acme.serial").read_text().strip()
    assert secret not in json.dumps(found)
    code, _ = unlock(capsys, shop, "acme", "--serial-file", "acme.serial", "-o", "leak")
    assert code == 0
    assert FilesHost("leak").tensor_names() == ("fc.bias", "fc.weight", "head.weight")
    code, found = call(capsys, "trace", "leak", "--report", "leak.html")
    assert (code, found["named"], found["report"]) == (0, ["1:acme"], "leak.html")
    page = (tmp_path / "leak.html").read_text()
    assert "was made from the copy of <bdi>acme</bdi>" in page
    assert "no cryptography" in page
    assert call(capsys, "trace", "leak", "--report", "leak.html")[0] == 2
    assert run(["trace", "leak", "--report", "leak.html", "--force"]) == 0
    assert "leak.html written" in capsys.readouterr().out
    code, found = call(capsys, "trace", "release.safetensors")
    assert (code, found["named"], found["outcome"]) == (3, [], "inconclusive")
    assert call(capsys, "license", "renew", "2", "--days", "9", "-o", "bolt2.license")[0] == 0
    assert call(capsys, "license", "revoke", "1", "--reason", "leaked")[0] == 0
    assert run(["ledger", "log"]) == 0
    told = [row.split()[-3:] for row in capsys.readouterr().out.splitlines()[-2:]]
    assert told == [["license-issued/1", "license", "2"], ["license-revoked/1", "license", "1"]]
    code, found = call(capsys, "license", "list")
    assert [row["state"] for row in found["licenses"]] == ["revoked: leaked", "valid"]
    more = ["--serial-file", "acme.serial", "--check"]
    assert unlock(capsys, shop, "acme", *more)[0] == 0
    code, found = unlock(capsys, shop, "acme", *more, "--ledger", "vault/ledger.sqlite")
    assert (code, found["error"]["code"]) == (5, "E406")
    code, found = call(capsys, "license", "renew", "1", "-o", "again.license")
    assert code == 2


def test_wrong_numbers_and_licenses_are_refused_and_nothing_is_written(shop, capsys, tmp_path):
    for customer in ("acme", "bolt"):
        issue(capsys, customer)
    (tmp_path / "typo").write_text("00000-00000-00000-00000-00000-00000")
    for wrong in (
        ("--serial-file", "bolt.serial", "-o", "out"),
        ("--serial-file", "typo", "-o", "out"),
        ("--serial-file", "acme.serial", "-o", "out", "--feature", "train"),
    ):
        code, found = unlock(capsys, shop, "acme", *wrong)
        assert (code, found["error"]["code"]) == (5, "E406")
    text = (tmp_path / "acme.license").read_text().replace('"acme"', '"acne"')
    (tmp_path / "acme.license").write_text(text)
    code, found = unlock(capsys, shop, "acme", "--serial-file", "acme.serial", "-o", "out")
    assert (code, found["error"]["code"]) == (4, "E304")
    assert not (tmp_path / "out").exists()
    assert unlock(capsys, "00" * 32, "bolt", "--serial-file", "bolt.serial", "--check")[0] == 4
    assert unlock(capsys, "xyz", "bolt", "--serial-file", "bolt.serial", "--check")[0] == 2
    assert unlock(capsys, shop, "bolt", "--serial-file", "bolt.serial")[0] == 2
    assert unlock(capsys, shop, "bolt", "--check")[0] == 2


def test_a_copy_that_is_not_opened_says_which_and_what_to_do(shop, capsys, tmp_path):
    for customer in ("acme", "bolt"):
        issue(capsys, customer)
    code, found = call(capsys, "trace", "acme")
    assert (code, found["error"]["code"]) == (5, "E402")
    assert "'acme' is a locked copy" in found["error"]["message"]
    assert "earmark unlock acme" in found["error"]["message"]
    code, found = call(
        capsys, "unlock", "bolt", "--license", "acme.license", "--issuer", shop,
        "--serial-file", "acme.serial", "--check",
    )  # fmt: skip
    assert (code, found["error"]["code"]) == (5, "E406")
    for word in ("'bolt'", "'acme.license'", "#2 of 'bolt'", "#1 of 'acme'"):
        assert word in found["error"]["message"]
    whole = (tmp_path / "bolt").read_bytes()
    for data, told in (
        (whole[:40], "cut within its header. Fetch"),
        (whole[:-9], "Check the number first; then fetch the file anew"),
        ((tmp_path / "release.safetensors").read_bytes(), "need no unlocking"),
    ):
        (tmp_path / "bolt").write_bytes(data)
        code, found = unlock(capsys, shop, "bolt", "--serial-file", "bolt.serial", "--check")
        assert code == 5
        assert "'bolt' was not opened" in found["error"]["message"]
        assert told in found["error"]["message"]


def test_a_license_is_revoked_once(shop, capsys):
    issue(capsys, "acme")
    call(capsys, "license", "revoke", "1", "--reason", "leaked")
    assert run(["license", "revoke", "1", "--reason", "unpaid"]) == 0
    assert "#1 already, since 2" in (out := capsys.readouterr().out)
    assert "leaked" in out
    assert run(["ledger", "log"]) == 0
    assert capsys.readouterr().out.count("license-revoked/1") == 1


def test_a_license_whose_file_is_gone_is_revoked_all_the_same(shop, capsys, tmp_path):
    issue(capsys, "acme")
    (tmp_path / "vault" / "licenses" / "000001.license").unlink()
    assert call(capsys, "license", "renew", "1", "-o", "again.license")[0] == 2
    code, found = call(capsys, "license", "revoke", "1", "--reason", "leaked")
    assert (code, found["revoked"]) == (0, 1)
    assert call(capsys, "license", "revoke", "2", "--reason", "leaked")[0] == 2


def test_a_ledger_that_has_not_heard_of_a_license_says_nothing_about_it(shop, capsys, tmp_path):
    issue(capsys, "acme")
    shutil.copytree(tmp_path / "vault", tmp_path / "old")
    Vault.create("other", name="Other", passphrase="a passphrase").close()
    assert call(capsys, "license", "renew", "1", "-o", "acme2.license")[0] == 0
    (tmp_path / "acme2").write_bytes((tmp_path / "acme").read_bytes())
    more = ["--serial-file", "acme.serial", "--check", "--ledger"]
    assert unlock(capsys, shop, "acme2", *more, "vault/ledger.sqlite")[0] == 0
    assert unlock(capsys, shop, "acme", *more, "old/ledger.sqlite")[0] == 0
    for name in ("old", "other"):
        code, found = unlock(capsys, shop, "acme2", *more, f"{name}/ledger.sqlite")
        assert (code, found["error"]["code"]) == (5, "E406")
        assert "does not hold this license" in found["error"]["message"]


def test_a_number_is_never_used_again(shop, capsys, tmp_path):
    issue(capsys, "acme")
    call(capsys, "license", "revoke", "1", "--reason", "leaked")
    (tmp_path / "vault" / "licenses" / "000001.license").unlink()
    assert issue(capsys, "bolt")[1]["license"]["serial"] == 2
    assert [row["state"] for row in call(capsys, "license", "list")[1]["licenses"]] == ["valid"]


def test_nothing_is_issued_where_an_output_is_in_the_way(shop, capsys, tmp_path):
    (tmp_path / "acme.license").write_text("somebody's")
    assert issue(capsys, "acme")[0] == 2
    assert not (tmp_path / "acme").exists()
    assert call(capsys, "license", "list")[1]["licenses"] == []


def test_the_number_may_come_from_the_environment(shop, capsys, tmp_path, monkeypatch):
    issue(capsys, "acme")
    monkeypatch.setenv("EARMARK_SERIAL", (tmp_path / "acme.serial").read_text())
    assert unlock(capsys, shop, "acme", "--check")[0] == 0


def test_an_edited_license_in_the_vault_stops_everything(shop, capsys, tmp_path):
    issue(capsys, "acme")
    path = tmp_path / "vault" / "licenses" / "000001.license"
    path.write_text(path.read_text().replace('"acme"', '"acne"'))
    assert call(capsys, "license", "list")[0] == 4
    assert call(capsys, "trace", "release.safetensors")[0] == 4


def test_an_empty_vault_names_nobody(shop, capsys):
    assert call(capsys, "trace", "release.safetensors")[0] == 2
    assert call(capsys, "license", "list")[1]["licenses"] == []
    assert call(capsys, "license", "revoke", "1", "--reason", "x")[0] == 2
    code, _ = call(
        capsys,
        "license",
        "issue",
        "release.safetensors",
        "--customer",
        "acme",
        "-o",
        "acme",
        "--no-fingerprint",
    )
    assert code == 0
    assert call(capsys, "trace", "release.safetensors")[0] == 2


TASK = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(256, 256)
        self.head = nn.Linear(256, 10, bias=False)

    def forward(self, x):
        return self.head(self.fc(x).relu())


def model():
    return Net()


def loss(model, batch):
    return model(batch).sum()


def batches(split):
    return []


def evaluate(model):
    return 0.0
"""


def test_reordered_neurons_are_undone_with_the_parent(shop, capsys, tmp_path):
    issue(capsys, "acme")
    unlock(capsys, shop, "acme", "--serial-file", "acme.serial", "-o", "leak")
    order = np.random.default_rng(1).permutation(256)
    found = {name: FilesHost("leak").tensor(name) for name in FilesHost("leak").tensor_names()}
    found["fc.weight"], found["fc.bias"] = found["fc.weight"][order], found["fc.bias"][order]
    found["head.weight"] = found["head.weight"][:, order]
    write_tensors(tmp_path / "moved.safetensors", found)
    (tmp_path / "task.py").write_text(TASK)
    assert call(capsys, "trace", "moved.safetensors")[0] == 3
    parent = ["--parent", "release.safetensors"]
    assert call(capsys, "trace", "moved.safetensors", *parent)[0] == 2
    code, found = call(capsys, "trace", "moved.safetensors", *parent, "--task", "task.py")
    assert (code, found["named"]) == (0, ["1:acme"])


def test_nobody_is_named_by_aligning_a_stranger_to_his_copy(shop, capsys, tmp_path):
    wide = TASK.replace("Linear(256, 256)", "Linear(32, 1024)").replace("256", "1024")
    (tmp_path / "task.py").write_text(wide)

    def network(seed, name):
        rng = np.random.default_rng(seed)
        shapes = {"fc.weight": (1024, 32), "fc.bias": (1024,), "head.weight": (10, 1024)}
        made = {item: rng.normal(size=size).astype(np.float32) for item, size in shapes.items()}
        write_tensors(tmp_path / name, made)

    network(0, "wide.safetensors")
    network(1, "stranger.safetensors")
    code, _ = call(
        capsys, "license", "issue", "wide.safetensors", "--customer", "acme", "-o", "acme"
    )
    assert code == 0
    unlock(capsys, shop, "acme", "--serial-file", "acme.serial", "-o", "copy.safetensors")
    task = ["--task", "task.py", "--parent"]
    code, found = call(capsys, "trace", "stranger.safetensors", *task, "wide.safetensors")
    assert (code, found["named"]) == (3, [])
    code, found = call(capsys, "trace", "stranger.safetensors", *task, "copy.safetensors")
    assert (code, found["error"]["code"]) == (2, "E101")
    assert "1:acme" in found["error"]["message"]


def test_copies_of_two_networks_are_traced_each_by_its_own_key(shop, capsys, tmp_path):
    rng = np.random.default_rng(5)
    shapes = {"body.weight": (512, 128), "head.weight": (10, 512)}
    wide = {name: rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}
    write_tensors(tmp_path / "wide.safetensors", wide)
    assert issue(capsys, "acme")[0] == 0
    for customer in ("bolt", "cato"):
        words = ["wide.safetensors", "--customer", customer, "-o", customer]
        code, found = call(capsys, "license", "issue", *words)
        assert code == 0, found["error"]
    assert issue(capsys, "dodo")[0] == 0
    vault = Vault.open("vault")
    assert [item.opening.layout.scheme for item in vault.registrations()] == ["tracing"] * 2
    vault.close()
    for number, customer in enumerate(("acme", "bolt", "cato", "dodo"), 1):
        unlock(capsys, shop, customer, "--serial-file", f"{customer}.serial", "-o", f"{customer}.x")
        code, found = call(capsys, "trace", f"{customer}.x")
        assert (code, found["named"]) == (0, [f"{number}:{customer}"])
        assert len(found["ranking"]) == 2
    code, found = call(capsys, "trace", "wide.safetensors")
    assert (code, found["named"]) == (3, [])
    write_tensors(tmp_path / "other.safetensors", {"odd.weight": np.zeros((8, 8), np.float32)})
    assert call(capsys, "trace", "other.safetensors")[0] == 3
    more = ["--parent", "other.safetensors", "--task", "task.py"]
    code, found = call(capsys, "trace", "acme.x", *more)
    assert (code, "is no network" in found["error"]["message"]) == (2, True)
