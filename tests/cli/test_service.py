"""`earmark verify https://...`: a stolen model and an innocent one behind HTTP on loopback."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from earmark.bench import zoo
from earmark.bench.data import load
from earmark.cli import service as asking
from earmark.cli.main import run
from earmark.hosts.adapter import Adapter
from earmark.hosts.suspects import load_suspect
from earmark.keys.secret import Key
from earmark.policy import Policy
from earmark.records import Layout
from earmark.training import Recipe, train
from earmark.vault import Vault

WORD = "correct horse battery staple"
TASK = """
from earmark.bench import zoo
from earmark.bench.data import load

data = load("digits")
work = zoo.image_task("small-cnn", data)
recipe = {"epochs": 6, "lr": 0.05}
model, loss, evaluate = work.model, work.loss, work.evaluate


def batches(split, seed=0):
    return data.batches(split, size=64, seed=seed)
"""
ADAPTER = """
url = "http://127.0.0.1:1/replaced"
field = "image"
answer = "label"
[limits]
per_second = 100000
retries = 1
"""


class Service:
    """A classifier that can be told to break down."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.asked, self.works = model, 0, 10_000

    def answer(self, body: bytes) -> tuple[int, bytes]:
        self.asked += 1
        if self.asked > self.works:
            return 403, b"no"
        with torch.no_grad():
            label = int(self.model(torch.tensor(json.loads(body)["image"])[None]).argmax())
        return 200, json.dumps({"label": label}).encode()


