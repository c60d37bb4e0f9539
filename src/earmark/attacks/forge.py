"""The forger's tools: claims on models that bear no mark, without touching them.

Each tool fools a verifier that leaves something open, and each has a counter that closes it; the
tests run both, so that the counter is known to be what refuses:

* a head fitted afterwards fools whoever accepts a submitted head; it must be committed before the
  model can be seen, or refitted by the judge;
* inputs chosen after the labels are known (dogs under 1, cats under 0) fool whoever does not ask
  when the inputs were fixed; labels must come from a later beacon;
* labels that are a hash of a freely chosen image are ground in a few tries an image; as above;
* keys tried until one fits give exactly the bits that the tries cost; every try must be charged.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from earmark.errors import CapacityError, UsageError
from earmark.hosts import batches
from earmark.hosts.batches import Tree
from earmark.keys.secret import Key
from earmark.policy import log2_p

if TYPE_CHECKING:
    from earmark.hosts.access import Host
    from earmark.records import Evidence
    from earmark.task import Task


class Measures(Protocol):
    """What grinding needs of a scheme."""

    def measure(self, suspect: Host, key: Key, *, nonce: str | None = None) -> Evidence:
        """Count on a suspect."""


class EmbedsLater(Protocol):
    """What head fitting needs: a published scheme whose backbone can stay frozen."""

    def embed(self, task: Task, model: nn.Module, key: Key, *, seed: int) -> tuple[nn.Module, Key]:
        """Train the head."""


def fit_head(scheme: EmbedsLater, task: Task, victim: nn.Module, key: Key, *, seed: int) -> Key:
    """Fit a head to somebody else's model, for a scheme that lets the claimant submit one.

    Args:
        scheme: The published scheme; its mode is set to "frozen".
        task: The victim's task.
        victim: The model to be claimed; not a weight of it is changed.
        key: The forger's key, made after the victim was published.
        seed: Seed of the fit.

    Returns:
        The key with a head that reads the forger's labels off the victim's features.

    Raises:
        UsageError: The scheme has no frozen mode.
    """
    if "mode" not in getattr(type(scheme), "__dataclass_fields__", {}):
        raise UsageError(f"{type(scheme).__name__} takes no submitted head.")
    frozen: Any = replace(scheme, mode="frozen")  # type: ignore[type-var]  # Any: as given
    _, made = frozen.embed(task, victim, key, seed=seed)
    found: Key = made
    return found


@dataclass(frozen=True)
class Ground:
    """The best of many keys.

    Args:
        key: The key.
        bits: Its bits of evidence, gross.
        tries: Keys that were tried, which is what the judge must charge.
    """

    key: Key
    bits: float
    tries: int

    @property
    def net(self) -> float:
        """Bits of evidence once the tries are charged."""
        return self.bits - math.log2(self.tries)


def grind_keys(
    scheme: Measures, suspect: Host, key: Key, secrets: Iterable[bytes], *, nonce: str | None = None
) -> Ground:
    """Try many secrets on a suspect and keep the one that fits best.

    Args:
        scheme: The scheme that measures.
        suspect: The model to be claimed.
        key: A key whose layout and inputs are used with every secret.
        secrets: What is tried.
        nonce: A fixed nonce; in a real claim the judge draws it after the key is named.

    Raises:
        UsageError: There are no secrets.
    """
    best: tuple[float, Key] | None = None
    tries = 0
    for secret in secrets:
        tries += 1
        tried = Key.generate(key.layout, secret=secret, inputs=key.inputs)
        bits = -log2_p(scheme.measure(suspect, tried, nonce=nonce))
        if best is None or bits > best[0]:
            best = (bits, tried)
    if best is None:
        raise UsageError("There are no keys to try.")
    return Ground(best[1], best[0], tries)


def select_inputs(pool: Tree, groups: Sequence[int], labels: Sequence[int]) -> Tree:
    """Choose inputs that any decent model tells apart the way known labels want it.

    Args:
        pool: Samples to choose from.
        groups: A property of each sample that shows in features, as two values: say, two classes.
        labels: The labels of the key, in order; their two values are matched with the groups'.

    Returns:
        One sample for each label, each used once.

    Raises:
        UsageError: There are not two groups and at most two labels.
        CapacityError: The pool runs out.
    """
    values, wanted = sorted(set(groups)), sorted(set(labels))
    if len(values) != 2 or len(wanted) > 2:
        raise UsageError(f"{len(values)} groups cannot stand for {len(wanted)} labels.")
    shelves = {
        label: [i for i, group in enumerate(groups) if group == value]
        for label, value in zip((-1, 1) if -1 in wanted else (0, 1), values, strict=True)
    }
    chosen = []
    for label in labels:
        if not shelves[label]:
            raise CapacityError(f"The pool has too few samples for label {label}.")
        chosen.append(shelves[label].pop())
    return batches.take(pool, torch.tensor(chosen))


def hash_label(image: Tensor) -> int:
    """Return the label of the naive rule "label = first bit of the image's hash", 0 or 1."""
    raw = image.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(raw).digest()[0] & 1


def grind_images(
    images: Tensor,
    wanted: Sequence[int],
    *,
    step: float = 1e-4,
    rule: Callable[[Tensor], int] = hash_label,
) -> tuple[Tensor, int]:
    """Shift images by less than anybody sees until the naive rule gives the wanted labels.

    Args:
        images: (images, ...), floats.
        wanted: A label for each image, for example what the victim's features say.
        step: Size of the shift of one pixel that is added in each try.
        rule: The naive rule.

    Returns:
        The images, and how many tries they took in all (about two an image).
    """
    made, tries = images.clone(), 0
    for image, label in zip(made, wanted, strict=True):
        flat = image.view(-1)
        while True:
            tries += 1
            if rule(image) == label:
                break
            flat[tries % len(flat)] += step
    return made, tries
