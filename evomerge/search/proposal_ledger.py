"""Which proposals are out: numbers them, remembers what an optimizer needs of each, and checks what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from evomerge.search.base import Proposal, Result
from evomerge.terms import Array

Memory = TypeVar("Memory")


@dataclass(frozen=True)
class Returned(Generic[Memory]):
    """A proposal that came back.

    Attributes:
        index: its number.
        memory: what the optimizer stored with it.
        genotype: what was evaluated ``(G,)``.
        fitness: ``(M,)`` or None for a failure.
        diverged: whether something else than the proposal was evaluated (a replay on other hardware).
        constraints: zero or less where kept, one number for each constraint; empty for a failure.
        standing: where a stopped candidate stands among stopped ones; None for all others.
    """

    index: int
    memory: Memory
    genotype: Array
    fitness: tuple[float, ...] | None
    diverged: bool
    constraints: tuple[float, ...] = ()
    standing: tuple[float, ...] | None = None

    @property
    def violation(self) -> float:
        """By how much the constraints are missed in sum; zero where all are kept."""
        return math.fsum(max(0.0, value) for value in self.constraints)


class ProposalLedger(Generic[Memory]):
    """Open proposals by index.

    Args:
        num_genes: G, None where genotypes have any length.
        num_objectives: M.
        num_constraints: numbers beside the fitness of every result.
    """

    def __init__(self, num_genes: int | None, num_objectives: int, num_constraints: int = 0) -> None:
        self._num_genes = num_genes
        self._num_objectives = num_objectives
        self._num_constraints = num_constraints
        self._open: dict[int, tuple[Array, Memory]] = {}
        self._next = 0

    @property
    def next_index(self) -> int:
        """The index the next proposal will have."""
        return self._next

    def open(self, genotype: Array, memory: Memory, parents: tuple[int, ...] = ()) -> Proposal:
        """Number a new proposal and remember it until it is told."""
        proposal = Proposal(self._next, genotype, parents)
        self._open[self._next] = (genotype.copy(), memory)
        self._next += 1
        return proposal

    def close(self, results: Sequence[Result], tell_size: int) -> list[Returned[Memory]]:
        """Take back proposals, all of them or none.

        Args:
            results: at least one; exactly ``tell_size`` unless that is 1.
            tell_size: the optimizer's.

        Returns:
            The results in ask order.

        Raises:
            ValueError: wrong number of results, an unknown or repeated index, a wrong shape, a non-finite number.
        """
        if not results or (tell_size != 1 and len(results) != tell_size):
            expected = "at least one result" if tell_size == 1 else f"{tell_size} results"
            raise ValueError(f"tell expected {expected}, got {len(results)}")
        indices = [result.index for result in results]
        if len(set(indices)) != len(indices):
            raise ValueError(f"a proposal is told twice in one batch: indices {indices}")
        for result in results:
            self._check(result)
        return [self._take(result) for result in sorted(results, key=lambda result: result.index)]

    def _check(self, result: Result) -> None:
        if result.index not in self._open:
            state = "was told before" if 0 <= result.index < self._next else "was never asked"
            raise ValueError(f"proposal {result.index} {state}")
        genotype = np.asarray(result.genotype)
        expected = genotype.size if self._num_genes is None else self._num_genes
        if genotype.shape != (expected,) or not np.all(np.isfinite(genotype)):
            raise ValueError(f"proposal {result.index}: genotype must be {expected} finite numbers")
        if result.standing is not None and (result.fitness or not all(map(math.isfinite, result.standing))):
            raise ValueError(f"proposal {result.index}: a stopped candidate has a finite standing and no fitness")
        if result.fitness is None:
            return
        if len(result.fitness) != self._num_objectives:
            raise ValueError(
                f"proposal {result.index}: expected {self._num_objectives} fitness values, got {len(result.fitness)}"
            )
        if not all(math.isfinite(value) for value in result.fitness):
            raise ValueError(
                f"proposal {result.index}: fitness must be finite, got {result.fitness}; tell failures as None"
            )
        if len(result.constraints) != self._num_constraints or not all(map(math.isfinite, result.constraints)):
            raise ValueError(
                f"proposal {result.index}: expected {self._num_constraints} finite constraint values, "
                f"got {result.constraints}"
            )

    def _take(self, result: Result) -> Returned[Memory]:
        proposed, memory = self._open.pop(result.index)
        genotype = np.array(result.genotype, dtype=np.float64)
        constraints = () if result.fitness is None else tuple(result.constraints)
        diverged = not np.array_equal(proposed, genotype)
        return Returned(result.index, memory, genotype, result.fitness, diverged, constraints, result.standing)
