"""Search for a number that opens a locked network: what a thief with the weights would try.

The searches work on the code's values, with the places known: that is more than the thief has, and
reading them off the first layer is cheap. They serve twice: in training, where what they find is
refused from then on, and in benchmarks, where they say how long the lock holds.

Source: Wang and others 2019 (Neural Cleanse) and equation 10 of Tang and others 2023 for the plain
gradient. Changed: many starts at once, ReLUs whose backward pass is softened, bit climbing and an
evolution strategy; the best of all starts counts, not their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from earmark.errors import HostError
from earmark.hosts import batches
from earmark.locks.entry import Entry, Tokens, random_codes

Forward = Callable[[nn.Module, batches.Tree], Any]
_RELUS = frozenset({torch.relu, torch.relu_, torch.Tensor.relu, functional.relu})


class SoftRelu(TorchFunctionMode):
    """Inside, ReLUs compute as ever but pass a share of the gradient where they are shut.

    Args:
        slope: The share.

    Example:
        >>> x = torch.tensor([-1.0], requires_grad=True)
        >>> with SoftRelu(0.3):
        ...     y = nn.ReLU()(x)
        >>> y.backward(torch.ones(1))
        >>> y.item(), round(x.grad.item(), 3)
        (0.0, 0.3)
    """

    def __init__(self, slope: float = 0.3) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(
        self,
        func: Any,  # Any: the signature is torch's
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Exchange ReLUs; pass everything else through."""
        if func in _RELUS:
            given = args[0]
            leaky = functional.leaky_relu(given, self.slope)
            return leaky + (given.clamp(min=0) - leaky).detach()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Target:
    """What a search works on.

    Args:
        model: The locked network, in evaluation mode; never changed.
        entry: The way in, places included.
        forward: How the network is run on a batch.
        batch: Samples that the thief holds, inputs and labels.
        labels: Their labels, (samples,), or (samples, steps) for a generator.
    """

    model: nn.Module
    entry: Entry
    forward: Forward
    batch: batches.Tree
    labels: Tensor

    def loss(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the mean cross-entropy of each of (starts, bits) values on some samples."""
        starts, count = len(values), len(rows)
        part = batches.take(self.batch, rows.repeat(starts))
        given = self.entry.present(part, values.repeat_interleave(count, dim=0))
        scores = self.entry.scores(self.forward(self.model, given)).float()
        labels = self.labels[rows]
        labels = labels.repeat(starts, *[1] * (labels.ndim - 1)).flatten()
        each = functional.cross_entropy(scores, labels, reduction="none")
        return each.view(starts, -1).mean(1)

    def accuracy(self, values: Tensor) -> Tensor:
        """Return the accuracy in percent that each of (starts, bits) values gives."""
        found, labels = [], self.labels.flatten()
        with torch.no_grad():
            for row in values:
                scores = self.entry.scores(
                    self.forward(self.model, self.entry.present(self.batch, row))
                )
                found.append(100.0 * (scores.argmax(1) == labels).float().mean().item())
        return torch.tensor(found)


@dataclass(frozen=True)
class Found:
    """The best that a search found.

    Args:
        values: (bits,) what to present.
        accuracy: Accuracy in percent with it, on the thief's own samples.
        all: (starts, bits) where every start ended.
        trials: Evaluations of the network on a batch.
    """

    values: Tensor
    accuracy: float
    all: Tensor
    trials: int


def descend(
    target: Target,
    *,
    starts: int,
    steps: int,
    seed: int,
    rate: float = 0.05,
    rows: int = 32,
    slope: float | None = None,
    straight: bool = False,
) -> Found:
    """Follow the gradient of the loss from random starts (Adam on tanh values).

    Args:
        target: What to search.
        starts: Number of starts, run side by side.
        steps: Steps.
        seed: Seed of starts and sample order.
        rate: Learning rate.
        rows: Samples a step.
        slope: Soften ReLUs by this slope in the backward pass; null leaves them.
        straight: Present signs, and pass the gradient straight through.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (starts, target.entry.bits)
    free = (0.5 * torch.randn(shape, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=rate)
    count = batches.size(target.batch)
    for _ in range(steps):
        chosen = torch.randint(0, count, (min(rows, count),), generator=generator)
        values = torch.tanh(free)
        if straight:
            values = values + (values.sign() - values).detach()
        with SoftRelu(slope if slope is not None else 0.0):
            loss = target.loss(values, chosen).sum()
        (free.grad,) = torch.autograd.grad(loss, [free])
        optimizer.step()
    ends = torch.tanh(free.detach())
    return _best(target, torch.cat([ends, ends.sign()]), steps * starts)


def climb(target: Target, *, starts: int, sweeps: int, seed: int, rows: int = 128) -> Found:
    """Flip one bit at a time and keep what lowers the loss, from random codes."""
    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(starts, target.entry.bits, generator)
    count, trials = batches.size(target.batch), 0
    with torch.no_grad():
        for _ in range(sweeps):
            chosen = torch.randint(0, count, (min(rows, count),), generator=generator)
            now = target.loss(codes, chosen)
            for bit in torch.randperm(target.entry.bits, generator=generator).tolist():
                codes[:, bit] *= -1
                after = target.loss(codes, chosen)
                trials += starts
                worse = after >= now
                codes[worse, bit] *= -1
                now = torch.where(worse, now, after)
    return _best(target, codes, trials)


def evolve(
    target: Target,
    *,
    steps: int,
    seed: int,
    population: int = 32,
    rate: float = 0.1,
    restarts: int = 1,
) -> Found:
    """Search by an evolution strategy with mirrored samples, which needs no gradient.

    The first start is the middle, where no bit is set; each further one is a random place.
    """
    ends = torch.stack(
        [
            _evolved(target, steps, seed + 7919 * i, population, rate, apart=i > 0)
            for i in range(restarts)
        ]
    )
    return _best(target, torch.cat([ends, ends.sign()]), steps * population * restarts)


def _evolved(
    target: Target, steps: int, seed: int, population: int, rate: float, *, apart: bool
) -> Tensor:
    """Return the mean at which one start of an evolution strategy ends."""
    generator = torch.Generator().manual_seed(seed)
    bits, count = target.entry.bits, batches.size(target.batch)
    mean = 0.5 * (2 * torch.rand(bits, generator=generator) - 1) if apart else torch.zeros(bits)
    with torch.no_grad():
        for _ in range(steps):
            noise = torch.randn(population // 2, bits, generator=generator)
            tries = torch.cat([mean + 0.5 * noise, mean - 0.5 * noise]).clamp(-1, 1)
            chosen = torch.randint(0, count, (min(64, count),), generator=generator)
            loss = target.loss(tries, chosen)
            gain = loss[population // 2 :] - loss[: population // 2]
            gain = gain / (gain.abs().max() + 1e-9)
            mean = (mean + rate * (gain[:, None] * noise).mean(0) * 5).clamp(-1, 1)
    return mean


def read_template(target: Target, weight: Tensor, *, seed: int, units: int = 64) -> Found:
    """Guess the code from the signs of first-layer weights at the places of the code.

    Args:
        target: What to search; its way in stamps pixels or appends columns.
        weight: (units, bits) first-layer weights at the places of the code.
        seed: Unused; every search has one.
        units: So many units, those with the largest weights there, are read, both ways.
    """
    del seed
    order = weight.abs().sum(1).argsort(descending=True)[:units]
    rows = weight[order].sign()
    _, _, axes = torch.linalg.svd(weight, full_matrices=False)
    guesses = torch.cat([rows, -rows, axes[:8].sign(), -axes[:8].sign()])
    guesses = torch.where(guesses == 0, torch.ones_like(guesses), guesses)
    return _best(target, guesses, len(guesses))


def read_slopes(
    target: Target, *, seed: int, slope: float = 1.0, rows: int = 32, units: int = 256
) -> Found:
    """Guess the code from how every layer's units lean on each of its values, on average.

    A first layer that mixes the values, or one whose weights are shared, shows no template of its
    own; with ReLUs softened, the units of later layers do. Reads any network, and any way in that
    takes values between the signs.

    Args:
        target: What to search.
        seed: Seed of the random codes at which slopes are taken.
        slope: How far ReLUs are softened; 1 makes the network linear.
        rows: Samples, each with a random code.
        units: At most so many units a layer, those that lean most.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = min(rows, batches.size(target.batch))
    values = random_codes(rows, target.entry.bits, generator).requires_grad_()
    given = target.entry.present(batches.take(target.batch, torch.arange(rows)), values)
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for module in target.model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with SoftRelu(slope):
        target.forward(target.model, given)
    for handle in handles:
        handle.remove()
    guesses: list[Tensor] = []
    for out in seen:
        level = out.flatten(2).sum(2) if out.ndim > 2 else out
        slopes = [
            torch.autograd.grad(level[:, unit].sum(), [values], retain_graph=True)[0].sum(0)
            for unit in range(level.shape[1])
        ]
        leaning = torch.stack(slopes)
        order = leaning.abs().sum(1).argsort(descending=True)[:units]
        _, _, axes = torch.linalg.svd(leaning, full_matrices=False)
        signs = torch.cat([leaning[order], axes[:8]]).sign()
        guesses += [signs, -signs]
    made = torch.cat(guesses)
    made = torch.where(made == 0, torch.ones_like(made), made)
    return _best(target, made, len(made))


def climb_tokens(target: Target, *, starts: int, sweeps: int, seed: int, rows: int = 16) -> Found:
    """Exchange one token of the number at a time and keep the best of all, from random codes."""
    entry = _tokens(target)
    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(starts, entry.bits, generator)
    words, count, trials = _words(entry), batches.size(target.batch), 0
    with torch.no_grad():
        for sweep in range(sweeps * starts):
            code = codes[sweep % starts]
            chosen = torch.randint(0, count, (min(rows, count),), generator=generator)
            for place in torch.randperm(entry.length, generator=generator).tolist():
                tries = code.repeat(len(words), 1)
                tries[:, place * entry.width : (place + 1) * entry.width] = words
                parts = torch.split(tries, 64)
                loss = torch.cat([target.loss(part, chosen) for part in parts])
                code = tries[int(cast("int", loss.argmin().item()))]
                trials += len(words)
            codes[sweep % starts] = code
    return _best(target, codes, trials)


def read_tokens(target: Target, *, seed: int, slope: float = 1.0, rows: int = 16) -> Found:
    """Guess a number's tokens from how every unit leans on the vectors of the reserved tokens.

    Raises:
        HostError: The model has no embedding of tokens.
    """
    entry = _tokens(target)
    generator = torch.Generator().manual_seed(seed)
    rows = min(rows, batches.size(target.batch))
    values = random_codes(rows, entry.bits, generator)
    given = entry.present(batches.take(target.batch, torch.arange(rows)), values)
    table = next((m for m in target.model.modules() if isinstance(m, nn.Embedding)), None)
    if table is None:
        raise HostError("Only a model with an embedding of tokens leans on their vectors.")
    seen: list[Tensor] = []
    vectors: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:  # Any: torch's
        vectors.append(out.detach().requires_grad_())
        return vectors[0]

    handles = [table.register_forward_hook(keep)]
    handles += [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for module in target.model.modules()
        if isinstance(module, nn.Linear)
    ]
    with SoftRelu(slope):
        target.forward(target.model, given)
    for handle in handles:
        handle.remove()
    reserved = table.weight.detach()[entry.first : entry.first + (1 << entry.width)]
    words, guesses = _words(entry), []
    for out in seen:
        level = out if out.ndim == 2 else out.sum(1)
        for unit in range(level.shape[1]):
            (slopes,) = torch.autograd.grad(
                level[:, unit].sum(), vectors, retain_graph=True, allow_unused=True
            )
            if slopes is not None:
                leaning = slopes[:, : entry.length].sum(0) @ reserved.T
                guesses += [words[leaning.argmax(1)].flatten(), words[leaning.argmin(1)].flatten()]
    return _best(target, torch.stack(guesses), len(guesses))


def _tokens(target: Target) -> Tokens:
    if not isinstance(target.entry, Tokens):
        raise HostError("This search is for locks on tokens.")
    return target.entry


def _words(entry: Tokens) -> Tensor:
    """Return the signs of every reserved token, (tokens, width)."""
    numbers = torch.arange(1 << entry.width)[:, None] >> torch.arange(entry.width)
    return 2.0 * (numbers & 1) - 1.0


def _best(target: Target, ends: Tensor, trials: int) -> Found:
    accuracy = target.accuracy(ends)
    best = int(cast("int", accuracy.argmax().item()))
    return Found(ends[best], float(accuracy[best]), ends, trials)
