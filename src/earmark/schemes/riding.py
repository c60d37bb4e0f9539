"""MTL-Sign while it is embedded: triggers ride in the task's batches, features are pushed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from earmark.errors import HostError
from earmark.hosts import batches
from earmark.hosts.batches import Tree
from earmark.hosts.module import Forward
from earmark.keys.secret import Key, Shard
from earmark.records import Layout
from earmark.schemes.base import Mark
from earmark.schemes.neighbours import Neighbours
from earmark.schemes.settling import Settling, classes_of, frozen_norms, within
from earmark.schemes.sparring import Partner

if TYPE_CHECKING:
    from earmark.schemes.mtlsign import MtlSign

OWN_PASS = 32
_SPAR_FROM, _SPAR_WITH, _SQUEEZE = 0.15, 64, 30.0


def labels_of(shard: Shard, count: int) -> list[int]:
    """Return a shard's labels, +1 or -1, one for each of its triggers."""
    return shard.stream("mtlsign/labels").signs(count)


def marked_of(layout: Layout) -> tuple[str, ...]:
    """Return the layers that a key marks, without what flows into them."""
    count = layout.params["marked"]
    assert isinstance(count, int)
    return layout.carrier[:count]


def settled_at(marked: Sequence[str], read: Sequence[str]) -> dict[str, float]:
    """Return where samples are settled: at marked layers, by a third at what else is read."""
    return {name: 1.0 if name in marked else 1 / 3 for name in read}


