"""Every forgery: the naive verifier accepts it, ours does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from earmark import registry
from earmark.bench.data import load
from earmark.bench.forgeries import stage_of
from earmark.bench.zoo import image_task
from earmark.errors import HostError
from earmark.hosts.module import state_digest
from earmark.training import train

SETTINGS = {"head-fit": {"rounds": 120}}


@pytest.fixture(scope="module")
def stage():
    digits = load("digits")  # three times as large: published QR codes need 24 pixels
    large = {
        part: getattr(digits, part).repeat_interleave(3, 2).repeat_interleave(3, 3)
        for part in ("train", "test")
    }
    task = image_task("small-cnn", replace(digits, **large), recipe={"epochs": 4, "lr": 0.05})
    models = [train(task, seed=seed).model for seed in (21, 1, 2, 3)]
    return stage_of(task, models[0], tuple(models[1:]))


def forged(stage, name, tries):
    before = state_digest(stage.victim.state_dict())
    found = registry.load("forgery", name)(**SETTINGS.get(name, {})).run(stage, tries=tries, seed=7)
    assert state_digest(stage.victim.state_dict()) == before
    assert found.name == name
    assert found.fooled == found.naive > 0, "the control must accept, or a refusal means nothing"
    assert found.accepted == 0
    assert found.best < 40
    return found


@pytest.mark.parametrize("name", registry.names("forgery"))
def test_the_naive_verifier_accepts_and_ours_refuses(stage, name):
    found = forged(stage, name, 20)
    assert found.tries >= 1
    assert found.reason
    cls = registry.load("forgery", name)
    assert cls.source
    assert cls.summary
    assert cls.fools


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", sorted(set(registry.names("forgery")) - {"pre-registration"}))
def test_ours_refuses_ten_thousand(stage, name):
    assert forged(stage, name, 10_000).tries == 10_000


def test_a_forgery_repeats_and_says_what_it_lacks(stage):
    one = forged(stage, "key-grinding", 50)
    assert one == forged(stage, "key-grinding", 50)
    alone = stage_of(stage.task, stage.victim)
    with pytest.raises(HostError, match="surrogates"):
        registry.load("forgery", "transferable-triggers")().run(alone, tries=1, seed=0)
