"""A grid of elites: for each cell of behaviour the best candidate found, in one objective, the quality.

Behaviour is measured by the other objectives: a cell holds candidates that trade these off in the same way.

Reference: Mouret and Clune 2015, Illuminating search spaces by mapping elites, https://arxiv.org/abs/1504.04909.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.search.front import non_dominated
from evomerge.terms import Array

MARGIN = 0.15  # of a score, beyond the worst and the best expert (CycleQD, section 4)

Cell = tuple[int, ...]


@dataclass(frozen=True)
class Elite:
    """A candidate in an archive.

    Attributes:
        index: of its proposal.
        genotype: ``(G,)``.
        fitness: ``(M,)``.
        violation: by how much it misses the constraints in sum.
    """

    index: int
    genotype: Array
    fitness: tuple[float, ...]
    violation: float = 0.0


class EliteArchive:
    """One elite for each cell.

    Args:
        quality: number of the objective an elite is chosen by; the others are the axes.
        num_objectives: M.
        num_bins: bins of each axis.
    """

    def __init__(self, quality: int, num_objectives: int, num_bins: int) -> None:
        self.quality = quality
        self.axes = [axis for axis in range(num_objectives) if axis != quality]
        self._num_bins = num_bins
        self._ranges = np.tile([0.0, 1.0], (num_objectives, 1))
        self._cells: dict[Cell, Elite] = {}

    @property
    def elites(self) -> list[Elite]:
        """Members in the order in which their cells were first reached."""
        return list(self._cells.values())

    def cell_of(self, fitness: Sequence[float]) -> Cell:
        """Bin on each axis; what lies outside the range belongs to the outermost bin."""
        found = []
        for axis in self.axes:
            low, high = self._ranges[axis]
            share = (fitness[axis] - low) / (high - low) if high > low else 0.0
            found.append(int(min(max(share * self._num_bins, 0.0), self._num_bins - 1)))
        return tuple(found)

    def add(self, elite: Elite) -> bool:
        """Put a candidate into its cell if that is empty or holds a worse one; of equals the earlier stays.

        Returns:
            Whether it is a member now.
        """
        cell = self.cell_of(elite.fitness)
        holder = self._cells.get(cell)
        if holder is not None and self._rank(holder) >= self._rank(elite):
            return False
        self._cells[cell] = elite
        return True

    def set_ranges(self, ranges: Array) -> None:
        """Use other ranges ``(M, 2)`` of the objectives, and sort the members into the new bins."""
        if np.array_equal(ranges, self._ranges):
            return
        self._ranges = np.array(ranges, dtype=np.float64)
        members = sorted(self._cells.values(), key=lambda elite: elite.index)
        self._cells = {}
        for elite in members:
            self.add(elite)

    def _rank(self, elite: Elite) -> tuple[float, float]:
        return (-elite.violation, 0.0 if elite.violation > 0 else elite.fitness[self.quality])


class AxisRanges:
    """Ranges of the objectives: from the experts' scores where they are known, else learnt.

    Known: from 0.85 times the worst expert to 1.15 times the best one. Learnt: from the worst to the best value on the
    front found so far, and 0.15 of that width on both sides; worse candidates share the outermost bin.

    Args:
        num_objectives: M.
        expert_fitness: ``(E, M)``, empty where unknown.
    """

    def __init__(self, num_objectives: int, expert_fitness: Sequence[Sequence[float]] = ()) -> None:
        self.is_known = len(expert_fitness) > 0
        self._front: Array = np.empty((0, num_objectives))
        self.values = np.tile([0.0, 1.0], (num_objectives, 1))
        if self.is_known:
            scores = np.array(expert_fitness, dtype=np.float64)
            low, high = scores.min(axis=0), scores.max(axis=0)
            # For scores above zero these are 0.85 and 1.15 times; negated (lowered) metrics move outwards too.
            self.values = np.stack([low - MARGIN * np.abs(low), high + MARGIN * np.abs(high)], axis=1)

    def see(self, fitness: Sequence[float]) -> None:
        """Learn from one candidate ``(M,)``."""
        if self.is_known:
            return
        rows = np.vstack([self._front, np.asarray(fitness, dtype=np.float64)[None]])
        kept = non_dominated(rows)
        if not kept[-1]:
            return
        self._front = rows[kept]
        low, high = self._front.min(axis=0), self._front.max(axis=0)
        margin = MARGIN * (high - low)
        self.values = np.stack([low - margin, high + margin], axis=1)
