"""Named layers: choose them by glob, and read what flows out of them.

A tap is the name of a submodule as `named_modules` gives it, for its output, or that name with
``:in`` behind it, for its first input. What flows there is pooled to one vector a sample: feature
maps (samples, channels, ...) are averaged over space, sequences (samples, steps, width) over steps,
vectors are taken as they are.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from earmark.errors import CarrierError, HostError


def choose(names: Iterable[str], patterns: Sequence[str], *, what: str) -> tuple[str, ...]:
    """Return the names that match any of some glob patterns, in their own order.

    Args:
        names: All there are.
        patterns: Globs such as ``features.*`` or plain names.
        what: "tap" or "carrier", for the message.

    Raises:
        CarrierError: A pattern matches nothing; the nearest names are suggested.

    Example:
        >>> choose(["fc1", "fc2", "head"], ["fc*"], what="tap")
        ('fc1', 'fc2')
    """
    known = [name for name in names if name]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise CarrierError(
                f"{what.capitalize()} '{pattern}' matches none of the model's {len(known)} names.",
                hint=f"Nearest names: {', '.join(near)}." if near else "",
            )
    return tuple(
        name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
INPUT = ":in"
"""What stands behind a layer's name in a tap that reads its input."""


def layer(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule that a tap names; raises as :func:`choose`."""
    modules = dict(model.named_modules())
    (found,) = choose(modules, [name.removesuffix(INPUT)], what="tap")[:1]
    chosen: nn.Module = modules[found]
    return chosen


def pool(output: Any) -> Tensor:  # Any: whatever the layer returns
    """Pool a layer's output to (samples, features), in its own precision.

    Raises:
        HostError: The output is no tensor of one to five dimensions.
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    first = getattr(first, "last_hidden_state", first)
    if not isinstance(first, Tensor) or not 1 <= first.ndim <= 5:
        raise HostError(f"A tapped layer returns {type(first).__name__}; expected a tensor.")
    if first.ndim == 1:
        return first[:, None]
    if first.ndim == 3:
        return first.mean(dim=1)
    return first.flatten(2).mean(dim=2) if first.ndim > 3 else first


@contextmanager
def reading(model: nn.Module, taps: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the pooled outputs of named layers in every forward pass inside the block.

    The dict holds the latest pass, with its autograd graph if there is one. No hook is left.
    Attention takes no fast path inside: that drops padded steps, which training does not, and gives
    nested tensors.

    Raises:
        CarrierError: A tap matches no layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> with reading(model, ["0"]) as seen:
        ...     _ = model(torch.zeros(2, 3))
        >>> seen["0"].shape
        torch.Size([2, 4])
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:  # Any: a hook
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            seen[name] = pool(output)

        return hook

    def keep_input(name: str) -> Any:  # Any: a hook
        def hook(_module: nn.Module, inputs: tuple[object, ...]) -> None:
            seen[name] = pool(inputs)

        return hook

    targets = [(name, layer(model, name)) for name in taps]
    handles = [
        module.register_forward_pre_hook(keep_input(name))
        if name.endswith(INPUT)
        else module.register_forward_hook(keep(name))
        for name, module in targets
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield seen
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def default_taps(model: nn.Module, *, most: int = 4) -> tuple[str, ...]:
    """Return layers that suit as taps: those with weights, the last (the head) left out.

    Args:
        model: Any module.
        most: At most so many, spread evenly from the deepest backwards.

    Raises:
        HostError: The model has fewer than two layers with weights.
    """
    outer = _weighted(model)
    body = outer[:-1]
    step = max(1, len(body) // most)
    return tuple(reversed(body[::-1][::step][:most]))


def last_features(model: nn.Module) -> tuple[str, ...]:
    """Return the tap of the last hidden features: the last dense layer, or the last block.

    Where a block of convolutions comes right before the head, as in residual networks, the block
    is taken: what it gives is what the head sees, pooled, and what flows into it can be read and
    settled too. Of bare convolutions or attention what flows into the head is taken, which has been
    through the norms, sums and pooling that follow them. Where the dense layer is the first of
    all, what it gives is linear in the inputs and holds few labels, and the head's input is taken.

    Raises:
        HostError: The model has fewer than two layers with weights.

    Example:
        >>> last_features(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
        ('2:in',)
        >>> block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        >>> body = nn.Sequential(nn.Conv2d(1, 4, 3), block)
        >>> last_features(nn.Sequential(body, nn.Flatten(), nn.Linear(4, 2)))
        ('0.1',)
    """
    *before, last, head = _weighted(model)
    found = layer(model, last)
    if before and isinstance(found, nn.Linear):
        return (last,)
    block = _block(model, last, head) if isinstance(found, _CONVOLUTIONS) else ""
    return (block or head + INPUT,)


def _block(model: nn.Module, name: str, head: str) -> str:
    """Return the innermost item of a list of blocks with a layer but not the head, or nothing."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        block = ".".join(parts[:depth])
        above = model.get_submodule(block.rpartition(".")[0])
        if isinstance(above, (nn.Sequential, nn.ModuleList)) and not head.startswith(f"{block}."):
            return block
    return ""


def _weighted(model: nn.Module) -> list[str]:
    """Return the layers with weights, in order; raises as :func:`default_taps`."""
    kinds = (
        nn.Linear,
        *_CONVOLUTIONS,
        nn.LSTM,
        nn.GRU,
        nn.TransformerEncoderLayer,
    )
    found = [name for name, module in model.named_modules() if isinstance(module, kinds) and name]
    outer = [name for name in found if not any(name.startswith(f"{up}.") for up in found)]
    if len(outer) < 2:
        raise HostError(
            "This model has fewer than two layers with weights.", hint="Name the taps yourself."
        )
    return outer


def frozen_forward(model: nn.Module) -> Any:  # Any: a context manager
    """Return a context in which the model is in evaluation mode and makes no gradients."""

    @contextmanager
    def inside() -> Iterator[None]:
        modes = {name: module.training for name, module in model.named_modules()}
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for name, module in model.named_modules():
                module.training = modes[name]

    return inside()
