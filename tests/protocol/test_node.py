"""One node that is a community by itself: what it does by itself, and what it refuses to do."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass

import pytest
from town import SCHEME, packed, stamped
from world import Party, sha

from earmark.cli.main import run
from earmark.errors import FileError, NetworkError, OutputError, UsageError
from earmark.hosts.arrays import ArrayHost
from earmark.policy import Policy
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.client import Client
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.history import genesis_digest
from earmark.protocol.node import SEALS, Node, fairly
from earmark.protocol.rules import Rules
from earmark.protocol.verifier import code_digest
from earmark.protocol.voting import own, questions
from earmark.records import Outcome

OWNER, THIEF = Party("owner"), Party("thief")
DOMAIN = "example.org/alone"
PATIENCE = 120
"""Seconds after which a test that waits has failed; nothing is measured by them."""


def alone(folder, *, url="http://127.0.0.1:9", **settings):
    card = c.init_node(folder, operator="lab", url=url)
    rules = Rules(DOMAIN, (m.Member("lab", card.member),), Policy.at("trace"), **settings)
    c.join(folder, c.found(folder, [card], rules))
    return Node(folder)


def tell(node, cls, *, step=True, by=OWNER, **body):
    after = genesis_digest(DOMAIN)
    if node.mirror.entries:
        after = m.checkpoint_digest(node.mirror.entries[-1].checkpoint.body.text)
    head = {"domain": DOMAIN, "sender": by.public, "nonce": m.fresh_nonce(), "after": after}
    envelope = cls(**head, **body).sign(by.key)
    node.append(envelope.encode())
    if step:
        node.step()
    return envelope.digest()


def weights():
    import numpy as np

    rng = np.random.default_rng(0)
    made = {f"fc{i}.weight": rng.normal(size=(64, 64)).astype(np.float32) for i in range(3)}
    return made | {"head.weight": rng.normal(size=(10, 64)).astype(np.float32)}


def committed(node, by=OWNER, secret=0):
    """Commit to a key; return its opening, the key as it is bound, and the value drawn for it."""
    key = SCHEME.new_key(ArrayHost(weights()), secret=bytes([secret] * 32))
    opening = key.opening(by.public)
    node.step()
    tell(node, m.Commit, by=by, commitment=opening.commitment(), recovery=None)
    node.step()
    value = node.history.beacon(node.history.commits[opening.commitment()][0])
    return opening, key.bind(value), value


def published(node, opening, value, model, by=OWNER):
    about = {"commitment": opening.commitment(), "model": model, "beacon": value}
    tell(node, m.Publish, by=by, files={"m": model}, license="", where="", **about)


def claimed(node, tmp_path, *, rounds=8, before=lambda suspect: None):
    """Register a small marked model and claim it, the node drawing as it goes."""
    opening, bound, value = committed(node)
    model = node.blobs.put(packed(stamped(weights(), bound), tmp_path, "m"))
    published(node, opening, value, model)
    before(model)
    disclosure = node.blobs.put(DisclosureFile.of(bound, (0, 1, 2)).canonical())
    about = {"disclosure": disclosure, "shards": (0, 1, 2), "inputs": None}
    claim = tell(node, m.Claim, opening=opening, suspect=model, **about)
    for _ in range(rounds):
        node.step()
        node.work()
    return claim


def hollow(node):
    """Have a thief commit; return how he claims a suspect with files that nobody ever gets."""
    opening, _, value = committed(node, THIEF, 1)

    def claim(suspect):
        published(node, opening, value, sha("a release that is nowhere"), THIEF)
        about = {"disclosure": sha("nowhere either"), "shards": (0,), "inputs": None}
        tell(node, m.Claim, by=THIEF, step=False, opening=opening, suspect=suspect, **about)

    return claim


def test_a_witness_begins_once_and_never_anew_under_its_key(tmp_path):
    """Else whoever has the log's key gets it to cosign another history of the same size."""
    folder = tmp_path / "n"
    node = alone(folder)
    tell(node, m.Commit, commitment=sha("a"), recovery=None)
    made = node.community
    node.close()
    memory = (folder / c.WITNESS).rename(tmp_path / "memory")
    with pytest.raises(FileError, match="memory of witness"):
        Node(folder)
    with pytest.raises(UsageError, match="has joined a community already"):
        c.join(folder, made)
    (folder / c.COMMUNITY).unlink()
    with pytest.raises(FileError, match="memory of witness"):
        c.join(folder, made)
    memory.rename(folder / c.WITNESS)
    c.join(folder, made)
    node = Node(folder)
    assert node.witness.size(DOMAIN) == 1
    node.close()


