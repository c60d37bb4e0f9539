"""The lock as published: its losses against what they must be, and one student."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from earmark.errors import HostError, UsageError
from earmark.locks.dsn_paper import DsnPaper, ReverseGradient, soft_nearest_neighbor

from .conftest import digits_task


def test_reversal_is_the_identity_forwards_and_minus_strength_backwards():
    x = torch.randn(3, 4, requires_grad=True)
    y = ReverseGradient.apply(x, 0.7)
    assert torch.equal(y, x)
    y.backward(torch.ones(3, 4))
    assert torch.allclose(x.grad, torch.full((3, 4), -0.7))


def test_entanglement_is_log_two_for_mixed_groups_and_zero_for_parted_ones():
    flags = torch.arange(400) % 2
    mixed = torch.zeros(400, 2)
    loss = soft_nearest_neighbor(mixed, flags, 1.0).item()
    assert loss == pytest.approx(math.log(399 / 199), abs=1e-5)
    parted = mixed + 100.0 * flags[:, None]
    assert soft_nearest_neighbor(parted, flags, 1.0).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("wrong", ["raw", "random"])
def test_a_student_as_published(sold, wrong):
    lock = DsnPaper(side=2, wrong=wrong, epochs=12, lr=2e-3)
    layout = lock.layout(sold.task)
    assert layout.message_bits == 4
    model = lock.fit(sold.task, sold.teacher, sold.serial, layout=layout, seed=1)
    right = sold.task.evaluate(lock.opened(model, layout, sold.serial))
    assert right > 85
    assert sold.task.evaluate(model) < right - 20
    assert list(model.state_dict()) == list(sold.task.model().state_dict())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_side_is_a_tenth_of_the_width():
    task = digits_task()
    assert DsnPaper().layout(task).message_bits == 1


def test_settings_and_hosts_that_do_not_fit_are_refused(sold):
    with pytest.raises(UsageError):
        DsnPaper(wrong="none")
    lock = DsnPaper(side=2)
    layout = lock.layout(sold.task)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 10, 8)

        def forward(self, x):
            return self.conv(x).flatten(1)

    with pytest.raises(HostError):
        lock.fit(sold.task, sold.teacher, bytes(16), layout=layout, seed=0, model=Plain())
