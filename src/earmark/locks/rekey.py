"""Give a locked copy another serial number without any training.

What turns another number's code into the parent's, presented where the parent looks for it, is
known exactly: places exchanged and signs turned, or tokens renamed. It stands in front of the copy
(:mod:`earmark.hosts.front`) and is kept with its weights. So the copy does with the new number
exactly what the parent did with its own: the same answers, and the same refusal of near misses and
of everybody else's numbers. It takes milliseconds, and a hundred customers cost hardly more than
one.

What it does not give: whoever holds two such copies and the number of one reads the code of the
other off their fronts. Whoever holds an open copy and its number can give it another front, or wrap
it; the fingerprint (:mod:`earmark.locks.tracing`) names him.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from earmark.errors import HostError, KeyLayoutError
from earmark.hosts.front import Front, Names, Places, put_front
from earmark.locks.entry import Entry, Pixels, Tokens, code_of, entry_of, try_codes
from earmark.records import Layout
from earmark.task import Task

_PROBES = 64
_APART = 0.01  # of the answers' spread; more than rounding


def fits(layout: Layout, old: bytes, new: bytes) -> bool:
    """Tell whether a copy with one number can be given another: do both enter at the same places?

    One number in four does for images, where the corner is drawn from the number; take the next one
    if not. Codes spread over the whole image never share their places.

    Raises:
        KeyLayoutError: The layout is of no lock.
    """
    first, second = entry_of(layout, old), entry_of(layout, new)
    if isinstance(first, Pixels) and isinstance(second, Pixels):
        return set(first.places.tolist()) == set(second.places.tolist())
    return True


def rekey(model: nn.Module, layout: Layout, old: bytes, new: bytes) -> nn.Module:
    """Return a copy of a locked model that needs another number.

    Args:
        model: The locked model; it is not changed.
        layout: The lock's layout.
        old: The model's number.
        new: The number of the copy, one that :func:`fits`.

    Raises:
        HostError: The model is such a copy itself, with a front.
        KeyLayoutError: The number does not fit.
    """
    if not fits(layout, old, new):
        raise KeyLayoutError(
            "This number enters elsewhere than the parent's, so no copy can be made for it.",
            hint="Take the next number; for a lock on spread pixels, distil the copy from a "
            "teacher: Dsn.fit(..., model=parent).",
        )
    turn = code_of(old, layout.message_bits) * code_of(new, layout.message_bits)
    made = copy.deepcopy(model)
    put_front(made, _front(entry_of(layout, old), entry_of(layout, new), turn))
    return made


def require_same(
    task: Task, layout: Layout, parent: tuple[nn.Module, bytes], made: tuple[nn.Module, bytes]
) -> None:
    """Refuse a copy that answers its number otherwise than the parent answers its own.

    Args:
        task: The owner's work; some of its samples are run.
        layout: The lock's layout.
        parent: The parent and its number.
        made: The copy and its number.

    Raises:
        HostError: Their answers differ, because the task changes what was presented before the
            model, and so the front, sees it.
    """
    samples, bits = task.samples(_PROBES, seed=0), layout.message_bits
    before, after = (
        try_codes(
            model,
            entry_of(layout, serial),
            code_of(serial, bits)[None],
            samples,
            forward=task.forward,
            read=lambda scores: scores,
        )
        for model, serial in (parent, made)
    )
    if not float((before - after).abs().max()) <= _APART * float(before.std()):  # NaN is not
        raise HostError(
            "The copy does not do with its number what the parent does with its own.",
            expected="A task whose forward() hands inputs to the model as they come.",
            hint="Change inputs in batches() or in the model. Or pass --teacher, your unlocked "
            "weights, and --epochs 6 to distil the copy.",
        )


def _front(first: Entry, second: Entry, turn: Tensor) -> Front:
    """Return what gives a network of the first entry, presented by the second, its own code."""
    if isinstance(first, Tokens):
        bits = (turn < 0).long().view(-1, first.width)
        mask = (bits << torch.arange(first.width)).sum(1)
        return Names(mask, torch.tensor([first.first, 1 << first.width]))
    if isinstance(first, Pixels) and isinstance(second, Pixels):
        signs = turn.repeat_interleave(len(first.places) // first.bits)
        levels = torch.tensor([first.low, first.high])
        return Places(first.places, second.places, signs, levels)
    columns = torch.arange(-len(turn), 0)
    return Places(columns, columns, turn, torch.tensor([-1.0, 1.0]))
