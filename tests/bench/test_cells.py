"""Cells and plans: the same words give the same digest, and mistakes are all named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from earmark import registry
from earmark.attacks.chain import Chain
from earmark.bench.battery import BATTERIES, attacks_of
from earmark.bench.cells import Cell, Means, Step, parse, step_of
from earmark.bench.plan import Plan
from earmark.bench.run import build
from earmark.errors import FileError, FormatError, RecordError, UnknownNameError, UsageError


def test_the_digest_depends_on_the_content_and_on_nothing_else():
    one = Cell({"a": 1, "b": 2}, (Step("prune", {"share": 0.5, "scope": "layer"}),), 3)
    same = Cell({"b": 2, "a": 1}, (Step("prune", {"scope": "layer", "share": 0.5}),), 3)
    assert one.digest() == same.digest()
    others = [
        Cell({"a": 1, "b": 3}, one.attack, 3),
        Cell(one.subject, (), 3),
        Cell(one.subject, one.attack, 4),
        Cell(one.subject, one.attack, 3, means=Means(data_fraction=0.25)),
        Cell(one.subject, one.attack, 3, means=Means(labels=False)),
    ]
    assert len({cell.digest() for cell in [one, *others]}) == 6
    assert Cell.from_bytes(one.canonical()) == one


@pytest.mark.parametrize(
    ("what", "labels"),
    [
        ("prune", ["prune"]),
        ("prune:80", ["prune(share=0.8)"]),
        ("none", []),
        ({"name": "prune", "share": 0.7}, ["prune(share=0.7)"]),
        ({"name": "prune", "preset": "layer-90", "epochs": 1}, None),
        ("noise:30 >> permute", ["noise(share=0.3)", "permute"]),
        (["noise", {"name": "prune"}], ["noise", "prune"]),
    ],
)
def test_reads_every_way_of_writing_an_attack(what, labels):
    steps = parse(what, kind="attack")
    if labels is None:
        assert steps[0].settings == {"share": 0.9, "scope": "layer", "epochs": 1}
    else:
        assert [step.label() for step in steps] == labels


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("prunne", UnknownNameError),
        ("prune:81", UsageError),
        ({"name": "prune", "shar": 1}, UsageError),
        ({"name": "prune", "share": 7}, UsageError),
        ("prune 80", UsageError),
        (7, UsageError),
    ],
)
def test_refuses_what_names_nothing(what, error):
    with pytest.raises(error):
        parse(what, kind="attack")


def test_a_step_builds_what_it_was_made_from():
    for names in BATTERIES.values():
        for text in names:
            steps = parse(text, kind="attack")
            for step in steps:
                assert step_of(step.attack()) == step
            if len(steps) > 1:
                assert isinstance(build(steps, registry.scheme("mtlsign")), Chain)


def test_batteries_grow():
    quick, standard, full = (set(attacks_of(name)) for name in ("quick", "standard", "full"))
    assert quick < standard < full
    assert "none" in quick
    assert len(standard) >= 30
    with pytest.raises(UnknownNameError):
        attacks_of("huge")


def test_a_plan_is_the_product_of_its_lists(tmp_path):
    path = tmp_path / "first.toml"
    path.write_text(
        'schemes = ["deepwater", {name = "mtlsign", triggers = 256}]\n'
        'networks = ["mlp", "small-cnn"]\ndata = ["digits"]\nattacks = ["none", "prune:80"]\n'
        "seeds = [0, 1, 2]\npayloads = 2\nunmarked = true\n"
    )
    plan = Plan.read(path)
    pairs = plan.cells(tmp_path)
    assert plan.name == "first"
    assert len(pairs) == 2 * 2 * 2 * 3 * 2 * 2
    assert len({cell.digest() for _, cell in pairs}) == len(pairs)
    assert str(tmp_path) not in str(pairs[0][1].to_json())


def test_a_battery_adds_its_attacks_once():
    body = {"schemes": ["deepwater"], "networks": ["mlp"], "data": ["digits"]}
    plan = Plan.of({**body, "battery": "quick", "attacks": ["permute"]})
    assert len(plan.attacks) == len(attacks_of("quick"))


def test_reports_all_mistakes_of_a_plan_at_once():
    with pytest.raises(UsageError) as caught:
        Plan.of({"schemes": ["depwater"], "attacks": ["prune:1"], "sedes": [1], "networks": []})
    for word in ("depwater", "preset '1'. It has: ", "sedes"):
        assert word in str(caught.value)
    with pytest.raises(UsageError) as caught:
        Plan.of({"schemes": ["deepwater"], "networks": ["mpl"], "data": ["digit"]})
    assert "'mpl'" in str(caught.value)
    assert "'digit'" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schemes": "mtlsign"}, ["schemes is 'mtlsign', not a list, in brackets."]),
        ({"networks": "mlp", "data": "x"}, ["networks is 'mlp', not a list", "data is 'x', not a"]),
        ({"attacks": {"name": "prune"}}, ["attacks is {'name': 'prune'}, not a list"]),
        ({"seeds": 3}, ["seeds is 3, not a list"]),
        ({"seeds": ["a", True, 0.5]}, ["has seed 'a', seed True, seed 0.5.", "Seeds: whole numbers"]),
        ({"networks": [["mlp"]]}, ["has network ['mlp']"]),
        ({"random_chains": "x", "payloads": True}, ["random_chains is 'x'", "payloads is True, not a"]),
        ({"unmarked": 1, "data_fraction": "all"}, ["unmarked is 1, not true", "data_fraction is 'all'"]),
        ({"recipe": ["epochs"], "name": 1}, ["recipe is ['epochs'], not a table", "name is 1"]),
    ],
)  # fmt: skip
def test_a_setting_of_another_type_is_named_with_what_it_should_be(changes, said):
    body = {"schemes": ["mtlsign"], "networks": ["mlp"], "data": ["digits"], "seeds": [0]}
    with pytest.raises(UsageError) as caught:
        Plan.of(body | changes)
    assert all(words in str(caught.value) for words in said), str(caught.value)
    assert str(caught.value).count("not ") <= len(changes)


def test_a_misspelt_scheme_ends_in_one_full_stop():
    with pytest.raises(UsageError) as caught:
        Plan.of({"schemes": ["mtlsgn"], "networks": ["mlp"], "data": ["digits"]})
    assert str(caught.value).endswith("Did you mean mtlsign.")


def test_refuses_files_that_are_no_plans(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("seeds = [")
    with pytest.raises(FormatError):
        Plan.read(path)
    with pytest.raises(FileError):
        Plan.read(tmp_path / "absent.toml")
    with pytest.raises(RecordError):
        Cell.from_bytes(b"{}")


def test_a_plan_may_ask_for_random_chains():
    body = {"schemes": ["uchida"], "networks": ["mlp"], "data": ["digits"]}
    made = Plan.of(body | {"attacks": ["none"], "random_chains": 4})
    assert [len(chain) for chain in made.attacks] == [0, 3, 3, 3, 3]
    assert made == Plan.of(body | {"attacks": ["none"], "random_chains": 4})


def test_the_plan_of_the_documentation_is_one(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    body = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "plan.toml").write_text(body)
    made = Plan.read(tmp_path / "plan.toml")
    assert made.means.data_fraction == 0.3
    assert len(made.attacks) >= 14
