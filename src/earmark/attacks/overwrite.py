"""Overwriting: embed the attacker's own mark with the owner's scheme."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from earmark import registry
from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.errors import UsageError
from earmark.training import train


@dataclass(frozen=True)
class Overwrite(Attack):
    """Embed one or more marks of the attacker's own, with the owner's scheme and settings.

    Args:
        scheme: Name of the scheme.
        settings: The scheme's settings, as far as they differ from its defaults.
        keys: Number of the attacker's keys, all embedded at once.
        strength: Factor on the marks' loss.
        epochs: Passes over the attacker's data.
        lr: Peak learning rate.
        inputs: Candidate inputs that the attacker offers for each key, if the scheme needs some;
            taken from his own data.

    Raises:
        UsageError: No key, or no strength.

    Source:
        Uchida et al. 2017; key counts and double strength are ours.

    Example:
        >>> Overwrite.preset("three-keys").keys
        3
    """

    name: ClassVar[str] = "overwrite"
    family: ClassVar[str] = "overwrite"
    knowledge: ClassVar[Knowledge] = Knowledge.SCHEME
    source: ClassVar[str] = "Uchida et al. 2017, overwriting."
    summary: ClassVar[str] = "Embed the attacker's own marks with the same scheme."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "one-key": {},
        "double": {"strength": 2.0},
        "three-keys": {"keys": 3},
        "five-keys": {"keys": 5},
    }

    scheme: str = "mtlsign"
    settings_of_scheme: Mapping[str, Any] = field(default_factory=dict)  # Any: the scheme's fields
    keys: int = 1
    strength: float = 1.0
    epochs: int = 5
    lr: float = 0.05
    inputs: int = 4096

    def __post_init__(self) -> None:
        if self.keys < 1 or not self.strength > 0:
            raise UsageError(
                f"Overwriting with {self.keys} keys at strength {self.strength}.",
                expected="At least one key and a strength above 0.",
            )

    def secrets(self, seed: int) -> list[bytes]:
        """Return the attacker's secrets, which follow from the seed."""
        return [
            hashlib.sha256(f"earmark/overwrite/{seed}/{index}".encode()).digest()
            for index in range(self.keys)
        ]

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Train the copy with the attacker's marks attached."""
        own = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.settings_of_scheme.items()
        }
        scheme = registry.scheme(self.scheme, **own)
        task = budget.task
        settings = tuning.recipe(budget, epochs=self.epochs, lr=self.lr)
        made = []
        for index, secret in enumerate(self.secrets(seed)):
            inputs = None
            if scheme.needs_inputs:
                inputs = tuning.samples(budget, self.inputs, seed=seed + 1 + index)
            made.append(scheme.new_key(task.host(model), inputs=inputs, secret=secret))
        with ExitStack() as stack:
            marks = [
                stack.enter_context(scheme.attach(model, key, forward=task.forward)) for key in made
            ]
            train(
                task,
                seed=seed,
                recipe=settings,
                model=model,
                mark=tuning.Together(marks, weight=self.strength),
                loss=None if budget.labels else tuning.answers(model, budget),
                data=lambda epoch: list(budget.data(seed=epoch)),
                label="attack",
            )
        return model
