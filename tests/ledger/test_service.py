"""The shared log: a mirror accepts what was witnessed and derives it again; files by digest."""

from __future__ import annotations

import itertools
import threading

import pytest

from earmark.errors import LedgerError, NetworkError, OutputError, SignatureError
from earmark.ledger import service
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.ledger.log import SqliteLedger
from earmark.ledger.note import COSIGNATURE, NoteSignature, SignerKey
from earmark.ledger.port import beacon
from earmark.ledger.service import BlobStore, LogService, Mirror, Row
from earmark.ledger.witness import Quorum, Witness, WitnessError

ORIGIN = "log.example/service"


class Place:
    """A log service with four witnesses, some of which may be down."""

    def __init__(self, folder, name="a", signer=None):
        self.ledger = SqliteLedger.create(folder / f"{name}.sqlite", ORIGIN, signer=signer)
        keys = [SignerKey.generate(f"w{i}/w", kind=COSIGNATURE) for i in range(4)]
        log = SignedCheckpoint.parse(str(self.ledger.head()))
        assert log.size == 0
        from earmark.ledger.note import VerifierKey

        self.key = VerifierKey.parse(self.ledger.vkey)
        self.witnesses = [
            Witness.create(folder / f"{name}{i}.w", key, [self.key], clock=lambda i=i: 5000 + i)
            for i, key in enumerate(keys)
        ]
        self.down = set()
        self.quorum = Quorum.of([key.verifier for key in keys])
        self.service = LogService(
            self.ledger,
            folder / f"{name}.notes",
            self.quorum,
            self.asks(),
        )

    def asks(self):
        return {str(one.verifier): self.ask(i) for i, one in enumerate(self.witnesses)}

    def ask(self, i):
        def ask(request):
            if i in self.down:
                raise NetworkError("down")
            return self.witnesses[i].add(request)

        return ask

    def mirror(self):
        return Mirror(self.key, self.quorum)

    def close(self):
        self.service.close()
        self.ledger.close()
        for one in self.witnesses:
            one.close()


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


def test_a_mirror_derives_what_was_witnessed(place):
    receipts = [place.service.append(b'{"n":%d}' % i) for i in range(9)]
    mirror = place.mirror()
    for since in itertools.count():
        if not mirror.take(place.service.page(mirror.size, limit=2)):
            break
        assert since < 9
    assert [item.record for item in mirror.entries] == [b'{"n":%d}' % i for i in range(9)]
    assert [item.beacon for item in mirror.entries] == [beacon(item) for item in receipts]
    assert {item.time for item in mirror.entries} == {5002}


def test_one_witness_may_be_down_and_catches_up(place):
    place.down = {0}
    for i in range(3):
        place.service.append(b'{"n":%d}' % i)
    place.down = {1}
    place.service.append(b'{"n":3}')
    assert place.witnesses[0].size(ORIGIN) == 4
    assert len(place.mirror().take(place.service.page(0))) == 4


def test_without_a_quorum_nothing_is_accepted_until_there_is_one(place):
    place.service.append(b'{"n":0}')
    place.down = {0, 1}
    place.service.append(b'{"n":1}')
    mirror = place.mirror()
    assert len(mirror.take(place.service.page(0))) == 1
    assert mirror.take(place.service.page(1)) == []
    place.down = set()
    place.service.append(b'{"n":2}')
    late, last = mirror.take(place.service.page(1))
    assert (late.beacon, late.checkpoint.size) == (None, 3)
    assert last.beacon is not None


def test_changed_dropped_and_swapped_records_are_found(place):
    for i in range(5):
        place.service.append(b'{"n":%d}' % i)
    rows = place.service.page(0)
    for i in range(5):
        changed = [*rows[:i], Row('{"n":9}', rows[i].checkpoint), *rows[i + 1 :]]
        dropped = [*rows[:i], *rows[i + 1 :]]
        for bad in (changed, dropped if i < 4 else changed):
            mirror = place.mirror()
            with pytest.raises(LedgerError):
                mirror.take(bad)
            assert mirror.size == 0, "all of a page or nothing"
    with pytest.raises(LedgerError):
        place.mirror().take([rows[1], rows[0]])


def test_a_page_that_is_refused_leaves_nothing_behind(place):
    for i in range(3):
        place.service.append(b'{"n":%d}' % i)
    rows = place.service.page(0)
    mirror = place.mirror()
    with pytest.raises(LedgerError, match="0 of 4"):  # the log's own signature only
        mirror.take([*rows[:2], Row(rows[2].record, place.ledger.checkpoint_of(3))])
    assert len(mirror.take(rows)) == 3


