"""Load a suspect's weights into the owner's model class, even where layers changed their width.

A thief may add or remove neurons: the file then holds the same tensors with other sizes. Layers
whose code does not depend on their size (dense, convolution, normalization) are given the file's
sizes first; everything else must fit as it is. No code of the suspect's ever runs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from earmark.errors import HostError
from earmark.hosts.files import FilesHost, load_state

_ELASTIC = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)
_MOST_GROWTH = 64


def load_suspect(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a suspect's weights into a fresh model, in place, adapting widths where that is safe.

    Args:
        model: A fresh model of the owner's class.
        path: A safetensors file, folder or index.

    Returns:
        The same module.

    Raises:
        FileError: A file is missing or truncated.
        FormatError: A file is not what it says.
        HostError: Names, or shapes that cannot be adapted, differ.
    """
    host = FilesHost(path)
    stored = set(host.tensor_names())
    for prefix, module in model.named_modules():
        if isinstance(module, _ELASTIC):
            names = {f"{prefix}.{name}".lstrip("."): name for name in module.state_dict()}
            shapes = {
                name: host.tensor_shape(full) for full, name in names.items() if full in stored
            }
            _resize(module, shapes, prefix or "the model")
    load_state(model, path)
    return model


def _resize(module: nn.Module, shapes: dict[str, tuple[int, ...]], prefix: str) -> None:
    for name, shape in shapes.items():
        old = getattr(module, name)
        if tuple(old.shape) == shape or old.ndim != len(shape):
            continue
        if old.numel() and _count(shape) > _MOST_GROWTH * max(old.numel(), 1024):
            raise HostError(
                f"Tensor '{prefix}.{name}' has shape {shape}, far larger than the model's "
                f"{tuple(old.shape)}.",
                hint="This is hardly a copy of your model; check the file.",
            )
        fresh = torch.zeros(shape, dtype=old.dtype)
        if isinstance(old, nn.Parameter):
            setattr(module, name, nn.Parameter(fresh, requires_grad=old.requires_grad))
        else:
            setattr(module, name, fresh)
    _describe(module)


def _describe(module: nn.Module) -> None:
    """Bring a layer's own record of its size up to date."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and weight is not None:  # noqa: SLF001
        module.num_features = len(weight)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for item in shape:
        total *= item
    return total
