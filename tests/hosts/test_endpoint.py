"""A classifier over HTTP on loopback: stolen and innocent told apart, politely and resumably."""

import base64
import copy
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from earmark import policy
from earmark.errors import (
    AccessError,
    FileError,
    FormatError,
    HostError,
    NetworkError,
    OutputError,
    UsageError,
)
from earmark.hosts.adapter import Adapter, Limits, png
from earmark.hosts.endpoint import EndpointHost, _seconds
from earmark.hosts.transcript import Transcript
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox
from earmark.schemes.embedding import embed
from earmark.testing import tiny_task
from earmark.training import train


class Server(ThreadingHTTPServer):
    """Answers with `answer(body, headers) -> (status, reply, headers)`."""

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = answer, 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        status, reply, extra = self.server.answer(body, dict(self.headers))
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def serving(answer):
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/classify"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def adapter(url, **changes):
    limits = Limits(per_second=1e6, **changes.pop("limits", {}))
    return Adapter(url, answer=changes.pop("answer", "label"), limits=limits, **changes)


def classifier(model):
    def answer(body, headers):
        sample = torch.tensor(json.loads(body)["instances"])
        with torch.no_grad():
            return 200, {"label": int(model(sample[None]).argmax())}, {}

    return answer


def constant(label):
    return lambda body, headers: (200, {"label": label}, {})


@pytest.fixture(scope="module")
def marked():
    task = tiny_task("mlp")
    scheme = DeepSignsBlackBox(count=60, every=1, margin=4.0, stop_bits=64.0)
    innocent = train(task, seed=0).model
    apart = tiny_task("mlp", samples=256, seed=77)
    inputs = torch.cat([part[0] for part in apart.stream("test", 0)])
    key = scheme.new_key(task.host(innocent), inputs=inputs, secret=bytes(32))
    stolen = embed(task, scheme, key, seed=1, model=copy.deepcopy(innocent)).model
    return scheme, key, stolen, innocent


def test_a_stolen_and_an_innocent_model_are_told_apart(marked, tmp_path):
    scheme, key, stolen, innocent = marked
    outcomes = []
    for name, model in (("stolen", stolen), ("innocent", innocent)):
        with serving(classifier(model)) as (server, url):
            host = EndpointHost(adapter(url), transcript=tmp_path / f"{name}.jsonl")
            evidence = scheme.measure(host, key, nonce="ab" * 32)
            outcomes.append(policy.judge(evidence).outcome.value)
            assert evidence.queries == server.asked
            assert evidence.suspect == host.digest()
            lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
            assert len(lines) == 1 + evidence.queries
    assert outcomes[0] == "shown"
    assert outcomes[1] != "shown"


def test_an_interrupted_measurement_goes_on_and_asks_nobody_twice(marked, tmp_path):
    scheme, key, stolen, _ = marked
    path = tmp_path / "transcript.jsonl"
    good = classifier(stolen)

    def failing(body, headers):
        return good(body, headers) if server.asked <= 12 else (500, b"down", {})

    with serving(failing) as (server, url):
        limits = {"retries": 1}
        host = EndpointHost(adapter(url, limits=limits), transcript=path, sleep=lambda s: None)
        with pytest.raises(NetworkError, match="question 13: status 500"):
            scheme.measure(host, key)
        with path.open("ab") as file:
            file.write(b'{"input": "torn')
        server.answer, server.asked = good, 0
        again = EndpointHost(adapter(url, limits=limits), transcript=path)
        assert len(again.transcript.answers) == 12
        evidence = scheme.measure(again, key)
        assert server.asked == evidence.queries - 12
        whole = EndpointHost(adapter(url), transcript=path)
        assert scheme.measure(whole, key) == evidence


