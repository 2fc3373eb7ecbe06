"""One quadratic for each objective, as one function from points to fitness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.search.quadratic_surrogate import QuadraticSurrogate, fit_quadratic
from evomerge.terms import Array


@dataclass(frozen=True)
class SurrogateModel:
    """M fitted metrics, and the box ``(G,)`` to ``(G,)`` around the points they were fitted to."""

    metrics: tuple[QuadraticSurrogate, ...]
    low: Array
    high: Array

    def predict(self, points: Array) -> Array:
        """Fitness ``(N, M)`` at points ``(N, G)`` of the unit box."""
        return np.stack([metric.predict(points) for metric in self.metrics], axis=1)

    def standard_errors(self, points: Array) -> Array:
        """Standard errors ``(N, M)`` of ``predict``; NaN where nothing tells the noise."""
        return np.stack([metric.standard_errors(points) for metric in self.metrics], axis=1)

    def extrapolates(self, points: Array) -> Array:
        """1.0 for points ``(N, G)`` outside the box of what was evaluated, else 0.0."""
        inside = np.all((points >= self.low - 1e-9) & (points <= self.high + 1e-9), axis=1)
        return np.where(inside, 0.0, 1.0)

    def draw(self, rng: np.random.Generator) -> SurrogateModel:
        """Every metric drawn from what the data leaves open."""
        return SurrogateModel(tuple(metric.draw(rng) for metric in self.metrics), self.low, self.high)


def fit_surrogates(
    points: Array, fitness: Array, *, link: str = "auto", num_documents: Sequence[int] = ()
) -> SurrogateModel:
    """Fit every objective.

    Args:
        points: ``(C, G)`` in the unit box.
        fitness: ``(C, M)`` maximised.
        link: see ``fit_quadratic``.
        num_documents: of each objective, 0 = unknown; empty = all unknown.

    Raises:
        TooFewPoints: the points do not determine a quadratic.
    """
    documents = num_documents or (0,) * fitness.shape[1]
    metrics = tuple(
        fit_quadratic(points, column, link=link, num_documents=count) for column, count in zip(fitness.T, documents)
    )
    return SurrogateModel(metrics, points.min(axis=0), points.max(axis=0))
