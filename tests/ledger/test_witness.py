from __future__ import annotations

import itertools
import sqlite3
import threading

import pytest

from earmark.errors import FileError, LedgerError, UsageError
from earmark.ledger.checkpoint import Checkpoint, SignedCheckpoint, cosigned_at
from earmark.ledger.log import SqliteLedger
from earmark.ledger.merkle import address, consistency_proof, fold, grow, leaf_hash
from earmark.ledger.note import COSIGNATURE, Note, NoteSignature, SignerKey
from earmark.ledger.witness import Quorum, Request, Witness, WitnessError, attach, sound

ORIGIN = "log.example/lab"
LOG = SignerKey.generate(ORIGIN)
KEYS = [SignerKey.generate(f"w{i}.example/w", kind=COSIGNATURE) for i in range(7)]


class Tree:
    """A log in memory that signs what it is told to."""

    def __init__(self, records):
        self.nodes, self.peaks, self.roots = [], (), [fold(())]
        for size, record in enumerate(records):
            self.peaks, fresh = grow(self.peaks, size, leaf_hash(record))
            self.nodes += fresh
            self.roots.append(fold(self.peaks))

    def head(self, size, signer=LOG):
        return str(SignedCheckpoint.sign(Checkpoint(ORIGIN, size, self.roots[size]), signer))

    def ask(self, old, new):
        def read(level, index):
            return self.nodes[address(level, index)]

        proof = tuple(item.hex() for item in consistency_proof(read, old, new))
        return Request(old, proof, self.head(new))


HONEST = Tree([b"%d" % i for i in range(20)])
FORKED = Tree([b"%d" % i for i in range(5)] + [b"other %d" % i for i in range(15)])


class Clock:
    def __init__(self, now=1_000_000):
        self.now = now

    def __call__(self):
        return self.now


def witness(i=0, path=":memory:", clock=None):
    if path == ":memory:":
        made = Witness(
            sqlite3.connect(":memory:", isolation_level=None),
            KEYS[i],
            {ORIGIN: LOG.verifier},
            clock or Clock(),
        )
        from earmark.ledger import witness as module

        made._db.executescript(module._SCHEMA)
        return made
    return Witness.create(path, KEYS[i], [LOG.verifier], clock=clock or Clock())


def refusal(one, request):
    with pytest.raises(WitnessError) as caught:
        one.add(request)
    return caught.value


def cosigned(request, *signatures):
    return attach(SignedCheckpoint.parse(request.checkpoint), signatures)


def test_it_follows_a_log_that_grows():
    one = witness()
    size = 0
    for new in (1, 1, 2, 7, 20):
        request = HONEST.ask(size, new)
        line = one.add(request)
        assert cosigned_at(cosigned(request, line), KEYS[0].verifier) == 1_000_000
        size = new
    assert one.size(ORIGIN) == 20
    assert one.faults(ORIGIN) == ()


@pytest.mark.parametrize("first", [0, 1, 4, 5, 6, 19])
def test_a_split_view_is_refused_and_kept(first):
    one = witness()
    one.add(HONEST.ask(0, 10))
    for new in (10, 11, 20):
        error = refusal(one, Request(10, FORKED.ask(min(10, new), new).proof, FORKED.head(new)))
        assert error.status == (409 if new == 10 else 422)
    (pair,) = one.faults(ORIGIN)
    heads = [SignedCheckpoint.open(item, LOG.verifier) for item in pair]
    assert heads[0].size == heads[1].size
    assert heads[0].root != heads[1].root
    refusal(one, FORKED.ask(first, 20))
    assert one.size(ORIGIN) == 10


def test_evidence_reaches_back_to_every_head_that_was_cosigned():
    one = witness()
    for old, new in ((0, 7), (7, 12)):
        one.add(HONEST.ask(old, new))
    assert refusal(one, FORKED.ask(0, 7)).status == 409
    assert len(one.faults(ORIGIN)) == 1


def test_a_rewind_is_refused():
    one = witness()
    one.add(HONEST.ask(0, 10))
    error = refusal(one, HONEST.ask(0, 4))
    assert (error.status, error.size) == (409, 10)
    assert refusal(one, HONEST.ask(4, 12)).status == 409
    assert refusal(one, Request(10, (), HONEST.head(4))).status == 400
    one.add(HONEST.ask(10, 12))


