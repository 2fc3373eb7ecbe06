"""The knee of a front: where giving up a little of one objective no longer gains much of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.search.front import non_dominated
from evomerge.terms import Array

_FLAT = 1e-9  # distances are shares of the front's range; less than this is none


def knee(fitness: npt.ArrayLike) -> int | None:
    """The point of a front that is farthest from the hyperplane through its extreme points.

    Each objective is scaled to the front's range, 0 worst and 1 best; objectives in which all points are equal are left
    out. An extreme point is the best one in an objective, of equal ones the one that is better in the others. There is
    no knee where the extreme points span no hyperplane that leans to all objectives (possible from three objectives
    on), and where no point lies beyond it (a straight or hollow front, or one of two points); then the point nearest to
    the ideal ``(1, 1, ...)`` is taken.

    Args:
        fitness: ``(C, M)``, maximised; dominated rows and rows that are not finite are never the knee.

    Returns:
        The row; of equally good ones the first. None where there is none.

    Reference: Das 1999, On characterizing the "knee" of the Pareto curve based on normal-boundary intersection,
    https://doi.org/10.1007/BF01195985.
    """
    rows = np.asarray(fitness, dtype=np.float64)
    members = np.flatnonzero(non_dominated(rows)) if rows.size else np.zeros(0, dtype=np.int64)
    if not len(members):
        return None
    front = rows[members]
    low, high = front.min(axis=0), front.max(axis=0)
    varied = high > low
    if not varied.any():
        return int(members[0])
    scaled = (front[:, varied] - low[varied]) / (high - low)[varied]
    distances = _heights(scaled)
    if distances is None or distances.max() <= _FLAT:
        distances = -np.sqrt(((1.0 - scaled) ** 2).sum(axis=1))
    return int(members[np.flatnonzero(distances >= distances.max() - _FLAT)[0]])


def _heights(scaled: Array) -> Array | None:
    """How far each point lies beyond the plane, towards the ideal; None where there is no such plane."""
    num_objectives = scaled.shape[1]
    best = [int(np.lexsort((-scaled.sum(axis=1), -scaled[:, m]))[0]) for m in range(num_objectives)]
    extremes = scaled[best]
    if len(set(best)) < num_objectives or abs(np.linalg.det(extremes)) <= _FLAT:
        return None
    normal = np.linalg.solve(extremes, np.ones(num_objectives))  # of the plane {x : normal . x = 1}
    if np.any(normal <= _FLAT):
        return None
    found: Array = (scaled @ normal - 1.0) / np.linalg.norm(normal)
    return found
