"""The attack that the published protocol admits, and the same attack on ours."""

from __future__ import annotations

import hashlib

from world import Party, World

from earmark.protocol.literal import LiteralClaim, LiteralPublish, resolve_literal
from earmark.records import Outcome

BACKEND, MODEL = b"the owner's private head", b"the owner's model"
DIGEST = hashlib.sha256(BACKEND).hexdigest()


def verify(model, key, backend):
    return (model, key, backend) == (MODEL, "owner's key", BACKEND)


def claim(sender):
    return LiteralClaim(sender, MODEL, BACKEND)


def test_as_published_the_owner_wins_if_nobody_copies():
    log = [LiteralPublish("owner", "owner's key", 1, DIGEST)]
    late = LiteralPublish("thief", "owner's key", 0, DIGEST)
    assert resolve_literal(log, [claim("owner")], [verify] * 3) == "owner"
    both = [claim("thief"), claim("owner")]
    assert resolve_literal([*log, late], both, [verify] * 3) == "owner", "order, not its own time"
    assert resolve_literal(log, [claim("thief")], [verify] * 3) is None
    liars = [lambda *_: False] * 2
    assert resolve_literal(log, [claim("owner")], [verify, *liars]) is None


def test_as_published_a_copied_commitment_wins_the_model():
    log = [
        LiteralPublish("thief", "owner's key", 1, DIGEST),  # copied from the wire, ordered first
        LiteralPublish("owner", "owner's key", 0, DIGEST),
    ]
    claims = [claim("owner"), claim("thief")]  # the thief opens what the owner has opened
    assert resolve_literal(log, claims, [verify] * 7) == "thief"


def test_ours_refuses_the_same_attack():
    owner, thief, world = Party("owner"), Party("thief"), World()
    world.commit(owner, sender=thief)  # copied from the wire, ordered first
    copied = world.entries[-1]
    world.commit(owner)
    world.truth |= {("owner", "M"), ("owner", "S")}
    world.publish(owner, "M", copied.beacon, sender=thief)
    world.publish(owner, "M", copied.beacon)
    mine = world.claim(owner, "S")
    world.vote(mine)
    world.claim(owner, "S", sender=thief, shards=(0,))  # opens what the owner has opened
    assert world.result(mine).outcome is Outcome.SHOWN
    assert world.codes() == ["copied-commitment"]
    assert world.resolve().disputes == ()
