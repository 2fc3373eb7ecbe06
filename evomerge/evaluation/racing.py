"""Racing: whether a candidate is clearly behind after some of its documents. Plain functions on numbers.

Candidate and reference are compared document by document, on the same documents. A fitness is the mean over all
documents of the run, and those not scored yet will only be scored once each: what is left to chance shrinks to nothing
towards the last document, and the betting rule makes use of it.

Two rules and a race against nobody:

- ``betting``: an anytime-valid test. A gambler who bets that the candidate is behind, on documents drawn without
  replacement, gets rich with probability at most ``level`` if it is not, however often one looks. Values must lie in
  [0, 1]. Several bets, each a fixed fraction of what is safe, share the money.
- ``wilcoxon``: the signed rank test after each rung. It is a test of symmetry for one look; with several looks and
  lopsided differences its errors are larger than its level says.
- ``halving``: successive halving; the scores so far against thresholds that were fixed when the candidate was asked.

Shapes: n documents scored so far of N, M objectives, D documents of one objective.

References: Waudby-Smith and Ramdas 2023, Estimating means of bounded random variables by betting,
https://arxiv.org/abs/2010.09686 (section 5 for drawing without replacement, appendix B for several bets);
Wilcoxon 1945, https://doi.org/10.2307/3001968; Birattari et al. 2002, A racing algorithm for configuring
metaheuristics; Li et al. 2020, A system for massively parallel hyperparameter tuning, https://arxiv.org/abs/1810.05934.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.evaluation.rungs import ObjectiveRungs, RungLayout
from evomerge.terms import Array

Rule = Literal["betting", "wilcoxon", "halving"]

FRACTIONS = np.arange(1, 12) / 12  # of the largest safe bet
_BISECTIONS = 16


@dataclass(frozen=True)
class Reference:
    """A candidate that was scored on all search documents.

    Attributes:
        candidate: its id.
        columns: for each objective its values ``(D,)`` in scoring order, natural direction; ``(1,)``, the objective's
            own value, where the objective is scored whole.
    """

    candidate: int
    columns: tuple[Array, ...]


@dataclass(frozen=True)
class Race:
    """What one candidate has to keep up with; travels with its job.

    Attributes:
        references: it is stopped when it is clearly behind one of them.
        shares: ``(M,)`` factor of each natural score in what the optimizer compares.
        many: whether the optimizer sees all objectives: then behind means behind in every one of them; otherwise the
            sum over the objectives counts.
        rule: see the module docstring.
        level: probability of stopping a candidate that is not behind.
        min_documents: fewest documents that decide anything.
        thresholds: of ``halving``, what the sum has to reach after each rung; None = nothing.
        audit: score to the end although it is stopped, so that the decision can be checked.
    """

    references: tuple[Reference, ...]
    shares: tuple[float, ...]
    many: bool = False
    rule: Rule = "betting"
    level: float = 0.05
    min_documents: int = 16
    thresholds: tuple[float | None, ...] = ()
    audit: bool = False


@dataclass(frozen=True)
class Verdict:
    """A candidate is behind.

    Attributes:
        against: whom.
        difference: of the scores so far.
        upper: upper confidence bound of the difference on all documents.
    """

    against: int
    difference: float
    upper: float


def running_score(objective: ObjectiveRungs | None, column: Array, rung: int) -> float:
    """An objective's value over the documents scored after a rung.

    Args:
        objective: None where it is scored whole.
        column: ``(D,)`` values, or ``(1,)`` where it is scored whole.
        rung: the last one scored.
    """
    if objective is None:
        return float(column[0])
    positions = objective.until(rung)
    sums = np.bincount(objective.strata[positions], column[positions])
    counts = np.bincount(objective.strata[positions])
    shares = np.bincount(objective.strata, objective.weights)
    return float(shares @ (sums / counts))


def verdict(race: Race, layout: RungLayout, columns: Sequence[Array], rung: int) -> Verdict | None:
    """Whether a candidate is clearly behind after a rung.

    Args:
        race: what it has to keep up with.
        layout: the run's rungs.
        columns: for each objective its values so far, ``(D,)`` with NaN where nothing is scored yet, or ``(1,)``.
        rung: the last one scored.

    Returns:
        Whom it is behind; None when it keeps up, or when nothing can be said: too few documents, or values that are
        missing or, for the betting rule, outside [0, 1].
    """
    if layout.documents[rung] - layout.whole_documents < race.min_documents:
        return None
    if race.rule == "halving":
        return _below_threshold(race, layout, columns, rung)
    level = race.level / max(1, len(race.references))
    groups = [(m,) for m in range(len(columns))] if race.many else [tuple(m for m, s in enumerate(race.shares) if s)]
    for reference in race.references:
        found = [_behind(_paired(race, layout, columns, reference, rung, group), race.rule, level) for group in groups]
        behind = [one for one in found if one is not None]
        # Equal in everything is not behind.
        if len(behind) == len(found) and any(upper < 0 or difference < 0 for difference, upper in behind):
            difference, upper = max(behind, key=lambda one: one[1])
            return Verdict(reference.candidate, difference, upper)
    return None


@dataclass(frozen=True)
class _Paired:
    """Differences on the documents so far, scaled so that their mean is the difference of the scores so far.

    ``fixed`` is the part of the difference that is known exactly, ``bound`` the largest size a difference can have
    where values lie in [0, 1], ``is_bounded`` whether they do.
    """

    differences: Array
    num_documents: int
    fixed: float
    bound: float
    is_bounded: bool


def _paired(
    race: Race, layout: RungLayout, columns: Sequence[Array], reference: Reference, rung: int, group: tuple[int, ...]
) -> _Paired:
    """The comparison with one reference in the sum over a group of objectives."""
    fixed, bounded, total = 0.0, True, 0
    pairs = np.concatenate(layout.order[: rung + 1])
    differences, factors = np.zeros(len(pairs)), np.zeros(len(pairs))
    chosen = np.zeros(len(pairs), dtype=bool)
    for m in group:
        objective, mine, theirs = layout.objectives[m], columns[m], reference.columns[m]
        if objective is None:
            fixed += race.shares[m] * float(mine[0] - theirs[0])
            continue
        total += len(objective.strata)
        here = pairs[:, 0] == m
        chosen |= here
        positions = pairs[here, 1]
        factors[here] = race.shares[m] * objective.balanced(positions)
        differences[here] = mine[positions] - theirs[positions]
        both = np.stack([mine[positions], theirs[positions]])
        bounded &= bool(((both >= 0.0) & (both <= 1.0)).all())
    count = int(chosen.sum())
    scaled = count * factors[chosen]
    bound = float(np.abs(scaled).max()) if count else 0.0
    return _Paired(scaled * differences[chosen], total, fixed, bound, bounded)


def _behind(paired: _Paired, rule: Rule, level: float) -> tuple[float, float] | None:
    """Difference so far and its upper bound where the candidate is behind, or certainly not ahead; else None."""
    values, fixed = paired.differences, paired.fixed
    if not len(values):
        return (fixed, fixed) if fixed <= 0 else None
    if not np.isfinite(values).all():
        return None
    difference = float(values.mean()) + fixed
    if rule == "betting":
        if not paired.is_bounded or difference >= 0:
            return None
        if log_capital(values / paired.bound, paired.num_documents, -fixed / paired.bound) < math.log(1.0 / level):
            return None
        return difference, paired.bound * upper_bound(values / paired.bound, paired.num_documents, level) + fixed
    if difference >= 0 or wilcoxon_p(values + fixed) >= level:
        return None
    return difference, difference + normal_margin(values, paired.num_documents, level)


def log_capital(values: Array, num_documents: int, mean: float) -> float:
    """Logarithm of what a gambler has made of 1 who bets that the mean over all documents is below ``mean``.

    If it is not, the expected capital never exceeds 1, so it exceeds 1/a with probability at most a at any time
    (Ville's inequality).

    Args:
        values: ``(n,)`` in [-1, 1], in the order they were drawn.
        num_documents: N.
        mean: the hypothesis.
    """
    count = len(values)
    past = np.concatenate([[0.0], np.cumsum(values)])
    left = num_documents - np.arange(count + 1)
    # What the mean of those not drawn yet would have to be (arXiv 2010.09686, section 5).
    expected = (num_documents * mean - past)[: count if count == num_documents else count + 1]
    expected = expected / left[: len(expected)]
    if (expected > 1.0 + 1e-12).any() or (count == num_documents and past[-1] < num_documents * mean - 1e-9):
        return math.inf
    now = np.minimum(expected[:count], 1.0 - 1e-9)
    gains = (now - values) / (1.0 - now)  # of the largest safe bet; never below -1
    capital = np.log1p(FRACTIONS[:, None] * gains).sum(axis=1)
    return float(np.logaddexp.reduce(capital) - math.log(len(FRACTIONS)))


def upper_bound(values: Array, num_documents: int, level: float) -> float:
    """Upper confidence bound of the mean over all documents; holds at all times together with probability 1 - level.

    Args:
        values: ``(n,)`` in [-1, 1], in the order they were drawn, without replacement.
        num_documents: N.
        level: probability of being wrong.
    """
    count, total = len(values), float(values.sum())
    low, high = (total - (num_documents - count)) / num_documents, (total + (num_documents - count)) / num_documents
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if log_capital(values, num_documents, middle) >= math.log(1.0 / level):
            high = middle
        else:
            low = middle
    return high


def wilcoxon_p(differences: Array) -> float:
    """One-sided p-value of the signed rank test that differences lie below zero; ties are split, Pratt apart.

    Args:
        differences: ``(n,)``.
    """
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon

    result = wilcoxon(differences, zero_method="zsplit", alternative="less", method="asymptotic")
    return float(result.pvalue)


def normal_margin(differences: Array, num_documents: int, level: float) -> float:
    """Half the width of a one-sided normal interval of the mean over all documents; 0 once all are there."""
    from statistics import NormalDist

    count = len(differences)
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    return NormalDist().inv_cdf(1.0 - level) * spread * math.sqrt((1.0 - count / num_documents) / count)


def _below_threshold(race: Race, layout: RungLayout, columns: Sequence[Array], rung: int) -> Verdict | None:
    threshold = race.thresholds[rung] if rung < len(race.thresholds) else None
    value = running_sum(race.shares, layout, columns, rung)
    if threshold is None or not math.isfinite(value) or value >= threshold or not race.references:
        return None
    difference = value - running_sum(race.shares, layout, race.references[0].columns, rung)
    return Verdict(race.references[0].candidate, difference, difference)


def running_sum(shares: Sequence[float], layout: RungLayout, columns: Sequence[Array], rung: int) -> float:
    """What the optimizer compares, over the documents scored after a rung."""
    parts = zip(shares, layout.objectives, columns, strict=True)
    return math.fsum(share * running_score(objective, column, rung) for share, objective, column in parts if share)
