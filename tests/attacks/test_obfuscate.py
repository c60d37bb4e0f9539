"""Changes that keep the function: exact on every kind of network that can be read."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from earmark.attacks.base import Budget
from earmark.attacks.obfuscate import Dummies, FlipSigns, Obfuscate, Permute, Scale
from earmark.attacks.prune import PruneChannels
from earmark.attacks.tracing import groups
from earmark.bench import zoo
from earmark.errors import HostError, UsageError
from earmark.hosts.module import state_digest

IMAGE = (16, 1, 8, 8)


class Odd(nn.Module):
    """Batch norm on vectors, an odd activation, and one that allows permutation only."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.c = (
            nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x):
        x = torch.tanh(self.norm(self.a(x.flatten(1))))
        return self.c(functional.gelu(self.b(x)))


class Depthwise(nn.Module):
    """A depthwise convolution, and flattening by `view`."""

    def __init__(self):
        super().__init__()
        self.a, self.deep = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.norm, self.c = nn.BatchNorm2d(8), nn.Linear(8 * 16, 3)

    def forward(self, x):
        x = functional.leaky_relu(self.norm(self.deep(torch.relu(self.a(x)))))
        return self.c(x.view(x.size(0), -1))


class Twice(nn.Module):
    """One layer called twice: its inputs and outputs must move together."""

    def __init__(self):
        super().__init__()
        self.a, self.again, self.c = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.a(x.flatten(1)))
        return self.c(torch.relu(self.again(torch.relu(self.again(x)))))


class Gated(nn.Module):
    """A gate that the reading does not know: what flows into it must be left alone."""

    def __init__(self):
        super().__init__()
        self.a, self.gate = nn.Linear(64, 8), nn.Linear(64, 8)
        self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.c(torch.relu(self.b(self.a(x) * self.gate(x))))


class OnWidth(nn.Module):
    """A linear layer on the last axis of a feature map, and a shared weight."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(8, 8)
        self.c, self.d = nn.Linear(384, 7), nn.Linear(7, 3)
        self.tied, self.tied2 = nn.Linear(3, 3), nn.Linear(3, 3)
        self.tied2.weight = self.tied.weight

    def forward(self, x):
        x = torch.relu(self.wide(self.conv(x))).flatten(1)
        x = torch.relu(self.d(torch.relu(self.c(x))))
        return self.tied2(torch.relu(self.tied(x)))


NETWORKS = {
    "mlp": lambda: zoo.Mlp((1, 8, 8), 10, hidden=24),
    "cnn": lambda: zoo.SmallCnn((1, 8, 8), 10, width=4, hidden=16),
    "resnet": lambda: zoo.ResNet((1, 8, 8), 10, width=4, blocks=2),
    "vgg": lambda: zoo.Vgg((1, 8, 8), 10, width=4),
    "transformer": zoo.TinyTransformer,
    "odd": Odd,
    "depthwise": Depthwise,
    "twice": Twice,
    "gated": Gated,
    "on-width": OnWidth,
}
EXACT = [
    Permute(),
    Scale(),
    Dummies(kind="zero"),
    Dummies(kind="clique"),
    Dummies(kind="split"),
    Obfuscate(),
    Obfuscate(width=0.8),
]


def make(name):
    torch.manual_seed(11)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 2)
    inputs = torch.randint(0, 50, (16, 12)) if name == "transformer" else torch.randn(IMAGE)
    return model.eval(), inputs


@pytest.fixture(scope="module")
def budget():
    return Budget(zoo.image_task("mlp", "digits"), data_fraction=0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("attack", EXACT, ids=lambda attack: attack.label())
def test_keeps_the_function_and_moves_the_weights(name, attack, budget):
    model, inputs = make(name)
    before = state_digest(model.state_dict())
    changed = attack.run(model, budget, seed=3)
    assert state_digest(model.state_dict()) == before
    old, new = model(inputs).detach(), changed(inputs).detach()
    assert float((old - new).norm() / old.norm()) < 1e-5
    assert state_digest(changed.state_dict()) != before
    assert list(changed.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["cnn", "resnet", "odd", "depthwise"])
def test_flips_signs_exactly_where_norms_or_odd_activations_allow_it(name, budget):
    model, inputs = make(name)
    changed = FlipSigns().run(model, budget, seed=1)
    old, new = model(inputs).detach(), changed(inputs).detach()
    assert float((old - new).norm() / old.norm()) < 1e-5
    flipped = [
        (a * b < 0).float().mean().item()
        for (_, a), (_, b) in zip(model.named_parameters(), changed.named_parameters(), strict=True)
    ]
    assert max(flipped) > 0.2


def test_refuses_to_flip_where_nothing_allows_it(budget):
    with pytest.raises(HostError, match="No sign"):
        FlipSigns().run(make("mlp")[0], budget, seed=1)


def test_permuting_moves_each_unit_with_all_that_belongs_to_it(budget):
    model, _ = make("mlp")
    changed = Permute().run(model, budget, seed=3)
    order = [(model.fc1.weight == row).all(1).nonzero().item() for row in changed.fc1.weight]
    assert sorted(order) == list(range(24)) != order
    assert torch.equal(changed.fc1.bias, model.fc1.bias[order])


def test_a_residual_stream_is_one_group(budget):
    model, _ = make("resnet")
    streams = [group for group in groups(model) if len(group.producers) > 1]
    assert [len(group.producers) for group in streams] == [3, 3, 3]


@pytest.mark.parametrize("name", ["gated", "on-width"])
def test_leaves_alone_what_it_does_not_understand(name, budget):
    model, _ = make(name)
    changed = Obfuscate().run(model, budget, seed=3)
    still = {"gated": ("a.weight", "gate.weight"), "on-width": ("conv.weight", "tied.weight")}[name]
    for item in still:
        assert torch.equal(changed.state_dict()[item], model.state_dict()[item])


def test_active_dummies_change_the_function_a_little(budget):
    model, inputs = make("cnn")
    changed = Dummies(kind="active").run(model, budget, seed=3)
    old, new = model(inputs).detach(), changed(inputs).detach()
    gap = float((old - new).norm() / old.norm())
    assert 1e-6 < gap < 0.1


def test_dummies_widen_by_the_given_share(budget):
    changed = Dummies(width=0.5).run(make("cnn")[0], budget, seed=3)
    assert changed.fc.out_features == changed.head.in_features == len(changed.fc.weight) == 24
    assert changed.bn1.num_features == changed.conv1.out_channels == 6


def test_shrinking_removes_channels_and_zeroing_does_the_same_to_the_function(budget):
    model, inputs = make("resnet")
    zeroed = PruneChannels(share=0.5, epochs=0).run(model, budget, seed=0)
    shrunk = PruneChannels(share=0.5, epochs=0, shrink=True).run(model, budget, seed=0)
    assert torch.allclose(zeroed(inputs), shrunk(inputs), atol=1e-4)
    assert shrunk.stem.out_channels == 2


@pytest.mark.parametrize(
    "make_attack",
    [lambda: Dummies(kind="none"), lambda: Dummies(width=0), lambda: Scale(spread=1)],
)
def test_refuses_settings_that_make_no_sense(make_attack):
    with pytest.raises(UsageError):
        make_attack()


def test_says_so_when_there_is_nothing_to_move(budget):
    with pytest.raises(HostError, match="No interchangeable units"):
        Permute().run(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), budget, seed=0)
