"""EvoGM: networks learn to turn bad merges into good ones, and what they make of the population is evaluated.

Coordinates: each gene's range is [-1, 1], so genes from -1 to 1 are the published coefficients; points are written in a
basis of K of them (K genes that can change).

A round, from the identity as basis:

1. P points: the search space's initial values (published: the uniform average), each expert alone, the rest uniform.
2. ``iterations`` times: the best ``winners`` share of the round's history are winners, all others losers; the two
   generators are trained on them (``cycle_generators``); the population is sent through the one from loser to winner, P
   points in all; the population becomes the best P of itself and them.
3. Basis shift: the K best different models of the round are the experts of the next round. Its points are coefficients
   of these, and proposals are their product with the basis, so no merged weights are ever written.

Later rounds begin with the equal mixture of their experts and uniform coefficients; the experts themselves have their
scores already and join population and history (published: they are evaluated again). Generators are new in each round
(published code; the paper: in each iteration, ``fresh_generators``).

A published search ends after two rounds. Here it goes on: after ``rounds`` rounds the basis is the identity again, with
fresh uniform points beside the best models so far, and so on until the budget ends. A basis shifted ever further would
be one of models that are nearly the same.

Failed candidates and those that were stopped (racing) are losers, failures last, and never in the population. A point
whose product leaves a range is cut there. While no candidate has a fitness, points are uniform. Points asked beyond a
generation, because workers are free, are uniform points sent through the generator.

Reference: EvoGM: Evolutionary generative model merging, https://arxiv.org/abs/2605.29295, and its published code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.cycle_generators import CycleGenerators, Training
from evomerge.search.expert_genes import free_genes
from evomerge.search.gene_box import GeneBox
from evomerge.search.population import evogm_population_size
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.single_thread import SingleThread
from evomerge.search.swarm import place_key
from evomerge.search.swarm_start import expert_points
from evomerge.terms import Array, derive_seed

SAME = 1e-6  # models nearer than this in every coordinate are one
FOUND = 1e-6  # largest error of a point's coordinates in the basis

Order = tuple[int, tuple[float, ...], int]


@dataclass(frozen=True)
class Draft:
    """A point to be asked: coordinates ``(K,)`` in the round's basis, and the proposal it was made from."""

    point: Array
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Known:
    """A told candidate.

    Attributes:
        point: ``(K,)`` in the basis of the round.
        model: ``(K,)`` in the first basis.
        index: of its proposal.
        order: the smaller, the better: complete ones, then stopped ones, then failures.
    """

    point: Array
    model: Array
    index: int
    order: Order

    @property
    def is_complete(self) -> bool:
        """Whether it has a fitness."""
        return self.order[0] == 0


