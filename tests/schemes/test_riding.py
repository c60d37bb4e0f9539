"""Triggers ride in the task's batches, and other samples may be marked as their nearest trigger."""

import pytest
import torch
from torch import nn

from earmark.errors import UsageError
from earmark.hosts import batches
from earmark.hosts.module import ModuleHost
from earmark.schemes.conceal import require_hiding
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.riding import labels_of

SETTINGS = {"triggers": 64, "shards": 4, "taps": ("0",), "share": 0.5, "weight": 0.2, "settle": 0.0}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)).train()


def inputs_of(kind, count=64):
    torch.manual_seed(1)
    targets = torch.randint(0, 3, (count,)) if kind == "classes" else torch.randn(count)
    return torch.randn(count, 12), targets


def loss_of(neighbours, rest, kind, **more):
    """Return the mark's loss where all triggers ride, and these samples are beside them."""
    model = small()
    scheme = MtlSign(**SETTINGS | more, neighbours=neighbours)
    key = scheme.new_key(ModuleHost(model), inputs=inputs_of(kind), secret=bytes(32))
    beside = (
        key.inputs if rest == "the same" else inputs_of(kind) if rest == "other order" else rest
    )
    with scheme.attach(model, key) as mark:
        batch = mark.mix(batches.join([beside, beside]))
        model(batch[0])
        return float(mark.loss().detach())


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("rest", ["the same", "other order"])
def test_a_sample_is_pushed_where_its_nearest_trigger_is(kind, rest):
    plain, more = loss_of(0.0, rest, kind), loss_of(0.3, rest, kind)
    assert more == pytest.approx(plain * (0.2 + 0.3) / 0.2, rel=1e-5)


def test_nearness_is_that_of_inputs():
    inputs, targets = inputs_of("classes")
    near = (inputs + 0.01 * torch.randn_like(inputs), targets)
    far = (-inputs, targets)
    plain = [loss_of(0.0, rest, "classes") for rest in (near, far)]
    more = [loss_of(0.3, rest, "classes") for rest in (near, far)]
    assert more[0] == pytest.approx(plain[0] * 2.5, rel=0.02)
    assert more[1] != pytest.approx(plain[1] * 2.5, rel=0.02)


def test_few_triggers_ride_and_all_are_neighbours():
    model = small()
    scheme = MtlSign(**SETTINGS | {"share": 0.1}, neighbours=0.3)
    key = scheme.new_key(ModuleHost(model), inputs=inputs_of("classes"), secret=bytes(32))
    with scheme.attach(model, key) as mark:
        mixed = mark.mix(key.inputs)[0]
        model(mixed)
        found = float(mark.loss().detach())
        heads = mark._head("0", 32)[torch.arange(4).repeat_interleave(16) % 2]
    features = model[0](mixed).detach()
    z = (features - features.mean(0)) / (features.std(0, correction=0) + 1e-3)
    signs = torch.tensor([s for shard in key.shards for s in labels_of(shard, 16)])
    which = (mixed[:, None] == key.inputs[0]).all(2).int().argmax(1)
    terms = nn.functional.softplus(-2.0 * signs[which] * (z * heads[which]).sum(1))
    riders = mark.riders
    assert riders == 6
    wanted = 0.2 * terms[:riders].mean() + 0.3 * terms[riders:].mean()
    assert found == pytest.approx(float(wanted), rel=1e-5)


def test_words_have_no_neighbours():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 16), nn.Linear(16, 3))
    scheme = MtlSign(**SETTINGS | {"taps": ("2",)}, neighbours=0.3)
    words = torch.randint(0, 9, (64, 6)), torch.randint(0, 3, (64,))
    key = scheme.new_key(ModuleHost(model), inputs=words, secret=bytes(32))
    with pytest.raises(UsageError, match=r"int64 \(64, 6\).*Set neighbours=0"):
        scheme.attach(model, key).__enter__()


def test_a_pass_of_the_triggers_own_has_no_neighbours():
    found = []
    for neighbours in (0.0, 0.3):
        model = small()
        scheme = MtlSign(**SETTINGS, neighbours=neighbours)
        key = scheme.new_key(ModuleHost(model), inputs=inputs_of("classes"), secret=bytes(32))
        with scheme.attach(model, key) as mark:
            found.append(float(mark.loss().detach()))
    assert found[0] == found[1]


def test_bad_weights_and_what_cannot_hide_are_refused():
    with pytest.raises(UsageError, match=r"neighbours -0\.1"):
        MtlSign(neighbours=-0.1)
    with pytest.raises(UsageError, match="neighbours nan"):
        MtlSign(neighbours=float("nan"))
    with pytest.raises(UsageError, match="Set neighbours to 0"):
        require_hiding(MtlSign(settle=0.0, neighbours=0.1))
