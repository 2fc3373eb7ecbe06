"""Whether estimated scores still agree with full evaluations, and how many documents to score next if not.

A search that scores candidates on some documents evaluates some of them on all, and asks `find_drift`. Those candidates
must be chosen before their estimates are known (every tenth, say). The best by estimate are no fair sample: theirs are
too high on average, of any estimator (the winner's curse), and would look like drift.

Shapes: N candidates with both an estimate and a full score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, kendalltau
from scipy.stats import t as student

from evomerge.evaluation.score_estimates import Estimates
from evomerge.terms import Array

LEVEL = 0.01
GROWTH = 2.0
_MIN_CANDIDATES = 3


@dataclass(frozen=True)
class Drift:
    """How estimates and full scores differ.

    Attributes:
        num_candidates: N.
        bias: mean of estimate minus full score.
        error: root mean square of it.
        kendall: rank correlation tau-b of estimates and full scores; NaN below 3 candidates or where all are equal.
        is_biased: the mean differs from zero, by more than the tolerance.
        is_overconfident: the errors are larger than the standard errors say, and than the tolerance.
    """

    num_candidates: int
    bias: float
    error: float
    kendall: float
    is_biased: bool
    is_overconfident: bool

    @property
    def is_drifting(self) -> bool:
        """Whether the subset should become wider, or the documents be fitted anew."""
        return self.is_biased or self.is_overconfident


def find_drift(estimates: Estimates, full: Array, tolerance: float = 0.02, level: float = LEVEL) -> Drift:
    """Test the errors of estimates: their mean by Student's t, their size by chi-square against the standard errors.

    Each test has half the level. The level is that of one call: a guard that asks after each of m further evaluations
    raises a false alarm with up to m times that probability, so it is small by default. An error within the tolerance
    never counts, however sure it is.

    Args:
        estimates: of N candidates.
        full: ``(N,)`` their scores on all documents.
        tolerance: errors that do not matter, in units of the score.
        level: probability of a false alarm, in (0, 1).

    Returns:
        With fewer than 3 candidates nothing is ever called a drift.

    Raises:
        ValueError: the shapes, the level or the tolerance.
    """
    full = np.asarray(full, dtype=np.float64)
    if full.ndim != 1 or full.shape != estimates.values.shape or full.shape != estimates.standard_errors.shape:
        raise ValueError(f"{len(estimates.values)} estimates and full scores of shape {full.shape} do not match")
    if not 0.0 < level < 1.0 or not tolerance >= 0.0:
        raise ValueError(f"level must be in (0, 1) and tolerance at least 0, got {level} and {tolerance}")
    if not np.all(np.isfinite(full)):
        raise ValueError("full scores must be finite; leave failed candidates out")
    errors = estimates.values - full
    count = len(errors)
    if count == 0:
        return Drift(0, 0.0, 0.0, math.nan, is_biased=False, is_overconfident=False)
    bias, size = float(errors.mean()), float(np.sqrt(np.mean(errors**2)))
    if count < _MIN_CANDIDATES:
        return Drift(count, bias, size, math.nan, is_biased=False, is_overconfident=False)
    return Drift(
        count,
        bias,
        size,
        float(kendalltau(estimates.values, full).statistic),
        abs(bias) > tolerance and _mean_differs(errors, level / 2.0),
        size > tolerance and _too_large(errors, estimates.standard_errors, level / 2.0),
    )


def next_count(count: int, num_documents: int, drift: Drift, growth: float = GROWTH) -> int:
    """Documents to score from now on: as before, or ``growth`` times as many while estimates drift, at most all.

    Raises:
        ValueError: ``count`` is not in 1..``num_documents``, or ``growth`` does not exceed 1.
    """
    if not 1 <= count <= num_documents or not growth > 1.0:
        raise ValueError(f"need 1 <= count <= documents and growth > 1, got {count}, {num_documents}, {growth}")
    return min(num_documents, max(count + 1, math.ceil(count * growth))) if drift.is_drifting else count


def _mean_differs(errors: Array, level: float) -> bool:
    spread = float(errors.std(ddof=1))
    if spread == 0.0:
        return bool(errors[0] != 0.0)
    statistic = abs(float(errors.mean())) / (spread / math.sqrt(len(errors)))
    return bool(2.0 * student.sf(statistic, df=len(errors) - 1) < level)


def _too_large(errors: Array, standard_errors: Array, level: float) -> bool:
    is_certain = standard_errors <= 0.0
    if np.any(np.abs(errors[is_certain]) > 1e-9):
        return True
    ratios = errors[~is_certain] / standard_errors[~is_certain]
    return len(ratios) > 0 and bool(chi2.sf(float(ratios @ ratios), df=len(ratios)) < level)
