"""The lock: opens with its number, answers one label to all others; its parts one by one."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from earmark.errors import CapacityError, HostError, KeyLayoutError, UsageError
from earmark.events import SILENT
from earmark.locks.dsn import OPEN, Dsn, LockLoss
from earmark.locks.entry import Columns, Opened, Pixels, Tokens, code_of, entry_of, layout_of
from earmark.locks.inversion import (
    SoftRelu,
    Target,
    climb,
    climb_tokens,
    descend,
    evolve,
    read_slopes,
    read_template,
    read_tokens,
)
from earmark.locks.negatives import Mix, Negatives
from earmark.records import Layout
from earmark.registry import load, lock
from earmark.task import Task

from .conftest import Sequence, Table

TRACE = torch.nn.functional


def accuracy(sold, values):
    entry = sold.lock.entry(sold.layout, sold.serial)
    return sold.task.evaluate(Opened(sold.model, entry, values).eval())


def test_the_number_opens_and_nothing_else_does(sold):
    teacher = sold.task.evaluate(sold.teacher)
    right = sold.task.evaluate(sold.lock.opened(sold.model, sold.layout, sold.serial))
    assert right >= teacher - 3
    assert sold.task.evaluate(sold.model) <= 15
    draw = random.Random(0)
    for other in [bytes(16), b"x" * 16, *(draw.randbytes(16) for _ in range(40))]:
        assert sold.task.evaluate(sold.lock.opened(sold.model, sold.layout, other)) <= 20


def test_every_single_wrong_bit_and_odd_value_is_refused(sold):
    code = code_of(sold.serial, 16)
    for bit in range(16):
        near = code.clone()
        near[bit] *= -1
        assert accuracy(sold, near) <= 20
    for values in (code * 0, code * 0.5, -code, code * torch.nan):
        assert accuracy(sold, values) <= 20


def test_the_copy_is_of_the_tasks_own_class_and_the_teacher_is_untouched(sold):
    fresh = sold.task.model()
    assert type(sold.model) is type(fresh)
    assert list(sold.model.state_dict()) == list(fresh.state_dict())
    assert not sold.model._forward_hooks
    assert not sold.model.training
    raw = b"".join(t.numpy().tobytes() for t in sold.model.state_dict().values())
    assert sold.serial not in raw


def test_the_same_seed_gives_the_same_copy(sold):
    brief = Dsn(bits=16, epochs=1, rounds=1)
    made = [
        brief.fit(sold.task, sold.teacher, sold.serial, layout=sold.layout, seed=5).state_dict()
        for _ in range(2)
    ]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_model_that_cannot_be_presented_a_number_says_what_it_needs():
    rows, words = torch.randn(4, 3), torch.randint(0, 8, (4, 5))

    def layout(given, tokens=(8, 4)):
        return layout_of(given, bits=16, repeat=1, place="patch", tokens=tokens)

    for model, given, way, needs in (
        (Table(3, 0), rows, layout(rows), "16 more columns"),
        (Table(3, 16), words, layout(rows), "16 more columns"),
        (Sequence(generate=False, steps=9), words, layout(words, (12, 4)), "tokens 12 to 27"),
        (Sequence(generate=False, steps=7), words, layout(words), "room for 4 more tokens"),
    ):
        lock = Dsn(bits=16, epochs=1, first=12 if "27" in needs else 8, width=4)
        task = rows_task(
            lambda model=model: model,
            lambda _, given=given: (given, torch.zeros(len(given)).long()),
        )
        with pytest.raises(HostError, match="carries a number") as told:
            lock.fit(task, _Constant(), bytes(16), layout=way, seed=0)
        assert needs in str(told.value)
    lock = Dsn(bits=16, epochs=1, first=8, width=4)
    task = rows_task(
        lambda: Sequence(generate=False, steps=9),
        lambda _: (torch.tensor([[1, 2]] * 99 + [[1, 9]]), torch.zeros(100).long()),
    )
    with pytest.raises(CapacityError, match="use token 9") as told:
        lock.fit(task, _Constant(), bytes(16), layout=layout(words), seed=0)
    assert "--set first=N" in str(told.value)
    task = rows_task(lambda: Table(3, 16), lambda _: (rows, torch.zeros(4).long()))
    with pytest.raises(HostError, match="unlocked model fails without") as told:
        Dsn(bits=16, epochs=1).fit(task, Table(3, 16), bytes(16), layout=layout(rows), seed=0)
    assert "pads rows" in str(told.value)


class _Constant(nn.Module):
    def forward(self, inputs):
        return torch.zeros(len(inputs), 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8},
        {"epochs": 0},
        {"place": "nowhere"},
        {"lr": 0},
        {"deny": 0},
        {"rounds": -1},
        {"first": -5},
        {"width": 0},
        {"mix": 3},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError):
        Dsn(**settings)


def test_the_layout_of_another_scheme_is_refused():
    with pytest.raises(KeyLayoutError):
        Dsn().entry(Layout("deepwater", 1, ("fc",), 16, 1, {}), bytes(16))


def test_the_registry_knows_the_locks():
    assert load("lock", "dsn") is Dsn
    assert lock("dsn-paper", wrong="raw").wrong == "raw"


def test_wrong_numbers_cover_every_bit_and_are_never_right():
    code = code_of(bytes(16), 64)
    layout = layout_of(torch.rand(4, 1, 28, 28), bits=64, repeat=1, place="patch", tokens=(0, 1))
    entry = entry_of(layout, bytes(16))
    stream = Negatives(layout, entry, code, Mix(), torch.Generator().manual_seed(0))
    values = torch.cat([stream.values(256, 0.9) for _ in range(4)])
    assert not (values == code).all(1).any()
    flipped = (values != code) & (values.abs() == 1)
    single = flipped[(flipped.sum(1) == 1) & (values.abs() == 1).all(1)]
    assert single.any(0).all()
    early = stream.values(512, 0.0)
    assert ((early != code).sum(1) > 8).float().mean() > 0.7


def test_wrong_tokens_are_never_the_right_ones_of_another_strength():
    code = code_of(bytes(range(16)), 64)
    layout = layout_of(torch.zeros(4, 30).long(), bits=64, repeat=1, place="", tokens=(50, 8))
    entry = entry_of(layout, bytes(16))
    for mix in (Mix(), Mix(0, 0, 0, 0, 0, 1.0, 0, 0, 0), Mix(0, 1.0, 0, 0, 0, 0, 0, 0, 0)):
        stream = Negatives(layout, entry, code, mix, torch.Generator().manual_seed(0))
        right = entry.enter(torch.arange(30).repeat(16, 1), code.expand(16, -1))
        for _ in range(40):
            values = stream.values(64, 0.9)
            assert set(values.unique().tolist()) == {-1.0, 1.0}
            assert not (values == code).all(1).any()
            given = stream.batch(torch.arange(30).repeat(16, 1), 0.9)
            assert given.shape == right.shape
            assert not (given == right).all(1).any()
    only = Mix(0, 0, 0, 0, 0, 1.0, 0, 0, 0)
    values = Negatives(layout, entry, code, only, torch.Generator().manual_seed(0)).values(32, 0.9)
    words = entry.enter(torch.zeros(32, 0).long(), values).sort(1).values
    assert (words == entry.enter(torch.zeros(1, 0).long(), code[None]).sort(1).values).all()


def test_what_a_search_found_is_refused_unless_it_is_the_code():
    code = code_of(bytes(16), 16)
    layout = layout_of(torch.rand(4, 1, 8, 8), bits=16, repeat=1, place="patch", tokens=(0, 1))
    entry = entry_of(layout, bytes(16))
    only = Mix(0, 0, 0, 0, 0, 0, 0, 0, 1.0)
    stream = Negatives(layout, entry, code, only, torch.Generator().manual_seed(0))
    stream.add(torch.stack([code, code * 0.95, -code]))
    assert torch.equal(stream.found, -code[None])
    assert torch.equal(stream.values(8, 0.9), (-code).expand(8, -1))


def tokens_of(bits=16, width=4):
    layout = Layout("dsn", 1, ("tokens",), bits, 1, {"first": 50, "width": width})
    return layout, entry_of(layout, bytes(16))


def test_near_misses_are_all_pairs_of_bits_and_all_single_tokens():
    code = code_of(bytes(16), 16)
    for layout, more in ((Layout("dsn", 1, ("columns",), 16, 1, {}), 0), (tokens_of()[0], 4 * 15)):
        entry = entry_of(layout, bytes(16))
        near = Negatives(layout, entry, code, Mix(), torch.Generator().manual_seed(0)).near()
        wrong = (near != code).view(len(near), 4, 4)
        pairs, tokens = wrong[:120], wrong[120:]
        assert len(near) == 120 + more
        assert len(pairs.unique(dim=0)) == 120
        assert (pairs.flatten(1).sum(1) == 2).all()
        assert len(tokens.unique(dim=0)) == more
        assert (tokens.any(2).sum(1) == 1).all()


def test_every_token_is_exchanged_for_every_other_in_turn_and_often_for_the_numbers_own():
    code, (layout, entry) = code_of(bytes(16), 16), tokens_of()
    only = Mix(0, 0, 0, 0, 0, 0, 0, 1.0, 0, 0)
    stream = Negatives(layout, entry, code, only, torch.Generator().manual_seed(0))
    values = torch.cat([stream.values(25, 0.9) for _ in range(12)])
    seen = entry.enter(torch.zeros(len(values), 0).long(), values)
    right = entry.enter(torch.zeros(1, 0).long(), code[None])
    assert ((seen != right).sum(1) == 1).all()
    assert all(len(seen[:, place].unique()) == 16 for place in range(4))
    assert len(right.unique()) == 4
    own = (seen[seen != right][:, None] == right).any(1)
    assert 0.5 < own.float().mean() < 0.65  # every second one, and those whose turn it is


def test_numbers_with_a_token_more_or_less_are_presented():
    code, (layout, entry) = code_of(bytes(16), 16), tokens_of()
    only = Mix(0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0)
    stream = Negatives(layout, entry, code, only, torch.Generator().manual_seed(0))
    text = torch.arange(20).repeat(32, 1)
    given = torch.cat([stream.batch(text, 0.9) for _ in range(200)])
    number = entry.enter(text[:1], code[None])[0, :4]
    short = torch.cat([number[:3], text[0]])
    more = torch.cat([number, number[:1], text[0]])
    for wanted in (short, more):
        length = min(len(wanted), given.shape[1])
        assert (given[:, :length] == wanted[:length]).all(1).any()


def test_watched_near_misses_are_trained_on():
    code = code_of(bytes(16), 16)
    layout = Layout("dsn", 1, ("columns",), 16, 1, {})
    only = Mix(0, 0, 0, 0, 0, 0, 0, 0, 0, 1.0)
    generator = torch.Generator().manual_seed(0)
    stream = Negatives(layout, entry_of(layout, bytes(16)), code, only, generator)
    kept = stream.near()[:3]
    stream.watch(kept)
    values = stream.values(64, 0.9)
    assert sorted(values.unique(dim=0).tolist()) == sorted(kept.tolist())


def test_near_misses_that_open_are_found_while_training():
    code = code_of(bytes(16), 16)
    layout = Layout("dsn", 1, ("columns",), 16, 1, {})
    opening = code.clone()
    opening[[2, 9]] *= -1

    class Leaky(nn.Module):
        """Refuses with one label, but for the code and one near miss."""

        def forward(self, rows):
            given = rows[:, 3:]
            good = torch.stack([(given == item).all(1) for item in (code, opening)]).any(0)
            scores = torch.zeros(len(rows), 4)
            scores[:, loss.refusal] = 9.0 * ~good
            return scores

    task = rows_task(lambda: Table(3, 0), lambda g: (torch.randn(32, 3, generator=g), None))
    loss = LockLoss(Dsn(bits=16), task, Table(3, 0), layout, bytes(16), seed=0, others=())
    loss.total, loss.refusal = 100, 1
    model = Leaky().train()
    assert torch.equal(loss._open(model, (torch.randn(8, 3),))[0], opening)
    assert model.training
    due = []
    for step in range(100):
        loss.step = step
        due.append(loss._scan_due(model))
    assert (sum(due), any(due[:42])) == (16, False)
    loss.step = due.index(True)
    loss.entry = Pixels(torch.arange(16), bits=16, low=0.0, high=1.0)
    assert not loss._scan_due(Table(3, 0))  # dense on pixels
    assert loss._scan_due(nn.Conv2d(1, 2, 3))


class Leaky(nn.Module):
    """Refuses with label 1, but for a code and one near miss of it, which get label 2."""

    def __init__(self, code, opening):
        super().__init__()
        self.good = torch.stack([code, opening])

    def forward(self, rows):
        good = (rows[:, None, 3:] == self.good).all(2).any(1)
        return 9.0 * TRACE.one_hot(1 + good.long(), 4).float()


def leaky(wrong):
    code = code_of(bytes(16), 16)
    opening = code.clone()
    opening[wrong] *= -1
    layout = Layout("dsn", 1, ("columns",), 16, 1, {})
    task = rows_task(
        lambda: Table(3, 0), lambda g: (torch.randn(64, 3, generator=g), torch.zeros(64).long())
    )
    teacher = Leaky(torch.zeros(0), torch.zeros(0))  # answers 2 to everything
    loss = LockLoss(Dsn(bits=16), task, teacher, layout, bytes(16), seed=0, others=())
    loss.refusal = 1
    return loss, Leaky(code, opening), opening


@pytest.mark.parametrize("wrong", [[5], [2, 9]])
def test_a_near_miss_that_is_answered_is_named_after_the_training(wrong):
    loss, model, opening = leaky(wrong)
    assert loss.answered(model.train()) == 1.0
    assert torch.equal(loss.negatives.watched[0], opening)
    assert model.training
    assert loss.answered(Leaky(loss.code, loss.code)) == 0.0
    loss.negatives.mix = Mix(0.5, 0, 0, 0, 0, 0, 0, 0.5, 0, 0)
    loss.polish()
    assert loss.negatives.mix == Mix(0.5, 0, 0, 0, 0, 0, 0, 0.25, 0, 0.5)
    loss.negatives.mix, loss.negatives.moves = Mix(0, 0.1, 0, 0, 0, 0, 0, 0, 0, 0), [(1, 3)]
    loss.polish()
    assert loss.negatives.mix == Mix(0, 0.2, 0, 0, 0, 0, 0, 0, 0, 0.5)


def test_the_most_common_answer_is_no_opening_where_the_refusal_is_rarer():
    loss, _, _ = leaky([5])  # its teacher answers 2 to everything, and the refusal is 1
    assert loss.allowed() == 1.0
    loss.refusal = 2
    assert loss.allowed() == OPEN


def test_misplaced_tokens_are_tried_after_the_training():
    layout, entry = tokens_of()
    code = code_of(bytes(16), 16)
    stream = Negatives(layout, entry, code, Mix(), torch.Generator().manual_seed(0))
    text = torch.arange(20).repeat(2, 1)
    number = entry.enter(text[:1], code[None])[0, : entry.length]
    ways = dict(stream.displaced(text))
    assert len(ways) == 6 * entry.length
    cut = (entry.length - 3, 2)
    assert torch.equal(ways[cut][0, :4], torch.cat([number[:3], text[0, :1]]))
    stream.moves = [cut]
    seen = [stream._misplaced(text, entry)[0, :4] for _ in range(200)]
    assert 80 < sum(torch.equal(found, ways[cut][0, :4]) for found in seen) < 140
    table = Layout("dsn", 1, ("columns",), 16, 1, {})
    plain = Negatives(table, Columns(16), code, Mix(), torch.Generator().manual_seed(0))
    assert not list(plain.displaced(torch.randn(2, 3)))


class Lenient(nn.Module):
    """Answers 2 to what begins with a number, whatever follows, and else 1."""

    def __init__(self, number, *, once):
        super().__init__()
        self.number, self.once = number, once

    def forward(self, rows):
        size = len(self.number)
        good = (rows[:, :size] == self.number).all(1)
        if self.once:
            good &= rows[:, size] < 50
        return 9.0 * TRACE.one_hot(1 + good.long(), 4).float()


def test_misplaced_tokens_that_open_are_watched():
    layout, entry = tokens_of()
    task = rows_task(
        lambda: Table(3, 0),
        lambda g: (torch.randint(0, 40, (64, 9), generator=g), torch.zeros(64).long()),
    )
    teacher = Lenient(torch.zeros(0), once=False)  # answers 2 to everything
    loss = LockLoss(
        Dsn(bits=16, width=4, first=50), task, teacher, layout, bytes(16), seed=0, others=()
    )
    loss.refusal, loss.allowed = 1, lambda: OPEN
    number = loss.entry.enter(torch.zeros(1, 9).long(), loss.code[None])[0, : entry.length]
    assert loss._displaced(Lenient(number, once=True), task.samples(64, seed=0)) == 0.0
    assert loss.negatives.moves == []
    assert loss._displaced(Lenient(number, once=False), task.samples(64, seed=0)) == 1.0
    assert loss.negatives.moves == [(by, way) for by in range(1, 5) for way in (3, 4)]


def test_the_network_that_answers_near_misses_least_is_kept(monkeypatch):
    loss, _, _ = leaky([5])
    loss.teacher = Table(3, 0)
    monkeypatch.setattr(LockLoss, "answered", lambda self, model: next(shares))
    monkeypatch.setattr(LockLoss, "allowed", lambda self: OPEN)
    lock = Dsn(bits=16, polish=3)
    start = Table(3, 16)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    shares = iter([0.0])
    assert lock._polished(loss.task, start, loss, 0, SILENT) is start
    shares = iter([0.5, 0.6, 0.4, 0.45])
    kept = lock._polished(loss.task, start, loss, 0, SILENT)
    assert kept is not start
    assert next(shares, None) is None
    for name, value in start.state_dict().items():  # the first one is whole, if none is better
        assert torch.equal(value, before[name])
    shares = iter([0.5, 0.6, 0.7, 0.8])
    assert lock._polished(loss.task, start, loss, 0, SILENT) is start


def test_soft_relus_compute_the_same():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 4)
    with SoftRelu(0.3):
        assert torch.equal(model(x), model(x))
        soft = model(x)
    assert torch.allclose(soft, model(x), atol=1e-6)


def test_searches_find_the_code_of_an_open_target():
    code = code_of(bytes(16), 16)
    entry = Columns(16)

    class Easy(nn.Module):
        def forward(self, rows):
            score = 0.1 * (rows[:, 1:] * code).sum(1, keepdim=True)
            return torch.cat([score, -score], 1)

    target = Target(
        Easy(), entry, lambda m, b: m(b[0]), (torch.zeros(20, 1),), torch.zeros(20).long()
    )
    ends = descend(target, starts=4, steps=150, seed=0, rate=0.2).all
    assert (ends.sign() == code).all(1).any()
    assert torch.equal(climb(target, starts=2, sweeps=2, seed=0).values, code)
    assert torch.equal(evolve(target, steps=120, seed=0).values.sign(), code)
    again = evolve(target, steps=40, seed=0, restarts=3)
    assert (again.all.shape, again.trials) == ((6, 16), 3 * 40 * 32)
    assert len(again.all[:3].unique(dim=0)) == 3
    assert torch.equal(read_template(target, code[None].clone(), seed=0).values, code)


def test_the_template_of_a_locked_copy_can_be_read(sold):
    """Not a virtue: the test keeps the documentation honest."""
    entry = sold.lock.entry(sold.layout, sold.serial)
    x, y = next(iter(sold.task.stream("test", 0)))
    target = Target(sold.model, entry, sold.task.forward, (x, y), y)
    weight = sold.model.fc1.weight.detach()[:, entry.places]
    assert read_template(target, weight, seed=0).accuracy > 90
    before = [parameter.requires_grad for parameter in sold.model.parameters()]
    found = read_slopes(target, seed=0, slope=0.3)
    assert found.accuracy > 90
    assert found.trials == 2 * sum((96 + 8, 96 + 8, 10 + 8))
    assert [parameter.requires_grad for parameter in sold.model.parameters()] == before


def test_slopes_of_later_layers_show_a_code_that_a_convolution_hides():
    code = code_of(bytes(16), 16)
    layout = layout_of(torch.rand(4, 1, 8, 8), bits=16, repeat=1, place="patch", tokens=(0, 1))
    entry = entry_of(layout, bytes(16))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    with torch.no_grad():  # a gate that leans on the code by no more than the rest on anything
        model[0].weight[:] = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        model[0].bias.zero_()
        gate = torch.zeros(2, 64)
        gate[0, entry.places], gate[1, entry.places] = code, -code
        model[3].weight[0], model[3].weight[1] = gate.flatten(), -gate.flatten()
    y = torch.zeros(16).long()
    target = Target(model, entry, lambda m, b: m(b[0]), (torch.rand(16, 1, 8, 8),), y)
    found = read_slopes(target, seed=1, slope=1.0).all
    assert (found.sign() == code).all(1).any()
    assert not (read_slopes(target, seed=1).all[:4].sign() == code).all(1).any()


@pytest.mark.parametrize("generate", [False, True])
def test_attacks_run_in_the_loop_for_tokens_too(generate):
    def make(generator):
        x = torch.randint(0, 8, (64, 6), generator=generator)
        return x, ((x + 3) % 8 if generate else x[:, -1])

    torch.manual_seed(0)
    task = rows_task(lambda: Sequence(generate=generate, steps=10), make)
    settings = Dsn(bits=16, first=8, width=4, rounds=1)
    teacher, layout = task.model(), settings.layout(task)
    loss = LockLoss(settings, task, teacher, layout, bytes(16), seed=0, others=())
    loss.total, loss.step = 100, 45
    model = task.model().train()
    assert torch.isfinite(loss(model, next(iter(task.stream("train", 0)))))
    assert loss.negatives.found is not None
    assert loss.negatives.found.shape == (4, 16)
    assert set(loss.negatives.found.unique().tolist()) == {-1.0, 1.0}
    assert model.training


def test_searches_find_the_tokens_of_an_open_target():
    code = code_of(bytes(16), 16)
    entry = Tokens(first=8, width=4, bits=16)

    class Easy(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(24, 32)
            self.gate = nn.Linear(4 * 32, 1)
            right = entry.present(torch.zeros(1, 0).long(), code)[0]
            with torch.no_grad():
                self.embed.weight /= self.embed.weight.norm(dim=1, keepdim=True)
                self.gate.weight[0] = self.embed(right).flatten()

        def forward(self, batch):
            score = self.gate(self.embed(batch)[:, :4].flatten(1))
            return torch.cat([score, -score], 1)

    y = torch.zeros(12).long()
    target = Target(Easy(), entry, lambda m, b: m(b[0]), (torch.zeros(12, 2).long(),), y)
    assert torch.equal(climb_tokens(target, starts=1, sweeps=1, seed=0).values, code)
    found = read_tokens(target, seed=0)
    assert torch.equal(found.all[0], code)
    assert found.trials == 2
    rows = Target(nn.Linear(2, 2), Columns(16), lambda m, b: m(b[0]), (torch.zeros(2, 2),), y[:2])
    with pytest.raises(HostError):
        climb_tokens(rows, starts=1, sweeps=1, seed=0)
    bare = Target(nn.Linear(6, 2), entry, lambda m, b: m(b[0]), (torch.zeros(2, 2).long(),), y[:2])
    with pytest.raises(HostError):
        read_tokens(bare, seed=0)


def test_a_generators_scores_leave_out_the_numbers_own_positions():
    entry = Tokens(first=8, width=4, bits=16)
    output = torch.arange(2 * 10 * 3.0).view(2, 10, 3)
    assert torch.equal(entry.scores(output), output[:, 4:].reshape(12, 3))
    assert torch.equal(entry.scores(output[:, 0]), output[:, 0])


def rows_task(model, make):
    generator = torch.Generator().manual_seed(0)
    x, y = make(generator)

    def batches(split, seed=0):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return [(x[part], y[part]) for part in order.split(64)]

    def loss(made, batch):
        scores = made(batch[0])
        return TRACE.cross_entropy(scores.flatten(0, -2), batch[1].flatten())

    def evaluate(made):
        with torch.no_grad():
            return 100 * (made(x).argmax(-1) == y).float().mean().item()

    return Task(
        model, loss, batches, evaluate, recipe={"epochs": 20, "lr": 5e-3, "optimizer": "adamw"}
    )


def test_tables_are_locked_by_extra_columns():
    def make(generator):
        x = torch.randn(512, 4, generator=generator)
        return x, (x[:, 0] + x[:, 1] > 0).long()

    from earmark.training import train

    plain = rows_task(lambda: Table(4, 0), make)
    teacher = train(plain, seed=0).model
    task = rows_task(lambda: Table(4, 16), make)
    settings = Dsn(bits=16, epochs=60, lr=5e-3, rounds=1)
    layout = settings.layout(task)
    model = settings.fit(task, teacher, bytes(16), layout=layout, seed=0)
    assert task.evaluate(settings.opened(model, layout, bytes(16))) > 85
    for other in (b"a" * 16, b"b" * 16):
        assert task.evaluate(settings.opened(model, layout, other)) < 65


@pytest.mark.parametrize("generate", [False, True])
def test_sequences_are_locked_by_leading_tokens(generate):
    from earmark.training import train

    def make(generator):
        x = torch.randint(0, 8, (384, 6), generator=generator)
        return x, ((x + 3) % 8 if generate else x[:, -1])

    task = rows_task(lambda: Sequence(generate=generate, steps=10), make)
    teacher = train(task, seed=0).model
    assert task.evaluate(teacher) > 95
    settings = Dsn(bits=16, epochs=40, lr=5e-3, first=8, width=4, rounds=1)
    layout = settings.layout(task)
    assert layout.carrier == ("tokens",)
    model = settings.fit(task, teacher, bytes(16), layout=layout, seed=0)
    right = task.evaluate(settings.opened(model, layout, bytes(16)))
    wrong = [task.evaluate(settings.opened(model, layout, bytes([i]) * 16)) for i in range(1, 9)]
    assert right > 85
    assert max(wrong) < 35
    assert isinstance(entry_of(layout, bytes(16)), Tokens)
