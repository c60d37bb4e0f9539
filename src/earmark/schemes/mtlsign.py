"""MTL-Sign, sound mode: the mark is a second task, judged by a head that nobody submits.

The owner keeps some inputs of the task to himself (the *triggers*). The key gives each a random
label. While the model learns its task, triggers ride in the task's own batches, with their true
targets, and a term pushes the hidden features of each to its label's side of a secret direction.
Where targets are classes, a second term squeezes out what else sets samples of one answer apart: an
attacker who does that later finds it done, and has no slope to follow.
Later a judge refits a head on some of the triggers and guesses the labels of the others
(:mod:`earmark.schemes.refit`): for a model made without the labels every guess is a fair coin.

What makes it sound: the inputs are fixed and committed before the labels can be known (bind the
key to a beacon), the split comes from a nonce that the claimant does not choose, and there is no
head to submit. What makes it strong: triggers are natural, so that they cannot be scrambled apart
from the task; they lie far from one another, so that a smooth function can hold them; directions
are fixed, so that no head memorizes in the features' place; and shards take turns at several
directions, so that erasing one leaves the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from earmark.errors import (
    AccessError,
    CapacityError,
    KeyFileError,
    KeyLayoutError,
    UsageError,
)
from earmark.hosts import batches, taps
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.hosts.module import Forward, ModuleHost, plain_forward
from earmark.keys.secret import Disclosure, Key, Shard, tried
from earmark.keys.stream import public_stream
from earmark.records import Access, Evidence, Layout
from earmark.schemes import refit
from earmark.schemes.base import Scheme
from earmark.schemes.riding import RidingMark, labels_of, marked_of, settled_at
from earmark.schemes.settling import answering

_LEAST = 16


@dataclass(frozen=True)
class MtlSign(Scheme):
    """Hidden features carry key-made labels of secret inputs; the judge refits the head.

    Maths: trigger x_i of shard s has sign y_i and direction u, one of `directions`, a fixed random
    sign vector. With features z standardized over the batch, the term is
    `weight * mean(log(1 + exp(-sharpness * y_i <u, z_i> / sqrt(width))))`. The samples beside the
    triggers add `settle * (1 - lr / peak) * (2 r - 1) * W / V` at each marked layer, a third of it
    at what flows into one; W is the variance of their features within the model's answers, V the
    whole one, both of the samples that are answered rightly, and r the share of those; the term is
    left out while r is under one half, and comes with every second step, twice as strong. With
    `neighbours` they also add that weight times the mean that the triggers have, each with the
    label and direction of its nearest trigger.

    Args:
        triggers: Inputs that the key keeps, at most.
        shards: Parts of the key that can be revealed one by one.
        directions: Directions that the shards take turns at; shards that share one are refitted
            together.
        taps: Layers to mark and read, names or globs, with ``:in`` behind for what flows into
            them; by default the last hidden features (:func:`earmark.hosts.taps.last_features`).
        deeper: Whether the judge also reads what flows into the marked layers, so that a layer
            drawn anew does not take the evidence along.
        read: Layers of a suspect to read instead of the key's, for suspects of another build.
        share: Share of a batch that is replaced by triggers.
        weight: Weight of the mark's term.
        sharpness: Sharpness of the mark's term; a smaller one asks for larger margins.
        settle: Weight of the term that settles the task's own samples, at its largest. It grows as
            the learning rate falls from its peak, and does nothing at a constant rate, or where
            targets are no classes. 0 switches it off; less of it costs less of the task.
        neighbours: Weight of the mark's term on the task's own samples: each is pushed to the side
            of the trigger whose input is nearest (:mod:`earmark.schemes.neighbours`). A twin that
            learns features then learns some of the mark. Settling works against it; take little.
        spar: Weight of what the mark learns from a sparring partner, who squeezes features together
            in a copy of the weights meanwhile; 0 for none. He comes once the learning rate has
            fallen, where targets are classes. A step then takes three to four times as long
            (:mod:`earmark.schemes.sparring`).
        spar_at: Layers where the partner squeezes, beside those that the judge reads; names or
            globs, as for `taps`.

    Raises:
        UsageError: A setting out of range.

    Source:
        Li and Wang 2021 (arXiv 2103.10021) and Li, Yang, Wang and Liew 2022 (SafeAI): the mark as
        a second task. Changed: natural triggers instead of QR codes, joint training inside the
        task's batches, fixed directions instead of a private head, and a judge that refits
        instead of a submitted head, which anybody can fit to any model afterwards.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> scheme = MtlSign(triggers=256, shards=4, directions=2)
        >>> key = scheme.new_key(ModuleHost(model), inputs=(torch.randn(256, 8),))
        >>> evidence = scheme.measure(ModuleHost(model), key)
        >>> evidence.trials, evidence.access.value
        (224, 'activations')
    """

    name: ClassVar[str] = "mtlsign"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Access]] = frozenset({Access.ACTIVATIONS})
    needs_inputs: ClassVar[bool] = True
    summary: ClassVar[str] = "Hidden features carry random labels of secret natural inputs."

    triggers: int = 1024
    shards: int = 4
    directions: int = 2
    taps: tuple[str, ...] = ()
    deeper: bool = True
    read: tuple[str, ...] = ()
    share: float = 0.125
    weight: float = 0.3
    sharpness: float = 2.0
    settle: float = 20.0
    neighbours: float = 0.0
    spar: float = 0.0
    spar_at: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shards < 1 or not 1 <= self.directions <= self.shards:
            raise UsageError(
                f"{self.shards} shards cannot take turns at {self.directions} directions.",
                expected="At least one direction, and no more than shards.",
            )
        if self.triggers < _LEAST * self.shards:
            raise UsageError(
                f"{self.triggers} triggers are too few for {self.shards} shards.",
                expected=f"At least {_LEAST} triggers a shard.",
            )
        others = {"settle": self.settle, "neighbours": self.neighbours, "spar": self.spar}
        positive = self.weight > 0 and self.sharpness > 0 and all(w >= 0 for w in others.values())
        if not 0 < self.share <= 0.5 or not positive:
            raise UsageError(
                f"Share {self.share}, weight {self.weight}, sharpness {self.sharpness}, "
                + ", ".join(f"{name} {value}" for name, value in others.items())
                + ".",
                expected="A share above 0 and up to 0.5; weight and sharpness above 0; "
                "settle, neighbours and spar 0 or more.",
            )
        object.__setattr__(self, "taps", tuple(self.taps))
        object.__setattr__(self, "read", tuple(self.read))
        object.__setattr__(self, "spar_at", tuple(self.spar_at))

    def inputs_wanted(self) -> int:
        """Return four times as many candidates as triggers."""
        return 4 * self.triggers

    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key: choose triggers among the inputs, far from one another, before any label.

        Args:
            host: The model to be marked, trained or not.
            inputs: Candidates, a batch as the task gives it, targets included; some four times
                as many as triggers are a good choice. They are kept in the key and should be kept
                from others.
            secret: 32 bytes, or null to draw them.

        Raises:
            CapacityError: Too few inputs for so many shards.
            CarrierError: A tap matches nothing.
            UsageError: There are no inputs.
        """
        candidates = self.need_inputs(inputs)
        marked = self._names(host)
        names = tuple(dict.fromkeys(marked + self._deeper(marked)))
        count = batches.size(candidates)
        each = min(self.triggers, count) // self.shards
        if each < _LEAST:
            raise CapacityError(
                f"{count} inputs make {each} triggers for each of {self.shards} shards.",
                expected=f"At least {_LEAST} for each, {_LEAST * self.shards} in all.",
                hint="Give more inputs, or use fewer shards.",
            )
        features = host.features(candidates, marked)
        chosen = far_apart(np.concatenate(list(features.values()), axis=1), each * self.shards)
        kept = batches.transform(
            batches.take(candidates, torch.as_tensor(chosen)),
            lambda tensor: tensor.detach().cpu().clone(),
        )
        digests = batches.sample_digests(kept)
        layout = Layout(
            self.name,
            self.version,
            names,
            each * self.shards,
            self.shards,
            {
                "blocks": refit.BLOCKS,
                "directions": self.directions,
                "marked": len(marked),
                "inputs": [_digest(digests[each * i : each * (i + 1)]) for i in range(self.shards)],
            },
            _digest(digests),
        )
        return Key.generate(layout, secret=secret, inputs=kept)

    def settled_at(self, host: Host) -> dict[str, float]:
        """Return the layers where a network is settled that a mark is to be concealed in.

        The factors are what :func:`earmark.schemes.settling.train_settled` takes.

        Raises:
            CarrierError: A tap matches nothing.
            AccessError: The host is no torch module.
        """
        marked = self._names(host)
        return settled_at(marked, tuple(dict.fromkeys(marked + self._deeper(marked))))

    def _names(self, host: Host) -> tuple[str, ...]:
        if not isinstance(host, ModuleHost):
            raise AccessError(
                "MTL-Sign marks torch modules; this host is none.",
                hint="Wrap the model:  earmark.hosts.module.ModuleHost(model)",
            )
        return _chosen(host.model, self.taps) if self.taps else taps.last_features(host.model)

    def _deeper(self, marked: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            name + taps.INPUT for name in marked if self.deeper and not name.endswith(taps.INPUT)
        )

    @contextmanager
    def attach(
        self, model: nn.Module, key: Key, *, forward: Forward = plain_forward
    ) -> Iterator[RidingMark]:
        """Attach the mark to a model for the time of a `with` block.

        Raises:
            KeyLayoutError: The key was made for another scheme, or comes without its inputs.
            CarrierError: The model lacks the key's taps.
            UsageError: There are to be neighbours, and the inputs are not of a kind that has any.
        """
        self.check_key(key)
        inputs = _inputs_of(key)
        read = key.layout.carrier if self.settle or self.spar else marked_of(key.layout)
        if self.spar:
            read = tuple(dict.fromkeys(read + _chosen(model, self.spar_at)))
        with taps.reading(model, read) as seen, answering(model) as answers:
            yield RidingMark(self, model, key, inputs, (seen, answers), forward)

    def measure(
        self, suspect: Host, key: Key | Disclosure, *, nonce: str | None = None
    ) -> Evidence:
        """Refit and count on a suspect; raises as :meth:`earmark.schemes.base.Scheme.measure`.

        The suspect is read at the key's taps, or at this scheme's `read`, if it names some: then
        the caller charges the choices that were tried.

        Raises:
            KeyFileError: Revealed shards or inputs are not those that were committed.
        """
        self.check_key(key)
        suspect.require(Access.ACTIVATIONS, by=self.name)
        inputs = _inputs_of(key)
        shards = key.shards
        _check_inputs(key, shards, inputs)
        found = suspect.features(inputs, self.read or key.layout.carrier)
        digest = suspect.digest()
        nonce = nonce or hashlib.sha256(f"{digest}{key.layout.digest()}".encode()).hexdigest()
        total, details = tally(key.layout, shards, found, (nonce, digest))
        return Evidence.of(
            self.name,
            hits=int(total.hits[0]),
            trials=total.trials,
            layout=key.layout.digest(),
            suspect=digest,
            access=Access.ACTIVATIONS,
            tried=tried(key),
            nonce=nonce,
            shards=tuple(shard.index for shard in shards),
            queries=batches.size(inputs),
            weights=total.weights,
            score=int(total.score[0]),
            details=details,
        )