def test_text_that_is_no_unicode_is_refused(place):
    place.service.append(b'{"n":0}')
    (row,) = place.service.page(0)
    for bad in (
        Row("\ud800", None),
        Row("\ud800", row.checkpoint),
        Row(row.record, "\ud800\n\n\n"),
    ):
        with pytest.raises(LedgerError, match="Unicode"):
            place.mirror().take([bad])


def test_a_log_that_shows_another_history_gets_no_quorum(place, tmp_path):
    place.service.append(b'{"n":0}')
    from earmark.ledger.keyfile import key_path, read_key

    signer = read_key(key_path(tmp_path / "a.sqlite"), place.key)
    with SqliteLedger.create(tmp_path / "fork.sqlite", ORIGIN, signer=signer) as fork:
        service = LogService(fork, tmp_path / "fork.notes", place.quorum, place.asks())
        service.append(b'{"n":"other"}')
        assert service.cosigned(1) is None
        assert place.mirror().take(service.page(0)) == []
        service.close()
    assert len(place.witnesses[0].faults(ORIGIN)) == 1


def test_a_quorum_of_strangers_or_another_log_is_refused(place, tmp_path):
    place.service.append(b'{"n":0}')
    other = Place(tmp_path, "b")
    other.service.append(b'{"n":0}')
    with pytest.raises(SignatureError):
        place.mirror().take(other.service.page(0))
    with pytest.raises(LedgerError, match="0 of 4"):
        Mirror(place.key, other.quorum).take(place.service.page(0))
    other.close()


def test_large_records_are_refused(place):
    with pytest.raises(LedgerError, match="too large"):
        place.service.append(b'"' + b"x" * (1 << 18) + b'"')


def test_blobs(tmp_path):
    store = BlobStore(tmp_path / "blobs", limit=10)
    name = store.put(b"data")
    assert store.put(b"data") == name
    assert store.path(name).read_bytes() == b"data"
    for bad in ("0" * 64, "../" + name, name.upper(), ""):
        assert store.path(bad) is None
    with pytest.raises(OutputError):
        store.put(b"x" * 11)


def test_one_witness_that_never_answers_does_not_hold_up_the_log(place, monkeypatch):
    monkeypatch.setattr(service, "_GRACE", 0.05)
    let_go, asked = threading.Event(), []

    def silent(request):
        asked.append(request.old)
        let_go.wait(60)
        raise NetworkError("at last")

    last = str(place.witnesses[3].verifier)
    place.service._asks[last] = silent
    try:
        for n in range(6):  # more than there are threads
            place.service.append(b'{"n":%d}' % n)
            assert place.service.cosigned(n + 1) is not None
        assert len(asked) == 1
        assert place.mirror().take(place.service.page(0))
    finally:
        let_go.set()
    place.service._owing[last].result(60)
    place.service.append(b'{"n":"again"}')
    assert len(asked) == 2


def _raises(error):
    def ask(request):
        raise error

    return ask


@pytest.mark.parametrize(
    "answer",
    [
        _raises(ValueError("garbage")),
        _raises(WitnessError("no", status=409)),
        _raises(WitnessError("no", status=409, size=-1)),
        _raises(WitnessError("no", status=409, size=1 << 60)),
        lambda request: None,
        lambda request: NoteSignature("w0/w", b"abcd", b"x" * 72),
        lambda request: NoteSignature("w3/w", b"abcd", b"x" * 150_000),
    ],
)
def test_whatever_one_witness_answers_the_others_are_enough(place, answer):
    place.service._asks[str(place.witnesses[3].verifier)] = answer
    for n in range(2):
        place.service.append(b'{"n":%d}' % n)
    assert len(place.mirror().take(place.service.page(0))) == 2


@pytest.mark.parametrize("size", [72, 49_130])
def test_lines_that_do_not_verify_under_the_key_that_was_asked_are_left_out(place, size):
    """Two witnesses' names and ids with junk, each as large as a reader takes, broke the note."""
    for one in place.witnesses[2:]:
        line = NoteSignature(one.verifier.name, one.verifier.key_id, b"x" * size)
        place.service._asks[str(one.verifier)] = lambda request, line=line: line
    first = place.witnesses[0]
    place.service._asks[str(place.witnesses[1].verifier)] = first.add  # another one's line
    receipt = place.service.append(b'{"n":0}')
    names = [item.name for item in SignedCheckpoint.parse(receipt.checkpoint).note.signatures]
    assert names == [ORIGIN, "w0/w"]
