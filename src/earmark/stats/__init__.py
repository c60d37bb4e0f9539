"""Count evidence exactly: tails, intervals, multiplicity and e-values.

Every probability here is a base-2 logarithm, because the interesting ones are far below what a
float can hold: ``-log2(p)`` is the evidence in bits. Tails are summed in integers and 60-digit
decimals and rounded once, at the end, so that a p-value is right to 1e-12 at 2^-1000 as well as at
1/2, and is never zero. Where only a bound can be had cheaply, the function says so and the bound is
never below the truth.

This module needs the standard library alone: whoever receives a dossier recomputes its p-values
with it. It decides nothing; ``earmark.policy`` does.
"""

from __future__ import annotations

from earmark.stats.betting import BettingEValue
from earmark.stats.binomial import (
    clopper_pearson,
    least_hits,
    log2_binomial_tail,
    log2_sum_tail,
    power,
)
from earmark.stats.multiplicity import bonferroni, holm, log2_combine, log10_p, one_in
from earmark.stats.signs import TwoValuedSum, log2_rademacher_tail

__all__ = [
    "BettingEValue",
    "TwoValuedSum",
    "bonferroni",
    "clopper_pearson",
    "holm",
    "least_hits",
    "log2_binomial_tail",
    "log2_combine",
    "log2_rademacher_tail",
    "log2_sum_tail",
    "log10_p",
    "one_in",
    "power",
]
