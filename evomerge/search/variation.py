"""Children of genotypes: crossover and mutation of real, integer and category genes together. Pure functions of draws.

Real and integer genes are varied in unit coordinates and mirrored at their bounds, integers rounded to the nearest
value. Choices are taken from one parent or the other. So that neither freezes, every integer or category gene is drawn
anew with probability 1/G.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.search.gene_box import GeneBox, is_constant, reflect
from evomerge.terms import Array, Gene, GeneKind


class Variation:
    """Makes children.

    Args:
        genes: G genes.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        self.box = GeneBox(genes)
        self._category = np.array([gene.kind is GeneKind.CATEGORY for gene in genes], dtype=bool)
        self._whole = np.array([gene.kind is not GeneKind.REAL for gene in genes], dtype=bool)
        self._rate = 1.0 / max(1, sum(not is_constant(gene) for gene in genes))

    def line(self, rng: np.random.Generator, a: Array, b: Array, spread: float, reach: float) -> Array:
        """Iso + line: a step of its own and a step along the line to another elite.

        Args:
            rng: source of the draws.
            a: parent ``(G,)``.
            b: the other elite ``(G,)``.
            spread: standard deviation of the own step, as a fraction of each range.
            reach: standard deviation of the step along the line, as a fraction of the distance.

        Returns:
            Genotype ``(G,)``.

        Reference: Vassiliades and Mouret 2018, Discovering the elite hypervolume by leveraging interspecies
        correlation, https://arxiv.org/abs/1804.03906, eq. 1.
        """
        first, second = self.box.to_unit(a), self.box.to_unit(b)
        unit = first + spread * rng.standard_normal(len(a)) + reach * rng.standard_normal() * (second - first)
        return self._finish(rng, unit, a, b)

    def simulated_binary(self, rng: np.random.Generator, a: Array, b: Array, eta: float, mutation_eta: float) -> Array:
        """Simulated binary crossover (one of the two children) and polynomial mutation with probability 1/G.

        Args:
            rng: source of the draws.
            a: parent ``(G,)``.
            b: the other parent ``(G,)``.
            eta: distribution index of the crossover.
            mutation_eta: distribution index of the mutation.

        Returns:
            Genotype ``(G,)``.

        Reference: Deb and Agrawal 1995, Simulated binary crossover for continuous search space, Complex Systems 9.
        """
        first, second = self.box.to_unit(a), self.box.to_unit(b)
        draws = rng.random(len(a))
        power = 1.0 / (eta + 1.0)
        spread = np.where(draws <= 0.5, (2.0 * draws) ** power, (2.0 * (1.0 - draws)) ** -power)
        spread = np.where(rng.random(len(a)) < 0.5, spread, 1.0)  # half of the genes are not crossed
        side = 1.0 if rng.random() < 0.5 else -1.0
        unit = 0.5 * (first + second + side * spread * (first - second))
        return self._finish(rng, self._polynomial(rng, reflect(unit), mutation_eta), a, b)

    def average(self, rng: np.random.Generator, a: Array, b: Array, spread: float) -> Array:
        """The two parents' weighted mean, ``(w1 a + w2 b) / (w1 + w2)`` with weights from N(1, spread^2).

        Args:
            rng: source of the draws.
            a: parent ``(G,)``.
            b: the other parent ``(G,)``.
            spread: standard deviation of the weights.

        Returns:
            Unit coordinates ``(G,)``, not yet rounded or bounded; ``mutated`` finishes them.

        Reference: Kuroki et al. 2025, Agent Skill Acquisition for LLMs via CycleQD, eq. 2,
        https://arxiv.org/abs/2410.14735.
        """
        weights = 1.0 + spread * rng.standard_normal(2)
        total = float(weights.sum())
        shares = weights / total if abs(total) > 1e-6 else np.array([0.5, 0.5])
        mixed = shares[0] * self.box.to_unit(a) + shares[1] * self.box.to_unit(b)
        chosen = np.where(rng.random(len(a)) < 0.5, self.box.to_unit(a), self.box.to_unit(b))
        unit: Array = np.where(self._category, chosen, mixed)
        return unit

    def mutated(self, rng: np.random.Generator, unit: Array, spread: float, redraw: bool = True) -> Array:
        """The genotype ``(G,)`` of unit coordinates after a normal step of standard deviation ``spread``.

        With ``spread`` 0 and ``redraw`` off it is the genotype itself.
        """
        moved = np.where(self._category, unit, unit + spread * rng.standard_normal(len(unit)))
        genotype = self.box.from_unit(reflect(moved))
        return self._redrawn(rng, genotype) if redraw else genotype

    def _polynomial(self, rng: np.random.Generator, unit: Array, eta: float) -> Array:
        """Polynomial mutation within bounds (Deb 2001, Multi-Objective Optimization, 4.3.5)."""
        draws, power = rng.random(len(unit)), 1.0 / (eta + 1.0)
        below = (2.0 * draws + (1.0 - 2.0 * draws) * (1.0 - unit) ** (eta + 1.0)) ** power - 1.0
        above = 1.0 - (2.0 * (1.0 - draws) + (2.0 * draws - 1.0) * unit ** (eta + 1.0)) ** power
        step = np.where(draws < 0.5, below, above)
        return unit + np.where(rng.random(len(unit)) < self._rate, step, 0.0)

    def _finish(self, rng: np.random.Generator, unit: Array, a: Array, b: Array) -> Array:
        swapped = np.where(rng.random(len(a)) < 0.5, a, b)
        genotype = np.where(self._category, swapped, self.box.from_unit(reflect(unit)))
        return self._redrawn(rng, genotype)

    def _redrawn(self, rng: np.random.Generator, genotype: Array) -> Array:
        fresh = self.box.from_uniform(rng.random(len(genotype)))
        hit = self._whole & (rng.random(len(genotype)) < self._rate)
        return np.where(hit, fresh, genotype)
