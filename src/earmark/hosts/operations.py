"""What the operations of a traced network do to channels: one table, for all that read graphs.

:mod:`earmark.hosts.graph` reads which channels belong together, by the names of tensors, to match
suspects to a reference; :mod:`earmark.attacks.tracing` reads which units may also be scaled, to
disguise a network. Both see a network through this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_KINDS: dict[str, tuple[Any, ...]] = {  # Any: functions, methods' names, module classes
    "positive": (
        functional.relu, functional.leaky_relu, torch.relu, "relu", "relu_", nn.ReLU, nn.LeakyReLU,
    ),
    "linear": (
        functional.dropout, functional.dropout2d, "contiguous", nn.Identity, nn.Dropout,
        nn.Dropout2d,
    ),
    "odd": (
        functional.tanh, functional.hardtanh, functional.softsign, torch.tanh, "tanh", nn.Tanh,
        nn.Hardtanh, nn.Softsign,
    ),
    "other": (
        functional.gelu, functional.silu, functional.sigmoid, functional.elu, functional.relu6,
        functional.softplus, functional.hardswish, functional.mish, functional.hardsigmoid,
        torch.sigmoid, "sigmoid", nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.ReLU6, nn.Softplus,
        nn.Hardswish, nn.Hardsigmoid, nn.Mish,
    ),
    "positive pool": (
        functional.max_pool1d, functional.max_pool2d, functional.adaptive_max_pool2d, nn.MaxPool1d,
        nn.MaxPool2d, nn.AdaptiveMaxPool2d,
    ),
    "linear pool": (
        functional.avg_pool1d, functional.avg_pool2d, functional.adaptive_avg_pool1d,
        functional.adaptive_avg_pool2d, functional.interpolate, nn.AvgPool1d, nn.AvgPool2d,
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.Upsample,
    ),
}  # fmt: skip
_RULES = {what: kind for kind, found in _KINDS.items() for what in found}


def rule(what: Any) -> tuple[str, bool]:  # Any: as above
    """Say what an operation that treats each channel by itself lets through.

    Args:
        what: A function, a method's name or a module class.

    Returns:
        "positive" (factors above 0 pass through it), "odd" (signs do), "linear" (both do) or
        "other" (neither does), and whether it pools over space. An empty word: it is not known.

    Example:
        >>> rule(nn.ReLU), rule(functional.avg_pool2d), rule("sum")
        (('positive', False), ('linear', True), ('', False))
    """
    kind, _, pool = _RULES.get(what, "").partition(" ")
    return kind, bool(pool)


def traced(model: nn.Module) -> fx.Graph:
    """Return a model's graph in evaluation mode; an empty one if it cannot be traced."""
    mode = model.training
    try:
        return fx.Tracer().trace(model.eval())
    except Exception:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
        return fx.Graph()
    finally:
        model.train(mode)


def shared(model: nn.Module) -> set[str]:
    """Return the names of modules that have parameters in common with others."""
    counts = Counter(
        id(item) for module in model.modules() for item in module.parameters(recurse=False)
    )
    return {
        name
        for name, module in model.named_modules()
        if any(counts[id(item)] > 1 for item in module.parameters(recurse=False))
    }


def inner_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:  # Any: either kind of layer
    """Yield PyTorch's own transformer layers by name; they are not traced."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            yield name, module


def flattening(node: fx.Node) -> tuple[object, object] | None:
    """Return the first and last dimension that a call flattens, or null if it does something else.

    A `view` or `reshape` that keeps more than the samples apart gives (null, null).
    """
    if node.target in (torch.flatten, "flatten"):
        ends = [*node.args[1:], *[0, -1][len(node.args) - 1 :]]
        return node.kwargs.get("start_dim", ends[0]), node.kwargs.get("end_dim", ends[1])
    if node.target in ("view", "reshape", torch.reshape):
        rest = node.args[1:]
        size = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        return (1, -1) if len(size) == 2 and size[1] == -1 else (None, None)
    return None


def spatial_mean(node: fx.Node) -> tuple[bool, bool]:
    """Say whether a call averages over both dimensions of space, and whether it keeps them."""
    if node.target not in (torch.mean, "mean"):
        return False, False
    over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    spatial = isinstance(over, (tuple, list)) and {int(str(i)) % 4 for i in over} == {2, 3}
    return spatial, bool(node.kwargs.get("keepdim", False)) or len(node.args) > 2