def test_only_a_communitys_nodes_join_it(tmp_path):
    made = alone(tmp_path / "n").community
    c.init_node(tmp_path / "other", operator="other", url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="'other' is no node"):
        c.join(tmp_path / "other", made)
    assert not (tmp_path / "other" / c.WITNESS).exists()


@pytest.mark.parametrize("pinned", [(), (code_digest(),)])
def test_it_draws_measures_votes_and_decides(tmp_path, pinned):
    node = alone(tmp_path / "n", draw_seconds=60, verifiers=pinned)
    claim = claimed(node, tmp_path)
    result = node.resolution().claim(claim)
    assert node.trouble is None
    assert result.outcome is Outcome.SHOWN
    node.close()
    again = Node(tmp_path / "n")  # from what is on the disk
    again.step()
    assert again.resolution().claim(claim) == result
    assert again.history.draws.waiting("lab") >= 6
    again.close()


def test_another_verifier_than_the_pinned_one_does_not_vote(tmp_path):
    node = alone(tmp_path / "n", draw_seconds=60, verifiers=(sha("another"),))
    claim = claimed(node, tmp_path)
    assert "not the pinned one" in node.trouble
    assert node.history.claims[claim].commits == []
    node.close()


def test_an_entry_that_could_not_be_read_is_read_at_the_next_round(tmp_path, monkeypatch):
    node = alone(tmp_path / "n")
    for number in range(3):
        about = {"commitment": sha(number), "recovery": None}
        tell(node, m.Commit, step=False, **about)

    def broken(entry):
        raise NetworkError("Not now.")

    with monkeypatch.context() as patch:
        patch.setattr(node.history, "read", broken)
        with pytest.raises(NetworkError):
            node.sync()
    node.sync()
    assert node.mirror.size == node.history.size == 3
    service, node.service = node.service, None
    assert node.prove(1, 3) == service.ledger.prove(1, 3)
    node.service = service
    node.close()


def test_a_vote_is_sent_again_if_the_log_did_not_answer(tmp_path, monkeypatch):
    node = alone(tmp_path / "n", draw_seconds=60)
    send, failed = node.send, []

    def unreliable(kind, **body):
        if kind is not m.Seal and kind not in failed:
            failed.append(kind)
            raise NetworkError("The log does not answer.")
        return send(kind, **body)

    monkeypatch.setattr(node, "send", unreliable)

    step = node.step

    def patient():
        try:
            step()
        except NetworkError:
            step()

    monkeypatch.setattr(node, "step", patient)
    claim = claimed(node, tmp_path)
    assert failed == [m.Draw, m.VoteCommit, m.VoteReveal]
    assert node.resolution().claim(claim).outcome is Outcome.SHOWN
    node.close()


def test_a_strangers_commitments_leave_an_owners_a_value(tmp_path):
    node = alone(tmp_path / "n", draw_seconds=60)
    for _ in range(2):
        node.step()
    assert node.history.draws.waiting("lab") == SEALS
    size = node.mirror.size
    node.step()
    assert node.mirror.size == size, "enough are sealed"
    for number in range(40):
        tell(node, m.Commit, step=False, by=THIEF, commitment=sha(number), recovery=None)
    entry = tell(node, m.Commit, step=False, commitment=sha("mine"), recovery=None)
    for _ in range(3):
        node.step()
    assert node.history.draws.value(entry, node.history.time) is not None
    assert node.history.draws.waiting("lab") >= SEALS
    node.close()


def test_a_slow_measurement_holds_up_no_draw(tmp_path, monkeypatch):
    node = alone(tmp_path / "n", draw_seconds=60)
    claim = claimed(node, tmp_path, rounds=0)
    measure, send = node.measure, node.send
    begun, go, drawn, shown, stop = (threading.Event() for _ in range(5))

    def slow(question):
        begun.set()
        go.wait()
        return measure(question)

    def heard(kind, **body):
        index = send(kind, **body)
        if kind is m.Draw and body["entry"] == other:
            drawn.set()
        if kind is m.VoteReveal:
            shown.set()
        return index

    monkeypatch.setattr(node, "measure", slow)
    monkeypatch.setattr(node, "send", heard)
    thread = threading.Thread(target=node.run, args=(stop,), kwargs={"seconds": 0.01})
    other = None
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        other = tell(node, m.Commit, step=False, commitment=sha("another"), recovery=None)
        assert drawn.wait(PATIENCE)
        assert not node.history.claims[claim].commits
        go.set()
        assert shown.wait(PATIENCE)
    finally:
        go.set()
        stop.set()
        thread.join()
    node.sync()
    assert node.resolution().claim(claim).outcome is Outcome.SHOWN
    node.close()