def test_waits_as_long_as_the_server_asks(tmp_path):
    replies = iter([(429, b"", {"Retry-After": "7"}), (503, b"", {}), (200, {"label": 3}, {})])
    pauses = []
    with serving(lambda body, headers: next(replies)) as (server, url):
        host = EndpointHost(adapter(url), sleep=pauses.append)
        assert host.labels(torch.zeros(1, 2)).tolist() == [3]
    pauses = [pause for pause in pauses if pause > 0.1]
    assert pauses[0] == 7.0
    assert 1.0 <= pauses[1] <= 1.3
    assert server.asked == 3


def test_asks_no_faster_than_allowed():
    pauses = []
    with serving(constant(1)) as (_, url):
        slow = Adapter(url, answer="label", limits=Limits(per_second=2.0))
        EndpointHost(slow, sleep=pauses.append).labels(torch.arange(4.0)[:, None])
    assert len(pauses) == 3
    assert sum(pauses) > 1.0


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>",
        {"other": 1},
        {"label": "cat"},
        {"label": -2},
        {"label": True},
        {"label": None},
        {"label": 1 << 70},
        [1],
        b"[" * 5000,
        b"x" * ((1 << 20) + 1),
    ],
)
def test_malformed_answers_are_refused(reply):
    with serving(lambda body, headers: (200, reply, {})) as (_, url):
        host = EndpointHost(adapter(url), sleep=lambda s: None)
        with pytest.raises(NetworkError):
            host.labels(torch.zeros(1, 2))
        assert host.transcript.answers == {}


def test_a_refusal_for_good_is_not_tried_again():
    with serving(lambda body, headers: (403, b"no", {})) as (server, url):
        with pytest.raises(NetworkError, match="status 403"):
            EndpointHost(adapter(url), sleep=lambda s: None).labels(torch.zeros(1, 2))
        assert server.asked == 1


def test_nobody_listening_is_an_error_with_a_hint():
    host = EndpointHost(
        adapter("http://127.0.0.1:9/", limits={"retries": 1, "timeout": 2}), sleep=lambda s: None
    )
    with pytest.raises(NetworkError, match=r"host and port.*run again") as caught:
        host.labels(torch.zeros(1, 2))
    assert caught.value.exit_code == 5


