"""Batches as trees: a tensor, or tuples, lists and dicts of tensors, with samples along axis 0.

Schemes need to slice, join and store inputs without knowing the task. A batch is a tree whose
leaves are tensors with the same leading length. Leaves that are no tensors are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from earmark import codec, files
from earmark.errors import FileError, FormatError, HostError, RecordError

Tree: TypeAlias = Any  # Any: a tensor, or tuples, lists and dicts of trees


INPUT_NAMES = ("input_ids", "pixel_values", "inputs")
"""Names by which batches that are dicts hold the model's input."""


def leaves(tree: Tree, path: str = "") -> dict[str, Tensor]:
    """Return the tensors of a tree by path, such as ``0`` or ``1.mask``.

    Raises:
        HostError: A leaf is no tensor.

    Example:
        >>> sorted(leaves((torch.zeros(2, 3), {"y": torch.ones(2)})))
        ['0', '1.y']
    """
    if isinstance(tree, Tensor):
        return {path or "0": tree}
    found: dict[str, Tensor] = {}
    items = _items(tree)
    if items is None:
        raise HostError(
            f"A batch holds a {type(tree).__name__} at '{path or 'top'}'.",
            expected="Tensors, or tuples, lists and dicts of tensors, samples along axis 0.",
        )
    for name, inner in items:
        found |= leaves(inner, f"{path}.{name}" if path else str(name))
    return found


def _items(tree: Tree) -> list[tuple[str, Tree]] | None:
    if isinstance(tree, dict):
        return [(str(name), tree[name]) for name in tree]
    if isinstance(tree, (tuple, list)):
        return [(str(i), item) for i, item in enumerate(tree)]
    return None


def input_of(tree: Tree) -> Tensor | None:
    """Return the one tensor that a batch feeds to the model, or null if there is no such one.

    Of a tuple that is its first item, of a dict what is named so (:data:`INPUT_NAMES`).

    Example:
        >>> input_of(({"mask": torch.ones(2), "inputs": torch.zeros(2, 3)}, torch.ones(2))).shape
        torch.Size([2, 3])
    """
    found = tree[0] if isinstance(tree, (tuple, list)) and tree else tree
    if isinstance(found, dict):
        found = next((found[name] for name in INPUT_NAMES if name in found), None)
    return found if isinstance(found, Tensor) else None


def transform(tree: Tree, act: Callable[[Tensor], Tensor]) -> Tree:
    """Apply a function to every tensor of a tree, keeping its shape."""
    if isinstance(tree, Tensor):
        return act(tree)
    if isinstance(tree, dict):
        return {name: transform(inner, act) for name, inner in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(transform(inner, act) for inner in tree)
    raise HostError(f"A batch holds a {type(tree).__name__}; expected tensors.")


def size(tree: Tree) -> int:
    """Return the number of samples.

    Raises:
        HostError: The tensors disagree, or there is none.
    """
    lengths = {len(tensor) for tensor in leaves(tree).values()}
    if len(lengths) != 1:
        raise HostError(f"A batch's tensors have leading lengths {sorted(lengths)}; expected one.")
    return lengths.pop()


def take(tree: Tree, index: Sequence[int] | Tensor | slice) -> Tree:
    """Return the chosen samples."""
    chosen = torch.as_tensor(index) if isinstance(index, (list, tuple)) else index
    return transform(tree, lambda tensor: tensor[chosen])


def join(trees: Sequence[Tree]) -> Tree:
    """Join batches of the same shape along axis 0.

    Raises:
        HostError: They differ in shape or in their parts.
    """
    first = trees[0]
    parts = sorted({", ".join(sorted(leaves(tree))) for tree in trees})
    if len(parts) > 1:
        raise HostError(
            f"Batches with parts {' and '.join(f'({part})' for part in parts)} cannot be joined.",
            hint="Give a key's inputs as the task's batches are, targets included.",
        )
    if isinstance(first, Tensor):
        try:
            return torch.cat(list(trees))
        except (RuntimeError, TypeError) as error:
            shapes = sorted(
                {tuple(part.shape[1:]) for tree in trees for part in leaves(tree).values()}
            )
            raise HostError(
                f"Batches with sample shapes {shapes} cannot be joined.",
                hint="Pad all samples to one length, not each batch to its own.",
            ) from error
    if isinstance(first, dict):
        return {name: join([tree[name] for tree in trees]) for name in first}
    if isinstance(first, (tuple, list)):
        return type(first)(join([tree[i] for tree in trees]) for i in range(len(first)))
    raise HostError(f"A batch holds a {type(first).__name__}; expected tensors.")


def _shape_of(tree: Tree) -> Any:  # Any: a JSON value
    if isinstance(tree, Tensor):
        return "t"
    if isinstance(tree, dict):
        return {"d": [[name, _shape_of(tree[name])] for name in tree]}
    return {"t" if isinstance(tree, tuple) else "l": [_shape_of(item) for item in tree]}


def _build(shape: Any, found: dict[str, Tensor], path: str = "") -> Tree:  # Any: JSON
    def inner(name: str) -> str:
        return f"{path}.{name}" if path else name

    if shape == "t":
        return found[path or "0"]
    ((kind, items),) = shape.items()
    if kind == "d":
        return {name: _build(item, found, inner(name)) for name, item in items}
    made = [_build(item, found, inner(str(i))) for i, item in enumerate(items)]
    return tuple(made) if kind == "t" else made


def sample_digests(tree: Tree) -> list[bytes]:
    """Return SHA-256 of each sample: its tensors' names, types, shapes and bytes, by path.

    Returns:
        One digest of 32 bytes for each sample.
    """
    count = size(tree)
    states = [hashlib.sha256(b"earmark/sample/1\n") for _ in range(count)]
    for name, tensor in sorted(leaves(tree).items()):
        rows = tensor.detach().cpu().contiguous()
        head = f"{name} {rows.dtype} {tuple(rows.shape[1:])}\n".encode()
        raw = rows.view(count, -1).view(torch.uint8).numpy() if rows.numel() else None
        for i, state in enumerate(states):
            state.update(head)
            if raw is not None:
                state.update(raw[i].tobytes())
    return [state.digest() for state in states]


def tree_digest(tree: Tree) -> str:
    """Return one SHA-256 over all samples in order, hexadecimal."""
    return hashlib.sha256(b"".join(sample_digests(tree))).hexdigest()


def save(tree: Tree, path: str | Path, *, overwrite: bool = False, mode: int = 0o644) -> str:
    """Write a batch as safetensors, atomically.

    Returns:
        The digest of its samples (see :func:`tree_digest`).
    """
    import json

    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in leaves(tree).items()}
    with files.replacing(path, overwrite=overwrite, mode=mode) as temporary:
        save_file(flat, temporary, metadata={"tree": json.dumps(_shape_of(tree))})
    return tree_digest(tree)


def load(path: str | Path) -> Tree:
    """Read a batch that :func:`save` wrote.

    Raises:
        FileError: Missing or unreadable.
        FormatError: Not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            shape = codec.read_json((file.metadata() or {})["tree"].encode())
            return _build(shape, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except OSError as error:
        raise FileError(f"File '{path}' cannot be read: {error}.") from error
    except (
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RecordError,
    ) as error:
        raise FormatError(f"File '{path}' does not hold stored inputs: {error}.") from error
