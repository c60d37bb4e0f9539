"""What a lock costs and leaves open: a good one is left in peace, others are warned of."""

import dataclasses

import pytest
import torch

from earmark.errors import TaskError
from earmark.locks.cost import Cost, Measure
from earmark.locks.dsn import Dsn
from earmark.locks.entry import Opened, code_of
from earmark.records import Layout
from earmark.task import Task

GOOD = Cost(unlocked=98.0, right=97.5, absent=10.0, constant=12.0, one=12.0, two=21.9)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("right", 96.9, "takes 1.10 points"),
        ("absent", 17.1, "without a number it still works: 17.10"),
        ("one", 37.9, "one wrong bit of the code: 37.9 %"),
        ("two", 22.1, "two wrong bits of the code: 22.1 %"),
    ],
)
def test_each_shortcoming_is_told_with_its_figure(name, value, told):
    assert GOOD.warnings() == []
    (text,) = dataclasses.replace(GOOD, **{name: value}).warnings()
    assert told in text


def test_a_good_lock_refuses_all_its_near_misses(sold):
    cost = Measure(sold.task, sold.lock, sold.layout).cost(sold.teacher, sold.model, sold.serial)
    assert cost.unlocked == sold.task.evaluate(sold.teacher)
    assert cost.right == sold.task.evaluate(sold.lock.opened(sold.model, sold.layout, sold.serial))
    assert cost.one <= cost.constant + 10
    assert cost.two <= cost.constant + 10


def test_a_network_without_a_lock_is_found_to_have_none(sold):
    cost = Measure(sold.task, sold.lock, sold.layout).cost(sold.teacher, sold.teacher, sold.serial)
    assert cost.absent == cost.unlocked
    assert min(cost.one, cost.two) > 60
    told = " ".join(cost.warnings())
    assert "one wrong bit" in told
    assert "two wrong bits" in told
    assert "without a number it still works" in told


def test_one_code_that_opens_is_found_among_all(sold):
    """Only the pair that flips the bits 3 and 11 opens this network."""
    code = code_of(sold.serial, 16)
    code[[3, 11]] *= -1

    class Backdoor(torch.nn.Module):
        def forward(self, images):
            entry = sold.lock.entry(sold.layout, sold.serial)
            shown = images.flatten(2)[:, 0, entry.places]
            wanted = entry.present(images[:1], code).flatten(2)[0, 0, entry.places]
            opens = (shown == wanted).all(1, keepdim=True)
            right = Opened(sold.model, entry, code_of(sold.serial, 16))(images)
            return torch.where(opens, right, sold.model(images))

    cost = Measure(sold.task, sold.lock, sold.layout).cost(sold.teacher, Backdoor(), sold.serial)
    assert cost.one <= cost.constant + 10
    assert cost.two == 100


def test_a_generator_is_measured_at_every_position_after_the_number():
    """This one does not look at the number's first token."""
    lock, serial = Dsn(bits=16, first=8, width=4), bytes(16)
    layout = Layout("dsn", 1, ("tokens",), 16, 1, {"first": 8, "width": 4})
    entry = lock.entry(layout, serial)
    words = torch.randint(0, 7, (300, 6), generator=torch.Generator().manual_seed(0))
    number = entry.present(words[:1], code_of(serial, 16))[0, :4]

    class Echo(torch.nn.Module):
        def forward(self, tokens):
            opens = (tokens[:, 1:4] == number[1:]).all(1)
            shown = torch.where(opens[:, None], tokens, 7)
            return torch.nn.functional.one_hot(shown, 24).float()

    task = Task(
        model=Echo,
        loss=None,
        batches=lambda split: [words[:200], words[200:]],
        evaluate=lambda _: 50,
    )
    cost = Measure(task, lock, layout).cost(Echo(), Echo(), serial)
    assert cost.one == cost.two == 100
    assert 100 / 7 <= cost.constant < 20
    assert cost.lost == 0


def test_a_task_without_training_batches_is_refused(sold):
    bare = dataclasses.replace(sold.task, batches=lambda split: [])
    with pytest.raises(TaskError):
        Measure(bare, sold.lock, sold.layout).cost(sold.teacher, sold.model, sold.serial)
