"""The front of a function that costs nothing: NSGA-III on vectorised predictions, and an archive of all it met.

Reference: Deb and Jain 2014, https://doi.org/10.1109/TEVC.2013.2281535, with the span of the current front in place of
the hyperplane's intercepts; published use on surrogates: MAP, arXiv 2406.07529 (25 generations of 100 there).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from evomerge.search.front import non_dominated, pareto_ranks
from evomerge.search.population import num_divisions
from evomerge.terms import Array

Indices = npt.NDArray[np.int64]

ETA = 20.0  # distribution index of crossover and mutation, as published


def surrogate_front(
    predict: Callable[[Array], Array],
    low: Array,
    high: Array,
    rng: np.random.Generator,
    *,
    start: Array,
    population_size: int = 100,
    generations: int = 60,
) -> tuple[Array, Array]:
    """Points whose predicted fitness nothing else that was met dominates.

    Args:
        predict: points ``(N, G)`` to fitness ``(N, M)``, maximised.
        low: ``(G,)`` lower corner of the box to search.
        high: ``(G,)`` upper corner.
        rng: the only source of randomness.
        start: ``(S, G)`` points to begin with beside random ones; clipped into the box.
        population_size: N.
        generations: rounds of N children each.

    Returns:
        All such points ``(F, G)``, often more than the population, and their fitness ``(F, M)``.
    """
    num_genes = len(low)
    random = low + rng.random((population_size, num_genes)) * (high - low)
    points = np.vstack([np.clip(start, low, high), random])
    fitness = predict(points)
    directions = reference_directions(fitness.shape[1], population_size)
    kept = survivors(fitness, population_size, directions, rng)
    points, fitness = points[kept], fitness[kept]
    met_points, met_fitness = [points], [fitness]
    for _ in range(generations):
        children = _children(points, low, high, rng)
        points, fitness = np.vstack([points, children]), np.vstack([fitness, predict(children)])
        kept = survivors(fitness, population_size, directions, rng)
        points, fitness = points[kept], fitness[kept]
        best = non_dominated(fitness)
        met_points.append(points[best])
        met_fitness.append(fitness[best])
    points, fitness = np.vstack(met_points), np.vstack(met_fitness)
    best = non_dominated(fitness)
    return points[best], fitness[best]


def spread(fitness: Array, taken: Array, count: int) -> Indices:
    """Choose rows one by one, each the farthest from all chosen ones and from what is taken, ranges scaled to 1.

    Args:
        fitness: ``(F, M)`` to choose from.
        taken: ``(T, M)`` where there is something already; with none the best of the first objective comes first.
        count: how many; fewer when there are fewer rows.

    Returns:
        Indices in the order of choice.
    """
    span = np.ptp(fitness, axis=0)
    scale = np.where(span > 0, span, 1.0)
    rows = fitness / scale
    nearest = np.full(len(rows), np.inf)
    for point in taken / scale:
        nearest = np.minimum(nearest, np.sum((rows - point) ** 2, axis=1))
    chosen: list[int] = []
    for _ in range(min(count, len(rows))):
        index = int(np.argmax(nearest)) if np.all(np.isfinite(nearest)) else int(np.argmax(rows[:, 0]))
        chosen.append(index)
        nearest = np.minimum(nearest, np.sum((rows - rows[index]) ** 2, axis=1))
        nearest[index] = -1.0
    return np.array(chosen, dtype=np.int64)


def reference_directions(num_objectives: int, population_size: int) -> Array:
    """Das and Dennis points ``(R, M)`` on the simplex, with an inner layer where few divisions leave it hollow."""
    if num_objectives == 1:
        return np.ones((1, 1))
    divisions = num_divisions(num_objectives, population_size)
    outer = _simplex(num_objectives, divisions)
    if divisions >= num_objectives:
        return outer
    inner = 0.5 * _simplex(num_objectives, max(1, divisions - 1)) + 0.5 / num_objectives
    return np.vstack([outer, inner])


def survivors(fitness: Array, count: int, directions: Array, rng: np.random.Generator) -> Indices:
    """Rows ``(count,)`` that live on: whole fronts first, the last one thinned by reference directions."""
    if len(fitness) <= count:
        return np.arange(len(fitness), dtype=np.int64)
    ranks = pareto_ranks(fitness)
    order = np.argsort(ranks, kind="stable")
    last = ranks[order[count - 1]]
    sure, torn = np.flatnonzero(ranks < last), np.flatnonzero(ranks == last)
    missing = count - len(sure)
    if len(torn) == missing or fitness.shape[1] == 1:
        return np.concatenate([sure, torn[:missing]])
    niche, distance = _associate(fitness, ranks, np.concatenate([sure, torn]), directions)
    crowd = np.bincount(niche[: len(sure)], minlength=len(directions)).astype(np.float64)
    niche, distance = niche[len(sure) :], distance[len(sure) :]
    # The emptiest niche takes first, its nearest to the direction; later ones of a niche at random. Taken one by one
    # that is the order of (who is in the niche already + place in the niche), ties at random.
    preference = np.where(distance == _nearest(niche, distance, len(directions))[niche], -1.0, rng.random(len(torn)))
    order = np.lexsort((preference, niche))
    starts = np.searchsorted(niche[order], niche[order], side="left")
    place = np.empty(len(torn))
    place[order] = np.arange(len(torn)) - starts
    chosen = np.lexsort((rng.random(len(torn)), crowd[niche] + place))[:missing]
    return np.concatenate([sure, torn[chosen]])


def _nearest(niche: Indices, distance: Array, num_directions: int) -> Array:
    """Smallest distance ``(R,)`` in each niche."""
    smallest = np.full(num_directions, np.inf)
    np.minimum.at(smallest, niche, distance)
    return smallest


def _associate(fitness: Array, ranks: Indices, rows: Indices, directions: Array) -> tuple[Indices, Array]:
    """Nearest direction of each row and the distance to it, seen from the ideal point."""
    first = fitness[ranks == 0]
    ideal, nadir = first.max(axis=0), first.min(axis=0)
    cost = (ideal - fitness[rows]) / np.where(ideal > nadir, ideal - nadir, 1.0)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    along = cost @ unit.T
    squared = np.maximum(np.sum(cost**2, axis=1)[:, None] - along**2, 0.0)
    niche = np.argmin(squared, axis=1)
    return niche, squared[np.arange(len(rows)), niche]


def _simplex(num_objectives: int, divisions: int) -> Array:
    """All points with coordinates in ``{0, 1, ..., divisions} / divisions`` that sum to 1."""
    bars = itertools.combinations(range(divisions + num_objectives - 1), num_objectives - 1)
    edges = np.array([(-1, *bar, divisions + num_objectives - 1) for bar in bars])
    return (np.diff(edges, axis=1) - 1) / divisions


def _children(parents: Array, low: Array, high: Array, rng: np.random.Generator) -> Array:
    """As many children as parents: simulated binary crossover of random pairs, then polynomial mutation."""
    count, num_genes = parents.shape
    mothers, fathers = parents[rng.permutation(count)], parents[rng.permutation(count)]
    draw = rng.random((count, num_genes))
    beta = np.where(draw < 0.5, 2 * draw, 1 / (2 * (1 - draw))) ** (1 / (ETA + 1))
    swapped = rng.random((count, num_genes)) < 0.5
    first, second = np.where(swapped, fathers, mothers), np.where(swapped, mothers, fathers)
    children = 0.5 * ((1 + beta) * first + (1 - beta) * second)
    draw = rng.random((count, num_genes))
    step = np.where(draw < 0.5, (2 * draw) ** (1 / (ETA + 1)) - 1, 1 - (2 * (1 - draw)) ** (1 / (ETA + 1)))
    hit = rng.random((count, num_genes)) < 1 / num_genes
    return np.clip(children + np.where(hit, step * (high - low), 0.0), low, high)
