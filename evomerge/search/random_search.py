"""Random search: independent uniform draws. The baseline every optimizer has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.gene_box import GeneBox
from evomerge.search.population import random_population_size
from evomerge.search.proposal_ledger import ProposalLedger
from evomerge.terms import Array, derive_seed


class RandomSearch(Optimizer):
    """Uniform draws over the box; proposal i depends on the seed and i only.

    Args:
        problem: any genes, any number of objectives.
        population_size: candidates between two checkpoints; changes nothing else.
        propose_initial: make the genes' initial values the first proposal.
    """

    def __init__(self, problem: Problem, *, population_size: int | Literal["auto"], propose_initial: bool) -> None:
        super().__init__(problem)
        self._population_size = (
            random_population_size(len(problem.genes), problem.workers)
            if population_size == "auto"
            else population_size
        )
        self._propose_initial = propose_initial
        self._box = GeneBox(problem.genes)
        self._ledger: ProposalLedger[None] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )

    @property
    def population_size(self) -> int:
        """Candidates between two checkpoints."""
        return self._population_size

    def ask(self) -> Proposal:
        """The next point, which no result ever changes."""
        index = self._ledger.next_index
        first = index == 0 and self._propose_initial
        genotype = self._box.initial if first else self._box.from_uniform(self._point(index))
        self.num_asked += 1
        return self._ledger.open(genotype, None)

    def tell(self, results: Sequence[Result]) -> None:
        """Check the results; there is nothing to learn."""
        self._ledger.close(results, self.tell_size)

    def _point(self, index: int) -> Array:
        """Uniform coordinates ``(G,)`` in [0, 1) of proposal ``index``."""
        rng = np.random.default_rng(derive_seed(self.problem.seed, "random", index))
        return rng.random(len(self.problem.genes))
