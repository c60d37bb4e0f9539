r"""Can anybody tell that a model bears MTL-Sign? Shadow models, weights, activations, classifiers.

    python benchmarks/mtlsign_stealth.py --shadows 50
    python benchmarks/mtlsign_stealth.py --shadows 50 --alike
    python benchmarks/mtlsign_stealth.py --shadows 50 --conceal 0.06
    python benchmarks/mtlsign_stealth.py --shadows 50 --conceal 0.3 --network cnn-wide --epochs 16 \
        --settings '{"triggers": 1024, "settle": 40}'

The attacker knows the scheme and trains shadow models of both kinds, one of each from every seed,
with a key for each. Tests are scored on models that they never saw, whose seeds they never saw
either: the variance of each layer's weights; how strongly the hidden features of his own samples
fall into two clusters within a class; and classifiers on many statistics of weights and features,
on these with norms, biases and answers, on others that concealing did not look after at first, on
some that were chosen last (of features of held-out images, too), and on all together. An AUC
of 0.5 is a guess; a test that is wrong more often than right is turned round. With --alike the
models without the mark are trained in the same way, with triggers that ride and samples that are
settled, but nothing is marked: what is then told apart is the mark, not the way of training. With
--conceal the marked models are the unmarked ones themselves, moved a little to bear the mark, as
`earmark protect --conceal` does it; where the scheme settles, the unmarked ones are settled too,
which needs no key. What is seen of each pair is a row (mtlsign_stealth_pairs.jsonl), models are
kept in the folder for temporary files; run it again, or several times at once with --part, and it
goes on. With --kept the rows are judged and nothing is trained.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import inspect
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from earmark.bench.data import load
from earmark.bench.zoo import image_task
from earmark.hosts import batches
from earmark.keys.secret import Key
from earmark.policy import log2_p
from earmark.schemes.conceal import SETTINGS, conceal, gentle
from earmark.schemes.embedding import embed, fresh_model
from earmark.schemes.likeness import Forces
from earmark.schemes.mtlsign import MtlSign
from earmark.schemes.settling import train_settled
from earmark.task import Task
from earmark.training import train
from mtlsign import read, versions, write

ROWS = Path(__file__).parent / "rows" / "mtlsign_stealth.jsonl"
PAIRS = ROWS.with_stem("mtlsign_stealth_pairs")
Array = np.ndarray
_NO_WEIGHT = 1e-30
_WAY = 3  # of marking and looking; raise it when either changes: pairs of before are made anew


def matrices(model: nn.Module) -> Iterator[tuple[str, Array, Array, Array]]:
    """Yield names of weights, their values, these standardized, and their singular values."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            values = parameter.detach().double().flatten(1).numpy()
            unit = (values - values.mean()) / values.std()
            yield name, values, unit, np.linalg.svd(values, compute_uv=False)


def inside_answers(features: Array, answers: Array) -> Iterator[Array]:
    """Yield the features of each answer's samples around their mean, where there are twenty."""
    for answer in np.unique(answers):
        rows = features[answers == answer]
        if len(rows) >= 20:
            yield rows - rows.mean(0)


def weight_statistics(model: nn.Module) -> dict[str, float]:
    """Describe each layer's weights: deviation, moments, spread of rows and columns."""
    found: dict[str, float] = {}
    for name, values, unit, spectrum in matrices(model):
        found[f"variance {name}"] = float(values.var())
        found[f"kurtosis {name}"] = float((unit**4).mean())
        found[f"rows {name}"] = float(values.std(1).std() / values.std())
        found[f"columns {name}"] = float(values.std(0).std() / values.std())
        found[f"norm {name}"] = float(spectrum[0] / np.sqrt((spectrum**2).mean()))
    return found


def bimodality(values: Array) -> float:
    """Return the share of variance that a split in two explains, best over cuts of one axis."""
    ordered = np.sort(values)
    count = len(ordered)
    sums = np.cumsum(ordered)
    left = np.arange(1, count)
    low, high = sums[:-1] / left, (sums[-1] - sums[:-1]) / (count - left)
    between = left * (count - left) / count**2 * (high - low) ** 2
    return float(between.max() / max(ordered.var(), 1e-12))


