"""The community's scripts: what happens, who misbehaves, and what has to come of it.

Used by the tests and by ``scripts/community``, which runs all of them and prints a table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from town import Owner, Town, accuracy, packed, stamped, trained

from earmark.protocol.client import Client
from earmark.protocol.rules import Code
from earmark.records import Outcome

WRONG = {
    "lying": {Code.DISSENT},
    "silent": {Code.ABSENT},
    "mute": {Code.ABSENT},
    "copying": {Code.MISMATCH, Code.UNREVEALED, Code.EARLY, Code.ABSENT, Code.LATE},
    "equivocating": {Code.EQUIVOCATION, Code.DISSENT},  # the second may come too late
}
"""What may be said of a faulty voter's vote."""


@dataclass(frozen=True)
class Story:
    """One script.

    Args:
        nodes: How many.
        faulty: What each of the faulty ones does.
        false: Whether a false claim is made too.
    """

    nodes: int
    faulty: tuple[str, ...]
    false: bool = True

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.nodes} nodes, {len(self.faulty)} {'+'.join(sorted(set(self.faulty)))}"

    @property
    def tolerated(self) -> bool:
        """Whether the community is made for as many."""
        return len(self.faulty) <= (self.nodes - 1) // 3

    @property
    def windows(self) -> dict[str, int]:
        """Long windows where they close early; where somebody is waited for, as short as a busy
        machine allows.
        """
        if set(self.faulty) <= {"lying"}:
            return {}
        return {"commit_seconds": 150, "reveal_seconds": 45}


TOLERATED = (
    *(Story(7, (how, how)) for how in ("lying", "silent", "mute", "copying", "equivocating")),
    Story(7, ("lying", "equivocating")),
)
TOO_MANY = (
    *(Story(7, (how,) * 3) for how in ("lying", "silent", "copying", "equivocating")),
    Story(7, ("lying", "copying", "silent")),
)


@dataclass(frozen=True)
class Told:
    """What came of a story.

    Args:
        results: Name of the claim to its result.
        resolution: Of all claims.
        accuracies: Of the released and of the stolen model.
        seconds: Wall time from the first claim to the last result.
    """

    results: dict
    resolution: object
    accuracies: dict
    seconds: float


def copied(weights, seed=1):
    """Return a thief's copy: every weight a little off."""
    rng = np.random.default_rng(seed)
    return {
        name: value + rng.normal(size=value.shape).astype(np.float32) * 0.05 * value.std()
        for name, value in weights.items()
    }


def tell(story: Story, folder: Path) -> Told:
    """Register, steal, overwrite, claim; a false claim; read the verdicts from the log."""
    with Town(folder, story.nodes, story.faulty, **story.windows) as town:
        owner, thief = Owner("owner", town), Owner("thief", town)
        plain = trained()
        released = stamped(plain, owner.commit(plain))
        owner.publish(packed(released, folder, "released"))
        stolen = copied(released)
        marked = stamped(stolen, thief.commit(stolen))
        suspect = packed(marked, folder, "suspect")
        thief.publish(suspect)
        begin = time.monotonic()
        found = {}
        if story.false:
            innocent = packed(trained(7), folder, "innocent")
            found["innocent"] = owner.claim(innocent, (0, 1, 2, 3))
        found["thief"] = thief.claim(suspect, (0, 1, 2, 3))
        found["owner"] = owner.claim(suspect, (4, 5, 6, 7))
        results = {name: town.result(claim) for name, claim in found.items()}
        told = Told(
            results,
            town.resolution(),
            {"released": accuracy(released), "suspect": accuracy(marked)},
            time.monotonic() - begin,
        )
        same_everywhere(town, told.resolution)
    return told


def same_everywhere(town, resolution) -> None:
    """Every node, and a reader who was there all along, come to the same bytes."""
    for card in town.community.nodes:
        client = Client(card.url)
        town.wait(lambda client=client: client.json("/api/status")["size"] >= resolution.size)
        seen = client.call("/api/resolution")
        assert seen == resolution.canonical() or later(client, resolution)


def later(client, resolution) -> bool:
    """Whether a node that is some entries ahead says the same of every claim."""
    body = client.json("/api/resolution")
    mine = resolution.to_json()
    return body["size"] > mine["size"] and all(
        body[name] == mine[name] for name in ("claims", "disputes", "rules")
    )


def check(story: Story, told: Told) -> None:
    """Hold a story's end to what has to come of it."""
    assert told.accuracies["released"] > 0.9
    assert told.accuracies["suspect"] > 0.8
    seen = {name: (result.code, result.voters) for name, result in told.results.items()}
    if not story.tolerated:
        for result in told.results.values():
            assert (result.outcome, result.code) == (Outcome.INCONCLUSIVE, Code.NO_QUORUM), seen
        assert told.resolution.disputes == ()
        return
    assert told.results["owner"].outcome is Outcome.SHOWN, seen
    assert told.results["thief"].outcome is Outcome.SHOWN, seen  # his mark is in it, no more
    if story.false:
        assert told.results["innocent"].outcome is Outcome.NOT_SHOWN, seen
    (dispute,) = told.resolution.disputes
    assert (dispute.holder, dispute.code) == (told.results["owner"].claim, Code.CONTAINMENT)
    faulty = [f"node {story.nodes - 1 - i}" for i in range(len(story.faulty))]
    for result in told.results.values():
        said = {item.operator: item.code for item in result.voters}
        for name, how in zip(faulty, story.faulty, strict=True):
            assert said.pop(name) in WRONG[how], seen
        assert set(said.values()) == {Code.COUNTED}, seen