def test_requests_that_are_wrong_are_refused_with_the_agreed_number():
    one = witness()
    other = SignerKey.generate("log.example/other")
    foreign = str(SignedCheckpoint.sign(Checkpoint(other.verifier.name, 0, bytes(32)), other))
    assert refusal(one, Request(0, (), foreign)).status == 404
    forged = HONEST.head(3, SignerKey.generate(ORIGIN))
    assert refusal(one, Request(0, (), forged)).status == 403
    assert refusal(one, Request(0, (), "nothing")).status == 400
    assert refusal(one, Request(4, (), HONEST.head(3))).status == 400
    one.add(HONEST.ask(0, 5))
    assert refusal(one, Request(5, (), HONEST.head(7))).status == 422
    good = HONEST.ask(5, 7)
    assert refusal(one, Request(5, good.proof[::-1], good.checkpoint)).status == 422


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"old 1",
        b"old 01\n\nnote",
        b"old -1\n\nnote",
        b"new 1\n\nnote",
        b"old 1\nAAA=\n\nnote",
        b"old 1\n" + b"x" * 44 + b"\n\nnote",
        b"old 1\r\n\nnote",
        b"\xff\n\n",
        b"old 1\n\n" + b"x" * (1 << 17),
        b"old 1\n" + (b"A" * 43 + b"=\n") * 64 + b"\nnote",
    ],
)
def test_malformed_requests(data):
    with pytest.raises(WitnessError) as caught:
        Request.parse(data)
    assert caught.value.status == 400


def test_the_wire_form_is_that_of_c2sp():
    request = HONEST.ask(3, 7)
    lines = request.encode().decode().split("\n")
    assert lines[0] == "old 3"
    assert lines[1 + len(request.proof)] == ""
    assert lines[2 + len(request.proof)] == ORIGIN
    assert Request.parse(request.encode()) == request


def test_memory_survives_and_its_loss_is_no_fresh_start(tmp_path):
    path = tmp_path / "w.sqlite"
    with pytest.raises(FileError, match="retire"):
        Witness.open(path, KEYS[0], [LOG.verifier])
    one = witness(path=path)
    one.add(HONEST.ask(0, 10))
    one.close()
    with pytest.raises(UsageError):
        witness(path=path)
    again = Witness.open(path, KEYS[0], [LOG.verifier], clock=Clock())
    assert again.size(ORIGIN) == 10
    assert refusal(again, FORKED.ask(0, 10)).status == 409
    again.close()
    path.write_bytes(b"no database, no database, no database")
    with pytest.raises(FileError):
        Witness.open(path, KEYS[0], [LOG.verifier])


def test_a_crash_before_the_answer_changes_nothing(tmp_path, monkeypatch):
    from earmark.ledger import witness as module

    one = witness(path=tmp_path / "w.sqlite")

    def dies(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "cosign", dies)
    with pytest.raises(KeyboardInterrupt):
        one.add(HONEST.ask(0, 10))
    monkeypatch.undo()
    assert one.size(ORIGIN) == 0, "neither written nor handed out"
    one.add(HONEST.ask(0, 10))
    one.close()


