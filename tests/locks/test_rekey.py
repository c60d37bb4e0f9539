"""A copy gets another number by moving weights, without training."""

import random

import pytest
import torch
from torch import nn

from earmark.bench import zoo
from earmark.errors import HostError, KeyLayoutError
from earmark.locks.entry import Opened, code_of, entry_of, layout_of
from earmark.locks.rekey import fits, rekey

from .conftest import Table


def open_with(sold, model, serial):
    return sold.task.evaluate(sold.lock.opened(model, sold.layout, serial))


@pytest.fixture(scope="module", name="copies")
def fixture_copies(sold):
    draw = random.Random(5)
    drawn = [draw.randbytes(16) for _ in range(60)]
    numbers = [number for number in drawn if fits(sold.layout, sold.serial, number)]
    assert 5 <= len(numbers) <= 30  # one in four
    return numbers, [rekey(sold.model, sold.layout, sold.serial, n) for n in numbers]


def test_every_copy_opens_with_its_own_number_and_no_other(sold, copies):
    numbers, made = copies
    x, _ = next(iter(sold.task.stream("test", 0)))
    with torch.no_grad():
        before = sold.lock.opened(sold.model, sold.layout, sold.serial)(x)
    for i, model in enumerate(made):
        assert type(model) is type(sold.model)
        with torch.no_grad():
            after = sold.lock.opened(model, sold.layout, numbers[i])(x)
        assert torch.allclose(before, after, atol=1e-3)
        assert open_with(sold, model, sold.serial) <= 20
        assert open_with(sold, model, numbers[i - 1]) <= 20
        assert sold.task.evaluate(model) <= 20


def test_near_misses_stay_refused(sold, copies):
    numbers, made = copies
    entry, code = entry_of(sold.layout, numbers[0]), code_of(numbers[0], 16)
    for bit in range(16):
        near = code.clone()
        near[bit] *= -1
        assert sold.task.evaluate(Opened(made[0], entry, near).eval()) <= 20


def test_two_copies_and_one_number_give_the_other_number(sold, copies):
    """Not a virtue: the test keeps the documentation honest."""
    numbers, made = copies
    ours, theirs = (entry_of(sold.layout, number).places for number in numbers[:2])
    mine, other = made[0].fc1.weight[:, ours], made[1].fc1.weight[:, theirs]
    read = code_of(numbers[0], 16) * (mine * other).sum(0).sign()
    assert torch.equal(read, code_of(numbers[1], 16))


def test_the_given_model_is_untouched_and_its_own_number_changes_nothing(sold, copies):
    before = {name: value.clone() for name, value in sold.model.state_dict().items()}
    same = rekey(sold.model, sold.layout, sold.serial, sold.serial)
    rekey(sold.model, sold.layout, sold.serial, copies[0][0])
    assert all(torch.equal(before[name], v) for name, v in sold.model.state_dict().items())
    assert all(torch.allclose(before[name], v) for name, v in same.state_dict().items())


def test_tables_are_given_another_number_exactly():
    model, rows = Table(4, 16).eval(), torch.randn(8, 4)
    layout = layout_of(rows, bits=16, repeat=1, place="patch", tokens=(0, 1))
    old, new = bytes(16), b"n" * 16
    entry = entry_of(layout, old)
    made = rekey(model, layout, old, new)
    before = model(entry.present(rows, code_of(old, 16)))
    assert torch.allclose(before, made(entry.present(rows, code_of(new, 16))), atol=1e-6)
    assert not torch.allclose(before, made(entry.present(rows, code_of(old, 16))), atol=1e-3)


def test_networks_without_a_dense_first_layer_are_refused():
    images = torch.rand(2, 1, 8, 8)
    layout = layout_of(images, bits=16, repeat=1, place="patch", tokens=(0, 1))
    for model in (zoo.SmallCnn((1, 8, 8), 10), nn.Linear(64, 2, bias=False), nn.Linear(63, 2)):
        with pytest.raises(HostError):
            rekey(model, layout, bytes(16), bytes(16))
    elsewhere = next(
        bytes([i]) * 16 for i in range(99) if not fits(layout, bytes(16), bytes([i]) * 16)
    )
    with pytest.raises(KeyLayoutError):
        rekey(nn.Linear(64, 2), layout, bytes(16), elsewhere)
    tokens = layout_of(torch.zeros(2, 5).long(), bits=16, repeat=1, place="patch", tokens=(9, 8))
    with pytest.raises(KeyLayoutError):
        rekey(nn.Linear(4, 2), tokens, bytes(16), b"n" * 16)
