"""The judge of sound MTL-Sign: refit a head on some triggers, score it on others.

Whoever verifies fits a ridge head on the *suspect's* features and lets it guess labels that the fit
has not seen. Nothing is submitted, so nothing can be forged; nothing is aligned, so permuted,
rescaled or added neurons do not matter. The triggers are ordered by a nonce and split in blocks;
the head that guesses a block was fitted on the blocks before it only. Whatever a suspect made
without the labels does, every guess is then a fair coin, so the hits are exactly
Binomial(trials, 1/2): regulariser and tap are chosen by leave-one-out on the fitted blocks, never
on the guessed one.

A second, soft count uses the size of the guesses. In each block the guesses are ranked by size,
and the rank alone gives the weight. The multiset of weights is fixed by the block's length and the
ranking is fixed before the labels are looked at, so under the same hypothesis the score is exactly
a sum of those weights under independent fair signs.

Pure NumPy in float64; no framework, no iteration, no random number.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earmark.errors import UsageError

Array = NDArray[np.float64]

BLOCKS = 8
LEVELS = 8
_STRENGTHS = 10.0 ** np.arange(-4.0, 2.5, 0.5)
_CLOSE = 1e-6


@dataclass(frozen=True)
class Tally:
    """What was counted, for one or several draws of labels.

    Args:
        hits: Right guesses, (draws,).
        score: Weighted sum of right minus wrong guesses, (draws,).
        trials: Guesses scored.
        weights: Weights of the score, (trials,), in ascending order within each block.
        close: Guesses so near to zero that another machine might turn them, (draws,).
        taps: Names of the taps that were read, by block, for the first draw.
    """

    hits: NDArray[np.int64]
    score: NDArray[np.int64]
    trials: int
    weights: tuple[int, ...]
    close: NDArray[np.int64]
    taps: tuple[str, ...]

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.hits + other.hits,
            self.score + other.score,
            self.trials + other.trials,
            self.weights + other.weights,
            self.close + other.close,
            self.taps + other.taps,
        )


def rank_weights(count: int, *, levels: int = LEVELS) -> tuple[int, ...]:
    """Return the weights of `count` guesses ranked by size, smallest first.

    Example:
        >>> rank_weights(4, levels=2)
        (1, 1, 2, 2)
    """
    return tuple(1 + levels * rank // count for rank in range(count))


def spread(features: Array) -> Array:
    """Center and scale features.

    Args:
        features: (samples, features), any values.

    Returns:
        Features with mean 0 and variance 1 in each column that varies, the others left out, and
        all columns together scaled to mean square 1 a sample. A sample with a NaN or an infinity
        becomes zeros: its guess is zero, and zero is never a hit.
    """
    whole = np.asarray(np.isfinite(features).all(axis=1))
    clean = np.where(whole[:, None], features, 0.0)
    size = np.abs(clean).max(axis=0, initial=0.0)
    clean = clean[:, size > 0] / size[size > 0]
    if not whole.any() or clean.shape[1] == 0:
        return np.zeros((len(features), 1))
    clean = clean - clean[whole].mean(axis=0)
    deviation = clean[whole].std(axis=0)
    clean = clean[:, deviation > 1e-9] / deviation[deviation > 1e-9]
    if clean.shape[1] == 0:
        return np.zeros((len(features), 1))
    clean[~whole] = 0.0
    spread_out: Array = clean / np.sqrt(clean.shape[1])
    return spread_out


def bounds(count: int, blocks: int) -> list[int]:
    """Return where blocks of `count` ordered triggers begin and end.

    Raises:
        UsageError: There are fewer than two triggers a block, or fewer than two blocks.
    """
    if blocks < 2 or count < 2 * blocks:
        raise UsageError(
            f"{count} triggers cannot be judged in {blocks} blocks.",
            expected="At least two blocks, and two triggers in each.",
        )
    return [count * block // blocks for block in range(blocks + 1)]


def tally(
    features: Mapping[str, Array], labels: Array, order: Sequence[int], *, blocks: int = BLOCKS
) -> Tally:
    """Refit and count.

    Args:
        features: Tap to the suspect's features, (triggers, width), any values.
        labels: Signs, +1 or -1, (triggers, draws): one column a draw; measuring needs one, a
            calibration shares the factorisation among thousands.
        order: A permutation of the triggers that the claimant did not choose.
        blocks: Number of blocks; 2 gives the plain split in halves.

    Returns:
        The counts. All but the first block is scored.

    Raises:
        UsageError: Too few triggers for so many blocks.

    Example:
        >>> signs = np.where(np.arange(64) % 2 == 0, 1.0, -1.0)
        >>> found = tally({"fc": signs[:, None] * 3.0}, signs[:, None], range(64))
        >>> found.trials, int(found.hits[0])
        (56, 56)
    """
    cut = bounds(len(order), blocks)
    rows = np.asarray(order, dtype=np.int64)
    signs = labels[rows]
    spreads = {name: spread(np.asarray(value)[rows]) for name, value in features.items()}
    parts = []
    for start, end in itertools.pairwise(cut[1:]):
        guess, chosen = _guess(spreads, signs, start, end)
        parts.append(_count(guess, signs[start:end], chosen))
    return sum(parts[1:], parts[0])


def _guess(spreads: Mapping[str, Array], signs: Array, start: int, end: int) -> tuple[Array, str]:
    """Fit on the rows before `start`, guess the rows up to `end`: (rows, draws), and a tap."""
    draws = signs.shape[1]
    best = np.full(draws, -np.inf)
    guess = np.zeros((end - start, draws))
    taps = np.zeros(draws, dtype=np.int64)
    for index, z in enumerate(spreads.values()):
        left, values, right = np.linalg.svd(z[:start], full_matrices=False)
        kept = values > 1e-10 * max(values[0], 1e-300)
        left, values, right = left[:, kept], values[kept], right[kept]
        if not len(values):
            continue
        square, inner, ahead = values**2, left.T @ signs[:start], z[start:end] @ right.T
        for strength in _STRENGTHS * square.mean():
            shrink = square / (square + strength)
            leverage = (left**2) @ shrink
            fit = left @ (shrink[:, None] * inner)
            rest = np.maximum(1.0 - leverage, 1e-12)[:, None]
            loo = (fit - leverage[:, None] * signs[:start]) / rest
            length = np.sqrt((loo**2).sum(axis=0))
            merit = (loo * signs[:start]).sum(axis=0) / np.where(length > 0, length, np.inf)
            better = merit > best
            if better.any():
                made = ahead @ ((shrink / values)[:, None] * inner[:, better])
                guess[:, better], best[better], taps[better] = made, merit[better], index
    return guess, list(spreads)[int(taps[0])]


def _count(guess: Array, signs: Array, chosen: str) -> Tally:
    """Score one block: (rows, draws)."""
    size = np.abs(guess)
    right = guess * signs > 0
    weights = rank_weights(len(guess))
    ranks = np.argsort(size, axis=0, kind="stable")
    ranked = np.take_along_axis(np.where(right, 1, -1), ranks, axis=0)
    typical = np.sqrt((size**2).mean(axis=0))
    return Tally(
        hits=right.sum(axis=0),
        score=np.asarray(weights, dtype=np.int64) @ ranked,
        trials=len(guess),
        weights=weights,
        close=(size < _CLOSE * typical).sum(axis=0),
        taps=(chosen,),
    )
