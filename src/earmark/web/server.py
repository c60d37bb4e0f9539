"""A node's HTTP service: the log, the witness, the files, the resolution, and the page.

Standard library only. Bodies are bounded, connections that dawdle are dropped, and nothing that a
client sends is executed or stored under a name of the client's choice. In public, put a server
before it that speaks TLS and limits rates.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from urllib.parse import parse_qs, urlsplit

from earmark.errors import EarmarkError, FileError, UsageError
from earmark.ledger.service import MAX_RECORD_BYTES
from earmark.ledger.witness import Request, WitnessError
from earmark.protocol.node import Node

_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/check.js": ("check.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
_JSON, _TEXT = "application/json", "text/plain; charset=utf-8"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
)


class _Status(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `Server.node` is the node."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "earmark"
    sys_version = ""
    timeout = 20

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Write nothing."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer(self._post)

    def _answer(self, work: object) -> None:
        try:
            assert callable(work)
            status, kind, body = work()
        except _Status as answer:
            status, kind, body = answer.status, _TEXT, answer.text.encode()
        except WitnessError as error:
            text = f"{error.size}\n" if error.status == 409 else f"{error.what}\n"
            kind = "text/x.tlog.size" if error.status == 409 else _TEXT
            status, body = error.status, text.encode()
        except UsageError as error:
            status, kind, body = 400, _TEXT, str(error).encode()
        except FileError as error:
            status, kind, body = 404, _TEXT, str(error).encode()
        except EarmarkError as error:
            status, kind, body = 422, _TEXT, str(error).encode()
        except Exception as error:  # noqa: BLE001 - one request must not end the service
            status, kind, body = 500, _TEXT, type(error).__name__.encode()
        if status >= 400:
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _get(self) -> tuple[int, str, bytes]:
        node = self.server.node
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path in _PAGES:
            name, kind = _PAGES[parts.path]
            return 200, kind, resources.files("earmark.web").joinpath(name).read_bytes()
        if parts.path == "/api/log":
            rows = [row.to_json() for row in node.page(_number(query, "since"))]
            return _json({"rows": rows})
        if parts.path == "/api/community":
            return 200, _JSON, node.community.canonical()
        if parts.path == "/api/status":
            return _json(
                {
                    "operator": node.card.operator,
                    "size": node.mirror.size,
                    "keeper": node.service is not None,
                    "trouble": node.trouble,
                }
            )
        if parts.path == "/api/resolution":
            return 200, _JSON, node.resolution().canonical()
        if parts.path == "/api/proof":
            return self._proof(_number(query, "index"), _number(query, "size"))
        if parts.path.startswith("/api/blobs/"):
            path = node.blobs.path(parts.path.removeprefix("/api/blobs/"))
            if path is None:
                raise _Status(404, "There is no such file.")
            return 200, "application/octet-stream", path.read_bytes()
        raise _Status(404, "There is nothing here.")

    def _proof(self, index: int, size: int) -> tuple[int, str, bytes]:
        service = self.server.node.service
        if service is None:
            raise _Status(404, "Only the node that keeps the log makes proofs.")
        return _json({"proof": list(service.ledger.prove(index, size))})

    def _post(self) -> tuple[int, str, bytes]:
        node = self.server.node
        path = urlsplit(self.path).path
        if path == "/api/records":
            receipt = node.append(self._body(MAX_RECORD_BYTES))
            return 200, _JSON, receipt.canonical()
        if path == "/add-checkpoint":
            line = node.witness.add(Request.parse(self._body(1 << 17)))
            return 200, _TEXT, (line.line() + "\n").encode()
        if path == "/api/blobs":
            return _json({"digest": node.blobs.put(self._body(node.blobs.limit))})
        raise _Status(404, "There is nothing here.")

    def _body(self, limit: int) -> bytes:
        text = self.headers.get("Content-Length", "")
        if not text.isascii() or not text.isdigit():
            raise _Status(411, "State the length of the body.")
        if int(text) > limit:
            raise _Status(413, f"At most {limit} bytes are taken.")
        data = self.rfile.read(int(text))
        if len(data) != int(text):
            raise _Status(400, "The body ended early.")
        return data


class Server(ThreadingHTTPServer):
    """A node's server; `serve_forever` runs it.

    Args:
        node: The node.
        address: Host and port to listen on.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, node: Node, address: tuple[str, int]) -> None:
        self.node = node
        super().__init__(address, Handler)


def _json(value: object) -> tuple[int, str, bytes]:
    return 200, _JSON, json.dumps(value).encode()


def _number(query: dict[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise _Status(400, f"'{name}' is no number.")
    return int(text)
