"""Run by the tests in a process of its own: append to a PostgreSQL ledger, and perhaps die."""

from __future__ import annotations

import os
import signal
import sys
import time

from earmark.errors import NetworkError, OutputError
from earmark.ledger.postgres import PostgresLedger


def entry(number):
    return b'{"number":%d,"side":"a"}' % number


def die(ledger, at):
    """Append two entries, and die just before the statement number `at`."""
    import psycopg

    real, left = psycopg.Connection.execute, [at]

    def execute(self, *arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **options)

    psycopg.Connection.execute = execute
    number = len(ledger)
    print(ledger.append_many([entry(number), entry(number + 1)])[-1].index)


def append(ledger):
    """Append until the server is gone; 3 if that was noticed between, 4 if during a commit."""
    number = len(ledger)
    while True:
        try:
            print(ledger.append(entry(number)).index, flush=True)
        except NetworkError:
            return 3
        except OutputError:
            return 4
        number += 1


def compete(ledger, side, count):
    for number in range(count):
        begun = time.monotonic()
        receipt = ledger.append(b'{"number":%d,"side":"%s"}' % (number, side.encode()))
        print(receipt.index, begun, time.monotonic())


def main(what, dsn, schema, key, *rest):
    ledger = PostgresLedger.open(dsn, schema=schema, key=key)
    if what == "die":
        return die(ledger, int(rest[0]))
    if what == "append":
        return append(ledger)
    return compete(ledger, rest[0], int(rest[1]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
