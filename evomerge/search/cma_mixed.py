"""Coordinates of CatCMA with margin: between unit coordinates of mixed genes and the library's three parts."""

from __future__ import annotations

from typing import Any

import cmaes
import numpy as np

from evomerge.search.base import Problem
from evomerge.search.gene_box import GeneBox, is_constant, num_values, reflect
from evomerge.terms import Array, GeneKind


class MixedCoordinates:
    """Builds the library's optimizers for a problem's genes, and translates their solutions.

    Real and integer genes form one normal distribution in unit coordinates; an integer gene's spread is at least half
    the distance of two values. Choices have a distribution of their own. Genes with only one value stay out of it.

    Args:
        problem: at least one gene with more than one value.
    """

    def __init__(self, problem: Problem) -> None:
        def positions(kind: GeneKind) -> list[int]:
            return [i for i, gene in enumerate(problem.genes) if gene.kind is kind and not is_constant(gene)]

        self.real = positions(GeneKind.REAL)
        self.integer = positions(GeneKind.INTEGER)
        self.category = positions(GeneKind.CATEGORY)
        self._box = GeneBox(problem.genes)
        self._num_values = [num_values(gene) for gene in problem.genes]

    @property
    def has_normal(self) -> bool:
        """Whether there are real or integer genes."""
        return bool(self.real or self.integer)

    def build(self, mean: Array, sigma: float, population_size: int, seed: int) -> Any:
        """CatCMAwM around ``mean`` (unit coordinates ``(G,)``); every choice starts equally likely."""
        steps = [1.0 / (self._num_values[i] - 1) for i in self.integer]
        spread = np.array([1.0] * len(self.real) + [max(1.0, 0.5 * step / sigma) for step in steps])
        return cmaes.CatCMAwM(
            x_space=[[-np.inf, np.inf]] * len(self.real) or None,  # bounds are mirrored like in the whole family
            z_space=[np.linspace(0.0, 1.0, self._num_values[i]).tolist() for i in self.integer] or None,
            c_space=[self._num_values[i] for i in self.category] or None,
            population_size=population_size,
            mean=mean[self.real + self.integer] if self.has_normal else None,
            sigma=sigma if self.has_normal else None,
            cov=np.diag(spread**2) if self.has_normal else None,
            seed=seed,
        )

    def unit_of(self, solution: Any) -> Array:
        """Unit coordinates ``(G,)`` in [0, 1] of a solution; what lies outside the box is mirrored into it."""
        unit = self._box.to_unit(self._box.initial)
        if self.real:
            unit[self.real] = reflect(solution.x)
        if self.integer:
            unit[self.integer] = solution.z
        for row, i in enumerate(self.category):
            unit[i] = np.argmax(solution.c[row]) / (self._num_values[i] - 1)
        return unit

    def is_finite(self, solution: Any) -> bool:
        """Whether a solution has numbers and choices at all."""
        chosen = solution.c is None or bool(solution.c.any(axis=1).all())
        return chosen and (solution._v_raw is None or bool(np.all(np.isfinite(solution._v_raw))))

    def centre_of(self, library: Any) -> Any:
        """The middle of a distribution as a solution: its mean, and for each choice the likeliest; ties are drawn.

        Private names: the library's own COMOCatCMAwM reads its kernels in the same way, and has no public one.
        """
        mean = library._mean.copy() if self.has_normal else None
        chosen = None
        if self.category:
            likeliest = library._q == library._q.max(axis=1, keepdims=True)
            drawn = np.where(likeliest, library._rng.random(library._q.shape), -np.inf).argmax(axis=1)
            chosen = np.zeros(library._q.shape, dtype=bool)
            chosen[np.arange(len(drawn)), drawn] = True
        return cmaes.CatCMAwM.Solution(
            x=mean[: len(self.real)] if mean is not None and self.real else None,
            z=library._discretization(mean[len(self.real) :]) if mean is not None and self.integer else None,
            c=chosen,
            _v_raw=mean,
        )

    def solution_of(self, genotype: Array) -> Any:
        """The library's form of a genotype ``(G,)`` that it did not draw."""
        unit = self._box.to_unit(genotype)
        columns = max((self._num_values[i] for i in self.category), default=0)
        chosen = np.zeros((len(self.category), columns), dtype=bool)
        for row, i in enumerate(self.category):
            chosen[row, round(genotype[i])] = True
        return cmaes.CatCMAwM.Solution(
            x=unit[self.real] if self.real else None,
            z=unit[self.integer] if self.integer else None,
            c=chosen if self.category else None,
            _v_raw=unit[self.real + self.integer] if self.has_normal else None,
        )
