"""Protect, verify, attack, register, report, ledger: the main job on the smallest real data."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

from earmark import files
from earmark.attacks.base import Budget
from earmark.attacks.obfuscate import Permute
from earmark.bench import zoo
from earmark.cli import protect
from earmark.hosts.files import save_release
from earmark.hosts.suspects import load_suspect
from earmark.keys.secret import Key
from earmark.protocol import community
from earmark.protocol.messages import Member
from earmark.protocol.rules import Rules
from earmark.registry import scheme
from earmark.task import load_task
from earmark.training import train
from earmark.vault import Vault


def _verify(desk, suspect, *more: str) -> list[str]:
    return ["verify", str(suspect), "--task", desk.task, "--vault", desk.vault, *more]


@pytest.fixture(scope="session")
def innocent(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("innocent") / "innocent.safetensors"
    torch.manual_seed(9)
    save_release(zoo.SmallCnn((1, 8, 8), 10), path)
    return path


def test_the_release_is_shown(desk, earmark, earmark_json) -> None:
    code, document = earmark_json(*_verify(desk, desk.release))
    assert code == 0
    assert document["outcome"] == "shown"
    assert document["verdict"]["bits"] >= 128
    code, out, _ = earmark(*_verify(desk, desk.release))
    assert out.startswith("MARK SHOWN")
    assert "1 in" in out


@pytest.mark.parametrize(
    "more", [["--set", "triggers=512"], ["--scheme", "deepwater"], ["--scheme", "deepsigns"]]
)
def test_the_self_check_reads_as_verify_does(more, desk, earmark_json, tmp_path) -> None:
    vault, out = tmp_path / "vault", tmp_path / "r.safetensors"
    shutil.copytree(desk.vault, vault)  # a second key, which is charged
    code, said = earmark_json(
        "protect", desk.task, "-o", out, "--vault", vault, "--epochs", "2", "--seed", "2", *more
    )
    found = earmark_json("verify", out, "--task", desk.task, "--vault", vault, "--key", said["key"])
    assert code == found[0]
    assert said["evidence"]["nonce"] == found[1]["evidence"]["nonce"]
    assert said["verdict"]["bits"] == found[1]["verdict"]["bits"]
    assert said["evidence"]["tried"] == found[1]["evidence"]["tried"]


def test_an_interrupted_training_goes_on_with_its_key(desk, earmark, tmp_path, monkeypatch) -> None:
    from earmark import training

    out, checkpoint, vault = (tmp_path / name for name in ("r.safetensors", "state", "vault"))
    command = [
        "protect", desk.task, "-o", out, "--vault", vault, "--owner", "Test", "--epochs", "3",
        "--seed", "5", "--set", "triggers=128", "--checkpoint", checkpoint,
    ]  # fmt: skip
    run_epoch = training._Loop.epoch

    def interrupted(loop: object, epoch: int, *rest: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        run_epoch(loop, epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "epoch", interrupted)
        code, _, err = earmark(*command)
    assert code == 130, err
    assert checkpoint.exists()
    assert not out.exists()
    name = err.split("key ")[1].split(":")[0]
    again = f"go on with it:  {shlex.join(['earmark', *map(str, command)])} --key {name} --seed 5"
    assert again in err
    code, _, err = earmark(*command)
    assert code == 2
    assert "--key" in err
    del command[command.index("--set") : command.index("--set") + 2]
    code, _, err = earmark(*command, "--key", name, "--scheme", "deepwater")
    assert code == 2
    assert "made for scheme 'mtlsign'" in err
    code, shown, err = earmark(*command, "--key", name)
    assert code == 3, err  # so few triggers cannot reach 64 bits
    assert name in shown
    assert not checkpoint.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.safetensors", "vault"]
    assert len(list((vault / "keys").glob("*.json"))) == 1


def test_the_log_lists_every_kind_of_entry(desk, earmark, tmp_path) -> None:
    copied = tmp_path / "vault"
    shutil.copytree(desk.vault, copied)
    database = Vault.open(copied)
    database.ledger.append(b'{"schema":"no-slash"}')
    database.ledger.append(b'{"payloadType":"application/x"}')
    database.ledger.append(b"[1,2]")
    database.close()
    code, out, err = earmark("ledger", "log", "--vault", copied)
    assert code == 0, err
    assert "no-slash" in out


def test_a_mark_that_is_too_weak_is_not_called_done(desk, earmark, tmp_path) -> None:
    code, out, err = earmark(
        "protect", desk.task, "-o", tmp_path / "r.safetensors", "--vault", tmp_path / "vault",
        "--owner", "Test", "--epochs", "1", "--set", "triggers=4096", "--set", "weight=0.000001",
    )  # fmt: skip
    assert code == 1
    assert "DO NOT RELEASE" in out
    assert "raise share and weight" in out
    assert "the task has 1,408 training samples" in err.lower()
    assert "--set triggers=512 --set share=0.25" in err


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("def model():\n    return 3", "no torch module"),
        ("def loss(network, batch):\n    return network(batch[0])", "no scalar tensor"),
        (
            "def loss(network, batch):\n    return 0 * work.loss(network, batch).detach()",
            "gradient",
        ),
        ("def loss(network, batch):\n    return batch['x']", "loss() of task 'own' failed"),
        ("def evaluate(network):\n    return 1 / 0", "evaluate() of task 'own' failed"),
        ("def evaluate(network):\n    return None", "evaluate() of task 'own' failed"),
        ("def batches(split):\n    return []", "no training batches"),
        ("def batches(split):\n    return 1 / 0", "batches() of task 'own' failed"),
    ],
)
def test_a_task_that_breaks_its_contract_is_no_bug_of_ours(part, said, desk, earmark, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(f"{Path(desk.task).read_text()}\n\n{part}\n")
    code, _, err = earmark(
        "protect", path, "-o", tmp_path / "r.safetensors", "--vault", tmp_path / "vault",
        "--owner", "Test", "--epochs", "1",
    )  # fmt: skip
    assert code == 2
    assert "E120" in err
    assert said in err
    assert [item.name for item in tmp_path.iterdir() if item != path] == []


def silent_community(folder):
    """Return the file of a community whose only node does not run."""
    card = community.init_node(folder, operator="lab", url="http://127.0.0.1:9")
    rules = Rules("example.org/silent", (Member("lab", card.member),), draw_seconds=60)
    made = community.found(folder, [card], rules)
    community.join(folder, made)
    return folder / community.COMMUNITY


def test_what_would_fail_later_leaves_no_key_behind(desk, earmark, tmp_path) -> None:
    lacking, strange = tmp_path / "nan.safetensors", tmp_path / "mlp.safetensors"
    network = load_task(desk.task).model()
    next(network.parameters()).data.view(-1)[0] = float("nan")
    save_release(network, lacking)
    save_release(zoo.Mlp((1, 8, 8), 10), strange)
    odd, scores = tmp_path / "odd.py", tmp_path / "scores.py"
    odd.write_text(Path(desk.task).read_text() + "\nrecipe = {'epochs': 1, 'lrr': 1}\n")
    scores.write_text(
        Path(desk.task).read_text()
        + "\ndef forward(network, batch): return network(batch[0])[..., None]\n"
    )
    dead = silent_community(tmp_path / "node")
    before = sorted(tmp_path.iterdir())
    for task, more, said in (
        (odd, [], "lrr"),
        (desk.task, ["--epochs", "1", "--from", lacking], "not finite"),
        (desk.task, ["--epochs", "1", "--distill", lacking], "not finite"),
        (desk.task, ["--from", strange], "does not fit the model"),
        (scores, ["--distill", desk.release], "(samples, classes)"),
        (desk.task, ["--community", tmp_path / "none.json"], "none.json"),
        (desk.task, ["--community", dead], f"go on with:  earmark protect {desk.task} -o "),
        (desk.task, ["--checkpoint", tmp_path / "no" / "state"], "no/state"),
    ):
        code, _, err = earmark(
            "protect", task, "-o", tmp_path / "r.safetensors", "--vault", tmp_path / "vault",
            "--owner", "Test", *more,
        )  # fmt: skip
        assert code in (2, 5), err
        assert said in err
        assert sorted(tmp_path.iterdir()) == before


def test_a_finished_network_is_marked_nearby(desk, earmark, tmp_path) -> None:
    task, start, out = (
        load_task(desk.task),
        tmp_path / "plain.safetensors",
        tmp_path / "r.safetensors",
    )
    save_release(train(task, seed=3).model, start)
    command = ["protect", desk.task, "-o", out, "--vault", tmp_path / "vault", "--owner", "Test"]
    for more, said in (
        (["--conceal", "0.1"], "nothing to stay near"),
        (["--conceal", "0.1", "--from", start, "--distill", start], "--distill with --conceal"),
        (["--conceal", "0.1", "--from", start, "--scheme", "deepwater"], "cannot be concealed"),
        (["--conceal", "0.1", "--from", start, "--settled"], "is not settled"),
        (["--settled"], "--settled without --conceal"),
        (["--conceal", "0.1", "--from", start, "--settled", "--set", "settle=0"], "settle 0"),
    ):
        code, _, err = earmark(*command, *more)
        assert code == 2, err
        assert said in err
        assert not (tmp_path / "vault").exists()
    # twelve epochs left 55 bits once, of the 64 that releasing asks
    more = ("--from", start, "--conceal", "0.15", "--epochs", "24")
    code, said, err = earmark(*command, *more)
    assert code == 0, said
    assert "concealing takes 24 epochs; --epochs sets another number" in err
    was, found = (load_suspect(task.model(), path).state_dict() for path in (start, out))
    for name, value in found.items():
        if value.ndim > 1:
            assert 0 < (value - was[name]).norm() < 0.16 * was[name].norm(), name
        else:
            assert torch.equal(value, was[name]), name


def test_a_mark_is_concealed_among_settled_samples(desk, earmark, earmark_json, tmp_path) -> None:
    start, out = tmp_path / "settled.safetensors", tmp_path / "r.safetensors"
    code, document = earmark_json("settle", desk.task, "-o", str(start), "--seed", "3")
    assert code == 0
    assert 0 < document["apart"] < 0.2
    assert document["utility"] > 90
    code, _, err = earmark(
        "settle", desk.task, "-o", tmp_path / "x.safetensors", "--set", "settle=0"
    )
    assert code == 2
    assert "weight 0" in err
    code, _, err = earmark("settle", desk.task, "-o", start)
    assert code == 2
    assert "settled.safetensors" in err
    code, said, err = earmark(
        "protect", desk.task, "-o", out, "--vault", tmp_path / "vault", "--owner", "Test",
        "--from", start, "--conceal", "0.3", "--settled", "--set", "triggers=256",
        "--epochs", "24",
    )  # fmt: skip
    assert code == 0, said + err


def test_settings_that_were_given_are_not_advised_again(desk) -> None:
    task = load_task(desk.task)
    assert protect.fresh_key(task, scheme("mtlsign", triggers=512))[1] == ""
    assert "--set triggers=512" in protect.fresh_key(task, scheme("mtlsign", triggers=1024))[1]


def test_an_innocent_model_is_not(desk, innocent, earmark) -> None:
    code, out, _ = earmark(*_verify(desk, innocent))
    assert code == 1
    assert out.startswith("MARK NOT SHOWN")


def test_the_release_is_plain_safetensors(desk) -> None:
    from safetensors.torch import load_file

    state = load_file(desk.release)
    assert set(state) == set(zoo.SmallCnn((1, 8, 8), 10).state_dict())


def test_attack_then_verify(desk, earmark, earmark_json, tmp_path) -> None:
    out = tmp_path / "pruned.safetensors"
    code, document = earmark_json(
        "attack", desk.release, "--task", desk.task, "--attack", "prune", "--set", "share=0.5",
        "-o", str(out), "--vault", desk.vault,
    )  # fmt: skip
    assert code == 0
    assert document["utility"] <= document["utility_before"] + 1
    assert earmark(*_verify(desk, out))[0] == 0
    code, _, err = earmark(
        "attack", desk.release, "--task", desk.task, "--attack", "prun", "-o", str(out),
        "--vault", desk.vault,
    )  # fmt: skip
    assert code == 2
    assert "Did you mean prune" in err


def test_register_and_ledger(desk, earmark, earmark_json, tmp_path) -> None:
    copied = tmp_path / "vault"
    shutil.copytree(desk.vault, copied)
    head = tmp_path / "head.txt"
    head.write_text(earmark("ledger", "head", "--vault", copied)[1])
    code, document = earmark_json("register", desk.task, "--vault", copied)
    assert code == 0
    assert document["index"] == 2
    assert earmark("ledger", "check", "--vault", copied, "--against", head)[0] == 0
    code, document = earmark_json("ledger", "log", "--vault", copied)
    assert [entry["schema"] for entry in document["entries"]] == [
        "earmark/commitment/1", "earmark/release/1", "earmark/release/1",
    ]  # fmt: skip
    assert document["entries"][1]["files"].keys() == {"release.safetensors"}
    assert earmark("ledger", "show", "0", "--vault", copied)[0] == 0
    newer = tmp_path / "newer.txt"
    newer.write_text(earmark("ledger", "head", "--vault", copied)[1])
    code, _, err = earmark("ledger", "check", "--vault", desk.vault, "--against", newer)
    assert code == 4
    assert "E302" in err


def test_a_tampered_ledger_is_found(desk, earmark, tmp_path) -> None:
    copied = tmp_path / "vault"
    shutil.copytree(desk.vault, copied)
    database = sqlite3.connect(copied / "ledger.sqlite")
    tables = [
        row[0] for row in database.execute("select name from sqlite_master where type='table'")
    ]
    table = next(name for name in tables if "entr" in name)
    column = next(
        row[1] for row in database.execute(f"pragma table_info({table})") if row[2] == "BLOB"
    )
    (raw,) = database.execute(f"select {column} from {table} limit 1 offset 1").fetchone()
    database.execute(
        f"update {table} set {column} = ? where rowid = (select max(rowid) from {table})",
        (raw[:-3] + b"9" + raw[-2:],),
    )
    database.commit()
    database.close()
    code, _, err = earmark("ledger", "check", "--vault", copied)
    assert code == 4
    assert "E302" in err


def test_dossier_is_checked_and_a_changed_one_refused(desk, earmark, tmp_path) -> None:
    copied = tmp_path / "vault"
    shutil.copytree(desk.vault, copied)
    folder = tmp_path / "dossier"
    code, out, _ = earmark(
        "verify", desk.release, "--task", desk.task, "--vault", copied, "--dossier", folder
    )
    assert code == 0
    code, log = earmark("ledger", "head", "--vault", copied)[:2]
    again = earmark(
        "verify", desk.release, "--task", desk.task, "--vault", copied, "--dossier", folder
    )
    assert again[0] == 2
    assert "--force" in again[2]
    assert earmark("ledger", "head", "--vault", copied)[1] == log  # nothing was claimed in vain
    page = tmp_path / "report.html"
    code, out, _ = earmark("report", folder, "-o", page)
    assert code == 0
    assert "Judged again" in out
    assert "<script" not in page.read_text()
    evidence = folder / "records" / "evidence.json"
    body = json.loads(evidence.read_text())
    evidence.write_text(evidence.read_text().replace(f'"hits":{body["hits"]}', '"hits":1'))
    code, _, err = earmark("report", folder)
    assert code == 4
    assert "evidence.json" in err


def test_errors_name_the_matter(desk, earmark, tmp_path, monkeypatch) -> None:
    lying = tmp_path / "lying.safetensors"
    lying.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(Path(desk.release).read_bytes()[:-100])
    pickled = tmp_path / "pickled.pt"
    torch.save({"a": torch.zeros(1)}, pickled)
    other = tmp_path / "other.safetensors"
    save_release(zoo.Mlp((1, 8, 8), 10), other)
    out = str(tmp_path / "x.safetensors")
    cases = [
        (_verify(desk, tmp_path / "missing.safetensors"), 5, "missing.safetensors"),
        (_verify(desk, lying), 5, "lying.safetensors"),
        (_verify(desk, truncated), 5, "truncated.safetensors"),
        (_verify(desk, pickled), 5, "pickled.pt"),
        (_verify(desk, other), 5, "does not fit"),
        (["verify", desk.release, "--vault", desk.vault], 2, "--task"),
        (_verify(desk, desk.release, "--key", "ffff"), 2, "exactly one"),
        (["verify", desk.release, "--vault", str(tmp_path)], 5, "no vault"),
        (["protect", desk.task, "-o", desk.release, "--vault", desk.vault], 2, "--force"),
        (
            ["protect", desk.task, "-o", str(tmp_path / "no" / "x.safetensors"), "--vault", desk.vault],
            5, "no/x.safetensors",
        ),
        (["protect", desk.task, "-o", str(tmp_path / "x.pt"), "--vault", desk.vault], 2, "x.safetensors"),
        (
            ["protect", desk.task, "-o", out, "--vault", str(tmp_path / "new")], 2, "--owner",
        ),
        (
            ["protect", desk.task, "-o", out, "--vault", desk.vault, "--owner", "Else"], 2, "belongs to 'Test'",
        ),
        (["protect", "none.py", "-o", out, "--vault", desk.vault], 5, "none.py"),
        (
            ["protect", desk.task, "-o", out, "--vault", desk.vault,
             "--set", 'taps=["fcc"]'], 2, "Nearest names",
        ),
        (
            ["protect", desk.task, "-o", out, "--vault", desk.vault,
             "--set", "trigers=9"], 2, "Did you mean 'triggers'",
        ),
        (
            ["protect", desk.task, "-o", out, "--vault", desk.vault,
             "--scheme", "mtlsgn"], 2, "Did you mean mtlsign",
        ),
        (["report", str(tmp_path)], 5, f"'{tmp_path}' has no 'manifest.json'"),
        (["report", desk.task], 5, f"'{desk.task}' is no packed dossier"),
        (["ledger", "check", "--vault", desk.vault, "--against", desk.task], 5, f"'{desk.task}' is no head"),
        (
            ["protect", desk.task, "-o", out, "--vault", desk.vault, "--community", desk.task],
            5, f"'{desk.task}' is no community file",
        ),
        (
            ["unlock", desk.release, "--license", desk.task, "--issuer", "ab" * 32, "-o", out],
            5, f"'{desk.task}' is no license",
        ),
    ]  # fmt: skip
    before = sorted(tmp_path.iterdir())
    for arguments, code, words in cases:
        got, printed, err = earmark(*arguments)
        assert (got, words in err) == (code, True), (arguments, got, err)
        assert "Traceback" not in err
        assert not printed
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setenv("EARMARK_PASSPHRASE", "wrong")
    code, _, err = earmark(*_verify(desk, desk.release))
    assert code == 2
    assert "E150" in err
    assert "wrong passphrase" in err
    code, _, err = earmark("protect", "none.py", "-o", out, "--vault", desk.vault)
    assert (code, "wrong passphrase" in err) == (2, True)  # before any work
    code, _, err = earmark("protect", "none.py", "-o", out, "--vault", tmp_path / "new")
    assert (code, "--owner" in err) == (2, True)


def test_a_changed_key_file_is_no_wrong_passphrase(desk, earmark, tmp_path) -> None:
    vault = tmp_path / "vault"
    shutil.copytree(desk.vault, vault)
    (path,) = (vault / "keys").glob("*.key")
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"nonce": "00" * 12}))
    code, _, err = earmark("verify", desk.release, "--task", desk.task, "--vault", vault)
    assert code == 4
    assert f"Key file '{path}' was changed" in err


def test_it_is_said_whether_the_key_or_the_suspect_does_not_fit(
    desk, innocent, earmark, earmark_json, tmp_path
) -> None:
    vault, weights, task = tmp_path / "vault", tmp_path / "mlp.safetensors", tmp_path / "mlp.py"
    shutil.copytree(desk.vault, vault)
    save_release(zoo.Mlp((1, 8, 8), 10), weights)
    task.write_text(Path(desk.task).read_text().replace("small-cnn", "mlp"))
    folder, common = tmp_path / "out", ["--vault", vault]
    code, printed, err = earmark("stamp", weights, "-o", folder, *common, "--set", "margin=8")
    assert code == 0, err
    code, document = earmark_json("keys", *common)
    one, two = document["keys"]
    assert f"verify {folder / weights.name} --key {two['key']}" in printed
    assert (one["scheme"], one["for"]) == ("mtlsign", "release.safetensors")
    assert (two["scheme"], two["for"]) == ("deepwater", "out")
    assert two["released"] == {weights.name: files.file_digest(folder / weights.name)}
    code, printed, _ = earmark("keys", *common)
    assert all(item["key"] in printed for item in (one, two))
    assert one["released"]["release.safetensors"][:12] in printed
    code, _, err = earmark("verify", innocent, "--task", desk.task, *common)
    assert code == 2
    assert f"{two['key']} (deepwater, out, " in err
    verify = ["verify", *common, "--key"]
    code, _, err = earmark(*verify, one["key"], weights, "--task", task)
    assert code == 2
    assert f"Key {one['key']} (mtlsign, release.safetensors, " in err
    assert f"another network than the model() of '{task}': it reads fc" in err
    code, _, err = earmark(*verify, one["key"], weights, "--task", desk.task)
    assert code == 5
    assert f"Suspect '{weights}' does not fit key {one['key']}" in err
    assert f"which fits the model() of '{desk.task}'" in err
    code, _, err = earmark(*verify, two["key"], innocent)
    assert code == 5, "as of any scheme"
    assert err.startswith("E404  ")
    assert f"Suspect '{innocent}' does not fit key {two['key']}" in err
    assert "earmark keys" in err


def test_a_key_of_another_layout_is_refused(desk, earmark, tmp_path) -> None:
    copied = tmp_path / "vault"
    shutil.copytree(desk.vault, copied)
    inputs = next((copied / "inputs").iterdir())
    data = bytearray(inputs.read_bytes())
    data[-1] ^= 1
    inputs.write_bytes(data)
    code, _, err = earmark("verify", desk.release, "--task", desk.task, "--vault", copied)
    assert code == 4
    assert "changed since they were committed" in err


def test_nothing_is_overwritten_and_secrets_stay_home(desk, earmark) -> None:
    _, out, err = earmark("verify", desk.release, "--task", desk.task, "--vault", desk.vault)
    from earmark.vault import Vault

    key = Vault.open(desk.vault).key("", "correct horse battery staple")
    for secret in (key._secret, key.shard(0).secret):
        assert secret.hex() not in out + err
    for path in Path(desk.vault).rglob("*"):
        if path.is_file():
            assert key._secret not in path.read_bytes()
            assert key._secret.hex().encode() not in path.read_bytes()


def test_weights_alone_make_a_dossier_and_every_key_is_charged(desk, earmark, tmp_path) -> None:
    """Deep Water splits nothing; its claim bears a nonce all the same."""
    vault, out = tmp_path / "vault", tmp_path / "r.safetensors"
    common = [
        "protect", desk.task, "--vault", vault, "--scheme", "deepwater", "--epochs", "2",
        "--owner", "Test", "--quiet",
    ]  # fmt: skip
    assert earmark(*common, "-o", out)[0] == 0
    assert earmark(*common, "-o", tmp_path / "s.safetensors")[0] == 0
    ids = sorted(path.stem for path in (vault / "keys").glob("*.json"))
    seen = []
    for name in ids:
        folder = tmp_path / name
        code, printed, err = earmark(
            "verify", out, "--vault", vault, "--key", name, "--dossier", folder, "--level", "trace"
        )
        assert code in (0, 1, 3), err
        assert "2 keys" in printed
        seen.append(code)
        assert earmark("report", folder)[0] == 0
    assert 0 in seen


def test_the_network_before_its_training_is_kept_where_alignment_wants_it(
    desk, earmark, tmp_path
) -> None:
    vault, out = tmp_path / "vault", tmp_path / "r.safetensors"
    code, printed, err = earmark(
        "protect", desk.task, "--vault", vault, "--scheme", "deepwater", "--epochs", "2",
        "--owner", "Test", "--quiet", "-o", out, "--set", "weights_per_bit=256",
    )  # fmt: skip
    assert code == 0, err
    (start,) = (vault / "starts").glob("*.safetensors")
    assert str(start) in printed
    task, thief = load_task(desk.task), tmp_path / "thief.safetensors"
    moved = Permute().run(load_suspect(task.model(), out), Budget(task), seed=1)
    save_release(moved, thief)
    assert earmark("verify", thief, "--vault", vault)[0] in (1, 3)
    code, printed, _ = earmark("verify", thief, "--vault", vault, "--task", desk.task)
    assert code == 0
    assert f"aligned to '{start.name}'" in printed


def test_deepsigns_is_read_after_alignment_to_its_start_and_not_to_its_release(
    desk, earmark, tmp_path
) -> None:
    vault, out = tmp_path / "vault", tmp_path / "r.safetensors"
    common = ["--vault", vault, "--task", desk.task]
    code, _, err = earmark(
        "protect", desk.task, "--vault", vault, "--scheme", "deepsigns", "--epochs", "4",
        "--owner", "Test", "--quiet", "-o", out, "--set", "bits=128", "--set", "every=2",
    )  # fmt: skip
    assert code == 0, err
    task, thief = load_task(desk.task), tmp_path / "thief.safetensors"
    save_release(Permute().run(load_suspect(task.model(), out), Budget(task), seed=1), thief)
    assert earmark("verify", thief, *common)[0] == 0
    code, printed, err = earmark(
        "attack", out, *common, "--attack", "permute", "-o", tmp_path / "a.safetensors"
    )
    assert code == 0, err
    assert "shown:" in printed
    assert "not shown:" not in printed
    code, _, err = earmark("verify", thief, *common, "--reference", out)
    assert code == 2
    assert "is not the network before its mark" in err


def test_a_key_fixes_what_suspects_are_aligned_to(desk, earmark, tmp_path, monkeypatch) -> None:
    vault, out = tmp_path / "vault", tmp_path / "r.safetensors"
    common = ["--vault", vault, "--task", desk.task]
    command = [
        "protect", desk.task, "--vault", vault, "--scheme", "deepsigns", "--epochs", "2",
        "--owner", "Test", "--quiet", "--force", "-o", out, "--set", "bits=128", "--seed", "3",
    ]  # fmt: skip
    assert earmark(*command)[0] in (0, 1, 3)
    (key,) = (path.stem for path in (vault / "keys").glob("*.json"))
    del command[command.index("--set") : command.index("--set") + 2]
    code, _, err = earmark(*command[:-1], "4", "--key", key)
    assert code == 2
    assert "--seed" in err
    other = tmp_path / "other.safetensors"
    save_release(load_task(desk.task).model(), other)
    code, _, err = earmark("verify", out, *common, "--reference", other)
    assert code == 2
    assert "starts/" in err
    monkeypatch.setattr(Key, "fixing", lambda self, _: self)  # as keys were before
    monkeypatch.setattr("earmark.cli.protect.keep_start", lambda *_: [])
    loose = tmp_path / "loose"
    command[command.index("--vault") + 1] = common[1] = loose
    assert earmark(*command)[0] in (0, 1, 3)
    dossier = ["--dossier", tmp_path / "d", "--level", "trace"]
    code, _, err = earmark("verify", out, *common, "--reference", other, *dossier)
    assert code == 2
    assert "did not fix" in err
    code, printed, err = earmark("verify", out, *common, "--reference", other)
    assert code in (0, 1, 3), err
    assert "none that is exact: nothing fixed" in printed
