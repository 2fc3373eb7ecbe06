"""A total order of candidates with several objectives, for optimizers that understand nothing but "better".

Pareto rank first; within a rank the larger exclusive hypervolume, so that of equally good candidates the one in the
emptier region wins. This is the selection of MO-CMA-ES.

Reference: Igel, Hansen and Roth 2007, Covariance matrix adaptation for multi-objective optimization,
https://doi.org/10.1162/evco.2007.15.1.1; Voss, Hansen and Igel 2010, Improved step size adaptation for the MO-CMA-ES,
https://doi.org/10.1145/1830483.1830573.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.search.front import contributions, learnt_reference, non_dominated, pareto_ranks
from evomerge.terms import Array


def total_order(fitness: Array, archive: Array, reference: Sequence[float] = ()) -> npt.NDArray[np.int64]:
    """Places of candidates, 0 = best; equal candidates share one.

    Args:
        fitness: ``(C, M)`` of the candidates, maximised and finite.
        archive: ``(A, M)`` of others they compete with, A may be 0.
        reference: ``(M,)`` of the hypervolume, empty = learnt from all rows.

    Returns:
        ``(C,)``.
    """
    count = len(fitness)
    rows = np.vstack([fitness, archive]) if len(archive) else np.asarray(fitness, dtype=np.float64)
    corner = reference if len(reference) else learnt_reference(rows).tolist()
    ranks = pareto_ranks(rows)
    volumes = np.zeros(len(rows), dtype=np.float64)
    for rank in np.unique(ranks[:count]):
        members = ranks == rank
        volumes[members] = contributions(rows[members], corner)
    keys = [(int(ranks[row]), -float(volumes[row])) for row in range(count)]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.array([places[key] for key in keys], dtype=np.int64)


def best_spread(fitness: Array, capacity: int, reference: Sequence[float] = ()) -> Array:
    """The non-dominated rows, each once; where they are too many, those with the largest exclusive hypervolume.

    Args:
        fitness: ``(C, M)``, maximised.
        capacity: most rows to keep.
        reference: ``(M,)`` of the hypervolume, empty = learnt from the rows.

    Returns:
        ``(at most capacity, M)`` in the given order.
    """
    kept = fitness[non_dominated(fitness)]
    if len(kept) <= capacity:
        return kept
    corner = reference if len(reference) else learnt_reference(kept).tolist()
    order = np.argsort(-contributions(kept, corner), kind="stable")
    found: Array = kept[np.sort(order[:capacity])]
    return found
