"""Keep a network like what it was while a mark is concealed in it among settled samples.

Settled networks are more like one another than ordinary ones, so that a little more of anything
shows: of weights, their values, their means, the size of a row, a column or a main direction; of
features, how far samples of one answer are apart; and how sure the answers are. :class:`Sizes` puts
weights back after each step, :class:`Forces` draws the others back while a network is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.errors import HostError
from earmark.hosts import batches
from earmark.schemes.settling import first_samples
from earmark.task import Task

_STAY, _FROM = 0.04, 0.65
_SPREAD, _MAIN, _SURE = (0.1, 6.0), (0.06, 6.0), (0.6, 40.0)
_MOST, _MOST_IN_ALL, _FRESH = 3.4, 4.0, 0.1
_LOOKED_AT = 3000
_MAINS = 8
_DIRECTIONS = 32
_FEW = 8
_ROUNDS = 2
_STEPS = 100
_LEAST = 1e-5
_CLEAR = 1e-6
_TINY = 1e-12
Pair = tuple[Tensor, Tensor]


class _Kept:
    """What is kept of one tensor, (rows, columns): values, sizes, means, and main directions."""

    def __init__(self, flat: Tensor) -> None:
        self.values = flat.flatten().sort().values
        self.columns = _of_columns(flat)
        self.shares = self.columns / self.columns.mean().clamp(min=_TINY)
        self.means = flat.mean(1, keepdim=True)
        self.rows = (flat - self.means * self.shares).norm(dim=1, keepdim=True)
        count = min(_DIRECTIONS, *flat.shape)
        start = torch.Generator().manual_seed(0)
        self.main = torch.randn(len(flat), count, generator=start).to(flat)
        for _ in range(_STEPS):
            self.main, _, self.sizes = _power(flat, self.main)

    def put_back(self, flat: Tensor) -> Tensor:
        """Return a tensor that is like it, and follow the main directions."""
        flat = torch.empty_like(self.values).scatter_(0, _order(flat), self.values).view_as(flat)
        self.main, right, sizes = _power(flat, self.main)
        flat = flat + self.main * (self.sizes - sizes) @ right.T
        for _ in range(_ROUNDS):
            flat = flat * (self.columns / _of_columns(flat).clamp(min=_TINY))
            rest = flat - flat.mean(1, keepdim=True) * self.shares
            rest = rest * (self.rows / rest.norm(dim=1, keepdim=True).clamp(min=_TINY))
            flat = rest + self.means * self.shares
        return flat


class Sizes:
    """Values of weights, sizes and means of rows, sizes of columns and main directions, as before.

    Args:
        before: Names to tensors of two and more dimensions; the first counts rows, the others
            together columns.

    Raises:
        HostError: A tensor is not finite.
    """

    def __init__(self, before: Mapping[str, Tensor]) -> None:
        self._before = {name: value.detach().norm() for name, value in before.items()}
        self._kept: dict[str, _Kept] = {}
        for name, value in before.items():
            flat = _flat(value.detach())
            if not flat.isfinite().all():
                raise HostError(f"Weights {name} are not finite.", expected="A trained network.")
            if min(len(flat), int((_of_columns(flat) > 0).sum())) >= _FEW:
                self._kept[name] = _Kept(flat)

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the main directions have come to."""
        return {name: kept.main.clone() for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        for name, main in state.items():
            self._kept[name].main = main.to(self._kept[name].main)

    @torch.no_grad()
    def put_back(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor that is about as it was, but for directions.

        In turn its values become those that it had, in the order that they have now; its main
        directions get the sizes that they had, up to 32 of them, after one more step of the power
        method; its columns theirs, and its rows theirs and their means. Means come back exactly,
        columns nearly, the others about. Of a tensor with fewer than eight rows or columns only the
        size as a whole is kept; one that is not finite comes back as it is.
        """
        flat = _flat(value)
        if not flat.isfinite().all():
            return value
        if name in self._kept:
            flat = self._kept[name].put_back(flat)
        else:
            flat = flat * (self._before[name] / flat.norm().clamp(min=_TINY))
        put: Tensor = flat.view_as(value).to(value.dtype)
        return put


def _flat(value: Tensor) -> Tensor:
    flat: Tensor = value.to(torch.promote_types(value.dtype, torch.float32)).flatten(1)
    return flat


def _order(flat: Tensor) -> Tensor:
    """Return which value comes first, second and so on; whole numbers sort ten times as fast."""
    bits = flat.flatten().float().view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).argsort()


def _of_columns(flat: Tensor) -> Tensor:
    return flat.square().sum(0).sqrt()  # a norm along columns takes ten times as long


def _power(flat: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take a step of the power method: return both sides of main directions, and their sizes."""
    right = torch.linalg.qr((left.T @ flat).T).Q
    left, sizes, turn = torch.linalg.svd(flat @ right, full_matrices=False)
    return left, right @ turn.T, sizes


class Forces:
    """What draws statistics back to what they were, at a low learning rate.

    Kept are how sure the answers are and, at each layer, the variance within answers over the whole
    variance, in nine parts: along each of the eight directions in which an answer's own samples
    vary most, and the rest. Each has a force; it follows how far the statistic is off and the sum
    of that over the steps.

    Maths: with m and m0 the running means of a statistic now and before, e = log(m / m0), and S the
    sum of `gain * e`, kept within 3.4, a part of the variance is squeezed with weight
    `stay * exp(S + 6 e)`, and the logarithm of the sureness has weight `S + 40 e`. Neither sum goes
    beyond 4, and shares of under 1e-5 count as that. At 8 a network was lost: forces came on, of up
    to three thousand times their `stay`, while features were still on their way.

    Args:
        settle: Weight at which the network was settled; a twenty-fifth of it is the forces' `stay`.
        layers: Where, with a factor each.
        main: Main directions, from :func:`main_directions`.
    """

    def __init__(
        self, settle: float, layers: Mapping[str, float], main: Mapping[str, Tensor]
    ) -> None:
        self._stay, self._layers, self._main = _STAY * settle, layers, main
        self._late, self._peak = False, 0.0
        self._of: dict[str, float] = {}
        self._means: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, Any]:  # Any: numbers
        """Return the forces and the means that they follow."""
        means = {name: list(pair) for name, pair in self._means.items()}
        return {"late": self._late, "peak": self._peak, "of": dict(self._of), "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Go on from there."""
        self._late, self._peak = bool(state["late"]), float(state["peak"])
        self._of = dict(state["of"])
        self._means = {name: list(pair) for name, pair in state["means"].items()}

    def follow(self, lr: float) -> None:
        """Adjust forces once the learning rate has fallen, when features have come to rest."""
        self._peak = max(lr, self._peak)
        self._late = lr <= (1 - _FROM) * self._peak

    def term(self, scores: Pair, features: Mapping[str, Pair]) -> Tensor:
        """Return the term, from scores and features as they are now and as they were."""
        groups = scores[1].argmax(1)
        sure = [value.softmax(1).amax(1).mean() for value in scores]
        total = self._off("sure", sure[0].item(), sure[1].item(), _SURE) * sure[0].log()
        for name, pair in features.items():
            wholes = [v.detach().float().var(0, correction=0).sum().clamp(min=_TINY) for v in pair]
            parts = [_parts(value, groups, self._main[name]) for value in pair]
            nows, before = ((p / w).tolist() for p, w in zip(parts, wholes, strict=True))
            for part, (now, was) in enumerate(zip(nows, before, strict=True)):
                gains = _MAIN if part < len(parts[0]) - 1 else _SPREAD
                force = self._stay * math.exp(self._off(f"{part} {name}", now, was, gains))
                total = total + self._layers[name] * force * parts[0][part] / wholes[1]
        return total

    def _off(self, name: str, now: float, was: float, gains: tuple[float, float]) -> float:
        if not self._late:
            return self._of.get(name, 0.0)
        pair = [max(value, _LEAST) for value in (now, was)]
        means = self._means.setdefault(name, list(pair))
        for i, value in enumerate(pair):
            means[i] += _FRESH * (value - means[i])
        off = math.log(means[0] / means[1])
        self._of[name] = min(max(self._of.get(name, 0.0) + gains[0] * off, -_MOST), _MOST)
        return min(max(self._of[name] + gains[1] * off, -_MOST_IN_ALL), _MOST_IN_ALL)


def main_directions(task: Task, model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return along which directions the samples of each answer vary most, (classes, 8, width).

    Of the first three thousand samples of the training set. The directions have length one and are
    at right angles, the most telling first; where an answer has too few samples, they are zero.
    """
    some = batches.take(first_samples(task, _LOOKED_AT), slice(_LOOKED_AT))
    host = task.host(model)
    scores = torch.as_tensor(host.scores(some))
    answers, where = scores.argmax(1), next(model.parameters()).device
    found: dict[str, Tensor] = {}
    for name, value in host.features(some, tuple(layers)).items():
        features = torch.as_tensor(value).double()
        main = torch.zeros(scores.shape[1], _MAINS, features.shape[1], dtype=torch.double)
        for answer in sorted(set(answers.tolist())):
            rows = features[answers == answer]
            if len(rows) > 1:
                _, sizes, axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
                axes = axes[:_MAINS][sizes[:_MAINS] > _CLEAR * sizes[0]]
                main[answer, : len(axes)] = axes
        found[name] = main.float().to(where)
    return found


def _parts(features: Tensor, groups: Tensor, main: Tensor) -> Tensor:
    """Return the variance within answers: along each of their main directions, and beside them."""
    rows = features.float()
    member = functional.one_hot(groups, len(main)).float()
    rest = rows - member @ ((member / member.sum(0).clamp(min=1)).T @ rows)
    axes = main[groups]
    along = torch.einsum("nw,nkw->nk", rest, axes)
    beside = rest - torch.einsum("nk,nkw->nw", along, axes)
    return torch.cat([along.square().mean(0), beside.square().sum(1).mean()[None]])