def test_a_server_that_drips_is_cut_off():
    cut = threading.Event()

    class Dripping(Handler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            try:
                while not cut.wait(0.02):
                    self.wfile.write(b" ")
            except OSError:
                cut.set()

    with serving(constant(1)) as (server, url):
        server.RequestHandlerClass = Dripping
        host = EndpointHost(adapter(url, limits={"timeout": 0.3, "retries": 0}))
        with pytest.raises(NetworkError, match="timed out"):
            host.labels(torch.zeros(1, 3))
        assert cut.wait(30)


def test_the_budget_is_kept_and_nothing_is_asked_beyond_it():
    with serving(constant(1)) as (server, url):
        host = EndpointHost(adapter(url, limits={"budget": 3}))
        host.labels(torch.arange(2.0)[:, None])
        with pytest.raises(AccessError, match="budget of 3"):
            host.labels(torch.arange(9.0)[:, None])
        assert server.asked == 2


def test_png_bodies_arrive_as_pictures():
    from PIL import Image

    seen = []

    def answer(body, headers):
        seen.append((np.asarray(Image.open(io.BytesIO(body))), headers["Content-Type"]))
        return 200, {"label": 0}, {}

    picture = torch.rand(1, 3, 6, 5)
    with serving(answer) as (_, url):
        EndpointHost(adapter(url, body="png")).labels(picture)
    pixels, kind = seen[0]
    assert kind == "image/png"
    assert np.abs(pixels / 255 - picture[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_json_batches_scaled_pictures_scores_and_nested_paths():
    def answer(body, headers):
        rows = json.loads(body)["data"]["images"]
        assert base64.b64decode(rows[0])[:4] == b"\x89PNG"
        return 200, {"out": {"all": [[0.1, 0.7, 0.2]] * len(rows)}}, {}

    with serving(answer) as (server, url):
        host = EndpointHost(
            adapter(
                url,
                field="data.images",
                encoding="png",
                batch=3,
                scale=0.3,
                offset=0.45,
                answer="out.all",
                kind="scores",
            )
        )
        assert host.labels(torch.randn(7, 1, 4, 4)).tolist() == [1] * 7
        assert server.asked == 3


def test_a_batch_answered_short_is_refused():
    with serving(lambda body, headers: (200, {"label": [1, 2]}, {})) as (_, url):
        host = EndpointHost(adapter(url, batch=3))
        with pytest.raises(NetworkError, match="list of 3"):
            host.labels(torch.arange(3.0)[:, None])


@pytest.mark.parametrize(
    ("kind", "found", "label"),
    [("label", "dog", 1), ("ranked", ["dog", "cat"], 1), ("scores", [0.2, 3, 1], 1)],
)
def test_kinds_of_answers(kind, found, label):
    assert Adapter("http://x/", answer="", kind=kind, names=("cat", "dog")).read(found) == label


@pytest.mark.parametrize(
    ("kind", "found"),
    [("ranked", []), ("ranked", 3), ("scores", [1.0]), ("scores", [1.0, float("nan")])],
)
def test_answers_of_another_kind_are_refused(kind, found):
    with pytest.raises(NetworkError):
        Adapter("http://x/", answer="", kind=kind).read(found)


def test_adapter_file_round_trip_and_secrets(tmp_path, monkeypatch):
    path = tmp_path / "adapter.toml"
    path.write_text(
        'url = "https://api.invalid/v1"\nanswer = "results.0.label"\nnames = ["cat", "dog"]\n'
        '[headers]\nAuthorization = "env:SHOP_TOKEN"\n[limits]\nbudget = 9\n'
    )
    found = Adapter.load(path)
    assert found.limits.budget == 9
    assert found.read({"results": [{"label": "dog"}]}) == 1
    monkeypatch.delenv("SHOP_TOKEN", raising=False)
    with pytest.raises(UsageError, match="SHOP_TOKEN"):
        found.request(np.zeros((1, 2)))
    monkeypatch.setenv("SHOP_TOKEN", "hush-hush")
    assert found.request(np.zeros((1, 2)))[1]["Authorization"] == "hush-hush"
    assert "hush" not in repr(found)
    assert found.digest() == Adapter.load(path, limits={"budget": 3}).digest()
    assert found.digest() != Adapter.load(path, url="https://other.invalid/").digest()


@pytest.mark.parametrize(
    "text",
    [
        "url = ",
        'answer = "x"',
        'url = "http://x/"\ncolour = 1',
        'url = "http://x/"\n[limits]\nx = 1',
        'url = "http://x/"\nlimits = 5',
        'url = "http://x/"\nheaders = "x"',
        'url = "http://x/"\nanswer = 5',
        'url = "http://x/"\nscale = "1"',
        'url = "http://x/"\nbatch = 1.5',
        'url = "http://x/"\nscale = nan',
        'url = "http://x/"\n[limits]\ntimeout = inf',
        'url = "http://x/"\n[limits]\nretries = 1.5',
    ],
)
def test_bad_adapter_files_are_refused(tmp_path, text):
    path = tmp_path / "adapter.toml"
    path.write_text(text)
    with pytest.raises(FormatError):
        Adapter.load(path)
    with pytest.raises(FileError):
        Adapter.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://x/"},
        {"url": "file:///etc/passwd"},
        {"url": "http://x:99999/"},
        {"url": "http://[::1"},
        {"url": "http://x/ä"},
        {"url": "http://x/a b"},
        {"url": "http://x/", "body": "xml"},
        {"url": "http://x/", "kind": "guess"},
        {"url": "http://x/", "body": "png", "batch": 2},
        {"url": "http://x/", "limits": {"budget": 0}},
        {"url": "http://x/", "limits": {"per_second": 0}},
    ],
)
def test_adapters_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        Adapter.of(wrong)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://", "http(s)://HOST[:PORT]/..., with a PORT from 1 to 65535."),
        ("http://127.0.0.1:99999/x", "http(s)://HOST[:PORT]/..., with a PORT from 1 to 65535."),
        ("http://x:0/", "http(s)://HOST[:PORT]/..., with a PORT from 1 to 65535."),
        ("http://x/a b", "Printable ASCII without spaces; write others as %20 and xn--..."),
        ("http://ä/", "Printable ASCII without spaces; write others as %20 and xn--..."),
    ],
)
def test_an_address_is_told_what_it_lacks(url, wanted):
    with pytest.raises(UsageError) as error:
        Adapter.of({"url": url})
    assert error.value.expected == wanted


