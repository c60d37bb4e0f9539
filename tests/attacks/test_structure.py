"""Refactoring, merging, copies, wrappers: each does what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from earmark.attacks.base import Budget, Knowledge
from earmark.attacks.distill import Augment, Distill, Knockoff, Retrain, Transfer
from earmark.attacks.merge import Collude, Merge
from earmark.attacks.refactor import Factor, FoldNorms, MixUnits, TransformerGauge
from earmark.attacks.retune import ShiftWeights, SmoothLabels, TrainAdversarially
from earmark.attacks.tracing import groups
from earmark.attacks.unlearn import FinePrune, Launder, activity, find_patches
from earmark.attacks.wrappers import FilterQueries, Preprocess
from earmark.bench import zoo
from earmark.errors import HostError, UsageError
from earmark.schemes.embedding import embed
from earmark.testing import tiny_task

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


@pytest.fixture
def victim(victims):
    return victims["sign"]


def run(attack, victim, seed=2, **changes):
    return attack.run(victim.model, replace(victim.budget, **changes), seed=seed)


def test_folding_leaves_no_norm_and_the_same_function(victim, batch):
    changed = run(FoldNorms(), victim)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in changed.modules())
    assert torch.allclose(changed(batch), victim.model(batch), atol=1e-4)


def test_folding_a_residual_network_is_exact_too():
    torch.manual_seed(1)
    model, inputs = zoo.ResNet((1, 8, 8), 10, width=4).eval(), torch.randn(8, 1, 8, 8)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.1, 2)
    changed = FoldNorms().run(model, Budget(tiny_task("cnn")), seed=0)
    assert torch.allclose(changed(inputs), model(inputs), atol=1e-4)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in changed.modules())


@pytest.mark.parametrize(("rank", "tolerance"), [(1.0, 1e-4), (0.25, None)])
def test_factoring_is_exact_at_full_rank(victim, batch, rank, tolerance):
    changed = run(Factor(rank=rank), victim)
    assert isinstance(changed.fc, nn.Sequential)
    gap = float((changed(batch) - victim.model(batch)).detach().abs().max())
    assert gap < tolerance if tolerance else gap > 1e-3
    product = changed.fc[1].weight @ changed.fc[0].weight
    assert torch.linalg.matrix_rank(product) <= max(1, round(rank * 128))


@pytest.mark.parametrize("attack", [MixUnits(), TransformerGauge()])
def test_gauges_remove_a_mark_in_attention_and_keep_the_function(attack, victims):
    from toy_mark import SignMark

    from earmark import policy

    task = tiny_task("transformer", samples=128)
    scheme = SignMark(carrier="encoder.layers.0.self_attn.in_proj_weight", weight=1.0)
    key = scheme.new_key(task.host(task.model()), secret=bytes(32))
    model = embed(task, scheme, key, seed=0).model
    changed = attack.run(model, Budget(task), seed=3)
    inputs = next(iter(task.stream("test", 0)))[0]
    old, new = model(inputs).detach(), changed(inputs).detach()
    assert float((old - new).norm() / old.norm()) < 1e-5
    assert -policy.log2_p(scheme.measure(task.host(model), key)) > 40
    assert -policy.log2_p(scheme.measure(task.host(changed), key)) < 12


def test_merging_lies_between_the_models(victim):
    other = victim.task.model()
    changed = run(Merge(ratio=0.25), victim, models=(other,))
    for name, value in changed.state_dict().items():
        if value.is_floating_point():
            mixed = 0.75 * victim.model.state_dict()[name] + 0.25 * other.state_dict()[name]
            assert torch.allclose(value, mixed, atol=1e-5), name
    ties = run(Merge(how="ties", keep=0.1, ratio=1.0), victim, models=(other,))
    moved = (ties.fc.weight != victim.model.fc.weight).float().mean()
    assert float(moved) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(HostError, match="different structure"):
        run(Merge(), victim, models=(zoo.Mlp((1, 8, 8), 10),))


def test_collusion_takes_each_weight_from_the_copies(victims):
    victim, others = victims["sign"], (victims["fragile"].model, victims["trigger"].model)
    copies = torch.stack([m.fc.weight for m in (victim.model, *others)])
    mean = run(Collude(), victim, models=others).fc.weight
    assert torch.allclose(mean, copies.mean(0), atol=1e-6)
    mixed = run(Collude("mix"), victim, models=others).fc.weight
    assert bool((mixed == copies).any(0).all())
    assert all(0.25 < float((mixed == copy).float().mean()) < 0.75 for copy in copies)
    median = run(Collude("majority"), victim, models=others).fc.weight
    assert torch.equal(median, copies.median(0).values)
    with pytest.raises(UsageError, match="other copies"):
        run(Collude(), victim)


def test_collusion_removes_a_fragile_mark(victims):
    victim = victims["fragile"]
    others = (victims["sign"].model, victims["trigger"].model)
    for how in ("average", "majority"):
        assert victim.bits(run(Collude(how), victim, models=others)) < 25


class Counting:
    """Counts the samples whose answers are asked for while no gradient is taken."""

    def __init__(self, task):
        self.task, self.seen = task, set()

    def __call__(self, model, batch):
        if not torch.is_grad_enabled():
            self.seen |= {image.numpy().tobytes() for image in batch[0]}
        return self.task.forward(model, batch)


@pytest.mark.parametrize(
    "attack", [Distill(), Retrain(), Transfer(), Knockoff(queries=500), Augment(seeds=40, rounds=2)]
)
def test_copies_send_no_more_queries_than_they_may(victim, attack):
    counting = Counting(victim.task)
    task = replace(victim.task, forward=counting, recipe={"epochs": 1, "lr": 0.05})
    attack.run(victim.model, Budget(task, queries=100), seed=1)
    assert 40 <= len(counting.seen) <= 100 + 128 * isinstance(attack, Knockoff)


def test_copies_share_no_weight_with_the_stolen_model(victim):
    copied = run(Distill(epochs=0.2), victim)
    both = torch.stack([m.fc.weight.detach().flatten() for m in (victim.model, copied)])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2


@pytest.mark.parametrize("kind", ["jpeg", "blur", "noise", "levels", "flip"])
def test_wrapping_treats_the_inputs_and_keeps_names_and_weights(victim, batch, kind):
    changed = run(Preprocess.preset(kind), victim)
    assert list(changed.state_dict()) == list(victim.model.state_dict())
    assert isinstance(changed, type(victim.model))
    new = changed(batch).detach()
    assert not torch.allclose(new, victim.model(batch), atol=1e-3)
    assert torch.equal(new, changed(batch))
    if kind == "flip":
        assert torch.allclose(new, victim.model(batch.flip(-1)), atol=1e-5)


def test_lossy_blocks_of_smooth_images_stay_smooth():
    from earmark.attacks.wrappers import _blur, _compress

    line = torch.linspace(-1, 1, 19).expand(2, 3, 19, 19)
    assert float((_compress(line, 0.01) - line).abs().max()) < 0.05
    noise = torch.randn(2, 3, 19, 19)
    for treated in (_blur(noise, 1.0), _compress(noise, 1.0)):
        assert treated.shape == noise.shape
        rough = treated.diff(dim=-1).pow(2).mean() / noise.diff(dim=-1).pow(2).mean()
        assert float(rough) < 0.7


def test_the_filter_answers_usual_queries_as_before(victim):
    changed = run(FilterQueries(share=0.02), victim)
    images = torch.cat([part[0] for part in victim.task.stream("test", 0)])
    same = (changed(images).argmax(1) == victim.model(images).argmax(1)).float().mean()
    assert float(same) > 0.9
    strange = 3 * torch.randn(200, 1, 8, 8)
    answers = changed(strange).argmax(1)
    assert float((answers == victim.model(strange).argmax(1)).float().mean()) < 0.4


def test_patches_turn_inputs_into_their_class(victim):
    patches = find_patches(victim.model, victim.budget, steps=40, sparsity=0.01, seed=1)
    assert sorted(patch.target for patch in patches) == list(range(10))
    images = next(iter(victim.task.stream("test", 0)))[0]
    first = patches[0]
    with torch.no_grad():
        hit = (victim.model(first.stamp(images)).argmax(1) == first.target).float().mean()
    assert float(hit) > 0.8
    assert patches[0].size <= patches[-1].size


def test_fine_pruning_silences_sleeping_units(victim):
    group = groups(victim.model)[-1]
    inputs = next(iter(victim.task.stream("train", 0)))
    active = activity(victim.model, victim.budget, group, inputs)
    with torch.no_grad():
        hidden = []
        victim.model.fc.register_forward_hook(lambda *a: hidden.append(a[2].relu()))
        victim.model(inputs[0])
        victim.model.fc._forward_hooks.clear()
    assert torch.allclose(active, hidden[0].mean(0), atol=1e-5)
    changed = run(FinePrune(share=0.5), victim)
    silent = (changed.fc.weight == 0).all(1) & (changed.fc.bias == 0)
    assert int(silent.sum()) == 64


@pytest.mark.parametrize(
    "make",
    [
        lambda: Merge(how="sum"),
        lambda: Merge(ratio=2),
        lambda: Collude("vote"),
        lambda: Factor(rank=-1),
        lambda: Preprocess("gamma"),
        lambda: Retrain(labels="none"),
        lambda: SmoothLabels(share=2),
        lambda: TrainAdversarially(steps=0),
        lambda: Launder(excess=0),
        lambda: FilterQueries(share=-1),
    ],
)
def test_refuses_settings_that_make_no_sense(make):
    with pytest.raises(UsageError):
        make()


def test_unlabelled_attackers_use_no_labels(victim):
    def no_loss(model, batch):
        raise AssertionError("labels were used")

    blind = replace(victim.task, loss=no_loss, recipe={"epochs": 1, "lr": 0.01})
    for attack in (
        ShiftWeights(epochs=1),
        SmoothLabels(epochs=1),
        TrainAdversarially(epochs=1, steps=1),
        FinePrune(epochs=1),
        Retrain(),
        Distill(),
        Merge(),
    ):
        attack.run(victim.model, Budget(blind, labels=False, knowledge=Knowledge.NOTHING), seed=1)
