"""One node that is a community by itself, with two records, serving in a thread."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.client import Client
from earmark.protocol.history import genesis_digest
from earmark.protocol.node import Node
from earmark.protocol.rules import Rules
from earmark.web.server import Server
from earmark.web.service import create_app

sys.path.insert(0, str(Path(__file__).parents[1] / "protocol"))

OWNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = OWNER.public_key().public_bytes_raw().hex()
DOMAIN = "example.org/one"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One node that is a community by itself, serving in a thread."""
    folder = tmp_path_factory.mktemp("node")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    card = c.init_node(folder, operator="lab", url=f"http://127.0.0.1:{port}")
    made = c.found(folder, [card], Rules(DOMAIN, (m.Member("lab", card.member),)))
    c.join(folder, made)
    node = Node(folder)
    server = Server(create_app(node), ("127.0.0.1", port))
    thread = threading.Thread(target=server.run)
    thread.start()
    client = Client(card.url)
    client.append(commit(after=genesis_digest(DOMAIN)))
    client.append(commit(after=genesis_digest(DOMAIN), commitment="ab" * 32))
    node.sync()
    yield node
    server.should_exit = True
    thread.join()
    node.close()


def commit(**changes):
    body = {"domain": DOMAIN, "sender": PUBLIC, "nonce": m.fresh_nonce(), "after": "0" * 64}
    made = m.Commit(**{**body, "commitment": "cd" * 32, "recovery": None, **changes})
    return made.sign(OWNER).encode()


@pytest.fixture
def client(node):
    return Client(node.card.url)


@pytest.fixture(name="commit")
def commit_fixture():
    return commit
