"""M2N2: merges of merges, with split points that are drawn, in an archive whose members compete for documents.

Proposals are lineages (``lineage.py``): a genotype is ``Lineage.genotype()``, of any length, and there are no genes.
The first K proposals are the seeds themselves, then random merges of two seeds fill the archive, then children of
members follow, one by one. Every proposal has a random generator of its own, seeded by the run and its number, and the
archive changes only with what is told, in the order of telling; so any number of children may be out at once, and the
same sequence of asks and tells gives the same proposals.

Reference: Abrantes et al. 2025, Competition and Attraction Improve Model Fusion, https://arxiv.org/abs/2508.16204.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.lineage import Chromosome, Cut, Lineage, check_chromosomes, crossover, whole
from evomerge.search.niche_archive import Capacity, NicheArchive
from evomerge.search.proposal_ledger import ProposalLedger
from evomerge.search.seed_gram import Noise
from evomerge.terms import Array, derive_seed


class M2n2(Optimizer):
    """Resource competition, attraction, and crossover at a drawn split point.

    Args:
        problem: with ``seeds``, no genes; its results carry ``document_scores``.
        population_size: members of the archive P.
        warm_up: random merges of seeds after the seeds themselves, ``auto`` = until the archive is full.
        competition: whether members compete for documents; False = a plain genetic algorithm.
        alpha: how strongly; below 1 the archive is less diverse.
        attraction: whether the second parent is drawn by what it adds to the first.
        split_point: whether interpolation weights turn around at a drawn parameter.
        capacity: of a document, ``one`` or ``best`` (of the members' scores on it).
        mutation_sigma: standard deviation of noise on every parameter of a child, 0 = none.
        chromosomes: parameters with split points of their own, empty = those of the problem, else all are one.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int = 20,
        warm_up: int | Literal["auto"] = "auto",
        competition: bool = True,
        alpha: float = 1.0,
        attraction: bool = True,
        split_point: bool = True,
        capacity: Capacity = "one",
        mutation_sigma: float = 0.0,
        chromosomes: Sequence[Chromosome] = (),
    ) -> None:
        super().__init__(problem)
        if problem.seeds is None:
            raise ValueError("M2N2 merges seed models: the problem has none")
        self._seeds = problem.seeds
        self._chromosomes = tuple(chromosomes) or problem.chromosomes or whole(self._seeds.size)
        check_chromosomes(self._chromosomes, self._seeds.size)
        self._population_size = population_size
        count = max(0, population_size - self._seeds.num_seeds) if warm_up == "auto" else warm_up
        self._first_child = self._seeds.num_seeds + count
        self._split_point, self._sigma = split_point, mutation_sigma
        self._rules = {
            "alpha": alpha if competition else 0.0,
            "attraction": attraction,
            "capacity": capacity,
        }
        self.archive: NicheArchive | None = None  # until the number of documents is known
        self._lineages: dict[int, Lineage] = {}
        self._ledger: ProposalLedger[None] = ProposalLedger(None, problem.num_objectives, problem.num_constraints)

    @property
    def population_size(self) -> int:
        """Members of the archive."""
        return self._population_size

    def lineage(self, index: int) -> Lineage:
        """Of a member of the archive, by the number of its proposal."""
        return self._lineages[index]

    def ask(self) -> Proposal:
        """A seed, a merge of two seeds, or a child of two members."""
        index = self._ledger.next_index
        rng = np.random.default_rng(derive_seed(self.problem.seed, type(self).__name__, index))
        count, size = self._seeds.num_seeds, self._seeds.size
        parents: tuple[int, ...] = ()
        if index < count:
            child = Lineage.of_seed(index, count, size)
        else:
            if index < self._first_child or self.archive is None or not self.archive.num_members:
                chosen = rng.choice(count, size=2, replace=count < 2)
                a, b = (Lineage.of_seed(int(seed), count, size) for seed in chosen)
            else:
                members = self.archive.members
                slots = self.archive.parents(rng)
                parents = tuple(member for member in (members[slot] for slot in slots) if member is not None)
                a, b = (self._lineages[parent] for parent in parents)
            child = crossover(a, b, [self._cut(rng, one) for one in self._chromosomes], self._seeds, self._chromosomes)
            if self._sigma > 0:
                child = child.mutated(Noise(derive_seed(self.problem.seed, "M2n2 noise", index), self._sigma))
        self.num_asked += 1
        return self._ledger.open(child.genotype(), None, parents)

    def tell(self, results: Sequence[Result]) -> None:
        """Let the results compete for the archive's slots, in ask order; failures do not."""
        scored = [result for result in results if result.fitness is not None]
        expected = None if self.archive is None else self.archive.num_documents
        rows: dict[int, Array] = {}
        for result in scored:
            rows[result.index] = self._row(result, expected)
            expected = len(rows[result.index])
        lineages = {result.index: self._read(result) for result in scored}
        for returned in self._ledger.close(results, self.tell_size):
            if returned.fitness is None:
                continue
            row = rows[returned.index]
            if self.archive is None:
                self.archive = NicheArchive(self._population_size, len(row), **self._rules)  # type: ignore[arg-type]
            slot = self.archive.add(returned.index, row)
            if slot is not None:
                self._lineages[returned.index] = lineages[returned.index]
                alive = self.archive.members
                self._lineages = {key: value for key, value in self._lineages.items() if key in alive}

    def _cut(self, rng: np.random.Generator, chromosome: Chromosome) -> Cut:
        """Both numbers are always drawn: without split points the rest of the sequence stays the same."""
        weight, split = float(rng.random()), int(rng.integers(chromosome.size))
        return Cut(split if self._split_point else chromosome.size, weight)

    def _read(self, result: Result) -> Lineage:
        try:
            lineage = Lineage.from_genotype(result.genotype)
        except ValueError as error:
            raise ValueError(f"proposal {result.index}: {error}") from None
        if (lineage.num_seeds, lineage.size) != (self._seeds.num_seeds, self._seeds.size):
            raise ValueError(f"proposal {result.index}: a lineage of other seeds")
        return lineage

    def _row(self, result: Result, expected: int | None) -> Array:
        scores = result.document_scores
        row = None if scores is None else np.array(scores, dtype=np.float64)
        if row is None or row.ndim != 1 or not len(row) or expected not in (None, len(row)):
            shape = "none" if row is None else f"shape {row.shape}"
            raise ValueError(f"proposal {result.index}: expected {expected or 'a row of'} document scores, got {shape}")
        if not np.all(np.isfinite(row)) or np.any(row < 0):
            raise ValueError(f"proposal {result.index}: document scores must be finite and not negative")
        return row
