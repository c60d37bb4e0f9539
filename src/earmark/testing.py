"""Hold a scheme or an attack to the rules of the house, ours and third parties' alike.

Both functions run many small checks and raise one `AssertionError` that lists every failed one::

    from earmark.testing import check_scheme


    def test_my_scheme():
        check_scheme(MyScheme(bits=64))

Models that a scheme or attack refuses with one of earmark's own errors are left out, as long as one
of the three tiny hosts is accepted.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark import policy, stats
from earmark.attacks.base import Attack, Budget, Knowledge
from earmark.bench.zoo import tiny_hosts
from earmark.errors import EarmarkError, KeyFileError, KeyLayoutError, UsageError
from earmark.hosts.access import Host
from earmark.hosts.module import ModuleHost, state_digest
from earmark.keys.secret import Disclosure, Key, Shard
from earmark.records import Evidence
from earmark.schemes.base import Scheme
from earmark.schemes.embedding import embed
from earmark.task import Task
from earmark.training import Recipe, train

LEVELS = (0.05, 0.01, 0.001)
"""Significance levels at which null calibration is checked."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: Name of the check.
        host: Name of the tiny host, or empty.
        passed: Whether it passed.
        detail: What was seen.
    """

    name: str
    host: str
    passed: bool
    detail: str = ""

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        return f"{'ok' if self.passed else 'FAILED'}  {self.name}{where}  {self.detail}".rstrip()


class _Notes:
    """Collect checks; a crash inside a check is a failure of it."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.host = ""

    def add(self, name: str, passed: bool, detail: object = "") -> None:  # noqa: FBT001
        self.checks.append(Check(name, self.host, passed, str(detail)))

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a crash of foreign code is what is looked for
            self.add(name, passed=False, detail=f"{type(error).__name__}: {error}")

    def refused(self, name: str, act: Callable[[], object], *kinds: type[Exception]) -> None:
        """Note whether an act raises one of the given errors."""
        wanted = " or ".join(kind.__name__ for kind in kinds)
        try:
            act()
        except kinds:
            self.add(name, passed=True)
        except Exception as error:  # noqa: BLE001 - as above
            self.add(name, passed=False, detail=f"raised {type(error).__name__}, not {wanted}")
        else:
            self.add(name, passed=False, detail=f"nothing was raised; expected {wanted}")

    def finish(self, what: str) -> tuple[Check, ...]:
        failed = [str(check) for check in self.checks if not check.passed]
        if failed:
            raise AssertionError(f"{what} breaks {len(failed)} rules:\n" + "\n".join(failed))
        return tuple(self.checks)


