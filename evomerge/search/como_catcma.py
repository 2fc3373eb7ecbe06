"""COMO-CatCMA with margin: several CatCMA distributions that together approach the front of two objectives.

Each kernel (a CatCMAwM) stands for one point of the front: its incumbent, the mean of its distribution. Kernels are
updated one after another in random order; a kernel's candidates are worth what they add to the front of the *other*
kernels' incumbents (uncrowded hypervolume improvement), so the kernels push each other apart along the front.

The steps are those of ``cmaes.COMOCatCMAwM`` (same order of updates, candidates and incumbents, bit for bit where
nothing fails and nothing leaves the box). It is not used itself because
- it wants a number for everything: a failed candidate would have to be told one, and would move its reference point.
  Here a failure ranks last, a failed incumbent is no part of the front, and a kernel whose candidates all failed
  learns nothing;
- its incumbents leave the box (here everything is mirrored into it);
- its queue runs empty: one step takes a population and an incumbent, and more workers than that would wait. Which
  kernels come next is known, and their distributions do not change before their turn, so here further candidates are
  drawn from them ahead of time; results are the same whatever the number of workers.

Reference: Hamano et al. 2025, CatCMA with Margin, https://arxiv.org/abs/2504.07884; Toure et al. 2019, Uncrowded
hypervolume improvement, https://arxiv.org/abs/1904.08823.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.cma_mixed import MixedCoordinates
from evomerge.search.feasibility import feasible_first
from evomerge.search.front import learnt_reference
from evomerge.search.gene_box import GeneBox
from evomerge.search.population import cma_population_size, num_kernels
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.single_thread import SingleThread
from evomerge.search.uncrowded import staircase, uncrowded_improvement
from evomerge.terms import Array, derive_seed

MAX_RETIRED = 500  # incumbents of earlier starts that are remembered


@dataclass(frozen=True)
class Draw:
    """A queued candidate.

    Attributes:
        solution: the library's form.
        kernel: whose it is.
        role: a ``sample`` its kernel learns from, its ``incumbent``, or ``surplus`` that nobody learns from.
        epoch: how often the kernel had started again.
    """

    solution: Any
    kernel: int
    role: Literal["sample", "incumbent", "surplus"]
    epoch: int


@dataclass
class Kernel:
    """One distribution.

    Attributes:
        library: CatCMAwM.
        epoch: how often it has started again.
        num_drawn: samples drawn for its next update.
        batch: samples that came back.
        incumbent: fitness of its incumbent, None where that failed or misses constraints.
        is_known: whether the incumbent was evaluated since the last update.
    """

    library: Any
    epoch: int = 0
    num_drawn: int = 0
    batch: list[Returned[Draw]] = field(default_factory=list)
    incumbent: tuple[float, ...] | None = None
    is_known: bool = False


class ComoCatCma(Optimizer):
    """Kernels of CatCMAwM spread along the front of exactly two objectives.

    Args:
        problem: two objectives, any genes.
        kernels: points that shall cover the front, ``auto`` = as many as the budget updates twelve times.
        kernel_population: candidates of one kernel update, ``auto`` = ``4 + floor(3 ln n)``.
        sigma: initial standard deviation as a fraction of each gene's range.
        start_at_initial: let one kernel start at the genes' initial values; the others start anywhere.
        restarts: let a converged kernel start again elsewhere; its incumbent stays a member of the front.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        kernels: int | Literal["auto"],
        kernel_population: int | Literal["auto"],
        sigma: float,
        start_at_initial: bool,
        restarts: bool,
    ) -> None:
        super().__init__(problem)
        num_genes = len(problem.genes)
        self.sigma = sigma
        self._size = cma_population_size(num_genes) if kernel_population == "auto" else kernel_population
        self._num_kernels = num_kernels(problem.evaluations, self._size) if kernels == "auto" else kernels
        self._box = GeneBox(problem.genes)
        self._mixed = MixedCoordinates(problem)
        self._restarts = restarts
        self._single_thread = SingleThread()
        self._ledger: ProposalLedger[Draw] = ProposalLedger(num_genes, problem.num_objectives, problem.num_constraints)
        self._seen: list[tuple[float, ...]] = []  # worst and best of each objective, for a learnt reference point
        self._retired: list[tuple[float, float]] = []
        self._rng = np.random.RandomState(derive_seed(problem.seed, "como_catcma") % 2**32)
        seeds = self._rng.randint(0, 2**32, size=self._num_kernels, dtype=np.uint32)
        self._order: deque[int] = deque()
        with self._single_thread():
            self._kernels = [
                Kernel(self._build(self._mean(index, 0, start_at_initial), int(seed)))
                for index, seed in enumerate(seeds)
            ]
            self._queue: deque[Draw] = deque()
            current = self._upcoming(0)
            for index in range(self._num_kernels):
                if index == current:
                    self._enqueue_samples(index)
                else:
                    self._enqueue_incumbent(index)

    @property
    def population_size(self) -> int:
        """Candidates of one kernel update and the incumbent after it."""
        return self._size + 1

    def ask(self) -> Proposal:
        """The next queued candidate; when all are out, a sample of the kernel whose turn comes next."""
        with self._single_thread():
            draw = self._queue.popleft() if self._queue else self._draw_ahead()
            if not self._mixed.is_finite(draw.solution):
                draw = self._replace(draw)
        self.num_asked += 1
        return self._ledger.open(self._box.from_unit(self._mixed.unit_of(draw.solution)), draw)

    def tell(self, results: Sequence[Result]) -> None:
        """Take results in any number; update every kernel that then has all it needs."""
        for returned in self._ledger.close(results, self.tell_size):
            self._take(returned)
            with self._single_thread():
                while self._is_ready():
                    self._update()

    def _take(self, returned: Returned[Draw]) -> None:
        draw, kernel = returned.memory, self._kernels[returned.memory.kernel]
        if returned.fitness is not None:
            rows = np.array([*self._seen, returned.fitness])
            self._seen = [tuple(rows.min(axis=0).tolist()), tuple(rows.max(axis=0).tolist())]
        if draw.epoch != kernel.epoch:
            return
        if draw.role == "sample":
            kernel.batch.append(returned)
        elif draw.role == "incumbent":
            kernel.incumbent = returned.fitness if returned.violation == 0 else None
            kernel.is_known = True

    def _is_ready(self) -> bool:
        """Whether the current kernel has its samples and all others have a known incumbent."""
        current = self._upcoming(0)
        others = all(kernel.is_known for index, kernel in enumerate(self._kernels) if index != current)
        return others and len(self._kernels[current].batch) >= self._size

    def _update(self) -> None:
        current = self._upcoming(0)
        kernel = self._kernels[current]
        batch = sorted(kernel.batch, key=lambda one: one.index)
        kernel.batch, kernel.num_drawn = [], 0
        values = self._values(batch, current)
        broken = converged = False
        if not all(math.isinf(value) for value in values):
            try:
                kernel.library.tell([(self._solution(one), value) for one, value in zip(batch, values)])
                converged = self._mixed.has_normal and bool(kernel.library.should_stop())
            except np.linalg.LinAlgError:
                broken = True
        if broken or (converged and self._restarts):
            self._restart(current)
        self._enqueue_incumbent(current)
        self._order.popleft()
        self._enqueue_samples(self._upcoming(0))

    def _values(self, batch: Sequence[Returned[Draw]], current: int) -> list[float]:
        """Values to minimise: minus the uncrowded improvement on the other kernels' incumbents; failures +inf."""
        others = [kernel.incumbent for index, kernel in enumerate(self._kernels) if index != current]
        front = staircase([*(one for one in others if one is not None), *self._retired])
        reference = self.problem.reference_point or tuple(learnt_reference(self._seen or [(0.0, 0.0)]).tolist())
        values = [
            None if one.fitness is None else -uncrowded_improvement(one.fitness, front, reference) for one in batch
        ]
        if any(one.violation > 0 for one in batch):
            return feasible_first(values, [one.violation for one in batch])
        return [math.inf if value is None else value for value in values]

    def _solution(self, returned: Returned[Draw]) -> Any:
        return self._mixed.solution_of(returned.genotype) if returned.diverged else returned.memory.solution

    def _upcoming(self, ahead: int) -> int:
        """The kernel that is updated after ``ahead`` others."""
        while len(self._order) <= ahead:
            self._order.extend(self._rng.permutation(self._num_kernels).tolist())
        return self._order[ahead]

    def _enqueue_samples(self, index: int) -> None:
        """Queue what the kernel's next update still needs."""
        while self._kernels[index].num_drawn < self._size:
            self._queue.append(self._sample(index))

    def _sample(self, index: int) -> Draw:
        kernel = self._kernels[index]
        kernel.num_drawn += 1
        return Draw(kernel.library.ask(), index, "sample", kernel.epoch)

    def _draw_ahead(self) -> Draw:
        """A sample of the next kernel that lacks some; with everything drawn, a uniform one nobody learns from."""
        passed: set[int] = set()
        ahead = 0
        while len(passed) < self._num_kernels:
            index = self._upcoming(ahead)
            if index not in passed and self._kernels[index].num_drawn < self._size:
                return self._sample(index)
            passed.add(index)
            ahead += 1
        rng = np.random.default_rng(derive_seed(self.problem.seed, "como_catcma", "surplus", self.num_asked))
        genotype = self._box.from_uniform(rng.random(len(self.problem.genes)))
        return Draw(self._mixed.solution_of(genotype), self._upcoming(0), "surplus", 0)

    def _enqueue_incumbent(self, index: int) -> None:
        kernel = self._kernels[index]
        kernel.is_known = False
        self._queue.append(Draw(self._mixed.centre_of(kernel.library), index, "incumbent", kernel.epoch))

    def _replace(self, draw: Draw) -> Draw:
        """Another draw for one that is not finite: its kernel's arithmetic broke down, so it starts again."""
        index = draw.kernel
        self._restart(index)
        self._queue = deque(one for one in self._queue if one.kernel != index)
        self._enqueue_incumbent(index)
        if index == self._upcoming(0):
            self._enqueue_samples(index)
        return self._queue.popleft()

    def _restart(self, index: int) -> None:
        """A fresh distribution around a uniformly drawn mean; what the old one reached stays in the front."""
        kernel = self._kernels[index]
        if kernel.incumbent is not None:
            self._retired = staircase([*self._retired, kernel.incumbent])[-MAX_RETIRED:]
        epoch = kernel.epoch + 1
        seed = derive_seed(self.problem.seed, "como_catcma", index, epoch) % 2**32
        self._kernels[index] = Kernel(self._build(self._mean(index, epoch, False), seed), epoch)

    def _build(self, mean: Array, seed: int) -> Any:
        return self._mixed.build(mean.copy(), self.sigma, self._size, seed)

    def _mean(self, index: int, epoch: int, at_initial: bool) -> Array:
        if at_initial and index == 0:
            return self._box.to_unit(self._box.initial)
        rng = np.random.default_rng(derive_seed(self.problem.seed, "como_catcma", "mean", index, epoch))
        return rng.random(len(self.problem.genes))
