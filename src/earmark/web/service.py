"""A node's HTTP service: the log, the witness, the files, the resolution, and the page.

The routes and their description (``/openapi.json``) are FastAPI's; what is taken and sent are the
project's own records, whose JSON schemas the description carries. Bodies are bounded and files go
to the disk as they come; connections that dawdle are dropped; nothing that a client sends is
executed, or stored under a name of the client's choice. In public, put a server before it that
speaks TLS and limits rates.

Needs the extra ``earmark[service]``.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path as FilePath
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from earmark import __version__
from earmark.errors import EarmarkError
from earmark.ledger import tiles
from earmark.ledger.service import MAX_RECORD_BYTES
from earmark.ledger.witness import Request as WitnessRequest
from earmark.ledger.witness import WitnessError
from earmark.protocol.node import Node
from earmark.records import Record
from earmark.web.answers import Page, Problem, Proof, Status, Stored, schemas, status_of

BODY_SECONDS = 60.0
"""How long a body may take to arrive."""
MAX_CHECKPOINT_BYTES = 1 << 17
MAX_INDEX = (1 << 53) - 1
"""Largest whole number that every reader of JSON has."""

_JSON, _TEXT, _PROBLEM = "application/json", "text/plain; charset=utf-8", "application/problem+json"
_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/check.js": ("check.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
_DIGEST = Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file.")
_INDEX = Query(ge=0, le=MAX_INDEX)


def answer(record: Record) -> Response:
    """Send a record in its canonical form."""
    return Response(record.canonical(), media_type=_JSON)


def refuse(status: int, title: str, code: str = "") -> Response:
    """Say why a request was refused."""
    body = Problem(title, status, code).canonical()
    return Response(body, status_code=status, media_type=_PROBLEM)


def _says(name: str, kind: str = _JSON, text: str = "Done.") -> dict[str, Any]:  # Any: OpenAPI
    schema = {"$ref": f"#/components/schemas/{name}"} if kind in (_JSON, _PROBLEM) else {}
    return {"description": text, "content": {kind: {"schema": schema or {"type": "string"}}}}


def _responses(
    good: dict[str, Any],
    *bad: int,  # Any: OpenAPI
) -> dict[int | str, dict[str, Any]]:
    made: dict[int | str, dict[str, Any]] = {200: good}
    for status in bad:
        made[status] = _says("Problem", _PROBLEM, "Refused.")
    return made


def _takes(kind: str, schema: dict[str, Any]) -> dict[str, Any]:  # Any: OpenAPI
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


async def _chunks(request: Request, limit: int, take: Callable[[bytes], object]) -> None:
    """Pass a body on as it comes, up to a limit of bytes and of seconds.

    Raises:
        HTTPException: 413 too large, 408 too slow.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
        raise HTTPException(413, f"At most {limit} bytes are taken.")
    seen = 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                seen += len(chunk)
                if seen > limit:
                    raise HTTPException(413, f"At most {limit} bytes are taken.")
                take(chunk)
    except TimeoutError as error:
        raise HTTPException(408, "The body took too long.") from error


def _body(limit: int) -> Callable[[Request], Awaitable[bytes]]:
    async def read(request: Request) -> bytes:
        kept = bytearray()
        await _chunks(request, limit, kept.extend)
        return bytes(kept)

    return read


_Record = Annotated[bytes, Depends(_body(MAX_RECORD_BYTES))]
_Checkpoint = Annotated[bytes, Depends(_body(MAX_CHECKPOINT_BYTES))]


