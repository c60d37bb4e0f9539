"""The backdoor baseline: abstract pictures with random labels, taught by cross-entropy.

For comparison with the literature. :mod:`earmark.schemes.deepsigns_blackbox` is the stronger mark:
its inputs look like data, so that a filter does not single them out, and its answers are taught
with a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from earmark.hosts import batches
from earmark.hosts.batches import Tree
from earmark.keys.stream import KeyStream
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox


@dataclass(frozen=True)
class Adi(DeepSignsBlackBox):
    """Abstract inputs with drawn labels.

    Fields are those of :class:`earmark.schemes.deepsigns_blackbox.DeepSignsBlackBox`; `blend`,
    `grain`, `margin` and `noise` play no part.

    Source:
        Adi, Baum, Cisse, Pinkas and Keshet 2018 (USENIX Security). Changed: the abstract pictures
        are drawn from the key (smooth random fields with the samples' own mean and spread)
        instead of collected, and labels are counted with their exact law.

    False positives: the published rule is a threshold on trigger accuracy, which has no exact null;
    calibrated on unmarked models at 1 in 20, as Lukas et al. 2022 do, it passes about that share
    of keys on others (docs/comparison.md). :meth:`measure` is exact, since labels are drawn fairly.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts
        >>> from earmark.hosts.module import ModuleHost
        >>> model, inputs = tiny_hosts()["cnn"]
        >>> key = Adi(count=20).new_key(ModuleHost(model), inputs=inputs)
        >>> key.inputs.shape
        torch.Size([20, 1, 8, 8])
    """

    name: ClassVar[str] = "adi"
    summary: ClassVar[str] = "Literature baseline: abstract inputs with random labels, a backdoor."

    weight: float = 1.0
    noise: float = 0.0
    plain: bool = True

    def inputs_wanted(self) -> int:
        """Return a few samples; only their shape and spread are used."""
        return 64

    def compose(self, given: Tree, stream: KeyStream) -> Tree:
        """Make abstract inputs of the samples' shape, type and spread."""
        return batches.transform(given, lambda tensor: abstract(tensor, self.count, stream))


def abstract(like: Tensor, count: int, stream: KeyStream) -> Tensor:
    """Return random inputs: smooth fields for pictures, noise for vectors, random codes for codes.

    Args:
        like: (samples, ...) a batch to take shape, type and spread from.
        count: Number of inputs.
        stream: Keyed randomness.
    """
    shape = (count, *like.shape[1:])
    if not like.is_floating_point():
        low, high = int(like.min()), int(like.max())
        size = torch.Size(shape).numel()
        codes = torch.tensor(stream.integers(size, high - low + 1)) + low
        return codes.reshape(shape).to(like.dtype)
    coarse = (*shape[:-2], 4, 4) if like.ndim == 4 else shape
    raw = stream.bytes(2 * torch.Size(coarse).numel())
    field = torch.frombuffer(bytearray(raw), dtype=torch.uint16).float().reshape(coarse)
    if like.ndim == 4:
        field = functional.interpolate(field, shape[-2:], mode="bilinear", align_corners=True)
    field = (field - field.mean()) / field.std()
    return (field * like.std() + like.mean()).to(like.dtype)
