"""GENOME and GENOME+: a small genetic algorithm over merges of experts, without and with swarm steps.

- First population: the search space's initial values, merges of two experts in equal shares (every pair once, in random
  order), the experts, then uniform draws.
- A candidate is a child or a mutant, by ``crossover_probability``. A child is the mean of two members weighted by their
  fitness, drawn in proportion to it; a mutant is a copy of any member with each gene moved by ``N(0, (sigma range)^2)``
  with probability ``mutation_rate`` (one gene at least), mirrored at the bounds. Where fitness is negative somewhere or
  a constraint is missed, ranks take its place (1 = worst).
- After each ``population_size`` results the next population is chosen from it and them: the best ``elite`` share, then
  winners of tournaments of three among the rest, each chosen once. Published: the number of candidates in a generation
  is itself random, half as many children as members at most plus the mutants (about half and half with the published
  rates, hence the default here).
- ``succession`` (GENOME+): every second candidate is instead a member moved as in Model Swarms (``model_swarms``), by
  its velocity, its own best place, the best and the worst place of all; it competes with where it was. Published: the
  members themselves move. The ensemble of the best members is no part of a search.
- Failed and stopped candidates never get into the population. While nobody has, candidates are uniform draws.

Reference: Zhang et al. 2025, Nature-Inspired Population-Based Evolution of Large Language Models,
https://arxiv.org/abs/2503.01155.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.gene_box import GeneBox, is_constant, reflect
from evomerge.search.model_swarms import blended
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.swarm import Key, Place, place_key
from evomerge.search.swarm_start import expert_points
from evomerge.terms import Array, derive_seed

TOURNAMENT = 3  # published, fixed in the code


@dataclass(frozen=True)
class Flight:
    """What a moved member carries on.

    Attributes:
        velocity: ``(G,)``.
        best: its best place before this one.
        moves: how often it moved.
    """

    velocity: Array
    best: Place
    moves: int


@dataclass(frozen=True)
class Member:
    """One of the population: where it is, its fitness, and how it came there (None = not by moving)."""

    place: Place
    fitness: float
    flight: Flight | None = None


class Genome(Optimizer):
    """See the module docstring.

    Args:
        problem: real genes, one objective.
        population_size: members, and candidates of a generation.
        crossover_probability: chance that a candidate is a child rather than a mutant.
        succession: whether every second candidate is a moved member (GENOME+).
        **rates: ``mutation_rate``, ``sigma``, ``elite``; of succession ``inertia``, ``cognitive``, ``social``,
            ``repel``, ``step``, ``step_decay``.
    """

    name = "genome"

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int,
        crossover_probability: float,
        succession: bool,
        **rates: float,
    ) -> None:
        super().__init__(problem)
        self._population_size = population_size
        self._crossover_probability = crossover_probability
        self._succession = succession
        self._rates = rates
        self._weights = np.array([rates["inertia"], rates["cognitive"], rates["social"], rates["repel"]])[:, None]
        self._box = GeneBox(problem.genes)
        self._free = np.array([not is_constant(gene) for gene in problem.genes])
        self._first = _first_population(problem, population_size)
        self._members: list[Member] = []  # best first
        self._told: list[Member | None] = []
        self._best: Place | None = None
        self._worst: Place | None = None
        self._selections = 0
        self._ledger: ProposalLedger[Flight | None] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )

    @property
    def population_size(self) -> int:
        """Members, and candidates of one generation."""
        return self._population_size

    def ask(self) -> Proposal:
        """One of the first population, a child, a mutant, or a moved member."""
        index = self._ledger.next_index
        rng = np.random.default_rng(derive_seed(self.problem.seed, self.name, index))
        parents: tuple[int, ...] = ()
        flight: Flight | None = None
        if index < self.population_size:
            unit = self._first[index]
        elif not self._members:
            unit = rng.random(len(self._free)) * self._free
        elif self._succession and index % 2 == 0:
            unit, flight, parents = self._moved(self._members[index // 2 % len(self._members)], rng)
        elif len(self._members) > 1 and rng.random() < self._crossover_probability:
            unit, parents = self._child(rng)
        else:
            mother = self._members[int(rng.integers(len(self._members)))]
            unit, parents = self._mutant(mother.place.unit, rng), (mother.place.index,)
        self.num_asked += 1
        return self._ledger.open(self._box.from_unit(unit), flight, parents)

    def tell(self, results: Sequence[Result]) -> None:
        """Choose the next population whenever as many results came as it has members."""
        for returned in self._ledger.close(results, self.tell_size):
            self._told.append(self._member(returned))
            if len(self._told) == self.population_size:
                pool = [*self._members, *(member for member in self._told if member is not None)]
                self._told.clear()
                self._members = self._select(pool)
                self._selections += 1

    def _member(self, returned: Returned[Flight | None]) -> Member | None:
        if returned.fitness is None:
            return None
        place = Place(
            returned.index, self._box.to_unit(returned.genotype), place_key(returned.fitness, returned.violation)
        )
        if self._best is None or place.key < self._best.key:
            self._best = place
        if self._worst is None or place.key > self._worst.key:
            self._worst = place
        return Member(place, float(returned.fitness[0]), returned.memory)

    def _select(self, pool: Sequence[Member]) -> list[Member]:
        """The elite, then winners of tournaments without replacement; best first."""
        ordered = sorted(pool, key=_order)
        num_elite = min(len(ordered), int(self._rates["elite"] * self.population_size))
        chosen, rest = ordered[:num_elite], ordered[num_elite:]
        rng = np.random.default_rng(derive_seed(self.problem.seed, self.name, "selection", self._selections))
        while rest and len(chosen) < self.population_size:
            drawn = rng.choice(len(rest), size=min(TOURNAMENT, len(rest)), replace=False)
            chosen.append(rest.pop(int(drawn.min())))
        return sorted(chosen, key=_order)

    def _child(self, rng: np.random.Generator) -> tuple[Array, tuple[int, ...]]:
        shares = member_shares(self._members)
        # Where nearly all have no share, the others are drawn as if they had a little.
        chances = (shares + 1e-9) / float(np.sum(shares + 1e-9))
        first, second = rng.choice(len(self._members), size=2, replace=False, p=chances)
        pair = chances[[first, second]] / float(chances[first] + chances[second])
        mother, father = self._members[first].place, self._members[second].place
        unit: Array = pair[0] * mother.unit + pair[1] * father.unit
        return unit, (mother.index, father.index)

    def _mutant(self, unit: Array, rng: np.random.Generator) -> Array:
        hit = self._free & (rng.random(len(unit)) < self._rates["mutation_rate"])
        if not hit.any():
            hit[rng.choice(np.flatnonzero(self._free))] = True
        return reflect(unit + np.where(hit, self._rates["sigma"] * rng.standard_normal(len(unit)), 0.0))

    def _moved(self, member: Member, rng: np.random.Generator) -> tuple[Array, Flight, tuple[int, ...]]:
        """Where a member goes, what it carries on, and the places that drew it."""
        assert self._best is not None
        assert self._worst is not None
        place = member.place
        if member.flight is None:
            other = self._members[int(rng.integers(len(self._members)))].place
            flight = Flight(other.unit - place.unit, place, 0)
        else:
            better = place.key < member.flight.best.key
            flight = Flight(member.flight.velocity, place if better else member.flight.best, member.flight.moves)
        own, here = flight.best, place.unit
        pulls = np.stack([flight.velocity, own.unit - here, self._best.unit - here, here - self._worst.unit])
        velocity = blended(pulls, self._weights * rng.random((4, 1)))
        moves = flight.moves + 1
        moved = here + self._rates["step"] * self._rates["step_decay"] ** moves * velocity
        velocity = np.where((moved < 0.0) | (moved > 1.0), 0.0, velocity)
        parents = tuple(sorted({place.index, own.index, self._best.index}))
        return np.clip(moved, 0.0, 1.0), Flight(velocity, own, moves), parents


def _order(member: Member) -> tuple[Key, int]:
    return member.place.key, member.place.index


def member_shares(members: Sequence[Member]) -> Array:
    """Weights ``(N,)`` that sum to 1: the fitness, or ranks where that makes no weights.

    Args:
        members: best first.
    """
    values = np.array([member.fitness for member in members])
    if float(values.min()) < 0.0 or float(values.max()) == 0.0 or any(member.place.key[0] > 0 for member in members):
        values = np.arange(len(members), 0, -1, dtype=np.float64)
    shares: Array = values / float(values.sum())
    return shares


def _first_population(problem: Problem, size: int) -> Array:
    """First candidates ``(size, G)`` in unit coordinates."""
    rng = np.random.default_rng(derive_seed(problem.seed, Genome.name, "start"))
    box, experts = GeneBox(problem.genes), expert_points(problem.genes)
    pairs = list(combinations(range(len(experts)), 2))
    rows = [box.to_unit(box.initial)]
    rows += [0.5 * (experts[pairs[at][0]] + experts[pairs[at][1]]) for at in rng.permutation(len(pairs))]
    rows += list(experts)
    free = np.array([not is_constant(gene) for gene in problem.genes], dtype=np.float64)
    rows += [rng.random(len(free)) * free for _ in range(size - len(rows))]
    return np.stack(rows[:size])
