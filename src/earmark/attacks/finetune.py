"""Fine-tuning: train the stolen model further on the attacker's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import UsageError


@dataclass(frozen=True)
class FineTune(Attack):
    """Train all layers or the last one, as it is or drawn anew.

    Args:
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.
        layers: "all" or "last".
        reset: Whether the last layer is drawn anew first.
        optimizer: "sgd" or "adamw".
        schedule: "one-cycle" or "constant".
        warmup: Share of the steps that warm up.
        weight_decay: Weight decay.

    Raises:
        UsageError: Other layers.

    Source:
        Uchida et al. 2017 and Adi et al. 2018 (FTAL, FTLL, RTAL, RTLL); epochs as in Lukas et al.
        2022. Learning rates are ours: one-cycle SGD instead of constant Adam.

    Example:
        >>> FineTune.preset("rtal").label()
        'finetune(reset=True)'
    """

    name: ClassVar[str] = "finetune"
    family: ClassVar[str] = "finetune"
    source: ClassVar[str] = "Uchida et al. 2017; Adi et al. 2018; epochs of Lukas et al. 2022."
    summary: ClassVar[str] = "Train the stolen model further: all layers or the last one."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "ftal": {},
        "ftll": {"layers": "last"},
        "rtal": {"reset": True},
        "rtll": {"layers": "last", "reset": True, "epochs": 10, "lr": 0.05},
        "high-lr": {"lr": 0.1},
        "adam": {"optimizer": "adamw", "lr": 1e-4, "schedule": "constant", "weight_decay": 0.0},
        "adam-long": {
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
            "weight_decay": 0.0,
            "epochs": 20,
        },
        "adam-high-lr": {"optimizer": "adamw", "lr": 5e-3, "epochs": 20},
    }

    epochs: int = 5
    lr: float = 0.01
    layers: str = "all"
    reset: bool = False
    optimizer: str = "sgd"
    schedule: str = "one-cycle"
    warmup: float = 0.1
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.layers not in ("all", "last"):
            raise UsageError(f"Fine-tuning of layers '{self.layers}'.", expected="all or last.")

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        settings = tuning.recipe(
            budget,
            epochs=self.epochs,
            lr=self.lr,
            optimizer=self.optimizer,
            schedule=self.schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
        )
        _, last = tuning.last_layer(model)
        loss = None if budget.labels else tuning.answers(model, budget)
        if self.reset:
            last.reset_parameters()
        if self.layers == "all":
            return tuning.tune(model, budget, settings, seed=seed, loss=loss)
        rest = [module for module in model.modules() if module is not last]
        with tuning.only(model, last.parameters()):
            hook = tuning.KeepStill(module for module in rest if not list(module.children()))
            return tuning.tune(model, budget, settings, seed=seed, loss=loss, hook=hook)


class _Elastic(tuning.Hook):
    """Hold each parameter near its start, the tighter the more the task depends on it."""

    def __init__(self, model: nn.Module, budget: Budget, strength: float, *, seed: int) -> None:
        self.strength = strength
        self.parameters = [item for item in model.parameters() if item.requires_grad]
        self.start = [item.detach().clone() for item in self.parameters]
        self.fisher = [item.detach() * 0 for item in self.parameters]
        model.eval()
        for batch in budget.data(seed=seed):
            model.zero_grad()
            budget.task.loss(model, batch).float().backward()  # type: ignore[no-untyped-call]
            for total, item in zip(self.fisher, self.parameters, strict=True):
                if item.grad is not None:
                    total.add_(item.grad.detach() ** 2)
        model.zero_grad()
        largest = max(float(total.max()) for total in self.fisher) or 1.0
        self.fisher = [total / largest for total in self.fisher]

    def loss(self) -> Tensor:
        """Return the penalty."""
        total = self.parameters[0].new_zeros(())
        rows = zip(self.fisher, self.parameters, self.start, strict=True)
        for fisher, now, start in rows:
            total = total + (fisher * (now - start) ** 2).sum()
        return 0.5 * self.strength * total


@dataclass(frozen=True)
class Refit(Attack):
    """Fine-tune at a high, decaying rate, elastically, with unlabelled data beside labelled.

    Args:
        epochs: Passes over the attacker's data.
        lr: Learning rate at the start; it decays as a half cosine.
        elastic: Strength of elastic weight consolidation, 0 for none; the importances are scaled
            to a largest value of 1.
        unlabelled: Weight of imitating the stolen model's own answers, which needs no labels.

    Source:
        Chen et al. 2021 (REFIT). Changed: cosine instead of stepwise decay; importances from
        gradients of whole batches; the unlabelled data are the attacker's own inputs.
    """

    name: ClassVar[str] = "refit"
    family: ClassVar[str] = "finetune"
    source: ClassVar[str] = "Chen et al. 2021 (REFIT)."
    summary: ClassVar[str] = "Fine-tune at a high, decaying rate, elastically, labels optional."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "basic": {"elastic": 0.0},
        "ewc": {"elastic": 10.0},
        "ewc-loose": {"elastic": 1.0},
        "ewc-tight": {"elastic": 100.0},
        "unlabelled": {"elastic": 0.0, "unlabelled": 1.0},
        "ewc-unlabelled": {"elastic": 10.0, "unlabelled": 1.0},
        "published": {"elastic": 0.0, "epochs": 60},
    }

    epochs: int = 10
    lr: float = 0.05
    elastic: float = 10.0
    unlabelled: float = 0.0

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Tune the copy."""
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr, warmup=0.0)
        imitate = tuning.answers(model, budget)

        def loss(student: nn.Module, batch: Any) -> Tensor:  # Any: a batch
            if not budget.labels:
                return imitate(student, batch)
            own = budget.task.loss(student, batch)
            return own + self.unlabelled * imitate(student, batch) if self.unlabelled else own

        hook = _Elastic(model, budget, self.elastic, seed=seed) if self.elastic else None
        return tuning.tune(model, budget, settings, seed=seed, loss=loss, hook=hook)
