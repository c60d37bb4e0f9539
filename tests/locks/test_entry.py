"""How a number enters: its code, its places, and inputs that have no way in."""

from __future__ import annotations

import pytest
import torch

from earmark.errors import CapacityError, HostError, KeyLayoutError
from earmark.locks.entry import Pixels, code_of, entry_of, inputs_of, layout_of, with_inputs
from earmark.records import Layout


def test_neighbouring_numbers_give_unrelated_codes():
    number = int.from_bytes(bytes(range(16)), "big")
    distances = [
        int(
            (code_of(bytes(range(16)), 64) != code_of((number ^ 1 << i).to_bytes(16, "big"), 64))
            .sum()
            .item()
        )
        for i in range(128)
    ]
    assert min(distances) >= 16
    assert 30 < sum(distances) / 128 < 34


def test_pixels_change_only_their_places_and_twice_is_once():
    layout = layout_of(torch.rand(4, 3, 16, 16), bits=32, repeat=2, place="spread", tokens=(0, 1))
    entry = entry_of(layout, bytes(16))
    assert isinstance(entry, Pixels)
    images, code = torch.rand(4, 3, 16, 16), code_of(bytes(16), 32)
    before = images.clone()
    once = entry.present(images, code)
    assert torch.equal(images, before)
    assert torch.equal(entry.present(once, code), once)
    changed = (once != images).flatten(2).any(1).any(0).nonzero()[:, 0]
    assert set(changed.tolist()) <= set(entry.places.tolist())
    assert len(set(entry.places.tolist())) == 64
    stamped = once.flatten(2)[:, :, entry.places]
    assert stamped.unique().tolist() == pytest.approx([entry.low, entry.high], abs=1e-5)
    assert torch.equal(stamped[:, 0], stamped[:, 2])


def test_a_patch_stays_in_one_corner_and_the_published_one_bottom_right():
    images = torch.rand(2, 1, 28, 28)
    corners = set()
    for i in range(24):
        layout = layout_of(images, bits=64, repeat=1, place="patch", tokens=(0, 1))
        places = entry_of(layout, bytes([i]) * 16).places
        rows, columns = places // 28, places % 28
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 7
        corners.add((int(rows.min()), int(columns.min())))
    assert corners == {(0, 0), (0, 20), (20, 0), (20, 20)}
    layout = layout_of(images, bits=9, repeat=1, place="corner", tokens=(0, 1))
    assert entry_of(layout, bytes(16)).places.tolist() == [
        28 * row + column for row in (25, 26, 27) for column in (25, 26, 27)
    ]


def test_inputs_without_a_way_in_are_refused():
    with pytest.raises(HostError):
        layout_of(torch.zeros(2, 3, 4), bits=16, repeat=1, place="patch", tokens=(0, 1))
    with pytest.raises(CapacityError, match="setting bits"):
        layout_of(torch.rand(2, 1, 8, 8), bits=64, repeat=1, place="patch", tokens=(0, 1))
    with pytest.raises(CapacityError):
        layout_of(torch.zeros(2, 5).long(), bits=10, repeat=1, place="patch", tokens=(9, 8))
    with pytest.raises(HostError):
        layout_of(["text"], bits=16, repeat=1, place="patch", tokens=(0, 1))
    with pytest.raises(KeyLayoutError):
        entry_of(Layout("dsn", 1, ("smell",), 16, 1, {}), bytes(16))
    with pytest.raises(KeyLayoutError):
        entry_of(Layout("dsn", 1, ("pixels",), 16, 1, {}), bytes(16))


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "dict beside targets"])
def test_inputs_are_read_and_exchanged_in_every_form(form):
    inputs, targets = torch.randn(4, 3), torch.zeros(4)
    named = {"mask": torch.ones(4), "inputs": inputs}
    batch = {
        "tensor": inputs,
        "tuple": (inputs, targets),
        "dict": named,
        "dict beside targets": (named, targets),
    }[form]
    assert torch.equal(inputs_of(batch), inputs)
    assert torch.equal(inputs_of(with_inputs(batch, inputs + 1)), inputs + 1)
    assert torch.equal(named["inputs"], inputs)
