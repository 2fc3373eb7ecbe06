"""CatCMA with margin: CMA-ES for real and integer genes together with a categorical distribution for choices.

Integer genes keep a least probability of changing, so that the search never freezes on one value; so do choices.

Reference: Hamano et al. 2025, CatCMA with Margin, https://arxiv.org/abs/2504.07884.
"""

from __future__ import annotations

from typing import Any

from evomerge.search.base import Problem
from evomerge.search.cma_mixed import MixedCoordinates
from evomerge.search.cmaes_family import CmaesFamily
from evomerge.terms import Array


class CatCma(CmaesFamily):
    """CatCMAwM for any mixture of real, integer and category genes.

    Real and integer genes start around their initial values. Every choice of a category gene starts equally likely.

    Args:
        problem: one objective, at least one gene with more than one value.
        **shared: the settings of the family.
    """

    name = "catcma"

    def __init__(self, problem: Problem, **shared: Any) -> None:
        self._mixed = MixedCoordinates(problem)
        super().__init__(problem, **shared)

    def _build(self, mean: Array, seed: int) -> Any:
        return self._mixed.build(mean, self.sigma, self.population_size, seed)

    def _draw(self) -> tuple[Array, Any]:
        solution = self._library.ask()
        return self._mixed.unit_of(solution), solution

    def _is_finite(self, raw: Any) -> bool:
        return self._mixed.is_finite(raw)

    def _raw_of(self, genotype: Array) -> Any:
        return self._mixed.solution_of(genotype)

    def _should_stop(self) -> bool:
        # The library's criteria look at the normal distribution; without one there is nothing to converge.
        return self._mixed.has_normal and super()._should_stop()
