"""The ask/tell contract every optimizer keeps.

Order and ownership
- ``ask`` draws one proposal; proposals are numbered 0, 1, 2, ... in ask order over the life of the optimizer.
- ``tell`` takes ``tell_size`` results (any number when ``tell_size`` is 1), in ask order within the batch, each
  proposal at most once. It leaves its arguments untouched.
- The run log is the only saved state: a new optimizer built with the same arguments that sees the same sequence of ask
  and tell calls gives the same proposals, bit for bit. No optimizer touches the global random state.
- Fitness is maximised. A failed candidate is told as ``fitness=None``; each optimizer maps that to its own worst rank.
  NaN and infinities are never told.
- A candidate that was stopped before its last document (racing) is told as ``fitness=None`` with a ``standing``. It is
  worse than every complete candidate it is ranked with and better than a failure; see `stopped_last`. An optimizer that
  does not look at ``standing`` takes it for a failure, which is never a parent.
- Constraints: every optimizer prefers a candidate that keeps all of them to one that does not, and of two that do not
  the one that misses them by less in sum; fitness decides among those that keep them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.search.lineage import Chromosome
from evomerge.search.seed_gram import Gram
from evomerge.terms import Array, Gene, GeneKind


@dataclass(frozen=True)
class Proposal:
    """A genotype to evaluate. ``genotype`` is inside the genes' bounds, whole where the gene is.

    ``note`` holds what the optimizer expected of it, for people; it is logged and never read back.
    """

    index: int
    genotype: Array
    parent_indices: tuple[int, ...] = ()
    note: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The fitness of a proposal, ``(M,)`` maximised, or None for a failure or a stopped candidate.

    ``constraints`` has one number for each constraint of the problem: zero or less where it is kept, else by how much
    it is missed. A failure has none.

    ``standing`` is where a stopped candidate stands among stopped ones: tuples compare first number first, larger is
    better; None for all others.

    ``genotype`` is what was evaluated; it differs from the proposal's only when a replay on other hardware diverged.

    ``document_scores`` ``(D,)`` are larger = better and not negative, in the same order of documents in every result;
    told to optimizers with ``OptimizerSpec.uses_document_scores``, None for a failure.
    """

    index: int
    genotype: Array
    fitness: tuple[float, ...] | None
    constraints: tuple[float, ...] = ()
    standing: tuple[float, ...] | None = None
    document_scores: Array | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Problem:
    """What an optimizer is built for.

    Attributes:
        genes: G genes.
        num_objectives: M, the length of every told fitness.
        seed: the only source of randomness.
        evaluations: how many evaluations the budget allows, None when only time limits it.
        noisy: True when candidates are scored on a subset of documents that may change or is small.
        workers: how many candidates are evaluated at once.
        num_constraints: the length of every told result's ``constraints``.
        reference_point: ``(M,)``, the corner from which hypervolume counts, in the units of the told fitness; empty =
            unknown, then optimizers that need one learn it.
        expert_fitness: ``(E, M)`` in the units of the told fitness, empty where the experts were not scored before.
        num_documents: of each objective, how many documents its value is the mean of, 0 = unknown; empty = all unknown.
        warm_start: whether the optimizer is told evaluations of another run (``know``) before the first ask.
        seeds: models that proposals are combinations of, for optimizers with ``OptimizerSpec.merges_seeds``; then there
            are no genes.
        chromosomes: with seeds, parameters that crossovers split on their own; empty = all are one.
    """

    genes: tuple[Gene, ...]
    num_objectives: int
    seed: int
    evaluations: int | None = None
    noisy: bool = False
    workers: int = 1
    num_constraints: int = 0
    reference_point: tuple[float, ...] = ()
    expert_fitness: tuple[tuple[float, ...], ...] = ()
    num_documents: tuple[int, ...] = ()
    warm_start: bool = False
    seeds: Gram | None = None
    chromosomes: tuple[Chromosome, ...] = ()


