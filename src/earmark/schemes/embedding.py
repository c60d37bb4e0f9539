"""Embed a mark with the shared trainer: from scratch, while fine-tuning, or while distilling."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from earmark.events import SILENT, Events
from earmark.keys.secret import Key
from earmark.schemes.base import Scheme
from earmark.task import Task
from earmark.training import Recipe, Trained, distillation_loss, train


def fresh_model(task: Task, seed: int) -> nn.Module:
    """Return the task's model, initialized from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.model()


def starting_model(task: Task, scheme: Scheme, key: Key, *, seed: int) -> nn.Module:
    """Return the model that :func:`embed` starts from when it trains from scratch or distils.

    For Deep Water it is also the reference that suspects are best aligned to: what alignment sees
    of it depends neither on the message nor on what the training made of the message, and follows
    from the task, the key's secret and the seed before any beacon is known.

    Raises:
        KeyLayoutError: The key was made for another scheme.
        CarrierError: The model lacks the key's carrier.
    """
    made = fresh_model(task, seed)
    scheme.begin(made, key, fresh=True)
    return made


def embed(
    task: Task,
    scheme: Scheme,
    key: Key,
    *,
    seed: int,
    model: nn.Module | None = None,
    teacher: nn.Module | None = None,
    recipe: Recipe | None = None,
    checkpoint: str | Path | None = None,
    events: Events = SILENT,
    label: str = "embed",
) -> Trained:
    """Train a model that bears a mark.

    Args:
        task: The user's work.
        scheme: The scheme that the key was made for.
        key: The key.
        seed: Seed of initialization and of the batches' order.
        model: A trained model to fine-tune, changed in place; a fresh one if null.
        teacher: A model to distil from; then no labels are used.
        recipe: Settings; by default the task's own.
        checkpoint: A file to resume from and to write after each epoch; see
            :func:`earmark.training.train`. One of another key is refused.
        events: Who hears of the progress.
        label: Name of the work in progress reports.

    Returns:
        The marked model, of the same class and with the same state-dict keys as the unmarked one.

    Raises:
        KeyLayoutError: The key was made for another scheme.
        CarrierError: The model lacks the key's carrier.
        HostError: The training loss became NaN or infinite.
    """
    recipe = recipe or Recipe.of(task.recipe)
    if model is None:
        made = starting_model(task, scheme, key, seed=seed)
    else:
        made = model
        scheme.begin(made, key, fresh=False)
    loss = None
    if teacher is not None:
        teacher.eval()
        loss = distillation_loss(teacher, task, recipe.temperature)
    with scheme.attach(made, key, forward=task.forward) as mark:
        return train(
            task,
            seed=seed,
            recipe=recipe,
            model=made,
            mark=mark,
            loss=loss,
            checkpoint=checkpoint,
            purpose=f"{key.layout.digest()} {key.beacon}",
            events=events,
            label=label,
        )
