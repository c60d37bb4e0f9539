"""A fixed change of a model's inputs, kept with its weights and applied before they are used.

A copy of a network can differ from another in nothing but what stands in front of it. A front is
data: it exchanges and turns places of an input that hold one of two levels, or renames tokens at
its beginning, and the file holds it as a few more tensors, named `input_front_*`. No code comes
with it, and only `load_copy` puts it in place. A suspect's file with a front is refused, like any
with strange tensors, where it is loaded into a model, for a front can blind a network that works
without it; marks in weights are read as if it were not there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from earmark.errors import HostError
from earmark.hosts.batches import INPUT_NAMES
from earmark.hosts.files import FilesHost, exact_tensor, load_state

PREFIX = "input_front_"
_ROUNDING = 1 / 128  # of a sign, which is 1 or -1: a step of eight bits
_HINT = "This is no copy as it was issued; take the file as it came."


class Front(ABC):
    """What stands in front of a model.

    Class attributes:
        parts: Names of its tensors.
    """

    parts: ClassVar[tuple[str, ...]]

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs as the model is to see them; raises as :meth:`change`."""
        return self.change(inputs, **self.tensors)

    @staticmethod
    @abstractmethod
    def change(inputs: Tensor, **tensors: Tensor) -> Tensor:
        """Return inputs changed by a front's tensors.

        Raises:
            HostError: The inputs are too small, or of another kind.
        """


class Places(Front):
    """Some pixels or columns exchanged, and some of them turned, alike in every channel.

    Each of the places holds one of two levels, up to rounding: what is a step of eight bits or more
    from both is no sign. An input with such a place, faint, relaxed or not a number, is
    given the middle of the two levels in all of them, which says nothing to the model.

    Args:
        at: (places,) places that are changed; negative ones count from the end.
        source: (places,) where each takes its value from: the same places in another order.
        scale: (places,) 1, or -1 where one level is turned into the other.
        levels: (2,) the lower and the upper level.

    Raises:
        HostError: A place is changed or read twice, or a value changed in another way.

    Example:
        >>> ends = torch.tensor([-2, -1])
        >>> turn, levels = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 4.0])
        >>> front = Places(ends, ends.flip(0), turn, levels)
        >>> front(torch.tensor([[3.0, 4.0, 0.0], [3.0, 4.0, 0.1]])).tolist()
        [[3.0, 0.0, 0.0], [3.0, 2.0, 2.0]]
    """

    parts = ("at", "source", "scale", "levels")

    def __init__(self, at: Tensor, source: Tensor, scale: Tensor, levels: Tensor) -> None:
        alike = all(part.ndim == 1 and len(part) == len(at) for part in (at, source, scale))
        whole = at.dtype == source.dtype == torch.long
        if not (alike and whole and scale.is_floating_point() and levels.is_floating_point()):
            raise HostError("The copy's front is no list of places.", hint=_HINT)
        scale, levels = scale.float(), levels.float()
        ranked = at.sort().values
        once = bool((ranked.diff() > 0).all()) and bool((at >= 0).all() | (at < 0).all())
        if not once or not torch.equal(ranked, source.sort().values):
            raise HostError("The copy's front does not exchange places.", hint=_HINT)
        step = levels.diff()
        ordered = levels.shape == (2,) and bool((step > 0) & step.isfinite())
        if not ordered or not bool((scale.abs() == 1).all()):
            raise HostError("The copy's front does more than turn values.", hint=_HINT)
        super().__init__(at=at, source=source, scale=scale, levels=levels)

    @staticmethod
    def change(inputs: Tensor, **tensors: Tensor) -> Tensor:
        """Return images (n, c, h, w) or rows (n, columns) with their places changed."""
        if inputs.ndim < 2 or not inputs.is_floating_point():
            raise _unlike(inputs, "exchanges places")
        flat, at = inputs.flatten(2) if inputs.ndim > 2 else inputs, tensors["at"]
        size = flat.shape[-1]
        if bool(((at < -size) | (at >= size)).any()):
            raise HostError(
                f"Inputs of {size} places came to a copy whose front changes more.",
                expected="Inputs as the copy was made for.",
            )
        low, high = tensors["levels"].float()
        middle, half = (low + high) / 2, (high - low) / 2
        sign = (flat[..., tensors["source"]].float() - middle) / half
        clear = ((sign.abs() - 1).abs() <= _ROUNDING).flatten(1).all(1)
        turned = torch.where(sign * tensors["scale"] > 0, high, low)
        kept = torch.where(clear.view(-1, *[1] * (turned.ndim - 1)), turned, middle)
        moved = flat.clone()
        moved[..., at] = kept.to(flat.dtype)
        return moved.view_as(inputs)


