"""The judge of sound MTL-Sign: against a slow version, exact nulls, hostile features."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from earmark import stats
from earmark.errors import UsageError
from earmark.schemes import refit

HALF = Fraction(1, 2)


def signs(seed: int, count: int, draws: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, draws)) * 2.0 - 1.0


def features(seed: int, count: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def slow(named: dict[str, np.ndarray], labels: np.ndarray, order: list[int], blocks: int):
    """The same judge, written out: one ridge fit for every left-out sample."""
    hits, score, trials = 0, 0, 0
    for block in range(1, blocks):
        cut = [len(order) * b // blocks for b in range(blocks + 1)]
        fit, ask = order[: cut[block]], order[cut[block] : cut[block + 1]]
        best = None
        for value in named.values():
            z = (value - value.mean(0)) / value.std(0) / np.sqrt(value.shape[1])
            mean = np.linalg.eigvalsh(z[fit] @ z[fit].T)[::-1][: min(z[fit].shape)].mean()
            for strength in 10.0 ** np.arange(-4.0, 2.5, 0.5) * mean:

                def head(rows: list[int], z=z, strength=strength) -> np.ndarray:
                    gram = z[rows].T @ z[rows] + strength * np.eye(z.shape[1])
                    return np.linalg.solve(gram, z[rows].T @ labels[rows])

                loo = np.array([z[i] @ head([j for j in fit if j != i]) for i in fit])
                merit = loo @ labels[fit] / np.linalg.norm(loo)
                if best is None or merit > best[0]:
                    best = (merit, z[ask] @ head(fit))
        assert best is not None
        guess = best[1]
        right = guess * labels[ask] > 0
        ranks = np.argsort(np.argsort(np.abs(guess), kind="stable"), kind="stable")
        weights = [1 + refit.LEVELS * int(rank) // len(ask) for rank in ranks]
        hits += int(right.sum())
        score += sum(w if r else -w for w, r in zip(weights, right, strict=True))
        trials += len(ask)
    return hits, score, trials


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_version(seed: int) -> None:
    labels = signs(seed, 40)
    weak = features(seed, 40, 6) + 0.5 * labels
    named = {"a": weak, "b": features(seed + 9, 40, 70)}
    order = np.random.default_rng(seed).permutation(40).tolist()
    found = refit.tally(named, labels, order, blocks=4)
    hits, score, trials = slow(named, labels[:, 0], order, 4)
    assert (int(found.hits[0]), int(found.score[0]), found.trials) == (hits, score, trials)


def test_columns_are_independent_draws() -> None:
    labels = signs(1, 64, 5)
    named = {"a": features(2, 64, 10) + labels[:, :1], "b": features(3, 64, 4)}
    order = list(range(64))
    together = refit.tally(named, labels, order)
    for i in range(5):
        alone = refit.tally(named, labels[:, i : i + 1], order)
        assert alone.hits[0] == together.hits[i]
        assert alone.score[0] == together.score[i]


def test_finds_the_tap_that_bears_the_mark() -> None:
    labels = signs(4, 256)
    named = {"noise": features(5, 256, 30), "marked": features(6, 256, 30) + labels}
    found = refit.tally(named, labels, range(256))
    assert set(found.taps) == {"marked"}
    assert found.hits[0] >= 0.95 * found.trials


HOSTILE = {
    "normal": lambda n: features(7, n, 24),
    "wide": lambda n: features(8, n, 3 * n),
    "one column": lambda n: features(9, n, 1),
    "constant": lambda n: np.full((n, 8), 3.0),
    "two clusters": lambda n: np.repeat([[1.0, 0.0], [0.0, 1.0]], n // 2, axis=0),
    "heavy tails": lambda n: np.random.default_rng(1).standard_cauchy((n, 12)) ** 3,
    "one hot": np.eye,
    "sorted": lambda n: np.arange(n, dtype=float)[:, None] ** np.arange(1, 5),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_null_is_exactly_binomial(kind: str) -> None:
    draws, count = 2000, 64
    named = {"tap": HOSTILE[kind](count)}
    labels = signs(11, count, draws)
    found = refit.tally(named, labels, np.random.default_rng(3).permutation(count).tolist())
    if kind == "constant":
        assert not found.hits.any()  # no guess is never a hit
        return
    for bits in (
        [-stats.log2_binomial_tail(int(h), found.trials, HALF) for h in found.hits],
        [-stats.log2_rademacher_tail(int(s), found.weights) for s in found.score],
    ):
        for level in (0.05, 0.01, 0.001):
            small = sum(b >= -np.log2(level) - 1e-9 for b in bits)
            tail = stats.log2_binomial_tail(small, draws, Fraction(level).limit_denominator(1000))
            assert tail > -20, f"{small} of {draws} p-values at or below {level}"
    if kind in ("normal", "wide", "one column"):
        # goodness of fit to the law, in ten cells or so
        mean, spread = found.trials / 2, np.sqrt(found.trials) / 2
        z = (found.hits.mean() - mean) / (spread / np.sqrt(draws))
        assert abs(z) < 4
        assert abs(found.hits.std() / spread - 1) < 0.07


def test_nan_and_infinity_never_hit() -> None:
    labels = signs(12, 128)
    marked = features(13, 128, 10) + 4 * labels
    assert refit.tally({"a": marked}, labels, range(128)).hits[0] > 100
    for poison in (np.nan, np.inf, -np.inf):
        whole = marked.copy()
        whole[:, 3] = poison
        assert refit.tally({"a": whole}, labels, range(128)).hits[0] == 0
        some = marked.copy()
        some[64:96, 0] = poison
        found = refit.tally({"a": some}, labels, range(128))
        assert 60 <= found.hits[0] <= found.trials - 32
    with np.errstate(all="raise"):
        refit.tally({"a": marked * 1e300}, labels, range(128))
        refit.tally({"a": marked * 1e-300}, labels, range(128))


def test_equivalent_features_count_the_same() -> None:
    labels = signs(14, 256)
    marked = features(15, 256, 20) + 0.6 * labels
    order = np.random.default_rng(0).permutation(256).tolist()
    before = refit.tally({"a": marked}, labels, order)
    rng = np.random.default_rng(5)
    scaled = marked[:, rng.permutation(20)] * rng.uniform(0.01, 100, 20) + rng.normal(size=20)
    dummies = np.hstack([scaled, np.zeros((256, 5)), np.full((256, 3), 7.0)])
    for changed in (scaled, dummies):
        after = refit.tally({"a": changed}, labels, order)
        assert after.hits[0] == before.hits[0]
        assert after.score[0] == before.score[0]


def test_weights_depend_on_the_length_alone() -> None:
    assert refit.rank_weights(3, levels=3) == (1, 2, 3)
    assert sorted(refit.rank_weights(100)) == list(refit.rank_weights(100))
    named = {"a": features(1, 64, 5)}
    one = refit.tally(named, signs(1, 64), range(64))
    other = refit.tally(named, signs(2, 64), range(63, -1, -1))
    assert one.weights == other.weights
    assert len(one.weights) == one.trials == 56


@pytest.mark.parametrize(("count", "blocks"), [(15, 8), (3, 2), (64, 1)])
def test_refuses_too_few(count: int, blocks: int) -> None:
    with pytest.raises(UsageError, match="triggers"):
        refit.tally({"a": features(0, count, 2)}, signs(0, count), range(count), blocks=blocks)