def activation_statistics(
    model: nn.Module, task: Task, pool: Any, names: tuple[str, ...]
) -> dict[str, float]:
    """Describe hidden features of the attacker's samples, within each of the model's answers."""
    host = task.host(model)
    answers = host.labels(pool)
    found: dict[str, float] = {}
    for name, features in host.features(pool, names).items():
        splits, spreads, ranks = [], [], []
        for rest in inside_answers(features, answers):
            _, sizes, axes = np.linalg.svd(rest, full_matrices=False)
            splits += [bimodality(rest @ axis) for axis in axes[:3]]
            spreads.append(float((sizes**2).sum() / ((features - features.mean(0)) ** 2).sum()))
            share = sizes**2 / (sizes**2).sum()
            ranks.append(float(1 / (share**2).sum()))
        found[f"clusters {name}"] = float(np.mean(splits))
        found[f"clusters most {name}"] = float(np.max(splits))
        found[f"within {name}"] = float(np.sum(spreads))
        found[f"rank {name}"] = float(np.mean(ranks))
    return found


def unkept_statistics(
    model: nn.Module, task: Task, pool: Any, names: tuple[str, ...]
) -> dict[str, float]:
    """Describe more than the first judge reads: spectra, tails, single answers."""
    found: dict[str, float] = {}
    for name, values, unit, spectrum in matrices(model):
        share = spectrum**2 / (spectrum**2).sum()
        for at in (1, 2, 4):
            found[f"spectrum {at} {name}"] = float(share[at]) if at < len(share) else 0.0
        found[f"dimensions {name}"] = float(np.exp(-(share * np.log(share + 1e-12)).sum()))
        found[f"tails {name}"] = float((np.abs(unit) > 3).mean())
        found[f"skewness {name}"] = float((unit**3).mean())
        found[f"row means {name}"] = float(values.mean(1).std() / values.std())
    host = task.host(model)
    answers = host.labels(pool)
    for name, features in host.features(pool, names).items():
        whole = ((features - features.mean(0)) ** 2).sum(1).mean()
        spreads, second, dimensions = [], [], []
        for rest in inside_answers(features, answers):
            sizes = np.linalg.svd(rest, compute_uv=False) ** 2
            share = sizes / sizes.sum()
            spreads.append(sizes.sum() / len(rest) / whole)
            second.append(share[1])
            dimensions.append(np.exp(-(share * np.log(share + 1e-12)).sum()))
        found[f"tightest {name}"], found[f"widest {name}"] = float(min(spreads)), max(spreads)
        found[f"second {name}"] = float(np.mean(second))
        found[f"dimensions {name}"] = float(np.mean(dimensions))
        found[f"most dimensions {name}"] = float(np.max(dimensions))
        found[f"zeros {name}"] = float((features == 0).mean())
    return found


def answer_statistics(model: nn.Module, pool: Any) -> dict[str, float]:
    """Describe small parameters, running statistics, and how sure the answers are."""
    found: dict[str, float] = {}
    vectors = [(n, p.detach()) for n, p in model.named_parameters() if p.ndim == 1]
    vectors += [(n, b.log() if "var" in n else b) for n, b in model.named_buffers() if b.ndim == 1]
    for name, values in vectors:
        found[f"mean {name}"] = float(values.double().mean())
        found[f"deviation {name}"] = float(values.double().std())
    with torch.no_grad():
        scores = model(pool[0][:600])
    two = scores.topk(2, dim=1).values
    found["sure"] = float(scores.softmax(1).max(1).values.mean())
    found["scores"] = float(scores.std())
    found["margins"] = float((two[:, 0] - two[:, 1]).mean())
    return found


def fresh_statistics(
    model: nn.Module, task: Task, pool: Any, names: tuple[str, ...]
) -> dict[str, float]:
    """Describe what was chosen last, when concealing among settled samples was all but finished."""
    found: dict[str, float] = {}
    for name, values, unit, _ in matrices(model):
        found[f"column means {name}"] = float(values.mean(0).std() / values.std())
        found[f"bulk {name}"] = float(np.median(np.abs(unit)))
        rows = values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)
        near = np.abs(rows @ rows.T) - np.eye(len(rows))
        found[f"likeness {name}"] = float(near.sum() / len(rows) / (len(rows) - 1))
        found[f"likest {name}"] = float(near.max(1).mean())
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4 and parameter.shape[-1] == 3:
            square = parameter.detach().double().square()
            found[f"middles {name}"] = float(square[..., 1, 1].sum() / square.sum())
    host = task.host(model)
    answers = host.labels(pool)
    for name, features in host.features(pool, names).items():
        inside = [rest / np.sqrt((rest**2).mean()) for rest in inside_answers(features, answers)]
        sizes = [np.linalg.norm(rest, axis=1) for rest in inside]
        found[f"far {name}"] = float(np.mean([size.max() / size.mean() for size in sizes]))
        found[f"kurtosis {name}"] = float(np.mean([(rest**4).mean() for rest in inside]))
        found[f"skewness {name}"] = float(np.mean([(rest**3).mean() for rest in inside]))
        found[f"nearest {name}"] = float(np.mean([_nearest(rest) for rest in inside]))
        middles = np.stack([features[answers == answer].mean(0) for answer in np.unique(answers)])
        apart = cdist(middles, middles)
        apart = apart[np.triu_indices(len(middles), 1)]
        found[f"closest middles {name}"] = float(apart.min() / apart.mean())
        found[f"middles {name}"] = float(apart.std() / apart.mean())
        scales = features.std(0)
        found[f"units {name}"] = float(scales.std() / scales.mean())
    return found | elsewhere_statistics(model, pool) | held_out_statistics(model, task, names)


