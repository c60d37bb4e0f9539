"""More of the forger's tools: keys and triggers fitted to a model that bears no mark of the forger.

A verifier who accepts a free projection, free centers or free inputs accepts these; a key of which
everything follows from committed secret bytes leaves nothing to fit. The tests run both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.errors import UsageError
from earmark.hosts import taps


@dataclass(frozen=True)
class FittedSigns:
    """A forged key for a verifier that takes a projection and a message from the claimant.

    Args:
        matrix: (bits, weights), entries of normal law.
        bits: (bits,), 0 or 1.
    """

    matrix: Tensor
    bits: Tensor


def fit_signs(weights: Tensor, bits: Tensor, *, seed: int) -> FittedSigns:
    """Choose a message first, then flip rows of a random projection until it reads out.

    Args:
        weights: Any model's carrier, any shape.
        bits: The forger's message, 0 or 1.
        seed: Seed of the projection.

    Returns:
        A key with no bit error on this model. Every row is as random as before: a flipped normal
        vector is a normal vector.

    Source:
        The ambiguity attack that every scheme with a free projection allows (Uchida et al. 2017
        and its relatives); one line a bit.

    Example:
        >>> forged = fit_signs(torch.randn(50), torch.tensor([1, 0, 1]), seed=1)
        >>> forged.matrix.shape
        torch.Size([3, 50])
    """
    generator = torch.Generator().manual_seed(seed)
    flat = weights.detach().flatten().float()
    matrix = torch.randn(len(bits), len(flat), generator=generator)
    wrong = (matrix @ flat > 0) != (bits > 0)
    matrix[wrong] *= -1
    return FittedSigns(matrix, bits)


def fit_centers(features: Tensor, groups: Tensor, bits: Tensor, *, seed: int) -> FittedSigns:
    """Fit a projection to the mean activations of groups of inputs, for a message chosen before.

    Args:
        features: (samples, width), activations of the victim on inputs of the forger.
        groups: (samples,), number of the group of each.
        bits: (groups, bits a group), the forger's message, 0 or 1.
        seed: Seed of the projection.

    Returns:
        A projection (bits a group, width) under which the centers read as the message, as far as
        one projection can serve all groups: exactly, if there are no more groups than dimensions.

    Raises:
        UsageError: More groups than dimensions.

    Source:
        The same ambiguity in schemes that read the signs of projected activation centers
        (Rouhani et al. 2019) when the claimant may submit projection and centers.
    """
    names = torch.unique(groups)
    centers = torch.stack([features[groups == name].float().mean(0) for name in names])
    if len(names) > centers.shape[1]:
        raise UsageError(
            f"{len(names)} groups cannot be fitted in {centers.shape[1]} dimensions.",
            expected="No more groups than dimensions.",
        )
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(bits.shape[1], centers.shape[1], generator=generator)
    # the least change of a random projection that puts every center on the wanted side
    wanted = (2.0 * bits.T - 1) * (start @ centers.T).abs().mean()
    change = torch.linalg.lstsq(centers.double(), (wanted - start @ centers.T).double().T).solution
    return FittedSigns(start + change.T.float(), bits)


def fit_triggers(
    models: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    radius: float,
    steps: int = 40,
    score: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Tensor:
    """Move inputs until several surrogate models answer as the forger wants; others often follow.

    Args:
        models: Surrogates of the forger's own.
        inputs: (samples, ...) to start from.
        labels: (samples,), the answers wanted.
        radius: Largest change of an input's entry.
        steps: Steps of the ascent.
        score: How to run a model; by default it is called.

    Returns:
        Triggers of the shape of the inputs. No model was changed.

    Source:
        Liu et al. 2024 (false claims): adversarial inputs that transfer.
    """
    run = score or (lambda model, batch: model(batch))
    moved = inputs.detach().clone()
    for _ in range(steps):
        moved.requires_grad_()
        total = torch.zeros(())
        for model in models:
            with _still(model):
                total = total + functional.cross_entropy(run(model, moved).float(), labels)
        (slope,) = torch.autograd.grad(total, moved)
        moved = moved.detach() - 2.5 * radius / steps * slope.sign()
        moved = inputs + (moved - inputs).clamp(-radius, radius)
    return moved.detach()


class _still:  # noqa: N801 - used as a function
    """Run a model in evaluation mode, gradients to its inputs allowed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modes = [part.training for part in model.modules()]

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for part, mode in zip(self.model.modules(), self.modes, strict=True):
            part.training = mode


def answers_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a model's labels, as a verifier that asks for labels sees them."""
    with taps.frozen_forward(model):
        found: Tensor = model(inputs).argmax(1)
    return found


def fit_passport(weights: Tensor, scales: Tensor, *, seed: int) -> Tensor:
    """Find a passport under which a layer gives the scales that its network works with.

    Args:
        weights: The layer's weights (units, ...), with no fewer entries a unit than units.
        scales: (units,), the scales of the stolen network, one a unit.
        seed: Seed of the random passport to start from.

    Returns:
        A passport of the shape of one unit's weights: its product with each unit's weights is that
        unit's scale. It is a random one, moved as little as possible.

    Raises:
        UsageError: Fewer entries than units.

    Source:
        The ambiguity attack on passports (Chen et al. 2023, on Fan, Ng and Chan 2019). Theirs
        trains a block in front of the passport; where scales are linear in the passport, the
        least-squares step here is exact and needs no data.

    Example:
        >>> weights = torch.randn(4, 9)
        >>> passport = fit_passport(weights, torch.ones(4), seed=1)
        >>> bool(((weights @ passport) - 1).abs().max() < 1e-4)
        True
    """
    flat = weights.detach().flatten(1).double()
    if flat.shape[1] < flat.shape[0]:
        raise UsageError(
            f"A passport of {flat.shape[1]} entries cannot fit {flat.shape[0]} scales.",
            expected="No fewer entries than units.",
        )
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(flat.shape[1], generator=generator).double()
    missing = scales.detach().double() - flat @ start
    found = start + torch.linalg.lstsq(flat, missing[:, None]).solution[:, 0]
    passport: Tensor = found.view(weights.shape[1:]).float()
    return passport
