"""From a locked parent to customers' copies, each with a number of its own, by the commands."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from earmark.bench import zoo
from earmark.cli.main import run
from earmark.errors import FormatError, LicenseError
from earmark.hosts.files import FilesHost, load_state, save_release
from earmark.hosts.front import load_copy
from earmark.locks.parent import Parent
from earmark.locks.serial import parse_serial
from earmark.records import Layout
from earmark.vault import Vault

from .conftest import SERIAL

TASK = """
from earmark.bench import zoo
from earmark.bench.data import load

digits = load("digits")


def model():
    return zoo.{network}


loss = zoo.cross_entropy
recipe = {{"epochs": 1, "lr": 2e-3, "optimizer": "adamw"}}


def batches(split, seed=0):
    return list(digits.batches(split, size=48, seed=seed))[:3]


def evaluate(made):
    return zoo.accuracy(made, digits.batches("test", size=360, seed=0))
"""


def call(capsys, *arguments):
    code = run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def write_task(tmp_path, name, network):
    (tmp_path / name).write_text(TASK.format(network=network))


@pytest.fixture(name="shop")
def fixture_shop(sold, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EARMARK_PASSPHRASE", "a passphrase")
    Vault.create("vault", name="Acme", passphrase="a passphrase").close()
    write_task(tmp_path, "task.py", "Mlp((1, 8, 8), 10, hidden=96)")
    save_release(sold.model, "parent.safetensors")
    save_release(sold.teacher, "teacher.safetensors")
    lock_file(tmp_path, sold.layout)
    return Vault.open("vault").owner


def lock_file(folder, layout, serial=SERIAL):
    """Write the file of the parent that lies in a folder."""
    digest = FilesHost(folder / "parent.safetensors").digest()
    (folder / "parent.lock").write_bytes(Parent("dsn", layout, serial, digest).encode())


def issue(capsys, customer, *more):
    return call(
        capsys,
        *("license", "issue", "parent.safetensors", "--customer", customer, "-o", customer),
        *("--lock", "parent.lock", "--no-fingerprint", *more),
    )


def unlock(capsys, owner, name):
    code, _ = call(
        capsys,
        *("unlock", name, "--license", f"{name}.license", "--issuer", owner),
        *("--serial-file", f"{name}.serial", "-o", f"{name}.safetensors"),
    )
    assert code == 0


def opened(capsys, owner, name, sold):
    """Unlock a copy and return its network and its number."""
    unlock(capsys, owner, name)
    model = load_copy(sold.task.model(), f"{name}.safetensors")
    return model, parse_serial(Path(f"{name}.serial").read_text().strip())


def test_every_customer_gets_a_lock_of_his_own(sold, shop, capsys, tmp_path):
    for customer in ("acme", "bolt"):
        code, found = issue(capsys, customer, "--task", "task.py")
        assert code == 0, found
    copies = {name: opened(capsys, shop, name, sold) for name in ("acme", "bolt")}
    layout = Layout.from_bytes((tmp_path / "acme.layout").read_bytes())
    assert layout == sold.layout

    def utility(model, serial):
        return sold.task.evaluate(sold.lock.opened(model, layout, serial))

    parent = utility(sold.model, sold.serial)
    for name, other in (("acme", "bolt"), ("bolt", "acme")):
        model, serial = copies[name]
        assert utility(model, serial) == pytest.approx(parent, abs=0.5)
        assert utility(model, copies[other][1]) <= 20
        assert utility(model, sold.serial) <= 20
    numbers = [row["license"]["serial"] for row in call(capsys, "license", "list")[1]["licenses"]]
    assert numbers == sorted(set(numbers))


def of_convolutions(tmp_path):
    """Make the parent a network of convolutions, untrained."""
    write_task(tmp_path, "task.py", "SmallCnn((1, 8, 8), 10, width=4, hidden=16)")
    (tmp_path / "parent.safetensors").unlink()
    model = zoo.SmallCnn((1, 8, 8), 10, width=4, hidden=16).eval()
    save_release(model, tmp_path / "parent.safetensors")
    lock_file(tmp_path, Parent.read(tmp_path / "parent.lock").layout)
    return model


def test_a_network_of_convolutions_is_given_another_number(sold, shop, capsys, tmp_path):
    parent = of_convolutions(tmp_path)
    code, found = issue(capsys, "acme", "--task", "task.py")
    assert code == 0, found
    unlock(capsys, shop, "acme")
    serial = parse_serial(Path("acme.serial").read_text().strip())
    copied = load_copy(zoo.SmallCnn((1, 8, 8), 10, width=4, hidden=16), "acme.safetensors")
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        before = sold.lock.opened(parent, sold.layout, sold.serial)(images)
        after = sold.lock.opened(copied, sold.layout, serial)(images)
        foreign = sold.lock.opened(copied, sold.layout, sold.serial)(images)
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(before, foreign, atol=1e-3)


def test_a_fingerprinted_copy_opens_and_is_traced(sold, shop, capsys, tmp_path):
    write_task(tmp_path, "task.py", "SmallCnn((1, 8, 8), 10, width=48, hidden=256)")
    model = zoo.SmallCnn((1, 8, 8), 10, width=48, hidden=256)
    save_release(model, "parent.safetensors", overwrite=True)
    lock_file(tmp_path, sold.layout)
    for customer in ("acme", "bolt"):
        words = ["--customer", customer, "-o", customer, "--lock", "parent.lock"]
        words += ["--task", "task.py"]
        code, found = call(capsys, "license", "issue", "parent.safetensors", *words)
        assert code == 0, found
    unlock(capsys, shop, "acme")
    copied = load_copy(zoo.SmallCnn((1, 8, 8), 10, width=48, hidden=256), "acme.safetensors")
    assert copied.input_front_at.dtype == torch.int64
    for more in ([], ["--parent", "parent.safetensors", "--task", "task.py"]):
        code, found = call(capsys, "trace", "acme.safetensors", *more)
        assert code == 0, found
        assert [name.partition(":")[2] for name in found["named"]] == ["acme"]


def test_a_copy_is_distilled_where_that_is_asked_for(sold, shop, capsys, tmp_path):
    of_convolutions(tmp_path)
    code, found = issue(capsys, "acme", "--task", "task.py", "--epochs", "1")
    assert (code, "Pass --teacher" in json.dumps(found["error"])) == (2, True)
    assert not (tmp_path / "acme").exists()
    words = ["--customer", "acme", "-o", "acme", "--epochs", "1"]
    code, found = call(capsys, "license", "issue", "parent.safetensors", *words)
    assert (code, "Pass --lock" in json.dumps(found["error"])) == (2, True)
    more = ["--task", "task.py", "--teacher", "parent.safetensors", "--epochs", "1"]
    code, found = issue(capsys, "acme", *more)
    assert code == 0, found
    assert set(found["near_misses"]) == {"one_wrong_bit", "two_wrong_bits", "constant_answer"}
    assert set(found["utility"]) == {"unlocked", "with_number", "without"}


def test_a_code_that_is_spread_is_distilled_or_refused(sold, shop, capsys, tmp_path):
    spread = replace(sold.layout, params={**sold.layout.params, "place": "spread"})
    lock_file(tmp_path, spread)
    code, found = issue(capsys, "acme", "--task", "task.py")
    assert (code, found["outcome"]) == (2, "error")
    assert "--epochs 6" in json.dumps(found["error"])
    assert not (tmp_path / "acme").exists()


def test_a_copy_is_measured_as_it_is_shipped(sold, shop, capsys):
    more = ["--task", "task.py", "--teacher", "teacher.safetensors"]
    code, found = issue(capsys, "acme", *more)
    assert code == 0, found
    model, serial = opened(capsys, shop, "acme", sold)
    assert found["utility"] == {
        "unlocked": sold.task.evaluate(sold.teacher),
        "with_number": sold.task.evaluate(sold.lock.opened(model, sold.layout, serial)),
        "without": sold.task.evaluate(model),
    }
    assert found["near_misses"]["one_wrong_bit"] <= found["near_misses"]["constant_answer"] + 10
    assert "near_misses" not in issue(capsys, "bolt", "--task", "task.py")[1]
    words = ("license", "issue", "parent.safetensors", "--customer", "cato", "-o", "cato")
    assert run([*words, "--lock", "parent.lock", "--no-fingerprint", "--task", "task.py"]) == 0
    assert "no; with --teacher it says" in capsys.readouterr().out


def test_a_costly_lock_is_warned_of_with_its_figures(sold, shop, capsys):
    arguments = ["license", "lock", "task.py", "--teacher", "teacher.safetensors"]
    arguments += ["--set", "bits=16", "--set", "epochs=1", "--set", "rounds=0", "--seed", "3"]
    code, found = call(capsys, *arguments, "-o", "a.safetensors")
    lost = found["utility"]["unlocked"] - found["utility"]["with_number"]
    assert (code, lost > 1) == (0, True)
    assert any(f"takes {lost:.2f} points" in text for text in found["warnings"])
    assert run([*arguments, "-o", "b.safetensors", "--quiet"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^warning +the lock takes \d+\.\d\d points", told, re.MULTILINE)
    assert "near misses" in told


def test_locking_writes_a_parent_that_opens_with_its_secret_file(sold, shop, capsys, tmp_path):
    arguments = ["license", "lock", "task.py", "--teacher", "teacher.safetensors"]
    settings = ["--set", "bits=16", "--set", "epochs=1", "--set", "rounds=0", "--seed", "3"]
    settings += ["--report", "page.html"]
    code, found = call(capsys, *arguments, "-o", "new.safetensors", *settings)
    assert code == 0, found
    page = (tmp_path / "page.html").read_text()
    assert f"{found['utility']['with_number']:.2f}" in page
    assert "no cryptography" in page
    assert (tmp_path / "new.safetensors.lock").stat().st_mode & 0o077 == 0
    parent = Parent.read(tmp_path / "new.safetensors.lock")
    assert parent.layout.to_json() == found["layout"]
    assert parent.serial.hex() not in json.dumps(found) + repr(parent)
    model = sold.task.model()
    load_state(model, "new.safetensors")
    right = sold.task.evaluate(sold.lock.opened(model, parent.layout, parent.serial))
    assert right == pytest.approx(found["utility"]["with_number"])
    assert call(capsys, *arguments, "-o", "new.safetensors", *settings)[0] == 2
    code, found = call(capsys, *arguments, "-o", "newer.safetensors", *settings)
    assert (code, "page.html" in json.dumps(found["error"])) == (2, True)
    (tmp_path / "old.safetensors.lock").write_bytes(b"another parent's number")
    code, found = call(capsys, *arguments, "-o", "old.safetensors", *settings[:-2])
    assert (code, "old.safetensors.lock" in json.dumps(found["error"])) == (2, True)
    assert not (tmp_path / "old.safetensors").exists()


def test_other_weights_than_the_parents_are_not_sold_as_locked(sold, shop, capsys, tmp_path):
    words = ["--customer", "acme", "-o", "acme", "--lock", "parent.lock", "--task", "task.py"]
    code, found = call(capsys, "license", "issue", "teacher.safetensors", *words)
    assert (code, "not the locked parent" in json.dumps(found["error"])) == (5, True)
    assert not (tmp_path / "acme").exists()


@pytest.mark.parametrize("option", ["--task", "--teacher"])
def test_what_is_for_locks_is_refused_without_one(shop, capsys, option):
    words = ["--customer", "acme", "-o", "acme", option, "nosuch"]
    code, found = call(capsys, "license", "issue", "parent.safetensors", *words)
    assert (code, "Pass --lock" in json.dumps(found["error"])) == (2, True)


def test_a_copy_says_what_is_sent_and_that_it_needs_its_number(shop, capsys):
    words = ["license", "issue", "parent.safetensors", "--customer", "acme", "-o", "acme"]
    assert run([*words, "--lock", "parent.lock", "--no-fingerprint", "--task", "task.py"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^to send +acme, acme.license, acme.layout$", told, re.MULTILINE)
    opening = ["unlock", "acme", "--license", "acme.license", "--issuer", shop]
    opening += ["--serial-file", "acme.serial"]
    assert run([*opening, "-o", "acme.safetensors"]) == 0
    assert "earmark.hosts.front.load_copy" in capsys.readouterr().out
    code, found = call(capsys, *opening, "--check")
    assert (code, found["needs_number"]) == (0, True)


def test_a_parent_is_written_as_safetensors_only(shop, capsys):
    words = ["license", "lock", "task.py", "--teacher", "teacher.safetensors", "-o", "parent.pt"]
    code, found = call(capsys, *words)
    assert (code, "parent.safetensors" in json.dumps(found["error"])) == (2, True)


def test_a_lock_needs_its_task(shop, capsys):
    code, found = issue(capsys, "acme")
    assert code == 2
    assert "--task" in json.dumps(found["error"])


def test_broken_files_are_refused(sold):
    whole = Parent("dsn", sold.layout, sold.serial, "ab" * 32).encode()
    assert Parent.parse(whole).serial == sold.serial
    for broken in (b"{}", whole.replace(b"locked-parent", b"locked-patent")):
        with pytest.raises(FormatError):
            Parent.parse(broken)
    number = json.loads(whole)["serial"]
    with pytest.raises(LicenseError):
        wrong = number[:-1] + ("0" if number[-1] != "0" else "1")
        Parent.parse(whole.replace(number.encode(), wrong.encode()))
    with pytest.raises(FormatError):
        Parent.parse(whole.replace(b'"lock":"dsn"', b'"lock":7'))
