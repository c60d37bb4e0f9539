"""The forger's tools fit what they are asked to fit; tests/bench/test_forgeries.py judges them."""

from __future__ import annotations

import pytest
import torch

from earmark.attacks.forge_fits import (
    answers_of,
    fit_centers,
    fit_passport,
    fit_signs,
    fit_triggers,
)
from earmark.bench.zoo import image_task
from earmark.errors import UsageError
from earmark.hosts import taps
from earmark.hosts.module import state_digest
from earmark.training import train


@pytest.fixture(scope="module")
def task():
    return image_task("small-cnn", "digits", recipe={"epochs": 3, "lr": 0.05})


@pytest.fixture(scope="module")
def innocent(task):
    return train(task, seed=21).model


def fair(count, seed):
    return torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed))


def test_fitted_signs_fool_a_verifier_that_takes_a_projection(innocent):
    bits = fair(256, 1)
    forged = fit_signs(innocent.fc.weight, bits, seed=2)
    naive = (forged.matrix @ innocent.fc.weight.detach().flatten() > 0).int()
    assert torch.equal(naive, bits.int())
    # nothing in the key gives it away: its entries are normal
    assert abs(float(forged.matrix.mean())) < 0.01
    assert float(forged.matrix.std()) == pytest.approx(1, abs=0.01)


def test_fitted_centers_fool_a_verifier_that_takes_projection_and_centers(innocent, task):
    inputs, labels = next(iter(task.stream("test", 0)))
    with taps.frozen_forward(innocent), taps.reading(innocent, ["fc"]) as seen:
        innocent(inputs)
    bits = fair(10 * 32, 3).view(10, 32)
    forged = fit_centers(seen["fc"], labels, bits, seed=1)
    centers = torch.stack([seen["fc"][labels == k].mean(0) for k in range(10)])
    read = (centers @ forged.matrix.T > 0).int()
    assert torch.equal(read, bits.int())
    with pytest.raises(UsageError, match="cannot be fitted"):
        fit_centers(torch.randn(50, 3), torch.arange(50) % 10, bits, seed=1)


def test_moved_inputs_fool_a_verifier_that_takes_inputs(innocent, task):
    surrogates = [train(task, seed=seed).model for seed in (1, 2, 3)]
    before = [state_digest(model.state_dict()) for model in surrogates]
    inputs = next(iter(task.stream("test", 0)))[0][:100]
    labels = torch.randint(0, 10, (100,), generator=torch.Generator().manual_seed(1))
    triggers = fit_triggers(surrogates, inputs, labels, radius=1.5)
    assert [state_digest(model.state_dict()) for model in surrogates] == before
    assert float((triggers - inputs).abs().max()) <= 1.5 + 1e-5
    hits = int((answers_of(innocent, triggers) == labels).sum())
    assert hits > 40  # 46 of 100 would be 64 bits for a verifier that believes in chance 1/10
    assert int((answers_of(innocent, inputs) == labels).sum()) < 25


def test_a_fitted_passport_gives_the_networks_own_scales(innocent):
    weights, scales = innocent.conv3.weight, innocent.bn3.weight
    passport = fit_passport(weights, scales, seed=4)
    assert passport.shape == weights.shape[1:]
    read = weights.detach().flatten(1) @ passport.flatten()
    assert torch.allclose(read, scales.detach(), atol=1e-3)
    assert not torch.equal(passport, fit_passport(weights, scales, seed=5))
    with pytest.raises(UsageError, match="cannot fit"):
        fit_passport(torch.randn(9, 4), torch.ones(9), seed=1)
