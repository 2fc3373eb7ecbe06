"""CatCMA with margin: CMA-ES for real and integer genes together with a categorical distribution for choices.

Integer genes keep a least probability of changing, so that the search never freezes on one value; so do choices.

Reference: Hamano et al. 2025, CatCMA with Margin, https://arxiv.org/abs/2504.07884.
"""

from __future__ import annotations

from typing import Any

import cmaes
import numpy as np

from evomerge.search.base import Problem
from evomerge.search.cmaes_family import CmaesFamily
from evomerge.search.gene_box import is_constant, num_values, reflect
from evomerge.terms import Array, GeneKind


class CatCma(CmaesFamily):
    """CatCMAwM for any mixture of real, integer and category genes.

    Real and integer genes start around their initial values; an integer gene's spread is at least half the distance of
    two values. Every choice of a category gene starts equally likely. Genes with only one value stay out of it.

    Args:
        problem: one objective, at least one gene with more than one value.
        **shared: the settings of the family.
    """

    name = "catcma"

    def __init__(self, problem: Problem, **shared: Any) -> None:
        def positions(kind: GeneKind) -> list[int]:
            return [i for i, gene in enumerate(problem.genes) if gene.kind is kind and not is_constant(gene)]

        self._real = positions(GeneKind.REAL)
        self._integer = positions(GeneKind.INTEGER)
        self._category = positions(GeneKind.CATEGORY)
        self._num_values = [num_values(gene) for gene in problem.genes]
        super().__init__(problem, **shared)

    def _build(self, mean: Array, seed: int) -> Any:
        steps = [1.0 / (self._num_values[i] - 1) for i in self._integer]
        spread = np.array([1.0] * len(self._real) + [max(1.0, 0.5 * step / self.sigma) for step in steps])
        has_normal = len(spread) > 0
        return cmaes.CatCMAwM(
            x_space=[[-np.inf, np.inf]] * len(self._real) or None,  # bounds are mirrored like in the whole family
            z_space=[np.linspace(0.0, 1.0, self._num_values[i]).tolist() for i in self._integer] or None,
            c_space=[self._num_values[i] for i in self._category] or None,
            population_size=self.population_size,
            mean=mean[self._real + self._integer] if has_normal else None,
            sigma=self.sigma if has_normal else None,
            cov=np.diag(spread**2) if has_normal else None,
            seed=seed,
        )

    def _draw(self) -> tuple[Array, Any]:
        solution = self._library.ask()
        unit = self._box.to_unit(self._box.initial)
        if self._real:
            unit[self._real] = reflect(solution.x)
        if self._integer:
            unit[self._integer] = solution.z
        for row, i in enumerate(self._category):
            unit[i] = np.argmax(solution.c[row]) / (self._num_values[i] - 1)
        return unit, solution

    def _is_finite(self, raw: Any) -> bool:
        chosen = raw.c is None or bool(raw.c.any(axis=1).all())
        return chosen and (raw._v_raw is None or bool(np.all(np.isfinite(raw._v_raw))))

    def _raw_of(self, genotype: Array) -> Any:
        unit = self._box.to_unit(genotype)
        columns = max((self._num_values[i] for i in self._category), default=0)
        chosen = np.zeros((len(self._category), columns), dtype=bool)
        for row, i in enumerate(self._category):
            chosen[row, round(genotype[i])] = True
        return cmaes.CatCMAwM.Solution(
            x=unit[self._real] if self._real else None,
            z=unit[self._integer] if self._integer else None,
            c=chosen if self._category else None,
            _v_raw=unit[self._real + self._integer] if self._real or self._integer else None,
        )

    def _should_stop(self) -> bool:
        # The library's criteria look at the normal distribution; without one there is nothing to converge.
        return bool(self._real or self._integer) and super()._should_stop()
