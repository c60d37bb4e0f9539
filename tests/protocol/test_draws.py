"""Values that nobody chose: what grinding could do to a root of the log, and what it cannot here."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from world import DOMAIN, Party, World, sha

from earmark.errors import RecordError
from earmark.ledger.merkle import fold, grow, leaf_hash
from earmark.policy import Policy
from earmark.protocol import messages as m
from earmark.protocol.draws import MAX_WAITING, RESERVE, choices
from earmark.protocol.rules import Code, Rules
from earmark.protocol.voting import classify
from earmark.records import Outcome

OWNER, THIEF = Party("owner"), Party("thief")


class Drawing(World):
    """A world whose voters draw: sealed values in advance, shown once an entry is fixed."""

    def __init__(self, voters=4, **settings):
        super().__init__(voters, **{"draw_seconds": 30, **settings})
        self.numbers = itertools.count()
        self.secrets: dict[str, str] = {}
        for voter in self.voters:
            self.stock(voter)

    def stock(self, voter, count=4 + RESERVE):
        values = [sha("value", voter.name, next(self.numbers)) for _ in range(count)]
        sealed = {m.sealed(voter.public, value): value for value in values}
        self.secrets |= sealed
        self.send(voter, m.Seal, seals=tuple(sealed))

    def show(self, entry, silent=(), **how):
        """Every voter but the silent ones shows what it sealed for an entry."""
        for i, voter in enumerate(self.voters):
            seal = self.history.draws.due(voter.name, self.history.time).get(entry)
            if seal is not None and i not in silent:
                self.send(
                    voter, m.Draw, entry=entry, sealer=voter.public, value=self.secrets[seal], **how
                )

    def committed(self, owner=OWNER, silent=(), sender=None):
        self.commit(owner, sender=sender)
        logged = self.history.commits[self.opening(owner).commitment()][0]
        self.show(logged.digest, silent)
        return logged

    def registered(self, owner=OWNER, model="M"):
        logged = self.committed(owner)
        self.truth.add((owner.name, model))
        self.publish(owner, model, self.history.beacon(logged))

    def claimed(self, suspect="S", silent=()):
        claim = self.claim(OWNER, suspect)
        self.show(claim, silent)
        return claim


@pytest.fixture
def world():
    made = Drawing()
    made.registered()
    made.truth.add(("owner", "S"))
    return made


def test_the_next_root_of_a_log_can_be_ground_by_whoever_appends_next():
    """Why a root is no such value: forty nonces give a root that begins with the bits one likes."""
    peaks = ()
    for size in range(5):
        peaks, _ = grow(peaks, size, leaf_hash(b"record %d" % size))
    roots = [fold(grow(peaks, 5, leaf_hash(b"my record, nonce %d" % n))[0]) for n in range(4000)]
    assert max(root[:2] < b"\x00\x20" for root in roots), "eleven bits chosen in a moment"


def test_the_value_waits_for_the_entry_and_for_everybody(world):
    claim = world.claim(OWNER, "S")
    file = world.history.claims[claim]
    before = len(world.entries)
    assert world.history.beacon(file.logged) is None
    assert world.result(claim).code is Code.OPEN
    world.show(claim)
    assert len(world.entries) == before + 4
    value = world.history.beacon(file.logged)
    assert len(value) == 64
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN
    assert world.codes() == []
    assert world.history.beacon(file.logged) == value


def test_it_depends_on_every_value_that_was_shown():
    values = set()
    for missing in (None, 0, 1, 2, 3):
        world = Drawing()
        logged = world.committed(silent=() if missing is None else (missing,))
        world.log(b"{}", wait=40)
        values.add(world.history.beacon(logged))
    assert None not in values
    assert len(values) == choices(4) == 5, "as many as are charged"


def test_silence_beyond_f_means_no_value_and_no_verdict(world):
    claim = world.claimed(silent=(0, 1))
    assert world.result(claim).code is Code.OPEN
    late = world.result(claim, now=world.time + 40)
    world.log(b"{}", wait=40)
    result = world.result(claim)
    assert late == result
    assert (result.outcome, result.code, result.closed) == (
        Outcome.INCONCLUSIVE,
        Code.NO_DRAW,
        True,
    )


def test_shards_are_not_burnt_when_the_draw_comes_to_nothing(world):
    failed = world.claim(OWNER, "S", shards=(0,))
    world.claim(OWNER, "S", shards=(0,))
    assert world.codes() == ["burnt-shard"], "while it is being drawn they are"
    world.show(failed, silent=(0, 1))
    world.log(b"{}", wait=40)
    again = world.claim(OWNER, "S", shards=(0,))
    world.show(again)
    world.vote(again)
    assert world.result(failed).code is Code.NO_DRAW
    assert world.result(again).outcome is Outcome.SHOWN
    assert world.history.claims[again].tries == 2, "the draw that failed was a choice"
    world.claim(OWNER, "S", shards=(0,))
    assert world.codes() == ["burnt-shard"] * 2


def test_failed_draws_are_charged():
    hits = next(
        hits
        for hits in range(128, 256)
        if classify(finding(hits), Policy(), 2, keys=8 * 5**2, suspects=1) is Outcome.SHOWN
    )
    for failures, shown in ((0, True), (4, False)):
        made = Drawing()
        made.registered()
        for _ in range(failures):
            made.claimed(silent=(0, 1))
            made.log(b"{}", wait=40)
        claim = made.claimed()
        made.vote(claim, hits=hits)
        assert (made.result(claim).outcome is Outcome.SHOWN) == shown


def test_commitments_leave_seals_for_claims(world):
    for number in range(20):
        world.send(THIEF, m.Commit, commitment=sha("junk", number), recovery=None)
    assert {world.history.draws.waiting(voter.name) for voter in world.voters} == {RESERVE}
    claim = world.claimed()
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN


def test_a_commitment_without_a_value_is_no_ground_for_a_release():
    world = Drawing()
    logged = world.committed(silent=(0, 1))
    world.log(b"{}", wait=40)
    assert world.history.beacon(logged) is None
    world.publish(OWNER, "M", logged.entry.beacon)  # the log's own root instead
    world.claim(OWNER, "S")
    assert world.codes() == ["beacon"]


def test_a_commitment_whose_draw_came_to_nothing_is_made_again_and_that_is_charged():
    world = Drawing()
    commitment = world.opening(OWNER).commitment()
    first = world.committed(silent=(0, 1))
    world.commit(OWNER)  # while it is being drawn it changes nothing
    world.commit(OWNER, sender=THIEF)
    assert world.history.committed(commitment, OWNER.public) == first
    world.log(b"{}", wait=40)
    world.commit(OWNER, sender=THIEF)
    assert world.history.committed(commitment, OWNER.public) == first
    world.commit(OWNER)
    again = world.history.committed(commitment, OWNER.public)
    assert again.index > first.index
    assert world.history.beacon(again) is None
    world.show(again.digest)
    value = world.history.beacon(again)
    assert value is not None
    world.commit(OWNER)  # nor does it once there is a value
    assert world.history.committed(commitment, OWNER.public) == again
    world.truth |= {("owner", "M"), ("owner", "S")}
    world.publish(OWNER, "M", value)
    claim = world.claimed()
    world.vote(claim)
    assert world.codes() == []
    assert world.result(claim).outcome is Outcome.SHOWN
    assert world.history.claims[claim].tries == 2
    failed = world.claimed(silent=(0, 1))
    world.log(b"{}", wait=40)
    assert world.result(failed).code is Code.NO_DRAW
    last = world.claimed()
    assert world.history.claims[last].tries == 2 * 2


def test_a_commitment_that_is_made_again_dates_from_then():
    world = Drawing()
    world.committed(silent=(0, 1))
    world.publish(THIEF, "S", None)
    world.log(b"{}", wait=40)
    world.commit(OWNER)
    again = world.history.committed(world.opening(OWNER).commitment(), OWNER.public)
    world.show(again.digest)
    world.publish(OWNER, "M", world.history.beacon(again))
    world.claim(OWNER, "S")
    assert world.codes() == ["late-key"]


def test_where_keys_are_not_bound_a_commitment_keeps_its_date():
    world = Drawing(bound=False)
    first = world.committed(silent=(0, 1))
    world.log(b"{}", wait=40)
    world.commit(OWNER)
    assert world.history.committed(world.opening(OWNER).commitment(), OWNER.public) == first


def test_a_value_must_be_sealed_before_the_entry_and_by_the_one_who_shows_it(world):
    claim = world.claim(OWNER, "S")
    voter, other = world.voters[0], world.voters[1]
    fresh, (seal, *_) = sha("chosen afterwards"), world.history.draws.due(other.name, 0).values()
    world.send(voter, m.Seal, seals=(m.sealed(voter.public, fresh),))
    theirs = world.secrets[seal]
    for sender, sealer, value in (
        (voter, voter, fresh),  # sealed after the entry
        (voter, other, theirs),  # somebody else's
        (voter, voter, theirs),
        (THIEF, THIEF, fresh),  # no member
    ):
        world.send(sender, m.Draw, entry=claim, sealer=sealer.public, value=value)
    assert world.codes() == ["draw", "draw", "draw", "authority"]
    world.show(claim)
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN


def test_nothing_is_shown_twice_or_too_late_or_for_nothing(world):
    claim = world.claimed(silent=(3,))
    voter = world.voters[0]
    shown = next(
        message
        for message, _ in (m.open_message(entry.record) for entry in world.entries[-3:])
        if message.sender == voter.public
    )
    again = {"entry": claim, "sealer": voter.public, "value": shown.value}
    world.send(voter, m.Draw, **again)
    world.send(voter, m.Draw, **{**again, "entry": sha("nothing")})
    world.time += 40
    world.send(world.voters[3], m.Draw, **{**again, "sealer": world.voters[3].public})
    assert world.codes() == ["draw", "draw", "draw"]


def test_sealing_again_gives_no_second_use(world):
    voter = world.voters[0]
    before = world.history.draws.waiting(voter.name)
    _, envelope = m.open_message(world.entries[0].record)
    seals = envelope.statement.predicate["seals"]
    world.send(voter, m.Seal, seals=tuple(seals))
    assert world.history.draws.waiting(voter.name) == before
    many = [sha("many", i) for i in range(MAX_WAITING + 64)]
    for at in range(0, len(many), 64):
        world.send(voter, m.Seal, seals=tuple(many[at : at + 64]))
    assert world.history.draws.waiting(voter.name) == MAX_WAITING


def test_a_copied_commitment_takes_nothing_from_the_owner():
    world = Drawing()
    copied = world.committed(sender=THIEF)
    commitment = world.opening(OWNER).commitment()
    assert world.history.committed(commitment, OWNER.public) is None
    for _ in range(2):  # again, and it is still the first one
        world.commit(OWNER)
        own = world.history.committed(commitment, OWNER.public)
        world.show(own.digest)
    value = world.history.beacon(own)
    assert value not in (None, world.history.beacon(copied)), "a draw of its own"
    world.truth |= {("owner", "M"), ("owner", "S")}
    world.publish(OWNER, "M", value)
    claim = world.claimed()
    world.vote(claim)
    assert world.result(claim).outcome is Outcome.SHOWN


def test_panels_come_from_the_draw_and_windows_begin_with_it():
    panels = set()
    for late in (0, 20):
        world = Drawing(voters=12, panel=4)
        world.registered()
        world.truth.add(("owner", "S"))
        claim = world.claim(OWNER, "S")
        world.show(claim, wait=0, silent=() if not late else (11,))
        world.log(b"{}", wait=late and 40)
        world.vote(claim)
        result = world.result(claim)
        assert result.outcome is Outcome.SHOWN
        assert len(result.voters) == 4
        panels.add(tuple(item.operator for item in result.voters))
    assert len(panels) == 2


def test_what_silence_could_choose_is_charged():
    """A count that is just enough for one try is not enough for five values times five."""
    policy, rules = Policy(), Rules(DOMAIN, ())
    enough = next(
        hits
        for hits in range(128, 256)
        if classify(finding(hits), policy, rules.guard, keys=8, suspects=1) is Outcome.SHOWN
    )
    for world, shown in ((World(), True), (Drawing(), False)):
        if shown:
            world.register(OWNER, "M")
            claim = world.claim(OWNER, "S")
        else:
            world.registered()
            claim = world.claimed()
        assert world.history.claims[claim].choices == (1 if shown else choices(4))
        world.vote(claim, hits=enough)
        assert (world.result(claim).outcome is Outcome.SHOWN) == shown


def finding(hits):
    return m.Finding(sha(1), sha(2), hits, 256, Fraction(1, 2), 1)


def test_nonsense_is_refused():
    head = {"domain": DOMAIN, "sender": OWNER.public, "nonce": sha(1), "after": sha(2)}
    for seals in ((), (sha(1),) * 65, ("no",)):
        with pytest.raises(RecordError):
            m.Seal(**head, seals=seals)
    with pytest.raises(RecordError):
        m.Draw(**head, entry=sha(1), sealer=OWNER.public, value="no")
    assert Rules.faulty(7) == 2
