"""DeepSigns, white-box: bits in the means of hidden activations.

The key holds inputs in groups (one group a class), a neutral reference set, and for every bit a
secret sign vector as wide as a tapped layer. The mean activation of a group, taken relative to the
reference set, is pushed to that side of the sign vector's hyperplane that the bit names, with a
margin. Reading computes the same means on a suspect and counts the sides that agree. The bits are
uniform and belong to no model, so against any suspect made without the key the hits are exactly
Binomial(n, 1/2), however its activations look.

Five lines in a training loop of your own::

    scheme, host = DeepSigns(bits=256), ModuleHost(model)
    key = scheme.new_key(host, inputs=(some_inputs, their_labels))
    with scheme.attach(model, key) as mark:
        ...  # loss = task_loss + mark.loss()
    error_rate = scheme.bit_error_rate(scheme.measure(ModuleHost(model), key))

The published scheme is :class:`earmark.schemes.deepsigns_paper.DeepSignsPaper`; the one that asks a
service for labels only is :class:`earmark.schemes.deepsigns_blackbox.DeepSignsBlackBox`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earmark.codec import Json
from earmark.errors import CapacityError, CarrierError, UsageError
from earmark.hosts import batches, taps
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.hosts.module import Forward, ModuleHost, plain_forward
from earmark.keys.codes import Code, Decoded
from earmark.keys.secret import Disclosure, Key, Shard, tried
from earmark.keys.stream import KeyStream
from earmark.records import Access, Evidence, Layout
from earmark.schemes import groups
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.deepsigns_units import AlignedHost
from earmark.schemes.groups import quiet
from earmark.stats import log2_binomial_tail

MARKED = 20.0
"""Bits that a reference may show; beyond, it bears the mark, and suspects are not aligned to it."""

_LEVELS = 16  # steps of the soft reading's weights

_MATCHED = (
    "Units were matched to a reference that does not bear the mark. The chance is exact if that "
    "model was fixed before the key's beacon."
)


@dataclass(frozen=True)
class DeepSigns(Scheme):
    """Bits in the means of hidden activations, robust form.

    Args:
        taps: Layers that bear the mark, as globs; by default the two deepest before the head.
        bits: Bits in all, spread over layers in proportion to their widths and over groups.
        groups: Groups of inputs; 0 takes as many as the labels have, or 8 without labels.
        per_group: Inputs of a group.
        references: Inputs of the neutral reference set.
        margin: Distance from the hyperplane, in standard deviations of an unmarked model's.
        weight: Weight of the mark's term.
        every: Apply the term in every so-manieth step only, to save time.
        shards: Shards of the key.
        payload: Bytes that the mark also carries, hexadecimal, protected by a code; may be empty.

    Raises:
        UsageError: A setting out of range.

    Source:
        Rouhani, Chen and Koushanfar 2019 (ASPLOS), sections on the intermediate layers. Changed:
        the loss acts on the activations of the key's own inputs instead of on trained centers;
        means are centered on a neutral set and standardized by unit, so that scaling a unit is
        undone; a hinge with a margin replaces the cross-entropy; bits are spread over all groups.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts
        >>> model, inputs = tiny_hosts()["mlp"]
        >>> scheme = DeepSigns(bits=64)
        >>> key = scheme.new_key(ModuleHost(model), inputs=inputs)
        >>> scheme.measure(ModuleHost(model), key).trials
        64
    """

    name: ClassVar[str] = "deepsigns"
    needs: ClassVar[frozenset[Access]] = frozenset({Access.ACTIVATIONS})
    needs_inputs: ClassVar[bool] = True
    summary: ClassVar[str] = "Bits in the means of hidden activations (white-box)."

    taps: tuple[str, ...] = ()
    bits: int = 256
    groups: int = 0
    per_group: int = 6
    references: int = 64
    margin: float = 1.5
    weight: float = 1.0
    every: int = 16
    shards: int = 4
    payload: str = ""

    def __post_init__(self) -> None:
        for name in ("bits", "per_group", "every", "shards"):
            if getattr(self, name) < 1:
                raise UsageError(f"Setting {name} is {getattr(self, name)}; at least 1.")
        if self.references < 2 or not self.margin > 0 or not self.weight > 0:
            raise UsageError("Settings references (2), margin and weight (above 0) are too small.")
        if self.bits < self.shards:
            raise UsageError(f"{self.shards} shards do not fit {self.bits} bits.")

    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key; see :meth:`earmark.schemes.base.Scheme.new_key`."""
        given = self.need_inputs(inputs)
        secret = secrets.token_bytes(32) if secret is None else secret
        names = self._names(host)
        chosen = groups.choose(
            given,
            host,
            names[-1],
            KeyStream(secret, "deepsigns/inputs"),
            count=self.groups,
            size=self.per_group,
            references=self.references,
        )
        codeword(self.payload, self.bits)
        features = host.features(batches.take(chosen.inputs, [0, 1]), names)
        widths: list[Json] = [int(features[name].shape[1]) for name in names]
        self._check_capacity(names, widths, chosen.count)
        held = {"inputs": chosen.inputs, "group": chosen.group}
        layout = Layout(
            self.name,
            self.version,
            names,
            self.bits,
            self.shards,
            {"groups": chosen.count, "widths": widths, "payload": self.payload},
            batches.tree_digest(held),
        )
        return Key.generate(layout, secret=secret, inputs=held)

    def _names(self, host: Host) -> tuple[str, ...]:
        if not isinstance(host, ModuleHost):
            raise UsageError("A new key needs a host with layers, such as ModuleHost(model).")
        if not self.taps:
            return taps.default_taps(host.model, most=4)[-2:]
        modules = [name for name, _ in host.model.named_modules()]
        return taps.choose(modules, self.taps, what="tap")

    def _check_capacity(self, names: Sequence[str], widths: Sequence[Json], count: int) -> None:
        """Refuse more bits than the groups' means can hold at this margin."""
        room = sum(width for width in widths if isinstance(width, int)) * count
        most = int(0.8 * room / self.margin**2)
        if self.bits > most:
            fits = (0.8 * room / self.bits) ** 0.5
            need = self.bits * self.margin**2
            raise CapacityError(
                f"{self.bits} bits at a margin of {self.margin:g} need {need:.0f} dimensions; "
                f"{', '.join(names)} with {count} groups have {0.8 * room:.0f}.",
                hint=f"Ask for at most {most} bits or a margin of {fits:.2f}, or tap wider layers.",
            )

    def attach(
        self, model: nn.Module, key: Key, *, forward: Forward = plain_forward
    ) -> AbstractContextManager[ActivationMark]:
        """Attach the mark; see :meth:`earmark.schemes.base.Scheme.attach`."""
        self.check_key(key)
        plan = Plan.of(key)
        for name in plan.names:
            taps.layer(model, name)

        @contextmanager
        def attached() -> Iterator[ActivationMark]:
            yield ActivationMark(model, plan, self, forward)

        return attached()

    def measure(
        self, suspect: Host, key: Key | Disclosure, *, nonce: str | None = None
    ) -> Evidence:
        """Count the bits that a suspect's activations show, unit by unit as they stand.

        A suspect whose units were reordered, rescaled in sign or joined by dummies goes through
        :meth:`align` first.
        """
        self.check_key(key)
        suspect.require(Access.ACTIVATIONS, by=self.name)
        plan = Plan.of(key)
        features = suspect.features(plan.inputs, plan.names)
        for name, width in zip(plan.names, plan.widths, strict=True):
            if features[name].shape[1] != width:
                raise CarrierError(
                    f"Layer '{name}' has {features[name].shape[1]} units; the key's had {width}.",
                    hint="Match it to the model before it was marked:  scheme.align(...)",
                )
        z = plan.read(features)
        return self._evidence(suspect, key, plan, z, nonce)

    def align(self, suspect: Host, reference: Host, key: Key | Disclosure) -> AlignedHost:
        """Return the suspect with its units in a reference's order; two forms are charged.

        The reference is the network as it was before it was marked: before its training, or as it
        was trained without the mark. It knows no bit, so that the chance stays exact for every
        suspect. Matched to the release, innocent suspects are bent towards the mark; so a reference
        that bears it is refused.

        Args:
            suspect: The model under test; it may be wider or narrower.
            reference: The model before it was marked
                (:func:`earmark.schemes.embedding.starting_model`, where it was marked from
                scratch).
            key: The key, or the part of it that a claim reveals.

        Raises:
            AccessError: A host grants too little.
            CarrierError: The reference does not fit the key.
            UsageError: The reference bears the mark.
        """
        self.check_key(key)
        for host in (suspect, reference):
            host.require(Access.ACTIVATIONS, by=self.name)
        own = self.measure(reference, key)
        if -log2_binomial_tail(own.hits, own.trials, own.chance) > MARKED:
            raise UsageError(
                f"The reference shows {own.hits} of the key's {own.trials} bits: it bears the mark "
                "itself, and innocent suspects that are matched to it would look guilty.",
                hint="Give the weights as they were before they were marked or trained; protect "
                "keeps them in the vault, under starts/.",
            )
        return AlignedHost(suspect, reference, Plan.of(key))

    def _evidence(
        self,
        suspect: Host,
        key: Key | Disclosure,
        plan: Plan,
        z: NDArray[np.float64],
        nonce: str | None,
    ) -> Evidence:
        right = z * plan.signs
        hits = right > 0
        weights = np.clip(np.rint(np.abs(np.nan_to_num(z, nan=0.0)) * _LEVELS / 4), 0, _LEVELS)
        score = int((weights * np.where(hits, 1, -1)).sum())
        by_tap = {
            name: [int(hits[plan.tap == i].sum()), int((plan.tap == i).sum())]
            for i, name in enumerate(plan.names)
        }
        return Evidence.of(
            self.name,
            hits=int(hits.sum()),
            trials=len(hits),
            layout=key.layout.digest(),
            suspect=suspect.digest(),
            access=Access.ACTIVATIONS,
            tried=tried(key, forms=getattr(suspect, "forms", 1)),
            nonce=nonce,
            shards=tuple(shard.index for shard in key.shards),
            queries=batches.size(plan.inputs),
            notes=(_MATCHED,) if isinstance(suspect, AlignedHost) else (),
            weights=tuple(sorted(int(weight) for weight in weights)) if weights.any() else (),
            score=score if weights.any() else None,
            details={
                "bit_error_rate": round(1 - float(hits.mean()), 6),
                "least_margin": round(float(np.nan_to_num(right, nan=-9.0).min()), 4),
                "mean_margin": round(float(np.nan_to_num(right).mean()), 4),
                "taps": {name: list(pair) for name, pair in by_tap.items()},
            },
        )

    def bit_error_rate(self, evidence: Evidence) -> float:
        """Return the share of wrong bits, as the paper reports it."""
        return 1 - evidence.hits / evidence.trials

    def read_payload(self, suspect: Host, key: Key | Disclosure) -> Decoded:
        """Decode the payload that a suspect carries.

        Args:
            suspect: The model under test.
            key: The key; only the length of its payload is used.

        Raises:
            UsageError: The key has no payload.
        """
        self.check_key(key)
        stated = str(key.layout.params.get("payload", ""))
        if not stated:
            raise UsageError("This key carries no payload.", hint="Make one with payload='...'.")
        plan = Plan.of(key, coded=False)
        features = suspect.features(plan.inputs, plan.names)
        z = np.nan_to_num(plan.read(features) * plan.signs)
        strengths = [0] * key.layout.message_bits
        for position, value in zip(plan.position, z, strict=True):
            strengths[position] = round(1000 * float(value))
        return Code.best(4 * len(stated), key.layout.message_bits).decode_soft(strengths)