def held_out_statistics(model: nn.Module, task: Task, names: tuple[str, ...]) -> dict[str, float]:
    """Describe features and answers of images that nobody trained on."""
    images = batches.join(list(task.stream("test", 0)))
    found = activation_statistics(model, task, images, names)
    answers = answer_statistics(model, images)
    found |= {name: answers[name] for name in ("sure", "scores", "margins")}
    return {f"{name}, held out": value for name, value in found.items()}


def _nearest(rows: Array) -> float:
    """Return how far the nearest other row is, against the mean distance."""
    apart = cdist(rows, rows)
    np.fill_diagonal(apart, np.inf)
    return float(apart.min(1).mean() / np.sqrt(2 * (rows**2).sum(1).mean()))


def elsewhere_statistics(model: nn.Module, pool: Any) -> dict[str, float]:
    """Describe answers to what the task has not: noise, mixtures, inverted and moved inputs."""
    some = pool[0][:600]
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(some.shape, generator=draws)
    inputs = {
        "itself": some,
        "noisy": some + 0.5 * noise,
        "mixed": 0.5 * (some + some.flip(0)),
        "inverted": -some,
        "moved": some.roll(2, dims=-1),
        "nothing": some.mean() + some.std() * noise,
    }
    found: dict[str, float] = {}
    with torch.no_grad():
        shares = {name: model(value).softmax(1) for name, value in inputs.items()}
    usual = shares["itself"].argmax(1)
    for name, share in shares.items():
        found[f"entropy, {name}"] = -float((share * share.clamp(min=1e-9).log2()).sum(1).mean())
        if name != "itself":
            found[f"answers, {name}"] = float((share.argmax(1) == usual).float().mean())
    truth = pool[1][:600]
    steep = some.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(steep), truth)
    (slope,) = torch.autograd.grad(loss, steep)
    found["loss"], found["steepness"] = loss.item(), float(slope.flatten(1).norm(dim=1).mean())
    return found


def answer_statistics_of(found: dict[str, float]) -> list[str]:
    """Return the names that :func:`answer_statistics` gave."""
    starts = ("mean ", "deviation ", "sure", "scores", "margins")
    return [name for name in found if name.startswith(starts)]


