"""The conformance checks pass good plugins and catch broken ones; entry points work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from earmark import registry
from earmark.errors import ExtraError, UnknownNameError, UsageError
from earmark.testing import check_attack, check_scheme, null_excess, tiny_task

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A third party's distribution on the path, without a wheel."""
    folder = tmp_path / "toy-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[earmark.schemes]\ntoy-sign = toy_mark:SignMark\nabsent = not_there_at_all:Thing\n"
        "[earmark.attacks]\ntoy-halve = toy_mark:ToyAttack\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(TOY))
    return sys.modules


def test_a_third_partys_plugin_is_found_and_conforms(plugin):
    assert "toy-sign" in registry.names("scheme")
    assert "toy-halve" in registry.names("attack")
    scheme = registry.scheme("toy-sign", bits=48)
    found = check_scheme(scheme, keys=30)
    assert {check.name for check in found} >= {"round trip", "null calibration", "half precision"}
    assert {check.host for check in found} >= {"mlp", "cnn", "transformer"}
    check_attack(registry.attack("toy-halve", factor=0.25))


def test_a_plugin_that_lacks_a_package_says_which(plugin):
    with pytest.raises(ExtraError, match="not_there_at_all"):
        registry.scheme("absent")


def test_without_the_plugin_the_name_is_unknown():
    with pytest.raises(UnknownNameError):
        registry.scheme("toy-sign")


def test_catches_a_scheme_that_accuses_everybody(plugin):
    from toy_mark import LazyMark

    with pytest.raises(AssertionError, match="null calibration on mlp"):
        check_scheme(LazyMark(), keys=30, hosts=["mlp"])


def test_catches_a_scheme_that_embeds_nothing(plugin):
    from toy_mark import SignMark

    with pytest.raises(AssertionError, match="round trip"):
        check_scheme(SignMark(weight=0.0), keys=5, hosts=["mlp"])


def test_catches_a_broken_attack(plugin):
    from toy_mark import RudeAttack

    with pytest.raises(AssertionError) as caught:
        check_attack(RudeAttack(), hosts=["mlp"])
    said = str(caught.value)
    assert "repeats with the same seed" in said
    assert "keeps the function" in said


def test_fair_p_values_raise_no_complaint_and_small_ones_do():
    import math

    fair = [math.log2((i + 1) / 400) for i in range(400)]
    assert null_excess(fair) == []
    assert null_excess([value - 5 for value in fair])


def test_the_toy_task_can_be_learned():
    from earmark.training import train

    task = tiny_task("mlp", samples=256)
    before = task.evaluate(task.model())
    assert task.evaluate(train(task, seed=0).model) > before + 30


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"triggers": "abc"}, "triggers of the scheme 'mtlsign' is 'abc'"),
        ({"triggers": 256.5}, "A whole number"),
        ({"triggers": True}, "A whole number"),
        ({"weight": "much"}, "A number"),
        ({"deeper": 1}, "true or false"),
        ({"taps": [1]}, "a list of names"),
    ],
)
def test_settings_of_another_type_are_named(settings, words):
    with pytest.raises(UsageError, match=words):
        registry.scheme("mtlsign", **settings)


def test_one_name_is_a_list_of_names():
    assert registry.scheme("mtlsign", taps="fc").taps == ("fc",)
    assert registry.scheme("mtlsign", weight=1).weight == 1
