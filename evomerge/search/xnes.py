"""Exponential natural evolution strategy: natural-gradient steps on a full covariance in exponential coordinates.

Reference: Glasmachers et al. 2010, Exponential Natural Evolution Strategies,
https://dl.acm.org/doi/10.1145/1830483.1830557.
"""

from __future__ import annotations

from typing import Any

import cmaes

from evomerge.search.cmaes_family import CmaesFamily
from evomerge.terms import Array


class Xnes(CmaesFamily):
    """xNES, for up to a few hundred real genes."""

    name = "xnes"

    def _build(self, mean: Array, seed: int) -> Any:
        return cmaes.XNES(
            mean=mean, sigma=self.sigma, n_max_resampling=0, seed=seed, population_size=self.population_size
        )
