"""Copies by answers: another model learns what the stolen one says.

No weight of the stolen model goes into the copy. Marks in weights and features do not survive that,
and none here is claimed to, unless its scheme says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import HostError, UsageError
from earmark.hosts import batches
from earmark.hosts.batches import Tree
from earmark.training import Recipe, train


def student_of(budget: Budget, network: str, model: nn.Module) -> nn.Module:
    """Return a fresh student: of the task's own structure, or a wider plain one.

    Raises:
        UsageError: No structure has that name.
        HostError: The plain structure does not fit the inputs.
    """
    if network == "same":
        return budget.task.model()
    if network != "plain":
        raise UsageError(f"No student is called '{network}'.", expected="same or plain.")
    batch = next(iter(budget.task.stream("train", 0)))
    inputs = tuning.image_of(batch)
    with torch.no_grad():
        classes = tuning.scores(budget.task.forward(model, batches.take(batch, slice(0, 2)))).shape[
            1
        ]
    if inputs.ndim == 4:
        return nn.Sequential(
            nn.Conv2d(inputs.shape[1], 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(48 * 16, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )
    if inputs.ndim == 2:
        return nn.Sequential(nn.Linear(inputs.shape[1], 256), nn.ReLU(), nn.Linear(256, classes))
    raise HostError(f"No plain student takes inputs of shape {tuple(inputs.shape[1:])}.")


def _learn(
    student: nn.Module,
    budget: Budget,
    loss: tuning.Loss,
    data: list[Tree] | None,
    *,
    epochs: float,
    seed: int,
) -> nn.Module:
    """Train a student with the task's own recipe, some times as many epochs."""
    own = Recipe.of(budget.task.recipe)
    asked = budget.granted(max(1, round(epochs * own.epochs)))
    settings = replace(own, epochs=asked, clip=own.clip or 5.0)

    def stream(epoch: int) -> Iterable[Tree]:
        if data is None:
            return tuning.limited(budget, seed=epoch)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
        return [data[i] for i in order.tolist()]

    return train(
        budget.task, seed=seed, recipe=settings, model=student, loss=loss, data=stream, label="copy"
    ).model


def _hard(teacher: nn.Module, budget: Budget, smooth: float) -> tuning.Loss:
    """Return the loss of learning the teacher's best class, smoothed or not."""

    def loss(student: nn.Module, batch: Tree) -> Tensor:
        with torch.no_grad():
            best = tuning.scores(budget.task.forward(teacher, batch)).argmax(1)
        given = tuning.scores(budget.task.forward(student, batch)).float()
        return functional.cross_entropy(given, best, label_smoothing=smooth)

    return loss