def test_two_forks_at_once_get_one_cosignature(tmp_path):
    path = tmp_path / "w.sqlite"
    one = witness(path=path)
    two = Witness.open(path, KEYS[0], [LOG.verifier], clock=Clock())
    for turn in range(10):
        known = one.size(ORIGIN)
        got = []
        asks = [HONEST, FORKED]
        start = threading.Barrier(2)

        def race(holder, tree, known=known, got=got, start=start):
            start.wait()
            try:
                holder.add(tree.ask(known, known + 1))
                got.append(tree)
            except WitnessError:
                pass

        threads = [
            threading.Thread(target=race, args=pair) for pair in zip((one, two), asks, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        roots = {tree.roots[known + 1] for tree in got}
        assert len(roots) <= 1, turn
    one.close()
    two.close()


@pytest.mark.parametrize("skew", [-10 * 365 * 86400, -86400, 3 * 3600, 10 * 365 * 86400])
@pytest.mark.parametrize("n", [4, 7])
def test_a_faulty_minority_does_not_move_the_clock(n, skew):
    quorum = Quorum.of([key.verifier for key in KEYS[:n]])
    clocks = [Clock(2_000_000_000 + i) for i in range(n)]
    for i in range(quorum.faulty):
        clocks[i].now += skew
    request = HONEST.ask(0, 3)
    lines = [witness(i, clock=clocks[i]).add(request) for i in range(n)]
    for chosen in itertools.combinations(lines, quorum.threshold):
        found = quorum.time(cosigned(request, *chosen))
        assert 2_000_000_000 <= found <= 2_000_000_000 + n


def test_a_clock_that_steps_back_is_not_used():
    clock = Clock()
    one = witness(clock=clock)
    one.add(HONEST.ask(0, 3))
    clock.now -= 30
    request = HONEST.ask(3, 4)
    line = one.add(request)
    assert cosigned_at(cosigned(request, line), KEYS[0].verifier) == 1_000_000, "leap second, NTP"
    clock.now -= 3600
    assert refusal(one, HONEST.ask(4, 5)).status == 503
    clock.now = 0
    assert refusal(witness(clock=clock), HONEST.ask(0, 5)).status == 503, "a time is never zero"


def grid():
    return [(n, f, k) for n in range(1, 8) for f in range(n) for k in range(1, n + 1)]


def test_every_quorum_up_to_seven_is_safe_exactly_if_it_is_said_to_be():
    for n, f, k in grid():
        keys = [key.verifier for key in KEYS[:n]]
        safe = not forks(n, f, k)
        live = n - f >= k
        assert sound(n, f, k) == (safe and live), (n, f, k)
        if not sound(n, f, k):
            with pytest.raises(UsageError, match="withstand"):
                Quorum(tuple(keys), f, k)
    assert all(sound(*item) for item in ((4, 1, 3), (7, 2, 5), (7, 1, 5), (7, 0, 4)))


def forks(n, f, k):
    """Try to get k cosignatures under two histories: f sign both, the honest are split."""
    mine = HONEST.ask(0, 10)
    other = FORKED.ask(0, 10)
    for left in range(n - f + 1):
        count = {"mine": 0, "other": 0}
        for i in range(n):
            faulty, first = i < f, i - f < left
            one = witness(i)
            one.add(mine if faulty or first else other)
            count["mine" if faulty or first else "other"] += 1
            if faulty:
                witness(i).add(other)
                count["other"] += 1
        if min(count.values()) >= k:
            return True
    return False


def test_a_quorum_counts_only_what_verifies():
    quorum = Quorum.of([key.verifier for key in KEYS[:4]])
    request = HONEST.ask(0, 3)
    lines = [witness(i).add(request) for i in range(7)]
    signed = cosigned(request, *lines[:2], *lines[4:])
    assert set(quorum.cosigned(signed)) == {KEYS[0].verifier.name, KEYS[1].verifier.name}
    with pytest.raises(LedgerError, match="2 of 4"):
        quorum.time(signed)
    other = witness(2).add(HONEST.ask(0, 4))
    with pytest.raises(LedgerError):
        quorum.time(cosigned(request, *lines[:2], other))
    last = bytes([lines[2].blob[-1] ^ 1])
    broken = NoteSignature(lines[2].name, lines[2].key_id, lines[2].blob[:-1] + last)
    with pytest.raises(LedgerError):
        quorum.time(cosigned(request, *lines[:2], broken))
    assert quorum.time(cosigned(request, *lines[:3])) == 1_000_000
    with pytest.raises(UsageError, match="twice"):
        Quorum((KEYS[0].verifier,) * 4, 1, 3)


def test_it_witnesses_the_embedded_ledger(tmp_path):
    with SqliteLedger.create(tmp_path / "log.sqlite", ORIGIN, signer=LOG) as ledger:
        one, size = witness(), 0
        for i in range(4):
            ledger.append(b'{"n":%d}' % i)
            head = ledger.head()
            one.add(Request(size, ledger.prove_consistency(size, head.size), str(head)))
            size = head.size
        assert one.size(ORIGIN) == 4


def test_only_a_witness_key_cosigns(tmp_path):
    with pytest.raises(UsageError, match="type 4"):
        Witness.create(tmp_path / "w.sqlite", LOG, [LOG.verifier])
    note = Note.parse(HONEST.head(3))
    assert len(note.signatures) == 1
