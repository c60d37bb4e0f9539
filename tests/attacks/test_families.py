"""Each attack changes what it should: weights, masks, grids, layers, keys."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from earmark import registry
from earmark.attacks.base import Budget, Knowledge
from earmark.attacks.chain import Chain
from earmark.attacks.finetune import FineTune, Refit
from earmark.attacks.noise import Noise
from earmark.attacks.overwrite import Overwrite
from earmark.attacks.prune import Prune, PruneChannels
from earmark.attacks.quantize import Cast, Quantize, QuantizeDynamic, round_to
from earmark.bench.zoo import image_task
from earmark.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


@pytest.fixture
def victim(victims):
    return victims["sign"]


def run(attack, victim, seed=2, **changes):
    from dataclasses import replace

    return attack.run(victim.model, replace(victim.budget, **changes), seed=seed)


def zeros(model):
    parts = [item for item in model.parameters() if item.ndim > 1]
    return sum(int((p == 0).sum()) for p in parts) / sum(p.numel() for p in parts)


@pytest.mark.parametrize("share", [0.3, 0.65, 0.9])
def test_global_pruning_removes_the_smallest_weights(victim, share):
    changed = run(Prune(share=share), victim)
    assert zeros(changed) == pytest.approx(share, abs=1e-3)
    kept = [p[p != 0].abs().min() for p in changed.parameters() if p.ndim > 1]
    gone = [
        p[q == 0].abs().max()
        for p, q in zip(victim.model.parameters(), changed.parameters(), strict=True)
        if p.ndim > 1 and (q == 0).any()
    ]
    assert max(gone) <= min(kept)


def test_pruning_by_layer_takes_the_same_share_of_each(victim):
    changed = run(Prune(share=0.5, scope="layer"), victim)
    for item in changed.parameters():
        if item.ndim > 1:
            assert float((item == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("attack", [Prune(share=0.8, epochs=2), PruneChannels(share=0.3, epochs=2)])
def test_zeros_stay_zeros_while_the_rest_trains(victim, attack):
    from dataclasses import replace

    still = run(replace(attack, epochs=0), victim)
    trained = run(attack, victim)
    moved = False
    for before, after in zip(still.parameters(), trained.parameters(), strict=True):
        if before.ndim > 1:
            assert bool((after[before == 0] == 0).all())
            moved |= not torch.equal(before, after)
    assert moved


@pytest.mark.parametrize(("bits", "per"), [(8, "channel"), (4, "channel"), (4, "tensor")])
def test_quantizing_leaves_few_values(victim, bits, per):
    weight = run(Quantize(bits=bits, per=per), victim).fc.weight
    rows = weight if per == "channel" else weight.reshape(1, -1)
    assert max(len(torch.unique(row)) for row in rows) <= 2**bits - 1
    gap = (weight - victim.model.fc.weight).abs().max() / victim.model.fc.weight.abs().max()
    assert 0 < float(gap) <= 1 / (2**bits - 2) + 1e-6


def test_rounding_is_symmetric_and_keeps_the_largest():
    weight = torch.tensor([[0.5, -1.0, 0.2], [0.0, 0.0, 0.0]])
    assert torch.allclose(round_to(-weight, 4), -round_to(weight, 4))
    assert round_to(weight, 8)[0, 1] == -1.0
    assert bool((round_to(weight, 8)[1] == 0).all())


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_casting_gives_values_of_the_format(victim, name):
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    for item in run(Cast(name), victim).parameters():
        assert item.dtype == torch.float32
        assert torch.equal(item, item.to(kind).float())


def test_dynamic_quantization_rounds_inputs_too(victim):
    changed = run(QuantizeDynamic(), victim)
    layer = changed.fc
    batch = torch.linspace(-1, 1, layer.in_features)[None]
    exact = nn.functional.linear(batch, layer.weight, layer.bias)
    assert 0 < float((layer(batch) - exact).abs().max()) < 0.1


def test_noise_has_the_given_size(victim):
    changed = run(Noise(share=0.1), victim)
    added = changed.fc.weight - victim.model.fc.weight
    assert float(added.std() / victim.model.fc.weight.std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(changed.fc.bias, victim.model.fc.bias)


def test_tuning_the_last_layer_leaves_the_others_alone(victim):
    changed = run(FineTune(layers="last", epochs=1), victim)
    for name, tensor in changed.state_dict().items():
        same = torch.equal(tensor, victim.model.state_dict()[name])
        assert same == (not name.startswith("head")), name
    assert all(item.requires_grad for item in changed.parameters())


def test_a_reset_last_layer_is_another_one(victim):
    changed = run(FineTune(layers="last", reset=True, epochs=5, lr=0.1), victim)
    old, new = victim.model.head.weight.flatten(), changed.head.weight.flatten()
    assert float(torch.corrcoef(torch.stack([old, new]))[0, 1]) < 0.9
    assert victim.task.evaluate(changed) > 90


def test_elastic_tuning_stays_nearer(victim):
    def distance(elastic):
        changed = run(Refit(epochs=3, elastic=elastic, lr=0.05), victim)
        return sum(
            float(((a - b) ** 2).sum())
            for a, b in zip(victim.model.parameters(), changed.parameters(), strict=True)
        )

    assert distance(1000.0) < 0.7 * distance(0.0)


@pytest.mark.parametrize("attack", [FineTune(epochs=1), Refit(epochs=1, elastic=0, unlabelled=1)])
def test_works_without_labels(victim, attack):
    def no_loss(model, batch):
        raise AssertionError("labels were used")

    from dataclasses import replace

    blind = replace(victim.task, loss=no_loss)
    changed = attack.run(victim.model, Budget(blind, labels=False), seed=1)
    assert victim.task.evaluate(changed) > 90


def test_the_attacker_sees_his_share_only(victim):
    seen = set()
    for seed in (0, 1):
        for inputs, _ in Budget(victim.task, data_fraction=0.25).data(seed=seed):
            seen |= {image.numpy().tobytes() for image in inputs}
    whole = sum(len(batch[1]) for batch in victim.task.stream("train", 0))
    assert len(seen) <= 0.25 * whole + 1


def test_overwriting_embeds_the_thieves_keys(victim, monkeypatch):
    monkeypatch.setitem(registry.SCHEMES, "toy-sign", "toy_mark:SignMark")
    attack = Overwrite(
        scheme="toy-sign", settings_of_scheme={"carrier": "fc.weight"}, keys=2, epochs=4, lr=0.1
    )
    changed = run(attack, victim, seed=9)
    for secret in attack.secrets(9):
        own = victim.scheme.new_key(victim.task.host(victim.model), secret=secret)
        assert victim.bits(victim.model, own) < 15
        assert victim.bits(changed, own) > 50
    assert attack.secrets(9) != attack.secrets(10)


def test_a_chain_runs_its_steps_in_order(victim):
    chain = Prune(share=0.5) >> Quantize(bits=4) >> Noise(share=0.01)
    assert isinstance(chain, Chain)
    assert chain.label() == "prune(share=0.5) >> quantize(bits=4) >> noise(share=0.01)"
    assert zeros(run(chain, victim)) == 0
    assert zeros(run(Chain((Noise(share=0.01), Prune(share=0.5))), victim)) >= 0.499
    with pytest.raises(UsageError):
        Chain(())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prune(share=1.5),
        lambda: Prune(scope="row"),
        lambda: Quantize(bits=1),
        lambda: Cast("fp8"),
        lambda: Noise(share=0),
        lambda: FineTune(layers="first"),
        lambda: Overwrite(keys=0),
        lambda: Prune.preset("66"),
    ],
)
def test_refuses_settings_that_make_no_sense(make):
    with pytest.raises(UsageError):
        make()


def test_refuses_a_budget_that_is_too_small(victim):
    with pytest.raises(UsageError, match="training data"):
        run(FineTune(), victim, data_fraction=0.0)
    with pytest.raises(UsageError, match="knowledge L1"):
        run(Overwrite(), victim, knowledge=Knowledge.NOTHING)
    with pytest.raises(UsageError, match="outside 0 to 1"):
        Budget(image_task("mlp", "digits"), data_fraction=2)
