"""Reading charges every form, and alignment brings reordered marks back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from earmark.attacks.base import Budget
from earmark.attacks.obfuscate import Obfuscate, Permute
from earmark.bench.cells import Step
from earmark.bench.reading import read
from earmark.bench.subjects import Ground, ZooSubject
from earmark.bench.zoo import image_task
from earmark.errors import CarrierError
from earmark.policy import judge
from earmark.schemes.deepwater import DeepWater
from earmark.schemes.embedding import embed, starting_model
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


@pytest.mark.parametrize(("seed", "found"), [(0, True), (1, False)])
def test_alignment_is_to_the_network_before_its_training_where_that_is_known(ground, seed, found):
    start = starting_model(ground.task, ground.scheme, ground.key, seed=seed)
    moved = Permute().run(ground.model, Budget(ground.task), seed=1)
    evidence = read(replace(ground, start=start), ground.task.host(moved))
    assert (judge(evidence).bits > 200) is found


def test_a_subject_of_the_zoo_knows_its_start(tmp_path):
    subject = ZooSubject(
        Step("deepwater"), "small-cnn", "digits", 3, str(tmp_path),
        samples=256, tests=16, recipe={"epochs": 1},
    )  # fmt: skip
    opened = subject.open()
    start = starting_model(opened.task, opened.scheme, opened.key, seed=3)
    kept = {name: tensor.tolist() for name, tensor in opened.start.state_dict().items()}
    assert kept == {name: tensor.tolist() for name, tensor in start.state_dict().items()}


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
