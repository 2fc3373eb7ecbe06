"""The first points of MAP: experts alone, the middle, and points that together pin down a quadratic.

Published (arXiv 2406.07529, code): a mixture of isotropic, grid and one-hot points. Here the first two are a pool of
grid and Sobol points, of which those that tell most are taken until the quadratic is determined; Sobol points fill up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from evomerge.search.population import num_unknowns
from evomerge.search.quadratic_surrogate import quadratic_features
from evomerge.terms import Array, Gene, derive_seed

MAX_CHOSEN_UNKNOWNS = 400  # beyond it choosing by what a point tells costs seconds, and Sobol points do
NEAR = 1e-3  # points nearer than this fraction of every range are the same point


class SobolBox:
    """Scrambled Sobol points ``(G,)`` in a box, one after the other."""

    def __init__(self, low: Array, high: Array, seed: int) -> None:
        self._low, self._high = low, high
        self._sequence = qmc.Sobol(len(low), scramble=True, seed=np.random.default_rng(seed))

    def next(self) -> Array:
        """The next point."""
        point: Array = self._low + self._sequence.random(1)[0] * (self._high - self._low)
        return point


def is_new(point: Array, others: Sequence[Array]) -> bool:
    """Whether no other point ``(G,)`` is within ``NEAR`` of it in every coordinate."""
    return bool(are_new(point[None], others)[0])


def are_new(points: Array, others: Sequence[Array]) -> npt.NDArray[np.bool_]:
    """``is_new`` of each of points ``(N, G)``."""
    fresh = np.ones(len(points), dtype=bool)
    for other in others:
        fresh &= np.abs(points - other).max(axis=1) >= NEAR
    return fresh


def corner_points(genes: Sequence[Gene]) -> Array:
    """Initial values, then each gene at 1 with the others at 0, then the middle: natural units ``(G + 2, G)``.

    Values a gene's range does not hold are taken to its nearer end.
    """
    low, high = (np.array([getattr(gene, end) for gene in genes], dtype=np.float64) for end in ("low", "high"))
    rows = [np.array([gene.initial for gene in genes], dtype=np.float64)]
    rows += [np.eye(len(genes))[index] for index in range(len(genes))]
    rows.append((low + high) / 2)
    return np.clip(np.stack(rows), low, high)


def design(first: Array, low: Array, high: Array, count: int, seed: int) -> tuple[list[Array], SobolBox]:
    """The first points.

    Args:
        first: ``(F, G)`` in the unit box: taken to the sampled box, without repetitions.
        low: ``(G,)`` of the sampled box.
        high: ``(G,)``.
        count: how many points in all.
        seed: of the random ones.

    Returns:
        ``count`` points ``(G,)``, and the sequence to take further ones from.
    """
    points: list[Array] = []
    for point in np.clip(first, low, high):
        if is_new(point, points):
            points.append(point)
    points = points[:count]
    sobol = SobolBox(low, high, derive_seed(seed, "sobol"))
    needed = num_unknowns(len(low))
    if needed <= MAX_CHOSEN_UNKNOWNS and len(points) < min(needed, count):
        points += _telling(points, _pool(low, high, needed, seed), min(needed, count) - len(points))
    while len(points) < count:
        points.append(sobol.next())
    return points, sobol


def _pool(low: Array, high: Array, needed: int, seed: int) -> Array:
    rng = np.random.default_rng(derive_seed(seed, "pool"))
    grid = low + rng.integers(0, 3, (2 * needed, len(low))) / 2 * (high - low)
    inside = SobolBox(low, high, derive_seed(seed, "pool", "sobol"))
    return np.vstack([grid, *(inside.next() for _ in range(4 * needed))])


def _telling(points: Sequence[Array], pool: Array, count: int) -> list[Array]:
    """Pool points whose prediction is least known given the points before, one by one (sequential D-optimality)."""
    features = quadratic_features(pool)
    known = quadratic_features(np.stack(points)) if points else np.empty((0, features.shape[1]))
    covariance = np.linalg.inv(known.T @ known + 1e-6 * np.eye(features.shape[1]))
    chosen = []
    for _ in range(count):
        spread = features @ covariance
        variance = np.sum(spread * features, axis=1)
        best = int(np.argmax(variance))
        chosen.append(pool[best])
        covariance -= np.outer(spread[best], spread[best]) / (1.0 + variance[best])
    return chosen
