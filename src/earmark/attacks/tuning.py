"""What attacks that train have in common: the attacker's data, labels, recipe and hooks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from earmark.errors import HostError, UsageError
from earmark.hosts import batches
from earmark.hosts.batches import Tree
from earmark.training import Recipe, distillation_loss, train

if TYPE_CHECKING:
    from earmark.attacks.base import Budget

Loss = Callable[[nn.Module, Tree], Tensor]


class Hook:
    """A term of the training loop that does nothing; subclasses override what they need."""

    def mix(self, batch: Tree) -> Tree:
        """Return the batch; called before each step."""
        return batch

    def loss(self) -> Tensor:
        """Return the term, a scalar."""
        return torch.zeros(())

    def after_step(self, lr: float) -> None:
        """Act after each step."""

    def state_dict(self) -> Mapping[str, Any]:  # Any: as the training loop has it
        """Return nothing: attacks are not resumed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Take nothing back."""


class Together(Hook):
    """Several terms as one, each with a weight.

    Args:
        terms: The terms.
        weight: Factor on the sum of their losses.
    """

    def __init__(self, terms: Iterable[Any], *, weight: float = 1.0) -> None:  # Any: Terms
        self.terms = list(terms)
        self.weight = weight

    def mix(self, batch: Tree) -> Tree:
        """Pass the batch through every term."""
        for term in self.terms:
            batch = term.mix(batch)
        return batch

    def loss(self) -> Tensor:
        """Return the weighted sum."""
        return self.weight * torch.stack([term.loss().float() for term in self.terms]).sum()

    def after_step(self, lr: float) -> None:
        """Tell every term."""
        for term in self.terms:
            term.after_step(lr)


class KeepStill(Hook):
    """Keep the running statistics of some modules as they are.

    Args:
        modules: Modules that stay in evaluation mode while the rest trains.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)

    def mix(self, batch: Tree) -> Tree:
        """Put the modules into evaluation mode again."""
        for module in self.modules:
            module.eval()
        return batch


def recipe(
    budget: Budget,
    *,
    epochs: int,
    lr: float,
    optimizer: str = "sgd",
    schedule: str = "one-cycle",
    warmup: float = 0.1,
    weight_decay: float = 5e-4,
) -> Recipe:
    """Return a recipe within the budget, of the task's precision, gradients clipped at norm 5."""
    return Recipe(
        epochs=budget.granted(epochs),
        lr=lr,
        optimizer=optimizer,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=5.0,
        amp=budget.task.recipe.get("amp"),
    )


def tune(
    model: nn.Module,
    budget: Budget,
    settings: Recipe,
    *,
    seed: int,
    loss: Loss | None = None,
    hook: Hook | None = None,
) -> nn.Module:
    """Train a model on the attacker's data, with the stolen model's answers if he has no labels.

    Args:
        model: Changed in place.
        budget: What the attacker has.
        settings: Epochs, learning rate and so on.
        seed: Seed of the batches' order.
        loss: Another loss than the task's.
        hook: A term of the loop.

    Returns:
        The same model, in evaluation mode.
    """
    if loss is None:
        loss = budget.task.loss if budget.labels else answers(model, budget)
    own = whole if budget.labels else limited
    return train(
        budget.task,
        seed=seed,
        recipe=settings,
        model=model,
        mark=hook,
        loss=loss,
        data=lambda epoch: own(budget, seed=epoch),
        label="attack",
    ).model


def answers(model: nn.Module, budget: Budget, *, temperature: float = 1.0) -> Loss:
    """Return the loss of imitating a model as it is now; no labels are used."""
    return distillation_loss(frozen(model), budget.task, temperature)


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that takes no gradients."""
    made = copy.deepcopy(model).eval()
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


def thawed(model: nn.Module) -> nn.Module:
    """Return a copy in which every parameter can be trained."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    return made


def last_layer(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the last layer with weights and its name.

    Raises:
        HostError: The model has no linear or convolutional layer.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]
    if not found:
        raise HostError(f"{type(model).__name__} has no linear or convolutional layer.")
    return found[-1]


def weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of at least two dimensions (no biases, no norms) by name.

    Raises:
        HostError: There are none.
    """
    found = [(name, item) for name, item in model.named_parameters() if item.ndim > 1]
    if not found:
        raise HostError(f"{type(model).__name__} has no weights of two or more dimensions.")
    return found


@contextmanager
def only(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only some parameters train inside the block."""
    kept = {id(item) for item in chosen}
    before = [(item, item.requires_grad) for item in model.parameters()]
    for item, _ in before:
        item.requires_grad_(id(item) in kept)
    try:
        yield
    finally:
        for item, was in before:
            item.requires_grad_(was)


def samples(budget: Budget, count: int, *, seed: int) -> Tree:
    """Return up to `count` of the attacker's samples in one batch.

    Raises:
        UsageError: He has none.
    """
    parts, held = [], 0
    for part in budget.data(seed=seed):
        parts.append(part)
        held += batches.size(part)
        if held >= count:
            break
    if not parts:
        raise UsageError("The attacker's data holds no whole batch.")
    return batches.take(batches.join(parts), slice(0, count))


def cycle(budget: Budget, *, seed: int) -> Iterator[Tree]:
    """Yield the attacker's batches without end."""
    for epoch in itertools.count():
        yield from budget.data(seed=seed + epoch)


def need_share(value: float, name: str, attack: str) -> None:
    """Refuse a share outside 0 to 1.

    Raises:
        UsageError: It lies outside.
    """
    if not 0 <= value <= 1:
        raise UsageError(f"Attack '{attack}' has {name}={value}.", expected="Between 0 and 1.")


def scores(output: Any) -> Tensor:  # Any: whatever the model returns
    """Return class scores from a model's output.

    Raises:
        HostError: The output is no (samples, classes) tensor.
    """
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise HostError(
            "This attack needs a model whose output is a (samples, classes) tensor.",
            hint="Give the task a `forward` that returns one.",
        )
    return found


def image_of(batch: Tree) -> Tensor:
    """Return the part of a batch that the model sees, if it is one tensor of floats.

    Raises:
        HostError: It is something else, for example tokens.
    """
    found = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise HostError(
            "This attack changes inputs, and they are no tensor of floats.",
            expected="Batches of (inputs, labels) with inputs such as images.",
        )
    return found


def with_image(batch: Tree, inputs: Tensor) -> Tree:
    """Return the batch with other inputs."""
    if isinstance(batch, (tuple, list)):
        return type(batch)((inputs, *batch[1:]))
    return inputs


def whole(budget: Budget, *, seed: int) -> list[Tree]:
    """Return an epoch of the attacker's batches."""
    return list(budget.data(seed=seed))


def limited(budget: Budget, *, seed: int) -> list[Tree]:
    """Return an epoch of those of the attacker's samples that he may send as queries.

    They are the same in every epoch, in another order.

    Raises:
        UsageError: The budget allows fewer than two queries.
    """
    if budget.queries is None:
        return whole(budget, seed=seed)
    if budget.queries < 2:
        raise UsageError(f"The budget allows {budget.queries} queries.", expected="At least 2.")
    pool = samples(budget, budget.queries, seed=0)
    step = batches.size(next(budget.data(seed=0)))
    order = torch.randperm(batches.size(pool), generator=torch.Generator().manual_seed(seed))
    return [batches.take(pool, part) for part in torch.split(order, step) if len(part) > 1]


@contextmanager
def outputs(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the raw outputs of named layers in every forward pass inside the block."""
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:  # Any: a hook's arguments
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:  # Any: as above
            seen[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
