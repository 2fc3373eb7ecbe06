"""Separable CMA-ES: only the diagonal of the covariance is adapted, so memory and time are linear in the genes.

Reference: Ros and Hansen 2008, A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity,
https://inria.hal.science/inria-00287367.
"""

from __future__ import annotations

from typing import Any

import cmaes

from evomerge.search.cmaes_family import CmaesFamily
from evomerge.terms import Array


class SepCma(CmaesFamily):
    """CMA-ES with a diagonal covariance, for hundreds to thousands of real genes."""

    name = "sep_cma"

    def _build(self, mean: Array, seed: int) -> Any:
        return cmaes.SepCMA(
            mean=mean, sigma=self.sigma, n_max_resampling=0, seed=seed, population_size=self.population_size
        )
