"""Fine-tuning with a twist: shifted weights, strong decay, smoothed labels, adversarial inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import UsageError
from earmark.hosts.batches import Tree


@dataclass(frozen=True)
class ShiftWeights(Attack):
    """Push every filter bank away from its mean, add noise, and tune the damage away.

    Args:
        strength: Multiple of the mean over filters that is subtracted.
        noise: Standard deviation of the noise over that of the layer.
        epochs: Epochs of tuning.
        lr: Peak learning rate.

    Source:
        Lukas et al. 2022 (weight shifting); strengths 1.5 and 2.5 with noise of the layer's own
        spread. Linear layers except the last are shifted too; the rate is ours.
    """

    name: ClassVar[str] = "shift-weights"
    family: ClassVar[str] = "retune"
    source: ClassVar[str] = "Lukas et al. 2022, weight shifting."
    summary: ClassVar[str] = "Shift filters, add noise, and tune the damage away."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "sok": {},
        "sok-strong": {"strength": 2.5},
        "mild": {"noise": 0.25},
    }

    strength: float = 1.5
    noise: float = 1.0
    epochs: int = 10
    lr: float = 0.05

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Shift and tune the copy."""
        generator = torch.Generator().manual_seed(seed)
        loss = None if budget.labels else tuning.answers(model, budget)
        _, last = tuning.last_layer(model)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)) and module is not last:
                    weight = module.weight
                    drawn = torch.randn(weight.shape, generator=generator).to(weight.dtype)
                    spread = weight.std()
                    weight.sub_(self.strength * weight.mean(0, keepdim=True))
                    weight.add_(self.noise * spread * drawn)
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        return tuning.tune(model, budget, settings, seed=seed, loss=loss)


@dataclass(frozen=True)
class Regularize(Attack):
    """Decay the weights strongly for some epochs, then recover.

    Args:
        decay: Weight decay of the first part.
        epochs: Epochs of the first part.
        recovery: Epochs of the second part.
        lr: Peak learning rate of both.

    Source:
        Lukas et al. 2022 (regularization): decay 0.1 for 5 epochs, then up to 50 of recovery; here
        as many as are asked for.
    """

    name: ClassVar[str] = "regularize"
    family: ClassVar[str] = "retune"
    source: ClassVar[str] = "Lukas et al. 2022, regularization."
    summary: ClassVar[str] = "Decay the weights strongly, then recover."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "sok": {},
        "sok-recovery": {"recovery": 50},
        "short": {"epochs": 2, "recovery": 2},
    }

    decay: float = 0.1
    epochs: int = 5
    recovery: int = 5
    lr: float = 0.02

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Decay and recover the copy."""
        loss = None if budget.labels else tuning.answers(model, budget)
        for epochs, decay, part in ((self.epochs, self.decay, 0), (self.recovery, 5e-4, 1)):
            settings = tuning.recipe(budget, epochs=epochs, lr=self.lr, weight_decay=decay)
            tuning.tune(model, budget, settings, seed=seed + part, loss=loss)
        return model


@dataclass(frozen=True)
class SmoothLabels(Attack):
    """Fine-tune on softened labels.

    Args:
        share: Weight of the uniform distribution over classes.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Source:
        Szegedy et al. 2016; 0.3 and 5 epochs as in Lukas et al. 2022.
    """

    name: ClassVar[str] = "smooth-labels"
    family: ClassVar[str] = "retune"
    source: ClassVar[str] = "Szegedy et al. 2016; settings of Lukas et al. 2022."
    summary: ClassVar[str] = "Fine-tune on softened labels."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "sok": {},
        "high-lr": {"lr": 0.1},
    }

    share: float = 0.3
    epochs: int = 5
    lr: float = 0.02

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        hard = budget.task.loss if budget.labels else tuning.answers(model, budget)

        def loss(student: nn.Module, batch: Tree) -> Tensor:
            scores = tuning.scores(budget.task.forward(student, batch)).float()
            uniform = -functional.log_softmax(scores, 1).mean()
            return (1 - self.share) * hard(student, batch).float() + self.share * uniform

        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        return tuning.tune(model, budget, settings, seed=seed, loss=loss)


@dataclass(frozen=True)
class TrainAdversarially(Attack):
    """Fine-tune on inputs that were moved to raise the loss most.

    Args:
        radius: Largest change of an input, as a share of the inputs' spread.
        steps: Steps of the inner ascent.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.

    Raises:
        UsageError: No step or no radius.

    Source:
        Madry et al. 2018; Lukas et al. 2022 use radii 0.01, 0.1 and 0.25 and 40 steps of 0.01; the
        step here is 2.5 radii over their number.
    """

    name: ClassVar[str] = "train-adversarially"
    family: ClassVar[str] = "retune"
    source: ClassVar[str] = "Madry et al. 2018; settings of Lukas et al. 2022."
    summary: ClassVar[str] = "Fine-tune on inputs that raise the loss most."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "fast": {},
        "sok": {"radius": 0.25, "steps": 40},
        "sok-0.1": {"radius": 0.1, "steps": 40},
        "sok-0.01": {"radius": 0.01, "steps": 40},
    }

    radius: float = 0.1
    steps: int = 3
    epochs: int = 5
    lr: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.radius > 0:
            raise UsageError(f"Adversarial training with {self.steps} steps in {self.radius}.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        own = budget.task.loss if budget.labels else tuning.answers(model, budget)

        def loss(student: nn.Module, batch: Tree) -> Tensor:
            inputs = tuning.image_of(batch)
            radius = self.radius * inputs.std()
            moved = inputs
            for _ in range(self.steps):
                moved = moved.detach().requires_grad_()
                value = own(student, tuning.with_image(batch, moved)).float()
                (slope,) = torch.autograd.grad(value, moved)
                moved = moved.detach() + 2.5 * radius / self.steps * slope.sign()
                moved = inputs + (moved - inputs).clamp(-radius, radius)
            return own(student, tuning.with_image(batch, moved.detach()))

        tuning.image_of(tuning.samples(budget, 1, seed=seed))
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        return tuning.tune(model, budget, settings, seed=seed, loss=loss)