def codeword(payload: str, bits: int) -> NDArray[np.int8]:
    """Return the payload's codeword as signs; all +1 for an empty payload.

    Raises:
        UsageError: The payload is not hexadecimal.
        CapacityError: It does not fit.
    """
    if not payload:
        return np.ones(bits, np.int8)
    try:
        data = bytes.fromhex(payload)
    except ValueError as error:
        raise UsageError(f"Payload {payload!r} is not hexadecimal.") from error
    return np.array([2 * bit - 1 for bit in Code.best(8 * len(data), bits).encode(data)], np.int8)


@dataclass(frozen=True)
class Plan:
    """What a key says about each bit: where it stands, its sign vector and its sign.

    Args:
        names: Tapped layers.
        widths: Their widths in the reference.
        inputs: All inputs of the key.
        group: Group of each input; -1 is the reference set.
        count: Number of groups.
        position: (bits,) each bit's place in the message.
        tap: (bits,) index of each bit's layer.
        cell: (bits,) group of each bit.
        projection: One (bits, width) matrix of signs for each layer, rows of other layers empty;
            bits of different groups share them.
        signs: (bits,) the message.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    inputs: Tree
    group: NDArray[np.int64]
    count: int
    position: NDArray[np.int64]
    tap: NDArray[np.int64]
    cell: NDArray[np.int64]
    projection: tuple[NDArray[np.int8], ...]
    signs: NDArray[np.int8]

    @classmethod
    def of(cls, key: Key | Disclosure, *, coded: bool = True) -> Plan:
        """Derive the plan of all shards that are at hand.

        Args:
            key: The key, or some of its shards.
            coded: Whether the layout's payload is part of the message, as it is in a marked model.

        Raises:
            UsageError: The key's inputs are missing.
            KeyFileError: They are not those that the layout fixes.
        """
        layout = key.layout
        held = groups.checked(key)
        widths = [int(width) for width in layout.params["widths"]]  # type: ignore[union-attr, arg-type]
        count = int(layout.params["groups"])  # type: ignore[arg-type]
        tap, cell = _spread(widths, count, layout.message_bits)
        payload = str(layout.params.get("payload", "")) if coded else ""
        code = codeword(payload, layout.message_bits)
        signs, rows, at = [], [], []
        for shard in key.shards:
            own = np.arange(shard.index, layout.message_bits, layout.shards)
            signs.append(np.array(shard.stream("message").signs(len(own)), np.int8) * code[own])
            rows += _vectors(shard, [widths[tap[i]] for i in own])
            at.append(own)
        order = np.concatenate(at)
        tap, cell = tap[order], cell[order]
        projection = tuple(
            np.array([row for row, own in zip(rows, tap, strict=True) if own == i]).reshape(
                -1, width
            )
            for i, width in enumerate(widths)
        )
        return cls(
            layout.carrier,
            tuple(widths),
            held["inputs"],
            held["group"].numpy(),
            count,
            order,
            tap,
            cell,
            projection,
            np.concatenate(signs),
        )

    def read(self, features: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return each bit's distance from its hyperplane; 0 where a group's mean vanishes."""
        z = np.zeros(len(self.tap))
        neutral = self.group < 0
        for i, name in enumerate(self.names):
            with np.errstate(all="ignore"):
                found = features[name]
                spread = found[neutral].std(axis=0)
                scale = np.where(spread > 1e-9, 1 / np.maximum(spread, 1e-12), 0.0)
                means = np.stack([found[self.group == g].mean(axis=0) for g in range(self.count)])
                means = (means - found[neutral].mean(axis=0)) * scale
                norms = np.linalg.norm(means, axis=1, keepdims=True)
                means = np.where(norms > 0, means / norms, 0.0)
                own = self.tap == i
                z[own] = (self.projection[i] * means[self.cell[own]]).sum(axis=1)
        return z


