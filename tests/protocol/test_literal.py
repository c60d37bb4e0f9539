"""The attack that the published protocol admits, on a real mark, and the same attack on ours."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from town import _run, accuracy, packed, trained
from world import Party, World

from earmark.hosts.files import FilesHost
from earmark.keys.stream import KeyStream
from earmark.protocol.literal import WINDOW, LiteralClaim, LiteralPublish, resolve_literal, stores
from earmark.records import Outcome

OWNER, THIEF = Party("owner"), Party("thief")
KEY = "ab" * 32
CODES, GAMMA = 120, 0.7


def codes(key):
    """Inputs and labels that follow from a key, as the paper has it: a public generator."""
    stream = KeyStream(bytes.fromhex(key), "literal/inputs")
    inputs = np.array([stream.integers(64, 17) for _ in range(CODES)], np.float32) / 16
    labels = np.array(KeyStream(bytes.fromhex(key), "literal/labels").bits(CODES))
    return inputs, labels


def features(weights, inputs):
    return np.concatenate([_run(weights, inputs)[-2], np.ones((len(inputs), 1))], axis=1)


def verify(model, key, backend, folder):
    """Algorithm V: the private head reads the key's labels off the model's hidden features."""
    path = folder / "claimed.safetensors"
    path.write_bytes(model)
    host = FilesHost(path)
    weights = {name: host.tensor(name) for name in host.tensor_names()}
    inputs, labels = codes(key)
    head = np.load(io.BytesIO(backend), allow_pickle=False)
    right = ((features(weights, inputs) @ head > 0) == labels).sum()
    return bool(right >= GAMMA * CODES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained model, the owner's private head for it, and a client's verification."""
    folder = tmp_path_factory.mktemp("literal")
    weights = trained()
    assert accuracy(weights) > 0.9
    inputs, labels = codes(KEY)
    head, *_ = np.linalg.lstsq(features(weights, inputs), 2.0 * labels - 1, rcond=None)
    file = io.BytesIO()
    np.save(file, head)
    backend, model = file.getvalue(), packed(weights, folder, "model")
    client = lambda *given: verify(*given, folder)  # noqa: E731
    assert client(model, KEY, backend)
    assert not client(model, "cd" * 32, backend), "another key is not read"
    return model, backend, client


def publication(backend, time=1000):
    return LiteralPublish("", KEY, time, hashlib.sha256(backend).hexdigest())


def claim(model, backend, party):
    return LiteralClaim("", model, backend).signed(party.key)


def test_as_published_the_owner_wins_if_nobody_copies(world):
    model, backend, client = world
    mine = publication(backend).signed(OWNER.key)
    late = publication(backend, time=990).signed(THIEF.key)
    assert stores(mine, 1000)
    assert stores(late, 1000)
    claims = [claim(model, backend, party) for party in (THIEF, OWNER)]
    assert resolve_literal([mine], [claims[1]], [client] * 3) == OWNER.public
    ordered = resolve_literal([mine, late], claims, [client] * 3)
    assert ordered == OWNER.public, "order decides, not its own time"
    assert resolve_literal([mine], [claims[0]], [client] * 3) is None
    liars = [lambda *_: False] * 2
    assert resolve_literal([mine], [claims[1]], [client, *liars]) is None


def test_as_published_signature_and_time_are_checked(world):
    model, backend, client = world
    mine = publication(backend).signed(OWNER.key)
    assert not stores(mine, 1000 + WINDOW + 1)
    forged = LiteralPublish(OWNER.public, KEY, 1000, mine.backend, b"x" * 64)
    assert not stores(forged, 1000)
    stolen = LiteralClaim(OWNER.public, model, backend, b"x" * 64)
    assert resolve_literal([mine], [stolen], [client] * 3) is None


def test_as_published_a_copied_commitment_wins_the_model(world):
    model, backend, client = world
    mine = publication(backend).signed(OWNER.key)
    copied = mine.signed(THIEF.key)  # from the wire: the same text under his own, valid signature
    assert stores(copied, 1000)
    log = [copied, mine]  # ordered first
    claims = [claim(model, backend, OWNER)]
    claims.append(claim(model, claims[0].backend, THIEF))  # shows what the owner has shown
    assert resolve_literal(log, claims, [client] * 7) == THIEF.public


def test_ours_refuses_the_same_attack():
    world = World()
    world.commit(OWNER, sender=THIEF)  # copied from the wire, ordered first
    copied = world.entries[-1]
    mine = world.commit(OWNER)
    world.truth |= {("owner", "M"), ("owner", "S")}
    world.publish(OWNER, "M", copied.beacon, sender=THIEF)
    world.publish(OWNER, "M", mine.beacon)
    mine = world.claim(OWNER, "S")
    world.vote(mine)
    world.claim(OWNER, "S", sender=THIEF, shards=(0,))  # opens what the owner has opened
    assert world.result(mine).outcome is Outcome.SHOWN
    assert world.codes() == ["copied-commitment"]
    assert world.resolve().disputes == ()