def test_samples_of_two_tensors_are_refused():
    host = EndpointHost(adapter("http://127.0.0.1:9/"))
    with pytest.raises(HostError):
        host.labels({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)})
    assert "127.0.0.1" in repr(host)


def test_a_transcript_belongs_to_one_suspect(tmp_path):
    path = tmp_path / "t.jsonl"
    Transcript(path, "one").add("00" * 32, 1)
    assert Transcript(path, "one").answers == {"00" * 32: 1}
    with pytest.raises(UsageError, match="another suspect"):
        Transcript(path, "two")
    path.write_bytes(b"not a transcript\n")
    with pytest.raises(FormatError):
        Transcript(path, "one")
    path.write_bytes(b'{"format": "else"}\n')
    with pytest.raises(FormatError):
        Transcript(path, "one")
    with pytest.raises(FileError):
        Transcript(tmp_path, "one")
    with pytest.raises(OutputError):
        Transcript(tmp_path / "none" / "t.jsonl", "one")


def test_retry_after_may_be_a_date():
    assert _seconds(None) is None
    assert _seconds("soon") is None
    assert _seconds("\u00b2") is None
    assert _seconds("9" * 400) is None
    assert _seconds("Fri, 01 Jan 2010 00:00:00 GMT") == 0.0
    assert _seconds("Fri, 01 Jan 2100 00:00:00 GMT") > 1e6


def test_a_picture_has_one_or_three_channels():
    with pytest.raises(UsageError):
        png(np.zeros((2, 4, 4)))


def test_a_token_is_never_quoted_and_its_newline_is_taken_off(monkeypatch):
    asks = Adapter("http://x/", headers={"Authorization": "env:SHOP_TOKEN"})
    monkeypatch.setenv("SHOP_TOKEN", "hush\n")
    assert asks.request(np.zeros((1, 2)))[1]["Authorization"] == "hush"
    monkeypatch.setenv("SHOP_TOKEN", "hush\nhush")
    with pytest.raises(UsageError, match="Authorization") as caught:
        asks.request(np.zeros((1, 2)))
    assert "hush" not in str(caught.value)


def test_answers_that_are_no_classes_are_pointed_out(marked):
    scheme, key, _, _ = marked
    with serving(constant(10)) as (_, url):
        evidence = scheme.measure(EndpointHost(adapter(url)), key)
    assert (evidence.hits, evidence.trials) == (0, 60)
    assert "60 of 60 answers are none of the" in evidence.notes[-1]


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        ({"nonce": "xyz"}, {"input": "00", "label": 1}),
        ({"nonce": 5}, {"input": "00", "label": 1}),
        ({}, {"input": "00", "label": 1.5}),
        ({}, {"input": "00", "label": True}),
        ({}, {"input": "00", "label": 1 << 70}),
    ],
)
def test_an_edited_transcript_is_refused(tmp_path, head, answer):
    path = tmp_path / "transcript.jsonl"
    first = {"format": "earmark/transcript/1", "source": "a model", **head}
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, answer)))
    with pytest.raises(FormatError):
        Transcript(path, "a model")


def test_no_adapter_sends_what_opens_the_vault(monkeypatch):
    monkeypatch.setenv("EARMARK_PASSPHRASE", "a phrase")
    asks = Adapter("http://x/", headers={"Accept-Language": "env:EARMARK_PASSPHRASE"})
    with pytest.raises(UsageError, match="earmark's own") as caught:
        asks.request(np.zeros((1, 1, 2, 2)))
    assert "a phrase" not in str(caught.value)
