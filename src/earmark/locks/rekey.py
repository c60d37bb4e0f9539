"""Give a locked copy another serial number by moving weights, without any training.

The first layer of a network that begins with a dense layer sees the code as so many columns. Moving
these columns to the places of another number, with their signs turned where the two codes differ,
gives a network that does with the new number exactly what the old one did with its own: the same
answers, and the same refusal of near misses and of everybody else's numbers. It takes milliseconds,
so a hundred customers cost hardly more than one.

What it does not give: whoever holds two such copies and the number of one reads the number of the
other off their difference. Whoever holds an open copy and its number can do the same to it, and
without any algebra he can wrap it; the fingerprint (:mod:`earmark.locks.tracing`) names him.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from earmark.errors import HostError, KeyLayoutError
from earmark.locks.entry import Columns, Pixels, code_of, entry_of
from earmark.records import Layout

_TRAIN = "Start the copy from a locked one: Dsn.fit(..., model=parent)."


def fits(layout: Layout, old: bytes, new: bytes) -> bool:
    """Tell whether a copy with one number can be given another: do both stamp the same pixels?

    One number in four does, where the corner is drawn from the number; take the next one if not.

    Raises:
        KeyLayoutError: The layout is of no lock.
    """
    first, second = entry_of(layout, old), entry_of(layout, new)
    if isinstance(first, Pixels) and isinstance(second, Pixels):
        return set(first.places.tolist()) == set(second.places.tolist())
    return isinstance(first, Columns)


def rekey(model: nn.Module, layout: Layout, old: bytes, new: bytes) -> nn.Module:
    """Return a copy of a locked model that needs another number.

    Args:
        model: The locked model, which begins with a linear layer; it is not changed.
        layout: The lock's layout.
        old: The model's number.
        new: The number of the copy, one that :func:`fits`.

    Raises:
        HostError: No linear layer with a bias sees the code.
        KeyLayoutError: The number does not fit, or the lock is one on tokens.
    """
    if not fits(layout, old, new):
        raise KeyLayoutError(
            "This number cannot be given by moving weights: it enters elsewhere.",
            hint=f"Take the next number. For a lock on tokens or spread pixels: {_TRAIN}",
        )
    turn = code_of(old, layout.message_bits) * code_of(new, layout.message_bits)
    made = copy.deepcopy(model)
    first, second = entry_of(layout, old), entry_of(layout, new)
    if isinstance(first, Pixels) and isinstance(second, Pixels):
        shape: Any = layout.params["shape"]  # Any: JSON, checked by entry_of
        area = int(shape[0]) * int(shape[1])
        _move(_layer(made, area, exact=True), first, second, turn, area)
        return made
    layer = _layer(made, len(turn), exact=False)
    with torch.no_grad():
        layer.weight[:, -len(turn) :] *= turn
    return made


def _layer(model: nn.Module, size: int, *, exact: bool) -> nn.Linear:
    """Return the layer that sees the code: the model's first one with weights."""
    weighted = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    layer = next(weighted, None)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        inner = layer.in_features
        if inner % size == 0 if exact else inner > size:
            return layer
    raise HostError(
        "Only a network that begins with a linear layer with a bias can be given another number "
        "by moving weights.",
        hint=_TRAIN,
    )


def _move(layer: nn.Linear, first: Pixels, second: Pixels, turn: Tensor, area: int) -> None:
    signs = turn.repeat_interleave(len(first.places) // first.bits)
    middle = (first.low + first.high) / 2
    with torch.no_grad():
        for at in range(0, layer.in_features, area):
            columns = layer.weight[:, at + first.places]
            layer.bias.add_((columns * (middle * (1 - signs))).sum(1))
            layer.weight[:, at + second.places] = columns * signs
