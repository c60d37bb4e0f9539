"""Holding weights to another network's law: the term, and what it does in a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from earmark.errors import HostError
from earmark.schemes.base import Mark
from earmark.schemes.likeness import Likeness, gap


class Plain(Mark):
    """A mark without a term of its own that counts what reaches it."""

    def __init__(self):
        self.rates, self.state = [], None

    def loss(self):
        return torch.zeros(())

    def after_step(self, lr):
        self.rates.append(lr)

    def state_dict(self):
        return {"rates": list(self.rates)}

    def load_state_dict(self, state):
        self.rates = list(state["rates"])


def net(seed, size=1.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        for value in made.parameters():
            value.mul_(size)
    return made


def test_order_does_not_matter_and_size_does():
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    moved = weight[[5, 3, 1, 0, 2, 4]][:, [8, 0, 7, 1, 6, 2, 5, 3, 4]]
    assert gap(moved, weight) < 1e-9
    assert gap(1.5 * weight, weight) > 0.1


def test_a_training_ends_with_the_other_networks_sizes():
    model, like = net(0, size=3.0), net(1)
    held = Likeness(Plain(), model, like, force=1.0, every=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = model[0].weight.std() / like[0].weight.std()
    held.after_step(0.1)  # the peak; from here on the rate has fallen
    for _ in range(300):
        held.after_step(0.01)
        optimizer.zero_grad()
        loss = held.loss()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
    after = model[0].weight.std() / like[0].weight.std()
    assert before > 2.5
    assert abs(after - 1) < 0.1


def test_is_silent_at_the_peak_and_between_its_steps():
    held = Likeness(Plain(), net(0, size=3.0), net(1), every=2)
    held.after_step(0.1)
    assert [float(held.loss()) for _ in range(2)] == [0.0, 0.0]
    held.after_step(0.05)
    first, second = held.loss(), held.loss()
    assert first == 0
    assert second > 0


def test_a_resumed_training_goes_on_in_step():
    mark = Plain()
    held = Likeness(mark, net(0, size=3.0), net(1), every=2)
    held.after_step(0.1)
    held.after_step(0.05)
    held.loss()
    other_mark = Plain()
    other = Likeness(other_mark, net(0, size=3.0), net(1), every=2)
    other.load_state_dict(held.state_dict())
    assert other_mark.rates == mark.rates == [0.1, 0.05]
    assert torch.equal(other.loss(), held.loss())


def test_refuses_a_network_of_another_build():
    with pytest.raises(HostError):
        Likeness(Plain(), net(0), nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)))
