"""Bayesian MAP: half of the first points go where the quadratics are wrong or unsure, by direction.

Points are seen from the zero corner (every gene at 0, or as near as its range allows) in hyperspherical coordinates;
each angle in [0, pi/2] is cut into 4 bins with up to 3 genes and 2 with more. A bin's score is the error of the points
in it, each left out of the fit, plus ``doubt`` times the standard error of the fit there; a softmax of the scores
shares the next points among the bins, with a radius in [0.2, 0.8] of the way to the far corner (clipped to the box).

Published (arXiv 2406.07529, code): the same bins, temperature and weight, with the standard deviation of 30 refits that
replace a fifth of the points in place of the fit's own standard error.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.search.base import Problem
from evomerge.search.front_explorer import PlannedPoint
from evomerge.search.map_design import MAX_CHOSEN_UNKNOWNS, NEAR, SobolBox, design, is_new
from evomerge.search.map_search import MAX_REDRAWS, MapSearch
from evomerge.search.population import num_unknowns
from evomerge.search.surrogate_model import SurrogateModel
from evomerge.terms import Array, derive_seed

RADIUS = (0.2, 0.8)
NUM_PROBES = 16  # points of each bin at which its standard error is averaged


class BayesianMap(MapSearch):
    """MAP with adaptive first points, for 2 to 8 genes.

    Args:
        problem: real genes.
        temperature: of the softmax over bins, in units of the fitness; smaller favours the worst bins more.
        doubt: weight of the standard error beside the error.
        settings: as ``MapSearch``.
    """

    name = "bayesian_map"

    def __init__(self, problem: Problem, *, temperature: float, doubt: float, **settings: Any) -> None:
        super().__init__(problem, **settings)
        self._temperature, self._doubt = temperature, doubt
        self._zero = np.clip(self._box.to_unit(np.clip(np.zeros_like(self._low), self._box.low, self._box.high)),
                             self._low, self._high)  # fmt: skip
        num_genes = len(self._low)
        self._per_angle = 4 if num_genes < 4 else 2
        self._bins = list(itertools.product(range(self._per_angle), repeat=num_genes - 1))

    def _first_points(self, first: Array) -> tuple[list[Array], SobolBox]:
        """Enough points for a first fit that errors can be learned from; the others come in rounds."""
        num_genes = len(self._low)
        assert num_unknowns(num_genes) <= MAX_CHOSEN_UNKNOWNS
        count = min(self._num_design, num_unknowns(num_genes) + num_genes)
        return design(first, self._low, self._high, count, self._seed)

    def _plan(self) -> list[PlannedPoint]:
        missing = self._num_design - len(self._explorer.taken)
        model = self._explorer.model()
        if missing <= 0 or model is None:
            return super()._plan()
        rng = np.random.default_rng(derive_seed(self._seed, "bins", self._ledger.next_index))
        scores = self.bin_scores(model)
        counts = share_out(scores, min(missing, self._population_size), self._temperature)
        planned: list[PlannedPoint] = []
        for index, count in enumerate(counts):
            for _ in range(count):
                points = [one.point for one in planned]
                planned.append(PlannedPoint(self._fresh(index, points, rng), {"bin_score": float(scores[index])}))
        return planned

    def bin_scores(self, model: SurrogateModel) -> Array:
        """Score of every bin ``(B,)``, in units of the fitness, averaged over the objectives."""
        rng = np.random.default_rng(derive_seed(self._seed, "probes"))
        errors = np.mean([np.abs(metric.leave_one_out) for metric in model.metrics], axis=0)
        home = self._bin_of(self._explorer.points)
        typical = float(np.nanmean(errors)) if np.any(np.isfinite(errors)) else 0.0
        scores = np.empty(len(self._bins))
        for index in range(len(self._bins)):
            inside = errors[(home == index) & np.isfinite(errors)]
            probes = np.stack([self._point_in(index, rng) for _ in range(NUM_PROBES)])
            unsure = model.standard_errors(probes)
            spread = float(np.mean(unsure)) if np.all(np.isfinite(unsure)) else 0.0
            scores[index] = (float(inside.mean()) if len(inside) else typical) + self._doubt * spread
        return scores

    def _bin_of(self, points: Array) -> npt.NDArray[np.int64]:
        """Index ``(C,)`` of the bin of each point ``(C, G)``."""
        offset = np.abs(points - self._zero)
        numbers = np.zeros(len(points), dtype=np.int64)
        for column in range(offset.shape[1] - 1):
            rest = np.sqrt(np.sum(offset[:, column + 1 :] ** 2, axis=1))
            angle = np.arctan2(rest, offset[:, column])
            place = np.minimum((angle / (math.pi / 2) * self._per_angle).astype(np.int64), self._per_angle - 1)
            numbers = numbers * self._per_angle + place
        return numbers

    def _point_in(self, index: int, rng: np.random.Generator) -> Array:
        """A random point ``(G,)`` of a bin."""
        angles = (np.array(self._bins[index]) + rng.random(len(self._low) - 1)) / self._per_angle * math.pi / 2
        direction = np.concatenate([np.cos(angles), [1.0]]) * np.concatenate([[1.0], np.cumprod(np.sin(angles))])
        # Towards the farther end of each range; the zero corner is an end of it where no coefficient is negative.
        far = np.where(self._high - self._zero >= self._zero - self._low, self._high, self._low)
        point = self._zero + rng.uniform(*RADIUS) * direction * (far - self._zero)
        inside: Array = np.clip(point, self._low, self._high)
        return inside

    def _fresh(self, index: int, planned: list[Array], rng: np.random.Generator) -> Array:
        for _ in range(MAX_REDRAWS):
            point = self._point_in(index, rng)
            if is_new(point, [*self._explorer.taken, *planned]):
                return point
        return np.clip(point + NEAR * rng.standard_normal(len(point)), self._low, self._high)


def share_out(scores: Array, count: int, temperature: float) -> list[int]:
    """Share ``count`` points by the softmax of scores ``(B,)``, whole parts first, then the largest remainders."""
    weights = np.exp((scores - scores.max()) / temperature)
    shares = count * weights / weights.sum()
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(-(shares - counts), kind="stable")
    counts[order[: count - int(counts.sum())]] += 1
    return [int(number) for number in counts]
