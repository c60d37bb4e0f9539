"""The service's answers, its refusals and its patience."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

from earmark.errors import NetworkError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.merkle import leaf_hash, verify_inclusion
from earmark.ledger.tiles import TileLedger
from earmark.web import server as server_module
from earmark.web import service as service_module


def test_the_log_is_served_with_cosigned_checkpoints(node, client):
    rows = client.page(0)
    assert len(rows) == 2
    assert all(row.checkpoint and "/witness" in row.checkpoint for row in rows)
    assert node.mirror.size == 2
    assert client.call("/api/resolution") == node.resolution().canonical()
    assert client.json("/api/status")["operator"] == "lab"
    assert client.page(2) == []
    assert client.page(10**9) == []


def test_files_are_kept_under_their_digest_only(node, client):
    digest = client.put(b"a model")
    assert client.blob(digest) == b"a model"
    for path, status in (
        ("/api/blobs/" + "0" * 64, 404),
        ("/api/blobs/../vote.key", 404),
        ("/api/blobs/%2e%2e%2fvote.key", 404),
        ("/api/blobs/" + "Z" * 64, 422),
        ("/api/blobs/.new-file", 422),
    ):
        assert client.exchange(path)[0] == status
    assert client.put(b"a model") == digest
    assert digest in {path.name for path in node.blobs.folder.iterdir()}
    assert all(len(path.name) == 64 for path in node.blobs.folder.iterdir())


def test_a_full_store_takes_no_more(node, client, monkeypatch):
    client.put(b"a model")
    monkeypatch.setattr(node.blobs, "quota", 7)
    assert client.exchange("/api/blobs", b"another")[0] == 507
    monkeypatch.setattr(node.blobs, "quota", 8)
    client.put(b"another")


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/nothing", None, 404),
        ("/api/nothing", b"", 404),
        ("/api/log?since=-1", None, 422),
        ("/api/log?since=x", None, 422),
        ("/api/log?since=" + "9" * 40, None, 422),
        ("/api/proof?index=5&size=1", None, 400),
        ("/api/records", b"{}", 422),
        ("/api/records", b"not json", 422),
        ("/api/records", b"x" * (1 << 19), 413),
        ("/api/proof?index=0&size=0", None, 400),
        ("/api/proof?index=0", None, 422),
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


def test_a_message_of_another_community_is_not_logged(client, commit):
    size = len(client.page(0))
    assert client.exchange("/api/records", commit(domain="example.org/other"))[0] == 422
    assert len(client.page(0)) == size


def test_a_body_without_length_is_read_up_to_the_limit(node):
    parts = urlsplit(node.card.url)
    for chunks, status in (([b"{}"], 422), ([b"x" * (1 << 16)] * 20, 413)):
        link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.request("POST", "/api/records", iter(chunks), encode_chunked=True)
            assert link.getresponse().status == status
        link.close()


def test_who_dawdles_is_dropped(node, monkeypatch):
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(service_module, "BODY_SECONDS", 0.5)
    parts = urlsplit(node.card.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as link:
        link.sendall(b"GET /api/status HTTP/1.1\r\nHost: a\r\n")  # and nothing more
        assert link.recv(100) == b""
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as link:
        link.sendall(b"POST /api/records HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in link.recv(100)


def test_every_node_proves_what_it_has_accepted(node, client, monkeypatch):
    rows = client.page(0)
    monkeypatch.setattr(node, "service", None)  # as one that does not keep the log
    size = len(rows)
    root = SignedCheckpoint.parse(rows[-1].checkpoint).root
    for index, row in enumerate(rows):
        proof = client.json(f"/api/proof?index={index}&size={size}")["proof"]
        verify_inclusion(
            leaf_hash(row.record.encode()),
            index,
            size,
            [bytes.fromhex(item) for item in proof],
            root,
        )
    assert client.exchange(f"/api/proof?index=0&size={size + 1}")[0] == 400


def test_the_log_is_served_as_tiles(node, client):
    reader = TileLedger(lambda path: client.call(f"/{path}"), node.community.log)
    assert node.community.quorum.cosigned(reader.head()).keys() >= {"lab/witness"}
    assert [record.decode() for _, record in reader.scan()] == [
        row.record for row in client.page(0)
    ]
    size = reader.head().size
    for path in ("tile/0/000", f"tile/0/000.p/{size + 1}", "tile/0/../000", "tile/9/000"):
        assert client.exchange(f"/{path}")[0] == 404
    assert client.exchange(f"/tile/0/000.p/{size}")[0] == 200


def test_no_secret_is_in_any_answer(node, client):
    secrets = [path.read_text().strip() for path in node.folder.glob("*.key")]
    assert len(secrets) == 3
    for path in ("/", "/api/community", "/api/status", "/api/resolution", "/api/log"):
        body = client.call(path).decode()
        assert not any(secret in body for secret in secrets)
    assert "Secrets(...)" in repr(node._secrets)


def test_pages_bring_no_foreign_content(client):
    for path in ("/", "/app.js", "/check.js", "/style.css"):
        text = client.call(path).decode().replace("http://www.w3.org/2000/svg", "")  # a name
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


def test_the_status_says_what_is_wrong(node, client):
    node.trouble = "the log does not answer"
    try:
        assert json.loads(client.call("/api/status"))["trouble"] == "the log does not answer"
    finally:
        node.trouble = None