def _rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def interval(truth: Array, scores: Array) -> tuple[float, list[float]]:
    """Return an AUC, turned round if under one half, and its 95 % bootstrap interval over pairs."""
    if roc_auc_score(truth, scores) < 0.5:
        scores = -scores
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(500):
        first = 2 * rng.integers(0, len(truth) // 2, len(truth) // 2)
        index = np.concatenate([first, first + 1])
        draws.append(roc_auc_score(truth[index], scores[index]))
    ends = [round(float(end), 3) for end in np.quantile(draws, (0.025, 0.975))]
    return round(float(roc_auc_score(truth, scores)), 3), ends


def held_out(judge: Any, data: Array, truth: Array, seeds: Array) -> Array:
    """Return each model's score by a judge that was fitted without it and without its seed."""
    folds = GroupKFold(min(10, len(set(seeds))))
    scores: Array = cross_val_predict(
        judge, data, truth, groups=seeds, cv=folds, method="predict_proba"
    )[:, 1]
    return scores


class Shadows:
    """Models of both kinds, one of each from a seed, and what can be seen of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        some = load(args.data).subset(args.images, test=2000)
        recipe = {"epochs": args.epochs, "lr": 0.05}
        self.task: Task = image_task(args.network, some, batch=64, recipe=recipe)
        self.scheme = MtlSign(**(SETTINGS if args.conceal else {}) | args.settings)
        self._rows = read(PAIRS)
        stream = list(self.task.stream("train", 0))
        half = len(stream) // 2
        self.mine, self.theirs = batches.join(stream[half:]), batches.join(stream[:half])

    def plain(self, seed: int) -> nn.Module:
        """Return a model that is trained as usual, or with settled samples."""
        if self.args.conceal and self.scheme.settle:
            host, weight = self.task.host(fresh_model(self.task, seed)), self.scheme.settle
            layers = self.scheme.settled_at(host)
            return self._kept(
                ["settled", weight],
                seed,
                lambda: train_settled(self.task, layers, seed=seed, weight=weight).model,
            )
        return self._kept(["plain"], seed, lambda: train(self.task, seed=seed).model)

    def key(self, seed: int) -> Key:
        """Return a seed's key."""
        secret = hashlib.sha256(f"stealth/{seed}".encode()).digest()
        host = self.task.host(fresh_model(self.task, seed))
        return self.scheme.new_key(host, inputs=self.mine, secret=secret)

    def alike(self, seed: int) -> nn.Module:
        """Return a model that is trained as a marked one is, without a mark."""
        way = dataclasses.replace(self.scheme, weight=_NO_WEIGHT)
        about = ["alike", repr(self.scheme)]
        return self._kept(
            about, seed, lambda: embed(self.task, way, self.key(seed), seed=seed).model
        )

    def marked(self, seed: int) -> nn.Module:
        """Return a marked model: trained with the mark, or concealed near the unmarked one."""
        if self.args.conceal:
            return self._kept(self._how(), seed, lambda: self._near(seed))
        return self._kept(
            ["marked", repr(self.scheme)],
            seed,
            lambda: embed(self.task, self.scheme, self.key(seed), seed=seed).model,
        )

    def _how(self) -> list[Any]:
        code = [Path(inspect.getfile(part)).read_bytes() for part in (conceal, Forces)]
        digest = hashlib.sha256(b"".join(code)).hexdigest()
        way = [self.args.conceal, gentle(self.task, self.scheme), digest]
        return ["concealed", repr(self.scheme), *way]

    def _near(self, seed: int) -> nn.Module:
        model, reach = copy.deepcopy(self.plain(seed)), self.args.conceal
        made = conceal(self.task, self.scheme, self.key(seed), model=model, seed=seed, reach=reach)
        return made.model

    def _path(self, about: list[Any], seed: int, suffix: str) -> Path:
        name = json.dumps([self.task.name, dict(self.task.recipe), self.args.images, about])
        folder = Path(tempfile.gettempdir()) / "earmark-benchmarks"
        folder.mkdir(exist_ok=True)
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return folder / f"stealth-{digest}-{seed}.{suffix}"

    def _kept(self, about: list[Any], seed: int, make: Callable[[], nn.Module]) -> nn.Module:
        path = self._path(about, seed, "pt")
        if path.exists():
            model = self.task.model()
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        model = make()
        half = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), half)
        half.rename(path)
        return model

    def known(self, seed: int) -> dict[str, Any] | None:
        """Return the row of a seed's pair, if there is one."""
        about = self._about(seed)
        rows = (row for row in self._rows if all(row.get(k) == v for k, v in about.items()))
        return next(rows, None)

    def pair(self, seed: int) -> dict[str, Any]:
        """Return what is seen of a seed's two models, utilities, and the marked one's bits."""
        if known := self.known(seed):
            return known
        start = time.process_time()
        clean = self.alike(seed) if self.args.alike else self.plain(seed)
        marked = self.marked(seed)
        both = (clean, marked)
        bits = -log2_p(self.scheme.measure(self.task.host(marked), self.key(seed)))
        row = self._about(seed) | {
            "found": [_rounded(self.seen(model, seed)) for model in both],
            "unkept": [_rounded(self.unkept(model, seed)) for model in both],
            "fresh": [_rounded(self.fresh(model, seed)) for model in both],
            "utilities": [round(self.task.evaluate(model), 3) for model in both],
            "bits": round(bits, 1),
            "seconds": round(time.process_time() - start, 1),
        }
        write(PAIRS, row | versions())
        return row

    def _about(self, seed: int) -> dict[str, Any]:
        names = ("network", "data", "images", "epochs", "settings", "alike", "conceal")
        about = {name: getattr(self.args, name) for name in names}
        return about | {
            "attack": "detection",
            "way": _WAY if self.args.conceal else 0,
            "seed": seed,
        }

    def seen(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Return everything that the attacker looks at."""
        carrier = self.key(seed).layout.carrier
        found = weight_statistics(model) | answer_statistics(model, self.theirs)
        return found | activation_statistics(model, self.task, self.theirs, carrier)

    def unkept(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Return what a judge might look at beside that."""
        return unkept_statistics(model, self.task, self.theirs, self.key(seed).layout.carrier)

    def fresh(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Return what was looked at last."""
        return fresh_statistics(model, self.task, self.theirs, self.key(seed).layout.carrier)


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Train, look, and return statistics, kinds, seeds, utilities and the marked models' bits."""
    shadows = Shadows(args)
    seeds = list(range(args.part, args.shadows, args.parts))
    if args.kept:
        seeds = [seed for seed in seeds if shadows.known(seed)]
    pairs = [shadows.pair(seed) for seed in seeds]
    if args.parts > 1:
        return {}
    if len(pairs) < 2:
        raise SystemExit(f"{len(pairs)} pairs are too few to judge; train more of them.")
    return {
        "found": [p["found"][i] | p["unkept"][i] | p["fresh"][i] for p in pairs for i in (0, 1)],
        "unkept": list(pairs[0]["unkept"][0]),
        "fresh": list(pairs[0]["fresh"][0]),
        "truth": np.tile([0, 1], len(pairs)),
        "seeds": np.repeat(seeds, 2),
        "utilities": [one for pair in pairs for one in pair["utilities"]],
        "bits": [pair["bits"] for pair in pairs],
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--shadows", type=int, default=50, help="models of each kind")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the scheme, JSON")
    parser.add_argument("--network", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--alike", action="store_true", help="train the others in the same way")
    parser.add_argument("--conceal", type=float, default=0.0, help="reach from finished models")
    parser.add_argument("--part", type=int, default=0, help="train only this part, judge nothing")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--kept", action="store_true", help="judge what is kept, train nothing")
    args = parser.parse_args()
    if not 0 <= args.part < args.parts:
        parser.error(f"part {args.part} of {args.parts}: parts count from 0; name --parts too")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start = time.process_time()
    all_of = collect(args)
    if args.parts > 1:
        return
    found, truth, seeds = all_of["found"], all_of["truth"], all_of["seeds"]
    unkept, fresh, every = all_of["unkept"], all_of["fresh"], list(found[0])
    names = [name for name in every if name not in unkept + fresh]
    usual = [n for n in names if n not in answer_statistics_of(found[0])]
    data = np.array([[one[name] for name in every] for one in found])
    row: dict[str, Any] = {
        "scheme": "mtlsign",
        "attack": "detection",
        "settings": args.settings,
        "network": args.network,
        "data": args.data,
        "images": args.images,
        "epochs": args.epochs,
        "shadows": len(truth),
        "utility_clean": round(float(np.mean(all_of["utilities"][0::2])), 2),
        "utility_marked": round(float(np.mean(all_of["utilities"][1::2])), 2),
        "bits_least": round(min(all_of["bits"]), 1),
        "bits_median": round(float(np.median(all_of["bits"])), 1),
        "statistics": len(usual),
        "everything": len(names),
        "unkept": len(unkept),
        "fresh": len(fresh),
        "alike": args.alike,
        "conceal": args.conceal,
        "way": _WAY,
    }
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    forest = RandomForestClassifier(300, random_state=0)
    tests = {
        "variance": ([n for n in names if n.startswith("variance")], logistic),
        "clusters": ([n for n in names if n.startswith("clusters")], logistic),
        "meta logistic": (usual, logistic),
        "meta forest": (usual, forest),
        "everything logistic": (names, logistic),
        "everything forest": (names, forest),
        "unkept logistic": (unkept, logistic),
        "unkept forest": (unkept, forest),
        "fresh logistic": (fresh, logistic),
        "fresh forest": (fresh, forest),
        "all logistic": (every, logistic),
        "all forest": (every, forest),
    }
    for test, (some, judge) in tests.items():
        chosen = [every.index(name) for name in some]
        auc, ends = interval(truth, held_out(judge, data[:, chosen], truth, seeds))
        row[f"auc_{test.replace(' ', '_')}"] = auc
        row[f"auc_{test.replace(' ', '_')}_interval"] = ends
    telling = {name: interval(truth, data[:, i])[0] for i, name in enumerate(every)}
    row["most_telling"] = dict(sorted(telling.items(), key=lambda item: -item[1])[:8])
    row["seconds"] = round(time.process_time() - start, 1)
    write(ROWS, row | versions())
    print(json.dumps(row))


if __name__ == "__main__":
    main()