def test_a_node_that_cannot_measure_any_more_stops(tmp_path, monkeypatch):
    node = alone(tmp_path / "n", draw_seconds=60)
    claimed(node, tmp_path, rounds=0)

    def broken(question):
        raise OSError("no space left")

    monkeypatch.setattr(node, "measure", broken)
    with pytest.raises(OSError, match="no space left"):
        node.run(threading.Event(), seconds=0.01)
    node.close()


def test_a_rival_who_keeps_his_files_back_stops_nobodys_claim(tmp_path):
    node = alone(tmp_path / "n", draw_seconds=60)
    claim = claimed(node, tmp_path, before=hollow(node))
    assert len(node.history.claims[claim].rivals) == 1
    assert node.resolution().claim(claim).outcome is Outcome.SHOWN
    node.close()


def test_slow_comparisons_end_before_the_window_does(tmp_path, monkeypatch):
    node = alone(tmp_path / "n", draw_seconds=60)
    measure, clock, late, asked = node.measure, time.time, [0.0], []
    monkeypatch.setattr("earmark.protocol.node.time.time", lambda: clock() + late[0])

    def slow(question):
        asked.append(question)
        late[0] = 0.9 * node.rules.commit_seconds
        return measure(question)

    monkeypatch.setattr(node, "measure", slow)
    claim = claimed(node, tmp_path, before=hollow(node))
    file = node.history.claims[claim]
    assert len(questions(node.history, file)) == 3
    assert [item for item in asked if item.claim == claim] == [own(file)[0]]
    assert node.resolution().claim(claim).outcome is Outcome.SHOWN
    node.close()


def test_a_claim_that_fails_again_and_again_holds_up_no_other(tmp_path, monkeypatch):
    node = alone(tmp_path / "n", draw_seconds=60)
    claim = claimed(node, tmp_path, rounds=0, before=hollow(node))
    answer, asked = node.answer, []

    def slow(file):
        asked.append(file.id)
        if len(asked) < 5:
            node.step()  # as it goes on while something is measured
        return answer(file)

    monkeypatch.setattr(node, "answer", slow)
    for _ in range(3):
        node.step()
    node.work()
    assert asked.index(claim) == 1, "after the other's first failure"
    node.close()


def test_a_node_that_ends_by_itself_serves_no_longer(tmp_path, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    alone(tmp_path / "n", url=url).close()

    def ended(self, stop, *, seconds):
        raise OutputError("no space left")

    monkeypatch.setattr(Node, "run", ended)
    assert run(["node", "serve", str(tmp_path / "n")]) == OutputError.exit_code
    assert "no space left" in capsys.readouterr().err


def test_a_file_that_is_not_to_be_had_is_told_and_asked_for_again(tmp_path, monkeypatch):
    node = alone(tmp_path / "n", draw_seconds=60)
    fetch = node.fetch

    def gone(digest):
        raise NetworkError("The file is not to be had.")

    monkeypatch.setattr(node, "fetch", gone)
    claim = claimed(node, tmp_path, rounds=2)
    node.step()
    assert node.trouble == f"claim {claim[:12]}: E405  The file is not to be had."
    monkeypatch.setattr(node, "fetch", fetch)
    for _ in range(3):
        node.work()
        node.step()
    assert node.resolution().claim(claim).outcome is Outcome.SHOWN
    node.close()


@dataclass(frozen=True)
class File:
    owner: str
    index: int

    @property
    def logged(self):
        return self


def test_who_floods_waits_for_himself():
    flood = [(File("flooder", i), None) for i in range(100)]
    late = [(File("a", 100), None), (File("b", 101), None), (File("a", 102), None)]
    order = [(item.owner, item.index) for item, _ in fairly([*flood, *late])]
    assert order[:3] == [("flooder", 0), ("a", 100), ("b", 101)]
    assert order[3:5] == [("flooder", 1), ("a", 102)]
    assert len(order) == 103


def test_a_nodes_words_are_quoted_and_cut(monkeypatch):
    said = b"no\x1b[2J\r\n" + b"x" * 4000
    monkeypatch.setattr(Client, "exchange", lambda *_, **__: (500, said))
    with pytest.raises(NetworkError, match="answered 500: ") as caught:
        Client("http://node").call("/api/log")
    assert caught.value.what.isprintable()
    assert len(caught.value.what) < 400
