"""Subjects: the marked or unmarked models that a benchmark attacks.

A subject is a small value that a worker process can receive; opened, it gives the model, its key
and its task. Models that cost a training are kept in a folder, by the digest of their description.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earmark import codec, files, registry
from earmark.bench.cells import Step
from earmark.bench.data import Images, load
from earmark.bench.zoo import image_task
from earmark.codec import Json
from earmark.errors import FormatError
from earmark.hosts.batches import Tree
from earmark.keys.secret import Key
from earmark.schemes.base import Scheme
from earmark.schemes.embedding import embed, fresh_model, starting_model
from earmark.task import Task, load_task
from earmark.training import Recipe, train


@dataclass(frozen=True)
class Ground:
    """A subject, opened.

    Args:
        task: The task.
        model: The model to attack, in evaluation mode.
        scheme: The scheme that measures.
        key: The key.
        utility: Utility of the model.
        train_seconds: CPU seconds that making the model took, or null if that is not known.
        names: Labels of scheme, host and data, for rows.
        start: What the model was before its training, as its owner keeps it to align suspects to;
            null if that is not known.
    """

    task: Task
    model: nn.Module
    scheme: Scheme
    key: Key
    utility: float
    train_seconds: float | None
    names: tuple[str, str, str]
    start: nn.Module | None = None


class Subject(ABC):
    """Something to attack. Subclasses are frozen dataclasses that can be pickled."""

    @abstractmethod
    def describe(self) -> dict[str, Json]:
        """Return what the subject is, as plain JSON without secrets; cells' digests cover it."""

    @abstractmethod
    def open(self) -> Ground:
        """Make or load the model, its key and its task."""

    def ready(self) -> bool:
        """Tell whether opening costs no training."""
        return True

    def digest(self) -> str:
        """Return the digest of the description."""
        return codec.digest(codec.canonical(self.describe()))


