"""Nodes as separate processes on loopback, some of them Byzantine; real models, real verification."""

from __future__ import annotations

import numpy as np
import pytest
from town import Owner, Town, accuracy, packed, stamped, trained

from earmark.protocol.client import Client
from earmark.protocol.rules import Code
from earmark.records import Outcome


def codes(result):
    return {item.operator: item.code for item in result.voters}


def copied(weights, seed=1):
    """Return a thief's copy: every weight a little off."""
    rng = np.random.default_rng(seed)
    return {
        name: value + rng.normal(size=value.shape).astype(np.float32) * 0.05 * value.std()
        for name, value in weights.items()
    }


def story(town, tmp_path, *, false=True):
    """Register, steal, claim; a false claim; an overwriting thief. Return what was decided."""
    owner, thief = Owner("owner", town), Owner("thief", town)
    plain = trained()
    released = stamped(plain, owner.commit(plain))
    assert accuracy(released) > 0.9
    owner.publish(packed(released, tmp_path, "released"))
    stolen = copied(released)
    marked = stamped(stolen, thief.commit(stolen))
    assert accuracy(marked) > 0.8
    suspect = packed(marked, tmp_path, "suspect")
    thief.publish(suspect)
    found = {}
    if false:
        innocent = packed(trained(7), tmp_path, "innocent")
        found["innocent"] = town.result(owner.claim(innocent, (0, 1, 2, 3)))
    found |= {
        "thief": town.result(thief.claim(suspect, (0, 1, 2, 3))),
        "owner": town.result(owner.claim(suspect, (4, 5, 6, 7))),
    }
    return found, town.resolution()


def expect(found, resolution):
    assert found["owner"].outcome is Outcome.SHOWN
    assert found["thief"].outcome is Outcome.SHOWN, "his mark is in it, and that is all it says"
    assert "innocent" not in found or found["innocent"].outcome is Outcome.NOT_SHOWN
    (dispute,) = resolution.disputes
    assert (dispute.holder, dispute.code) == (found["owner"].claim, Code.CONTAINMENT)


def same_everywhere(town, resolution):
    """Every node, and a reader who was there all along, come to the same bytes."""
    size = resolution.size
    for card in town.community.nodes:
        client = Client(card.url)
        town.wait(lambda client=client: client.json("/api/status")["size"] >= size)
        assert client.call("/api/resolution") == resolution.canonical()


def test_four_nodes_one_of_them_lying(tmp_path):
    with Town(tmp_path, 4, ["lying"]) as town:
        found, resolution = story(town, tmp_path, false=False)
        expect(found, resolution)
        assert codes(found["owner"])["node 3"] is Code.DISSENT
        same_everywhere(town, resolution)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lying", "silent", "copying", "equivocating"])
def test_seven_nodes_two_of_them_byzantine(tmp_path, how):
    windows = {} if how == "lying" else {"commit_seconds": 60, "reveal_seconds": 20}
    with Town(tmp_path, 7, [how] * 2, **windows) as town:
        found, resolution = story(town, tmp_path, false=how == "lying")
        expect(found, resolution)
        expected = {
            "lying": {Code.DISSENT},
            "silent": {Code.ABSENT},
            "copying": {Code.MISMATCH, Code.UNREVEALED, Code.EARLY},
            "equivocating": {Code.EQUIVOCATION, Code.DISSENT},  # the second may come too late
        }[how]
        for result in found.values():
            assert {codes(result)[name] for name in ("node 5", "node 6")} <= expected
        same_everywhere(town, resolution)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lying", "silent"])
def test_with_three_of_seven_there_is_no_verdict(tmp_path, how):
    windows = {} if how == "lying" else {"commit_seconds": 60, "reveal_seconds": 20}
    with Town(tmp_path, 7, [how] * 3, **windows) as town:
        found, resolution = story(town, tmp_path, false=how == "lying")
        for result in found.values():
            assert (result.outcome, result.code) == (Outcome.INCONCLUSIVE, Code.NO_QUORUM)
        assert resolution.disputes == ()
