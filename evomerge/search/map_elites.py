"""MAP-Elites: keeps the best candidate of every way to trade the objectives off, and breeds from all of them.

Reference: Mouret and Clune 2015, https://arxiv.org/abs/1504.04909; Vassiliades and Mouret 2018,
https://arxiv.org/abs/1804.03906.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from evomerge.search.base import Problem
from evomerge.search.elite_archive import EliteArchive
from evomerge.search.elite_search import EliteSearch
from evomerge.terms import Array


class MapElites(EliteSearch):
    """One archive with a fixed quality objective; the other objectives are the axes of its grid.

    Args:
        problem: two objectives or more, any genes.
        population_size: candidates proposed before any is learned from, ``auto`` = workers.
        num_initial_random: uniform proposals before elites have children.
        propose_initial: make the genes' initial values the first proposal.
        quality: number of the objective that cells compete in, from 0.
        bins: of each axis.
        variation: ``iso_line`` or ``sbx`` (simulated binary crossover and polynomial mutation).
        spread: of ``iso_line``: standard deviation of an elite's own step, as a fraction of each gene's range.
        reach: of ``iso_line``: standard deviation of the step along the line to another elite.
        crossover_eta: of ``sbx``: distribution index of the crossover.
        mutation_eta: of ``sbx``: distribution index of the mutation.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        num_initial_random: int,
        propose_initial: bool,
        quality: int,
        bins: int,
        variation: Literal["iso_line", "sbx"],
        spread: float,
        reach: float,
        crossover_eta: float,
        mutation_eta: float,
    ) -> None:
        archives = [EliteArchive(quality, problem.num_objectives, bins)]
        super().__init__(problem, archives, population_size, num_initial_random, propose_initial)
        self._is_line = variation == "iso_line"
        self._spread, self._reach = spread, reach
        self._crossover_eta, self._mutation_eta = crossover_eta, mutation_eta

    def _child(self, rng: np.random.Generator, index: int) -> tuple[Array, tuple[int, ...]]:
        elites = self._parents_of(self.archives[0])
        first, second = (elites[int(rng.integers(len(elites)))] for _ in range(2))
        a, b = first.genotype, second.genotype
        if self._is_line:
            child = self._variation.line(rng, a, b, self._spread, self._reach)
        else:
            child = self._variation.simulated_binary(rng, a, b, self._crossover_eta, self._mutation_eta)
        return child, (first.index, second.index)
