"""How sure a front is: intervals of its points, and how often each stays non-dominated with other documents.

All points are scored on the same documents, so one draw of documents serves them all: what makes a document hard moves
every point alike and leaves their order alone. Documents are drawn anew within each task (for a group, within each
member).

Shapes: R resamples, D documents, P points, K rivals, M objectives.

Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 8.3 (paired samples) and 13.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evomerge.evaluation.statistics import NUM_RESAMPLES, Interval
from evomerge.terms import Array, DocumentScores, Objective, derive_seed

# Means that differ by less than this share of the largest are equal: sums in another order round otherwise.
_TIE = 1e-10
_CHUNK = 400_000  # numbers held at once
_MAX_COMPARISONS = 4e8  # of two points in one objective; a front of many hundred points gets fewer resamples
_MIN_RESAMPLES = 200


@dataclass(frozen=True)
class MeasuredPoint:
    """One model's scores.

    Attributes:
        values: ``(M,)`` natural direction.
        tables: M, None where an objective has no documents (a cost): its value is taken as known.
    """

    values: tuple[float, ...]
    tables: tuple[DocumentScores | None, ...]

    @property
    def is_finite(self) -> bool:
        """Whether every number of it is one."""
        found = [np.asarray(self.values), *(table.values for table in self.tables if table is not None)]
        return all(bool(np.all(np.isfinite(numbers))) for numbers in found)


@dataclass(frozen=True)
class Resampling:
    """How documents are drawn: seed, number of draws, and the probability an interval covers."""

    seed: int = 0
    num_resamples: int = NUM_RESAMPLES
    level: float = 0.95


@dataclass(frozen=True)
class PointUncertainty:
    """What other documents could say of a point.

    Attributes:
        intervals: M, natural direction; None where the objective has no documents or is no mean over them.
        probability: share of the draws in which no rival dominates it; None where that cannot be said.
    """

    intervals: tuple[Interval | None, ...]
    probability: float | None


def front_uncertainty(
    points: Sequence[MeasuredPoint],
    objectives: Sequence[Objective],
    rivals: Sequence[bool] | None = None,
    resampling: Resampling = Resampling(),
    document_sets: Sequence[str] = (),
) -> tuple[PointUncertainty, ...]:
    """Intervals and probabilities of being non-dominated, from one joint bootstrap over documents.

    A rival dominates a point when it is at least as good everywhere and better somewhere; equal points do not dominate
    each other. Where points were scored on other documents, the probabilities are about those that all of them share.

    Args:
        points: P. One with a number that is not finite gets no interval and no probability and dominates nobody.
        objectives: M.
        rivals: P, which points may dominate others; None = all.
        resampling: how documents are drawn.
        document_sets: M, a name for the documents of each objective; objectives with the same name are drawn together.
            Default: every objective has its own.

    Returns:
        P. No probability where no objective has documents, where one is no mean over documents (``corpus_metric``
        tables), or where the points share none.
    """
    sets = list(document_sets) or [objective.name for objective in objectives]
    finite = [place for place, point in enumerate(points) if point.is_finite]
    columns = [_Column(points, finite, m, sets[m], resampling) for m in range(len(objectives))]
    probabilities: dict[int, float] = {}
    if any(column.has_documents for column in columns) and all(column.is_comparable for column in columns):
        kept = [rivals is None or bool(rivals[place]) for place in finite]
        count = _num_draws(len(finite), sum(kept), len(objectives), resampling.num_resamples)
        signed = [column.draws[:count] * objective.natural(1.0) for column, objective in zip(columns, objectives)]
        probabilities = dict(zip(finite, non_dominated_share(signed, np.array(kept, dtype=bool)).tolist()))
    return tuple(
        PointUncertainty(tuple(column.intervals.get(place) for column in columns), probabilities.get(place))
        for place in range(len(points))
    )


def non_dominated_share(draws: Sequence[Array], rivals: npt.NDArray[np.bool_]) -> Array:
    """In what share of the draws no rival dominates each point.

    Args:
        draws: M arrays ``(R, P)``, maximised; ``(1, P)`` where every draw is the same.
        rivals: ``(P,)``, which points may dominate others.

    Returns:
        ``(P,)``.
    """
    num_points = draws[0].shape[1]
    num_draws = max(len(draw_RP) for draw_RP in draws)
    scores = [np.broadcast_to(_ranks(draw_RP), (num_draws, num_points)) for draw_RP in draws]
    kept = np.zeros(num_points)
    for rows in _chunks(num_draws, num_points * max(1, int(rivals.sum()))):
        first, second = scores[0][rows, :, None], scores[0][rows][:, None, rivals]
        no_worse_RPK, no_better_RPK = second >= first, first >= second
        for score_RP in scores[1:]:
            first, second = score_RP[rows, :, None], score_RP[rows][:, None, rivals]
            no_worse_RPK &= second >= first
            no_better_RPK &= first >= second
        kept += (~np.any(no_worse_RPK & ~no_better_RPK, axis=2)).sum(axis=0)
    return kept / num_draws


class _Column:
    """One objective of all points: what draws of its documents say.

    Attributes:
        intervals: by place of the point.
        draws: ``(R, F)`` means of the F finite points on the documents they share; ``(1, F)`` without documents.
        has_documents: whether any point has some.
        is_comparable: whether ``draws`` can be used.
    """

    def __init__(
        self, points: Sequence[MeasuredPoint], finite: Sequence[int], index: int, name: str, resampling: Resampling
    ) -> None:
        self._seed = derive_seed("front", resampling.seed, name)
        self._num_resamples = resampling.num_resamples
        tables = {place: table for place in finite if (table := points[place].tables[index]) is not None}
        values = np.array([[points[place].values[index] for place in finite]], dtype=np.float64)
        self.has_documents = bool(tables)
        self.is_comparable = not any("corpus_metric" in table.extra for table in tables.values())
        self.intervals: dict[int, Interval] = {}
        self.draws = values
        if not tables:
            return
        means = {place: table for place, table in tables.items() if "corpus_metric" not in table.extra}
        same: dict[tuple[str, ...], list[int]] = {}
        for place, table in means.items():
            same.setdefault(table.document_ids, []).append(place)
        tail = (1.0 - resampling.level) / 2.0
        for places in same.values():
            drawn = self._draw([means[place] for place in places])
            lows, highs = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
            for column, place in enumerate(places):
                value = points[place].values[index]
                self.intervals[place] = Interval(value, float(lows[column]), float(highs[column]), resampling.level)
        if not self.is_comparable:
            return
        if len(same) > 1:
            shared = _on_common_documents(list(means.values()))
            self.is_comparable = bool(shared)
            if not shared:
                return
            places, drawn = list(means), self._draw(shared)
        at = [finite.index(place) for place in places]
        self.draws = np.repeat(values, self._num_resamples, axis=0)
        self.draws[:, at] = drawn

    def _draw(self, tables: Sequence[DocumentScores]) -> Array:
        """Means of the tables, which are about the same documents, on each draw ``(R, P)``."""
        matrix_DP = np.stack([table.values for table in tables], axis=1)
        distinct_DU, inverse = np.unique(matrix_DP, axis=1, return_inverse=True)  # equal tables get equal bits
        member, weight = _layout(tables[0])
        rng = np.random.default_rng(self._seed)
        total = np.zeros((self._num_resamples, distinct_DU.shape[1]))
        for task in np.unique(member):
            chosen = member == task
            values_DU, size = distinct_DU[chosen] * weight[chosen][:, None], int(chosen.sum())
            for rows in _chunks(self._num_resamples, size):
                total[rows] += _draw_counts(rng, rows.stop - rows.start, size) @ values_DU
        return total[:, np.ravel(inverse)]


def _layout(table: DocumentScores) -> tuple[Array, Array]:
    """Task and weight of each document ``(D,)``."""
    count = len(table.values)
    return table.extra.get("member", np.zeros(count)), table.extra.get("weight", np.full(count, 1.0 / count))


def _draw_counts(rng: np.random.Generator, num_rows: int, size: int) -> Array:
    """How often each of ``size`` documents is drawn when ``size`` are, ``(num_rows, size)``."""
    drawn = rng.integers(0, size, size=(num_rows, size))
    drawn += np.arange(num_rows)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=num_rows * size).reshape(num_rows, size).astype(np.float64)


def _on_common_documents(tables: Sequence[DocumentScores]) -> list[DocumentScores]:
    """The tables cut to the documents that all share, every task with the share it had; none where a task loses all."""
    common = set(tables[0].document_ids).intersection(*(table.document_ids for table in tables[1:]))
    order = [document for document in tables[0].document_ids if document in common]
    member, weight = _layout(tables[0])
    at = {document: place for place, document in enumerate(tables[0].document_ids)}
    first = np.array([at[document] for document in order], dtype=np.int64)
    weights = np.zeros(len(order))
    for task in np.unique(member):
        mine = member[first] == task
        if not mine.any():
            return []
        share = float(weight[member == task].sum())
        weights[mine] = share * weight[first][mine] / weight[first][mine].sum()
    found = []
    for table in tables:
        at = {document: place for place, document in enumerate(table.document_ids)}
        values = table.values[[at[document] for document in order]]
        extra = {"member": member[first], "weight": weights}
        found.append(DocumentScores(table.objective, tuple(order), values, extra))
    return found


def _ranks(drawn: Array) -> npt.NDArray[np.uint16]:
    """Place of each point within its draw, from the worst one, equal ones alike: small numbers compare faster."""
    order = np.argsort(drawn, axis=1, kind="stable")
    steps = np.diff(np.take_along_axis(drawn, order, axis=1), axis=1) > _TIE * np.abs(drawn).max(initial=0.0)
    ranks = np.zeros(drawn.shape, dtype=np.uint16)
    np.put_along_axis(ranks[:, :], order[:, 1:], np.cumsum(steps, axis=1, dtype=np.uint16), axis=1)
    return ranks


def _num_draws(num_points: int, num_rivals: int, num_objectives: int, wanted: int) -> int:
    affordable = int(_MAX_COMPARISONS / max(1, num_points * num_rivals * num_objectives * 2))
    return min(wanted, max(_MIN_RESAMPLES, affordable))


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Ranges of rows of ``width`` numbers that fit in memory together."""
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))
