"""Nested MAP: many experts, two at a time. Each pair is a search in two coefficients, however many genes there are.

1. Every expert alone is evaluated (its genes at 1, or as near as their range allows; all others at 0).
2. The two nodes (experts or merges) whose values are closest are a pair: points ``alpha * first + beta * second`` are
   evaluated, a quadratic in (alpha, beta) is fitted to each objective.
3. The point with the best predicted mean of the objectives under the user's preferences is evaluated; it replaces the
   pair as a node, and its value is what was measured.
4. Back to 2 until one node is left. Budget that is left then goes to the front of the last pair.

The genes of an expert are found by their names, see ``expert_genes``. With as many objectives as experts, in the same
order, objective i is the skill of expert i: a node's value and a pair's choice then count the skills of their own experts
only, as published. With any other number they count all objectives.

Reference: Li et al. 2025, https://arxiv.org/abs/2406.07529.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.expert_genes import expert_genes
from evomerge.search.front_explorer import FrontExplorer, PlannedPoint
from evomerge.search.gene_box import GeneBox
from evomerge.search.map_design import SobolBox, design
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.single_thread import SingleThread
from evomerge.terms import Array, derive_seed


@dataclass(frozen=True)
class Node:
    """An expert, or the merge chosen for a pair.

    Attributes:
        genotype: ``(G,)``, inside the genes' bounds.
        experts: positions of the experts in it.
        value: what was measured, weighted by preference; None when the evaluation failed.
    """

    genotype: Array
    experts: tuple[int, ...]
    value: float | None


@dataclass(frozen=True)
class Errand:
    """What a proposal is for: an expert, a point of pair number ``level``, or that pair's choice."""

    kind: Literal["expert", "point", "choice"]
    level: int
    point: Array


