"""A torch module as host: weights, activations, scores and labels."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earmark.errors import CarrierError, HostError
from earmark.hosts import batches, taps
from earmark.hosts.access import Forward, Host, plain_forward
from earmark.hosts.files import combined_digest
from earmark.hosts.labels import top
from earmark.records import Access

__all__ = ["Forward", "ModuleHost", "plain_forward", "state_digest"]


class ModuleHost(Host):
    """A torch module, with all access.

    Args:
        model: The module; it is never changed.
        forward: How to run it on a batch.
        batch_size: Samples a pass when features or scores are read.

    Example:
        >>> host = ModuleHost(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        >>> host.scores(torch.zeros(5, 3)).shape
        (5, 2)
    """

    access: ClassVar[frozenset[Access]] = frozenset(Access)

    def __init__(
        self, model: nn.Module, *, forward: Forward = plain_forward, batch_size: int = 512
    ) -> None:
        self.model = model
        self.forward = forward
        self.batch_size = batch_size

    def copy(self) -> ModuleHost:
        """Return a host around a deep copy of the model."""
        return self.around(copy.deepcopy(self.model))

    def around(self, model: nn.Module) -> ModuleHost:
        """Return a host around another model that is run the same way."""
        return ModuleHost(model, forward=self.forward, batch_size=self.batch_size)

    def digest(self) -> str:
        """Return a digest over the state dict: names, shapes, types and bytes, sorted by name."""
        return state_digest(self.model.state_dict())

    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of all tensors, sorted."""
        return tuple(sorted(self.model.state_dict()))

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._tensor(name).shape)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as float32."""
        raw = self._tensor(name)
        raw = raw.dequantize() if raw.is_quantized else raw
        made: NDArray[np.float32] = raw.detach().to("cpu", torch.float32).numpy()
        return made

    def _tensor(self, name: str) -> Tensor:
        state = self.model.state_dict()
        if name not in state:
            taps.choose(state, [name], what="carrier")
            raise CarrierError(f"Carrier '{name}' is no tensor of the model.")
        found: Tensor = state[name]
        return found

    def features(
        self, inputs: batches.Tree, names: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Return pooled activations of named layers in evaluation mode, float64."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with taps.frozen_forward(self.model), taps.reading(self.model, names) as seen:
            for part in self._parts(inputs):
                seen.clear()
                self._run(part)
                for name in names:
                    if name not in seen:
                        raise HostError(f"Layer '{name}' did not run in the forward pass.")
                    found[name].append(seen[name].detach().to("cpu", torch.float64))
        return {name: torch.cat(rows).numpy() for name, rows in found.items()}

    def scores(self, inputs: batches.Tree) -> NDArray[np.float64]:
        """Return output scores in evaluation mode, (samples, classes), float64."""
        rows = []
        with taps.frozen_forward(self.model):
            for part in self._parts(inputs):
                output = self._run(part)
                output = getattr(output, "logits", output)
                if not isinstance(output, Tensor) or output.ndim != 2:
                    raise HostError(
                        "The model's output is no (samples, classes) tensor.",
                        hint="Give a `forward` that returns one.",
                    )
                rows.append(output.detach().to("cpu", torch.float64))
        made: NDArray[np.float64] = torch.cat(rows).numpy()
        return made

    def labels(self, inputs: batches.Tree) -> NDArray[np.int64]:
        """Return the labels of the highest scores; a sample with NaN gets -1."""
        return top(self.scores(inputs))

    def _run(self, part: batches.Tree) -> Any:  # Any: the model's output
        try:
            return self.forward(self.model, part)
        except (RuntimeError, IndexError, ValueError) as error:
            raise HostError(
                f"The model fails when it is run on the key's inputs: {error}.",
                hint="Check that its layers fit each other and that the inputs are of its kind.",
            ) from error

    def _parts(self, inputs: batches.Tree) -> Iterator[batches.Tree]:
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        for start in range(0, batches.size(inputs), self.batch_size):
            part = batches.take(inputs, slice(start, start + self.batch_size))
            yield batches.transform(part, lambda tensor: tensor.to(device))


def state_digest(state: dict[str, Tensor]) -> str:
    """Return a digest over a state dict, that of a weight file which holds the same tensors.

    It does not depend on the order of names; see :func:`earmark.hosts.files.combined_digest`.
    """
    tensors = {}
    for name, tensor in state.items():
        raw = tensor.detach().cpu().contiguous()
        body = raw.flatten().view(torch.uint8).numpy().data if raw.numel() else b""
        kind = str(raw.dtype).removeprefix("torch.")
        tensors[name] = (kind, tuple(raw.shape), hashlib.sha256(body).digest())
    return combined_digest(tensors)
