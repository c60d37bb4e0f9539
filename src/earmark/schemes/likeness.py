"""Keep a network like what it was while a mark is concealed in it among settled samples.

Settled networks are more like one another than ordinary ones, so that a little more of anything
shows: the size of a row, a column or the main direction of some weights, how far samples of one
answer are apart, how sure the answers are. :class:`Sizes` puts the first kind back after each step,
:class:`Forces` draws the second back while a network is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.hosts import batches
from earmark.schemes.settling import first_samples
from earmark.task import Task

_STAY, _FROM = 0.04, 0.65
_SPREAD, _MAIN, _SURE = (0.1, 6.0), (0.06, 6.0), (0.6, 40.0)
_MOST, _MOST_IN_ALL, _FRESH = 3.4, 8.0, 0.1
_LOOKED_AT = 3000
_ROUNDS = 2
_STEPS = 100
_LEAST = 1e-5
_TINY = 1e-12
Pair = tuple[Tensor, Tensor]


class Sizes:
    """Sizes of rows, columns and main directions of weights, as they were.

    Args:
        before: Names to tensors of two and more dimensions; the first counts rows, the others
            together columns.
    """

    def __init__(self, before: Mapping[str, Tensor]) -> None:
        self._rows: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self._main: dict[str, Tensor] = {}
        for name, value in before.items():
            flat = _flat(value.detach())
            self._rows[name], self._columns[name] = flat.norm(dim=1), flat.norm(dim=0)
            self._main[name] = self._rows[name]
            for _ in range(_STEPS):
                self._main[name], _, self._first[name] = _power(flat, self._main[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the main directions have come to."""
        return {name: value.clone() for name, value in self._main.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        for name, value in state.items():
            self._main[name] = value.to(self._main[name].device)

    @torch.no_grad()
    def put_back(self, name: str, value: Tensor) -> Tensor:
        """Return a tensor whose main direction, columns and rows have the sizes that they had.

        Rows to rounding, the others nearly: each is put back after the one before. The main
        direction is followed by one step of the power method a call. Where there is but one row or
        column, the whole keeps its size.
        """
        flat = _flat(value)
        if min(flat.shape) < 2:
            flat = flat * (self._rows[name].norm() / flat.norm().clamp(min=_TINY))
        else:
            left, right, size = _power(flat, self._main[name])
            self._main[name] = left
            flat = flat + (self._first[name] - size) * torch.outer(left, right)
            for _ in range(_ROUNDS):
                flat = flat * (self._columns[name] / flat.norm(dim=0).clamp(min=_TINY))
                flat = flat * (self._rows[name] / flat.norm(dim=1).clamp(min=_TINY))[:, None]
        put: Tensor = flat.view_as(value).to(value.dtype)
        return put


def _flat(value: Tensor) -> Tensor:
    flat: Tensor = value.to(torch.promote_types(value.dtype, torch.float32)).flatten(1)
    return flat


def _power(flat: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take a step of the power method: return both sides of the main direction, and its size."""
    right = functional.normalize(flat.T @ left, dim=0, eps=_TINY)
    left = flat @ right
    size = left.norm()
    return left / size.clamp(min=_TINY), right, size


class Forces:
    """What draws statistics back to what they were, at a low learning rate.

    Kept are how sure the answers are and, at each layer, the variance within answers over the whole
    variance, in two parts: along the main direction of an answer's own samples, and the rest. Each
    has a force; it follows how far the statistic is off and the sum of that over the steps.

    Maths: with m and m0 the running means of a statistic now and before, e = log(m / m0), and S the
    sum of `gain * e`, kept within 3.4, a part of the variance is squeezed with weight
    `stay * exp(S + 6 e)`, and the logarithm of the sureness has weight `S + 40 e`. Neither sum goes
    beyond 8, and shares of under 1e-5 count as that.

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
        now, was = (value.softmax(1).amax(1).mean() for value in scores)
        total = self._off("sure", now, was, _SURE) * now.log()
        for name, pair in features.items():
            wholes = [v.detach().float().var(0, correction=0).sum().clamp(min=_TINY) for v in pair]
            parts = [_parts(value, groups, self._main[name]) for value in pair]
            for part, gains in (("main", _MAIN), ("rest", _SPREAD)):
                now, was = (one[part] / whole for one, whole in zip(parts, wholes, strict=True))
                force = self._stay * math.exp(self._off(f"{part} {name}", now, was, gains))
                total = total + self._layers[name] * force * parts[0][part] / wholes[1]
        return total

    def _off(self, name: str, now: Tensor, was: Tensor, gains: tuple[float, float]) -> float:
        if not self._late:
            return self._of.get(name, 0.0)
        pair = [max(float(value.detach()), _LEAST) for value in (now, was)]
        means = self._means.setdefault(name, list(pair))
        for i, value in enumerate(pair):
            means[i] += _FRESH * (value - means[i])
        off = math.log(means[0] / means[1])
        self._of[name] = min(max(self._of.get(name, 0.0) + gains[0] * off, -_MOST), _MOST)
        return min(max(self._of[name] + gains[1] * off, -_MOST_IN_ALL), _MOST_IN_ALL)


def main_directions(task: Task, model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return along which direction the samples of each answer vary most, (classes, width).

    Of the first three thousand samples of the training set. The directions have length one; that of
    an answer with fewer than two samples is zero.
    """
    some = batches.take(first_samples(task, _LOOKED_AT), slice(_LOOKED_AT))
    host = task.host(model)
    scores = torch.as_tensor(host.scores(some))
    answers, where = scores.argmax(1), next(model.parameters()).device
    found: dict[str, Tensor] = {}
    for name, value in host.features(some, tuple(layers)).items():
        features = torch.as_tensor(value).double()
        main = torch.zeros(scores.shape[1], features.shape[1], dtype=torch.double)
        for answer in sorted(set(answers.tolist())):
            rows = features[answers == answer]
            if len(rows) > 1:
                rest = rows - rows.mean(0)
                if len(rest) < rest.shape[1]:
                    axis = rest.T @ torch.linalg.eigh(rest @ rest.T)[1][:, -1]
                else:
                    axis = torch.linalg.eigh(rest.T @ rest)[1][:, -1]
                main[answer] = functional.normalize(axis, dim=0, eps=_TINY)
        found[name] = main.float().to(where)
    return found


def _parts(features: Tensor, groups: Tensor, main: Tensor) -> dict[str, Tensor]:
    """Return the variance within answers, along their main directions and beside them."""
    rows = features.float()
    member = functional.one_hot(groups, len(main)).float()
    rest = rows - member @ ((member / member.sum(0).clamp(min=1)).T @ rows)
    along = (rest * main[groups]).sum(1, keepdim=True)
    beside = rest - along * main[groups]
    return {"main": along.square().mean(), "rest": beside.square().sum(1).mean()}