class EvoGm(Optimizer):
    """See the module docstring.

    Args:
        problem: real genes, one objective.
        population_size: P; ``auto`` = twice the genes, fewer where the budget would not allow ``rounds`` rounds.
        iterations: of a round.
        rounds: until the basis is the identity again.
        winners: share of the history.
        fresh_generators: train new generators in every iteration.
        width: of the generators' first layer.
        **training: ``cycle_weight``, ``target_weight``, ``learning_rate``, ``training_steps``.
    """

    name = "evogm"

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        iterations: int,
        rounds: int,
        winners: float,
        fresh_generators: bool,
        width: int,
        **training: float,
    ) -> None:
        super().__init__(problem)
        free = free_genes(problem.genes)
        auto = evogm_population_size(len(free), problem.evaluations, rounds * (iterations + 1))
        self._population_size = auto if population_size == "auto" else population_size
        self._iterations = iterations
        self._rounds = rounds
        self._winner_share = winners
        self._fresh = fresh_generators
        self._width = width
        self._training = Training(
            training["cycle_weight"], training["target_weight"], training["learning_rate"],
            int(training["training_steps"]),
        )  # fmt: skip
        self._free = np.array([gene in free for gene in problem.genes])
        self._whole, self._box = GeneBox(problem.genes), GeneBox(free)
        self._single_thread = SingleThread()
        self._ledger: ProposalLedger[tuple[int, Array]] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )
        self._round = self._iteration = 0
        self._basis: Array = np.eye(len(free))
        self._generators: CycleGenerators | None = None
        self._population: list[Known] = []  # best first
        self._history: list[Known] = []
        self._buffer: list[Returned[tuple[int, Array]]] = []
        self._drafts: deque[Draft] = deque()
        initial = 2.0 * self._box.to_unit(self._box.initial) - 1.0
        self._begin([initial, *(2.0 * expert_points(free) - 1.0)])

    @property
    def population_size(self) -> int:
        """Candidates of one generation."""
        return self._population_size

    def ask(self) -> Proposal:
        """The next point of the generation, or one more."""
        index = self._ledger.next_index
        draft = self._drafts.popleft() if self._drafts else self._extra(index)
        self.num_asked += 1
        genotype = self._whole.initial
        genotype[self._free] = self._box.from_unit(0.5 * (self.model_of(draft.point) + 1.0))
        return self._ledger.open(genotype, (self._round, draft.point), draft.parents)

    def tell(self, results: Sequence[Result]) -> None:
        """Learn whenever as many results came as a generation has candidates."""
        self._buffer += self._ledger.close(results, self.tell_size)
        while len(self._buffer) >= self.population_size:
            batch = self._buffer[: self.population_size]
            del self._buffer[: self.population_size]
            with self._single_thread():
                self._learn(batch)

    def model_of(self, point: Array) -> Array:
        """The model ``(K,)`` in the first basis that coefficients ``(K,)`` of the round's experts give."""
        model: Array = np.clip(point @ self._basis, -1.0, 1.0)
        return model

    def _learn(self, batch: Sequence[Returned[tuple[int, Array]]]) -> None:
        fresh = [known for one in batch if (known := self._known(one)) is not None]
        self._history += fresh
        complete = [known for known in [*self._population, *fresh] if known.is_complete]
        self._population = sorted(complete, key=_order)[: self.population_size]
        self._drafts.clear()
        if self._iteration < self._iterations:
            self._iteration += 1
            self._improve()
        else:
            self._shift_basis()

    def _known(self, returned: Returned[tuple[int, Array]]) -> Known | None:
        """The told candidate as a point of this round; None where an earlier round's is none."""
        asked_in, asked = returned.memory
        point: Array = asked
        model = 2.0 * self._box.to_unit(returned.genotype[self._free]) - 1.0
        if returned.diverged or asked_in != self._round:
            point = np.asarray(np.linalg.lstsq(self._basis.T, model, rcond=None)[0], dtype=np.float64)
            if np.abs(point @ self._basis - model).max() > FOUND or np.abs(point).max() > 1.0 + FOUND:
                return None
        if returned.fitness is not None:
            order: Order = (0, place_key(returned.fitness, returned.violation), returned.index)
        elif returned.standing is not None:
            order = (1, tuple(-value for value in returned.standing), returned.index)
        else:
            order = (2, (), returned.index)
        return Known(point, model, returned.index, order)

    def _improve(self) -> None:
        """Train, and send the population through the generator."""
        ordered = sorted(self._history, key=_order)
        count = max(1, round(self._winner_share * len(ordered)))
        winners = [known for known in ordered[:count] if known.is_complete]
        losers = ordered[len(winners) :]
        if not winners or not losers:
            self._drafts.extend(Draft(self._uniform("fill", at)) for at in range(self.population_size))
            return
        if self._generators is None or self._fresh:
            rng = self._rng("weights", self._round, self._iteration if self._fresh else 0)
            self._generators = CycleGenerators(len(self._basis), self._width, self._training, rng)
        self._generators.train(np.stack([one.point for one in winners]), np.stack([one.point for one in losers]))
        sent = self._generators.improve(np.stack([one.point for one in self._population]))
        self._drafts.extend(Draft(point, (one.index,)) for point, one in zip(sent, self._population))
        for at in range(self.population_size - len(sent)):
            self._drafts.append(Draft(self._generators.improve(self._uniform("fill", at)[None])[0]))

    def _shift_basis(self) -> None:
        """The round's best models become the experts of the next one."""
        self._round += 1
        self._iteration = 0
        self._generators = None
        experts: list[Known] = []
        for known in sorted(self._history, key=_order):
            if known.is_complete and all(np.abs(known.model - other.model).max() > SAME for other in experts):
                experts.append(known)
        self._history, self._population = [], []
        if len(experts) < len(self._basis):
            # Too few for a basis: the next round keeps this one, and its experts are nobody's candidates.
            self._begin([np.full(len(self._basis), 1.0 / len(self._basis))])
            return
        kept = experts[: len(self._basis)]
        models, units = np.stack([known.model for known in kept]), np.eye(len(kept))
        starts_again = self._round % self._rounds == 0
        self._basis, points = (units, models) if starts_again else (models, units)
        self._history = [Known(point, one.model, one.index, one.order) for point, one in zip(points, kept)]
        self._population = sorted(self._history, key=_order)[: self.population_size]
        self._begin([] if starts_again else [np.full(len(kept), 1.0 / len(kept))])

    def _begin(self, named: Sequence[Array]) -> None:
        """Lay out the first points of a round."""
        self._drafts.extend(Draft(point) for point in named[: self.population_size])
        for at in range(self.population_size - len(self._drafts)):
            self._drafts.append(Draft(self._uniform("start", at)))

    def _extra(self, index: int) -> Draft:
        point = self._rng("extra", index).uniform(-1.0, 1.0, size=len(self._basis))
        if self._generators is not None:
            with self._single_thread():
                point = self._generators.improve(point[None])[0]
        return Draft(point)

    def _uniform(self, kind: str, at: int) -> Array:
        rng = self._rng(kind, self._round, self._iteration, at)
        return rng.uniform(-1.0, 1.0, size=len(self._basis))

    def _rng(self, *parts: str | int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.problem.seed, self.name, *parts))


def _order(known: Known) -> Order:
    return known.order
