"""A sparring partner attacks weights of his own, and the mark's slope there is what is learned."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from earmark.bench import zoo
from earmark.bench.data import load
from earmark.errors import UsageError
from earmark.events import Silent
from earmark.hosts import batches
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.sparring import Partner
from earmark.training import train

DRAWS = torch.Generator().manual_seed(0)
X, Y = torch.randn(32, 6, generator=DRAWS), torch.randint(0, 2, (32,), generator=DRAWS)


class Stopped(Silent):
    """Stops a training at its fifth epoch."""

    def track(self, items, *, label, total=None):
        if "5/6" in label:
            raise KeyboardInterrupt
        return super().track(items, label=label, total=total)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def attack_on(model):
    return lambda: 30 * nn.functional.cross_entropy(model(X), 1 - Y)


def mark_on(model):
    return lambda: model(X).square().mean()


def test_the_models_own_tensors_and_slopes_are_not_touched():
    model = small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = nn.functional.cross_entropy(model(X), Y)  # its slopes are asked for later
    seen = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    partner = Partner(model, 0.5)
    for _ in range(3):
        term = partner.term(attack_on(model), mark_on(model))
    assert all(torch.equal(seen[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(before["1.running_mean"], seen["1.running_mean"])
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(one, two) for one, two in zip(wanted, found, strict=True))
    assert term.requires_grad


@pytest.mark.parametrize("weight", [0.01, 100.0])
def test_the_term_has_the_marks_slope_where_the_partner_has_come_to(weight):
    model, other = small().train(), small().train()
    partner = Partner(model, weight)
    optimizer = torch.optim.SGD(
        other.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    for _ in range(5):
        term = partner.term(attack_on(model), mark_on(model))
        optimizer.zero_grad()
        attack_on(other)().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 5.0)
        optimizer.step()
        slopes = torch.autograd.grad(mark_on(other)(), list(other.parameters()))
    length = float(torch.stack([slope.norm() for slope in slopes]).norm())
    found = torch.autograd.grad(term, list(model.parameters()))
    for one, two in zip(found, slopes, strict=True):
        assert torch.allclose(one / weight, two / max(1.0, length), rtol=1e-3, atol=1e-5)


def test_slopes_that_are_not_finite_begin_a_new_bout():
    model = small().train()
    partner, steps = Partner(model, 1.0), iter(range(9))

    def attack():
        return attack_on(model)() * (torch.inf if next(steps) == 2 else 1.0)

    for bad in (False, False, True, False):
        broken = torch.nan if bad else 1.0
        term = partner.term(attack, lambda broken=broken: mark_on(model)() * broken)
        assert float(term.detach()) == 0.0
        if not bad:
            assert bool(torch.autograd.grad(term, model[0].weight)[0].isfinite().all())
    assert partner.state_dict()["step"] == 1
    model[0].requires_grad_(requires_grad=False)
    partner.term(attack, mark_on(model))  # other parameters are trained now


def test_the_partner_has_his_own_answers_under_autocast():
    model, seen = small().train(), []

    def mark():
        seen.append(model(X).float())
        return seen[-1].square().mean()

    partner = Partner(model, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(X).float()
        for _ in range(6):
            partner.term(lambda: attack_on(model)().float(), mark)
    assert float((seen[-1] - own).abs().max().detach()) > 1


def test_after_a_bout_the_partner_begins_anew():
    model, partners = small().train(), []
    partner = Partner(model, 1.0)
    for _ in range(41):
        partner.term(attack_on(model), mark_on(model))
        partners.append([item.clone() for item in partner.state_dict()["weights"]])
    away = [float((one[0] - model[0].weight).detach().norm()) for one in partners]
    assert away[39] > 3 * away[0]
    assert away[40] == pytest.approx(away[0], rel=0.2)


def test_an_interrupted_training_goes_on_where_it_was():
    model = small().train()
    partner, other = Partner(model, 1.0), Partner(model, 1.0)
    for _ in range(7):
        partner.term(attack_on(model), mark_on(model))
    other.load_state_dict(copy.deepcopy(partner.state_dict()))
    terms = [item.term(attack_on(model), mark_on(model)) for item in (partner, other)]
    assert torch.equal(*terms)


def test_a_model_across_processes_has_no_partner():
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(UsageError, match="spar=0"):
        Partner(wrapped, 1.0)


@pytest.mark.parametrize("neighbours", [0.0, 0.05])
def test_a_mark_that_spars_is_embedded_and_resumed(tmp_path, neighbours):
    task = zoo.image_task("small-cnn", load("digits"), recipe={"epochs": 6, "lr": 0.05})
    scheme = MtlSign(triggers=128, shards=4, share=0.25, weight=0.5, spar=0.2)
    scheme = replace(scheme, neighbours=neighbours)
    inputs = batches.join(list(task.stream("train", 0))[:4])
    key = scheme.new_key(task.host(task.model()), inputs=inputs, secret=bytes(32))

    def marked(**more):
        torch.manual_seed(1)
        model = task.model()
        with scheme.attach(model, key) as mark:
            return train(task, seed=1, model=model, mark=mark, **more).model

    whole, path = marked(), tmp_path / "checkpoint"
    assert scheme.measure(task.host(whole), key).hits > 80
    with pytest.raises(KeyboardInterrupt):
        marked(checkpoint=path, events=Stopped())
    resumed = marked(checkpoint=path)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


class Paired(nn.Module):
    """Returns its scores beside something else."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs), inputs


@pytest.mark.parametrize("kind", ["paired", "frozen"])
def test_what_cannot_spar_is_marked_without(kind):
    task = zoo.image_task("small-cnn", load("digits"))
    scheme = MtlSign(triggers=64, shards=4, spar=0.2)
    model = task.model().train()
    inputs = batches.join(list(task.stream("train", 0))[:2])
    if kind == "paired":
        model = Paired(model).train()
    else:
        model.requires_grad_(requires_grad=False)
        model.head.requires_grad_(requires_grad=True)
    key = replace(scheme, taps=("inner.fc",) if kind == "paired" else ("fc",)).new_key(
        task.host(model), inputs=inputs
    )
    with scheme.attach(model, key) as mark:
        for lr in (0.1, 0.01):
            mark.after_step(lr)
            model(mark.mix(next(iter(task.stream("train", 1))))[0])
            mark.loss()
        assert mark.state_dict()["partner"]["step"] == 0


def test_there_is_no_sparring_while_the_rate_is_high():
    task = zoo.image_task("small-cnn", load("digits"))
    scheme = MtlSign(triggers=64, shards=4, settle=0.0, spar=0.2, spar_at=("conv*", "fc:in"))
    inputs = batches.join(list(task.stream("train", 0))[:2])
    model = task.model().train()
    key = scheme.new_key(task.host(model), inputs=inputs)
    batch = next(iter(task.stream("train", 1)))
    with scheme.attach(model, key) as mark:
        for lr, steps in ((0.1, 0), (0.05, 1)):
            mark.after_step(lr)
            model(mark.mix(batch)[0])
            mark.loss()
            assert mark.state_dict()["partner"]["step"] == steps
