"""DSN as published: gradient reversal, entanglement, a corner stamp of a tenth of the width.

For comparing with the literature, not for use: the published stamps have 4 to 9 bits, which can be
tried out, and nothing trains the shipped head on wrong numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.errors import HostError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches, taps
from earmark.locks.base import Lock
from earmark.locks.entry import code_of, inputs_of, layout_of, random_codes, with_inputs
from earmark.records import Layout
from earmark.task import Task
from earmark.training import Recipe, train


class ReverseGradient(torch.autograd.Function):
    """Identity forwards; times -strength backwards.

    Source: Ganin and Lempitsky 2015.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, strength: float) -> Tensor:  # Any: torch's context
        """Pass the inputs on."""
        ctx.strength = strength
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # Any: as above
        """Reverse the gradient."""
        return -ctx.strength * grads[0], None


def soft_nearest_neighbor(features: Tensor, flags: Tensor, temperature: Tensor | float) -> Tensor:
    """Return the soft nearest neighbour loss: small if same flags lie together.

    Args:
        features: (samples, features).
        flags: (samples,), which group each sample belongs to.
        temperature: Scale of squared distances.

    Source:
        Frosst, Papernot and Hinton 2019; equation 7 of Tang, Du and Hu 2023.

    Example:
        >>> apart = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
        >>> soft_nearest_neighbor(apart, torch.tensor([0, 0, 1, 1]), 1.0).item() < 1e-3
        True
    """
    distances = torch.cdist(features, features).square() / temperature
    eye = torch.eye(len(features), dtype=torch.bool, device=features.device)
    near = (-distances).masked_fill(eye, -torch.inf)
    same = near.masked_fill(flags[:, None] != flags[None, :], -torch.inf)
    return (near.logsumexp(1) - same.logsumexp(1)).mean()


@dataclass(frozen=True)
class DsnPaper(Lock):
    """Deep Serial Number as Tang, Du and Hu published it.

    Args:
        side: Side of the stamp in pixels; 0 is a tenth of the width, rounded. The code has
            side * side bits.
        wrong: Reading of the wrong inputs: "raw" (no number only, as in the implementation
            section) or "random" (random numbers too, as in the reliability section).
        epochs: Passes over the training data.
        lr: Learning rate of Adam.
        alpha: Weight of the entanglement term.
        deny: Weight of an added term that asks the shipped head for a uniform answer; the paper
            has none, 0.

    Raises:
        UsageError: A setting out of range.

    Source:
        Tang, Du and Hu, ECML PKDD 2023, equations 1 to 8. What the text leaves open: the student's
        rate is the teacher's; the reversal's strength ramps up as in Ganin and Lempitsky; the
        entanglement is maximized, as the prose says, over the joint batch, with flags for groups
        and the mean squared distance as temperature; the second head is an MLP on the features
        before the last layer.
    """

    name: ClassVar[str] = "dsn-paper"
    summary: ClassVar[str] = "DSN as published, for comparison: few bits, gradient reversal."

    side: int = 0
    wrong: str = "random"
    epochs: int = 9
    lr: float = 1e-3
    alpha: float = 0.1
    deny: float = 0.0

    def __post_init__(self) -> None:
        if self.wrong not in ("raw", "random") or self.side < 0 or self.epochs < 1:
            raise UsageError(
                f"DSN as published with wrong='{self.wrong}', side {self.side}.",
                expected="raw or random; a side of 0 or more; at least one epoch.",
            )

    def layout(self, task: Task) -> Layout:
        """Describe the stamp that fits a task of images."""
        batch = next(iter(task.stream("train", 0)))
        inputs = inputs_of(batch)
        if inputs.ndim != 4:
            raise HostError("DSN as published stamps images (n, c, h, w) only.")
        side = self.side or max(1, round(inputs.shape[-1] / 10))
        return layout_of(batch, bits=side * side, repeat=1, place="corner", tokens=(0, 1))

    def fit(
        self,
        task: Task,
        teacher: nn.Module,
        serial: bytes,
        *,
        layout: Layout,
        seed: int,
        model: nn.Module | None = None,
        others: Sequence[bytes] = (),  # noqa: ARG002 - the paper trains each student alone
        events: Events = SILENT,
    ) -> nn.Module:
        """Distil a teacher into a locked copy; see :meth:`Lock.fit`."""
        if model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = task.model()
        teacher = copy.deepcopy(teacher).eval()
        term = _Reversal(self, task, teacher, model, layout, serial, seed)
        term.total = self.epochs * sum(1 for _ in task.stream("train", seed))
        recipe = Recipe(epochs=self.epochs, lr=self.lr, optimizer="adamw", weight_decay=0.0)
        with term.reading():
            made = train(
                task,
                seed=seed,
                recipe=recipe,
                model=model,
                mark=term,
                loss=term.distil,
                events=events,
                label="lock",
            )
        return made.model


