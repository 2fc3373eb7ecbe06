"""What the optimizers over archives of elites share: random start, children of elites, archives filled as results come.

Every proposal has a random generator of its own, seeded by the run's seed and the proposal's number, so only the
archives are state, and telling the same results in the same order rebuilds them. A failure enters no archive.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.elite_archive import AxisRanges, Elite, EliteArchive
from evomerge.search.proposal_ledger import ProposalLedger
from evomerge.search.variation import Variation
from evomerge.terms import Array, derive_seed


class EliteSearch(Optimizer):
    """Base: subclasses say how a child is made.

    Args:
        problem: two objectives or more, any genes.
        archives: to be filled; a candidate enters each that it qualifies for.
        population_size: candidates proposed before any is learned from, ``auto`` = workers.
        num_initial_random: uniform proposals before elites have children.
        propose_initial: make the genes' initial values the first proposal.
    """

    def __init__(
        self,
        problem: Problem,
        archives: Sequence[EliteArchive],
        population_size: int | Literal["auto"],
        num_initial_random: int,
        propose_initial: bool,
    ) -> None:
        super().__init__(problem)
        self.archives = tuple(archives)
        self._population_size = problem.workers if population_size == "auto" else population_size
        self._num_initial_random = num_initial_random
        self._propose_initial = propose_initial
        self._ranges = AxisRanges(problem.num_objectives, problem.expert_fitness)
        self._variation = Variation(problem.genes)
        self._ledger: ProposalLedger[None] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )
        for archive in self.archives:
            archive.set_ranges(self._ranges.values)

    @abstractmethod
    def _child(self, rng: np.random.Generator, index: int) -> tuple[Array, tuple[int, ...]]:
        """Genotype ``(G,)`` and parents' indices of proposal ``index``; every archive has an elite."""

    @property
    def population_size(self) -> int:
        """Candidates proposed before any is learned from."""
        return self._population_size

    def ask(self) -> Proposal:
        """A uniform draw in the beginning and while all candidates failed, then a child of elites."""
        index = self._ledger.next_index
        rng = np.random.default_rng(derive_seed(self.problem.seed, type(self).__name__, index))
        parents: tuple[int, ...] = ()
        if index == 0 and self._propose_initial:
            genotype = self._variation.box.initial
        elif index < self._num_initial_random or not self.archives[0].elites:
            genotype = self._variation.box.from_uniform(rng.random(len(self.problem.genes)))
        else:
            genotype, parents = self._child(rng, index)
        self.num_asked += 1
        return self._ledger.open(genotype, None, parents)

    def tell(self, results: Sequence[Result]) -> None:
        """Let the results compete for their cells, in ask order."""
        for returned in self._ledger.close(results, self.tell_size):
            if returned.fitness is None:
                continue
            fitness = tuple(float(value) for value in returned.fitness)
            if returned.violation == 0:
                self._ranges.see(fitness)
            elite = Elite(returned.index, returned.genotype, fitness, returned.violation)
            for archive in self.archives:
                archive.set_ranges(self._ranges.values)
                archive.add(elite)

    def _parents_of(self, archive: EliteArchive) -> list[Elite]:
        """Elites that may have children: those that keep all constraints; where none does, all."""
        elites = archive.elites
        return [elite for elite in elites if elite.violation == 0] or elites
