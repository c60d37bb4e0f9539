"""The one loop: deterministic, resumable, distributed, and it leaves nothing behind."""

from __future__ import annotations

import copy
import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from earmark import registry
from earmark.bench import zoo
from earmark.bench.data import load
from earmark.errors import FileError, FormatError, HostError, TaskError, UsageError
from earmark.hosts.module import ModuleHost, state_digest
from earmark.schemes.embedding import embed, fresh_model
from earmark.task import Task, from_module, load_task
from earmark.training import Recipe, distillation_loss, train

TINY = {"epochs": 2, "lr": 0.05}


@pytest.fixture(scope="module")
def task() -> Task:
    return zoo.image_task("small-cnn", load("digits").subset(384), recipe=TINY, batch=64)


def test_the_same_seed_gives_the_same_model(task) -> None:
    one, two, other = (train(task, seed=seed).model for seed in (1, 1, 2))
    assert state_digest(one.state_dict()) == state_digest(two.state_dict())
    assert state_digest(one.state_dict()) != state_digest(other.state_dict())


def test_global_randomness_is_left_alone(task) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(task, seed=1, recipe=Recipe(epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_an_interrupted_training_goes_on_where_it_was(task, tmp_path) -> None:
    class Stop(Exception):
        pass

    class Interrupting:
        epochs = 0

        def note(self, text): ...

        def track(self, items, *, label, total=None):
            self.epochs += 1
            if self.epochs == 3:
                raise Stop
            yield from items

    recipe = Recipe(epochs=4, lr=0.05)
    scheme = registry.scheme("mtlsign", triggers=64, shards=2, directions=1)
    host = task.host(fresh_model(task, 3))
    key = scheme.new_key(host, inputs=task.samples(256, seed=0), secret=bytes(32))
    whole = embed(task, scheme, key, seed=3, recipe=recipe)
    path = tmp_path / "check.pt"
    with pytest.raises(Stop):
        embed(task, scheme, key, seed=3, recipe=recipe, checkpoint=path, events=Interrupting())
    assert path.exists()
    resumed = embed(task, scheme, key, seed=3, recipe=recipe, checkpoint=path)
    assert resumed.steps == whole.steps
    assert resumed.losses == whole.losses
    assert state_digest(resumed.model.state_dict()) == state_digest(whole.model.state_dict())
    again = embed(task, scheme, key, seed=3, recipe=recipe, checkpoint=path)
    assert state_digest(again.model.state_dict()) == state_digest(whole.model.state_dict())
    for other in ({"seed": 4}, {"key": key.bind("0a" * 32)}):
        changed = {"key": key, "seed": 3} | other
        with pytest.raises(FormatError, match="this is"):
            embed(task, scheme, recipe=recipe, checkpoint=path, **changed)


def test_checkpoints_that_do_not_fit_are_refused(task, tmp_path) -> None:
    path = tmp_path / "check.pt"
    path.write_bytes(b"garbage")
    with pytest.raises(FormatError, match="does not fit"):
        train(task, seed=1, checkpoint=path)


class _Constant:
    """A mark whose term is a known function of one parameter."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = layer.weight
        self.stepped = 0

    def mix(self, batch):
        return batch

    def loss(self):
        return 0.5 * (self.weight**2).sum()

    def after_step(self, lr):
        self.stepped += 1

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def test_clipping_bounds_the_sum_of_both_terms(task) -> None:
    model = fresh_model(task, 0)
    mark = _Constant(model.fc)
    seen = []
    model.fc.weight.register_hook(lambda grad: seen.append(float(grad.norm())))
    recipe = Recipe(epochs=1, lr=1e-6, clip=1e-3, schedule="constant")
    before = copy.deepcopy(model.fc.weight.detach())
    trained = train(task, seed=0, recipe=recipe, model=model, mark=mark)
    assert mark.stepped == trained.steps
    assert max(seen) > 1e-2
    assert float((model.fc.weight.detach() - before).norm()) < 1e-6 * 1e-3 * trained.steps * 25


def test_mixed_precision_trains(task) -> None:
    trained = train(task, seed=0, recipe=Recipe(epochs=2, lr=0.05, amp="bf16"))
    assert trained.losses[-1] < trained.losses[0]
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())


def test_distilling_needs_no_labels(task) -> None:
    teacher = train(task, seed=0, recipe=Recipe(epochs=8, lr=0.05)).model

    def wrong(split, seed=0):
        return [(x, torch.zeros_like(y)) for x, y in task.stream(split, seed)]

    blind = Task(task.model, task.loss, wrong, task.evaluate, name="blind")
    loss = distillation_loss(teacher, blind, 4.0)
    student = train(blind, seed=1, recipe=Recipe(epochs=8, lr=0.05), loss=loss).model
    assert task.evaluate(student) > 0.8 * task.evaluate(teacher)


def test_a_loss_that_explodes_is_named(task) -> None:
    bad = Task(task.model, lambda m, b: task.loss(m, b) * float("nan"), task.batches, task.evaluate)
    with pytest.raises(HostError, match="nan"):
        train(bad, seed=0)
    empty = Task(task.model, task.loss, lambda split: [], task.evaluate)
    with pytest.raises(UsageError, match="no training batches"):
        train(empty, seed=0)
    frozen = fresh_model(task, 0).requires_grad_(False)
    with pytest.raises(HostError, match="no trainable"):
        train(task, seed=0, model=frozen)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"lr": 0.0},
        {"optimizer": "lion"},
        {"schedule": "?"},
        {"amp": "fp8"},
        {"x": 1},
    ],
)
def test_recipes_are_checked(settings) -> None:
    with pytest.raises(UsageError):
        Recipe.of(settings)


def _worker(rank: int, world: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        torch.save(_sharded_step(rank, world).state_dict(), f"{out}.{rank}")
    finally:
        dist.destroy_process_group()


def _sharded_step(rank: int, world: int) -> nn.Module:
    """Train a dense net for a few steps on this process's share of each batch, marked once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    data = torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(1))
    share = 16 // world

    def batches(split):
        return [(part[rank * share : (rank + 1) * share],) for part in data]

    task = Task(lambda: wrapped, lambda m, b: m(b[0]).pow(2).mean(), batches, lambda m: 0.0)
    recipe = Recipe(epochs=2, lr=0.1, schedule="constant")
    train(task, seed=0, recipe=recipe, model=wrapped, mark=_Constant(model[0]))
    return model


def test_distributed_training_applies_the_mark_once(tmp_path) -> None:
    out = tmp_path / "state"
    mp.spawn(_worker, args=(2, str(tmp_path / "meet"), str(out)), nprocs=2)
    states = [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(2)]
    alone = _sharded_step(0, 1).state_dict()
    for name, value in alone.items():
        assert torch.allclose(states[0][name], states[1][name])
        assert torch.allclose(states[0][name], value, atol=1e-6)


def test_embedding_leaves_class_names_and_hooks_alone(task) -> None:
    scheme = registry.scheme("mtlsign", triggers=64, shards=2, directions=1)
    plain = fresh_model(task, 3)
    inputs = task.samples(256, seed=0)
    key = scheme.new_key(task.host(plain), inputs=inputs)
    made = embed(task, scheme, key, seed=3).model
    assert type(made) is type(plain)
    assert list(made.state_dict()) == list(plain.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())
    assert isinstance(task.host(made), ModuleHost)


def test_task_files(tmp_path) -> None:
    path = tmp_path / "task.py"
    with pytest.raises(FileError, match="does not exist"):
        load_task(path)
    path.write_text("def model(): pass\n")
    with pytest.raises(TaskError, match=r"loss\(\), batches\(\), evaluate\(\)"):
        load_task(path)
    path.write_text("raise RuntimeError('broken')\n")
    with pytest.raises(TaskError, match="RuntimeError: broken"):
        load_task(path)
    path.write_text(f"import earmark\nearmark.load_task({str(path)!r})\n")
    with pytest.raises(TaskError, match="loads itself") as problem:
        load_task(path)
    assert len(str(problem.value)) < 400
    good = "def model(): pass\nloss = batches = evaluate = model\n"
    path.write_text(good + "recipe = 3\n")
    with pytest.raises(TaskError, match="recipe"):
        load_task(path)
    path.write_text(good + "name = 'mine'\n")
    assert load_task(path).name == "mine"
    with pytest.raises(TaskError):
        from_module(object(), name="x")


def test_a_task_file_is_run_as_it_stands(tmp_path, monkeypatch) -> None:
    """No bytecode is left beside it, and none of an earlier, equally long text is run."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "own.py"
    text = "model = loss = batches = evaluate = print\nname = 'one'\n"
    for name in ("one", "two"):
        path.write_text(text.replace("one", name))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert load_task(path).name == name
    assert list(tmp_path.iterdir()) == [path]
