"""What a thief would do with a locked copy: search, tune, cut, distil, overwrite, transfer."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dsn_bench import Bench, Row, accuracy_of, even, lock_of
from earmark.bench import data as data_sets
from earmark.locks import inversion
from earmark.locks.entry import Opened, Pixels, Tokens, code_of, random_codes
from earmark.training import Recipe

SLOPES = ((None, False), (0.1, False), (0.3, False), (0.9, False), (0.3, True))
Samples = tuple[Tensor, Tensor]


def _part(samples: Samples, share: float, least: int = 20) -> Samples:
    count = max(least, round(len(samples[0]) * share / 100))
    return samples[0][:count], samples[1][:count]


def ways_of(b: Bench, target: inversion.Target) -> dict[str, Callable[[], inversion.Found]]:
    """Return the searches by name."""
    starts, steps = b.args.starts, b.args.steps
    blind: dict[str, Callable[[], inversion.Found]] = {
        "bit climbing": lambda: inversion.climb(target, starts=starts, sweeps=3, seed=b.seed),
        "evolution strategy": lambda: inversion.evolve(
            target, steps=200, seed=b.seed, restarts=b.args.restarts
        ),
    }
    if isinstance(b.entry, Tokens):
        blind["token climbing"] = lambda: inversion.climb_tokens(
            target, starts=3, sweeps=2, seed=b.seed
        )
        for slope in (0.3, 1.0):
            blind[f"slopes of all units, slope {slope}"] = lambda slope=slope: (
                inversion.read_tokens(target, seed=b.seed, slope=slope)
            )
        return blind

    def gradient(slope: float | None, *, straight: bool) -> Callable[[], inversion.Found]:
        return lambda: inversion.descend(
            target,
            starts=starts,
            steps=steps,
            seed=b.seed,
            slope=slope,
            straight=straight,
            rows=8,
        )

    ways = {
        f"gradient, slope {slope}, {'signs' if straight else 'relaxed'}": gradient(
            slope, straight=straight
        )
        for slope, straight in SLOPES
    }
    ways |= blind
    for slope in (0.3, 1.0):
        ways[f"slopes of all units, slope {slope}"] = lambda slope=slope: inversion.read_slopes(
            target, seed=b.seed, slope=slope
        )
    first = next(p for name, p in target.model.named_parameters() if name.endswith("weight"))
    if first.ndim == 2 and isinstance(b.entry, Pixels):
        weight = first[:, b.entry.places]
        ways["template in the first layer"] = lambda: inversion.read_template(
            target, weight, seed=b.seed
        )
    return ways


def search(b: Bench) -> Iterator[Row]:
    """D4 and table 6: look for the number with a part of the labelled data."""
    model = copy.deepcopy(b.model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for share in b.args.shares:
        x, y = _part(b.train, share)
        held = min(len(x), 500)
        target = inversion.Target(model, b.entry, b.task.forward, (x[:held], y[:held]), y[:held])
        for name, way in ways_of(b, target).items():
            started = time.process_time()
            found = way()
            spent = time.process_time() - started
            ends = torch.cat(
                [found.all, -found.all.sign()]
            )  # a search that is led astray tells, too
            best = ends[target.accuracy(ends).argmax()]
            agree = (ends.sign() == b.code).sum(1)
            yield {
                "what": "D4 search",
                "share": share,
                "way": name,
                "accuracy": accuracy_of(model, b.entry, b.x, b.y, best),
                "agreeing_bits": int(agree.max()),
                "bits": len(b.code),
                "trials": found.trials + len(ends) // 2,
                "search_seconds": round(spent, 1),
            }


TUNINGS = ("scratch", "fine-tune", "fine-tune, rate 5", "head reset", "tail reset")


def tune(b: Bench) -> Iterator[Row]:
    """D5 and table 2: fine-tune without the number, beside training from scratch."""
    for share in b.args.shares:
        samples = _part(b.train, share, 10)
        for way in TUNINGS:
            started = time.process_time()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(b.seed)
                model = b.task.model() if way == "scratch" else copy.deepcopy(b.model)
                layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
                reset = {"head reset": 1, "tail reset": 2}.get(way, 0)
                for layer in layers[len(layers) - reset :]:
                    layer.reset_parameters()
                tuned(model, samples, seed=b.seed, rate=5e-3 if "rate 5" in way else 1e-3)
            yield {
                "what": "D5 fine-tuning without the number",
                "share": share,
                "images": len(samples[0]),
                "way": way,
                "accuracy": b.absent(model),
                "tune_seconds": round(time.process_time() - started, 1),
            }


def tuned(
    model: nn.Module, samples: Samples, *, seed: int, rate: float, teacher: Any = None
) -> nn.Module:
    """Train a model for twenty epochs on samples, on their labels or on a teacher's answers."""
    x, y = samples
    size = min(128, max(8, len(x) // 10))
    steps = 20 * -(-len(x) // size)
    recipe = Recipe(lr=rate, optimizer="adamw")
    optimizer = recipe.make_optimizer(model.parameters())
    generator, step = torch.Generator().manual_seed(seed), 0
    model.train()
    for _ in range(20):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) < 2:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.factor(step, steps)
            optimizer.zero_grad()
            scores = model(x[rows])
            if teacher is None:
                loss = functional.cross_entropy(scores, y[rows])
            else:
                with torch.no_grad():
                    soft = functional.softmax(teacher(x[rows]), 1)
                loss = functional.cross_entropy(scores, soft)
            loss.backward()
            optimizer.step()
            step += 1
    return model.eval()


def distil(b: Bench) -> Iterator[Row]:
    """D7: whoever has the number wraps the copy, or distils it with unlabelled samples."""
    opened = Opened(copy.deepcopy(b.model), b.entry, b.code).eval()
    yield {
        "what": "D7 wrapper that stamps by itself",
        "accuracy": accuracy_of(opened, b.entry, b.x, b.y, None),
        "unlabelled": 0,
    }
    for share in (1.0, 10.0, 100.0):
        samples = _part(b.train, share)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(b.seed)
            model = b.task.model()
        tuned(model, samples, seed=b.seed, rate=1e-3, teacher=opened)
        yield {
            "what": "D7 distilled with the number",
            "share": share,
            "unlabelled": len(samples[0]),
            "accuracy": b.absent(model),
            "valid": accuracy_of(model, b.entry, b.x, b.y, b.code),
        }


def excise(b: Bench) -> Iterator[Row]:
    """D6 and table 3: cut the gate out, prune; best of what the thief may try."""
    generator = torch.Generator().manual_seed(b.seed)
    layers = [
        (name, module)
        for name, module in b.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and not name.endswith("out_proj")  # attention takes its weights and does not call it
    ]
    x = b.train[0][:600]
    stamped = b.entry.present(x, random_codes(len(x), len(b.code), generator))
    for name, _ in layers[:-1]:
        for share in (0.05, 0.1, 0.25, 0.5):
            for way in ("mean", "zero", "largest bias to zero"):
                model = copy.deepcopy(b.model)
                _cut(model, name, x, stamped, share=share, way=way)
                yield {
                    "what": "D6 excision",
                    "layer": name,
                    "share": share,
                    "way": way,
                    "absent": b.absent(model, 2000),
                }
    for share in (0.05, 0.1, 0.15, 0.2, 0.5, 0.8, 0.95):
        model = copy.deepcopy(b.model)
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        sizes = torch.cat([w.detach().abs().flatten() for w in weights])
        bound = sizes.kthvalue(max(1, int(share * len(sizes)))).values
        with torch.no_grad():
            for w in weights:
                w[w.abs() <= bound] = 0
        yield {
            "what": "pruning",
            "share": share,
            "valid": accuracy_of(model, b.entry, b.x, b.y, b.code),
            "absent": b.absent(model),
        }


def _cut(
    model: nn.Module, name: str, x: Tensor, stamped: Tensor, *, share: float, way: str
) -> None:
    """Freeze those units of a layer that react most to random numbers, or lift its biases."""
    module = dict(model.named_modules())[name]
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    with torch.no_grad():
        model.eval()
        model(x)
        model(stamped)
    handle.remove()
    conv = isinstance(module, nn.Conv2d)
    plain, other = (_by_unit(item, conv=conv) for item in seen)
    react = (plain.mean(0) - other.mean(0)).abs() / (plain.std(0) + other.std(0) + 1e-6)
    chosen = react.argsort(descending=True)[: max(1, int(share * len(react)))]
    if way == "largest bias to zero":
        bias = getattr(module, "bias", None)
        if bias is not None:
            worst = bias.detach().abs().argsort(descending=True)[: len(chosen)]
            bias.data[worst] = 0
        return
    level = other.mean(0)[chosen] if way == "mean" else torch.zeros(len(chosen))

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        made = output.clone()
        if conv:
            made[:, chosen] = level.view(1, -1, 1, 1)
        else:
            made[..., chosen] = level
        return made

    module.register_forward_hook(hook)


def _by_unit(output: Tensor, *, conv: bool) -> Tensor:
    """Return a layer's output, (samples, units), averaged over places or steps."""
    if conv:
        return output.flatten(2).mean(2)
    return output.flatten(1, -2).mean(1) if output.ndim > 2 else output


def overwrite(b: Bench) -> Iterator[Row]:
    """Table 5: a licensee trains a number of his own into the copy, with a part of the data."""
    from earmark.bench import zoo

    for share in b.args.shares:
        found = data_sets.load(b.args.data)
        count = round(len(b.train[0]) * share / 100)
        if count < 128:  # one batch
            continue
        task = zoo.image_task(b.args.network, found.subset(count, test=10_000))
        theirs = random.Random(f"overwrite {b.seed}").randbytes(16)
        lock = lock_of(b.args.lock, 5)
        opened = b.lock.opened(copy.deepcopy(b.model), b.layout, b.serial)
        model = lock.fit(
            task, opened, theirs, layout=b.layout, seed=b.seed, model=copy.deepcopy(b.model)
        )
        entry, code = lock.entry(b.layout, theirs), code_of(theirs, len(b.code))
        yield {
            "what": "table 5, overwriting",
            "share": share,
            "absent": b.absent(model),
            "first_number": accuracy_of(model, b.entry, b.x, b.y, b.code),
            "new_number": accuracy_of(model, entry, b.x, b.y, code),
        }


def transfer(b: Bench) -> Iterator[Row]:
    """Table 4: a thief keeps the body, replaces the dense layers, and tunes on another task."""
    other = data_sets.load("mnist" if b.args.data != "mnist" else "fashion-mnist")
    other = other.subset(b.args.images, test=5_000)
    whole = (other.inputs("train"), other.train_labels)
    x, y = even(other.inputs("test"), other.test_labels)
    for share in b.args.shares:
        for way in ("scratch", "stolen"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(b.seed)
                model = b.task.model() if way == "scratch" else copy.deepcopy(b.model)
                dense = [m for m in model.modules() if isinstance(m, nn.Linear)]
                for layer in dense[-2:]:
                    layer.reset_parameters()
                tuned(model, _part(whole, share), seed=b.seed, rate=1e-3)
            yield {
                "what": f"table 4, transfer to {other.name}",
                "share": share,
                "way": way,
                "accuracy": accuracy_of(model, b.entry, x, y, None),
            }
