"""Inputs of a key: in groups, checked against the layout, and shown to a model in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earmark.errors import KeyFileError, UsageError
from earmark.hosts import batches
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.keys.secret import Disclosure, Key
from earmark.keys.stream import KeyStream


@dataclass(frozen=True)
class Chosen:
    """Inputs with the group each belongs to.

    Args:
        inputs: A batch.
        group: (inputs,) group of each; -1 is the neutral reference set.
        count: Number of groups.
    """

    inputs: Tree
    group: Tensor
    count: int


def split_labels(inputs: Tree) -> tuple[Tree, Tensor | None]:
    """Return the inputs and, if the batch is a pair with integer labels, those labels."""
    if isinstance(inputs, (tuple, list)) and len(inputs) == 2:
        last = inputs[1]
        if isinstance(last, Tensor) and last.ndim == 1 and not last.is_floating_point():
            return inputs[0], last.long()
    if isinstance(inputs, dict) and isinstance(inputs.get("labels"), Tensor):
        rest = {name: part for name, part in inputs.items() if name != "labels"}
        return rest, inputs["labels"].long()
    return inputs, None


def choose(
    inputs: Tree,
    host: Host,
    tap: str,
    stream: KeyStream,
    *,
    count: int,
    size: int,
    references: int,
) -> Chosen:
    """Choose groups and a reference set from candidates; no bit of the message is known yet.

    Groups are classes where the candidates come with labels, else the components of a Gaussian
    mixture with diagonal covariances, fitted to the host's activations.

    Args:
        inputs: Candidates.
        host: The model to be marked.
        tap: Layer on which a mixture is fitted.
        stream: Keyed randomness that chooses.
        count: Number of groups; 0 takes as many as there are labels, or 8 without.
        size: Inputs of a group.
        references: Inputs of the reference set; fewer if the candidates do not suffice.

    Raises:
        UsageError: Too few candidates.
    """
    plain, labels = split_labels(inputs)
    total = batches.size(plain)
    if total < 16:
        raise UsageError(f"{total} candidate inputs are too few.", expected="At least 16.")
    order = np.array(stream.permutation(total))
    neutral = order[: min(references, total // 2)]
    rest = order[len(neutral) :]
    if labels is None:
        features = host.features(plain, [tap])[tap]
        member = components(features[rest], count or 8, seed=stream.integer(1 << 31))
    else:
        member = labels.numpy()[rest]
    names, sizes = np.unique(member, return_counts=True)
    wanted = count or len(names)
    if len(names) < wanted:
        raise UsageError(f"The candidates fall into {len(names)} groups, not {wanted}.")
    best = np.sort(names[np.argsort(-sizes, kind="stable")[:wanted]])
    picked, group = [neutral], [np.full(len(neutral), -1)]
    for i, name in enumerate(best):
        own = rest[member == name][:size]
        picked.append(own)
        group.append(np.full(len(own), i))
    index = torch.from_numpy(np.concatenate(picked))
    return Chosen(
        batches.take(plain, index), torch.from_numpy(np.concatenate(group)).long(), wanted
    )


def components(features: NDArray[np.float64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Return the likeliest component of each row in a diagonal Gaussian mixture."""
    import warnings

    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(count, covariance_type="diag", reg_covar=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: NDArray[np.int64] = mixture.fit(features).predict(features)
    if len(np.unique(found)) < count:  # a component died: cut along the first axis instead
        axis = features - features.mean(axis=0)
        found = np.argsort(np.argsort(axis @ axis[0])) * count // len(features)
    return found


def checked(key: Key | Disclosure) -> Tree:
    """Return a key's inputs if they are those that its layout fixes.

    Raises:
        UsageError: There are none.
        KeyFileError: They are others.
    """
    if key.inputs is None:
        raise UsageError(
            "The key's inputs are missing.", hint="Load them from where the key was made."
        )
    if batches.tree_digest(key.inputs) != key.layout.inputs:
        raise KeyFileError("The inputs are not those that the key's layout fixes.")
    return key.inputs


def blended(first: Tree, second: Tree, share: float) -> Tree:
    """Blend two batches: numbers are averaged, codes (integers) are spliced along axis 1."""
    others = batches.leaves(second)

    def mix(path: str, tensor: Tensor) -> Tensor:
        other = others[path]
        if tensor.is_floating_point():
            return (1 - share) * tensor + share * other
        if tensor.ndim < 2:
            return tensor
        cut = round((1 - share) * tensor.shape[1])
        return torch.cat([tensor[:, :cut], other[:, cut:]], dim=1)

    paths = iter(batches.leaves(first))
    return batches.transform(first, lambda tensor: mix(next(paths), tensor))


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Let a model see the key's inputs as it sees a batch, without remembering them.

    Batch norm uses the batch's own statistics and keeps its running ones, unless it is frozen;
    dropout is off.
    """
    modes = [(module, module.training) for module in model.modules()]
    kept = [module for module, live in modes if live and isinstance(module, NORMS)]
    tracked = [module.track_running_stats for module in kept]
    model.eval()
    for norm in kept:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, track in zip(kept, tracked, strict=True):
            norm.track_running_stats = track


class TaskNorms:
    """Batch norms that see inputs of a key as though they were part of the task's batch.

    Inputs that do not look like data have statistics of their own. A model that is shown them by
    themselves learns them under those, and the released model, which norms by what data look like,
    does not know them. So the norms take the statistics of the task's last batch, mixed with a
    share of the inputs'. Gradients flow through both: without them a model would seek its scores in
    the size of its weights, which the statistics then undo.

    Args:
        model: The model.
        share: Share of the inputs in the mixture.
        due: Whether the next step shows inputs; other steps need no statistics.
    """

    def __init__(self, model: nn.Module, share: float, due: Callable[[], bool]) -> None:
        self._model, self._share, self._due = model, share, due
        self._seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._shown = False

    @contextmanager
    def watching(self) -> Iterator[TaskNorms]:
        """Watch the norms while the task trains the model."""
        norms = [module for module in self._model.modules() if isinstance(module, NORMS)]
        hooks = [norm.register_forward_pre_hook(self._watch) for norm in norms]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Let the model see inputs of the key; by their own statistics if the task showed none."""
        seen, self._seen, self._shown = self._seen, {}, True
        for norm, moments in seen.items():
            norm.forward = partial(self._mixed, norm, moments)
        try:
            with quiet(self._model):
                yield
        finally:
            self._shown = False
            for norm in seen:
                del norm.forward

    def _watch(self, norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Keep the statistics of the task's batch, with their gradient."""
        if norm.training and not self._shown and self._due() and torch.is_grad_enabled():
            self._seen[norm] = _moments(given[0])

    def _mixed(self, norm: Any, moments: tuple[Tensor, Tensor], given: Tensor) -> Tensor:
        (mean, var), (own, spread) = moments, _moments(given)
        share, gap = self._share, mean - own
        mean, var = mean - share * gap, var + share * (spread - var + (1 - share) * gap.square())
        scale = (var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        shift = -mean * scale
        if norm.affine:
            shift = shift + norm.bias
        made = torch.addcmul(_wide(shift, given), given.float(), _wide(scale, given))
        return made.to(given.dtype)


def _wide(each: Tensor, values: Tensor) -> Tensor:
    """Lay one number a channel along a batch's channels."""
    return each.reshape([1, -1] + [1] * (values.ndim - 2))


class _Moments(torch.autograd.Function):
    """Mean and variance of each channel, with a gradient that takes one pass over the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        flat = values.reshape(*values.shape[:2], -1)
        count = flat.shape[0] * flat.shape[2]
        mean = flat.sum(dim=(0, 2)) / count
        squares = flat.square().sum(dim=(0, 2)) / count
        ctx.save_for_backward(values, mean)
        ctx.count = count
        return mean, (squares - mean.square()).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        values, mean = ctx.saved_tensors
        of_mean, of_var = grads
        slope = 2 * of_var / ctx.count
        base = of_mean / ctx.count - slope * mean
        return torch.addcmul(_wide(base, values), values, _wide(slope, values))


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and variance."""
    made: tuple[Tensor, Tensor] = _Moments.apply(values.float())  # type: ignore[no-untyped-call]
    return made
