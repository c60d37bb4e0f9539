"""Batch norms that see a key's inputs beside the task's batch."""

import pytest
import torch
from torch import nn

from earmark.schemes.groups import TaskNorms, _moments, quiet


@pytest.fixture
def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 5), nn.BatchNorm1d(5)).train()  # fmt: skip


@pytest.fixture
def data():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def odd():
    return 3 + 2 * torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def shown(network, data, odd, share, *, due=lambda: True):
    norms = TaskNorms(network, share, due)
    with norms.watching():
        network(data)
        with norms.showing():
            return network(odd)


def test_without_a_share_inputs_are_seen_as_the_released_model_sees_them(network, data, odd):
    for norm in (network[1], network[5]):
        norm.momentum = 1.0  # what is released has the statistics of the last batch
    found = shown(network, data, odd, 0.0)
    network.eval()
    expected = network(odd)
    # the running variance is the unbiased one
    assert torch.allclose(found, expected, atol=0.1)
    alone = shown(network.train(), data, odd, 1.0)
    assert (alone - expected).abs().max() > 1


def test_share_mixes_the_statistics_of_both_batches(data, odd):
    norm = nn.BatchNorm2d(1).train()
    joint = norm(torch.cat([data, odd]))[32:]
    assert torch.allclose(shown(norm, data, odd, 10 / 42), joint, atol=1e-5)


def test_whole_share_and_a_task_that_showed_nothing_are_the_inputs_own(network, data, odd):
    with quiet(network):
        own = network(odd)
    assert torch.allclose(shown(network, data, odd, 1.0), own, atol=1e-5)
    assert torch.allclose(shown(network, data, odd, 0.0, due=lambda: False), own, atol=1e-5)


def test_gradients_reach_the_task_batch(network, data, odd):
    data.requires_grad_()
    shown(network, data, odd, 0.2).square().sum().backward()
    assert data.grad.abs().sum() > 0


def test_showing_leaves_statistics_and_modes_alone(network, data, odd):
    network[5].eval()  # frozen
    network(data)
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    norms = TaskNorms(network, 0.2, lambda: True)
    with norms.watching(), norms.showing():
        frozen = network(odd)
    assert all(torch.equal(kept[name], buffer) for name, buffer in network.named_buffers())
    assert [module.training for module in network] == [True] * 5 + [False]
    assert all(not module._forward_hooks for module in network)
    inner = network[:5]
    with quiet(network):
        assert torch.equal(frozen, network[5](inner(odd)))
    mean = network[5].running_mean
    assert torch.allclose(frozen, (inner_out(network, odd) - mean) /
                          (network[5].running_var + network[5].eps).sqrt(), atol=1e-5)  # fmt: skip


def inner_out(network, odd):
    with quiet(network):
        return network[:5](odd)


def test_moments_have_the_gradient_of_mean_and_variance(data):
    values = (data[:6] + 1).double().requires_grad_()
    mean, var = _moments(values)
    true_var, true_mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean.double(), true_mean, atol=1e-5)
    assert torch.allclose(var.double(), true_var, atol=1e-5)
    found = torch.autograd.grad((2 * mean + 3 * var).sum(), values)[0]
    expected = torch.autograd.grad((2 * true_mean + 3 * true_var).sum(), values)[0]
    assert torch.allclose(found, expected, atol=1e-6)
