"""MAP: amortised Pareto fronts by quadratic approximation, with every point of the front evaluated.

First points that pin down a quadratic for each objective, then rounds: fit to everything told so far, search the front
of the quadratics (free), evaluate points spread over it. The published method stops after the first fit and reports
predicted values; here the run's front holds only evaluated ones.

Reference: Li et al. 2025, MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation,
https://arxiv.org/abs/2406.07529.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.expert_genes import free_genes
from evomerge.search.front_explorer import FrontExplorer, PlannedPoint
from evomerge.search.gene_box import GeneBox
from evomerge.search.map_design import SobolBox, corner_points, design, is_new
from evomerge.search.population import design_size
from evomerge.search.proposal_ledger import ProposalLedger
from evomerge.search.single_thread import SingleThread
from evomerge.terms import Array, derive_seed

Box = Sequence[float] | Literal["auto"]
MAX_REDRAWS = 100


class MapSearch(Optimizer):
    """MAP over real genes, for one objective and more.

    Args:
        problem: real genes.
        population_size: proposals between two fits; ``auto`` = 8, or the workers if more.
        num_design: first points; ``auto`` = twice the unknowns, or three quarters of the budget where that is less.
        sampled_box: ``[low, high]`` of the first points in natural units, within every gene's range.
        bounds: ``[low, high]`` where the front is looked for; ``auto`` = ``sampled_box``.
        link: see ``fit_quadratic``.
        surrogate_generations: of the search on the quadratics.
    """

    name = "map"

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        num_design: int | Literal["auto"],
        sampled_box: Box,
        bounds: Box,
        link: str,
        surrogate_generations: int,
    ) -> None:
        super().__init__(problem)
        free = free_genes(problem.genes)
        self._population_size = max(8, problem.workers) if population_size == "auto" else population_size
        self._free = np.array([gene in free for gene in problem.genes])
        self._whole = GeneBox(problem.genes)
        self._box = GeneBox(free)
        self._low, self._high = self._unit_box(sampled_box)
        low, high = self._unit_box(sampled_box if bounds == "auto" else bounds)
        self._seed = derive_seed(problem.seed, self.name)
        self._single_thread = SingleThread()
        self._explorer = FrontExplorer(
            low, high, self._seed, link=link, num_documents=problem.num_documents, generations=surrogate_generations
        )
        self._num_design = design_size(len(free), problem.evaluations) if num_design == "auto" else num_design
        first = np.stack([self._box.to_unit(row) for row in corner_points(free)])
        with self._single_thread():
            points, self._sobol = self._first_points(first)
        self._design = deque(points)
        self._planned: deque[PlannedPoint] = deque()
        self._ledger: ProposalLedger[None] = ProposalLedger(len(problem.genes), problem.num_objectives)

    def _first_points(self, first: Array) -> tuple[list[Array], SobolBox]:
        return design(first, self._low, self._high, self._num_design, self._seed)

    def _unit_box(self, box: Box) -> tuple[Array, Array]:
        """Lower and upper corner ``(G,)`` in the unit box of a box in natural units."""
        if box == "auto":
            return np.zeros(len(self._box.genes)), np.ones(len(self._box.genes))
        ends = [np.full(len(self._box.genes), end, dtype=np.float64) for end in box]
        low, high = (self._box.to_unit(np.clip(end, self._box.low, self._box.high)) for end in ends)
        return low, high

    @property
    def population_size(self) -> int:
        """Proposals between two fits."""
        return self._population_size

    def ask(self) -> Proposal:
        """A first point while there are any, then points of the predicted front."""
        with self._single_thread():
            planned = self._next()
        self._explorer.take(planned.point)
        self.num_asked += 1
        genotype = self._whole.initial
        genotype[self._free] = self._box.from_unit(planned.point)
        return replace(self._ledger.open(genotype, None), note=planned.note)

    def tell(self, results: Sequence[Result]) -> None:
        """Add the results; failures teach nothing but are not asked again."""
        for returned in self._ledger.close(results, self.tell_size):
            if returned.fitness is not None:
                self._explorer.learn(self._box.to_unit(returned.genotype[self._free]), returned.fitness)
        # What is planned was planned with less.
        self._planned.clear()

    def know(self, genotypes: Array, fitness: Array) -> None:
        """Add evaluations of another run; so many fewer first points are asked."""
        for genotype, values in zip(genotypes, fitness):
            point = self._box.to_unit(genotype[self._free])
            self._explorer.take(point)
            self._explorer.learn(point, tuple(float(value) for value in values))
        left = [point for point in self._design if is_new(point, self._explorer.taken)]
        self._design = deque(left[: max(0, self._num_design - len(genotypes))])

    def _next(self) -> PlannedPoint:
        if self._design:
            return PlannedPoint(self._design.popleft())
        if not self._planned:
            self._planned.extend(self._plan())
        return self._planned.popleft() if self._planned else PlannedPoint(self._filler())

    def _plan(self) -> list[PlannedPoint]:
        """The next points; none while what was told does not determine the quadratics."""
        return self._explorer.plan(self._population_size, self._ledger.next_index)

    def _filler(self) -> Array:
        """A further Sobol point of the sampled box."""
        for _ in range(MAX_REDRAWS):
            point = self._sobol.next()
            if is_new(point, self._explorer.taken):
                break
        return point
