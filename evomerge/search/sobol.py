"""Sobol points: a scrambled low-discrepancy sequence, more even than random draws in the same number of evaluations.

Reference: Sobol 1967; scrambling of Matousek 1998 as implemented in scipy.stats.qmc.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.stats import qmc

from evomerge.search.base import Problem, SearchExhausted
from evomerge.search.random_search import RandomSearch
from evomerge.terms import Array, derive_seed

NUM_POINTS = 2**30  # length of scipy's sequence


class Sobol(RandomSearch):
    """Scrambled Sobol points, otherwise as random search.

    Args:
        problem: any genes, any number of objectives.
        population_size: candidates between two checkpoints; changes nothing else.
        propose_initial: make the genes' initial values the first proposal, before the sequence starts.
    """

    def __init__(self, problem: Problem, *, population_size: int | Literal["auto"], propose_initial: bool) -> None:
        super().__init__(problem, population_size=population_size, propose_initial=propose_initial)
        rng = np.random.default_rng(derive_seed(problem.seed, "sobol"))
        self._sequence: Any = qmc.Sobol(len(problem.genes), scramble=True, seed=rng)
        self._num_drawn = 0

    def _point(self, index: int) -> Array:
        if self._num_drawn >= NUM_POINTS:
            raise SearchExhausted("the Sobol sequence has no more points")
        self._num_drawn += 1
        point: Array = self._sequence.random(1)[0]
        return point
