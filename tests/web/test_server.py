"""The service's answers, its refusals, and the page's own check in a real browser."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import files
from earmark.errors import NetworkError
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.client import Client
from earmark.protocol.history import genesis_digest
from earmark.protocol.node import Node
from earmark.protocol.rules import Rules
from earmark.web.server import Server

OWNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = OWNER.public_key().public_bytes_raw().hex()
DOMAIN = "example.org/one"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One node that is a community by itself, serving in a thread."""
    folder = tmp_path_factory.mktemp("node")
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    card = c.init_node(folder, operator="lab", url=f"http://127.0.0.1:{port}")
    made = c.found(folder, [card], Rules(DOMAIN, (m.Member("lab", card.member),)))
    files.write_bytes(folder / c.COMMUNITY, made.canonical())
    node = Node(folder)
    server = Server(node, ("127.0.0.1", port))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    client = Client(card.url)
    client.append(commit(after=genesis_digest(DOMAIN)))
    client.append(commit(after=genesis_digest(DOMAIN), commitment="ab" * 32))
    node.sync()
    yield node
    server.shutdown()
    server.server_close()
    thread.join()
    node.close()


def commit(**changes):
    body = {"domain": DOMAIN, "sender": PUBLIC, "nonce": m.fresh_nonce(), "after": "0" * 64}
    made = m.Commit(**{**body, "commitment": "cd" * 32, "recovery": None, **changes})
    return made.sign(OWNER).encode()


@pytest.fixture
def client(node):
    return Client(node.card.url)


def test_the_log_is_served_with_cosigned_checkpoints(node, client):
    rows = client.page(0)
    assert len(rows) == 2
    assert all(row.checkpoint and "/witness" in row.checkpoint for row in rows)
    assert node.mirror.size == 2
    assert client.call("/api/resolution") == node.resolution().canonical()
    assert client.json("/api/status")["operator"] == "lab"
    assert client.page(2) == []
    assert client.page(10**9) == []


def test_files_are_kept_under_their_digest_only(client):
    digest = client.put(b"a model")
    assert client.blob(digest) == b"a model"
    for path in ("/api/blobs/" + "0" * 64, "/api/blobs/../vote.key", "/api/blobs/" + "Z" * 64):
        assert client.exchange(path)[0] == 404


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/nothing", None, 404),
        ("/api/nothing", b"", 404),
        ("/api/log?since=-1", None, 400),
        ("/api/log?since=x", None, 400),
        ("/api/log?since=" + "9" * 40, None, 400),
        ("/api/proof?index=5&size=1", None, 400),
        ("/api/records", b"{}", 422),
        ("/api/records", b"not json", 422),
        ("/api/records", b"x" * (1 << 19), 413),
        ("/add-checkpoint", b"old 1", 400),
        ("/add-checkpoint", b"\xff" * 100, 400),
        ("/../../etc/passwd", None, 404),
    ],
)
def test_what_is_wrong_is_refused(client, path, data, status):
    try:
        assert client.exchange(path, data)[0] == status
    except NetworkError:
        assert status == 413, "the connection may be cut while a large body is still being sent"


def test_a_message_of_another_community_is_not_logged(node, client):
    size = len(client.page(0))
    assert client.exchange("/api/records", commit(domain="example.org/other"))[0] == 422
    assert len(client.page(0)) == size


def test_a_body_without_length_is_refused(node):
    parts = urlsplit(node.card.url)
    link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    link.putrequest("POST", "/api/records")
    link.endheaders()
    assert link.getresponse().status == 411
    link.close()


def test_no_secret_is_in_any_answer(node, client):
    secrets = [path.read_text().strip() for path in node.folder.glob("*.key")]
    assert len(secrets) == 3
    for path in ("/", "/api/community", "/api/status", "/api/resolution", "/api/log"):
        body = client.call(path).decode()
        assert not any(secret in body for secret in secrets)
    assert "Secrets(...)" in repr(node._secrets)


def test_pages_bring_no_foreign_content(client):
    for path in ("/", "/app.js", "/check.js", "/style.css"):
        text = client.call(path).decode()
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def dom(url, folder):
    """Return the page after its scripts have run, as the browser has it."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder}",
        "--virtual-time-budget=8000",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return done.stdout.decode()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium on this machine")
@pytest.mark.slow
def test_the_browser_checks_the_log_by_itself(node, tmp_path, monkeypatch):
    page = dom(node.card.url + "/", tmp_path / "a")
    assert "2 entries hold" in page
    assert "at least 1 of 1 witnesses" in page
    honest = node.page

    def forged(since):
        """Serve another record than was signed, with a valid signature of its own."""
        rows = honest(since)
        if rows:
            record = commit(commitment="ef" * 32).decode()
            rows[0] = type(rows[0])(record, rows[0].checkpoint)
        return rows

    monkeypatch.setattr(node, "page", forged)
    page = dom(node.card.url + "/", tmp_path / "b")
    assert "Do not rely on this log: the log signed another history up to entry 0" in page

    def unwitnessed(since):
        rows = honest(since)
        return [type(row)(row.record, strip(row.checkpoint)) for row in rows]

    def strip(note):
        head, _, tail = note.rpartition("\n\n")
        kept = [line for line in tail.split("\n") if "/witness" not in line]
        return head + "\n\n" + "\n".join(kept)

    monkeypatch.setattr(node, "page", unwitnessed)
    page = dom(node.card.url + "/", tmp_path / "c")
    assert "only 0 of 1 witnesses" in page


def test_the_status_says_what_is_wrong(node, client):
    node.trouble = "the log does not answer"
    try:
        assert json.loads(client.call("/api/status"))["trouble"] == "the log does not answer"
    finally:
        node.trouble = None
