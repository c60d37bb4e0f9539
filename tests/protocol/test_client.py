"""A client of nodes: whatever a stranger answers is an answer or one of our errors."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from earmark.errors import EarmarkError, NetworkError
from earmark.ledger.witness import Request, WitnessError
from earmark.protocol.client import MAX_REFUSAL, Client, witness

ASKED = Request(0, (), "a note")


@contextmanager
def serving(answer):
    """Answer every connection with some bytes, or as a function of the socket does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                with one:
                    try:
                        one.recv(1 << 16)
                        answer(one) if callable(answer) else one.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def answered(body, status="200 OK", length=None):
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello\r\n\r\n",
        answered(b"abc", length=500),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        answered(b"{}"),
        answered(b"\xff"),
        answered(b'{"rows": 5}'),
        answered(b"9" * 5000),
    ],
)
def test_answers_that_are_none_are_network_errors(answer):
    with serving(answer) as url:
        with pytest.raises(NetworkError):
            Client(url, timeout=3).page(0)
        with pytest.raises(NetworkError):
            witness(url, "byzantine")(ASKED)


@pytest.mark.parametrize("row", [b"5", b"null", b'{"record": 5}', b'{"record": "\\ud800"}'])
def test_rows_that_are_none_are_errors_of_ours(row):
    body = b'{"rows": [' + row + b"]}"
    with serving(answered(body)) as url, pytest.raises(EarmarkError):
        Client(url, timeout=3).page(0)


@pytest.mark.parametrize(
    ("told", "size"), [("12\n", 12), ("²", None), ("-1", None), ("9" * 4000, None), ("", None)]
)
def test_a_refusing_witness_may_say_any_size(told, size):
    answer = answered(told.encode(), "409 Conflict")
    with serving(answer) as url, pytest.raises(WitnessError) as caught:
        witness(url, "byzantine")(ASKED)
    assert (caught.value.status, caught.value.size) == (409, size)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Again", "308 There"])
def test_a_redirect_leads_nowhere(status):
    asked = []

    def inside(one):
        asked.append(one)
        one.sendall(answered(b"{}"))

    with serving(inside) as secret:
        head = f"HTTP/1.1 {status}\r\nLocation: {secret}/admin\r\nContent-Length: 0\r\n\r\n"
        with serving(head.encode()) as url:
            with pytest.raises(NetworkError, match=f"answered {status[:3]}"):
                Client(url, timeout=3).page(0)
            with pytest.raises(WitnessError):
                witness(url, "byzantine")(ASKED)
    assert asked == []


@pytest.mark.parametrize("status", ["200 OK", "500 Oh"])
def test_a_slow_answer_ends(status):
    def drip(one):
        one.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 4000\r\n\r\n".encode())
        for _ in range(4000):
            one.sendall(b"x")
            time.sleep(0.05)

    with serving(drip) as url, pytest.raises(NetworkError, match="took too long"):
        Client(url, timeout=0.1).page(0)


def test_a_refusal_is_read_up_to_a_limit():
    with serving(answered(b"x" * 100_000, "500 Oh")) as url:
        status, body = Client(url, timeout=3).exchange("/")
    assert (status, body) == (500, b"x" * MAX_REFUSAL)