@dataclass(frozen=True)
class Distill(Attack):
    """Train a fresh student on the stolen model's softened scores.

    Args:
        temperature: Temperature of both softmaxes.
        epochs: Epochs relative to the task's own training.
        network: "same" or "plain" (another structure).

    Source:
        Hinton et al. 2015; temperature 3 and no labels as in Lukas et al. 2022.
    """

    name: ClassVar[str] = "distill"
    family: ClassVar[str] = "copy"
    source: ClassVar[str] = "Hinton et al. 2015; settings of Lukas et al. 2022."
    summary: ClassVar[str] = "Train a student on the stolen model's softened scores."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "same": {},
        "hinton": {"temperature": 20.0},
        "cross": {"network": "plain"},
    }

    temperature: float = 3.0
    epochs: float = 1.0
    network: str = "same"

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Return the student."""
        student = student_of(budget, self.network, model)
        loss = tuning.answers(model, budget, temperature=self.temperature)
        return _learn(student, budget, loss, None, epochs=self.epochs, seed=seed)


@dataclass(frozen=True)
class Retrain(Attack):
    """Train a fresh model on the stolen one's answers.

    Args:
        labels: "hard" (best class) or "soft" (scores at temperature 1).
        smooth: Label smoothing of the hard labels.
        noise: Noise on the inputs, relative to their spread, for smooth retraining.
        epochs: Epochs relative to the task's own training.
        network: "same" or "plain" (another structure).

    Raises:
        UsageError: Other labels.

    Source:
        Lukas et al. 2022 (retraining, cross-architecture and smooth retraining).
    """

    name: ClassVar[str] = "retrain"
    family: ClassVar[str] = "copy"
    source: ClassVar[str] = "Lukas et al. 2022, retraining."
    summary: ClassVar[str] = "Train a fresh model on the stolen one's answers."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "hard": {},
        "soft": {"labels": "soft"},
        "cross": {"network": "plain"},
        "smooth": {"smooth": 0.3, "noise": 0.1},
    }

    labels: str = "hard"
    smooth: float = 0.0
    noise: float = 0.0
    epochs: float = 1.0
    network: str = "same"

    def __post_init__(self) -> None:
        tuning.need_share(self.smooth, "smooth", self.name)
        if self.labels not in ("hard", "soft"):
            raise UsageError(f"Retraining on '{self.labels}' labels.", expected="hard or soft.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Return the new model."""
        student = student_of(budget, self.network, model)
        teacher = tuning.frozen(model)
        if self.labels == "soft":
            loss = tuning.answers(model, budget)
        else:
            loss = _hard(teacher, budget, self.smooth)
        generator = torch.Generator().manual_seed(seed)

        def shaken(net: nn.Module, batch: Tree) -> Tensor:
            if self.noise:
                inputs = tuning.image_of(batch)
                drawn = torch.randn(inputs.shape, generator=generator)
                batch = tuning.with_image(batch, inputs + self.noise * inputs.std() * drawn)
            return loss(net, batch)

        return _learn(student, budget, shaken, None, epochs=self.epochs, seed=seed)


@dataclass(frozen=True)
class Transfer(Attack):
    """Start from a model that the attacker holds and tune it on the stolen model's answers.

    Args:
        pretrain: Epochs, relative to the task's own, of learning to tell turned inputs apart where
            the budget holds no other model to start from.
        epochs: Epochs of tuning, relative to the task's own.

    Source:
        Lukas et al. 2022 start from a public ImageNet model. Where the budget has no such model,
        ours is made from the attacker's own inputs by a pretext task (Gidaris et al. 2018).
    """

    name: ClassVar[str] = "transfer"
    family: ClassVar[str] = "copy"
    source: ClassVar[str] = "Lukas et al. 2022, transfer learning; Gidaris et al. 2018."
    summary: ClassVar[str] = "Tune another model on the stolen model's answers."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "pretext": {},
        "long": {"pretrain": 1.0, "epochs": 1.0},
    }

    pretrain: float = 0.5
    epochs: float = 0.5

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Return the tuned model."""
        if budget.models:
            student = tuning.thawed(budget.models[0])
        else:
            student = budget.task.model()
            _learn(student, budget, self._turned(budget), None, epochs=self.pretrain, seed=seed)
            tuning.last_layer(student)[1].reset_parameters()
        loss = tuning.answers(model, budget)
        return _learn(student, budget, loss, None, epochs=self.epochs, seed=seed + 1)

    def _turned(self, budget: Budget) -> tuning.Loss:
        def loss(net: nn.Module, batch: Tree) -> Tensor:
            inputs = tuning.image_of(batch)
            if inputs.ndim != 4 or inputs.shape[2] != inputs.shape[3]:
                raise HostError("The pretext task needs square images.")
            quarter = torch.arange(len(inputs)) % 4
            turned = torch.stack(
                [
                    torch.rot90(image, int(k), (1, 2))
                    for image, k in zip(inputs, quarter, strict=True)
                ]
            )
            given = tuning.scores(budget.task.forward(net, tuning.with_image(batch, turned)))
            if given.shape[1] < 4:
                raise HostError("The pretext task needs at least four classes.")
            return functional.cross_entropy(given.float(), quarter)

        return loss


@dataclass(frozen=True)
class Knockoff(Attack):
    """Query with inputs from elsewhere and train a copy on the answers.

    Args:
        queries: Inputs to send, at most the budget's.
        epochs: Epochs relative to the task's own training.

    Source:
        Orekondy et al. 2019. Inputs from elsewhere are made from the attacker's own by mixing
        patches of several, turning and inverting them: nothing of the task's classes is left whole.
    """

    name: ClassVar[str] = "knockoff"
    family: ClassVar[str] = "copy"
    source: ClassVar[str] = "Orekondy et al. 2019, knockoff nets."
    summary: ClassVar[str] = "Train a copy on answers to inputs from elsewhere."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "5k": {"queries": 5_000},
        "20k": {},
        "50k": {"queries": 50_000},
    }

    queries: int = 20_000
    epochs: float = 1.0

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Return the copy."""
        count = min(self.queries, budget.queries or self.queries)
        generator = torch.Generator().manual_seed(seed)
        data, made = [], 0
        stream = tuning.cycle(budget, seed=seed)
        while made < count:
            batch = next(stream)
            inputs = tuning.image_of(batch)
            data.append(tuning.with_image(batch, _elsewhere(inputs, generator)))
            made += len(inputs)
        loss = tuning.answers(model, budget)
        return _learn(budget.task.model(), budget, loss, data, epochs=self.epochs, seed=seed)


