"""A copy gets another number without training, by what stands in front of it."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from earmark.bench import zoo
from earmark.errors import HostError, KeyLayoutError
from earmark.hosts.front import has_front
from earmark.locks.entry import Opened, code_of, entry_of, layout_of
from earmark.locks.rekey import fits, rekey, require_same

from .conftest import Sequence, Table


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


def test_copies_refuse_faint_numbers_and_the_middle_of_none(sold, copies):
    numbers, made = copies
    entry, code = entry_of(sold.layout, numbers[0]), code_of(numbers[0], 16)
    assert sold.task.evaluate(Opened(made[0], entry, code * 0.998).eval()) > 60
    for share in (0.99, 0.95, 0.5, 0.0, 2.0, torch.nan):
        assert sold.task.evaluate(Opened(made[0], entry, code * share).eval()) <= 20


def test_two_copies_and_one_number_give_the_code_of_the_other(sold, copies):
    """Not a virtue: the test keeps the documentation honest."""
    numbers, made = copies
    ours, theirs = (model.input_front_scale for model in made[:2])
    assert torch.equal(code_of(numbers[0], 16) * ours * theirs, code_of(numbers[1], 16))


def test_the_given_model_is_untouched_and_its_own_number_changes_nothing(sold, copies):
    before = {name: value.clone() for name, value in sold.model.state_dict().items()}
    same = rekey(sold.model, sold.layout, sold.serial, sold.serial)
    rekey(sold.model, sold.layout, sold.serial, copies[0][0])
    assert all(torch.equal(before[name], v) for name, v in sold.model.state_dict().items())
    assert torch.equal(same.input_front_at, same.input_front_source)
    assert bool((same.input_front_scale == 1).all())


def differ(model, made, entries, given):
    """Assert that a copy does with its number what the parent does with the parent's own."""
    (one, old), (other, new) = entries
    with torch.no_grad():
        before = model(one.present(given, old))
        assert torch.allclose(before, made(other.present(given, new)), atol=1e-5)
        assert not torch.allclose(before, made(other.present(given, old)), atol=1e-3)
        assert not torch.allclose(before, made(one.present(given, old)), atol=1e-3)
        near = new.clone()
        near[3] *= -1
        assert not torch.allclose(before, made(other.present(given, near)), atol=1e-3)


def entries_of(layout, *numbers):
    return [(entry_of(layout, n), code_of(n, layout.message_bits)) for n in numbers]


class Squared(nn.Module):
    """A table's network whose first layer does not see the columns as they come."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2 * 20, 7)

    def forward(self, rows):
        return self.body(torch.cat([rows, (rows + 1) ** 2], dim=1))


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (zoo.SmallCnn((2, 8, 8), 10), torch.rand(4, 2, 8, 8)),
        (nn.Sequential(nn.Flatten(), nn.Linear(128, 9, bias=False)), torch.rand(4, 2, 8, 8)),
        (Table(4, 16), torch.randn(4, 4)),
        (Squared(), torch.randn(4, 4)),
    ],
)
def test_any_network_is_given_another_number_exactly(model, given):
    model = model.eval()
    layout = layout_of(given, bits=16, repeat=1, place="patch", tokens=(0, 1))
    drawn = (bytes([i]) * 16 for i in range(1, 99))
    new = next(number for number in drawn if fits(layout, bytes(16), number))
    made = rekey(model, layout, bytes(16), new)
    differ(model, made, entries_of(layout, bytes(16), new), given)
    assert has_front(made)
    assert not has_front(model)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(HostError, match="of the parent"):
        rekey(made, layout, new, new)


def test_a_task_that_changes_what_was_presented_is_noticed(sold, copies):
    parent, made = (sold.model, sold.serial), (copies[1][0], copies[0][0])
    require_same(sold.task, sold.layout, parent, made)
    odd = replace(sold.task, forward=lambda model, batch: model((batch[0] - 0.3) / 0.4))
    with pytest.raises(HostError, match="to distil the copy"):
        require_same(odd, sold.layout, parent, made)


@pytest.mark.parametrize("generate", [True, False])
def test_locks_on_tokens_are_given_another_number(generate):
    model, words = Sequence(generate=generate, steps=9).eval(), torch.randint(0, 8, (4, 5))
    layout = layout_of(words, bits=16, repeat=1, place="patch", tokens=(8, 4))
    new = b"n" * 16
    made = rekey(model, layout, bytes(16), new)
    differ(model, made, entries_of(layout, bytes(16), new), words)
    with torch.no_grad():
        assert torch.equal(model(words), made(words))


def test_numbers_that_enter_elsewhere_are_refused():
    images = torch.rand(2, 1, 8, 8)
    layout = layout_of(images, bits=16, repeat=1, place="patch", tokens=(0, 1))
    elsewhere = next(
        bytes([i]) * 16 for i in range(99) if not fits(layout, bytes(16), bytes([i]) * 16)
    )
    with pytest.raises(KeyLayoutError):
        rekey(nn.Linear(64, 2), layout, bytes(16), elsewhere)