def create_app(node: Node) -> FastAPI:
    """Return a node's service, an ASGI application."""
    app = FastAPI(
        title="earmark node",
        version=__version__,
        summary="A witnessed log of who registered which model, and of what became of each claim.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(_Safely)
    _log_routes(app, node)
    _write_routes(app, node)
    _file_routes(app, node)
    for path, (name, kind) in _PAGES.items():
        app.add_api_route(path, _page(name, kind), include_in_schema=False)
    for error in (EarmarkError, RequestValidationError, StarletteError, Exception):
        app.add_exception_handler(error, _refused)
    described = app.openapi

    def openapi() -> dict[str, Any]:  # Any: an OpenAPI document
        if app.openapi_schema is None:
            made = described()
            made.setdefault("components", {})["schemas"] = schemas()
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend it
    return app


class _Safely:
    """Adds to every answer what keeps browsers from doing more than they should."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, sending)


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, WitnessError):
        if error.status == 409:  # C2SP: the size that this witness has
            return Response(f"{error.size}\n", 409, media_type="text/x.tlog.size")
        return refuse(error.status, error.what, error.code)
    if isinstance(error, EarmarkError):
        return refuse(status_of(error), str(error), error.code)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return refuse(422, f"{where}: {first['msg']}")
    if isinstance(error, StarletteError):
        made = refuse(error.status_code, str(error.detail))
        made.headers.update(error.headers or {})
        return made
    return refuse(500, type(error).__name__)  # one request must not end the service


def _page(name: str, kind: str) -> Callable[[], Response]:
    body = resources.files("earmark.web").joinpath(name).read_bytes()
    return lambda: Response(body, media_type=kind)


def _log_routes(app: FastAPI, node: Node) -> None:
    """Add what can be read of the log."""

    @app.get("/api/log", responses=_responses(_says("Page"), 422), tags=["log"])
    def log(since: Annotated[int, _INDEX] = 0) -> Response:
        """Return entries from an index on, each with its cosigned checkpoint."""
        return answer(Page(tuple(node.page(since))))

    @app.get("/api/proof", responses=_responses(_says("Proof"), 400, 422), tags=["log"])
    def proof(index: Annotated[int, _INDEX], size: Annotated[int, _INDEX]) -> Response:
        """Prove that the tree of a size holds an entry."""
        return answer(Proof(node.prove(index, size)))

    @app.get(
        "/checkpoint", responses=_responses(_says("", _TEXT, "A signed head."), 404), tags=["log"]
    )
    def checkpoint() -> Response:
        """Return the newest head with its cosignatures (C2SP tlog-tiles)."""
        if node.service is None:
            raise HTTPException(404, "This node keeps no log.")
        return Response(node.service.checkpoint(), media_type=_TEXT)

    binary = "application/octet-stream"

    @app.get(
        "/tile/{path:path}",
        responses=_responses(_says("", binary, "A tile."), 404),
        tags=["log"],
    )
    def tile(path: str) -> Response:
        """Return a tile of hashes or a bundle of entries (C2SP tlog-tiles)."""
        made = None if node.service is None else tiles.tile(node.service.ledger, f"tile/{path}")
        if made is None:
            raise HTTPException(404, "There is no such tile.")
        forever = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(made, media_type=binary, headers=forever)

    @app.get("/api/community", responses=_responses(_says("Community")), tags=["community"])
    def community() -> Response:
        """Return rules and public keys; compare their digest with one that you know."""
        return answer(node.community)

    @app.get("/api/status", responses=_responses(_says("Status")), tags=["community"])
    def status() -> Response:
        """Say how this node is."""
        keeper = node.service is not None
        return answer(
            Status(node.card.operator, node.mirror.size, keeper, node.verifier, node.trouble)
        )

    @app.get("/api/resolution", responses=_responses(_says("Resolution")), tags=["community"])
    def resolution() -> Response:
        """Return what this node concludes from the log; anyone gets the same bytes from it."""
        return answer(node.resolution())


def _write_routes(app: FastAPI, node: Node) -> None:
    """Add what changes the log or asks the witness."""
    writers = anyio.CapacityLimiter(8)  # so that readers are never kept waiting by writers

    @app.post(
        "/api/records",
        responses=_responses(_says("Receipt"), 400, 408, 413, 422, 507),
        openapi_extra=_takes(_JSON, {"$ref": "#/components/schemas/Envelope"}),
        tags=["log"],
    )
    async def records(body: _Record) -> Response:
        """Add a signed message to the log; only on the node that keeps it."""
        return answer(await run_sync(node.append, body, limiter=writers))

    witnessing = _responses(_says("", _TEXT, "A cosignature."), 400, 403, 404, 408, 413, 422, 503)
    witnessing[409] = _says("", "text/x.tlog.size", "The size that this witness has.")

    @app.post(
        "/add-checkpoint",
        responses=witnessing,
        openapi_extra=_takes("text/plain", {"type": "string"}),
        tags=["witness"],
    )
    async def add_checkpoint(body: _Checkpoint) -> Response:
        """Cosign a checkpoint that continues the last one (C2SP tlog-witness)."""
        line = await run_sync(lambda: node.witness.add(WitnessRequest.parse(body)))
        return Response(line.line() + "\n", media_type=_TEXT)


def _file_routes(app: FastAPI, node: Node) -> None:
    """Add the files that claims speak of, by digest."""
    binary = "application/octet-stream"

    @app.get(
        "/api/blobs/{digest}",
        responses=_responses(_says("", binary, "The file."), 404, 422),
        response_class=FileResponse,
        tags=["files"],
    )
    def blob(digest: Annotated[str, _DIGEST]) -> Response:
        """Return a file by its digest."""
        path = node.blobs.path(digest)
        if path is None:
            raise HTTPException(404, "There is no such file.")
        forever = {"Cache-Control": "public, max-age=31536000, immutable"}
        return FileResponse(path, media_type=binary, headers=forever)

    @app.post(
        "/api/blobs",
        responses=_responses(_says("Stored"), 408, 413, 507),
        openapi_extra=_takes(binary, {"type": "string", "contentMediaType": binary}),
        tags=["files"],
    )
    async def put(request: Request) -> Response:
        """Keep a file under its digest."""
        await run_sync(node.blobs.require_room)
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=node.blobs.folder, prefix=".new-") as file:
            await _chunks(request, node.blobs.limit, _both(digest.update, file.write))
            file.flush()
            name = digest.hexdigest()
            await run_sync(node.blobs.keep, FilePath(file.name), name)
        return answer(Stored(name))


def _both(
    first: Callable[[bytes], object], second: Callable[[bytes], object]
) -> Callable[[bytes], object]:
    def take(chunk: bytes) -> None:
        first(chunk)
        second(chunk)

    return take
