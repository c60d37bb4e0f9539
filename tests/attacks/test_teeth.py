"""Every attack removes a naive mark that it is known to remove: a toothless attack is caught."""

from __future__ import annotations

import pytest

from earmark.bench.cells import parse
from earmark.bench.run import build
from earmark.errors import CarrierError

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
]


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
