"""A task: what the trainer may know of the user's work.

A task file is a Python file of the user's own with four functions::

    def model() -> nn.Module: ...  # a fresh, untrained model
    def loss(model, batch) -> Tensor: ...  # scalar training loss
    def batches(split) -> Iterable: ...  # "train" or "test"; tensors, samples along axis 0
    def evaluate(model) -> float: ...  # utility in percent, higher is better

and, where the defaults do not fit, `forward(model, batch)` (how to run the model, by default on the
batch's first part), `recipe` (a :class:`earmark.training.Recipe` or a dict of its fields) and
`name`. The file runs as the user's own code; a suspect's files never do.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import SOURCE_SUFFIXES, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn

from earmark.errors import EarmarkError, FileError, TaskError
from earmark.hosts import batches as batching
from earmark.hosts.batches import Tree
from earmark.hosts.module import Forward, ModuleHost, plain_forward

REQUIRED = ("model", "loss", "batches", "evaluate")
_running: set[Path] = set()


@dataclass(frozen=True)
class Task:
    """The user's model, loss, data and utility.

    Args:
        model: Makes a fresh, untrained model.
        loss: Training loss of a model on a batch, a scalar tensor.
        batches: Batches of a split, "train" or "test"; may take a keyword `seed`.
        evaluate: Utility in percent, higher is better.
        forward: Runs a model on a batch.
        recipe: Training settings by name, see :class:`earmark.training.Recipe`.
        name: Name of the task.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tree], Tensor]
    batches: Callable[..., Iterable[Tree]]
    evaluate: Callable[[nn.Module], float]
    forward: Forward = plain_forward
    recipe: Mapping[str, Any] = field(default_factory=dict)  # Any: fields of Recipe
    name: str = "task"

    def host(self, model: nn.Module) -> ModuleHost:
        """Return a host around a model of this task."""
        return ModuleHost(model, forward=self.forward)

    def stream(self, split: str, seed: int) -> Iterable[Tree]:
        """Return the batches of a split, seeded if the task's function takes a seed."""
        if "seed" in inspect.signature(self.batches).parameters:
            return self.batches(split, seed=seed)
        return self.batches(split)

    def samples(self, most: int, *, seed: int) -> Tree:
        """Return up to `most` training samples, joined, in the order of the seed's batches.

        Raises:
            TaskError: There are none.
        """
        parts: list[Tree] = []
        held = 0
        for part in self.stream("train", seed):
            parts.append(part)
            held += batching.size(part)
            if held >= most:
                break
        if not parts:
            raise TaskError(f"Task '{self.name}' gives no training batches.")
        return batching.take(batching.join(parts), slice(0, most))


def from_module(module: ModuleType | object, *, name: str) -> Task:
    """Build a task from anything that has its functions as attributes.

    Raises:
        TaskError: Functions are missing or are no functions; all are named at once.
    """
    lacking = [item for item in REQUIRED if not callable(getattr(module, item, None))]
    if lacking:
        raise TaskError(
            f"Task '{name}' lacks {', '.join(f'{item}()' for item in lacking)}.",
            expected=f"Functions {', '.join(f'{item}()' for item in REQUIRED)}.",
            hint="See a complete one:  earmark demo --show-task",
        )
    recipe = getattr(module, "recipe", {})
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        recipe = dataclasses.asdict(recipe)
    if not isinstance(recipe, Mapping):
        raise TaskError(f"Task '{name}' has a recipe of type {type(recipe).__name__}, not a dict.")
    return Task(
        model=_own(module, "model", name, _network),
        loss=_own(module, "loss", name, lambda _: None),  # the training looks at what it gives
        batches=_own(module, "batches", name, _series),
        evaluate=_own(module, "evaluate", name, float),
        forward=getattr(module, "forward", plain_forward),
        recipe=dict(recipe),
        name=str(getattr(module, "name", name)),
    )


def _own(
    module: object, part: str, task: str, check: Callable[[Any], object]
) -> Callable[..., Any]:  # Any: what the user's function gives
    """Return a task's function; where it fails or what it gives is wrong, the task is named."""
    function = getattr(module, part)

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:  # Any: the user's own
        try:
            found = function(*given, **named)
            check(found)
        except EarmarkError:
            raise
        except Exception as error:
            raise TaskError(
                f"{part}() of task '{task}' failed: {type(error).__name__}: {error}.",
                hint=f"See where:  earmark --debug ...  and what {part}() gives:  "
                "earmark demo --show-task",
            ) from error
        return found

    return call


def _network(found: object) -> None:
    if not isinstance(found, nn.Module):
        raise TypeError(f"it gives a {type(found).__name__}, no torch module")


def _series(found: object) -> None:
    if not isinstance(found, Iterable):  # not begun here: that would draw random numbers
        raise TypeError(f"it gives a {type(found).__name__}, no series of batches")


class _AsItStands(SourceFileLoader):
    """Load a task file from its source: no bytecode is left beside it, none is taken for it."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source anew."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def load_task(path: str | Path) -> Task:
    """Run a task file and return its task.

    Raises:
        FileError: The file is missing.
        TaskError: It fails when run, loads itself, or lacks a function.
    """
    source = Path(path)
    if not source.is_file():
        raise FileError(f"Task file '{source}' does not exist.", hint="Check the path.")
    place = source.resolve()
    if place in _running:
        raise TaskError(
            f"Task file '{source}' loads itself while it runs.",
            hint="Keep load_task() and training out of it, or under if __name__ == '__main__'.",
        )
    name = f"earmark_task_{source.stem}"
    loader = _AsItStands(name, str(source))
    spec = importlib.util.spec_from_file_location(name, source, loader=loader)
    if spec is None or spec.loader is None or source.suffix not in SOURCE_SUFFIXES:
        raise TaskError(f"Task file '{source}' is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(place.parent)
    sys.path.insert(0, folder)
    _running.add(place)
    try:
        spec.loader.exec_module(module)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(
            f"Task file '{source}' failed when it was run: {type(error).__name__}: {error}."
        ) from error
    finally:
        _running.remove(place)
        sys.path.remove(folder)
    return from_module(module, name=source.stem)
