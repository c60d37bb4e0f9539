"""The nearest trigger is found by inputs, in whatever form a batch comes."""

import pytest
import torch

from earmark.errors import UsageError
from earmark.schemes.neighbours import Neighbours


def points():
    torch.manual_seed(0)
    return torch.randn(40, 2, 3, 3)


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "other order", "soft targets", "pair"])
def test_inputs_are_found_in_every_form(form):
    some, mask, targets = points(), torch.ones(40, 5), torch.zeros(40)
    forms = {
        "tensor": (some, some.flip(0)),
        "tuple": ((some, targets), (some.flip(0), targets)),
        "dict": tuple(
            {"mask": mask, "pixel_values": x, "y": targets} for x in (some, some.flip(0))
        ),
        "other order": ({"inputs": some, "mask": mask}, {"mask": mask, "inputs": some.flip(0)}),
        "soft targets": ((some, mask), (some.flip(0), mask)),
        "pair": (({"inputs": some}, mask), ({"inputs": some.flip(0)}, mask)),
    }
    inputs, batch = forms[form]
    assert Neighbours(inputs)(batch).tolist() == list(range(40))[::-1]


def test_inputs_far_from_zero_and_close_to_each_other_are_told_apart():
    near = 50 + 0.1 * points()
    assert Neighbours(near)(near).tolist() == list(range(40))
    bytes_ = (points() * 40 + 128).clamp(0, 255).to(torch.uint8)
    assert Neighbours(bytes_)(bytes_).tolist() == list(range(40))


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(4, 3, dtype=torch.long), torch.zeros(4), {"mask": torch.zeros(4, 2)}, [[1.0]]],
)
def test_what_has_no_neighbours_is_refused(bad):
    with pytest.raises(UsageError, match="no neighbours"):
        Neighbours(bad)