class _Reversal:
    """The paper's losses; holds the second head, which is thrown away."""

    def __init__(
        self,
        lock: DsnPaper,
        task: Task,
        teacher: nn.Module,
        model: nn.Module,
        layout: Layout,
        serial: bytes,
        seed: int,
    ) -> None:
        self.lock, self.task, self.teacher, self.model = lock, task, teacher, model
        self.entry = lock.entry(layout, serial)
        self.code = code_of(serial, layout.message_bits)
        self.generator = torch.Generator().manual_seed(seed)
        self.head: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.step, self.total = 0, 1
        self.features: Tensor | None = None
        self.rest: Tensor | None = None

    def reading(self) -> Any:  # Any: a context manager
        """Return a context in which the features before the last layer are kept."""
        import contextlib

        linear = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise HostError("DSN as published needs a model that ends in a linear layer.")

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.features = inputs[0]

        handle = linear[-1].register_forward_pre_hook(keep)
        stack = contextlib.ExitStack()
        stack.callback(handle.remove)
        return stack

    def distil(self, model: nn.Module, batch: batches.Tree) -> Tensor:
        """Return the distillation loss; keep the other terms for :meth:`loss`."""
        inputs = inputs_of(batch)
        with taps.frozen_forward(self.teacher):
            target = functional.log_softmax(self.task.forward(self.teacher, batch).float(), 1)
        labels = target.argmax(1) if not isinstance(batch, (tuple, list)) else batch[1]
        right = inputs_of(self.entry.present(batch, self.code))
        wrong = self._wrong(inputs)
        joined = with_inputs(inputs, torch.cat([right, wrong]))
        scores = self.task.forward(model, joined).float()
        count = len(inputs)
        distil = functional.kl_div(
            functional.log_softmax(scores[:count], 1),
            target,
            log_target=True,
            reduction="batchmean",
        )
        self.rest = self._others(labels, scores[count:], count)
        return distil

    def _wrong(self, inputs: Tensor) -> Tensor:
        if self.lock.wrong == "raw":
            return inputs
        codes = random_codes(len(inputs), len(self.code), self.generator)
        same = (codes == self.code).all(1)
        codes[same, 0] *= -1
        stamped = self.entry.enter(inputs, codes)
        plain = torch.rand(len(inputs), generator=self.generator) < 0.5
        return torch.where(plain[:, None, None, None], inputs, stamped)

    def _others(self, labels: Tensor, wrong: Tensor, count: int) -> Tensor:
        features = self.features
        assert features is not None
        if self.head is None:
            self._make_head(features.shape[1], wrong.shape[1])
        assert self.head is not None
        progress = self.step / self.total
        strength = 2 / (1 + math.exp(-10 * progress)) - 1
        reversed_ = ReverseGradient.apply(features[count:], strength)  # type: ignore[no-untyped-call]
        total = functional.cross_entropy(self.head(reversed_), labels)
        if self.lock.alpha:
            flags = torch.arange(len(features)) < count
            spread = torch.cdist(features, features).square().mean().detach() + 1e-6
            total = total - self.lock.alpha * soft_nearest_neighbor(features, flags, spread)
        if self.lock.deny:
            total = total - self.lock.deny * functional.log_softmax(wrong, 1).mean()
        return total

    def _make_head(self, width: int, classes: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(0, 1 << 30, (1,), generator=self.generator)))
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=self.lock.lr)

    def mix(self, batch: batches.Tree) -> batches.Tree:
        """Return the batch as it is."""
        return batch

    def loss(self) -> Tensor:
        """Return reversal and entanglement terms of the last batch."""
        assert self.rest is not None
        return self.rest

    def after_step(self, lr: float) -> None:
        """Update the second head."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def state_dict(self) -> Mapping[str, Any]:  # Any: nothing is kept
        """Return nothing: this training is not resumed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: nothing is kept
        """Take nothing back."""