def _spread(
    widths: Sequence[int], count: int, bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spread bits over layers in proportion to width and round robin over groups."""
    ends = np.rint(np.cumsum(widths) * bits / sum(widths)).astype(np.int64)
    tap = np.searchsorted(ends, np.arange(bits), side="right").astype(np.int64)
    return tap, np.arange(bits, dtype=np.int64) % count


def _vectors(shard: Shard, widths: Sequence[int]) -> list[NDArray[np.int8]]:
    """Return the sign vectors of a shard's bits in order."""
    stream = shard.stream("projection")
    rows = []
    for width in widths:
        raw = np.frombuffer(stream.bytes(-(-width // 8)), np.uint8)
        rows.append((2 * np.unpackbits(raw, count=width).astype(np.int8) - 1).astype(np.int8))
    return rows


class ActivationMark(Mark):
    """The mark while it is embedded.

    Args:
        model: The model.
        plan: What the key says.
        scheme: Settings of the loss.
        forward: How to run the model.
    """

    def __init__(self, model: nn.Module, plan: Plan, scheme: DeepSigns, forward: Forward) -> None:
        self.model, self.plan, self.scheme, self.forward = model, plan, scheme, forward
        self.step = 0
        group = torch.from_numpy(plan.group)
        self._inputs = plan.inputs
        self._neutral = group < 0
        share = (group == torch.arange(plan.count)[:, None]).float()
        self._average = share / share.sum(dim=1, keepdim=True)
        self._cells = [torch.from_numpy(plan.cell[plan.tap == i]) for i in range(len(plan.names))]
        self._rows = [
            torch.from_numpy(plan.projection[i] * plan.signs[plan.tap == i, None]).float()
            for i in range(len(plan.names))
        ]

    def loss(self) -> Tensor:
        """Return the weighted mean squared hinge; zero in the steps that are skipped."""
        due = self.step % self.scheme.every == 0
        self.step += 1
        device = next(self.model.parameters()).device
        if not due:
            return torch.zeros((), device=device)
        with quiet(self.model):
            found = self._features(self._inputs, device)
        total = torch.zeros((), device=device)
        for i, name in enumerate(self.plan.names):
            neutral = found[name][self._neutral]
            spread = neutral.std(dim=0, correction=0)
            scale = torch.where(spread > 1e-9, 1 / spread.clamp(min=1e-12), 0.0)
            means = self._average.to(device) @ found[name]
            means = (means - neutral.mean(dim=0)) * scale
            means = means / means.norm(dim=1, keepdim=True).clamp(min=1e-9)
            z = (self._rows[i].to(device) * means[self._cells[i].to(device)]).sum(dim=1)
            total = total + (self.scheme.margin - z).clamp(min=0).square().sum()
        return self.scheme.weight * total / len(self.plan.signs)

    def _features(self, inputs: Tree, device: torch.device) -> dict[str, Tensor]:
        placed = batches.transform(inputs, lambda tensor: tensor.to(device))
        with taps.reading(self.model, self.plan.names) as seen:
            self.forward(self.model, placed)
        missing = [name for name in self.plan.names if name not in seen]
        if missing:
            raise CarrierError(f"Layer '{missing[0]}' did not run in the forward pass.")
        return {name: seen[name].float() for name in self.plan.names}

    def state_dict(self) -> dict[str, Any]:  # Any: plain values
        """Return the number of steps made."""
        return {"step": self.step}

    def load_state_dict(self, state: Any) -> None:  # Any: what state_dict gave
        """Go on from that step."""
        self.step = int(state["step"])
