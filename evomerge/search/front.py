"""Fronts and hypervolume of maximised fitness, on moocore.

Rows that are not finite (failures) are taken out before anything is computed: the library would keep an infinite row as
non-dominated and count a NaN row's volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import moocore
import numpy as np
import numpy.typing as npt

from evomerge.terms import Array


def non_dominated(fitness: npt.ArrayLike, duplicates: Literal["first", "all"] = "first") -> npt.NDArray[np.bool_]:
    """Which rows no other row dominates.

    Args:
        fitness: ``(C, M)``, maximised; rows with NaN or infinities never count.
        duplicates: of equal non-dominated rows keep the ``first`` or ``all``.

    Returns:
        ``(C,)``.
    """
    rows, finite = _finite_rows(fitness)
    chosen = np.zeros(len(rows), dtype=bool)
    if finite.any():
        chosen[finite] = moocore.is_nondominated(rows[finite], maximise=True, keep_weakly=duplicates == "all")
    return chosen


def feasible_front(fitness: npt.ArrayLike, violations: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """The front under constraints: non-dominated among those that keep all of them, each value once.

    Where no candidate keeps them, the front of all candidates, none of which is feasible.

    Args:
        fitness: ``(C, M)``, maximised.
        violations: ``(C,)``, zero where all constraints are kept.

    Returns:
        ``(C,)``.
    """
    rows = np.array(fitness, dtype=np.float64)
    kept = np.asarray(violations, dtype=np.float64) == 0.0
    if kept.any():
        rows[~kept] = np.nan
    return non_dominated(rows)


def pareto_ranks(fitness: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Front each row belongs to: 0 = non-dominated, 1 = non-dominated without front 0, ...

    Equal rows share a rank. Rows that are not finite share one rank behind all others.

    Args:
        fitness: ``(C, M)``, maximised.

    Returns:
        ``(C,)``.
    """
    rows, finite = _finite_rows(fitness)
    ranks = np.zeros(len(rows), dtype=np.int64)
    if finite.any():
        ranks[finite] = moocore.pareto_rank(rows[finite], maximise=True)
        ranks[~finite] = ranks[finite].max() + 1
    return ranks


def crowding_distances(fitness: npt.ArrayLike) -> Array:
    """How far the neighbours of each row of one front are, summed over objectives, each scaled by its range.

    The best and the worst row in any objective are infinitely far. Of equal rows only the first one counts, the others
    have distance 0, so that a front keeps distinct points before it keeps copies. With one objective all rows of a
    front are equal, and have distance 0.

    Args:
        fitness: ``(C, M)``, finite, maximised; no row dominates another.

    Returns:
        ``(C,)``.

    Reference: Deb et al. 2002, section III-B, https://doi.org/10.1109/4235.996017.
    """
    rows = np.asarray(fitness, dtype=np.float64)
    distances = np.zeros(len(rows))
    if rows.ndim != 2 or rows.shape[1] < 2:
        return distances
    points, first = np.unique(rows, axis=0, return_index=True)
    crowding = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        crowding[order[[0, -1]]] = np.inf
        if span > 0:
            crowding[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    distances[first] = crowding
    return distances


def hypervolume(fitness: npt.ArrayLike, reference: Sequence[float]) -> float:
    """Volume dominated by the rows and dominating the reference point.

    Args:
        fitness: ``(C, M)``, maximised; rows that do not exceed the reference everywhere add nothing.
        reference: ``(M,)``; volumes compare only under the same reference, so a run records it.

    Raises:
        ValueError: the reference has another length than the rows, or is not finite.
    """
    rows, finite = _finite_rows(fitness)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != rows.shape[1:] or not np.all(np.isfinite(corner)):
        raise ValueError(f"reference must be {rows.shape[1]} finite numbers, got {reference}")
    useful = rows[finite & np.all(rows > corner, axis=1)]
    return float(moocore.hypervolume(useful, ref=corner, maximise=True)) if len(useful) else 0.0


def contributions(fitness: npt.ArrayLike, reference: Sequence[float]) -> Array:
    """Volume that only this row dominates, for each row: what the hypervolume loses without it.

    Dominated rows, copies of another row, rows that do not exceed the reference everywhere and rows that are not
    finite contribute nothing; dominated rows take nothing from others either.

    Args:
        fitness: ``(C, M)``, maximised.
        reference: ``(M,)``.

    Returns:
        ``(C,)``.
    """
    rows, finite = _finite_rows(fitness)
    corner = np.asarray(reference, dtype=np.float64)
    found = np.zeros(len(rows), dtype=np.float64)
    useful = finite & np.all(rows > corner, axis=1)
    if rows.shape[1] == 1 and useful.any():  # the library wants two objectives
        volumes = np.sort(np.append(rows[useful], corner))[::-1]
        found[useful] = np.where(rows[useful, 0] == volumes[0], volumes[0] - volumes[1], 0.0)
    elif useful.any():
        found[useful] = moocore.hv_contributions(rows[useful], ref=corner, maximise=True)
    return found


def learnt_reference(fitness: npt.ArrayLike) -> Array:
    """A corner for hypervolume where none is given: the worst finite value seen, less a tenth of the range.

    Args:
        fitness: ``(C, M)``, maximised.

    Returns:
        ``(M,)``.

    Reference: Ishibuchi et al. 2018, How to specify a reference point in hypervolume calculation for fair performance
    comparison, https://doi.org/10.1162/evco_a_00226.
    """
    rows, finite = _finite_rows(fitness)
    if not finite.any():
        return np.zeros(rows.shape[1], dtype=np.float64)
    worst, best = rows[finite].min(axis=0), rows[finite].max(axis=0)
    found: Array = worst - 0.1 * np.maximum(best - worst, 1e-7)
    return found


def largest_subset(fitness: npt.ArrayLike, count: int, always: Sequence[int] = ()) -> list[int]:
    """Rows that together dominate as much as a greedy choice finds: at each step the row that adds most is taken.

    Volume is measured from `learnt_reference` with every objective scaled to the rows' range, so that extreme rows
    count and units do not. It is at least 1 - 1/e of what the best choice dominates.

    Args:
        fitness: ``(C, M)``, finite, maximised.
        count: how many rows to choose.
        always: rows that are chosen before any other.

    Returns:
        The chosen rows, ascending; all of them where there are no more than ``count``.

    Reference: Guerreiro et al. 2016, Greedy hypervolume subset selection in low dimensions,
    https://doi.org/10.1162/EVCO_a_00188.
    """
    rows = np.asarray(fitness, dtype=np.float64)
    if len(rows) <= count:
        return list(range(len(rows)))
    low, high = rows.min(axis=0), rows.max(axis=0)
    scaled = (rows - low) / np.where(high > low, high - low, 1.0)
    corner = learnt_reference(scaled)
    chosen = list(dict.fromkeys(always))[:count]
    while len(chosen) < count:
        left = [row for row in range(len(rows)) if row not in chosen]
        volumes = [moocore.hypervolume(scaled[[*chosen, row]], ref=corner, maximise=True) for row in left]
        chosen.append(left[int(np.argmax(volumes))])
    return sorted(chosen)


def _finite_rows(fitness: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
    rows = np.asarray(fitness, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"fitness must have shape (candidates, objectives), got {rows.shape}")
    finite: npt.NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
    return rows, finite
