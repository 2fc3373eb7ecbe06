"""CycleQD: one archive of elites for each objective, with the objectives taking turns as the one that is optimised.

In archive i, objective i is the quality and the others are the axes. Each proposal has an active archive, in rotation;
its parents are two elites of it, drawn more often the better they are in all objectives, and every archive takes the
child if it qualifies.

Parents are mixed as genotypes here; in the paper they are mixed as task vectors, which is the same where the genes are
coefficients of a linear merge. The paper's mutation scales the singular values of the child's weights. A genotype
expresses it by a gene of the method ``svd_mutation`` after the merge: its whole number ``draw`` says which factors. A
child's draw is the rounded average of its parents' draws, so it is nearly always another one; it acts on the child's
merge alone, where the paper's children inherit their parents' mutated weights.

Reference: Kuroki et al. 2025, Agent Skill Acquisition for Large Language Models via CycleQD,
https://arxiv.org/abs/2410.14735.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from evomerge.search.base import Problem
from evomerge.search.elite_archive import Elite, EliteArchive
from evomerge.search.elite_search import EliteSearch
from evomerge.search.variation import Variation
from evomerge.terms import Array


class Mutation(Protocol):
    """Changes a child before it is proposed."""

    def __call__(self, rng: np.random.Generator, unit: Array) -> Array:
        """The genotype ``(G,)`` of a child's unit coordinates ``(G,)``."""
        ...


class GenotypeMutation:
    """A normal step on some genes; integers and choices are drawn anew with probability 1/G.

    Args:
        variation: of the problem's genes.
        spread: standard deviation as a fraction of each gene's range; 0 leaves the genotype as it is.
    """

    def __init__(self, variation: Variation, spread: float) -> None:
        self._variation = variation
        self._spread = spread

    def __call__(self, rng: np.random.Generator, unit: Array) -> Array:
        """See ``Mutation``."""
        return self._variation.mutated(rng, unit, self._spread, redraw=self._spread > 0)


class CycleQd(EliteSearch):
    """K archives with rotating quality.

    Args:
        problem: two objectives or more, any genes.
        population_size: candidates proposed before any is learned from, ``auto`` = workers.
        num_initial_random: uniform proposals before elites have children.
        propose_initial: make the genes' initial values the first proposal.
        bins: of each axis.
        alpha_low: weight of the worst score in drawing parents.
        alpha_high: weight of the best score in drawing parents.
        crossover_spread: standard deviation of the parents' weights around 1.
        mutation_spread: standard deviation of the mutation as a fraction of each gene's range.
        mutation: replaces the mutation of genotypes.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        num_initial_random: int,
        propose_initial: bool,
        bins: int,
        alpha_low: float,
        alpha_high: float,
        crossover_spread: float,
        mutation_spread: float,
        mutation: Mutation | None = None,
    ) -> None:
        count = problem.num_objectives
        archives = [EliteArchive(quality, count, bins) for quality in range(count)]
        super().__init__(problem, archives, population_size, num_initial_random, propose_initial)
        self._alpha_low, self._alpha_high = alpha_low, alpha_high
        self._crossover_spread = crossover_spread
        self._mutation = mutation or GenotypeMutation(self._variation, mutation_spread)

    def active(self, index: int) -> EliteArchive:
        """The archive that the parents of proposal ``index`` come from: each in turn."""
        return self.archives[index % len(self.archives)]

    def chances(self, elites: list[Elite]) -> Array:
        """Probability ``(E,)`` of each elite to be a parent: ``prod_j (low + norm(f_j) (high - low))``, eq. 3."""
        fitness = np.array([elite.fitness for elite in elites], dtype=np.float64)
        low, high = fitness.min(axis=0), fitness.max(axis=0)
        normed = (fitness - low) / np.where(high > low, high - low, 1.0)
        weights = np.prod(self._alpha_low + normed * (self._alpha_high - self._alpha_low), axis=1)
        total = weights.sum()
        found: Array = weights / total if total > 0 else np.full(len(elites), 1.0 / len(elites))
        return found

    def _child(self, rng: np.random.Generator, index: int) -> tuple[Array, tuple[int, ...]]:
        elites = self._parents_of(self.active(index))
        chances = self.chances(elites)
        first, second = (elites[int(rng.choice(len(elites), p=chances))] for _ in range(2))
        unit = self._variation.average(rng, first.genotype, second.genotype, self._crossover_spread)
        return self._mutation(rng, unit), (first.index, second.index)
