"""What particle swarms share: whose turn it is, what each particle remembers, and what happens at the bounds.

- Proposal i belongs to particle i modulo the swarm's size. The first proposals are the particles' first places; after
  that a particle moves when its turn comes, with what is known by then. Told in generations that is the synchronous
  swarm of the papers; with results told one by one it is the asynchronous one, in which nobody waits for a slow one.
- A coordinate that would leave the box is put on its bound and loses its velocity there.
- Failed and stopped candidates are nobody's best or worst place: their particle goes on from where they were. While
  nobody has a place, proposals are uniform draws.
- Of two places the one that keeps the constraints, or misses them by less in sum, is better; then fitness decides.
- All in unit coordinates, which changes nothing: the rules are the same in every scale of each gene.

References: Kennedy and Eberhart 1995, Particle swarm optimization, https://doi.org/10.1109/ICNN.1995.488968.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.gene_box import GeneBox, is_constant
from evomerge.search.proposal_ledger import ProposalLedger
from evomerge.search.swarm_start import spans_box
from evomerge.terms import Array, derive_seed

Draws = Literal["auto", "particle", "gene"]
Key = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """A candidate with a fitness.

    Attributes:
        index: of its proposal.
        unit: ``(G,)`` unit coordinates.
        key: the smaller, the better: violation of the constraints, then minus the fitness where there is none.
    """

    index: int
    unit: Array
    key: Key


def place_key(fitness: Sequence[float], violation: float) -> Key:
    """The order of candidates with a fitness ``(1,)``; see ``Place.key``."""
    return (violation, 0.0 if violation > 0 else -float(fitness[0]))


@dataclass
class Particle:
    """One of the swarm.

    Attributes:
        unit: ``(G,)`` where it was asked last.
        velocity: ``(G,)``.
        last_index: proposal that asked it last, -1 = none.
        best: its best place so far.
        moves: how often it moved.
        stale: results since its best place got better.
    """

    unit: Array
    velocity: Array
    last_index: int = -1
    best: Place | None = None
    moves: int = 0
    stale: int = 0


class Swarm(Optimizer):
    """Base: subclasses say where particles begin and how fast they move.

    Args:
        problem: real genes, one objective.
        start: ``(P, G)`` first places in unit coordinates.
        velocities: ``(P, G)`` of the beginning.
        draws: whether the random factors of a step are one number for all genes (``particle``) or one for each
            (``gene``). With one number the swarm never leaves the affine hull of its first places; ``auto`` therefore
            takes one number only where that hull is the whole box.
    """

    name: ClassVar[str]

    def __init__(self, problem: Problem, start: Array, velocities: Array, draws: Draws) -> None:
        super().__init__(problem)
        self._box = GeneBox(problem.genes)
        self._free = np.array([not is_constant(gene) for gene in problem.genes], dtype=np.float64)
        rows = zip(start * self._free, velocities * self._free)
        self._particles = [Particle(unit, velocity) for unit, velocity in rows]
        self._per_gene = draws == "gene" or (draws == "auto" and not spans_box(start, problem.genes))
        self._best: Place | None = None
        self._worst: Place | None = None
        self._since_best = 0
        self._ledger: ProposalLedger[int] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )

    @abstractmethod
    def _step(self, particle: Particle, best: Place, rng: np.random.Generator) -> Array:
        """Set the particle's velocity; the step ``(G,)`` it takes from where it is."""

    @property
    def population_size(self) -> int:
        """Particles."""
        return len(self._particles)

    def ask(self) -> Proposal:
        """The next particle's first place, or where it moves."""
        index = self._ledger.next_index
        number = index % len(self._particles)
        particle = self._particles[number]
        parents: tuple[int, ...] = ()
        if index >= len(self._particles):
            parents = self._move(particle, self._rng("move", index))
        particle.last_index = index
        self.num_asked += 1
        return self._ledger.open(self._box.from_unit(particle.unit), number, parents)

    def tell(self, results: Sequence[Result]) -> None:
        """Remember the best places, and the worst one."""
        for returned in self._ledger.close(results, self.tell_size):
            particle = self._particles[returned.memory]
            unit = self._box.to_unit(returned.genotype)
            if returned.diverged and particle.last_index == returned.index:
                particle.unit = unit.copy()
            particle.stale += 1
            self._since_best += 1
            if returned.fitness is None:
                continue
            place = Place(returned.index, unit, place_key(returned.fitness, returned.violation))
            if particle.best is None or place.key < particle.best.key:
                particle.best, particle.stale = place, 0
            if self._best is None or place.key < self._best.key:
                self._best, self._since_best = place, 0
            if self._worst is None or place.key > self._worst.key:
                self._worst = place

    def _rng(self, *parts: str | int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.problem.seed, self.name, *parts))

    def _move(self, particle: Particle, rng: np.random.Generator) -> tuple[int, ...]:
        """Moves the particle; the proposals that drew it there."""
        if self._best is None:
            self._scatter(particle, rng)
            return ()
        moved = particle.unit + self._step(particle, self._best, rng)
        outside = (moved < 0.0) | (moved > 1.0)
        particle.velocity = np.where(outside, 0.0, particle.velocity)
        particle.unit = np.clip(moved, 0.0, 1.0)
        particle.moves += 1
        own = () if particle.best is None else (particle.best.index,)
        return tuple(sorted({*own, self._best.index}))

    def _scatter(self, particle: Particle, rng: np.random.Generator) -> None:
        particle.unit = rng.random(len(particle.unit)) * self._free
        particle.velocity = np.zeros(len(particle.unit))

    def _factors(self, count: int, rng: np.random.Generator) -> Array:
        """Uniform random factors ``(count, 1)``, or ``(count, G)`` where each gene has its own."""
        return rng.random((count, len(self.problem.genes) if self._per_gene else 1))