class Names(Front):
    """The first tokens of every sequence renamed, each place by its own mask, where reserved.

    Args:
        mask: (places,) what each place's token is combined with, bit by bit (exclusive or).
        reserved: (2,) first reserved token and how many there are, a power of two.

    Raises:
        HostError: A mask leaves the reserved tokens, or these are no power of two.

    Example:
        >>> front = Names(torch.tensor([1, 3]), torch.tensor([100, 4]))
        >>> front(torch.tensor([[100, 102, 7], [5, 100, 100]])).tolist()
        [[101, 101, 7], [5, 103, 100]]
    """

    parts = ("mask", "reserved")

    def __init__(self, mask: Tensor, reserved: Tensor) -> None:
        whole = mask.dtype == reserved.dtype == torch.long
        count = int(reserved[1]) if whole and reserved.shape == (2,) else 0
        good = mask.ndim == 1 and count > 0 and not count & (count - 1)
        if not good or bool(((mask < 0) | (mask >= count)).any()):
            raise HostError("The copy's front does not rename reserved tokens.", hint=_HINT)
        super().__init__(mask=mask, reserved=reserved)

    @staticmethod
    def change(inputs: Tensor, **tensors: Tensor) -> Tensor:
        """Return sequences (n, steps) with their first tokens renamed."""
        if inputs.is_floating_point() or inputs.ndim != 2:
            raise _unlike(inputs, "renames tokens")
        mask, (first, count) = tensors["mask"], tensors["reserved"]
        size = min(len(mask), inputs.shape[1])
        found = inputs[:, :size].long() - first
        ours = (found >= 0) & (found < count)
        renamed = torch.where(ours, found.clamp(min=0) ^ mask[:size], found) + first
        return torch.cat([renamed.to(inputs.dtype), inputs[:, size:]], dim=1)


def _unlike(inputs: Tensor, what: str) -> HostError:
    return HostError(
        f"Inputs of shape {tuple(inputs.shape)} and type {inputs.dtype} came to a copy whose "
        f"front {what}.",
        expected="Inputs as the copy was made for.",
    )


def has_front(model: nn.Module) -> bool:
    """Tell whether a model has a front."""
    return any(name.startswith(PREFIX) for name, _ in model.named_buffers(recurse=False))


def put_front(model: nn.Module, front: Front) -> RemovableHandle:
    """Put a front before a model, in place; its tensors join the model's own.

    Returns:
        What takes it out of the model's way again; its tensors stay.

    Raises:
        HostError: The model has one already.
    """
    if has_front(model):
        raise HostError(
            "This copy has a front already.", hint="Make copies of the parent, not of a copy."
        )
    first = next(model.parameters(), None)
    for name, tensor in front.tensors.items():
        made = tensor.clone() if first is None else tensor.clone().to(first.device)
        model.register_buffer(f"{PREFIX}{name}", made)
    return model.register_forward_pre_hook(_enter, with_kwargs=True)


def load_copy(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a licensed copy into a fresh model, in place, and put its front before it if it has one.

    Args:
        model: A fresh model of the class that the copy was made from. Call it as a module: what
            calls its `forward`, or traces it, passes the front by.
        path: What `earmark unlock` wrote, a safetensors file.

    Returns:
        The same module.

    Raises:
        FileError: The file is missing or truncated.
        FormatError: It is not what it says.
        HostError: Names or shapes differ, or the front is broken.
    """
    host = FilesHost(path)
    names = [name for name in host.tensor_names() if name.startswith(PREFIX)]
    front = read_front({name: exact_tensor(host, name) for name in names})
    if front is None:
        load_state(model, path)
        return model
    taken = put_front(model, front)
    try:
        load_state(model, path)
    except BaseException:
        taken.remove()
        for name in front.parts:
            delattr(model, f"{PREFIX}{name}")
        raise
    return model


def read_front(tensors: Mapping[str, Tensor]) -> Front | None:
    """Build the front that a file holds, or return null if it holds none.

    Args:
        tensors: The file's tensors whose names begin with `input_front_`, by their whole names.

    Raises:
        HostError: They are no front.
    """
    if not tensors:
        return None
    parts = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    for kind in (Places, Names):
        if set(parts) == set(kind.parts):
            return kind(**parts)
    raise HostError(f"The file has a front of unknown parts: {', '.join(sorted(parts))}.")


def _enter(
    model: nn.Module,
    given: tuple[Any, ...],  # Any: what the model takes
    named: dict[str, Any],  # Any: as above
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # Any: as above
    """Change what a model with a front is about to take."""
    kind = Places if hasattr(model, f"{PREFIX}at") else Names
    tensors: dict[str, Tensor] = {name: getattr(model, PREFIX + name) for name in kind.parts}
    if given and isinstance(given[0], Tensor):
        return (kind.change(given[0], **tensors), *given[1:]), named
    name = next((name for name in INPUT_NAMES if name in named), None)
    if name is None:
        raise HostError(
            "A copy with a front takes its input first, or by name.",
            expected=f"A tensor, or one of {', '.join(INPUT_NAMES)}.",
        )
    return given, {**named, name: kind.change(named[name], **tensors)}