@dataclass(frozen=True)
class Setting:
    """One setting of an optimizer that a user may write in the experiment's ``optimizer`` mapping."""

    name: str
    kind: str  # "float" | "int" | "bool" | "choice" | "numbers" | one of these + "_or_auto"
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    count: int | None = None  # how many of "numbers", None = any


Objections = Callable[[Mapping[str, Any], Problem], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class OptimizerSpec:
    """What evomerge knows of an optimizer without importing its library.

    Attributes:
        name: as written in experiments.
        title: one line for people.
        target: ``module:Class``.
        settings: what a user may set.
        gene_kinds: kinds of genes it handles.
        multi_objective: whether it handles more than one objective.
        min_objectives: fewest objectives it handles.
        max_objectives: most objectives it handles, None = any number.
        uses_experts: whether it makes use of ``Problem.expert_fitness``, so that a run scores the experts first.
        min_genes: fewest genes it handles.
        max_genes: most genes it handles, None = any number.
        steady_state: whether results may be told one by one as they arrive.
        paper: where it is described.
        warm_start: whether it can ``know`` another run's evaluations.
        objections: gives further (key, message) reasons why it cannot work.
        handles_constraints: whether it takes results with ``constraints``.
        races_one: whether candidates of one objective may be stopped before their last document: it ranks them, or
            learns nothing.
        races_many: the same with several objectives.
        race_place: with one objective, which of the best candidates so far the others race against, in populations:
            the last one that the optimizer learns from as a good one; 0 = the very best.
        uses_document_scores: whether results must carry ``Result.document_scores``.
        merges_seeds: whether it needs ``Problem.seeds``: genotypes are those of ``Lineage``, of any length, not genes.
        takes_estimates: whether fitness may be estimated, in another way from one generation to the next: it ranks
            candidates of a generation, at most with parents, and models no values.
    """

    name: str
    title: str
    target: str  # "module:Class"
    settings: tuple[Setting, ...] = ()
    gene_kinds: frozenset[GeneKind] = field(default_factory=lambda: frozenset({GeneKind.REAL}))
    multi_objective: bool = False
    min_objectives: int = 1
    max_objectives: int | None = None
    uses_experts: bool = False
    min_genes: int = 1
    max_genes: int | None = None
    steady_state: bool = True
    paper: str = ""
    warm_start: bool = False
    objections: Objections | None = None
    handles_constraints: bool = True
    races_one: bool = False
    races_many: bool = False
    race_place: float = 0.0
    uses_document_scores: bool = False
    merges_seeds: bool = False
    takes_estimates: bool = False


class Optimizer(ABC):
    """Base of all optimizers. See the module docstring for the contract."""

    def __init__(self, problem: Problem, **settings: Any) -> None:
        self.problem = problem
        self.num_asked = 0

    @property
    @abstractmethod
    def population_size(self) -> int:
        """Candidates of one generation."""

    @property
    def tell_size(self) -> int:
        """How many results one ``tell`` takes: exactly this many, or any number when 1."""
        return 1

    @abstractmethod
    def ask(self) -> Proposal:
        """Draw the next proposal.

        Raises:
            SearchExhausted: there is nothing left to propose.
        """

    @abstractmethod
    def tell(self, results: Sequence[Result]) -> None:
        """Learn from results.

        Raises:
            ValueError: wrong number of results, an unknown or repeated index, a non-finite fitness.
        """

    def know(self, genotypes: Array, fitness: Array) -> None:
        """Learn from evaluations of another run, before the first ask.

        Args:
            genotypes: ``(K, G)``.
            fitness: ``(K, M)`` maximised.

        Raises:
            NotImplementedError: this optimizer learns only from what it asked; see ``OptimizerSpec.warm_start``.
        """
        raise NotImplementedError(f"{type(self).__name__} learns only from its own proposals")

    def stop_reason(self) -> str | None:
        """Why going on is pointless, or None. Optimizers that restart themselves never stop."""
        return None


class SearchExhausted(Exception):
    """The optimizer has proposed everything it can (for example a finite grid)."""
