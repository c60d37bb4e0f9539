"""Attacks on the way to the model: inputs are changed, or suspicious queries are turned away.

The weights stay as they are; only what a black-box verifier sees changes. The model keeps its names
and layers: its class gets a forward pass that treats the inputs first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks import tuning
from earmark.attacks.base import Attack, Budget
from earmark.errors import UsageError
from earmark.training import Recipe

Treat = Callable[[Tensor], Tensor]


def guard(
    model: nn.Module, before: Treat, after: Callable[[Tensor, Any], Any] | None = None
) -> nn.Module:
    """Make a model treat its first input, and maybe its output, in every forward pass.

    Args:
        model: Changed in place: its class becomes a subclass of its own.
        before: Treats the inputs.
        after: Given the original inputs and the output; returns another output.
    """
    plain = type(model)

    class Guarded(plain):  # type: ignore[misc, valid-type]
        """A model behind a treatment of its inputs."""

        def forward(self, inputs: Tensor, *rest: Any, **more: Any) -> Any:  # Any: the model's own
            """Treat the inputs, run the model, treat the output."""
            output = super().forward(before(inputs), *rest, **more)
            return after(inputs, output) if after is not None else output

    Guarded.__name__ = Guarded.__qualname__ = plain.__name__
    model.__class__ = Guarded
    return model


def _blur(inputs: Tensor, sigma: float) -> Tensor:
    reach = max(1, round(3 * sigma))
    grid = torch.arange(-reach, reach + 1, dtype=inputs.dtype)
    line = torch.exp(-(grid**2) / (2 * sigma**2))
    line = line / line.sum()
    channels = inputs.shape[1]
    rows = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    wide = functional.pad(inputs, (reach, reach, reach, reach), mode="replicate")
    found = functional.conv2d(wide, rows, groups=channels)
    return functional.conv2d(found, rows.transpose(2, 3), groups=channels)


def _basis(size: int) -> Tensor:
    """Return the orthonormal cosine basis, (size, size)."""
    place = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(torch.pi / size * (place + 0.5) * place[:, None])
    basis[0] *= 0.5**0.5
    scaled: Tensor = basis * (2 / size) ** 0.5
    return scaled.float()


def _compress(inputs: Tensor, step: float) -> Tensor:
    """Round cosine coefficients of 8x8 blocks, the coarser the higher their frequency."""
    height, width = inputs.shape[2:]
    wide = functional.pad(inputs, (0, -width % 8, 0, -height % 8), mode="replicate")
    n, c, h, w = wide.shape
    blocks = wide.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    basis = _basis(8).to(inputs.dtype)
    order = torch.arange(8)
    grain = step * (1 + order[:, None] + order).to(inputs.dtype)
    rounded = ((basis @ blocks @ basis.T) / grain).round() * grain
    back = (basis.T @ rounded @ basis).transpose(3, 4).reshape(n, c, h, w)
    return back[..., :height, :width]


def _noise(inputs: Tensor, size: float) -> Tensor:
    """Add noise that follows from the inputs, so that equal queries get equal answers."""
    seed = int(inputs.double().abs().sum().mul(1e6).item()) % (2**31)
    generator = torch.Generator().manual_seed(seed)
    return inputs + size * torch.randn(inputs.shape, generator=generator).to(inputs.dtype)


def _levels(inputs: Tensor, step: float) -> Tensor:
    return (inputs / step).round() * step


_KINDS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "jpeg": _compress,
    "blur": _blur,
    "noise": _noise,
    "levels": _levels,
    "flip": lambda inputs, _: inputs.flip(-1),
}


@dataclass(frozen=True)
class Preprocess(Attack):
    """Treat every input before the model sees it.

    Args:
        kind: "jpeg" (rounded cosine blocks), "blur", "noise", "levels" (few gray levels), "flip" or
            "autoencoder" (trained on the attacker's data).
        size: Strength: the rounding step, the blur's sigma in pixels, the noise's or level's size;
            in the inputs' own units.
        steps: Steps of training the autoencoder.

    Raises:
        UsageError: Another kind, or no strength.

    Source:
        Lukas et al. 2022 (input preprocessing). JPEG is simulated by its lossy step alone.
    """

    name: ClassVar[str] = "preprocess"
    family: ClassVar[str] = "wrapper"
    source: ClassVar[str] = "Lukas et al. 2022, input preprocessing."
    summary: ClassVar[str] = "Treat every input before the model sees it."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "jpeg": {},
        "blur": {"kind": "blur", "size": 0.5},
        "blur-0.7": {"kind": "blur", "size": 0.7},
        "noise": {"kind": "noise", "size": 0.3},
        "noise-0.1": {"kind": "noise", "size": 0.1},
        "levels": {"kind": "levels", "size": 0.5},
        "levels-fine": {"kind": "levels", "size": 0.2},
        "flip": {"kind": "flip"},
        "autoencoder": {"kind": "autoencoder"},
    }

    kind: str = "jpeg"
    size: float = 0.2
    steps: int = 1500

    def __post_init__(self) -> None:
        if self.kind not in (*_KINDS, "autoencoder") or not self.size > 0:
            raise UsageError(
                f"Preprocessing by '{self.kind}' of size {self.size}.",
                expected=f"One of {', '.join(_KINDS)}, autoencoder; a size above 0.",
            )

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Put the treatment in front of the copy."""
        first = tuning.image_of(next(iter(budget.data(seed=seed))))
        if self.kind == "autoencoder":
            coder = self._coder(budget, first, seed)
            return guard(model, lambda inputs: coder(inputs.flatten(1)).view_as(inputs))
        if first.ndim != 4 and self.kind in ("jpeg", "blur"):
            raise UsageError(f"'{self.kind}' needs images, not inputs of {first.ndim} dimensions.")
        act = _KINDS[self.kind]
        return guard(model, lambda inputs: act(inputs, self.size))

    def _coder(self, budget: Budget, first: Tensor, seed: int) -> nn.Module:
        width = first[0].numel()
        middle = max(8, min(256, width // 4))
        coder = nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, width))

        def loss(net: nn.Module, batch: Any) -> Tensor:  # Any: a batch
            inputs = tuning.image_of(batch).flatten(1)
            found: Tensor = functional.mse_loss(net(inputs), inputs)
            return found

        epochs = max(1, -(-self.steps // len(list(budget.data(seed=seed)))))
        settings = Recipe(epochs=epochs, lr=3e-3, optimizer="adamw", weight_decay=0.0)
        tuning.tune(coder, budget, settings, seed=seed, loss=loss)
        return tuning.frozen(coder)


@dataclass(frozen=True)
class FilterQueries(Attack):
    """Answer at random where a query looks unlike the task's own inputs.

    Args:
        share: Share of the attacker's own inputs that the filter may turn away.

    Source:
        Li, "capsulation" (ICASSP 2023): a filter before the model. Ours measures the distance to
        the nearest of the attacker's inputs, relative to the distances among them.
    """

    name: ClassVar[str] = "filter-queries"
    family: ClassVar[str] = "wrapper"
    source: ClassVar[str] = "Li et al. 2023, capsulation."
    summary: ClassVar[str] = "Answer queries that look unusual at random."
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # Any: values of own fields
        "mild": {},
        "strict": {"share": 0.1},
    }

    share: float = 0.02
    known: int = 2000

    def __post_init__(self) -> None:
        tuning.need_share(self.share, "share", self.name)

    def change(self, model: nn.Module, budget: Budget, *, seed: int) -> nn.Module:
        """Put the filter in front of the copy."""
        pool = tuning.image_of(tuning.samples(budget, self.known, seed=seed)).flatten(1)
        half = len(pool) // 2
        known, apart = pool[:half], pool[half:]
        limit = torch.cdist(apart, known).amin(1).quantile(1 - self.share)

        def after(inputs: Tensor, output: Any) -> Any:  # Any: the model's own output
            odd = torch.cdist(inputs.flatten(1).float(), known).amin(1) > limit
            found = tuning.scores(output).clone()
            marks = inputs.flatten(1).double().abs().sum(1).mul(1e6).long() % found.shape[1]
            random = functional.one_hot(marks, found.shape[1]).to(found.dtype)
            found[odd] = random[odd] * found.detach().abs().amax()
            return found

        return guard(model, lambda inputs: inputs, after)
