"""Who holds a suspect that carries two marks, and with whom a claim is compared."""

from __future__ import annotations

import pytest
from world import LAYOUT, OWNER, THIEF, Party, World, claimed, overwritten, protected

from earmark.protocol.rules import Code
from earmark.protocol.voting import MAX_RIVALS, questions
from earmark.records import Outcome


def dispute(world):
    (found,) = world.resolve().disputes
    return found


@pytest.mark.parametrize("order", [("owner", "thief"), ("thief", "owner")])
def test_overwriting_loses_by_containment(order):
    world, claims = overwritten(order)
    found = dispute(world)
    assert (found.holder, found.code) == (claims["owner"], Code.CONTAINMENT)
    assert len(found.claims) == 2


def test_pre_registration_and_overwriting_lose_by_containment():
    world = World()
    entry = world.commit(THIEF)  # before the owner has released anything
    world.register(OWNER, "M")
    world.truth |= {("owner", "S"), ("thief", "S")}
    world.publish(THIEF, "S", entry.beacon)
    _, result = claimed(world, THIEF, "S")
    assert result.outcome is Outcome.SHOWN
    mine, _ = claimed(world, OWNER, "S")
    found = dispute(world)
    assert (found.holder, found.code) == (mine, Code.CONTAINMENT)


@pytest.mark.parametrize("first", [OWNER, THIEF])
@pytest.mark.parametrize("earlier_wins", [False, True])
def test_with_a_toy_the_records_do_not_tell(first, earlier_wins):
    world = World(earlier_wins=earlier_wins)
    parties = [OWNER, THIEF] if first is OWNER else [THIEF, OWNER]
    for party in parties:
        world.register(party, "M" if party is OWNER else "toy")
    world.truth |= {("owner", "S"), ("thief", "S")}
    claims = {party.name: claimed(world, party, "S")[0] for party in (OWNER, THIEF)}
    found = dispute(world)
    if earlier_wins:
        assert (found.holder, found.code) == (claims[first.name], Code.PRIORITY)
    else:
        assert (found.holder, found.code) == (None, Code.UNDECIDABLE)


def crowded(count):
    """Many owners register toys of no use before the thief overwrites the owner's release."""
    world = protected()
    made = [Party(f"crowd {i}") for i in range(count)]
    for one in made:
        world.register(one, f"toy of {one.name}")
    world.register(THIEF, "S")
    return world, made


def test_claims_that_showed_nothing_crowd_nobody_out():
    world, dummies = crowded(2 * MAX_RIVALS)
    for one in dummies:
        world.vote(world.claim(one, "S"))
    theirs, mine = world.claim(THIEF, "S"), world.claim(OWNER, "S")
    world.vote(theirs)
    world.vote(mine)
    assert world.history.claims[mine].rivals == (theirs,)
    assert (dispute(world).holder, dispute(world).code) == (mine, Code.CONTAINMENT)


def test_open_claims_crowd_nobody_out_for_good():
    """A thief keeps sixteen claims open before his own; the owner's next claim settles it."""
    world, dummies = crowded(MAX_RIVALS)
    for one in dummies:
        world.claim(one, "S", shards=(0,))
    theirs, first = world.claim(THIEF, "S", shards=(0,)), world.claim(OWNER, "S", shards=(0,))
    world.vote(theirs)
    world.vote(first)
    assert dispute(world).code is Code.UNDECIDABLE
    for one in dummies:
        world.claim(one, "S", shards=(1,))
    again = world.claim(OWNER, "S", shards=(1,))
    theirs = world.claim(THIEF, "S", shards=(1,))
    for claim in (again, theirs):
        world.vote(claim)
    world.close()
    assert (dispute(world).holder, dispute(world).code) == (again, Code.CONTAINMENT)


def test_many_claims_with_one_key_are_one_rival():
    world, loud = crowded(MAX_RIVALS // LAYOUT.shards)
    world.truth |= {(one.name, "S") for one in loud}
    for one in loud:
        for shard in range(LAYOUT.shards):
            world.vote(world.claim(one, "S", shards=(shard,)))
    theirs = world.claim(THIEF, "S")
    world.vote(theirs)
    mine = world.claim(OWNER, "S")
    rivals = world.history.claims[mine].rivals
    assert len(rivals) == len(loud) + 1
    assert theirs in rivals


def test_whom_a_claim_is_compared_with_is_settled_when_it_comes():
    world, (one,) = crowded(1)
    open_then = world.claim(one, "S")
    mine = world.claim(OWNER, "S")
    asked = questions(world.history, world.history.claims[mine])
    world.vote(open_then)
    assert world.result(open_then).outcome is Outcome.NOT_SHOWN
    assert questions(world.history, world.history.claims[mine]) == asked
    assert world.history.claims[mine].rivals == (open_then,)
    later = world.claim(OWNER, "S")
    assert world.history.claims[later].rivals == ()


def test_mutual_containment_is_undecidable():
    world, _ = overwritten()
    world.truth.add(("thief", "M"))
    third = protected()
    third.truth.add(("thief", "M"))
    third.register(THIEF, "S")
    claimed(third, OWNER, "S")
    claimed(third, THIEF, "S")
    assert dispute(third).code is Code.UNDECIDABLE


def test_a_refused_or_failed_rival_is_no_dispute():
    world = protected()
    world.register(THIEF, "toy")
    claimed(world, THIEF, "S")
    _, result = claimed(world, OWNER, "S")
    assert result.outcome is Outcome.SHOWN
    assert world.resolve().disputes == ()


def test_whoever_comes_after_the_suspect_is_known_is_no_party():
    world, _ = overwritten()
    late = Party("late thief")
    world.register(late, "S again")
    world.truth.add((late.name, "S"))
    world.claim(late, "S")
    assert world.codes() == ["late-key"]
