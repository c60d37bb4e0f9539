"""What stands in front of a copy: it changes inputs, travels with the weights, and is checked."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from earmark.errors import HostError
from earmark.hosts.files import save_release
from earmark.hosts.front import (
    PREFIX,
    Names,
    Places,
    has_front,
    load_copy,
    put_front,
    read_front,
)
from earmark.hosts.suspects import load_suspect


def places():
    at = torch.tensor([0, 5, 15])
    turn = torch.tensor([-1.0, 1.0, -1.0])
    return Places(at, at.roll(1), turn, (1 - turn) / 2)


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, inputs):
        return self.conv(inputs).mean((2, 3))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 4)

    def forward(self, input_ids, scale=1.0):
        return scale * self.embed(input_ids).flatten(1)


def test_places_are_exchanged_alike_in_every_channel():
    images = torch.rand(3, 2, 4, 4)
    found, flat = places()(images).flatten(2), images.flatten(2)
    assert torch.allclose(found[:, :, 0], 1 - flat[:, :, 15])
    assert torch.allclose(found[:, :, 5], flat[:, :, 0])
    assert torch.allclose(found[:, :, 15], 1 - flat[:, :, 5])
    others = [i for i in range(16) if i not in {0, 5, 15}]
    assert torch.equal(found[:, :, others], flat[:, :, others])
    with pytest.raises(HostError, match="9 places"):
        places()(torch.rand(1, 1, 3, 3))


def test_a_front_acts_before_the_model_whatever_way_it_is_called():
    model, images = Picture(), torch.rand(3, 2, 4, 4)
    fronted = copy.deepcopy(model)
    put_front(fronted, places())
    assert torch.equal(fronted(images), model(places()(images)))
    assert torch.equal(copy.deepcopy(fronted)(images), fronted(images))
    with pytest.raises(HostError, match="already"):
        put_front(fronted, places())
    words, tokens = Words(), torch.tensor([[16, 18, 3], [2, 19, 16]])
    named = copy.deepcopy(words)
    put_front(named, Names(torch.tensor([3, 1]), torch.tensor([16, 4])))
    wanted = words(torch.tensor([[19, 19, 3], [2, 18, 16]]))
    assert torch.equal(named(tokens), wanted)
    assert torch.equal(named(input_ids=tokens, scale=2.0), 2 * wanted)
    assert torch.equal(named(tokens[:, :1]), words(torch.tensor([[19], [2]])))
    with pytest.raises(HostError, match="by name"):
        named(scale=2.0)


def test_a_front_travels_with_the_weights_and_only_copies_are_given_one(tmp_path):
    model, images = Picture().eval(), torch.rand(3, 2, 4, 4)
    put_front(model, places())
    path = tmp_path / "copy.safetensors"
    save_release(model, path)
    read = load_copy(Picture(), path).eval()
    assert torch.equal(read(images), model(images))
    with pytest.raises(HostError, match="input_front_at"):
        load_suspect(Picture(), path)
    save_release(Picture(), path, overwrite=True)
    assert not has_front(load_copy(Picture(), path))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("at", [0, 5, 14]),
        ("at", [0, 0, 15]),
        ("at", [0, 5, -1]),
        ("at", [0.0, 5.0, 15.0]),
        ("source", [0, 0, 15]),
        ("scale", [1.0]),
        ("scale", [0.0, 1.0, -1.0]),
        ("shift", [1.0, 1.0, 1.0]),
        ("shift", [float("inf"), 0.0, 1.0]),
        ("scale", [float("nan"), 1.0, -1.0]),
        ("else", [1.0]),
    ],
)
def test_a_broken_front_is_refused(tmp_path, part, values):
    model = Picture()
    put_front(model, places())
    path = tmp_path / "broken.safetensors"
    save_file({**model.state_dict(), f"{PREFIX}{part}": torch.tensor(values)}, path)
    fresh = Picture()
    with pytest.raises(HostError, match="front"):
        load_copy(fresh, path)
    assert not has_front(fresh)


def test_tokens_that_are_not_reserved_are_no_front():
    nan = float("nan")
    for mask, reserved in (([4], [16, 4]), ([1], [16, 3]), ([0.5], [16, 4]), ([1], [16, nan])):
        with pytest.raises(HostError, match="reserved"):
            Names(torch.tensor(mask), torch.tensor(reserved))
    with pytest.raises(HostError, match="tokens"):
        Names(torch.tensor([1]), torch.tensor([16, 4]))(torch.rand(1, 1, 3, 3))
    assert read_front({}) is None