@contextmanager
def serving(model: torch.nn.Module) -> Iterator[tuple[Service, str]]:
    service = Service(model.eval())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, reply = service.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service, f"http://127.0.0.1:{server.server_port}/classify"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Path, torch.nn.Module, torch.nn.Module]:
    """A vault with a black-box key, the release, and an innocent model."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "task.py").write_text(TASK)
    (folder / "adapter.toml").write_text(ADAPTER)
    word = folder / "word"
    word.write_text("w")
    code = run([
        "protect", str(folder / "task.py"), "-o", str(folder / "r.safetensors"),
        "--vault", str(folder / "vault"), "--scheme", "deepsigns-blackbox", "--seed", "1",
        "--set", "every=1", "--passphrase-file", str(word), "--owner", "Test", "--quiet",
    ])  # fmt: skip
    assert code == 0
    task = zoo.image_task("small-cnn", load("digits"))
    stolen = load_suspect(task.model(), folder / "r.safetensors")
    innocent = train(task, seed=5, recipe=Recipe(epochs=3, lr=0.05)).model
    return folder, stolen, innocent


def _ask(folder: Path, url: str, *more: str) -> list[str]:
    return [
        "verify", url, "--vault", str(folder / "vault"),
        "--adapter", str(folder / "adapter.toml"), *more,
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _passphrase(monkeypatch) -> None:
    monkeypatch.setenv("EARMARK_PASSPHRASE", "w")


def test_every_variable_that_will_be_sent_is_named(monkeypatch) -> None:
    headers = {"X-Key": "env:API_TOKEN", "X-More": "env:HOME", "X-Plain": "words"}
    asks = Adapter("https://api.example/v1", headers=headers)
    host = SimpleNamespace(adapter=asks, nonce=None)
    key = SimpleNamespace(layout=SimpleNamespace(message_bits=8, scheme="any"))
    nothing = SimpleNamespace(measure=lambda *_, **__: None)
    monkeypatch.setattr(asking.registry, "scheme", lambda *_, **__: nothing)
    told: list[str] = []
    made = asking.Service(host, Path("transcript"), 0)
    made.measure(key, Policy(), SimpleNamespace(note=told.append))
    assert any("API_TOKEN, HOME." in text for text in told)


def test_a_stolen_and_an_innocent_service_are_told_apart(shop, earmark_json, tmp_path) -> None:
    folder, stolen, innocent = shop
    with serving(stolen) as (service, url):
        path = tmp_path / "stolen.jsonl"
        code, found = earmark_json(*_ask(folder, url, "--transcript", path))
        assert (code, found["outcome"]) == (0, "shown")
        assert found["evidence"]["trials"] == service.asked < 60
        lines = [json.loads(item) for item in path.read_text().splitlines()]
        assert len(lines) == 1 + service.asked
        assert lines[0]["nonce"] == found["evidence"]["nonce"]
    with serving(innocent) as (service, url):
        code, found = earmark_json(*_ask(folder, url))
        assert (code, found["outcome"]) == (1, "not shown")
        assert service.asked == 100


def test_a_service_that_never_answered_is_asked_for_in_another_way(shop, earmark) -> None:
    folder, stolen, _ = shop
    with serving(stolen) as (service, url):
        service.works = 0
        code, _, err = earmark(*_ask(folder, url))
    assert code == 5
    assert "that the adapter asks as the service wants" in err


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(shop, earmark, earmark_json) -> None:
    folder, stolen, _ = shop
    with serving(stolen) as (service, url):
        service.works = 7
        code, _, err = earmark(*_ask(folder, url))
        assert code == 5
        assert "7 answers are in the transcript" in err
        earmark("register", folder / "task.py", "--vault", folder / "vault")  # moves the ledger on
        service.works = 10_000
        service.asked = 0
        code, out, err = earmark(*_ask(folder, url))
        assert code == 0
        assert "7 answers are known" in err
        asked = service.asked
        assert f"{asked} questions now, {asked + 7} in all" in out
        code, found = earmark_json(*_ask(folder, url))
        assert found["evidence"]["queries"] == asked + 7
        assert service.asked == asked


def test_the_budget_is_kept_and_too_small_a_one_is_inconclusive(
    shop, earmark_json, tmp_path
) -> None:
    folder, stolen, _ = shop
    with serving(stolen) as (service, url):
        found = earmark_json(*_ask(folder, url, "--budget", "12", "--transcript", tmp_path / "t"))
        assert (found[0], service.asked) == (3, 10)  # the last look that 12 questions allow
        found = earmark_json(*_ask(folder, url, "--budget", "60", "--transcript", tmp_path / "t"))
        assert found[0] == 0
        code, found = earmark_json(
            *_ask(folder, url, "--budget", "11", "--transcript", tmp_path / "t")
        )
        assert (code, "chooses among them" in found["error"]["message"]) == (2, True)
        words = ("--budget", "9", "--transcript", tmp_path / "new")
        code, found = earmark_json(*_ask(folder, url, *words))
        assert (code, "first look" in found["error"]["message"]) == (2, True)


def test_more_suspects_and_higher_levels_ask_for_more(shop, earmark_json, tmp_path) -> None:
    folder, stolen, _ = shop
    asked = []
    for more in (("--level", "trace"), (), ("--level", "contested claim", "--suspects", "1000")):
        with serving(stolen) as (service, url):
            path = tmp_path / f"{len(asked)}"
            assert earmark_json(*_ask(folder, url, "--transcript", path, *more))[0] == 0
            asked.append(service.asked)
    assert asked == sorted(asked)
    assert len(set(asked)) == 3


def test_asking_goes_on_until_every_charged_key_is_paid_for(shop, earmark_json, tmp_path) -> None:
    folder, stolen, _ = shop
    vault = tmp_path / "vault"
    shutil.copytree(folder / "vault", vault)
    owner = Vault.open(vault)
    first = owner.registration()
    for _ in range(3):  # 40 right answers give 129.6 bits net of the looks, and 127.6 of four keys
        owner.commit(Key.generate(Layout("demo", 1, ("fc",), 8, 1)), "w")
    owner.close()
    with serving(stolen) as (_, url):
        arguments = _ask(folder, url, "--key", first.id, "--vault", str(vault))
        more = ["--transcript", tmp_path / "t", "--level", "contested claim"]
        code, found = earmark_json(*arguments, *more)
    assert found["evidence"]["tried"]["keys"] == 4
    assert found["evidence"]["trials"] > 40
    assert (code, found["outcome"]) == (0, "shown")


def test_a_dossier_does_not_tell_what_an_address_keeps_secret(shop, earmark, tmp_path) -> None:
    folder, stolen, _ = shop
    dossier = tmp_path / "dossier"
    with serving(stolen) as (_, url):
        code, _, _ = earmark(*_ask(folder, f"{url}?token=hush", "--dossier", dossier))
    assert code == 0
    told = [path.read_bytes() for path in dossier.rglob("*") if path.is_file()]
    assert any(b"/classify" in data for data in told)
    assert not any(b"hush" in data for data in told)


def test_the_dossier_carries_the_transcript(shop, earmark, tmp_path) -> None:
    folder, stolen, _ = shop
    dossier = tmp_path / "dossier"
    with serving(stolen) as (_, url):
        code, _, _ = earmark(*_ask(folder, url, "--dossier", dossier))
    assert code == 0
    assert (dossier / "attachments" / "transcript.jsonl").read_text().count("\n") > 10
    code, out, _ = earmark("report", dossier, "-o", tmp_path / "page.html")
    assert code == 0
    assert "Judged again" in out
    assert "answers of 'http://127.0.0.1" in out
    assert "127.0.0.1" in (tmp_path / "page.html").read_text()


def test_errors_name_the_matter(shop, desk, earmark, tmp_path, monkeypatch) -> None:
    folder, _, _ = shop
    dead = "http://127.0.0.1:9/x"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "www.safetensors").mkdir()
    (tmp_path / "word").write_text(WORD)
    with_desk = ["--vault", desk.vault, "--passphrase-file", str(tmp_path / "word")]
    cases = [
        (["verify", dead, *with_desk], 2, "reads activations"),
        (_ask(folder, str(folder / "r.safetensors")), 2, "is no address"),
        (
            ["verify", dead, "--vault", str(folder / "vault"), "--adapter", "none.toml"],
            5,
            "none.toml",
        ),
        (_ask(folder, dead, "--budget", "0"), 2, "budget"),
        (_ask(folder, "localhost:8000"), 2, "write http://localhost:8000"),
        (_ask(folder, "www.example.com/x"), 2, "write http://www.example.com/x"),
        (_ask(folder, "ftp://host/x"), 2, "'ftp://host/x' is no file, and no address either"),
        (_ask(folder, "ftp://host/x"), 2, "write http://host/x"),
        (_ask(folder, "www.safetensors/"), 2, "is no address; --adapter"),
        (_ask(folder, dead, "--transcript", str(tmp_path / "no" / "t")), 5, "no/t"),
    ]
    for arguments, code, words in cases:
        got, out, err = earmark(*arguments)
        assert (got, words in err) == (code, True), (arguments, got, err)
        assert not out


def test_metrics_prints_the_table(earmark_json, earmark, tmp_path) -> None:
    task = tmp_path / "task.py"
    task.write_text(
        "from earmark.testing import tiny_task\n"
        "work = tiny_task('mlp', recipe={'epochs': 4})\n"
        "model, loss, batches, evaluate = work.model, work.loss, work.batches, work.evaluate\n"
        "recipe = work.recipe\n"
    )
    common = ["metrics", task, "--set", "bits=64", "--set", "every=1", "--set", "margin=1.2",
              "--seeds", "1", "--keys", "4", "--innocents", "1", "--quiet"]  # fmt: skip
    out = tmp_path / "table.md"
    code, text, _ = earmark(*common, "--attack", "prune:share=0.5", "--capacity", "16", "-o", out)
    assert code == 0
    assert out.read_text().strip() in text
    for word in ("fidelity", "reliability", "prune:share=0.5", "integrity", "16 bits", "efficiency",
                 "security", "generality"):  # fmt: skip
        assert word in text
    code, document = earmark_json(*common, "--scheme", "deepwater")
    assert code == 2
    assert "has no setting" in document["error"]["message"]
    assert earmark(*common, "-o", out)[0] == 2
    assert earmark(*common, "--attack", "prun")[0] == 2
