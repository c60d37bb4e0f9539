"""`earmark ledger`: export, import, tiles, time stamps."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from earmark import codec
from earmark.ledger.engines import open_log
from earmark.ledger.moving import Move
from earmark.ledger.tiles import TileLedger, from_folder
from earmark.vault import Vault

sys.path += [str(Path(__file__).parents[1] / "ledger" / part) for part in ("", "evm")]


@pytest.fixture
def vault(tmp_path):
    made = Vault.create(tmp_path / "vault", name="Owner", passphrase="word")
    for number in range(3):
        made.ledger.append(b'{"number":%d}' % number)
    yield made
    made.close()


def test_a_history_is_exported_and_gone_on_with(vault, earmark, earmark_json, tmp_path):
    history, moved = tmp_path / "history.jsonl", tmp_path / "moved.sqlite"
    told = ["--vault", vault.path]
    code, document = earmark_json("ledger", "export", history, *told)
    assert (code, document["size"]) == (0, 3)
    assert earmark("ledger", "export", history, *told)[0] == 2, "nothing is overwritten"
    vkey = document["vkey"]
    proof = tmp_path / "move.json"
    command = ["ledger", "import", history, "--to", moved, "--vkey", vkey, "-o", proof]
    assert earmark(*command)[0] == 0
    assert Move.from_bytes(proof.read_bytes()).verify() == 3
    assert earmark("ledger", "check", "--ledger", moved)[0] == 0
    assert earmark("ledger", "log", "--ledger", moved)[0] == 0
    assert earmark("ledger", "show", "2", "--ledger", moved)[0] == 0
    with open_log(moved) as new:
        assert list(new.scan()) == list(vault.ledger.scan())
        new.append(b'{"more":1}')
    assert earmark(*command[:-1], tmp_path / "again.json")[0] == 2, "it went on without us"
    history.write_bytes(history.read_bytes().replace(b"number", b"numbex"))
    code, _, err = earmark("ledger", "import", history, "--to", tmp_path / "no.sqlite")
    assert (code, f"The export of a ledger '{history}' cannot be taken: " in err) == (4, True)
    assert earmark("ledger", "import", history)[0] in {2, 4}


@pytest.mark.parametrize("text", ["no export\n", "{}\n", '{"schema":"earmark/claim/1"}\n'])
def test_what_is_no_export_is_named_and_not_called_changed(text, earmark, tmp_path):
    path, target = tmp_path / "text.txt", tmp_path / "no.sqlite"
    path.write_text(text)
    code, _, err = earmark("ledger", "import", path, "--to", target)
    assert code == 5
    assert err == f"E402  '{path}' is no export of a ledger. Check the path.\n"
    assert not target.exists()


def test_a_ledger_becomes_static_files(vault, earmark, tmp_path):
    assert earmark("ledger", "tiles", tmp_path / "public", "--vault", vault.path)[0] == 0
    reader = TileLedger(from_folder(tmp_path / "public"), vault.ledger.vkey)
    assert list(reader.scan()) == list(vault.ledger.scan())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_an_authority_stamps_the_head(vault, earmark, earmark_json, tmp_path):
    from authority import Authority

    made = Authority(tmp_path / "tsa")
    roots, proof, head = tmp_path / "roots.pem", tmp_path / "head.proof", tmp_path / "head.txt"
    roots.write_bytes(made.pem)
    told = ["--roots", roots, "--vault", vault.path]
    with made.serving() as url:
        code, document = earmark_json("ledger", "stamp", proof, "--tsa", url, *told)
    assert code == 0
    stamped = document["moment"]["time"]
    assert earmark("ledger", "time", proof, *told)[0] == 0
    head.write_text(earmark("ledger", "head", "--vault", vault.path)[1])
    vault.ledger.append(b'{"later":1}')
    assert earmark("ledger", "time", proof, *told)[0] == 2, "the head has moved on"
    code, document = earmark_json("ledger", "time", proof, "--against", head, *told)
    assert (code, document["moment"]["time"]) == (0, stamped)
    exported = tmp_path / "history.jsonl"
    assert earmark("ledger", "export", exported, "--proof", proof, "--vault", vault.path)[0] == 0
    first = json.loads(exported.read_text().splitlines()[0])
    assert first["proofs"][0]["kind"] == "rfc3161"
    other = json.loads(proof.read_text())
    other["subject"] = codec.digest(b"else")
    proof.write_bytes(codec.canonical(other))
    assert earmark("ledger", "time", proof, "--against", head, *told)[0] == 2


def test_a_history_goes_on_a_chain(vault, earmark, tmp_path, monkeypatch):
    from chains import Anvil, anvil_program

    if anvil_program() is None:
        pytest.skip("no Anvil")
    town = Anvil("--slots-in-an-epoch", "1", "--block-time", "1")
    try:
        history, account = tmp_path / "history.jsonl", tmp_path / "account"
        account.write_text(town.secrets[0].hex() + "\n")
        assert earmark("ledger", "export", history, "--vault", vault.path)[0] == 0
        url = town.web3.provider.endpoint_uri
        told = ["--chain", url, "--account", account, "--key", tmp_path / "observer.key"]
        code, _, err = earmark("ledger", "import", history, *told, "-o", tmp_path / "move.json")
        assert code == 0, err
        assert Move.from_bytes((tmp_path / "move.json").read_bytes()).verify() == 3
        assert "contract 0x" in err
        assert earmark("ledger", "import", history, "--chain", url)[0] == 2
    finally:
        town.stop()
