"""Nested MAP: many experts, two at a time. Each pair is a search in two coefficients, however many genes there are.

1. Every expert alone is evaluated (its genes at 1, or as near as their range allows; all others at 0).
2. The two nodes (experts or merges) whose values are closest are a pair: points ``alpha * first + beta * second`` are
   evaluated, a quadratic in (alpha, beta) is fitted to each objective.
3. The point with the best predicted mean of the objectives under the user's preferences replaces the pair as a node. It
   is evaluated too, but nobody waits for it: the node's value, by which it is paired, is the predicted one.
4. Back to 2 until one node is left. Budget that is left then goes to the front of the last pair.

The genes of an expert are found by their names, see ``expert_genes``. With as many objectives as experts, in the same
order, objective i is the skill of expert i: a node's value and a pair's choice then count the skills of their own
experts only, as published. With any other number they count all objectives.

Reference: Li et al. 2025, https://arxiv.org/abs/2406.07529.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.expert_genes import expert_genes
from evomerge.search.front_explorer import FrontExplorer, PlannedPoint
from evomerge.search.gene_box import GeneBox
from evomerge.search.map_design import design
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.single_thread import SingleThread
from evomerge.terms import Array, derive_seed


@dataclass(frozen=True)
class Node:
    """An expert, or the merge chosen for a pair.

    Attributes:
        genotype: ``(G,)``, inside the genes' bounds.
        experts: positions of the experts in it, ascending.
        value: mean of its objectives by preference, None for an expert whose evaluation failed.
    """

    genotype: Array
    experts: tuple[int, ...]
    value: float | None


@dataclass(frozen=True)
class Errand:
    """What a proposal is for.

    Attributes:
        expert: the expert it measures, or None.
        pair: number of the pair whose quadratics learn from it, or None.
        point: alpha and beta ``(2,)`` in that pair.
    """

    expert: int | None = None
    pair: int | None = None
    point: Array | None = None


class NestedMap(Optimizer):
    """MAP pair by pair.

    Args:
        problem: real genes with 0 in their ranges, at least two experts.
        population_size: proposals between two fits; ``auto`` = 4, or the workers if more.
        pair_points: evaluations of each pair before its choice.
        preferences: weight of each objective; ``auto`` = equal.
        link: see ``fit_quadratic``.
        surrogate_generations: of the search on the quadratics.
    """

    name = "nested_map"

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        pair_points: int,
        preferences: Sequence[float] | Literal["auto"],
        link: str,
        surrogate_generations: int,
    ) -> None:
        super().__init__(problem)
        self._population_size = max(4, problem.workers) if population_size == "auto" else population_size
        self._pair_points, self._link, self._generations = pair_points, link, surrogate_generations
        weights = np.ones(problem.num_objectives) if preferences == "auto" else np.array(preferences, dtype=np.float64)
        self._weights: Array = weights
        self._box = GeneBox(problem.genes)
        self._single_thread = SingleThread()
        self._ledger: ProposalLedger[Errand] = ProposalLedger(len(problem.genes), problem.num_objectives)
        self._groups = list(expert_genes(problem.genes).values())
        self._experts = deque(range(len(self._groups)))
        self._measured: dict[int, float | None] = {}
        self._told: dict[bytes, tuple[float, ...]] = {}  # by genotype
        self._nodes: list[Node] = []
        self._pair: tuple[Node, Node] | None = None
        self._explorer: FrontExplorer | None = None
        self._first: deque[Array] = deque()
        self._planned: deque[PlannedPoint] = deque()
        self._number = -1  # of the pair
        self._num_waiting = 0  # proposals of the pair without a result
        self._complete = False

    @property
    def population_size(self) -> int:
        """Proposals between two fits."""
        return self._population_size

    @property
    def is_complete(self) -> bool:
        """Whether the last pair has been chosen from."""
        return self._complete

    def ask(self) -> Proposal:
        """The next expert, point of the pair, or choice; while results are awaited, further points."""
        with self._single_thread():
            genotype, errand, note = self._next()
        self.num_asked += 1
        return replace(self._ledger.open(genotype, errand), note=note)

    def tell(self, results: Sequence[Result]) -> None:
        """Measure the experts, then learn of the pair."""
        with self._single_thread():
            for returned in self._ledger.close(results, self.tell_size):
                self._take_in(returned)
            self._planned.clear()
            if not self._nodes and len(self._measured) == len(self._groups):
                self._nodes = [
                    Node(self._alone(index), (index,), self._measured[index]) for index in range(len(self._groups))
                ]
                self._next_pair()

    def _next(self) -> tuple[Array, Errand, dict[str, float]]:
        if self._experts:
            index = self._experts.popleft()
            return self._alone(index), Errand(expert=index), {}
        if self._explorer is None:  # experts are still being evaluated
            return self._mixture(), Errand(), {}
        if not self._first and not self._num_waiting and not self._complete:
            choice = self._choose()
            if choice is not None:
                return choice
        planned = PlannedPoint(self._first.popleft()) if self._first else self._next_of_pair()
        self._explorer.take(planned.point)
        self._num_waiting += 1
        note = {"pair": float(self._number), **planned.note}
        return self._genotype_of(planned.point), Errand(pair=self._number, point=planned.point), note

    def _next_of_pair(self) -> PlannedPoint:
        assert self._explorer is not None
        if not self._planned:
            self._planned.extend(self._explorer.plan(self._population_size, self._ledger.next_index))
        return self._planned.popleft() if self._planned else PlannedPoint(self._sobol.next())

    def _choose(self) -> tuple[Array, Errand, dict[str, float]] | None:
        """Replace the pair by its best mixture and go on to the next pair; None while there are too few results."""
        assert self._explorer is not None
        assert self._pair is not None
        experts = tuple(sorted((*self._pair[0].experts, *self._pair[1].experts)))
        weights = self._weights_of(experts)
        planned = self._explorer.best(weights, self._ledger.next_index)
        model = self._explorer.model()
        if planned is None or model is None:
            return None
        node = Node(self._genotype_of(planned.point), experts, float(model.predict(planned.point[None])[0] @ weights))
        note = {"pair": float(self._number), "chosen": 1.0, **planned.note}
        self._nodes = [*(one for one in self._nodes if one is not self._pair[0] and one is not self._pair[1]), node]
        errand = Errand(pair=self._number, point=planned.point)
        if len(self._nodes) > 1:
            self._next_pair()
        else:
            self._complete = True
            self._explorer.take(planned.point)
            self._num_waiting += 1
        return node.genotype, errand, note

    def _take_in(self, returned: Returned[Errand]) -> None:
        errand, fitness = returned.memory, returned.fitness
        if fitness is not None:
            self._told[returned.genotype.tobytes()] = fitness
        if errand.expert is not None:
            weights = self._weights_of((errand.expert,))
            self._measured[errand.expert] = None if fitness is None else float(weights @ np.array(fitness))
        if errand.pair != self._number or self._explorer is None or errand.point is None:
            return  # of a pair that was chosen from already
        self._num_waiting -= 1
        if fitness is not None:
            point = self._point_of(returned.genotype) if returned.diverged else errand.point
            self._explorer.learn(point, fitness)

    def _next_pair(self) -> None:
        """Pair the two nodes whose values are closest; nodes without a value pair last."""
        nodes = sorted(self._nodes, key=lambda node: (node.value is None, node.value or 0.0, node.experts))
        gaps = [
            np.inf if first.value is None or second.value is None else second.value - first.value
            for first, second in pairwise(nodes)
        ]
        place = int(np.argmin(gaps))
        self._pair = (nodes[place], nodes[place + 1])
        self._number += 1
        self._num_waiting = 0
        low, high = np.zeros(2), np.ones(2)
        seed = derive_seed(self.problem.seed, self.name, self._number)
        self._explorer = FrontExplorer(
            low, high, seed, link=self._link, num_documents=self.problem.num_documents, generations=self._generations
        )
        corners = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 1.0]])
        points, self._sobol = design(corners, low, high, self._pair_points, seed)
        self._first.clear()
        for point in points:  # experts and merges that were evaluated before need not be again
            fitness = self._told.get(self._genotype_of(point).tobytes())
            if fitness is None:
                self._first.append(point)
            else:
                self._explorer.take(point)
                self._explorer.learn(point, fitness)
        self._planned.clear()

    def _weights_of(self, experts: tuple[int, ...]) -> Array:
        """Weight of every objective for a node ``(M,)``, summing to 1."""
        weights = self._weights.copy()
        if len(weights) == len(self._groups):
            weights[[index for index in range(len(weights)) if index not in experts]] = 0.0
            if weights.sum() == 0:  # nobody wants these skills: still the node needs a value
                weights[list(experts)] = 1.0
        shares: Array = weights / weights.sum()
        return shares

    def _alone(self, index: int) -> Array:
        genotype = np.clip(np.zeros(len(self._box.genes)), self._box.low, self._box.high)
        members = list(self._groups[index])
        genotype[members] = np.minimum(1.0, self._box.high[members])
        return genotype

    def _mixture(self) -> Array:
        """A random mixture of all experts, for workers that would wait."""
        rng = np.random.default_rng(derive_seed(self.problem.seed, self.name, "mixture", self._ledger.next_index))
        parts = [rng.random() * self._alone(index) for index in range(len(self._groups))]
        mixed: Array = np.clip(np.sum(parts, axis=0), self._box.low, self._box.high)
        return mixed

    def _genotype_of(self, point: Array) -> Array:
        assert self._pair is not None
        mixed = point[0] * self._pair[0].genotype + point[1] * self._pair[1].genotype
        inside: Array = np.clip(mixed, self._box.low, self._box.high)
        return inside

    def _point_of(self, genotype: Array) -> Array:
        """The alpha and beta ``(2,)`` nearest to a genotype that was not proposed here."""
        assert self._pair is not None
        pair = np.stack([node.genotype for node in self._pair], axis=1)
        point: Array = np.clip(np.linalg.lstsq(pair, genotype, rcond=None)[0], 0.0, 1.0)
        return point
