"""Reading charges every form, and alignment brings reordered marks back."""

from __future__ import annotations

import pytest

from earmark.attacks.base import Budget
from earmark.attacks.obfuscate import Obfuscate, Permute
from earmark.bench.reading import read
from earmark.bench.subjects import Ground
from earmark.bench.zoo import image_task
from earmark.errors import CarrierError
from earmark.policy import judge
from earmark.schemes.deepwater import DeepWater
from earmark.schemes.embedding import embed
from earmark.training import train


@pytest.fixture(scope="module")
def ground():
    task = image_task("small-cnn", "digits", recipe={"epochs": 2, "lr": 0.05})
    scheme = DeepWater(weights_per_bit=256, most_bits=512)
    key = scheme.new_key(task.host(task.model()), secret=bytes(32))
    model = embed(task, scheme, key, seed=0).model
    return Ground(task, model, scheme, key, task.evaluate(model), 1.0, ("d", "c", "x"))


@pytest.mark.parametrize("attack", [Permute(), Obfuscate()], ids=lambda item: item.name)
def test_alignment_brings_the_mark_back(ground, attack):
    moved = attack.run(ground.model, Budget(ground.task), seed=1)
    host = ground.task.host(moved)
    try:
        in_place = judge(ground.scheme.measure(host, ground.key)).bits
    except CarrierError:
        in_place = 0.0
    found = read(ground, host)
    assert in_place < 20
    assert judge(found).bits > 200
    assert found.tried.forms == 2


def test_both_forms_are_charged_even_if_the_first_suffices(ground):
    plain = ground.scheme.measure(ground.task.host(ground.model), ground.key)
    found = read(ground, ground.task.host(ground.model))
    assert (plain.tried.forms, found.tried.forms) == (1, 2)
    assert (found.hits, found.trials) == (plain.hits, plain.trials)


def test_an_innocent_model_stays_innocent(ground):
    innocent = train(ground.task, seed=9).model
    assert judge(read(ground, ground.task.host(innocent))).bits < 20


def test_says_why_nothing_could_be_read(ground):
    from earmark.bench.zoo import Mlp

    with pytest.raises(CarrierError):
        read(ground, ground.task.host(Mlp((1, 8, 8), 10, hidden=16)))
