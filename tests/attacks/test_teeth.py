"""Every attack removes a naive mark that it is known to remove: a toothless attack is caught."""

from __future__ import annotations

import pytest

from earmark import registry
from earmark.bench.cells import parse
from earmark.bench.run import build
from earmark.errors import CarrierError

OVERWRITE = {"name": "overwrite", "scheme": "uchida", "settings_of_scheme": {"bits": 16}}
# attack, naive mark, most bits that may be left, least accuracy that must be left
CASES = [
    ("noise:10", "fragile", 8, 90),
    ("cast:bf16", "fragile", 8, 95),
    ("quantize:int8", "fragile", 8, 95),
    ("quantize:int4", "fragile", 8, 90),
    ("quantize-dynamic", "fragile", 8, 95),
    ("prune:80", "fragile", 25, 60),
    ("finetune:ftal", "fragile", 8, 95),
    ("finetune:rtal", "fragile", 8, 90),
    ("refit:ewc", "fragile", 8, 95),
    ("permute", "sign", 8, 95),
    ("permute", "conv-sign", 8, 95),
    ("flip-signs", "conv-sign", 8, 95),
    ("obfuscate:exact", "sign", 8, 95),
    ("dummies:zero", "sign", 8, 95),
    ("dummies:clique", "sign", 8, 95),
    ("prune-channels:30-shrunk", "sign", 8, 90),
    ("finetune:high-lr", "fragile", 8, 95),
    ("merge:average", "fragile", 8, 95),
    ("factor", "sign", 8, 95),
    ("shift-weights", "trigger", 10, 95),
    ("regularize", "trigger", 100, 95),
    ("smooth-labels:high-lr", "trigger", 20, 50),
    pytest.param("train-adversarially", "trigger", 110, 95, marks=pytest.mark.slow),
    ("fine-prune:sok", "trigger", 60, 95),
    ("distill-attention:strong", "trigger", 40, 90),
    pytest.param(
        {"name": "prune-adversarially", "steps": 60}, "trigger", 110, 75, marks=pytest.mark.slow
    ),
    pytest.param(
        {"name": "cleanse-patches", "steps": 40}, "trigger", 40, 85, marks=pytest.mark.slow
    ),
    ({"name": "launder", "steps": 40}, "trigger", 50, 85),
    ("distill", "sign", 8, 95),
    ("distill:cross", "trigger", 8, 80),
    ("retrain:hard", "sign", 8, 95),
    ("retrain:smooth", "trigger", 8, 90),
    pytest.param("retrain:soft", "trigger", 8, 90, marks=pytest.mark.slow),
    ("transfer", "sign", 8, 80),
    pytest.param("preprocess:autoencoder", "trigger", 40, 80, marks=pytest.mark.slow),
    ("preprocess:jpeg", "trigger", 110, 90),
    ("preprocess:blur", "trigger", 100, 85),
    ("preprocess:flip", "trigger", 10, 30),
    ("filter-queries", "trigger", 8, 90),
    ("finetune:ftll", "head-fragile", 8, 95),
    ("finetune:rtll", "head-fragile", 8, 95),
    ("refit:unlabelled", "fragile", 8, 95),
    ("cast:fp16", "fragile", 20, 95),
    ("prune:random-30", "fragile", 30, 15),
    ("scale", "fragile", 8, 95),
    ("fold-norms", "conv-fragile", 8, 95),
    ("dummies:split", "sign", 8, 95),
    ("dummies:active", "sign", 8, 95),
    ("merge:ties", "fragile", 45, 95),
    ("merge:arithmetic", "fragile", 8, 95),
    (OVERWRITE, "fragile", 8, 95),
    ("collapse:heavy", "trigger", 60, 95),
    ("scramble:own-heavy", "trigger", 70, 75),
    ("reset-tail", "trigger", 30, 95),
    ("distill-features", "sign", 8, 90),
    ("retrain:cross", "trigger", 8, 80),
    ({"name": "knockoff", "queries": 3000}, "sign", 8, 60),
    ({"name": "jacobian-augmentation", "rounds": 2}, "trigger", 20, 70),
]
ELSEWHERE = {  # where the same is asserted with other models, copies or inputs
    "collude": "test_structure.py",
    "mix-units": "test_structure.py",
    "transformer-gauge": "test_structure.py",
}


def test_every_attack_of_the_registry_has_a_case():
    cased = set()
    for case in CASES:
        text = case.values[0] if hasattr(case, "values") else case[0]
        cased |= {step.name for step in parse(text, kind="attack")}
    assert set(registry.names("attack")) - cased <= set(ELSEWHERE)


@pytest.mark.parametrize(("text", "mark", "most", "least"), CASES, ids=str)
def test_removes_a_naive_mark(victims, text, mark, most, least):
    victim = victims[mark]
    before = victim.bits(victim.model)
    assert before > 35
    attack = build(parse(text, kind="attack"), victim)
    attacked = attack.run(victim.model, victim.budget, seed=5)
    try:
        left = victim.bits(attacked)
    except CarrierError:  # the tensor's shape has changed: a naive reader sees nothing
        left = 0.0
    assert left <= most
    assert victim.task.evaluate(attacked) >= least
    assert victim.bits(victim.model) == before
