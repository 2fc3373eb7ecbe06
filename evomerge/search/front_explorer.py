"""Keeps what is known of a few coordinates, fits quadratics to it, and plans new points on the front they predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.search.front import non_dominated, pareto_ranks
from evomerge.search.map_design import are_new, is_new
from evomerge.search.quadratic_surrogate import determines_quadratic
from evomerge.search.surrogate_front import spread, surrogate_front
from evomerge.search.surrogate_model import SurrogateModel, fit_surrogates
from evomerge.terms import Array, derive_seed

NUM_START = 50  # known points the surrogate's search begins with
SCALES = (0.3, 0.1, 0.03, 0.01)  # of the points tried around the front when it has no more new ones


@dataclass(frozen=True)
class PlannedPoint:
    """A point of the unit box ``(G,)`` to evaluate, and what is expected of it."""

    point: Array
    note: dict[str, float] = field(default_factory=dict)


class FrontExplorer:
    """Points of the unit box and their fitness.

    Args:
        low: ``(G,)`` where the front is looked for.
        high: ``(G,)``.
        seed: the only source of randomness.
        link: see ``fit_quadratic``.
        num_documents: of each objective; empty = unknown.
        generations: of the search on the surrogate.
    """

    def __init__(
        self, low: Array, high: Array, seed: int, *, link: str, num_documents: Sequence[int], generations: int
    ) -> None:
        self.low, self.high, self.seed = low, high, seed
        self._link, self._num_documents, self._generations = link, num_documents, generations
        self.taken: list[Array] = []
        self._points: list[Array] = []
        self._fitness: list[tuple[float, ...]] = []
        self._model: SurrogateModel | None = None

    def take(self, point: Array) -> None:
        """Never propose this point again: it is being evaluated."""
        self.taken.append(point)

    def learn(self, point: Array, fitness: tuple[float, ...]) -> None:
        """Add an evaluation."""
        self._points.append(point)
        self._fitness.append(fitness)
        self._model = None

    @property
    def points(self) -> Array:
        """Evaluated points ``(C, G)``."""
        return np.array(self._points).reshape(-1, len(self.low))

    @property
    def fitness(self) -> Array:
        """Their fitness ``(C, M)``."""
        return np.array(self._fitness, dtype=np.float64)

    def model(self) -> SurrogateModel | None:
        """Fitted to everything known; None while that does not determine a quadratic."""
        if self._model is None and determines_quadratic(self.points):
            self._model = fit_surrogates(self.points, self.fitness, link=self._link, num_documents=self._num_documents)
        return self._model

    def plan(self, count: int, label: int) -> list[PlannedPoint]:
        """New points spread over the predicted front, far from what was asked before.

        Where the front has too few new points, the rest are on fronts drawn from what the data leaves open.

        Args:
            count: how many.
            label: makes the random numbers of each call different.

        Returns:
            At most ``count``; none while there is no model.
        """
        model = self.model()
        if model is None:
            return []
        rng = np.random.default_rng(derive_seed(self.seed, "plan", label))
        front = self._front(model, rng)
        chosen = self._spread_over(front, model, count)
        if len(chosen) < count:
            chosen += self._around(front, model, chosen, count - len(chosen), rng)
        return [PlannedPoint(point, self._note(model, point)) for point in chosen]

    def best(self, weights: Array, label: int) -> PlannedPoint | None:
        """The point with the largest predicted weighted mean of the objectives; None while there is no model."""
        model = self.model()
        if model is None:
            return None
        rng = np.random.default_rng(derive_seed(self.seed, "best", label))
        points, values = surrogate_front(
            lambda rows: (model.predict(rows) @ weights)[:, None],
            self.low,
            self.high,
            rng,
            start=self.points,
            generations=self._generations,
        )
        point = points[int(np.argmax(values[:, 0]))]
        return PlannedPoint(point, self._note(model, point))

    def _front(self, model: SurrogateModel, rng: np.random.Generator) -> Array:
        ranks = pareto_ranks(model.predict(self.points))
        start = self.points[np.argsort(ranks, kind="stable")[:NUM_START]]
        size = 100 if len(model.metrics) < 3 else 200
        return surrogate_front(
            model.predict, self.low, self.high, rng, start=start, population_size=size, generations=self._generations
        )[0]

    def _spread_over(self, front: Array, model: SurrogateModel, count: int) -> list[Array]:
        new = front[are_new(front, self.taken)]
        taken = model.predict(np.array(self.taken)) if self.taken else np.empty((0, len(model.metrics)))
        chosen: list[Array] = []
        for index in spread(model.predict(new), taken, 4 * count) if len(new) else ():
            if len(chosen) < count and is_new(new[index], chosen):
                chosen.append(new[index])
        return chosen

    def _around(
        self, front: Array, model: SurrogateModel, chosen: list[Array], count: int, rng: np.random.Generator
    ) -> list[Array]:
        """Best new points of quadratics drawn from the posterior, among points near the front and everywhere."""
        centres = front[rng.integers(len(front), size=(len(SCALES), 250))]
        steps = rng.standard_normal(centres.shape) * np.array(SCALES)[:, None, None]
        near = (centres + steps * (self.high - self.low)).reshape(-1, len(self.low))
        pool = np.clip(np.vstack([near, rng.random((500, len(self.low)))]), 0.0, 1.0)
        pool = np.clip(pool, self.low, self.high)
        pool = pool[are_new(pool, [*self.taken, *chosen])]
        found: list[Array] = []
        while len(pool) and len(found) < count:
            best = np.flatnonzero(non_dominated(model.draw(rng).predict(pool)))
            found.append(pool[best[rng.integers(len(best))]])
            pool = pool[are_new(pool, found[-1:])]
        return found

    def _note(self, model: SurrogateModel, point: Array) -> dict[str, float]:
        row = point[None]
        note = {"extrapolated": float(model.extrapolates(row)[0])}
        errors = model.standard_errors(row)[0]
        for index, value in enumerate(model.predict(row)[0]):
            note[f"predicted_{index}"] = float(value)
            if np.isfinite(errors[index]):
                note[f"standard_error_{index}"] = float(errors[index])
        return note
