"""What the optimizers on the ``cmaes`` library share: coordinates, bounds, batches, failures and restarts.

- Coordinates: every gene is scaled to [0, 1], so one ``sigma`` (a fraction of the range) fits all of them.
- Bounds by repair: the distribution is unbounded; a draw outside the box is mirrored into it for evaluation, and the
  distribution learns from the unmirrored draw. Rejection would cost up to a hundred draws each in many dimensions.
- Batches: one update needs ``population_size`` results. Results of earlier generations may arrive late (steady state);
  they count like others. Within a batch they are told in ask order, because the library breaks ties by position.
- With constraints the distribution is told ranks: who keeps them by fitness, then the others by how much they miss.
- Stopped candidates rank after all complete ones of their batch (see `stopped_last`), failures last. A batch in which
  everything failed teaches nothing and leaves the distribution as it is.
- Restarts: when the distribution has converged it starts again around a uniformly drawn mean, with a seed derived from
  the run's, as in IPOP-CMA-ES. Results of proposals from before the restart are accepted and forgotten: they say
  nothing about the new distribution. Should the arithmetic break down, the restart happens even when restarts are off.

References: Hansen 2016, https://arxiv.org/abs/1604.00772; Auger and Hansen 2005, A restart CMA evolution strategy with
increasing population size; Nomura and Shibata 2024, cmaes, https://arxiv.org/abs/2402.01373.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.feasibility import feasible_first
from evomerge.search.gene_box import GeneBox, reflect
from evomerge.search.population import cma_population_size
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.single_thread import SingleThread
from evomerge.search.stopped_last import stopped_last
from evomerge.terms import Array, derive_seed

MAX_REDRAWS = 3  # restarts in a row without one finite draw before giving up


@dataclass(frozen=True)
class Draw:
    """What the library needs back: its own form of the draw, and which restart it belongs to."""

    raw: Any
    epoch: int


class CmaesFamily(Optimizer):
    """Base of the optimizers on the ``cmaes`` library. Subclasses build the library's object.

    Args:
        problem: one objective.
        population_size: candidates of a generation, ``auto`` = ``4 + floor(3 ln n)``.
        sigma: initial standard deviation as a fraction of each gene's range.
        restarts: start again when converged.
        double_population: double the population at every restart (IPOP).
        propose_initial: make the genes' initial values, the first mean, the first proposal.
    """

    name: ClassVar[str]

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        sigma: float,
        restarts: bool,
        double_population: bool,
        propose_initial: bool = False,
    ) -> None:
        super().__init__(problem)
        num_genes = len(problem.genes)
        self.sigma = sigma
        self.num_restarts = 0
        self._box = GeneBox(problem.genes)
        self._first_population = cma_population_size(num_genes) if population_size == "auto" else population_size
        self._restarts = restarts
        self._double_population = double_population
        self._propose_initial = propose_initial
        self._converged = False
        self._single_thread = SingleThread()
        self._ledger: ProposalLedger[Draw] = ProposalLedger(num_genes, problem.num_objectives, problem.num_constraints)
        self._buffer: list[Returned[Draw]] = []
        self._start(self._box.to_unit(self._box.initial))

    @abstractmethod
    def _build(self, mean: Array, seed: int) -> Any:
        """The library's optimizer around ``mean`` (unit coordinates ``(G,)``), seeded with 32 bits."""

    def _draw(self) -> tuple[Array, Any]:
        """Unit coordinates ``(G,)`` in [0, 1] and the library's form of one draw; raw numbers may be non-finite."""
        raw = self._library.ask()
        return reflect(raw), raw

    def _is_finite(self, raw: Any) -> bool:
        return bool(np.all(np.isfinite(raw)))

    def _raw_of(self, genotype: Array) -> Any:
        """The library's form of a genotype ``(G,)`` that it did not draw."""
        return self._box.to_unit(genotype)

    def _should_stop(self) -> bool:
        return bool(self._library.should_stop())

    @property
    def population_size(self) -> int:
        """Candidates of one generation; grows at restarts when the population doubles."""
        growth = 2**self.num_restarts if self._double_population else 1
        return self._first_population * growth

    @property
    def tell_size(self) -> int:
        """A whole population."""
        return self.population_size

    def stop_reason(self) -> str | None:
        """Set once converged with restarts off."""
        return "the search distribution has converged" if self._converged else None

    def ask(self) -> Proposal:
        """Draw a candidate. Drawing more than a population before the next tell is allowed."""
        if self._propose_initial and self.num_asked == 0:
            unit, raw = self._box.to_unit(self._box.initial), self._raw_of(self._box.initial)
        else:
            with self._single_thread():
                unit, raw = self._finite_draw()
        self.num_asked += 1
        return self._ledger.open(self._box.from_unit(unit), Draw(raw, self.num_restarts))

    def tell(self, results: Sequence[Result]) -> None:
        """Learn from ``tell_size`` results; see the module docstring for late, failed and forgotten ones."""
        for returned in self._ledger.close(results, self.tell_size):
            if returned.memory.epoch == self.num_restarts:
                self._buffer.append(returned)
        while len(self._buffer) >= self.population_size:
            batch = self._buffer[: self.population_size]
            del self._buffer[: self.population_size]
            self._update(batch)

    def _raw(self, returned: Returned[Draw]) -> Any:
        """The library's form of what was evaluated."""
        return self._raw_of(returned.genotype) if returned.diverged else returned.memory.raw

    def _values(self, batch: Sequence[Returned[Draw]]) -> list[float]:
        """A value to minimise for each result; those without a fitness are +inf, which ranks last."""
        if self.problem.num_constraints:
            best = [None if one.fitness is None else -one.fitness[0] for one in batch]
            return feasible_first(best, [one.violation for one in batch])
        return [math.inf if one.fitness is None else -float(one.fitness[0]) for one in batch]

    def _update(self, batch: list[Returned[Draw]]) -> None:
        values = stopped_last(self._values(batch), [one.standing for one in batch])
        if all(math.isinf(value) for value in values):
            return
        told = [(self._raw(one), value) for one, value in zip(batch, values)]
        with self._single_thread():
            try:
                self._library.tell(told)
                converged, broken = self._should_stop(), False
            except np.linalg.LinAlgError:
                converged, broken = True, True
        has_budget = self.problem.evaluations is None or self.num_asked < self.problem.evaluations
        if broken or (converged and self._restarts and has_budget):
            self._restart()
        elif converged and not self._restarts:
            self._converged = True

    def _finite_draw(self) -> tuple[Array, Any]:
        for _ in range(MAX_REDRAWS):
            try:
                unit, raw = self._draw()
            except np.linalg.LinAlgError:
                self._restart()
                continue
            if self._is_finite(raw):
                return unit, raw
            self._restart()
        raise AssertionError("a fresh search distribution gave no finite draw")

    def _restart(self) -> None:
        self.num_restarts += 1
        self._buffer.clear()
        rng = np.random.default_rng(derive_seed(self.problem.seed, self.name, "mean", self.num_restarts))
        self._start(rng.random(len(self.problem.genes)))

    def _start(self, mean: Array) -> None:
        seed = derive_seed(self.problem.seed, self.name, self.num_restarts) % 2**32
        self._library = self._build(mean.copy(), seed)
