"""Optuna's samplers behind the ask/tell contract, each on a study in memory that nobody else sees.

- Optuna minimises here: values told to the study are negated fitness (its NSGA-III assumes minimisation).
- Failures: for TPE and GP the trial's state is FAIL and no number is invented; the genotype teaches nothing. NSGA-II
  and NSGA-III count completed trials to know when a generation is full, so there a failure completes with +inf in
  every objective: it is dominated by everything that has a fitness, and the generations stay in step with ours.
- A candidate that was stopped (racing) is a PRUNED trial for TPE with one objective, which puts it behind all complete
  ones; to NSGA it is a failure and never a parent.
- Constraints are set on the trial before it is told; the samplers prefer trials that keep them (NSGA by constrained
  domination, TPE by its split, GP by the probability of feasibility).
- Determinism: TPE and GP get a fresh sampler for every ask, seeded by the run's seed and the proposal's index. NSGA's
  sampler lives as long as the optimizer; replaying the same asks and tells rebuilds it.
- Trials in flight are known to the samplers as running (TPE: constant liar; GP: batch acquisition).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import TrialState

from evomerge.search.base import Optimizer, Problem, Proposal, Result
from evomerge.search.gene_box import GeneBox
from evomerge.search.population import nsga_population_size, num_divisions
from evomerge.search.proposal_ledger import ProposalLedger, Returned
from evomerge.search.single_thread import SingleThread
from evomerge.terms import Array, Gene, GeneKind, derive_seed


def _distribution(gene: Gene) -> BaseDistribution:
    if gene.kind is GeneKind.CATEGORY:
        return CategoricalDistribution(range(len(gene.choices)))
    if gene.kind is GeneKind.INTEGER:
        return IntDistribution(round(gene.low), round(gene.high))
    return FloatDistribution(gene.low, gene.high)


class OptunaOptimizer(Optimizer):
    """Base: one study in memory, one trial for each proposal.

    Args:
        problem: any genes.
        population_size: candidates of a generation.
        propose_initial: make the genes' initial values the first proposal.
        threads: how to limit thread pools.
    """

    failure_is_worst = False

    def __init__(
        self, problem: Problem, population_size: int, propose_initial: bool, threads: Literal["blas", "all"] = "blas"
    ) -> None:
        super().__init__(problem)
        self._population_size = population_size
        self._propose_initial = propose_initial
        self._box = GeneBox(problem.genes)
        self._names = [f"g{i:05d}" for i in range(len(problem.genes))]
        self._distributions = {name: _distribution(gene) for name, gene in zip(self._names, problem.genes)}
        self._single_thread = SingleThread(threads)
        self._ledger: ProposalLedger[optuna.Trial] = ProposalLedger(
            len(problem.genes), problem.num_objectives, problem.num_constraints
        )
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._single_thread():
            self._study = optuna.create_study(
                directions=["minimize"] * problem.num_objectives, sampler=self._sampler(self._seed(0))
            )

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """A new sampler, seeded with 32 bits."""

    def _refresh(self, index: int) -> None:
        """Give the study a new sampler for proposal ``index``."""
        self._study.sampler = self._sampler(self._seed(index))

    def _seed(self, index: int) -> int:
        return derive_seed(self.problem.seed, type(self).__name__, index) % 2**32

    @property
    def population_size(self) -> int:
        """Candidates of one generation."""
        return self._population_size

    def ask(self) -> Proposal:
        """Let the sampler suggest the next genotype."""
        index = self._ledger.next_index
        with self._single_thread():
            self._refresh(index)
            trial = self._study.ask(self._distributions)
        self.num_asked += 1
        # Not Optuna's own queue: a queued trial never learns its generation, and NSGA repeats its first one.
        first = index == 0 and self._propose_initial
        genotype = self._box.initial if first else self._suggested(trial)
        return self._ledger.open(genotype, trial)

    def tell(self, results: Sequence[Result]) -> None:
        """Finish the results' trials, in ask order."""
        with self._single_thread():
            for returned in self._ledger.close(results, self.tell_size):
                self._finish(returned)

    def _add_known(self, genotypes: Array, fitness: Array) -> None:
        """Finished trials that were never asked here."""
        for genotype, values in zip(genotypes, fitness):
            inside = np.clip(genotype, self._box.low, self._box.high)
            self._study.add_trial(
                optuna.create_trial(
                    values=[-float(value) for value in values],
                    params=self._params(inside),
                    distributions=self._distributions,
                )
            )

    def _finish(self, returned: Returned[optuna.Trial]) -> None:
        values = self._values(returned.fitness)
        trial = returned.memory
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        for name, value in self._constraints(returned).items():
            trial.set_constraint(name, value)
        if returned.standing is not None and not self.failure_is_worst and self.problem.num_objectives == 1:
            # TPE sorts pruned trials by how far they came, then by value.
            value, *documents = returned.standing
            trial.report(-value, round(documents[0]) if documents else 0)
            state = TrialState.PRUNED
        if values is None or np.array_equal(returned.genotype, self._suggested(trial)):
            self._study.tell(trial, values, state=state)
            return
        # What was evaluated is not what the sampler suggested: its trial fails, a stand-in takes its place.
        attributes = self._study.get_trials(deepcopy=False)[trial.number].system_attrs
        self._study.tell(trial, state=TrialState.FAIL)
        stand_in = optuna.create_trial(
            state=state,
            values=values,
            params=self._params(returned.genotype),
            distributions=self._distributions,
            system_attrs=dict(attributes),
        )
        self._study.add_trial(stand_in)

    def _values(self, fitness: tuple[float, ...] | None) -> list[float] | None:
        """Values to minimise, None for a trial without any."""
        if fitness is not None:
            return [-float(value) for value in fitness]
        return [math.inf] * self.problem.num_objectives if self.failure_is_worst else None

    def _constraints(self, returned: Returned[optuna.Trial]) -> dict[str, float]:
        """Constraint values by name; a failure that has to complete misses all of them."""
        count = self.problem.num_constraints
        if returned.fitness is None:
            return {f"c{i}": math.inf for i in range(count)} if self.failure_is_worst else {}
        return {f"c{i}": float(value) for i, value in enumerate(returned.constraints)}

    def _suggested(self, trial: optuna.Trial) -> Array:
        params = trial.params  # a deep copy at every access
        return np.array([float(params[name]) for name in self._names], dtype=np.float64)

    def _params(self, genotype: Array) -> dict[str, float | int]:
        whole = [gene.kind is not GeneKind.REAL for gene in self.problem.genes]
        return {
            name: round(value) if is_whole else float(value)
            for name, value, is_whole in zip(self._names, genotype, whole)
        }