def far_apart(points: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Choose points far from one another: each next one is the farthest from all before it.

    Args:
        points: (candidates, width); standardized here.
        count: Number of points to choose.

    Returns:
        Indices, in the order chosen, beginning with the point nearest to the mean.

    Source:
        Gonzalez 1985, the greedy rule for k centers.
    """
    cloud = refit.spread(points).astype(np.float32)
    square = (cloud**2).sum(axis=1)
    chosen = np.empty(count, dtype=np.int64)
    far = np.full(len(cloud), np.inf, dtype=np.float32)
    at = int(square.argmin())
    for i in range(count):
        chosen[i] = at
        far = np.minimum(far, square - 2 * (cloud @ cloud[at]) + square[at])
        far[at] = -np.inf
        at = int(far.argmax())
    return chosen


def _chosen(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that names or globs, with ``:in`` or without, stand for."""
    known = [name for name, _ in model.named_modules()]
    found: dict[str, None] = {}
    for pattern in patterns:
        stem = pattern.removesuffix(taps.INPUT)
        for name in taps.choose(known, [stem], what="tap"):
            found[name + pattern[len(stem) :]] = None
    return tuple(found)


def _digest(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _inputs_of(key: Key | Disclosure) -> Tree:
    if key.inputs is None:
        raise KeyLayoutError(
            "This MTL-Sign key comes without its inputs.",
            hint="Load them beside the key; the vault keeps them under inputs/.",
        )
    return key.inputs


def _check_inputs(key: Key | Disclosure, shards: Sequence[Shard], inputs: Tree) -> None:
    """Refuse inputs that were not committed."""
    each = key.layout.message_bits // key.layout.shards
    digests = batches.sample_digests(inputs)
    committed = key.layout.params["inputs"]
    assert isinstance(committed, (list, tuple))
    if len(digests) != each * len(shards):
        raise KeyFileError(
            f"{len(digests)} inputs came with {len(shards)} shards.",
            expected=f"{each} inputs a shard, in the order of the shards.",
        )
    for i, shard in enumerate(shards):
        if _digest(digests[each * i : each * (i + 1)]) != committed[shard.index]:
            raise KeyFileError(
                f"The inputs of shard {shard.index} are not those that were committed.",
                hint="Give the inputs that were stored with the key.",
            )


def tally(
    layout: Layout,
    shards: Sequence[Shard],
    features: Mapping[str, NDArray[np.float64]],
    salt: tuple[str, str],
) -> tuple[refit.Tally, dict[str, Any]]:  # Any: JSON values
    """Refit each direction on its own shards and add up."""
    each = layout.message_bits // layout.shards
    directions, blocks = layout.params["directions"], layout.params["blocks"]
    assert isinstance(directions, int)
    assert isinstance(blocks, int)
    parts: list[refit.Tally] = []
    counts: dict[str, list[int]] = {}
    for direction in range(directions):
        places = [i for i, shard in enumerate(shards) if shard.index % directions == direction]
        if not places:
            continue
        rows = np.concatenate([np.arange(each * i, each * (i + 1)) for i in places])
        signs = np.array([sign for i in places for sign in labels_of(shards[i], each)], float)
        order = public_stream(
            f"mtlsign/order/{direction}",
            *(bytes.fromhex(item) for item in salt),
            bytes.fromhex(layout.digest()),
        ).permutation(len(rows))
        part = refit.tally(
            {name: value[rows] for name, value in features.items()},
            signs[:, None],
            order,
            blocks=blocks,
        )
        parts.append(part)
        counts[str(direction)] = [int(part.hits[0]), part.trials]
    total = sum(parts[1:], parts[0])
    read = {name: total.taps.count(name) for name in features}
    return total, {
        "close guesses": int(total.close[0]),
        "hits and trials by direction": counts,
        "blocks read by tap": read,
    }
