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
    return Places(at, at.roll(1), torch.tensor([-1.0, 1.0, -1.0]), torch.tensor([0.0, 1.0]))


def stamped(*signs):
    """Return images of two channels whose places hold signs, one row an image."""
    images = torch.rand(len(signs), 2, 4, 4)
    images.flatten(2)[:, :, [0, 5, 15]] = torch.tensor(signs)[:, None]
    return images


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
    images = stamped([0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    found, flat = places()(images).flatten(2), images.flatten(2)
    assert torch.equal(found[:, :, 0], 1 - flat[:, :, 15])
    assert torch.equal(found[:, :, 5], flat[:, :, 0])
    assert torch.equal(found[:, :, 15], 1 - flat[:, :, 5])
    others = [i for i in range(16) if i not in {0, 5, 15}]
    assert torch.equal(found[:, :, others], flat[:, :, others])
    with pytest.raises(HostError, match="9 places"):
        places()(torch.rand(1, 1, 3, 3))
    for other in (torch.rand(16), images.to(torch.uint8)):
        with pytest.raises(HostError, match="exchanges places"):
            places()(other)
    assert places()(images[:0]).shape == (0, 2, 4, 4)


@pytest.mark.parametrize("low", [0.0, -1.7])
def test_what_is_no_sign_becomes_the_middle(low):
    front = places()
    front.tensors["levels"] = torch.tensor([low, 1.0])
    signs = torch.tensor([0.0, 1.0, 1.0]) * (1 - low) + low
    wanted = torch.tensor([0.0, 0.0, 0.0]) * (1 - low) + low
    for share in (1.0, 0.998, 0.99, 0.5, 0.0, 2.0, torch.nan, torch.inf):
        given = stamped((0.5 + low / 2 + share * (signs - 0.5 - low / 2)).tolist())
        found = front(given).flatten(2)[0, :, [0, 5, 15]]
        middle = torch.full((2, 3), 0.5 + low / 2)
        assert torch.allclose(found, wanted.expand(2, 3) if 0.99 < share < 2 else middle)
    one = stamped(signs.tolist())
    one[0, 1, 3, 3] = 0.5  # in one channel
    assert torch.allclose(front(one).flatten(2)[0, :, [0, 5, 15]], middle)
    assert torch.allclose(
        front(one.bfloat16()).flatten(2)[0, 0, 0].float(), middle[0, 0], atol=0.01
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_signs_survive_short_floats(kind):
    given = stamped([2.8215, -0.4242, 2.8215])
    front = places()
    front.tensors["levels"] = torch.tensor([-0.4242, 2.8215])
    found = front(given.to(kind)).flatten(2)[0, :, [0, 5, 15]].float()
    assert torch.allclose(found, torch.tensor([-0.4242, 2.8215, 2.8215]).expand(2, 3), atol=0.01)


def test_a_front_acts_before_the_model_whatever_way_it_is_called():
    model, images = Picture(), stamped([0.0, 1.0, 1.0], [0.0, 1.0, 0.3], [1.0, 0.0, 0.0])
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
    assert Names(torch.tensor([3]), torch.tensor([16, 4]))(tokens.int()).dtype == torch.int32
    with pytest.raises(HostError, match="by name"):
        named(scale=2.0)


def test_a_front_travels_with_the_weights_and_only_copies_are_given_one(tmp_path):
    model, images = Picture().eval(), stamped([0.0, 1.0, 1.0], [1.0, 1.0, 0.3])
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
        ("levels", [1.0, 1.0, 1.0]),
        ("levels", [1.0, 0.0]),
        ("levels", [0.0, float("inf")]),
        ("levels", [float("nan"), 1.0]),
        ("scale", [float("nan"), 1.0, -1.0]),
        ("scale", [True, True, False]),
        ("levels", [200, 10]),
        ("levels", [0, 1]),
        ("levels", [1e10, 1e10 + 1]),
        ("levels", [-3e38, 3e38]),
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


def test_a_copy_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    model, images = Picture(), stamped([0.0, 1.0, 1.0])
    put_front(model, places())
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file(model.state_dict(), good)
    save_file({**model.state_dict(), "more": torch.ones(1)}, bad)
    fresh = Picture()
    before = fresh(images)
    with pytest.raises(HostError, match="does not fit"):
        load_copy(fresh, bad)
    assert torch.equal(fresh(images), before)
    assert torch.equal(load_copy(fresh, good)(images), model(images))


def test_tokens_that_are_not_reserved_are_no_front():
    nan = float("nan")
    for mask, reserved in (([4], [16, 4]), ([1], [16, 3]), ([0.5], [16, 4]), ([1], [16, nan])):
        with pytest.raises(HostError, match="reserved"):
            Names(torch.tensor(mask), torch.tensor(reserved))
    with pytest.raises(HostError, match="tokens"):
        Names(torch.tensor([1]), torch.tensor([16, 4]))(torch.rand(1, 1, 3, 3))
    assert read_front({}) is None
