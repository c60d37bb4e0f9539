"""`earmark node`: keep a ledger and verify claims for others."""

from __future__ import annotations

import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import click

from earmark import files
from earmark.cli import options
from earmark.cli.output import emit, line
from earmark.codec import Json
from earmark.errors import ExtraError, FileError
from earmark.policy import LEVELS, Policy

_FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("node", epilog="Example:  earmark node serve my-node")
def command() -> None:
    """Keep a ledger and verify claims for others.

    Each party makes a node (init) and gives its card to the others. One of them founds the
    community from all cards; everybody takes the community file that this writes (join), compares
    its digest with the others by a way of their own, and serves.
    """


@command.command("init", epilog="Example:  earmark node init my-node --operator 'Lab A'")
@_FOLDER
@click.option("--operator", required=True, help="Name of the party that runs the node.")
@click.option("--url", default="http://127.0.0.1:8710", show_default=True, help="Where it listens.")
@options.json_option
def init(*, folder: Path, operator: str, url: str, as_json: bool) -> int:
    """Make a node's folder with its keys, and its card."""
    from earmark.protocol.community import CARD, init_node

    card = init_node(folder, operator=operator, url=url)
    lines = [
        line("node", f"{folder}   keys of mode 0600; back them up with witness.sqlite"),
        line("card", f"{folder / CARD}   give it to the others"),
    ]
    return emit("node init", lines, {"card": card.to_json()}, as_json=as_json)


@command.command(
    "found", epilog="Example:  earmark node found a --domain lab.example/c a/card.json b/card.json"
)
@_FOLDER
@click.argument("cards", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--domain", required=True, help="Name of the community and its log.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("community.json"),
    show_default=True,
    help="Where the community's file is written; every node needs it.",
)
@click.option(
    "--level", type=click.Choice([name for name, _ in LEVELS]), default="claim", show_default=True
)
@click.option(
    "--database",
    metavar="ADDRESS",
    help="Keep the log on PostgreSQL: postgresql://user@host/db, a schema after a hash.",
)
@click.option("--commit-seconds", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--reveal-seconds", type=click.IntRange(min=1), default=600, show_default=True)
@click.option(
    "--draw-seconds",
    type=click.IntRange(min=0),
    default=120,
    show_default=True,
    help="Time to draw values that nobody chose; 0 leaves them to the log's roots.",
)
@click.option("--pin", is_flag=True, help="Let only nodes with this node's verifier vote.")
@click.option("--unbound", is_flag=True, help="Accept keys bound to their owner's own ledger.")
@click.option("--earlier-wins", is_flag=True, help="Let priority decide where containment cannot.")
@options.json_option
def found(
    *,
    folder: Path,
    cards: tuple[Path, ...],
    domain: str,
    output: Path,
    level: str,
    database: str | None,
    commit_seconds: int,
    reveal_seconds: int,
    draw_seconds: int,
    pin: bool,
    unbound: bool,
    earlier_wins: bool,
    as_json: bool,
) -> int:
    """Begin a community from all nodes' cards; the node in FOLDER keeps the log."""
    from earmark.protocol import community
    from earmark.protocol.messages import Member
    from earmark.protocol.rules import Rules
    from earmark.protocol.verifier import code_digest

    _require_node(folder)
    options.require_free(output)
    read = [community.Card.load(path) for path in cards]
    rules = Rules(
        domain,
        tuple(Member(card.operator, card.member) for card in read),
        Policy.at(level),
        commit_seconds=commit_seconds,
        extension_seconds=commit_seconds,
        reveal_seconds=reveal_seconds,
        draw_seconds=draw_seconds,
        verifiers=(code_digest(),) if pin else (),
        bound=not unbound,
        earlier_wins=earlier_wins,
    )
    made = community.found(folder, read, rules, database=database)
    files.write_bytes(output, made.canonical())
    quorum = made.quorum
    lines = [
        line("community", f"{output}   every node needs it:  earmark node join NODE {output}"),
        line("digest", f"{made.digest()}   compare it with the others"),
        line("withstands", f"{quorum.faulty} faulty of {len(read)}; {quorum.threshold} decide"),
    ]
    payload: dict[str, Json] = {"digest": made.digest(), "community": made.to_json()}
    return emit("node found", lines, payload, as_json=as_json)


@command.command("join", epilog="Example:  earmark node join my-node community.json")
@_FOLDER
@click.argument("path", type=click.Path(path_type=Path))
@options.json_option
def join(*, folder: Path, path: Path, as_json: bool) -> int:
    """Put a community's file into a node's folder, and begin its witness's memory."""
    from earmark.protocol import community

    _require_node(folder)
    made = community.Community.load(path)
    community.join(folder, made)
    lines = [line("digest", f"{made.digest()}   compare it with the others")]
    return emit("node join", lines, {"digest": made.digest()}, as_json=as_json)


@command.command("serve", epilog="Example:  earmark node serve my-node")
@_FOLDER
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--tasks", type=click.Path(path_type=Path), help="Folder with task files you trust.")
@click.option("--seconds", type=click.FloatRange(min=0.05), default=1.0, show_default=True)
def serve(*, folder: Path, host: str, tasks: Path | None, seconds: float) -> int:
    """Follow the log, witness it, verify claims, vote, and show the page."""
    from earmark.protocol.node import Node

    _require_node(folder)
    _require_joined(folder)
    try:
        from earmark.web.server import Server
        from earmark.web.service import create_app
    except ImportError as error:
        raise ExtraError(
            "Serving a node needs FastAPI and uvicorn.", hint='pip install "earmark[service]"'
        ) from error
    node = Node(folder, tasks=tasks)
    stop = threading.Event()
    server = Server(create_app(node), (host, urlsplit(node.card.url).port or 80))
    click.echo(f"{node.card.operator} listens on {node.card.url}   (stop with Ctrl-C)", err=True)
    with closing(node), ThreadPoolExecutor(1, "node") as pool:
        working = pool.submit(node.run, stop, seconds=seconds)
        working.add_done_callback(lambda _: setattr(server, "should_exit", True))
        try:
            server.run()
        finally:
            stop.set()
        working.result()  # a node that ended by itself says why
    return 0


def _require_node(folder: Path) -> None:
    from earmark.protocol.community import CARD

    if not (folder / CARD).is_file():
        raise FileError(
            f"There is no node in '{folder}'.",
            hint=f"Make one with:  earmark node init {shlex.quote(str(folder))} --operator NAME",
        )


def _require_joined(folder: Path) -> None:
    from earmark.protocol.community import COMMUNITY

    if not (folder / COMMUNITY).is_file():
        raise FileError(
            f"The node in '{folder}' has joined no community.",
            hint="Give it the community's file with:  "
            f"earmark node join {shlex.quote(str(folder))} {COMMUNITY}",
        )
