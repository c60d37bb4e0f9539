"""Scripted cases, each with its verdict."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from world import (
    DOMAIN,
    LAYOUT,
    OWNER,
    THIEF,
    Party,
    World,
    claimed,
    moved,
    overwritten,
    protected,
    sha,
)

from earmark.protocol import messages as m
from earmark.protocol.history import genesis_digest
from earmark.protocol.resolve import resolve
from earmark.protocol.rules import Code, Rules
from earmark.records import Layout, Outcome


def voters(result):
    return {item.operator: item.code for item in result.voters}


# -- the plain course of things ------------------------------------------------------------------


def test_a_true_claim_is_shown():
    world = protected()
    _, result = claimed(world)
    assert (result.outcome, result.code, result.closed) == (Outcome.SHOWN, Code.QUORUM, True)
    assert set(voters(result).values()) == {Code.COUNTED}
    assert world.codes() == []


def test_a_false_claim_is_not_shown():
    world = protected()
    _, result = claimed(world, suspect="innocent")
    assert (result.outcome, result.code) == (Outcome.NOT_SHOWN, Code.QUORUM)


def test_a_claim_is_open_until_its_panel_has_voted():
    world = protected()
    claim = world.claim(OWNER, "S")
    assert world.result(claim).code is Code.OPEN
    assert world.result(claim, now=10**9).code is Code.NO_QUORUM


def test_a_verbatim_copy_of_the_release_can_be_claimed():
    world = protected()
    _, result = claimed(world, suspect="M")
    assert result.outcome is Outcome.SHOWN


# -- Byzantine voters ----------------------------------------------------------------------------


@pytest.mark.parametrize("faulty", [1, 2, 3])
@pytest.mark.parametrize("how", ["liars", "silent"])
def test_f_of_3f_plus_1_voters_change_nothing(faulty, how):
    world = protected(voters=3 * faulty + 1)
    _, result = claimed(world, **{how: range(faulty)})
    assert result.outcome is Outcome.SHOWN
    expected = Code.DISSENT if how == "liars" else Code.ABSENT
    assert list(voters(result).values()).count(expected) == faulty


@pytest.mark.parametrize("faulty", [1, 2, 3])
@pytest.mark.parametrize("how", ["liars", "silent"])
def test_one_more_prevents_a_verdict_and_never_turns_it(faulty, how):
    for suspect in ("S", "innocent"):
        world = protected(voters=3 * faulty + 1)
        _, result = claimed(world, suspect=suspect, **{how: range(faulty + 1)})
        assert (result.outcome, result.code) == (Outcome.INCONCLUSIVE, Code.NO_QUORUM)


def test_a_bribed_quorum_does_turn_it_and_is_the_stated_bound():
    world = protected(voters=4)
    _, result = claimed(world, liars=range(3))
    assert result.outcome is Outcome.NOT_SHOWN
    assert list(voters(result).values()).count(Code.DISSENT) == 1


def test_a_lazy_voter_who_copies_a_sealed_ballot_cannot_open_it():
    world = protected()
    claim = world.claim(OWNER, "S")
    first, lazy, *rest = world.voters
    ballots = {voter: world.ballot(voter, claim) for voter in (first, *rest)}
    for voter, ballot in ballots.items():
        world.seal(voter, claim, ballot)
    world.seal(lazy, claim, ballots[first])
    for voter, ballot in ballots.items():
        world.reveal(voter, claim, ballot)
    world.reveal(lazy, claim, ballots[first])
    world.close()
    result = world.result(claim)
    assert voters(result)[lazy.name] is Code.MISMATCH
    assert result.outcome is Outcome.SHOWN


def test_a_lazy_voter_who_waits_for_the_ballots_is_late():
    world = protected()
    claim = world.claim(OWNER, "S")
    lazy, *rest = world.voters
    ballots = {voter: world.ballot(voter, claim) for voter in rest}
    for voter, ballot in ballots.items():
        world.seal(voter, claim, ballot)
    world.time += world.rules.commit_seconds
    for voter, ballot in ballots.items():
        world.reveal(voter, claim, ballot)
    world.seal(lazy, claim, world.ballot(lazy, claim))
    world.reveal(lazy, claim, world.ballot(lazy, claim))
    world.close()
    result = world.result(claim)
    assert voters(result)[lazy.name] is Code.LATE
    assert result.outcome is Outcome.SHOWN


def test_who_reveals_while_others_commit_loses_the_vote():
    world = protected()
    claim = world.claim(OWNER, "S")
    hasty, *rest = world.voters
    world.seal(hasty, claim, world.ballot(hasty, claim))
    world.reveal(hasty, claim, world.ballot(hasty, claim))
    for voter in rest:
        world.seal(voter, claim, world.ballot(voter, claim))
    for voter in rest:
        world.reveal(voter, claim, world.ballot(voter, claim))
    world.close()
    result = world.result(claim)
    assert voters(result)[hasty.name] is Code.EARLY
    assert result.outcome is Outcome.SHOWN


def test_who_seals_two_ballots_loses_the_vote():
    world = protected()
    claim = world.claim(OWNER, "S")
    liar, *rest = world.voters
    for flip in (False, True):
        world.seal(liar, claim, world.ballot(liar, claim, flip=flip))
    for voter in rest:
        world.seal(voter, claim, world.ballot(voter, claim))
    world.time += world.rules.commit_seconds
    for voter in world.voters:
        world.reveal(voter, claim, world.ballot(voter, claim))
    world.close()
    result = world.result(claim)
    assert voters(result)[liar.name] is Code.EQUIVOCATION
    assert result.outcome is Outcome.SHOWN


def test_a_vote_that_is_never_revealed_does_not_count():
    world = protected()
    claim = world.claim(OWNER, "S")
    for voter in world.voters:
        world.seal(voter, claim, world.ballot(voter, claim))
    for voter in world.voters[1:]:
        world.reveal(voter, claim, world.ballot(voter, claim))
    assert world.result(claim).code is Code.OPEN
    world.close()
    assert voters(world.result(claim))[world.voters[0].name] is Code.UNREVEALED
    assert world.result(claim).outcome is Outcome.SHOWN


def test_a_thousand_keys_of_one_operator_vote_once():
    voters4 = [Party(f"voter {i}") for i in range(4)]
    sybils = [Party(f"sybil {i}") for i in range(1000)]
    members = [m.Member(item.name, item.public) for item in voters4[1:]]
    members += [m.Member("sybil", item.public) for item in sybils]
    world = World()
    world.rules = Rules(DOMAIN, tuple(members))
    world.voters = [*sybils[:3], *voters4[1:]]
    world.register(OWNER, "M")
    claim = world.claim(OWNER, "innocent")
    for voter in world.voters:
        world.seal(voter, claim, world.ballot(voter, claim, flip=voter in sybils))
    world.time += world.rules.commit_seconds
    for voter in world.voters:
        world.reveal(voter, claim, world.ballot(voter, claim, flip=voter in sybils))
    world.close()
    result = world.result(claim)
    assert result.outcome is Outcome.NOT_SHOWN
    assert voters(result)["sybil"] is Code.EQUIVOCATION
    assert len(result.voters) == 4


def test_strangers_do_not_vote():
    world = protected()
    claim = world.claim(OWNER, "S")
    for i in range(20):
        stranger = Party(f"stranger {i}")
        world.seal(stranger, claim, world.ballot(stranger, claim, flip=True))
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN


def test_absurd_findings_are_abstentions():
    world = protected()
    claim = world.claim(OWNER, "S")
    asked = world.findings(claim)
    wild = tuple(
        m.Finding(item.commitment, item.model, 1 << 20, 1 << 20, item.chance, 1) for item in asked
    )
    for voter in world.voters:
        world.seal(voter, claim, m.Ballot(voter.public, claim, wild, sha(voter.name)))
    for voter in world.voters:
        world.reveal(voter, claim, m.Ballot(voter.public, claim, wild, sha(voter.name)))
    assert world.result(claim).outcome is Outcome.INCONCLUSIVE


# -- panels --------------------------------------------------------------------------------------


def test_large_rosters_are_drawn_from_after_the_claim():
    world = protected(voters=12, panel=4)
    _, result = claimed(world)
    assert len(result.voters) == 4
    assert result.outcome is Outcome.SHOWN
    entries = [
        moved(entry, beacon=sha("other")) if entry.index == result.index else entry
        for entry in world.entries
    ]
    other = resolve(entries, world.rules).claims[0]
    assert {item.operator for item in other.voters} != {item.operator for item in result.voters}


def test_a_roster_needs_a_quorum_of_the_one_before():
    world = protected()
    fresh = tuple(m.Member(f"new {i}", Party(f"new {i}").public) for i in range(4))
    for count, accepted in ((2, False), (3, True)):
        nonce = world.nonce()
        before = world.history.roster
        text = m.Roster.endorsed(DOMAIN, fresh, nonce, sender=OWNER.public, before=before)
        signed = {voter.public: voter.key.sign(text).hex() for voter in world.voters[:count]}
        signed[world.voters[3].public] = "00" * 64
        world.send(OWNER, m.Roster, nonce=nonce, members=fresh, before=before, endorsements=signed)
        claim = world.claim(OWNER, f"S{count}")
        names = {item.operator for item in world.result(claim).voters}
        assert (names == {item.operator for item in fresh}) is accepted
    assert world.codes() == ["roster"]


def test_an_old_roster_cannot_be_sent_again():
    """An expelled operator is not brought back by what the others signed to take him in."""
    world = World()
    first, evil = world.rules.members, Party("evil")

    def roster(members, sender=OWNER, **replayed):
        nonce, before = world.nonce(), world.history.roster
        text = m.Roster.endorsed(DOMAIN, members, nonce, sender=sender.public, before=before)
        body = {
            "nonce": nonce,
            "before": before,
            "endorsements": {one.public: one.key.sign(text).hex() for one in world.voters},
            **replayed,
        }
        world.send(sender, m.Roster, members=members, **body)
        return body

    with_him = (*first, m.Member("evil", evil.public))
    taken_in = roster(with_him)
    assert world.history.members == with_him
    expelled = roster(first)
    now = {"before": world.history.roster}
    for i, again in enumerate(({}, now, {**now, "nonce": world.nonce()})):
        roster(with_him, Party(f"stranger {i}"), **{**taken_in, **again})
    roster(with_him, **{**expelled, "nonce": world.nonce()})
    assert world.history.members == first
    assert world.codes() == ["roster"] * 4


# -- claims that are refused ---------------------------------------------------------------------


def test_a_copied_commitment_does_not_open_for_the_copier():
    world = World()
    opening = world.opening(OWNER)
    world.send(THIEF, m.Commit, commitment=opening.commitment(), recovery=None)
    copied = world.entries[-1]
    own = world.commit(OWNER)
    world.truth |= {("owner", "M"), ("owner", "S")}
    world.publish(OWNER, "M", own.beacon)
    world.publish(OWNER, "M", copied.beacon, sender=THIEF)
    theirs = world.claim(OWNER, "S", sender=THIEF)
    _, result = claimed(world)
    assert world.codes() == ["copied-commitment"]
    assert world.result(theirs) is None
    assert result.outcome is Outcome.SHOWN, "the copy changes nothing"


def test_a_commitment_that_others_sent_is_not_the_owners():
    """Else the keys that he tried would not be charged: strangers would have sent them."""
    world = World()
    for number in range(8):
        entry = world.commit(OWNER, label=str(number), sender=Party(f"stranger {number}"))
    world.publish(OWNER, "M", entry.beacon, label="7")
    world.claim(OWNER, "S", label="7")
    assert world.codes() == ["no-commit"]


def test_somebody_elses_opening_claims_nothing():
    world = protected()
    world.claim(OWNER, "S", sender=THIEF)
    assert world.codes() == ["not-the-owner"]


def test_a_key_committed_after_the_suspect_was_known_does_not_count():
    world = protected()
    world.register(THIEF, "toy")
    world.claim(THIEF, "M")
    assert world.codes() == ["late-key"]


def test_backdating_changes_nothing_because_no_message_has_a_time():
    world = protected()
    world.send(
        THIEF,
        m.Commit,
        commitment=world.opening(THIEF).commitment(),
        recovery=None,
        after=genesis_digest(DOMAIN),
    )
    world.publish(THIEF, "toy", world.entries[-1].beacon)
    world.claim(THIEF, "M")
    assert world.codes() == ["late-key"]


def test_an_opening_without_commitment_is_refused():
    world = World()
    world.publish(OWNER, "M", None)
    world.claim(OWNER, "S")
    assert world.codes() == ["no-commit"]


def test_a_claim_without_release_is_refused():
    world = World()
    world.commit(OWNER)
    world.claim(OWNER, "S")
    assert world.codes() == ["no-release"]


def test_a_release_that_somebody_else_published_is_none():
    world = World()
    entry = world.commit(OWNER)
    world.publish(OWNER, "M", entry.beacon, sender=THIEF)
    world.claim(OWNER, "S")
    assert world.codes() == ["no-release"]


@pytest.mark.parametrize("beacon", [None, sha("ground")])
def test_a_key_that_is_not_bound_to_its_beacon_is_refused(beacon):
    world = World()
    world.commit(OWNER)
    world.publish(OWNER, "M", beacon)
    world.claim(OWNER, "S")
    assert world.codes() == ["beacon"]
    unbound = World(bound=False)
    unbound.commit(OWNER)
    unbound.publish(OWNER, "M", beacon)
    unbound.claim(OWNER, "S")
    assert unbound.codes() == []


def test_a_burnt_shard_is_burnt():
    world = protected()
    world.claim(OWNER, "S", shards=(0, 1))
    world.claim(OWNER, "T", shards=(1, 2))
    world.claim(OWNER, "T", shards=(2, 3))
    assert world.codes() == ["burnt-shard"]


@pytest.mark.parametrize("scheme", ["deepsigns-blackbox-paper", "of-a-third-party"])
def test_a_claim_needs_a_scheme_whose_chance_is_known(monkeypatch, scheme):
    monkeypatch.setattr("world.LAYOUT", Layout(scheme, 1, ("fc",), 256, 8))
    world = protected()
    world.claim(OWNER, "S")
    assert world.codes() == ["inexact-scheme"]


def test_a_pre_registered_key_needs_a_release_that_verifies():
    world = World()
    entry = world.commit(THIEF)
    world.publish(THIEF, "nothing in it", entry.beacon)
    world.register(OWNER, "M")
    world.truth.add(("thief", "S"))
    _, result = claimed(world, THIEF, "S")
    assert (result.outcome, result.code) == (Outcome.NOT_SHOWN, Code.UNVERIFIED_RELEASE)


def test_every_commitment_is_charged():
    world = protected()
    for i in range(63):
        world.commit(OWNER, f"spare {i}")
    _, result = claimed(world)
    assert (result.keys, result.suspects) == (64, 1)
    _, result = claimed(world, suspect="another")
    assert result.suspects == 2


def test_stamping_many_keys_does_not_help():
    def outcome(keys):
        world = protected()
        for i in range(keys - 1):
            world.commit(OWNER, f"spare {i}")
        claim = world.claim(OWNER, "S")
        world.vote(claim, hits=203)
        return world.result(claim).outcome

    assert outcome(1) is Outcome.SHOWN
    assert outcome(256) is not Outcome.SHOWN


# -- replay and other domains --------------------------------------------------------------------


def test_a_replayed_record_counts_once():
    world = protected()
    claim = world.claim(OWNER, "S")
    for entry in list(world.entries):
        world.log(entry.record)
    world.vote(claim)
    assert world.codes() == ["replay"] * 3
    assert world.result(claim).outcome is Outcome.SHOWN


def test_a_nonce_is_used_once():
    world = World()
    for label in "ab":
        world.send(OWNER, m.Commit, commitment=sha(label), recovery=None, nonce=sha("same"))
    assert world.codes() == ["replay"]


def test_records_of_another_community_are_refused():
    world = World()
    world.send(OWNER, m.Commit, commitment=sha(1), recovery=None, domain="example.org/other")
    assert world.codes() == ["domain"]


def test_a_message_must_come_after_a_checkpoint_of_this_log():
    world = World()
    world.commit(OWNER)
    for after in (sha("another log"), sha("head", 2), sha("head", 7)):
        world.send(OWNER, m.Commit, commitment=sha(1), recovery=None, after=after)
    assert world.codes() == ["after"] * 3


def test_votes_cannot_be_moved_to_another_claim_or_suspect():
    world = protected()
    first = world.claim(OWNER, "S")
    second = world.claim(OWNER, "T")
    voter = world.voters[0]
    ballot = world.ballot(voter, first)
    world.send(voter, m.VoteCommit, claim=first, suspect=sha("T"), ballot=ballot.sealed())
    world.send(voter, m.VoteCommit, claim=sha("none"), suspect=sha("S"), ballot=ballot.sealed())
    assert world.codes() == ["suspect", "unknown-claim"]
    world.seal(voter, second, ballot)
    world.time += world.rules.commit_seconds
    world.reveal(voter, second, ballot)
    world.close()
    assert voters(world.result(second))[voter.name] is Code.MISMATCH


def test_garbage_and_forged_signatures_are_refused_and_passed_over():
    world = protected()
    world.log(b"{}")
    world.log(b'{"a":1}')
    good = world.entries[0].record
    sig = good.index(b'"sig":"') + 7
    world.log(good[:sig] + (b"B" if good[sig : sig + 1] != b"B" else b"C") + good[sig + 1 :])
    codes = [item.code.value for item in world.resolve().refused]
    assert codes == ["malformed", "malformed", "signature"]
    _, result = claimed(world)
    assert result.outcome is Outcome.SHOWN


# -- keys ----------------------------------------------------------------------------------------


def rotate(world, old, new, sender=None, key=None):
    consent = (key or new).key.sign(m.Rotate.consented(DOMAIN, old.public, new.public)).hex()
    world.send(sender or old, m.Rotate, old=old.public, new=new.public, consent=consent)


def test_a_rotated_key_claims_and_the_old_one_does_not():
    world, heir = protected(), Party("heir")
    rotate(world, OWNER, heir)
    world.claim(OWNER, "S")
    assert world.codes() == ["revoked"]
    claim = world.claim(OWNER, "S", sender=heir)
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN


def test_a_stolen_key_is_recovered():
    world, safe, heir, stolen = World(), Party("safe"), Party("heir"), Party("stolen")
    entry = world.commit(OWNER, recovery=m.key_digest(safe.public))
    world.truth |= {("owner", "M"), ("owner", "S")}
    world.publish(OWNER, "M", entry.beacon)
    rotate(world, OWNER, stolen)  # the thief has the owner's key
    rotate(world, stolen, heir, sender=safe)
    world.claim(OWNER, "S", sender=stolen)
    assert world.codes() == ["revoked"]
    claim = world.claim(OWNER, "S", sender=heir)
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN


def test_rotation_needs_authority_and_consent():
    world, heir = protected(), Party("heir")
    rotate(world, OWNER, heir, sender=THIEF)
    rotate(world, OWNER, heir, key=THIEF)
    rotate(world, OWNER, world.voters[0])
    assert world.codes() == ["authority"] * 3


def test_revocation_is_a_cut_and_never_reaches_back():
    world = protected()
    claim = world.claim(OWNER, "S")
    world.send(THIEF, m.Revoke, key=OWNER.public, reason="spite")
    world.send(OWNER, m.Revoke, key=OWNER.public, reason="lost")
    world.claim(OWNER, "T")
    world.vote(claim)
    assert world.codes() == ["authority", "revoked"]
    assert world.result(claim).outcome is Outcome.SHOWN


# -- time ----------------------------------------------------------------------------------------


def test_a_challenge_extends_the_window_once():
    world = protected()
    claim = world.claim(OWNER, "S")
    late = world.rules.commit_seconds
    for reason in ("overwritten", "again"):
        world.send(THIEF, m.Challenge, claim=claim, suspect=sha("S"), reason=reason, counter=None)
    world.time += late
    for voter in world.voters:
        world.seal(voter, claim, world.ballot(voter, claim))
    for voter in world.voters:
        world.reveal(voter, claim, world.ballot(voter, claim))
    assert world.result(claim).outcome is Outcome.SHOWN


def test_a_late_challenge_extends_nothing():
    world = protected()
    claim = world.claim(OWNER, "S")
    world.time += world.rules.commit_seconds
    world.send(THIEF, m.Challenge, claim=claim, suspect=sha("S"), reason="late", counter=None)
    for voter in world.voters:
        world.seal(voter, claim, world.ballot(voter, claim))
    world.close()
    late = world.result(claim)
    assert set(voters(late).values()) == {Code.LATE}
    for voter in world.voters:
        world.reveal(voter, claim, world.ballot(voter, claim))
    assert world.result(claim) == late


def test_a_clock_that_steps_back_changes_nothing():
    world = protected()
    _, result = claimed(world)
    for start in range(len(world.entries)):
        stepped = [
            moved(entry, time=entry.time - 500 if entry.index == start else entry.time)
            for entry in world.entries
        ]
        if start != result.index:
            assert resolve(stepped, world.rules).claims[0].outcome is Outcome.SHOWN


# -- invariants ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), liars=st.integers(0, 2), silent=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_the_order_of_votes_does_not_matter(seed, liars, silent):
    draw = random.Random(seed)
    results = []
    for shuffle in (False, True):
        world = protected(voters=7)
        claim = world.claim(OWNER, "S")
        order = list(enumerate(world.voters))
        ballots = {i: world.ballot(voter, claim, flip=i < liars) for i, voter in order}
        order = [item for item in order if not liars <= item[0] < liars + silent]
        if shuffle:
            draw.shuffle(order)
        for i, voter in order:
            world.seal(voter, claim, ballots[i])
        world.time += world.rules.commit_seconds
        if shuffle:
            draw.shuffle(order)
        for i, voter in order:
            world.reveal(voter, claim, ballots[i])
        world.close()
        results.append(world.resolve())
    assert results[0].claims == results[1].claims
    decided = results[0].claims[0].outcome
    assert decided is (Outcome.SHOWN if liars + silent <= 2 else Outcome.INCONCLUSIVE)


def test_nothing_appended_later_changes_a_closed_result():
    world, claims = overwritten()
    before = {name: world.result(claim) for name, claim in claims.items()}
    for claim in claims.values():
        for voter in world.voters:
            world.seal(voter, claim, world.ballot(voter, claim, flip=True))
            world.reveal(voter, claim, world.ballot(voter, claim, flip=True))
        world.send(THIEF, m.Challenge, claim=claim, suspect=sha("S"), reason="late", counter=None)
    rotate(world, world.voters[0], Party("new"))
    world.send(OWNER, m.Revoke, key=OWNER.public, reason="lost")
    world.close()
    assert {name: world.result(claim) for name, claim in claims.items()} == before


def test_the_resolution_is_reproducible_and_survives_its_own_format():
    world, _ = overwritten()
    found = world.resolve()
    assert type(found).from_bytes(found.canonical()) == found
    assert resolve(iter(world.entries), world.rules).canonical() == found.canonical()


def test_a_result_can_be_signed_and_changes_nothing():
    world = protected()
    claim, result = claimed(world)
    world.send(
        world.voters[0],
        m.Resolve,
        claim=claim,
        suspect=result.suspect,
        outcome=result.outcome,
        result=result.digest(),
    )
    assert world.result(claim) == result
    assert world.codes() == []


def test_every_prefix_resolves():
    world, _ = overwritten()
    closed = {}
    for size in range(len(world.entries) + 1):
        for item in resolve(world.entries[:size], world.rules).claims:
            if item.closed:
                assert closed.setdefault(item.claim, item) == item


def test_messages_refuse_nonsense():
    world = World()
    for shards in ((), (0, 0), (LAYOUT.shards,), (-1,)):
        with pytest.raises(Exception, match="shard"):
            world.claim(OWNER, "S", shards=shards)
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    with pytest.raises(Exception, match="twice"):
        Rules(DOMAIN, (m.Member("a", key), m.Member("b", key)))


def test_a_ballot_that_is_sent_again_counts_once():
    """A node that got no answer sends its sealed ballot again; that is no second ballot."""
    world = protected()
    claim = world.claim(OWNER, "S")
    ballots = [world.ballot(voter, claim) for voter in world.voters]
    for _ in range(2):
        world.seal(world.voters[0], claim, ballots[0])
    for voter, ballot in zip(world.voters[1:], ballots[1:], strict=True):
        world.seal(voter, claim, ballot)
    for voter, ballot in zip(world.voters, ballots, strict=True):
        world.reveal(voter, claim, ballot)
    assert set(voters(world.result(claim)).values()) == {Code.COUNTED}


def test_spoiled_shards_do_not_help_a_thief_who_has_seen_them():
    """He erases what a claim revealed; the verdict stands, and the kept shards convict the copy."""
    world = protected()
    first = world.claim(OWNER, "S", shards=(0, 1))
    world.vote(first)
    before = world.result(first)
    world.truth.add(("owner", "S without shards 0 and 1"))
    again = world.claim(OWNER, "S without shards 0 and 1", shards=(1, 2))
    assert world.codes() == ["burnt-shard"], "what he has seen proves nothing any more"
    assert again not in world.history.claims
    second = world.claim(OWNER, "S without shards 0 and 1", shards=(2, 3))
    world.vote(second)
    assert world.result(second).outcome is Outcome.SHOWN
    assert world.result(second).suspects == 2, "and it is charged"
    assert world.result(first) == before
