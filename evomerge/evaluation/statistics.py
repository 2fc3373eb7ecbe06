"""Intervals over documents: how much a score would move with other documents of the same kind.

Shapes: R resamples, D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.terms import Array, DocumentScores, derive_seed

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A value and the interval that holds it with the given probability."""

    value: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0.0 or self.high < 0.0


def score_interval(
    tables: Sequence[DocumentScores],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> Interval | None:
    """Bootstrap percentile interval of the weighted mean of the objectives' scores.

    Documents are drawn anew within each task (for a group, within each member).

    Args:
        tables: one table for each objective, natural direction.
        weights: of the objectives, negative where lower is better; default: their plain mean.
        seed: of the resampling.
        num_resamples: draws.
        level: probability the interval covers.

    Returns:
        None when a score is no mean over documents (``corpus_metric`` tables), or there is no table.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if not tables or any("corpus_metric" in table.extra for table in tables):
        return None
    return _interval([table.values for table in tables], tables, weights, seed, num_resamples, level)


def paired_difference(
    tables: Sequence[DocumentScores],
    others: Sequence[DocumentScores],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> Interval | None:
    """Bootstrap interval of the difference of two models' scores on the same documents, resampled in pairs.

    Args:
        tables: of the first model.
        others: of the second model, same objectives and documents.
        weights: see `score_interval`.
        seed: of the resampling.
        num_resamples: draws.
        level: probability the interval covers.

    Returns:
        First minus second; None where `score_interval` gives None.

    Raises:
        ValueError: the tables are not about the same documents.
    """
    for left, right in zip(tables, others, strict=True):
        if left.objective != right.objective or left.document_ids != right.document_ids:
            raise ValueError(f"{left.objective} and {right.objective} were not scored on the same documents")
    if not tables or any("corpus_metric" in table.extra for table in [*tables, *others]):
        return None
    differences = [left.values - right.values for left, right in zip(tables, others, strict=True)]
    return _interval(differences, tables, weights, seed, num_resamples, level)


def combined_interval(
    tables: Sequence[DocumentScores],
    combine: Callable[[Array], Array],
    others: Sequence[DocumentScores] = (),
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> Interval | None:
    """Bootstrap interval of any function of the objectives' scores, for example of their harmonic mean.

    Args:
        tables: one table for each objective, natural direction.
        combine: scores ``(R, M)`` in natural direction to values ``(R,)``.
        others: of a second model on the same documents; then the interval of first minus second, resampled in pairs.
        seed: of the resampling.
        num_resamples: draws.
        level: probability the interval covers.

    Returns:
        None where `score_interval` gives None.
    """
    if not tables or any("corpus_metric" in table.extra for table in [*tables, *others]):
        return None

    def drawn(side: Sequence[DocumentScores]) -> Array:
        columns = []
        for table in side:
            mean, means_R = _resample(table.values, table, seed, num_resamples)
            columns.append(np.append(means_R, mean))  # the plain value last
        return combine(np.stack(columns, axis=1))

    values = drawn(tables) - drawn(others) if others else drawn(tables)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values[:-1], [tail, 1.0 - tail])
    return Interval(float(values[-1]), float(low), float(high), level)


def _interval(
    columns: Sequence[Array],
    tables: Sequence[DocumentScores],
    weights: Sequence[float] | None,
    seed: int,
    num_resamples: int,
    level: float,
) -> Interval:
    shares = np.full(len(columns), 1.0 / len(columns)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = np.zeros(num_resamples)
    value = 0.0
    for share, column, table in zip(shares, columns, tables, strict=True):
        mean, means_R = _resample(column, table, seed, num_resamples)
        value += float(share) * mean
        total += share * means_R
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(total, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high), level)


def _resample(column: Array, table: DocumentScores, seed: int, num_resamples: int) -> tuple[float, Array]:
    """The objective's value, and its value on each resample ``(R,)``."""
    member = table.extra.get("member", np.zeros(len(column)))
    weight = table.extra.get("weight", np.full(len(column), 1.0 / len(column)))
    tasks = [member == index for index in np.unique(member)]
    sizes = tuple(int(chosen.sum()) for chosen in tasks)
    total = np.zeros(num_resamples)
    for chosen, counts_RD in zip(tasks, _counts(table.objective, seed, sizes, num_resamples), strict=True):
        total += counts_RD.astype(np.float64) @ (column[chosen] * weight[chosen])
    return float(column @ weight), total


@lru_cache(maxsize=12)
def _counts(objective: str, seed: int, sizes: tuple[int, ...], num_resamples: int) -> tuple[npt.NDArray[Any], ...]:
    """How often each document of each task is drawn, ``(R, D)``; kept small, as many models share them."""
    rng = np.random.default_rng(derive_seed("bootstrap", seed, objective))
    found = []
    for size in sizes:
        counts_RD = rng.multinomial(size, np.full(size, 1.0 / size), size=num_resamples)
        found.append(counts_RD.astype(np.min_scalar_type(int(counts_RD.max(initial=0)))))
    return tuple(found)


def forget_draws() -> None:
    """Free the draws that intervals of the same documents share."""
    _counts.cache_clear()