@dataclass(frozen=True)
class ZooSubject(Subject):
    """A network of the zoo, trained on a data set with or without a mark.

    Args:
        scheme: The scheme that marks or, for an unmarked model, only measures.
        network: Name of the network.
        data: Name of the data set.
        seed: Seed of the training.
        folder: Where trained models are kept.
        payload: Number of the key.
        marked: Whether the model bears the mark.
        samples: Training images; 0 takes all.
        tests: Test images; 0 takes all.
        recipe: Changes to the network's usual training settings.

    The key's candidate inputs are the last training images; neither the task nor the attacker has
    them.
    """

    scheme: Step
    network: str
    data: str
    seed: int
    folder: str
    payload: int = 0
    marked: bool = True
    samples: int = 0
    tests: int = 0
    recipe: Mapping[str, Json] = field(default_factory=dict)

    def describe(self) -> dict[str, Json]:
        """Return scheme, network, data and so on; the folder does not belong to it."""
        return {
            "kind": "zoo",
            "scheme": self.scheme.to_json(),
            "version": registry.load("scheme", self.scheme.name).version,
            "network": self.network,
            "data": self.data,
            "seed": self.seed,
            "payload": self.payload,
            "marked": self.marked,
            "samples": self.samples,
            "tests": self.tests,
            "recipe": dict(self.recipe),
        }

    def weights(self) -> Path:
        """Return where the trained model is kept; an unmarked one serves every key."""
        about = self.describe()
        if not self.marked:
            about |= {"payload": 0}
        return Path(self.folder) / f"{codec.digest(codec.canonical(about))}.safetensors"

    def ready(self) -> bool:
        """Tell whether the trained model lies in the folder."""
        return self.weights().is_file() and self.weights().with_suffix(".json").is_file()

    def open(self) -> Ground:
        """Load the model, or train and keep it."""
        torch.set_num_threads(1)
        whole = load(self.data)
        images = whole.subset(self.samples or len(whole.train), test=self.tests or None)
        scheme = self.scheme.scheme()
        task, inputs = self._split(images, scheme)
        key = self._key(task, scheme, inputs)
        about, model = self._model(task, scheme, key)
        host = self.network if self.marked else f"{self.network} (unmarked)"
        names = (self.scheme.label(), host, self.data)
        start = starting_model(task, scheme, key, seed=self.seed)
        return Ground(
            task, model, scheme, key, about["utility"], about["cpu_seconds"], names, start
        )

    def _split(self, images: Images, scheme: Scheme) -> tuple[Task, Tree | None]:
        """Return the task, and the samples kept apart as candidates for the key's inputs."""
        task = image_task(self.network, images, recipe=self.recipe)
        wanted = scheme.inputs_wanted() if scheme.needs_inputs else 0
        if not wanted and scheme.needs_inputs:
            wanted = 1024
        if not wanted:
            return task, None
        taken = min(wanted, len(images.train) // 2)
        kept = (images.normalize(images.train[-taken:]), images.train_labels[-taken:])
        rest = replace(
            images, train=images.train[:-taken], train_labels=images.train_labels[:-taken]
        )
        return image_task(self.network, rest, recipe=self.recipe), kept

    def _key(self, task: Task, scheme: Scheme, inputs: Tree | None) -> Key:
        secret = hashlib.sha256(f"earmark/bench/{self.seed}/{self.payload}".encode()).digest()
        host = task.host(fresh_model(task, self.seed).eval())
        return scheme.new_key(host, inputs=inputs, secret=secret)

    def _model(self, task: Task, scheme: Scheme, key: Key) -> tuple[dict[str, float], nn.Module]:
        from safetensors.torch import load_file, save_file

        path = self.weights()
        if self.ready():
            model = fresh_model(task, self.seed)
            model.load_state_dict(load_file(path))
            try:
                about = json.loads(path.with_suffix(".json").read_text())
                return {k: float(about[k]) for k in ("utility", "cpu_seconds")}, model.eval()
            except (ValueError, KeyError, TypeError) as error:
                raise FormatError(f"File '{path.with_suffix('.json')}' is damaged.") from error
        start = time.process_time()
        if self.marked:
            model = embed(task, scheme, key, seed=self.seed).model
        else:
            model = train(task, seed=self.seed).model
        found = {"utility": task.evaluate(model), "cpu_seconds": time.process_time() - start}
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        with files.replacing(path, overwrite=True) as temporary:
            save_file(state, temporary)
        text = json.dumps(found | {"what": self.describe()}, indent=1)
        files.write_bytes(path.with_suffix(".json"), text.encode(), overwrite=True)
        return found, model


@dataclass(frozen=True)
class ReleaseSubject(Subject):
    """A user's own release, with its task file and its key from a vault.

    Args:
        release: The safetensors file.
        task: The task file.
        vault: The vault's folder.
        key: Beginning of the key's id.
        passphrase: Opens the key; it goes to worker processes by pipe and to no file.
        train_seconds: CPU seconds of the training, to relate costs to; estimated if null.
    """

    release: str
    task: str
    vault: str
    key: str = ""
    passphrase: str = field(default="", repr=False)
    train_seconds: float | None = None

    def describe(self) -> dict[str, Json]:
        """Return the digests of the files and the key's id."""
        from earmark.vault import Vault

        vault = Vault.open(self.vault)
        try:
            key = vault.registration(self.key).id
        finally:
            vault.close()
        return {
            "kind": "release",
            "release": files.file_digest(self.release),
            "task": files.file_digest(self.task),
            "key": key,
        }

    def open(self) -> Ground:
        """Load the release, evaluate it, and estimate what its training took."""
        ground = self.load()
        spent = self.train_seconds or training_seconds(ground.task)
        return replace(ground, utility=ground.task.evaluate(ground.model), train_seconds=spent)

    def load(self) -> Ground:
        """Load the release with its key, which is all that reading the mark takes."""
        from earmark.hosts.suspects import load_suspect
        from earmark.vault import Vault

        torch.set_num_threads(1)
        task = load_task(self.task)
        model = load_suspect(task.model(), self.release).eval()
        vault = Vault.open(self.vault)
        try:
            key = vault.key(self.key, self.passphrase)
            kept = vault.start(vault.registration(self.key))
        finally:
            vault.close()
        start = load_suspect(task.model(), kept) if kept.is_file() else None
        scheme = registry.scheme(key.layout.scheme)
        names = (scheme.name, Path(self.release).stem, task.name)
        return Ground(task, model, scheme, key, nan, None, names, start)


def training_seconds(task: Task, *, steps: int = 12) -> float:
    """Estimate the CPU seconds of a whole training by the task's recipe from some of its steps.

    Args:
        task: The task.
        steps: Steps to time, after as many that are not timed.
    """
    recipe = Recipe.of(task.recipe, epochs=1)
    parts = list(task.stream("train", 0))
    some = [parts[i % len(parts)] for i in range(steps)]
    model, spent = fresh_model(task, 0), 0.0
    for _ in range(2):
        start = time.process_time()
        train(task, seed=0, recipe=recipe, model=model, data=lambda _epoch: some)
        spent = time.process_time() - start
    return spent * len(parts) / steps * Recipe.of(task.recipe).epochs


@dataclass(frozen=True)
class MemorySubject(Subject):
    """A model that lies in memory already: for the inline executor, tests and notebooks.

    Args:
        ground: The opened subject.
        about: What it is, as plain JSON.
    """

    ground: Ground = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values

    def describe(self) -> dict[str, Json]:
        """Return the description with a digest of the model's weights."""
        from earmark.hosts.module import state_digest

        return {
            "kind": "memory",
            "model": state_digest(self.ground.model.state_dict()),
            "layout": self.ground.key.layout.digest(),
            **self.about,
        }

    def open(self) -> Ground:
        """Return what was given."""
        return self.ground