def tiny_task(
    name: str, *, samples: int = 512, seed: int = 0, recipe: Mapping[str, object] | None = None
) -> Task:
    """Return a learnable toy task around one of the tiny hosts.

    Args:
        name: "mlp", "cnn" or "transformer".
        samples: Training samples, of random inputs; labels follow from a random projection.
        seed: Seed of the inputs and of the model's initialization.
        recipe: Changes to the training settings.

    Example:
        >>> tiny_task("mlp").name
        'tiny mlp'
    """
    model, first = tiny_hosts(seed)[name]
    more = [tiny_hosts(seed + 1 + i)[name][1] for i in range(-(-samples // len(first)) - 1)]
    inputs = torch.cat([first, *more])[:samples]
    flat = inputs.flatten(1).float()
    with torch.no_grad():
        classes = model(first[:2]).shape[1]
    generator = torch.Generator().manual_seed(seed)
    labels = (flat @ torch.randn(flat.shape[1], classes, generator=generator)).argmax(1)

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(net(batch[0]).float(), batch[1])

    def streams(split: str, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
        order = torch.arange(len(inputs))
        if split == "train":
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        return [(inputs[part], labels[part]) for part in torch.split(order, 64)]

    def evaluate(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(inputs).argmax(1) == labels).float().mean()) * 100

    usual: dict[str, object] = {"epochs": 20, "lr": 3e-3, "optimizer": "adamw"}
    return Task(
        model=lambda: copy.deepcopy(model),
        loss=loss,
        batches=streams,
        evaluate=evaluate,
        recipe=usual | dict(recipe or {}),
        name=f"tiny {name}",
    )


def null_excess(p_values: Sequence[float], *, levels: Iterable[float] = LEVELS) -> list[str]:
    """Return complaints about p-values that are smaller than they should be without a mark.

    At each level the number of p-values at or below it is compared with what exact p-values give;
    a count that a fair test reaches less than once in a million is a complaint.

    Args:
        p_values: log2 of p-values, each from a key of its own.
        levels: Levels to look at.

    Example:
        >>> null_excess([-0.5] * 100)
        []
        >>> null_excess([-12.0] * 10)[0]
        '10 of 10 p-values are at most 0.05'
    """
    complaints = []
    for level in levels:
        hits = sum(2.0**value <= level for value in p_values)
        if (
            stats.log2_binomial_tail(hits, len(p_values), Fraction(level).limit_denominator(10**6))
            < -20
        ):
            complaints.append(f"{hits} of {len(p_values)} p-values are at most {level}")
    return complaints


def _secret(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(frozen=True)
class _Ground:
    """One tiny host with what a scheme needs on it."""

    task: Task
    scheme: Scheme
    seed: int

    def inputs(self) -> tuple[Tensor, Tensor] | None:
        if not self.scheme.needs_inputs:
            return None
        wanted = max(256, self.scheme.inputs_wanted())
        name = self.task.name.removeprefix("tiny ")
        apart = tiny_task(name, samples=wanted, seed=self.seed + 1000)
        parts = list(apart.stream("test", 0))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def key(self, model: nn.Module, *parts: object) -> Key:
        host = self.task.host(model)
        return self.scheme.new_key(host, inputs=self.inputs(), secret=_secret(self.seed, *parts))


def check_scheme(
    scheme: Scheme,
    *,
    hosts: Sequence[str] = ("mlp", "cnn", "transformer"),
    keys: int = 40,
    bits: float = 20.0,
    recipe: Mapping[str, object] | None = None,
    seed: int = 0,
) -> tuple[Check, ...]:
    """Hold a scheme to the house's rules on three tiny hosts.

    Round trip, host unchanged by keys and measuring, model given back as it was taken, same seed
    same result, null calibration, key through save and load, half precision, honest errors.

    Args:
        scheme: The scheme with settings that suit hosts of a few thousand weights.
        hosts: Tiny hosts to use.
        keys: Keys a host for null calibration.
        bits: Bits of evidence that a fresh mark must give.
        recipe: Changes to the settings of the embedding.
        seed: Seed of everything.

    Returns:
        What was checked.

    Raises:
        AssertionError: A check failed; all failed ones are listed.
    """
    notes = _Notes()
    accepted = 0
    refusals = []
    for name in hosts:
        ground = _Ground(tiny_task(name, seed=seed, recipe=recipe), scheme, seed)
        notes.host = name
        try:
            model = ground.task.model()
            key = ground.key(model, "round trip")
        except EarmarkError as error:
            refusals.append(f"{name}: {error}")
            continue
        accepted += 1
        with notes.during("runs"):
            _on_host(notes, ground, key, keys=keys, bits=bits, thorough=accepted == 1)
    notes.host = ""
    notes.add("fits a tiny host", accepted > 0, "; ".join(refusals))
    notes.add("has a name and a summary", bool(scheme.name and scheme.summary))
    notes.add("is a frozen dataclass", _frozen(scheme))
    return notes.finish(f"Scheme '{scheme.name}'")


def _on_host(
    notes: _Notes, ground: _Ground, key: Key, *, keys: int, bits: float, thorough: bool
) -> None:
    scheme, task = ground.scheme, ground.task
    plain = train(task, seed=ground.seed, recipe=Recipe.of(task.recipe, epochs=5)).model
    before = _state(plain)
    with notes.during("null calibration"):
        _null(notes, ground, plain, keys)
    notes.add("measuring leaves the host as it is", _state(plain) == before)
    marked = embed(task, scheme, key, seed=ground.seed).model
    fresh = task.model()
    notes.add("same class", type(marked) is type(fresh))
    notes.add("same state-dict keys", list(marked.state_dict()) == list(fresh.state_dict()))
    notes.add("no hook left", not _hooks(marked))
    evidence = scheme.measure(task.host(marked), key)
    found = -policy.log2_p(evidence)
    notes.add("round trip", found >= bits, f"{found:.1f} bits, {bits:g} asked for")
    notes.add("measuring repeats", scheme.measure(task.host(marked), key) == evidence)
    most = policy.bounds(key.layout, len(evidence.shards) or None)
    notes.add("no more trials than keyed bits", evidence.trials <= most.trials, evidence.trials)
    weighed = sum(weight > 0 for weight in evidence.weights)
    notes.add("no more weights than keyed signs", weighed <= most.signs, weighed)
    fair = most.chance in {None, evidence.chance}
    notes.add("the chance follows from the layout", fair, evidence.chance)
    if thorough:
        with notes.during("same seed, same result"):
            _repeats(notes, ground, key)
        with notes.during("key survives save and load"):
            _reopened(notes, ground, key, marked, evidence)
        _honest(notes, ground, key, marked)
    with notes.during("half precision"):
        _half(notes, ground, key, marked, bits)


def _null(notes: _Notes, ground: _Ground, plain: nn.Module, keys: int) -> None:
    host = ground.task.host(plain)
    p_values = []
    for index in range(keys):
        key = ground.key(plain, "null", index)
        p_values.append(policy.log2_p(ground.scheme.measure(host, key)))
    complaints = null_excess(p_values)
    exact = getattr(ground.scheme, "exact_null", True)
    notes.add("null calibration", not complaints or not exact, "; ".join(complaints))


def _repeats(notes: _Notes, ground: _Ground, key: Key) -> None:
    short = Recipe.of(ground.task.recipe, epochs=2)
    runs = [embed(ground.task, ground.scheme, key, seed=3, recipe=short).model for _ in range(2)]
    same = state_digest(runs[0].state_dict()) == state_digest(runs[1].state_dict())
    notes.add("same seed, same result", same)
    model = ground.task.model()
    first, second = ground.key(model, "twin"), ground.key(model, "twin")
    notes.add("same secret, same key", first.layout == second.layout)


def _reopened(
    notes: _Notes, ground: _Ground, key: Key, marked: nn.Module, evidence: Evidence
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.json"
        key.seal(path, "a passphrase for a test")
        opened = Key.open(path, "a passphrase for a test")
    opened = replace(opened, inputs=key.inputs)
    again = ground.scheme.measure(ground.task.host(marked), opened)
    notes.add("key survives save and load", again == evidence)


def _half(notes: _Notes, ground: _Ground, key: Key, marked: nn.Module, bits: float) -> None:
    half = copy.deepcopy(marked).to(torch.bfloat16)

    def forward(model: nn.Module, batch: object) -> object:
        first = batch[0] if isinstance(batch, (tuple, list)) else batch
        assert isinstance(first, Tensor)
        return model(first.to(torch.bfloat16) if first.is_floating_point() else first)

    evidence = ground.scheme.measure(ModuleHost(half, forward=forward), key)
    found = -policy.log2_p(evidence)
    notes.add("half precision", found >= bits, f"{found:.1f} bits, {bits:g} asked for")


class _OneCoin(Key):
    """A liar's key: all shards have one secret, so that one bit would count once a shard."""

    def shard(self, index: int) -> Shard:
        """Return a shard with the first one's secret."""
        return replace(Key.shard(self, index), secret=Key.shard(self, 0).secret)


class _Sealed(Host):
    """A host that grants nothing."""

    def digest(self) -> str:
        return "0" * 64


def _honest(notes: _Notes, ground: _Ground, key: Key, marked: nn.Module) -> None:
    scheme, task = ground.scheme, ground.task
    host = task.host(marked)
    foreign = Key.generate(replace(key.layout, scheme="someone-else"), inputs=key.inputs)
    newer = Key.generate(replace(key.layout, version=scheme.version + 1), inputs=key.inputs)
    notes.refused("refuses a foreign key", lambda: scheme.measure(host, foreign), KeyLayoutError)
    notes.refused("refuses another version", lambda: scheme.measure(host, newer), KeyLayoutError)
    notes.refused(
        "refuses a host without access", lambda: scheme.measure(_Sealed(), key), EarmarkError
    )
    if key.layout.shards > 1:
        coin = _OneCoin(key.layout, secrets.token_bytes(32), None, key.inputs)
        every = range(key.layout.shards)
        liar = Disclosure(coin.opening("0" * 64), coin.reveal(every), key.inputs)
        notes.refused(
            "refuses shards of one secret", lambda: scheme.measure(host, liar), KeyFileError
        )
        stolen = Disclosure(key.opening("0" * 64), coin.reveal(every), key.inputs)
        notes.refused(
            "refuses shards of another key", lambda: scheme.measure(host, stolen), KeyFileError
        )
    if scheme.needs_inputs:
        notes.refused("asks for inputs", lambda: scheme.new_key(host), UsageError)
    broken = copy.deepcopy(marked)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    with notes.during("NaN never counts"):
        try:
            found = -policy.log2_p(scheme.measure(task.host(broken), key))
        except EarmarkError:
            found = 0.0
        notes.add("NaN never counts", found < 10, f"{found:.1f} bits on a model of NaN")


def check_attack(
    attack: Attack,
    *,
    hosts: Sequence[str] = ("mlp", "cnn", "transformer"),
    seed: int = 0,
) -> tuple[Check, ...]:
    """Hold an attack to the house's rules on three tiny hosts.

    It changes something, leaves its input and the global generator alone, repeats with the same
    seed, keeps the function if it says that it does, gives a model that runs, refuses too small a
    budget, and has presets that can be built.

    Args:
        attack: The attack.
        hosts: Tiny hosts to use.
        seed: Seed of everything.

    Returns:
        What was checked.

    Raises:
        AssertionError: A check failed; all failed ones are listed.
    """
    notes = _Notes()
    accepted = 0
    refusals = []
    for name in hosts:
        notes.host = name
        task = tiny_task(name, samples=128, seed=seed)
        model = train(task, seed=seed, recipe=Recipe.of(task.recipe, epochs=2)).model
        sibling = train(task, seed=seed + 1, recipe=Recipe.of(task.recipe, epochs=1)).model
        knowledge = max(Knowledge.SCHEME, attack.knowledge)
        budget = Budget(task, knowledge=knowledge, models=(sibling,))
        try:
            attack.run(model, budget, seed=seed)
        except EarmarkError as error:
            refusals.append(f"{name}: {error}")
            continue
        except Exception as error:  # noqa: BLE001 - a crash of foreign code is what is looked for
            notes.add("runs", passed=False, detail=f"{type(error).__name__}: {error}")
            continue
        accepted += 1
        with notes.during("runs"):
            _attack_host(notes, attack, model, budget, seed)
    notes.host = ""
    notes.add("fits a tiny host", accepted > 0, "; ".join(refusals))
    _attack_words(notes, attack)
    return notes.finish(f"Attack '{attack.name}'")


def _attack_host(
    notes: _Notes, attack: Attack, model: nn.Module, budget: Budget, seed: int
) -> None:
    before, random_before = _state(model), torch.get_rng_state()
    changed = attack.run(model, budget, seed=seed)
    notes.add("leaves its input alone", _state(model) == before)
    notes.add("leaves no hook on its input", not _hooks(model))
    notes.add(
        "leaves the global generator alone", bool((torch.get_rng_state() == random_before).all())
    )
    again = attack.run(model, budget, seed=seed)
    same = state_digest(changed.state_dict()) == state_digest(again.state_dict())
    notes.add("repeats with the same seed", same)
    batch = next(iter(budget.task.stream("test", 0)))
    with torch.no_grad():
        old, new = budget.task.forward(model, batch), budget.task.forward(changed, batch)
    notes.add("keeps the shape of the output", old.shape == new.shape)
    notes.add("gives finite scores", bool(torch.isfinite(new).all()))
    moved = state_digest(changed.state_dict()) != state_digest(model.state_dict())
    notes.add("changes something", moved or type(changed) is not type(model))
    notes.add("is in evaluation mode", not any(part.training for part in changed.modules()))
    if attack.exact:
        gap = float((new - old).norm() / old.norm())
        notes.add("keeps the function", gap <= 1e-5, f"relative change {gap:.1e}")
    if attack.needs_data:
        empty = replace(budget, data_fraction=0.0)
        notes.refused("asks for data", lambda: attack.run(model, empty, seed=seed), UsageError)
    if attack.knowledge:
        blind = replace(budget, knowledge=Knowledge.NOTHING)
        notes.refused("asks for knowledge", lambda: attack.run(model, blind, seed=seed), UsageError)


def _attack_words(notes: _Notes, attack: Attack) -> None:
    for word in ("name", "family", "source", "summary"):
        notes.add(f"has a {word}", bool(getattr(attack, word, "")))
    notes.add("is a frozen dataclass", _frozen(attack))
    for preset in attack.PRESETS:
        with notes.during(f"preset {preset}"):
            type(attack).preset(preset)


def _frozen(thing: object) -> bool:
    parameters = getattr(type(thing), "__dataclass_params__", None)
    return dataclasses.is_dataclass(thing) and bool(getattr(parameters, "frozen", False))


def _state(model: nn.Module) -> tuple[str, tuple[bool, ...], tuple[bool, ...]]:
    """Return what must not change: tensors, modes, and which parameters are trained."""
    return (
        state_digest(model.state_dict()),
        tuple(module.training for module in model.modules()),
        tuple(item.requires_grad for item in model.parameters()),
    )


def _hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind, ())) for module in model.modules() for kind in kinds)