class Tpe(OptunaOptimizer):
    """Tree-structured Parzen estimator.

    Args:
        problem: any genes, any number of objectives.
        population_size: ``auto`` = the number of workers.
        num_initial_random: random proposals before the model is used.
        multivariate: model genes together instead of one by one; ``auto`` = with one objective.
        propose_initial: make the genes' initial values the first proposal.

    Reference: Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization; Watanabe 2023,
    https://arxiv.org/abs/2304.11127.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        num_initial_random: int,
        multivariate: bool | Literal["auto"],
        propose_initial: bool,
    ) -> None:
        self._num_initial_random = num_initial_random
        self._multivariate = problem.num_objectives == 1 if multivariate == "auto" else multivariate
        super().__init__(problem, problem.workers if population_size == "auto" else population_size, propose_initial)

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(
            n_startup_trials=self._num_initial_random, multivariate=self._multivariate, constant_liar=True, seed=seed
        )

    def know(self, genotypes: Array, fitness: Array) -> None:
        """Add evaluations of another run; they count as random candidates that need not be drawn."""
        self._add_known(genotypes, fitness)


class Gp(OptunaOptimizer):
    """Gaussian process with log expected (hypervolume) improvement; for few genes and a few hundred evaluations.

    Args:
        problem: any genes, any number of objectives.
        population_size: ``auto`` = the number of workers.
        num_initial_random: random proposals before the model is used.
        propose_initial: make the genes' initial values the first proposal.

    Reference: Ament et al. 2023, Unexpected Improvements to Expected Improvement, https://arxiv.org/abs/2310.20708.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        num_initial_random: int,
        propose_initial: bool,
    ) -> None:
        self._num_initial_random = num_initial_random
        size = problem.workers if population_size == "auto" else population_size
        super().__init__(problem, size, propose_initial, threads="all")

    def _sampler(self, seed: int) -> BaseSampler:
        return GPSampler(n_startup_trials=self._num_initial_random, seed=seed, warn_independent_sampling=False)

    def know(self, genotypes: Array, fitness: Array) -> None:
        """Add evaluations of another run; they count as random candidates that need not be drawn."""
        self._add_known(genotypes, fitness)


class Nsga2(OptunaOptimizer):
    """NSGA-II: non-dominated sorting, crowding distance, simulated binary crossover, polynomial mutation.

    Args:
        problem: any genes, any number of objectives.
        population_size: ``auto`` = a tenth of the budget, between 8 and 50.
        crossover_eta: distribution index of the crossover of numbers; larger stays nearer the parents. Choices are
            swapped.
        crossover_probability: chance that a child has two parents.
        mutation_eta: distribution index of polynomial mutation, applied to each gene with probability 1/G.
        propose_initial: make the genes' initial values the first proposal.

    Reference: Deb et al. 2002, A Fast and Elitist Multiobjective Genetic Algorithm,
    https://doi.org/10.1109/4235.996017.
    """

    failure_is_worst = True

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int | Literal["auto"],
        crossover_eta: float,
        crossover_probability: float,
        mutation_eta: float,
        propose_initial: bool,
    ) -> None:
        self._crossover_eta = crossover_eta
        self._crossover_probability = crossover_probability
        self._mutation_eta = mutation_eta
        size = nsga_population_size(problem.evaluations) if population_size == "auto" else population_size
        super().__init__(problem, size, propose_initial)

    def _refresh(self, index: int) -> None:
        """The sampler built first stays: it holds the random state of the whole search."""

    def _sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(
            population_size=self.population_size,
            mutation=PolynomialMutation(eta=self._mutation_eta),
            crossover=SBXCrossover(eta=self._crossover_eta),
            crossover_prob=self._crossover_probability,
            seed=seed,
        )


class Nsga3(Nsga2):
    """NSGA-III: as NSGA-II, but the last front is thinned by reference directions; for three objectives and more.

    The number of divisions of the reference simplex follows from the population, so that there are no more directions
    than candidates.

    Reference: Deb and Jain 2014, An Evolutionary Many-Objective Optimization Algorithm Using Reference-Point-Based
    Nondominated Sorting Approach, Part I, https://doi.org/10.1109/TEVC.2013.2281535.
    """

    def _sampler(self, seed: int) -> BaseSampler:
        return NSGAIIISampler(
            population_size=self.population_size,
            mutation=PolynomialMutation(eta=self._mutation_eta),
            crossover=SBXCrossover(eta=self._crossover_eta),
            crossover_prob=self._crossover_probability,
            dividing_parameter=num_divisions(self.problem.num_objectives, self.population_size),
            seed=seed,
        )
