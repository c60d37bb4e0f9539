"""Run a node's service: uvicorn on a socket of our own, with patience that ends."""

from __future__ import annotations

import socket

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from earmark.errors import RunError

HEAD_SECONDS = 20.0
"""How long the head of a request may take to arrive."""
MAX_CONNECTIONS = 512


class _Protocol(H11Protocol):
    """Drops a connection that does not finish the head of its next request in time."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # type: ignore[arg-type] # as asyncio passes it
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        self.loop.call_later(HEAD_SECONDS, self._drop, self.cycle)

    def _drop(self, cycle: object) -> None:
        if self.cycle is cycle and self.conn.their_state in (h11.IDLE, h11.DONE):
            self.transport.close()


class Server(uvicorn.Server):
    """A node's server; `run` blocks until `should_exit` is set or a signal comes.

    Args:
        app: `earmark.web.service.create_app`.
        address: Host and port to listen on.

    Raises:
        RunError: The port cannot be listened on.
    """

    def __init__(self, app: FastAPI, address: tuple[str, int]) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)
        try:
            self.socket = socket.create_server(address, backlog=128)
        except OSError as error:
            raise RunError(f"Port {address[1]} cannot be listened on: {error.strerror}.") from error

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve."""
        super().run(sockets=sockets or [self.socket])
