"""DeepSigns, black-box: inputs whose answers the owner has drawn.

The key holds samples of the task's own data under a fine keyed grain. They are fixed and committed
first; only then are their answers drawn, uniformly, from the key's stream (bound to a later ledger
value, if the key is bound to one). The mark teaches the model those answers. Against any suspect
that was made without the key the hits are exactly Binomial(n, 1 / classes), whatever it answers,
because nothing is selected once the answers are known.

In a training loop of your own::

    scheme, host = DeepSignsBlackBox(), ModuleHost(model)
    key = scheme.new_key(host, inputs=some_inputs)
    with scheme.attach(model, key) as mark:
        ...  # loss = task_loss + mark.loss()
    evidence = scheme.measure(EndpointHost(adapter), key)

The published procedure, with its filter and its threshold, is in
:mod:`earmark.schemes.deepsigns_blackbox_paper`.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from earmark import codec
from earmark.errors import CapacityError, KeyFileError, UsageError
from earmark.hosts import batches
from earmark.hosts.access import Host
from earmark.hosts.batches import Tree
from earmark.hosts.labels import need_classes
from earmark.hosts.module import Forward, plain_forward
from earmark.keys.secret import Disclosure, Key, tried
from earmark.keys.stream import KeyStream, public_stream
from earmark.records import Access, Evidence, Layout
from earmark.schemes import groups
from earmark.schemes.base import Mark, Scheme
from earmark.schemes.groups import blended
from earmark.stats import BettingEValue, log2_binomial_tail

_MOST_NAMES = 16  # of more the number of orders would not fit a record


@dataclass(frozen=True)
class DeepSignsBlackBox(Scheme):
    """Inputs with drawn answers, measured through labels alone.

    Args:
        count: Inputs of the key.
        classes: Number of classes; 0 reads it off the host.
        blend: Share of a second sample in each input: 0 takes natural samples as they are.
        grain: Size of the random grain on each input, relative to the samples' spread; token codes
            get none.
        smooth: Pixels over which the grain of images is smoothed, so that it is no rougher than
            they are; 0 leaves every pixel its own.
        contrast: Share of their own contrast that images keep under the grain, so that they are
            not farther from the data than data are; 1 keeps all.
        weight: Weight of the mark's term.
        margin: Lead in scores that the drawn answer is to have.
        noise: Size of random changes to the weights while the answers are taught, relative to
            each tensor's spread.
        every: Apply the term in every so-manieth step only, to save time.
        portion: Inputs taught in one such step, in turn.
        share: Share of the key's inputs in the statistics by which batch norms see them; the rest
            is the task's batch.
        shards: Shards of the key.
        step: Inputs asked between two looks at the evidence.
        stop_bits: Stop asking once the evidence, net of every look at it, reaches so many bits;
            0 asks all.
        plain: Teach by plain cross-entropy instead of a margin.
        names: The classes' names in the model's order, where services may answer in words. They
            are fixed by the key then; else their order, which whoever asks could choose to suit
            his claim, is charged.

    Raises:
        UsageError: A setting out of range.

    Source:
        Rouhani, Chen and Koushanfar 2019 (ASPLOS), the output layer. Changed: the inputs are
        data under grain instead of noise; the answers are drawn after the inputs are committed
        and none is dropped afterwards, so that the law of the hits is exact; answers are taught
        with a margin and, if wished, under weight noise in the manner of Bansal et al. 2022.

    Example:
        >>> from earmark.bench.zoo import tiny_hosts
        >>> from earmark.hosts.module import ModuleHost
        >>> model, inputs = tiny_hosts()["mlp"]
        >>> scheme = DeepSignsBlackBox(count=40)
        >>> evidence = scheme.measure(
        ...     ModuleHost(model), scheme.new_key(ModuleHost(model), inputs=inputs)
        ... )
        >>> evidence.trials, evidence.chance
        (40, Fraction(1, 10))
    """

    name: ClassVar[str] = "deepsigns-blackbox"
    needs: ClassVar[frozenset[Access]] = frozenset({Access.LABELS})
    needs_inputs: ClassVar[bool] = True
    summary: ClassVar[str] = "Inputs with drawn answers; a service's labels suffice (black-box)."

    count: int = 100
    classes: int = 0
    blend: float = 0.0
    grain: float = 0.7
    smooth: float = 1.0
    contrast: float = 0.5
    weight: float = 0.25
    margin: float = 4.0
    noise: float = 0.0
    every: int = 4
    portion: int = 25
    share: float = 0.2
    shards: int = 4
    step: int = 10
    stop_bits: float = 0.0
    plain: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("count", "every", "portion", "shards", "step"):
            if getattr(self, name) < 1:
                raise UsageError(f"Setting {name} is {getattr(self, name)}; at least 1.")
        if self.count % self.shards:
            raise UsageError(f"{self.count} inputs do not fall into {self.shards} equal shards.")
        if not 0 <= self.blend <= 0.5 or self.noise < 0 or self.grain < 0 or not self.weight > 0:
            raise UsageError("Settings blend (0 to 0.5), grain, noise or weight are out of range.")
        if not 0 < self.contrast <= 1 or self.smooth < 0 or not 0 <= self.share <= 1:
            raise UsageError("Settings contrast (above 0, to 1), smooth or share are out of range.")
        if self.classes == 1 or self.classes < 0:
            raise UsageError(f"{self.classes} classes leave nothing to answer.")
        object.__setattr__(self, "names", tuple(self.names))
        if len(set(self.names)) != len(self.names):
            raise UsageError(
                f"Names {list(self.names)} occur twice.", expected="One name for each class."
            )

    def inputs_wanted(self) -> int:
        """Return as many candidates as inputs; twice as many if two are blended into one."""
        return self.count * (2 if self.blend else 1)

    def new_key(
        self, host: Host, *, inputs: Tree | None = None, secret: bytes | None = None
    ) -> Key:
        """Make a key; see :meth:`earmark.schemes.base.Scheme.new_key`. Labels are not used."""
        given, _ = groups.split_labels(self.need_inputs(inputs))
        secret = secrets.token_bytes(32) if secret is None else secret
        classes = self.classes or len(self.names) or _classes(host, given)
        if self.names and len(self.names) != classes:
            raise UsageError(f"{len(self.names)} names for {classes} classes.", expected="As many.")
        kept = self.compose(given, KeyStream(secret, f"{self.name}/inputs"))
        digests = batches.sample_digests(kept)
        each = len(digests) // self.shards
        layout = Layout(
            self.name,
            self.version,
            ("labels",),
            len(digests),
            self.shards,
            {
                "classes": classes,
                "inputs": [_digest(digests[each * i : each * (i + 1)]) for i in range(self.shards)],
                **({"names": names_digest(self.names)} if self.names else {}),
            },
            batches.tree_digest(kept),
        )
        return Key.generate(layout, secret=secret, inputs=kept)

    def compose(self, given: Tree, stream: KeyStream) -> Tree:
        """Make the key's inputs from samples, before any answer is known.

        Args:
            given: Samples of the task's own kind.
            stream: Keyed randomness.

        Raises:
            CapacityError: Too few samples.
        """
        wanted = self.inputs_wanted()
        held = batches.size(given)
        if held < wanted:
            raise CapacityError(
                f"{self.count} inputs of the key are made from {wanted} samples; {held} came.",
                hint=f"Give more samples, or set count to {held * self.count // wanted}.",
            )
        order = stream.sample(wanted, held)
        kept = batches.take(given, order[: self.count])
        if self.blend:
            kept = blended(kept, batches.take(given, order[self.count :]), self.blend)
        if not self.grain:
            return kept
        return grained(kept, self.grain, stream, smooth=self.smooth, contrast=self.contrast)

    def answers(self, key: Key | Disclosure) -> NDArray[np.int64]:
        """Return the answers that the key's inputs are to get, one draw for each, in order."""
        return drawn(key)

    def attach(
        self, model: nn.Module, key: Key, *, forward: Forward = plain_forward
    ) -> AbstractContextManager[AnswerMark]:
        """Attach the mark; see :meth:`earmark.schemes.base.Scheme.attach`."""
        self.check_key(key)
        answers = torch.from_numpy(self.answers(key))
        inputs = checked_inputs(key)

        @contextmanager
        def attached() -> Iterator[AnswerMark]:
            seed = key.child("deepsigns-blackbox/noise").shard(0).stream("seed").integer(1 << 62)
            mark = AnswerMark(model, inputs, answers, self, forward, seed)
            with mark.norms.watching():
                yield mark

        return attached()

    def measure(
        self, suspect: Host, key: Key | Disclosure, *, nonce: str | None = None
    ) -> Evidence:
        """Ask a suspect for the labels of the key's inputs and count the drawn ones.

        The nonce orders the questions. A suspect with a query budget is asked no more than that.
        With `stop_bits`, every look that any budget allows is charged, so stopping early, and going
        on with a larger budget, costs a few bits and no honesty. Where a suspect answers in words
        whose order the key does not fix, every order of them is charged.

        Raises:
            NetworkError: A remote suspect did not answer.
            UsageError: The budget does not reach the first look, or the words that the suspect
                answers in are not the key's, or too many to charge their order.
        """
        self.check_key(key)
        suspect.require(Access.LABELS, by=self.name)
        inputs, answers = checked_inputs(key), self.answers(key)
        chance = Fraction(1, int(key.layout.params["classes"]))  # type: ignore[arg-type]
        order = _order(key, nonce, len(answers))
        allowed = self._allowed(len(order), getattr(suspect, "budget", None))
        betting, strange = BettingEValue(chance), 0
        looks = -(-len(order) // self.step) if self.stop_bits else 1
        orders = _orders(key, getattr(suspect, "names", ()))
        size = self.step if self.stop_bits else max(1, allowed)
        for start in range(0, allowed, size):
            part = order[start : min(start + size, allowed)]
            given = suspect.labels(batches.take(inputs, torch.from_numpy(part)))
            betting.add(int((given == answers[part]).sum()), len(part))
            strange += int(((given < 0) | (given >= chance.denominator)).sum())
            tail = log2_binomial_tail(betting.hits, betting.trials, chance)
            if self.stop_bits and -tail - math.log2(looks * orders) >= self.stop_bits:
                break
        return Evidence.of(
            self.name,
            hits=betting.hits,
            trials=betting.trials,
            chance=chance,
            layout=key.layout.digest(),
            suspect=suspect.digest(),
            access=Access.LABELS,
            tried=tried(key, forms=max(1, looks) * orders),
            nonce=nonce,
            shards=tuple(shard.index for shard in key.shards),
            queries=betting.trials,
            details={
                "mismatches": betting.trials - betting.hits,
                "anytime_bits": round(betting.bits(), 3),
                "looks_allowed": looks,
            },
            notes=(
                *("Asked fewer inputs than the key has.",) * (betting.trials < len(order)),
                *(_strange(strange, betting.trials, chance.denominator),) * (strange > 0),
            ),
        )

    def _allowed(self, total: int, budget: int | None) -> int:
        """Return how many questions a budget allows; with `stop_bits`, up to the last look in it.

        Budgets that end between looks would add looks of their own.
        """
        allowed = total if budget is None else min(total, int(budget))
        if not self.stop_bits or allowed == total:
            return allowed
        if allowed < self.step:
            raise UsageError(
                f"A budget of {allowed} questions ends before the first look at the evidence.",
                expected=f"At least {self.step}.",
            )
        return allowed - allowed % self.step


def _strange(count: int, trials: int, classes: int) -> str:
    return (
        f"{count:,} of {trials:,} answers are none of the {classes:,} classes, numbered from 0: "
        "they count as wrong. Is the suspect asked and read in the right way?"
    )


def grained(
    inputs: Tree, size: float, stream: KeyStream, *, smooth: float = 0.0, contrast: float = 1.0
) -> Tree:
    """Add keyed grain to numbers, within the range that they have already; codes stay.

    Args:
        inputs: A batch.
        size: Standard deviation of the grain, relative to that of each tensor.
        stream: Keyed randomness.
        smooth: Pixels (sigma) over which the grain of images is smoothed.
        contrast: Share of their own contrast that images keep.
    """

    def grain(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        raw = np.frombuffer(stream.bytes(tensor.numel()), np.uint8).astype(np.float32)
        even = ((raw - 127.5) / 127.5 * 3**0.5).reshape(tensor.shape)
        kept = tensor
        if tensor.ndim == 4:
            middle = tensor.mean(dim=(1, 2, 3), keepdim=True)
            kept = middle + contrast * (tensor - middle)
            even = _smoothed(even, smooth)
        made = kept + torch.from_numpy(even).to(tensor.dtype) * float(tensor.std()) * size
        return made.clamp(float(tensor.min()), float(tensor.max()))

    return batches.transform(inputs, grain)


def _smoothed(even: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Smooth along the last two axes, and bring the spread back to one."""
    from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

    if not sigma:
        return even
    found: NDArray[np.float32] = gaussian_filter(even, (0, 0, sigma, sigma), truncate=3.0)
    found /= found.std()
    return found


def names_digest(names: Sequence[str]) -> str:
    """Return what a layout keeps of classes' names, in their order."""
    return codec.digest(codec.canonical(list(names)))


def _orders(key: Key | Disclosure, names: Sequence[str]) -> int:
    """Return in how many orders the suspect's words could have been named: 1 if the key fixes it.

    Raises:
        UsageError: The key fixes other names, or there are too many to charge.
    """
    fixed = key.layout.params.get("names")
    if not names:
        return 1
    if fixed is None and len(names) <= _MOST_NAMES:
        return math.factorial(len(names))
    if fixed is None:
        raise UsageError(
            f"{len(names)} names have too many orders to charge for the choice.",
            expected=f"At most {_MOST_NAMES} names, or names that the key fixes.",
            hint='Make the key with the classes\' names:  --set \'names=["cat", "dog"]\'',
        )
    if fixed != names_digest(names):
        raise UsageError(
            "The adapter's names are not those that the key was made with, or in another order.",
            hint="Give the names as they were when the key was made.",
        )
    return 1


def _classes(host: Host, inputs: Tree) -> int:
    """Return the number of a host's classes, read from its scores."""
    if Access.SCORES not in host.access:
        raise UsageError("This host shows no scores.", hint="Set the number of classes.")
    found = host.scores(batches.take(inputs, [0, 1]))
    need_classes(found.shape)
    return int(found.shape[1])


def _digest(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _order(key: Key | Disclosure, nonce: str | None, count: int) -> NDArray[np.int64]:
    """Return the order in which inputs are asked: by the nonce, or as they stand."""
    if nonce is None:
        return np.arange(count)
    stream = public_stream(
        "deepsigns-blackbox/order", bytes.fromhex(nonce), bytes.fromhex(key.layout.digest())
    )
    return np.array(stream.permutation(count))


def drawn(key: Key | Disclosure) -> NDArray[np.int64]:
    """Return the drawn answers of all shards at hand, in order: one draw for each input."""
    classes = int(key.layout.params["classes"])  # type: ignore[arg-type]
    each = key.layout.message_bits // key.layout.shards
    labels = [shard.stream("labels").integers(each, classes) for shard in key.shards]
    return np.array(labels, dtype=np.int64).ravel()


def checked_inputs(key: Key | Disclosure) -> Tree:
    """Return the inputs of the shards at hand if they are those that the layout fixes.

    Raises:
        UsageError: There are none.
        KeyFileError: They are others.
    """
    if key.inputs is None:
        raise UsageError(
            "The key's inputs are missing.", hint="Load them from where the key was made."
        )
    each = key.layout.message_bits // key.layout.shards
    digests = batches.sample_digests(key.inputs)
    committed: Any = key.layout.params["inputs"]  # Any: JSON
    good = len(digests) == each * len(key.shards) and all(
        _digest(digests[each * i : each * (i + 1)]) == committed[shard.index]
        for i, shard in enumerate(key.shards)
    )
    if not good:
        raise KeyFileError(
            "The inputs are not those that the key's layout fixes.",
            hint="Give the inputs that were stored with the key, in the order of the shards.",
        )
    return key.inputs


class _Run(nn.Module):
    """A model with the way to run it, so that its weights can be replaced for one pass."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, batch: Tree) -> Any:  # Any: the model's output
        """Run the model."""
        return self._forward(self.model, batch)


class AnswerMark(Mark):
    """The mark while it is embedded.

    Args:
        model: The model.
        inputs: Inputs of the key.
        answers: Their drawn answers.
        scheme: Settings of the loss.
        forward: How to run the model.
        seed: Seed of the weight noise.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tree,
        answers: Tensor,
        scheme: DeepSignsBlackBox,
        forward: Forward,
        seed: int,
    ) -> None:
        self.model, self.inputs, self.answers = model, inputs, answers
        self.classes = int(answers.max()) + 1
        self.scheme, self.seed = scheme, seed
        self.run = _Run(model, forward)
        self.step = 0
        self.norms = groups.TaskNorms(model, scheme.share, self.due)

    def due(self) -> bool:
        """Return whether the next step teaches inputs."""
        return self.step % self.scheme.every == 0

    def loss(self) -> Tensor:
        """Return the weighted mean of softplus(margin - lead); zero in the steps skipped."""
        due, device = self.due(), next(self.model.parameters()).device
        chosen = self._portion()
        self.step += 1
        if not due:
            return torch.zeros((), device=device)
        taken = batches.take(self.inputs, chosen)
        inputs = batches.transform(taken, lambda tensor: tensor.to(device))
        answers = self.answers[chosen].to(device)
        with self.norms.showing():
            output = torch.func.functional_call(self.run, self._noisy(), (inputs,))
        scores = getattr(output, "logits", output).float()
        need_classes(scores.shape, self.classes)
        own = scores.gather(1, answers[:, None])[:, 0]
        rival = scores.scatter(1, answers[:, None], -torch.inf).amax(dim=1)
        if self.scheme.plain:
            return self.scheme.weight * functional.cross_entropy(scores, answers)
        return self.scheme.weight * functional.softplus(self.scheme.margin - own + rival).mean()

    def _portion(self) -> Tensor:
        """Return the places of the inputs whose turn it is."""
        total = len(self.answers)
        size = min(self.scheme.portion, total)
        return (self.step // self.scheme.every * size + torch.arange(size)) % total

    def _noisy(self) -> dict[str, Tensor]:
        """Return the weights with noise in proportion to each tensor's spread."""
        if not self.scheme.noise:
            return {}
        generator = torch.Generator().manual_seed((self.seed + self.step) % (1 << 63))
        made = {}
        for name, weights in self.model.named_parameters():
            if weights.ndim > 1 and weights.is_floating_point():
                raw = torch.randn(weights.shape, generator=generator).to(weights)
                made[f"model.{name}"] = weights + raw * self.scheme.noise * weights.detach().std()
        return made

    def state_dict(self) -> Mapping[str, Any]:  # Any: plain values
        """Return the number of steps made."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Go on from that step."""
        self.step = int(state["step"])
