"""CMA-ES: a multivariate normal distribution with a full covariance matrix, adapted by rank.

The defaults are those of Akiba et al. 2024 (Evolutionary Optimization of Model Merging Recipes,
https://arxiv.org/abs/2403.13187): mean = the genes' initial values, sigma = 1/6 of the range, population
4 + floor(3 ln n). Learning-rate adaptation for noisy fitness: Nomura et al. 2023, https://arxiv.org/abs/2304.03473.
"""

from __future__ import annotations

from typing import Any, Literal

import cmaes

from evomerge.search.base import Problem
from evomerge.search.cmaes_family import CmaesFamily
from evomerge.terms import Array


class CmaEs(CmaesFamily):
    """CMA-ES with active covariance update, for up to a few hundred real genes.

    Args:
        problem: one objective, real genes.
        lr_adapt: slow down where the fitness is noisy; ``auto`` = when the problem is.
        **shared: the settings of the family.
    """

    name = "cma_es"

    def __init__(self, problem: Problem, *, lr_adapt: bool | Literal["auto"], **shared: Any) -> None:
        self.lr_adapt = problem.noisy if lr_adapt == "auto" else lr_adapt
        super().__init__(problem, **shared)

    def _build(self, mean: Array, seed: int) -> Any:
        return cmaes.CMA(
            mean=mean,
            sigma=self.sigma,
            n_max_resampling=0,
            seed=seed,
            population_size=self.population_size,
            lr_adapt=self.lr_adapt,
        )