class RidingMark(Mark):
    """The mark while it is embedded: triggers ride in the batches, their features are pushed."""

    def __init__(
        self,
        scheme: MtlSign,
        model: nn.Module,
        key: Key,
        inputs: Tree,
        seen: tuple[dict[str, Tensor], list[Tensor]],
        forward: Forward,
    ) -> None:
        layout = key.layout
        each = layout.message_bits // layout.shards
        self._scheme, self._model, self._forward = scheme, model, forward
        self._seen, self._answers = seen
        self._inputs = inputs
        self._carrier = marked_of(layout)
        self._settling = Settling(scheme.settle, settled_at(self._carrier, layout.carrier), *seen)
        self._signs = torch.tensor(
            [float(sign) for shard in key.shards for sign in labels_of(shard, each)]
        )
        directions = layout.params["directions"]
        assert isinstance(directions, int)
        self._direction = torch.arange(layout.shards).repeat_interleave(each) % directions
        self._directions = directions
        self._secret = key.child("mtlsign/directions").shard(0)
        self._heads: dict[str, Tensor] = {}
        seed = self._secret.stream("order").integer(1 << 62)
        self._seed = seed
        self._order = torch.empty(0, dtype=torch.long)
        self._step = 0
        self._round = 0
        self._riding: Tensor | None = None
        self.riders = 0
        self._length = 0
        self._classes: Tensor | None = None
        self._rest: Tree = None
        self._partner = Partner(model, scheme.spar) if scheme.spar else None
        self._neighbours = Neighbours(inputs) if scheme.neighbours else None

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return how far the triggers' order has been read, and how far a partner has come."""
        partner = {"partner": self._partner.state_dict()} if self._partner else {}
        return {**partner, **self._settling.state_dict(), "round": self._round, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Go on with both where a training was interrupted."""
        if state:
            self._round, self._step = int(state["round"]), int(state["step"])
            self._settling.load_state_dict(state)
            self._order = self._shuffled()
            if self._partner and "partner" in state:
                self._partner.load_state_dict(state["partner"])

    def mix(self, batch: Tree) -> Tree:
        """Return the batch with its first samples, `riders` of them, replaced by triggers."""
        self._length = batches.size(batch)
        self.riders = riders = min(round(self._length * self._scheme.share), len(self._signs))
        self._classes = None
        if riders < 1:
            self._riding = None
            return batch
        self._riding = self._next(riders)
        some = batches.take(self._inputs, self._riding)
        where = next(iter(batches.leaves(batch).values())).device
        some = batches.transform(some, lambda tensor: tensor.to(where))
        rest = batches.take(batch, slice(riders, None))
        self._classes, self._rest = classes_of(rest), rest
        self._settling.see(self._classes, self._length)
        return batches.join([some, rest])

    def after_step(self, lr: float) -> None:
        """Follow the learning rate: the task's own samples are settled as it falls."""
        self._settling.after_step(lr)

    def loss(self) -> Tensor:
        """Return the mark's term for the batch that was mixed, or for a pass of its own."""
        if self._riding is None:
            self._own_pass()
        riding, self._riding = self._riding, None
        assert riding is not None
        pushed = self._pushed(riding)
        total = self._scheme.weight * pushed
        if self._neighbours and self._length > len(riding):
            total = total + self._scheme.neighbours * self._beside(len(riding))
        if self._classes is None:
            return total
        known = bool(self._answers) and int(self._classes.max()) < self._answers[-1].shape[1]
        total = total + self._settling.loss()
        if self._partner and known and pushed.requires_grad and self._settling.late >= _SPAR_FROM:
            total = total + self._sparred(self._partner, self._classes)
        return total

    def _pushed(self, riding: Tensor) -> Tensor:
        rows = slice(len(riding))
        return torch.stack([self._term(name, riding, rows) for name in self._carrier]).mean()

    def _beside(self, riders: int) -> Tensor:
        """Return the mark's term on the samples beside the triggers, by their nearest triggers."""
        assert self._neighbours is not None
        nearest, rows = self._neighbours(self._rest), slice(riders, None)
        return torch.stack([self._term(name, nearest, rows) for name in self._carrier]).mean()

    def _sparred(self, partner: Partner, classes: Tensor) -> Tensor:
        """Let the partner squeeze features together, and push them where he has come to."""
        rest, riding = self._rest, self._next(min(_SPAR_WITH, len(self._signs)))
        where = classes.device
        some = batches.take(self._inputs, riding)
        both = batches.join([batches.transform(some, lambda tensor: tensor.to(where)), rest])

        def attack() -> Tensor:
            self._forward(self._model, rest)
            scores = self._answers[-1]
            groups, all_of_them = scores.detach().argmax(1), torch.ones_like(classes).float()
            inner = [within(value, groups, all_of_them) for value in self._seen.values()]
            squeezed = _SQUEEZE * torch.stack(inner).sum()
            return functional.cross_entropy(scores.float(), classes) + squeezed

        def push() -> Tensor:
            self._forward(self._model, both)
            self._length = batches.size(both)
            return self._pushed(riding)

        return partner.term(attack, push)

    def _own_pass(self) -> None:
        """Run some triggers by themselves, normalization layers frozen."""
        self._riding = self._next(min(OWN_PASS, len(self._signs)))
        self._length = len(self._riding)
        where = next(self._model.parameters()).device
        some = batches.take(self._inputs, self._riding)
        with frozen_norms(self._model):
            self._forward(self._model, batches.transform(some, lambda tensor: tensor.to(where)))

    def _next(self, count: int) -> Tensor:
        """Return the next triggers, each once in every round."""
        if self._step + count > len(self._order):
            self._round += len(self._order) > 0
            self._step = 0
            self._order = self._shuffled()
        self._step += count
        return self._order[self._step - count : self._step]

    def _shuffled(self) -> Tensor:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        generator = torch.Generator().manual_seed(self._seed ^ (self._round << 16 | rank))
        return torch.randperm(len(self._signs), generator=generator)

    def _term(self, name: str, triggers: Tensor, rows: slice) -> Tensor:
        """Return how far some rows of a batch are from where these triggers' labels push them."""
        if name not in self._seen:
            raise HostError(
                f"Layer '{name}' did not run before the mark's loss was asked for.",
                hint="Run the model on the mixed batch first, then call loss().",
            )
        features = self._seen[name].float()
        if len(features) != self._length:
            raise HostError(
                f"Layer '{name}' gave {len(features)} rows for a batch of {self._length}.",
                hint="Call loss() right after the pass over the mixed batch.",
            )
        center, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
        z = (features[rows] - center) / (deviation + 1e-3)
        head = self._head(name, z.shape[1]).to(z.device)[self._direction[triggers]]
        margin = self._signs[triggers].to(z.device) * (z * head).sum(dim=1)
        return functional.softplus(-self._scheme.sharpness * margin).mean()

    def _head(self, name: str, width: int) -> Tensor:
        """Return the directions at a tap, (directions, width), of length one."""
        if name not in self._heads:
            stream = self._secret.stream(f"directions/{name}")
            signs = torch.tensor(stream.signs(self._directions * width), dtype=torch.float32)
            self._heads[name] = signs.view(self._directions, width) / math.sqrt(width)
        return self._heads[name]
