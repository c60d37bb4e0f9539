"""Evidence that may be looked at after every trial."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

from earmark.stats.binomial import log2_binomial_tail
from earmark.stats.exact import DECIMALS, LN2, binomial, decimal, log_term


class BettingEValue:
    """Evidence gathered in steps that may be looked at, and stopped, at any time.

    The e-value after ``trials`` trials is the likelihood ratio of a rate drawn uniformly above
    ``chance`` against ``chance`` itself. Under the null it is a martingale that starts at 1, so by
    Ville's inequality the probability that it *ever* reaches 2^b is at most 2^-b: stop when you
    like, and go on afterwards if you like. Against a mark of rate r it grows by the relative
    entropy of r to ``chance`` per trial, less about log2(trials) bits in all.

    Args:
        chance: Probability of one hit under the null, strictly between 0 and 1.

    Raises:
        UsageError: The chance is out of range.

    Source:
        Ville 1939; the mixture in the manner of Robbins 1970. Changed: the prior is uniform above
        the chance, which turns the mixture into a binomial tail, so that it is computed exactly.

    Example:
        >>> evidence = BettingEValue(Fraction(1, 2))
        >>> for _ in range(30):
        ...     evidence.update(True)
        >>> evidence
        BettingEValue(chance=1/2, hits=30, trials=30, bits=26.05)
    """

    __slots__ = ("_best", "chance", "hits", "log2_e", "trials")

    def __init__(self, chance: Fraction) -> None:
        self.chance = binomial(0, 0, chance)[2]
        self.hits = 0
        self.trials = 0
        self.log2_e = 0.0
        self._best = 0.0

    @classmethod
    def from_counts(cls, hits: int, trials: int, chance: Fraction) -> BettingEValue:
        """Return the state after one batch of counts, looked at once, at its end.

        Args:
            hits: Successes seen.
            trials: Trials made.
            chance: Probability of one hit under the null.

        Raises:
            UsageError: An argument is out of range.

        Example:
            >>> round(BettingEValue.from_counts(700, 1000, Fraction(1, 2)).bits(), 2)
            114.93
        """
        evidence = cls(chance)
        evidence.add(hits, trials)
        return evidence

    def update(self, hit: bool) -> None:  # noqa: FBT001  one argument, and it is the observation
        """Take in one trial.

        Args:
            hit: Whether it hit.

        Example:
            >>> evidence = BettingEValue(Fraction(1, 2))
            >>> evidence.update(True)
            >>> round(2**evidence.log2_e, 9)
            1.5
        """
        self.add(int(hit), 1)

    def add(self, hits: int, trials: int) -> None:
        """Take in a batch of trials, looked at only at its end.

        Args:
            hits: Successes in the batch.
            trials: Trials in the batch.

        Raises:
            UsageError: A count is out of range.

        Example:
            >>> evidence = BettingEValue(Fraction(1, 10))
            >>> evidence.add(6, 12)
            >>> round(evidence.log2_e, 2)
            7.44
        """
        hits, trials, _ = binomial(hits, trials, self.chance)
        self.hits, self.trials, _ = binomial(self.hits + hits, self.trials + trials, self.chance)
        misses, after = self.trials - self.hits, self.trials + 1
        above = log2_binomial_tail(misses + 1, after, 1 - self.chance)
        with localcontext(DECIMALS):
            term = log_term(self.hits, self.trials, self.chance)
            base = (term + (after * (1 - decimal(self.chance))).ln()) / LN2
            self.log2_e = float(Decimal(above) - base) + 0.0
        self._best = max(self._best, self.log2_e)

    def bits(self) -> float:
        """Return the most evidence there has been at any look: max(0, log2 of the largest e-value).

        Example:
            >>> BettingEValue.from_counts(3, 10, Fraction(1, 2)).bits()
            0.0
        """
        return self._best

    def __repr__(self) -> str:
        counts = f"hits={self.hits}, trials={self.trials}"
        return f"BettingEValue(chance={self.chance}, {counts}, bits={self._best:.2f})"