def _elsewhere(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Mix halves of different samples, flip and invert: unlike the task's own inputs."""
    order = torch.randperm(len(inputs), generator=generator)
    mixed = inputs.clone()
    half = inputs.shape[-1] // 2
    mixed[..., half:] = inputs[order][..., half:].flip(-1)
    if inputs.ndim == 4:
        mixed = mixed.flip(-2)
    signs = torch.where(torch.rand(len(inputs), generator=generator) < 0.5, -1.0, 1.0)
    return mixed * signs.view(-1, *[1] * (inputs.ndim - 1))


@dataclass(frozen=True)
class Augment(Attack):
    """Grow a small set of inputs along the copy's own gradients, query, and train; round by round.

    Args:
        seeds: Inputs to start from.
        rounds: Doublings.
        step: Step along the gradient's sign, relative to the inputs' spread.
        epochs: Epochs of each round, relative to the task's own training.

    Source:
        Papernot et al. 2017 (Jacobian-based augmentation): 100 to 150 seeds, step 0.1, 5 to 6
        doublings.
    """

    name: ClassVar[str] = "jacobian-augmentation"
    family: ClassVar[str] = "copy"
    source: ClassVar[str] = "Papernot et al. 2017."
    summary: ClassVar[str] = "Grow a few inputs along the copy's gradients and query them."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "papernot": {},
        "six-rounds": {"rounds": 6},
        "short": {"rounds": 3},
    }

    seeds: int = 150
    rounds: int = 5
    step: float = 0.1
    epochs: float = 2.0

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Return the copy."""
        pool = tuning.samples(budget, self.seeds, seed=seed)
        tuning.image_of(pool)
        loss = tuning.answers(model, budget)
        student = budget.task.model()
        for number in range(self.rounds + 1):
            if budget.queries is not None:
                pool = batches.take(pool, slice(0, budget.queries))
            size = batches.size(pool)
            parts = [batches.take(pool, slice(i, i + 64)) for i in range(0, size, 64)]
            parts = [part for part in parts if batches.size(part) > 1]
            _learn(student, budget, loss, parts, epochs=self.epochs, seed=seed + number)
            if number < self.rounds:
                pool = batches.join([pool, self._along(student, budget, pool)])
        return student

    def _along(self, student: nn.Module, budget: Budget, pool: Tree) -> Tree:
        student.eval()
        inputs = tuning.image_of(pool).clone().requires_grad_()
        given = tuning.scores(budget.task.forward(student, tuning.with_image(pool, inputs)))
        (slope,) = torch.autograd.grad(given.max(1).values.sum(), inputs)
        moved = inputs.detach() + self.step * inputs.detach().std() * slope.sign()
        return tuning.with_image(pool, moved)
