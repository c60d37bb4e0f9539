"""What a count comes to: the guard around thresholds, and the charge for what was tried."""

from __future__ import annotations

from fractions import Fraction
from math import comb, log2

from hypothesis import given, settings
from hypothesis import strategies as st
from world import LAYOUT, OWNER, THIEF, claimed, protected, sha

from earmark.errors import RecordError
from earmark.policy import Policy, by_count, judge
from earmark.protocol import history
from earmark.protocol import messages as m
from earmark.protocol.rules import Code
from earmark.protocol.voting import classify
from earmark.records import Evidence, Layout, Opening, Outcome, Tried


def test_counts_near_the_threshold_are_inconclusive():
    edge = next(
        hits
        for hits in range(128, 256)
        if classify(finding(hits), Policy(), 0, keys=LAYOUT.shards, suspects=1) is Outcome.SHOWN
    )
    expected = {-3: Outcome.NOT_SHOWN, -2: None, 1: None, 2: Outcome.SHOWN}
    for offset, outcome in expected.items():
        _, result = claimed(protected(), hits=edge + offset)
        if outcome is None:
            assert (result.outcome, result.code) == (Outcome.INCONCLUSIVE, Code.GUARD)
            assert {item.code for item in result.voters} == {Code.ABSTAINED}
        else:
            assert result.outcome is outcome


def finding(hits):
    return m.Finding(sha(0), sha(1), hits, 256, Fraction(1, 2), 1)


def test_a_charge_that_no_record_holds_is_made_in_full():
    many = comb(64, 32) << 20
    edge = next(
        hits
        for hits in range(128, 257)
        if classify(finding(hits), Policy(), 0, keys=many, suspects=3) is Outcome.SHOWN
    )
    bits = [by_count(Evidence.of("vote", hits=hits, trials=256)) for hits in (edge - 1, edge)]
    assert bits[0] < 64 + log2(3 * many) <= bits[1]


@given(
    hits=st.integers(0, 256),
    keys=st.integers(1, 1 << 40),
    suspects=st.integers(1, 50),
    forms=st.integers(1, 8),
    least=st.integers(1, 1 << 20),
)
@settings(max_examples=60, deadline=None)
def test_the_charge_is_what_a_judge_makes_of_as_many_tries(hits, keys, suspects, forms, least):
    policy = Policy(tried_keys=least)
    made = m.Finding(sha(0), sha(1), hits, 256, Fraction(1, 2), forms)
    tried = Tried(keys, suspects, forms)
    expected = judge(Evidence.of("vote", hits=hits, trials=256, tried=tried), policy).outcome
    assert classify(made, policy, 0, keys=keys, suspects=suspects) is expected


def test_half_of_many_shards_stop_neither_their_own_claim_nor_the_next():
    world = protected()
    world.register(THIEF, "T")
    opening = Opening(
        OWNER.public, Layout("deepwater", 1, ("fc",), 1024, 64), sha("root"), sha("salt")
    )
    commitment = opening.commitment()
    world.names[commitment] = "owner"
    about = {"commitment": commitment, "recovery": None}
    world.send(OWNER, m.Commit, **about)
    released = {"files": {"m": sha("M")}, "beacon": world.entries[-1].beacon, "license": ""}
    world.send(OWNER, m.Publish, commitment=commitment, model=sha("M"), where="", **released)
    about = {"disclosure": sha("disclosure"), "inputs": None, "suspect": sha("S")}
    claim = world.send(OWNER, m.Claim, opening=opening, shards=tuple(range(32)), **about)
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN
    later = world.claim(THIEF, "S")
    assert world.codes() == []
    assert world.history.claims[later].rivals == (claim,)


def test_an_entry_that_cannot_be_read_is_refused_and_those_after_it_are_read(monkeypatch):
    def broken(*_):
        raise RecordError("A value cannot be written.")

    world = protected()
    with monkeypatch.context() as patch:
        patch.setattr(history, "standing", broken)
        world.claim(OWNER, "S")
        assert world.codes() == ["malformed"]
        assert world.resolve().refused[0].detail == "A value cannot be written."
    _, result = claimed(world)
    assert result.outcome is Outcome.SHOWN
