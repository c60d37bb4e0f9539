"""Keys bound to a community's log: drawn there, proven offline, held to by the community."""

from __future__ import annotations

import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from town import SCHEME, ports
from village import Wire

from earmark import codec
from earmark.cli.main import run
from earmark.cli.report import write_claim
from earmark.errors import DossierError, LedgerError, NetworkError
from earmark.hosts.arrays import ArrayHost
from earmark.ledger.service import Row
from earmark.policy import Policy
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.binding import Binding, bind
from earmark.protocol.node import Node
from earmark.protocol.party import Party
from earmark.protocol.rules import Rules
from earmark.records import now
from earmark.report.checks import check_dossier
from earmark.vault import Vault
from earmark.web.server import Server
from earmark.web.service import create_app

WORD = "a passphrase"


@pytest.fixture(scope="module")
def community(tmp_path_factory):
    """Run one node that draws values; return the community's file."""
    folder = tmp_path_factory.mktemp("node")
    (port,) = ports(1)
    card = c.init_node(folder, operator="lab", url=f"http://127.0.0.1:{port}")
    rules = Rules("example.org/bound", (m.Member("lab", card.member),), draw_seconds=20)
    made = c.found(folder, [card], rules)
    c.join(folder, made)
    node = Node(folder)
    server, stop = Server(create_app(node), ("127.0.0.1", port)), threading.Event()
    threads = [
        threading.Thread(target=server.run),
        threading.Thread(target=node.run, args=(stop,), kwargs={"seconds": 0.05}),
    ]
    for thread in threads:
        thread.start()
    party = Party(made)
    for _ in range(200):  # until the node has sealed what it will draw
        party.sync()
        if party.history.draws.waiting("lab"):
            break
        stop.wait(0.1)
    yield folder / c.COMMUNITY
    stop.set()
    server.should_exit = True
    for thread in threads:
        thread.join()
    node.close()


