"""CMA-ES for several objectives: one search distribution that is told a total order of its candidates.

The order is that of MO-CMA-ES (Pareto rank, then exclusive hypervolume), but candidates are ranked together with an
archive of the front found so far. Within its own generation alone, a candidate on ground that is already covered
looks as good as one in a gap, and the distribution would shrink onto one point of the front and stay. Against the
archive such a candidate contributes next to nothing, so the distribution is drawn along the front to where volume is
still missing. When it has converged nevertheless, it starts again elsewhere and the archive stays.

Reference: Igel, Hansen and Roth 2007, https://doi.org/10.1162/evco.2007.15.1.1; Voss, Hansen and Igel 2010,
https://doi.org/10.1145/1830483.1830573. Those keep one distribution for each parent; with the few hundred evaluations
that model merging affords, one distribution learns faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cmaes
import numpy as np

from evomerge.search.base import Problem
from evomerge.search.cmaes_family import CmaesFamily, Draw
from evomerge.search.feasibility import feasible_first
from evomerge.search.proposal_ledger import Returned
from evomerge.search.total_order import best_spread, total_order
from evomerge.terms import Array

FULL_UP_TO = 128  # genes; a full covariance of more is not learnt within thousands of evaluations


class CmaPareto(CmaesFamily):
    """CMA-ES told Pareto rank and hypervolume contribution; with more than 128 genes its covariance is diagonal.

    Args:
        problem: real genes, two objectives or more.
        archive_size: most members of the archive that candidates are ranked against.
        **shared: the settings of the family.
    """

    name = "cma_pareto"

    def __init__(self, problem: Problem, *, archive_size: int, **shared: Any) -> None:
        self._archive_size = archive_size
        self._archive: Array = np.empty((0, problem.num_objectives))
        super().__init__(problem, **shared)

    def _build(self, mean: Array, seed: int) -> Any:
        full = len(mean) <= FULL_UP_TO
        library = cmaes.CMA if full else cmaes.SepCMA
        return library(mean=mean, sigma=self.sigma, seed=seed, population_size=self.population_size)

    def _values(self, batch: Sequence[Returned[Draw]]) -> list[float]:
        """Places in the total order, then those that miss constraints, then failures (+inf)."""
        kept = [i for i, one in enumerate(batch) if one.fitness is not None and one.violation == 0]
        places: list[float | None] = [None if one.fitness is None else 0.0 for one in batch]
        if kept:
            fitness = np.array([batch[i].fitness for i in kept], dtype=np.float64)
            reference = self.problem.reference_point
            for i, place in zip(kept, total_order(fitness, self._archive, reference).tolist()):
                places[i] = float(place)
            self._archive = best_spread(np.vstack([self._archive, fitness]), self._archive_size, reference)
        return feasible_first(places, [one.violation for one in batch])
