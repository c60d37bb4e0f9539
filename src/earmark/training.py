"""The one training loop: task loss plus mark loss, from scratch, fine-tuning or distilling.

Every scheme embeds through this loop, and attacks that train use it too. A user with a loop of
their own does not need it: see :class:`earmark.schemes.base.Mark`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from earmark import files
from earmark.errors import FileError, FormatError, HostError, TaskError, UsageError
from earmark.events import SILENT, Events
from earmark.hosts import batches
from earmark.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence


class Term(Protocol):
    """The part of a mark that the loop uses; :class:`earmark.schemes.base.Mark` is one."""

    def mix(self, batch: batches.Tree) -> batches.Tree:
        """Return the batch, some samples replaced."""

    def loss(self) -> Tensor:
        """Return the mark's term."""

    def after_step(self, lr: float) -> None:
        """Act after an optimizer step."""

    def state_dict(self) -> Mapping[str, Any]:  # Any: tensors and plain values
        """Return what a resumed training needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take it back."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Args:
        epochs: Passes over the training batches.
        lr: Peak learning rate.
        optimizer: "sgd" (Nesterov, momentum 0.9) or "adamw".
        schedule: "one-cycle" (linear warm-up, cosine decay) or "constant".
        warmup: Share of the steps that warm up.
        weight_decay: Weight decay.
        clip: Largest gradient norm, or null.
        amp: Mixed precision: "bf16" or null.
        temperature: Temperature of distillation.

    Raises:
        UsageError: A value out of range.

    Example:
        >>> Recipe(epochs=2).epochs
        2
    """

    epochs: int = 3
    lr: float = 0.1
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    warmup: float = 0.2
    weight_decay: float = 5e-4
    clip: float | None = None
    amp: str | None = None
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or not self.lr > 0:
            raise UsageError(f"A recipe of {self.epochs} epochs at learning rate {self.lr}.")
        if self.optimizer not in ("sgd", "adamw") or self.schedule not in ("one-cycle", "constant"):
            raise UsageError(
                f"Recipe has optimizer '{self.optimizer}' and schedule '{self.schedule}'.",
                expected="sgd or adamw; one-cycle or constant.",
            )
        if self.amp not in (None, "bf16"):
            raise UsageError(f"Recipe has amp '{self.amp}'.", expected="bf16 or null.")

    @classmethod
    def of(cls, settings: Mapping[str, Any], **changes: Any) -> Recipe:  # Any: own fields
        """Build a recipe from a task's settings.

        Raises:
            UsageError: A setting that no recipe has.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted((set(settings) | set(changes)) - known)
        if unknown:
            raise UsageError(
                f"A recipe has no setting {', '.join(unknown)}.",
                expected=f"It has {', '.join(sorted(known))}.",
            )
        return cls(**(dict(settings) | changes))

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )

    def factor(self, step: int, total: int) -> float:
        """Return the factor on the learning rate at a step."""
        if self.schedule == "constant" or total <= 1:
            return 1.0
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True)
class Trained:
    """What a training gives back.

    Args:
        model: The trained model, in evaluation mode.
        steps: Optimizer steps in all.
        seconds: Wall seconds.
        losses: Mean task loss of each epoch.
    """

    model: nn.Module
    steps: int
    seconds: float
    losses: tuple[float, ...]


def distillation_loss(
    teacher: nn.Module, task: Task, temperature: float
) -> Callable[[nn.Module, batches.Tree], Tensor]:
    """Return a loss that makes a student give the teacher's softened scores; no labels are used.

    Source:
        Hinton, Vinyals and Dean 2015; the weight on the hard labels is zero.
    """

    def loss(student: nn.Module, batch: batches.Tree) -> Tensor:
        with torch.no_grad():
            target = _scores(task.forward(teacher, batch)).float() / temperature
        given = _scores(task.forward(student, batch)).float() / temperature
        return temperature**2 * functional.kl_div(
            functional.log_softmax(given, 1),
            functional.log_softmax(target, 1),
            log_target=True,
            reduction="batchmean",
        )

    return loss


def _scores(output: Any) -> Tensor:  # Any: whatever the model returns
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise HostError(
            "Distilling needs a model whose output is a (samples, classes) tensor.",
            hint="Give the task a `forward` that returns one.",
        )
    return scores


def train(
    task: Task,
    *,
    seed: int,
    recipe: Recipe | None = None,
    model: nn.Module | None = None,
    mark: Term | None = None,
    loss: Callable[[nn.Module, batches.Tree], Tensor] | None = None,
    data: Callable[[int], Iterable[batches.Tree]] | None = None,
    checkpoint: str | Path | None = None,
    purpose: str = "",
    events: Events = SILENT,
    label: str = "train",
) -> Trained:
    """Train a model on a task, with a mark's term added if there is one.

    Args:
        task: What to train on.
        seed: Seed of the model's initialization and of the batches' order.
        recipe: Settings; by default the task's own.
        model: A model to train further, changed in place; a fresh one if null.
        mark: An attached mark.
        loss: Another loss than the task's, for example distillation.
        data: Batches of an epoch, given the epoch's seed; by default the task's training split.
        checkpoint: A file to resume from and to write after each epoch. It stays: remove it once
            the model is safe.
        purpose: What the training is for, in any words; a checkpoint of another purpose or seed
            is refused.
        events: Who hears of the progress.
        label: Name of the work in progress reports.

    Returns:
        The trained model with a few figures.

    Raises:
        HostError: The loss became NaN or infinite.
        TaskError: The loss is no scalar tensor.
        UsageError: A recipe that makes no sense, or no batches.
        FormatError: The checkpoint is of another training.
    """
    recipe = recipe or Recipe.of(task.recipe)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model() if model is None else model
        loop = _Loop(task, model, mark, loss or task.loss, recipe, seed, data)
        loop.about = {"seed": seed, "epochs": recipe.epochs, "purpose": purpose}
        first = loop.resume(checkpoint) if checkpoint and Path(checkpoint).exists() else 0
        total = recipe.epochs
        for epoch in range(first, total):
            loop.epoch(epoch, events, f"{label} {epoch + 1}/{total}" if total > 1 else label)
            if checkpoint:
                loop.save(checkpoint, epoch + 1)
    model.eval()
    return Trained(model, loop.step, time.perf_counter() - started, tuple(loop.losses))


def rehearse(
    task: Task,
    model: nn.Module,
    *,
    recipe: Recipe | None = None,
    loss: Callable[[nn.Module, batches.Tree], Tensor] | None = None,
) -> None:
    """Read a model's utility and train it on one batch, to meet now what would fail later.

    Args:
        task: The user's work.
        model: A model that is thrown away afterwards; it is changed in place.
        recipe: Settings; by default the task's own.
        loss: Another loss than the task's.

    Raises:
        TaskError, UsageError, HostError: As in :func:`train`, or `evaluate` fails.
    """
    model.eval()
    with torch.random.fork_rng(devices=[]):
        task.evaluate(model)
        train(
            task,
            seed=0,
            recipe=replace(recipe or Recipe.of(task.recipe), epochs=1),
            model=model,
            loss=loss,
            data=lambda seed: list(itertools.islice(task.stream("train", seed), 1)),
            label="rehearse",
        )


class _Loop:
    """The state of a training between epochs."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        mark: Term | None,
        loss: Callable[[nn.Module, batches.Tree], Tensor],
        recipe: Recipe,
        seed: int,
        data: Callable[[int], Iterable[batches.Tree]] | None,
    ) -> None:
        self.task, self.model, self.mark, self.loss = task, model, mark, loss
        self.recipe, self.seed = recipe, seed
        self.data = data or (lambda epoch_seed: task.stream("train", epoch_seed))
        self.optimizer = recipe.make_optimizer(_trainable(model))
        self.step = 0
        self.per_epoch = 0
        self.losses: list[float] = []
        self.about: dict[str, Any] = {}  # Any: plain values that say which training this is

    def epoch(self, epoch: int, events: Events, label: str) -> None:
        """Run one epoch."""
        self.model.train()
        stream: Sequence[batches.Tree] | Iterable[batches.Tree]
        stream = self.data(self.seed * 1000 + epoch)
        total = _length(stream)
        if total is None:
            stream = list(stream)
            total = len(stream)
        if total == 0:
            raise TaskError(f"Task '{self.task.name}' gives no training batches.")
        self.per_epoch = total
        losses = [self._one(batch) for batch in events.track(stream, label=label, total=total)]
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise HostError(
                f"The training loss of '{self.task.name}' is {mean} in epoch {epoch + 1}.",
                hint="Lower the learning rate, or set the recipe's clip to 1.",
            )
        self.losses.append(mean)

    def _one(self, batch: batches.Tree) -> Tensor:
        recipe = self.recipe
        lr = recipe.lr * recipe.factor(self.step, recipe.epochs * self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.mark is not None:
            batch = self.mark.mix(batch)
        with _precision(recipe.amp):
            task_loss = self.loss(self.model, batch)
        if not isinstance(task_loss, Tensor) or task_loss.numel() != 1:
            shape = getattr(task_loss, "shape", type(task_loss).__name__)
            raise TaskError(f"loss() of '{self.task.name}' gives {shape}, no scalar tensor.")
        if not task_loss.requires_grad:
            raise TaskError(
                f"loss() of '{self.task.name}' gives a tensor without a gradient.",
                hint="Compute it from the model's output, without no_grad(), detach() or item().",
            )
        total = task_loss.float()
        if self.mark is not None:
            total = total + self.mark.loss().float()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        if self.mark is not None:
            self.mark.after_step(lr)
        self.step += 1
        return task_loss.detach().float()

    def save(self, path: str | Path, epoch: int) -> None:
        """Write a checkpoint, on the first process only."""
        if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
            return
        state = {
            "about": self.about,
            "epoch": epoch,
            "step": self.step,
            "per_epoch": self.per_epoch,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mark": dict(self.mark.state_dict()) if self.mark is not None else {},
            "random": torch.get_rng_state(),
        }
        with files.replacing(path, overwrite=True) as temporary:
            torch.save(state, temporary)

    def resume(self, path: str | Path) -> int:
        """Take a checkpoint back and return the epoch to go on with."""
        try:
            state = torch.load(path, weights_only=True)
            _require_same(state["about"], self.about)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.mark is not None:
                self.mark.load_state_dict(state["mark"])
            self.step, self.per_epoch = state["step"], state["per_epoch"]
            self.losses = list(state["losses"])
            torch.set_rng_state(state["random"])
            return int(state["epoch"])
        except OSError as error:
            raise FileError(f"Checkpoint '{path}' cannot be read: {error}.") from error
        except Exception as error:
            why = error.what if isinstance(error, UsageError) else str(error)
            raise FormatError(
                f"Checkpoint '{path}' does not fit this training: {why.rstrip('.')}.",
                hint="Give the same seed, epochs and key, or remove it to start again.",
            ) from error


def _require_same(saved: object, wanted: object) -> None:
    if saved != wanted:
        raise UsageError(f"it is of {saved}, this is {wanted}")


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise HostError("The model has no trainable parameters.")
    return found


def _length(stream: object) -> int | None:
    try:
        return len(stream)  # type: ignore[arg-type]
    except TypeError:
        return None


@contextlib.contextmanager
def _precision(amp: str | None) -> Iterator[None]:
    if amp is None:
        yield
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
