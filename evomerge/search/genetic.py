"""A genetic algorithm for genes of every kind, lists above all (the hops of a route), with one or more objectives.

- Survivors: of all told candidates the best ``population_size``, by non-dominated sorting and crowding distance
  (NSGA-II); with one objective that is the plain order of fitness. The rule is the same however many results one tell
  brings, so the optimizer works in generations (mu + lambda) and in steady state (mu + 1) alike. Between equals the
  younger one survives: on a plateau the search drifts instead of standing still.
- Children: parents by tournament; crossover with some probability; then a few edits (``mutations`` on average) of the
  lists, and as many of the genes that stand in no list. Values that nobody can change stay as they are.
- No genotype is asked twice, unless a bounded number of new draws finds nothing else.
- First generation: the search space's initial genotype and mutants of it, random genotypes, or half of each. Mutants
  have every number moved, so that crossover has something to work with, and their lists edited as children's are: early
  populations share long beginnings, which evaluators can use.
- Failures never survive. While nobody has, proposals are as in the first generation.
- Proposal i draws from the seed, i, and the survivors at that time; nothing else is remembered but what was asked.

References: Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II,
https://doi.org/10.1109/4235.996017; the operators' are in `gene_lists` and `gene_numbers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evomerge.search import gene_lists, gene_numbers
from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.front import crowding_distances, pareto_ranks
from evomerge.search.gene_box import GeneBox, is_constant
from evomerge.search.population import ga_population_size
from evomerge.search.proposal_ledger import ProposalLedger
from evomerge.terms import Array, GeneKind, derive_seed

MAX_REDRAWS = 50  # draws to find a genotype that was not asked before
FIRST_ETA = 3.0  # mutants of the first generation: a fifth of a range away on average


@dataclass(frozen=True)
class Member:
    """A survivor.

    Attributes:
        index: of its proposal.
        genotype: ``(G,)``, compact.
        fitness: ``(M,)``.
        violation: by how much it misses the constraints in sum.
    """

    index: int
    genotype: Array
    fitness: tuple[float, ...]
    violation: float = 0.0


class GeneticAlgorithm(Optimizer):
    """See the module docstring.

    Args:
        problem: any genes, any number of objectives.
        population_size: survivors, and candidates of a generation; ``auto`` = half the square root of the budget with
            one objective, a tenth of it with several, between 8 and 50.
        crossover_probability: chance that a child has two parents.
        mutations: average number of edits of a child's lists, and of its other genes.
        tournament: how many survivors compete to be a parent.
        initial: of what the first generation is made.
        crossover_eta: distribution index of the crossover of numbers.
        mutation_eta: distribution index of the mutation of numbers.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        crossover_probability: float,
        mutations: float,
        tournament: int,
        initial: Literal["initial", "random", "half"],
        **etas: float,  # crossover_eta, mutation_eta
    ) -> None:
        super().__init__(problem)
        auto = ga_population_size(problem.evaluations, problem.num_objectives)
        self._population_size = auto if population_size == "auto" else population_size
        self._crossover_probability = crossover_probability
        self._mutations = mutations
        self._tournament = tournament
        self._initial_kind = initial
        self._crossover_eta, self._mutation_eta = etas["crossover_eta"], etas["mutation_eta"]
        self._box = box = GeneBox(problem.genes)
        # A category's range is that of its choices, whatever the gene says.
        self._genes = tuple(
            replace(gene, low=float(low), high=float(high)) for gene, low, high in zip(problem.genes, box.low, box.high)
        )
        self._lists = tuple(found for found in gene_lists.find_lists(problem.genes) if found.num_choices > 0)
        self._loose = tuple(at for at, gene in enumerate(self._genes) if not gene.sequence and not is_constant(gene))
        self._initial = self._compact(box.initial)
        self._ledger: ProposalLedger[None] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )
        self._asked: set[bytes] = set()
        self._members: list[Member] = []  # best first

    @property
    def population_size(self) -> int:
        """Survivors, and candidates of one generation."""
        return self._population_size

    def ask(self) -> Proposal:
        """A genotype of the first generation, or a child of survivors."""
        index = self._ledger.next_index
        rng = np.random.default_rng(derive_seed(self.problem.seed, "ga", index))
        for _ in range(MAX_REDRAWS):
            genotype, parents = self._draw(index, rng)
            if genotype.tobytes() not in self._asked:
                break
        self._asked.add(genotype.tobytes())
        self.num_asked += 1
        return replace(self._ledger.open(genotype, None), parent_indices=parents)

    def tell(self, results: Sequence[Result]) -> None:
        """Let the results compete with the survivors."""
        members = list(self._members)
        for returned in self._ledger.close(results, self.tell_size):
            if returned.fitness is not None:
                genotype = self._compact(np.clip(returned.genotype, self._box.low, self._box.high))
                self._asked.add(genotype.tobytes())
                fitness = tuple(float(value) for value in returned.fitness)
                members.append(Member(returned.index, genotype, fitness, returned.violation))
        self._members = survivors(members, self.population_size)

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[Array, tuple[int, ...]]:
        """A genotype and the proposals it descends from."""
        if index < self.population_size or not self._members:
            return self._first_genotype(index, rng), ()
        mother = self._parent(rng)
        child = mother.genotype.copy()
        parents: tuple[int, ...] = (mother.index,)
        if len(self._members) > 1 and rng.random() < self._crossover_probability:
            father = self._parent(rng, other_than=mother)
            self._cross(child, father.genotype, rng)
            parents = (mother.index, father.index)
        self._mutate(child, rng, is_crossed=len(parents) > 1)
        return child, parents

    def _first_genotype(self, index: int, rng: np.random.Generator) -> Array:
        is_random = self._initial_kind == "random" or (self._initial_kind == "half" and index % 2 == 1)
        genotype = self._initial.copy()
        if is_random:
            for the_list in self._lists:
                the_list.write(gene_lists.random_items(the_list, rng), genotype)
            for at in self._loose:
                genotype[at] = gene_numbers.random_value(self._genes[at], rng)
        elif index > 0 or genotype.tobytes() in self._asked:
            self._mutate(genotype, rng)
            for at in self._loose:
                if self._genes[at].kind is not GeneKind.CATEGORY:
                    genotype[at] = gene_numbers.mutated(self._genes[at], float(genotype[at]), FIRST_ETA, rng)
        return genotype

    def _parent(self, rng: np.random.Generator, other_than: Member | None = None) -> Member:
        """The best of a few survivors drawn at random; survivors are listed best first."""
        pool = [member for member in self._members if member is not other_than]
        return pool[int(rng.integers(len(pool), size=self._tournament).min())]

    def _cross(self, child: Array, other: Array, rng: np.random.Generator) -> None:
        for the_list in self._lists:
            the_list.write(gene_lists.cross(the_list.items(child), the_list.items(other), the_list, rng), child)
        for at in self._loose:
            value = gene_numbers.crossed(self._genes[at], float(child[at]), float(other[at]), self._crossover_eta, rng)
            child[at] = value

    def _mutate(self, child: Array, rng: np.random.Generator, is_crossed: bool = False) -> None:
        """Edits lists and other genes; at least one of anything, unless the child has two parents already."""
        in_lists = int(rng.poisson(self._mutations)) if self._lists else 0
        in_loose = int(rng.poisson(self._mutations)) if self._loose else 0
        if not is_crossed and in_lists + in_loose == 0:
            in_lists, in_loose = (1, 0) if self._lists else (0, 1)
        for _ in range(in_lists):
            the_list = self._lists[int(rng.integers(len(self._lists)))]
            the_list.write(gene_lists.edit(the_list.items(child), the_list, rng), child)
        hit = rng.choice(len(self._loose), size=min(in_loose, len(self._loose)), replace=False) if in_loose else ()
        for at in (self._loose[int(place)] for place in hit):
            child[at] = gene_numbers.mutated(self._genes[at], float(child[at]), self._mutation_eta, rng)

    def _compact(self, genotype: Array) -> Array:
        compact = np.array(genotype, dtype=np.float64) + 0.0  # no negative zeros: genotypes are compared by their bytes
        for the_list in self._lists:
            the_list.write(the_list.items(compact), compact)
        return compact


def survivors(members: Sequence[Member], count: int) -> list[Member]:
    """The best members, best first: by front, then by crowding distance, then the younger ones.

    Those that miss constraints come behind all others, by how much they miss.

    Args:
        members: in any order.
        count: how many to keep.
    """
    young_first = sorted(members, key=lambda member: -member.index)
    feasible = [member for member in young_first if member.violation == 0]
    others = [member for member in young_first if member.violation > 0]
    return [*_by_front(feasible), *sorted(others, key=lambda member: member.violation)][:count]


def _by_front(young_first: Sequence[Member]) -> list[Member]:
    if not young_first:
        return []
    fitness = np.array([member.fitness for member in young_first])
    ranks = pareto_ranks(fitness)
    kept: list[Member] = []
    for rank in range(int(ranks.max()) + 1):
        front = np.flatnonzero(ranks == rank)
        crowding = crowding_distances(fitness[front])
        ordered = sorted(range(len(front)), key=lambda at: -crowding[at])  # stable: equals stay young first
        kept += [young_first[int(front[at])] for at in ordered]
    return kept