def weights():
    rng = np.random.default_rng(0)
    shapes = {"fc0.weight": (128, 64), "fc1.weight": (128, 128), "fc2.weight": (128, 128)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def bound(community, tmp_path_factory):
    """Protect some weights with a key that is bound to the community's log."""
    folder = tmp_path_factory.mktemp("owner")
    vault = Vault.create(folder / "vault", name="Owner", passphrase=WORD)
    key = SCHEME.new_key(ArrayHost(weights()))
    party = Party.open(community, vault.identity(WORD))
    key, registration = vault.commit(key, WORD, shared=lambda value: bind(party, value))
    return vault, key, registration


def test_the_key_has_the_value_that_was_drawn(bound, community):
    vault, key, registration = bound
    binding = vault.binding(registration)
    assert key.beacon == binding.beacon == vault.beacon(registration)
    from earmark.ledger.port import beacon

    assert key.beacon != beacon(registration.receipt), "not its owner's own ledger's"
    again = vault.key(registration.id, WORD)
    assert again == key
    party = Party.open(community)
    assert party.beacon(registration.commitment.commitment) == key.beacon
    entry = binding.verify(registration.commitment.commitment, vault.owner)
    assert entry.entry.time > 0


def test_a_binding_that_was_changed_is_refused(bound):
    vault, _, registration = bound
    binding = vault.binding(registration)
    commitment, owner = registration.commitment.commitment, vault.owner
    for bad in (
        replace(binding, beacon=codec.digest(b"better")),
        replace(binding, entry=codec.digest(b"other")),
        replace(binding, rows=binding.rows[:1]),
        replace(binding, rows=binding.rows[1:]),
        replace(binding, rows=(Row('{"n":1}', binding.rows[0].checkpoint), *binding.rows[1:])),
        replace(binding, rows=tuple(Row(row.record, None) for row in binding.rows)),
        replace(
            binding,
            community=replace(
                binding.community, rules=replace(binding.community.rules, draw_seconds=21)
            ),
        ),
    ):
        if bad.community.rules.draw_seconds == 21:
            bad.verify(commitment, owner)  # another community file: its digest gives it away
            assert bad.community.digest() != binding.community.digest()
            continue
        with pytest.raises(LedgerError):
            bad.verify(commitment, owner)
    for other in ((codec.digest(b"c"), owner), (commitment, codec.digest(b"o"))):
        with pytest.raises(LedgerError, match="does not begin with"):
            binding.verify(*other)
    path = vault._binding_path(registration.id)
    whole = path.read_bytes()
    path.write_bytes(replace(binding, beacon=codec.digest(b"better")).canonical())
    with pytest.raises(LedgerError):
        vault.key(registration.id, WORD)
    path.write_bytes(whole)
    assert Binding.from_bytes(whole) == binding


def test_the_community_takes_it_and_no_other(bound, community, tmp_path, monkeypatch, capsys):
    vault, key, registration = bound
    monkeypatch.setenv("EARMARK_PASSPHRASE", WORD)
    release = tmp_path / "release.safetensors"
    from earmark.hosts.files import write_tensors

    write_tensors(release, dict(SCHEME.stamp(ArrayHost(weights()), key).tensors))
    told = ["--vault", str(vault.path), "--community", str(community)]
    assert run(["claim", "register", str(release), "--key", registration.id, *told]) == 0
    other = Vault.create(tmp_path / "other", name="Other", passphrase=WORD)
    other.commit(SCHEME.new_key(ArrayHost(weights())), WORD)
    told = ["--vault", str(other.path), "--community", str(community)]
    assert run(["claim", "register", str(release), *told]) == 2
    assert "Protect the model with --community" in capsys.readouterr().err


def test_a_dossier_proves_the_binding_offline(bound, tmp_path):
    vault, key, registration = bound
    suspect = SCHEME.stamp(ArrayHost(weights()), key)
    registration = vault.release(registration, {"release.safetensors": codec.digest(b"r")})
    found = SCHEME.measure(suspect, key)
    found = replace(found, nonce="ab" * 32, suspect=codec.digest(b"s"))
    write_claim(tmp_path / "d", vault, registration, found, Policy.at("trace"), "suspect", WORD)
    checks = {check.name: check for check in check_dossier(tmp_path / "d")}
    community = vault.binding(registration).community
    assert checks["release"].status == "verified"
    assert community.digest() in checks["release"].detail
    path = tmp_path / "d" / "ledger" / "binding.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"shown"', b'"shewn"')[:-1])
    with pytest.raises(DossierError, match=r"binding\.json"):
        check_dossier(tmp_path / "d")
    assert now() >= registration.releases[-1].created


def kept(vault):
    """Return the files of a vault, and the head of its ledger."""
    return sorted(vault.path.rglob("*")), str(vault.ledger.head())


def test_where_the_log_falls_silent_nothing_is_kept_and_the_way_on_is_told(
    community, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("EARMARK_PASSPHRASE", WORD)
    from earmark.hosts.files import write_tensors

    plain, made = tmp_path / "plain.safetensors", tmp_path / "vault"
    write_tensors(plain, weights())
    vault = Vault.create(made, name="Owner", passphrase=WORD)
    command = ["stamp", str(plain), "-o", str(tmp_path / "out"), "--vault", str(made)]
    command += ["--set", "weights_per_bit=64", "--community", str(community)]
    before = kept(vault)

    def lost(*_):
        raise NetworkError("The line is dead.")

    with monkeypatch.context() as patch:
        patch.setattr(Party, "_add", lost)
        assert run(command) == 5
    said = capsys.readouterr().err
    assert f"Vault '{made}' keeps nothing of the new key." in said
    way = said.partition("go on with:  ")[2].strip()
    assert kept(vault) == before
    assert not (tmp_path / "out").exists()
    assert way == shlex.join(["earmark", *command])
    assert run(shlex.split(way)[1:]) == 0
    assert vault.binding(vault.registration()) is not None


def test_a_line_that_is_dead_for_a_moment_loses_no_key(community, tmp_path, monkeypatch):
    vault = Vault.create(tmp_path / "v", name="Patient", passphrase=WORD)
    party = Party.open(community, vault.identity(WORD))
    committed, failed = party.committed, []

    def shaky(commitment):
        if party.history.commits.get(commitment) and len(failed) < 2:
            failed.append(commitment)
            raise NetworkError("The line is dead.")
        return committed(commitment)

    monkeypatch.setattr(party, "committed", shaky)
    key = SCHEME.new_key(ArrayHost(weights()))
    bound, made = vault.commit(key, WORD, shared=lambda value: bind(party, value))
    assert len(failed) == 2
    assert bound.beacon == vault.beacon(made)


def test_where_nothing_is_drawn_in_time_the_key_is_not_made(community, tmp_path):
    vault = Vault.create(tmp_path / "v", name="Hasty", passphrase=WORD)
    before = kept(vault)
    key = SCHEME.new_key(ArrayHost(weights()))
    party = Party.open(community, vault.identity(WORD))
    party.beacon = lambda *_, **__: None
    with pytest.raises(NetworkError, match="Nothing was drawn"):
        vault.commit(key, WORD, shared=lambda value: bind(party, value))
    assert kept(vault) == before
    del party.beacon
    with pytest.raises(LedgerError, match="in the log already"):
        vault.commit(key, WORD, shared=lambda value: bind(party, value))


def test_a_commitment_for_which_nothing_was_drawn_is_sent_again(tmp_path):
    folder = tmp_path / "n"
    card = c.init_node(folder, operator="lab", url="http://127.0.0.1:9")
    made = c.found(folder, [card], Rules("n", (m.Member("lab", card.member),), draw_seconds=1))
    c.join(folder, made)
    node, stop, silent = Node(folder), threading.Event(), []
    send = node.send

    def reluctant(kind, **body):
        """Show nothing for the first entry that something is drawn for."""
        if kind is m.Draw and body["entry"] in (silent or [body["entry"]]):
            silent.append(body["entry"])
            return 0
        return send(kind, **body)

    node.send = reluctant
    node.step()
    vault = Vault.create(tmp_path / "v", name="Unlucky", passphrase=WORD)
    party = Party(made, vault.identity(WORD))
    party.client = Wire(node)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(node.run, stop, seconds=0.05)
        key = SCHEME.new_key(ArrayHost(weights()))
        try:
            bound, registration = vault.commit(key, WORD, shared=lambda value: bind(party, value))
        finally:
            stop.set()
        working.result(60)
    binding = vault.binding(registration)
    assert len(silent) == 1
    assert binding.entry != silent[0]
    assert bound.beacon == binding.beacon == vault.beacon(registration)
    node.close()