class NestedMap(Optimizer):
    """MAP pair by pair.

    Args:
        problem: real genes with 0 in their ranges, at least two experts.
        population_size: proposals between two fits; ``auto`` = 8, or the workers if more.
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
        self._population_size = max(8, problem.workers) if population_size == "auto" else population_size
        self._pair_points, self._link, self._generations = pair_points, link, surrogate_generations
        weights = np.ones(problem.num_objectives) if preferences == "auto" else np.array(preferences, dtype=np.float64)
        self._weights: Array = weights
        self._box = GeneBox(problem.genes)
        self._single_thread = SingleThread()
        self._ledger: ProposalLedger[Errand] = ProposalLedger(len(problem.genes), problem.num_objectives)
        self._groups = list(expert_genes(problem.genes).values())
        self._experts = deque(range(len(self._groups)))
        self._measured: dict[int, float | None] = {}
        self._nodes: list[Node] = []
        self._pair: tuple[Node, Node] | None = None
        self._explorer: FrontExplorer | None = None
        self._first: deque[Array] = deque()
        self._planned: deque[PlannedPoint] = deque()
        self._choice_asked = False
        self._level = -1

    @property
    def population_size(self) -> int:
        """Proposals between two fits."""
        return self._population_size

    @property
    def is_complete(self) -> bool:
        """Whether the last pair has been chosen from."""
        return self._pair is not None and len(self._nodes) == 1

    def ask(self) -> Proposal:
        """The next expert, point of the pair, or choice; while results are awaited, further points of the pair."""
        with self._single_thread():
            genotype, errand, note = self._next()
        self.num_asked += 1
        return replace(self._ledger.open(genotype, errand), note=note)

    def tell(self, results: Sequence[Result]) -> None:
        """Measure experts, learn of the pair, go on to the next pair when its choice has come back."""
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
            return self._alone(index), Errand("expert", index, np.empty(0)), {}
        if self._explorer is None:  # experts are still being evaluated
            return self._mixture(), Errand("expert", -1, np.empty(0)), {}
        kind: Literal["point", "choice"] = "point"
        if self._first:
            planned = PlannedPoint(self._first.popleft())
        else:
            choice = self._choice() if self._may_choose else None
            if choice is not None:
                planned, kind, self._choice_asked = choice, "choice", True
            else:
                planned = self._next_of_pair()
        self._explorer.take(planned.point)
        note = {"pair": float(self._level), **planned.note}
        return self._genotype_of(planned.point), Errand(kind, self._level, planned.point), note

    @property
    def _may_choose(self) -> bool:
        """Whether the pair is ready to be chosen from: enough results, no choice on its way."""
        assert self._explorer is not None
        enough = len(self._explorer.points) >= min(self._pair_points, 7)
        waiting = any(errand.level == self._level and errand.kind == "point" for _, errand in self._ledger.pending)
        return not self._choice_asked and enough and not waiting

    def _choice(self) -> PlannedPoint | None:
        assert self._explorer is not None
        assert self._pair is not None
        weights = self._weights_of((*self._pair[0].experts, *self._pair[1].experts))
        return self._explorer.best(weights, self._ledger.next_index)

    def _next_of_pair(self) -> PlannedPoint:
        assert self._explorer is not None
        if not self._planned:
            self._planned.extend(self._explorer.plan(self._population_size, self._ledger.next_index))
        return self._planned.popleft() if self._planned else PlannedPoint(self._sobol.next())

    def _take_in(self, returned: Returned[Errand]) -> None:
        errand, fitness = returned.memory, returned.fitness
        if errand.kind == "expert":
            if errand.level >= 0:
                weights = self._weights_of((errand.level,))
                self._measured[errand.level] = None if fitness is None else float(weights @ np.array(fitness))
            return
        if errand.level != self._level:  # of a pair that was chosen from already
            return
        assert self._explorer is not None
        if fitness is not None and not returned.diverged:
            self._explorer.learn(errand.point, fitness)
        if errand.kind == "choice" and not self.is_complete:
            self._choose(returned)

    def _choose(self, returned: Returned[Errand]) -> None:
        """Replace the pair by its choice; a choice that failed is made again without it."""
        if returned.fitness is None:
            self._choice_asked = False
            return
        assert self._pair is not None
        experts = tuple(sorted((*self._pair[0].experts, *self._pair[1].experts)))
        value = float(self._weights_of(experts) @ np.array(returned.fitness))
        rest = [node for node in self._nodes if node is not self._pair[0] and node is not self._pair[1]]
        self._nodes = [*rest, Node(returned.genotype, experts, value)]
        if len(self._nodes) > 1:
            self._next_pair()

    def _next_pair(self) -> None:
        """Pair the two nodes whose values are closest; nodes without a value pair last."""
        nodes = sorted(self._nodes, key=lambda node: (node.value is None, node.value or 0.0, node.experts))
        gaps = [
            np.inf if first.value is None or second.value is None else second.value - first.value
            for first, second in zip(nodes, nodes[1:])
        ]
        place = int(np.argmin(gaps))
        self._pair = (nodes[place], nodes[place + 1])
        self._level += 1
        self._choice_asked = False
        low, high = np.zeros(2), np.ones(2)
        seed = derive_seed(self.problem.seed, self.name, self._level)
        self._explorer = FrontExplorer(
            low, high, seed, link=self._link, num_documents=self.problem.num_documents, generations=self._generations
        )
        corners = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 1.0]])
        points, self._sobol = design(corners, low, high, self._pair_points, seed)
        self._first = deque(points)
        self._planned.clear()

    def _weights_of(self, experts: tuple[int, ...]) -> Array:
        """Weight of every objective for a node ``(M,)``, summing to 1."""
        weights = self._weights.copy()
        if len(weights) == len(self._groups):
            weights[[index for index in range(len(weights)) if index not in experts]] = 0.0
            if weights.sum() == 0:  # nobody wants these skills: still the node needs a value
                weights[list(experts)] = 1.0
        return weights / weights.sum()

    def _alone(self, index: int) -> Array:
        genotype = np.clip(np.zeros(len(self._box.genes)), self._box.low, self._box.high)
        members = list(self._groups[index])
        genotype[members] = np.minimum(1.0, self._box.high[members])
        return genotype

    def _mixture(self) -> Array:
        """A random mixture of all experts, for workers that would wait."""
        rng = np.random.default_rng(derive_seed(self.problem.seed, self.name, "mixture", self._ledger.next_index))
        parts = [rng.random() * self._alone(index) for index in range(len(self._groups))]
        return np.clip(np.sum(parts, axis=0), self._box.low, self._box.high)

    def _genotype_of(self, point: Array) -> Array:
        assert self._pair is not None
        mixed = point[0] * self._pair[0].genotype + point[1] * self._pair[1].genotype
        return np.clip(mixed, self._box.low, self._box.high)
