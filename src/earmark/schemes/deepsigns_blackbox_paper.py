"""DeepSigns, black-box, as published: random inputs, filtered before and after marking.

For comparison with the literature. Candidates are noise with random labels; those that the
unmarked model labels so by itself are dropped at once, those that the marked model has not learned
are dropped afterwards, and `count` of the rest are the key. Ownership is claimed if the mismatches
stay below a threshold. Dropping after the labels are known leaves an honest owner's error rate as
stated and lets a dishonest accuser choose: measured without :meth:`DeepSignsBlackBoxPaper.select`,
all candidates are counted and nobody can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import comb
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earmark.errors import CapacityError, KeyLayoutError, UsageError
from earmark.hosts import batches
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.keys.secret import Disclosure, Key
from earmark.keys.stream import KeyStream
from earmark.records import Evidence, Layout
from earmark.schemes.deepsigns_blackbox import DeepSignsBlackBox, checked_inputs


def mismatch_threshold(classes: int, count: int, p: float) -> int:
    """Return the threshold of the published test: claim ownership below so many mismatches.

    It is the smallest i with P[mismatches <= i] > p for a model that answers each input rightly
    with probability 1 / classes, computed exactly.

    Args:
        classes: Number of classes.
        count: Inputs of the key.
        p: Largest probability of a false claim.

    Raises:
        UsageError: A value out of range.

    Source:
        Rouhani, Chen and Koushanfar 2019, equation 4, as the published code decides it.

    Example:
        >>> mismatch_threshold(10, 20, 1e-4)
        12
    """
    if classes < 2 or count < 1 or not 0 < p < 1:
        raise UsageError(f"{classes} classes, {count} inputs, p = {p} make no test.")
    limit = Fraction(p) * classes**count
    below = 0
    for i in range(count + 1):
        below += comb(count, i) * (classes - 1) ** i
        if below > limit:
            return i
    return count


def claims(evidence: Evidence, *, p: float = 1e-3) -> bool:
    """Return what the published test decides on evidence: whether ownership is claimed."""
    mismatches = evidence.trials - evidence.hits
    return mismatches < mismatch_threshold(evidence.chance.denominator, evidence.trials, p)


@dataclass(frozen=True)
class DeepSignsBlackBoxPaper(DeepSignsBlackBox):
    """Random inputs with random labels, filtered as published.

    Args:
        count: Inputs of the key after both filters.
        oversample: Candidates for each; 20 in the paper, 40 in the published code.
        noise_kind: "uniform" over the samples' range, or "normal" with their mean and spread.

    Further fields are those of :class:`earmark.schemes.deepsigns_blackbox.DeepSignsBlackBox`;
    `blend` and `grain` play no part, and there is no margin to speak of.

    Source:
        Rouhani, Chen and Koushanfar 2019 (ASPLOS), algorithms 2 and 4. Changed: no rejection of
        candidates in populated latent regions, which no published code has.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts
        >>> from earmark.hosts.module import ModuleHost
        >>> model, inputs = tiny_hosts()["mlp"]
        >>> scheme = DeepSignsBlackBoxPaper(count=10)
        >>> key = scheme.new_key(ModuleHost(model), inputs=inputs)
        >>> scheme.measure(ModuleHost(model), key).hits
        0
    """

    name: ClassVar[str] = "deepsigns-blackbox-paper"
    summary: ClassVar[str] = "DeepSigns as published, black-box; for comparison."
    exact_null: ClassVar[bool] = False  # fewer hits than chance on the unmarked model itself

    count: int = 20
    oversample: int = 20
    noise_kind: str = "uniform"
    weight: float = 1.0
    margin: float = 1.0
    noise: float = 0.0
    shards: int = 1
    plain: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_kind not in ("uniform", "normal") or self.oversample < 2 or self.shards != 1:
            raise UsageError(
                "The published scheme has one shard, oversamples at least twice, and draws "
                "uniform or normal noise."
            )

    def inputs_wanted(self) -> int:
        """Return a few samples; only their shape and spread are used."""
        return 64

    def compose(self, given: Tree, stream: KeyStream) -> Tree:
        """Make candidates of noise."""
        total = self.count * self.oversample
        return batches.transform(given, lambda tensor: self._noise(tensor, total, stream))

    def _noise(self, like: Tensor, count: int, stream: KeyStream) -> Tensor:
        shape = (count, *like.shape[1:])
        size = torch.Size(shape).numel()
        low, high = float(like.min()), float(like.max())
        if not like.is_floating_point():
            codes = np.array(stream.integers(size, int(high - low) + 1)) + int(low)
            return torch.from_numpy(codes).reshape(shape).to(like.dtype)
        raw = np.frombuffer(stream.bytes(2 * size), np.uint16) / 65535.0
        if self.noise_kind == "uniform":
            made = torch.from_numpy(low + raw * (high - low))
        else:
            even = torch.from_numpy(raw).clamp(1e-5, 1 - 1e-5)
            made = torch.special.ndtri(even) * float(like.std()) + float(like.mean())
        return made.reshape(shape).to(like.dtype)

    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key of all candidates that the unmarked model does not label so by itself.

        Args:
            host: The unmarked, trained model.
            inputs: A few samples, for shape and spread.
            secret: 32 bytes, or null to draw them.
        """
        key = super().new_key(host, inputs=inputs, secret=secret)
        wrong = host.labels(key.inputs) != self.answers(key)
        return self._keep(key, np.flatnonzero(wrong))

    def answers(self, key: Key | Disclosure) -> NDArray[np.int64]:
        """Return the answers of the candidates that are left.

        Raises:
            KeyLayoutError: The layout names a place in the stream of answers twice.
        """
        places = _places(key.layout)
        once = all(later > earlier for earlier, later in pairwise(places))
        if not once or places[0] < 0 or places[-1] >= _MOST_PLACES:
            raise KeyLayoutError("The key's layout takes answers out of order, or one twice.")
        classes = int(key.layout.params["classes"])  # type: ignore[arg-type]
        (shard,) = key.shards
        made = np.array(shard.stream("labels").integers(places[-1] + 1, classes), dtype=np.int64)
        return made[places]

    def select(self, marked: Host, key: Key) -> Key:
        """Keep `count` candidates that the marked model has learned, at random.

        Raises:
            CapacityError: It has learned too few; mark again, with another key.
        """
        self.check_key(key)
        learned = np.flatnonzero(marked.labels(checked_inputs(key)) == self.answers(key))
        if len(learned) < self.count:
            raise CapacityError(
                f"The model has learned {len(learned)} candidates; {self.count} are needed.",
                hint="Train longer, or raise oversample.",
            )
        order = key.child("select").shard(0).stream("select").sample(self.count, len(learned))
        return self._keep(key, np.sort(learned[order]))

    def _keep(self, key: Key, rows: NDArray[np.int64]) -> Key:
        """Return the key with some of its candidates."""
        kept = batches.take(key.inputs, torch.from_numpy(rows))
        chosen = [int(i) for i in np.array(_places(key.layout))[rows]]
        params = dict(key.layout.params)
        params |= {"places": list(chosen), "inputs": [batches.tree_digest(kept)]}
        layout = replace(
            key.layout, message_bits=len(chosen), params=params, inputs=batches.tree_digest(kept)
        )
        return replace(key, layout=layout, inputs=kept)


_MOST_PLACES = 1 << 24  # candidates before the filter; the paper has 20 times as many as answers


def _places(layout: Layout) -> list[int]:
    """Return the places in the stream of labels of the candidates that are left."""
    places = layout.params.get("places")
    return list(places) if isinstance(places, list) else list(range(layout.message_bits))  # type: ignore[arg-type]
