"""Specs of the optimizers that were published for merging experts in populations. Imports no optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.search.base import OptimizerSpec, Problem, Setting
from evomerge.search.expert_genes import free_genes
from evomerge.search.population import evogm_population_size

_DRAWS = Setting(
    "draws",
    "choice",
    "auto",
    "random factors of a step: one for all genes (particle) or one for each (gene); auto = one where the first swarm "
    "spans the search space, as it never leaves that span",
    choices=("auto", "particle", "gene"),
)


def _rate(name: str, default: float, description: str, high: float = 10.0) -> Setting:
    return Setting(name, "float", default, description, low=0, high=high)


def _evogm_objections(settings: Mapping[str, Any], problem: Problem) -> Iterator[tuple[str, str]]:
    size = settings.get("population_size", "auto")
    if size == "auto":
        generations = settings.get("rounds", 2) * (settings.get("iterations", 3) + 1)
        size = evogm_population_size(len(free_genes(problem.genes)), problem.evaluations, generations)
    if problem.evaluations is not None and problem.evaluations < size:
        yield (
            "budget.evaluations",
            (
                f"{problem.evaluations} evaluations are fewer than one generation of evogm ({size} candidates). "
                "Allow more evaluations or set a smaller optimizer.population_size."
            ),
        )


SWARM_SPECS = (
    OptimizerSpec(
        name="pso",
        title="PSO-Merging: a particle swarm that begins at the experts",
        target="evomerge.search.pso:Pso",
        settings=(
            Setting(
                "population_size",
                "int_or_auto",
                "auto",
                "particles; auto = twice the experts plus one, fewer where the budget would not allow five steps",
                low=2,
            ),
            _rate("inertia", 0.2, "share of the velocity that is kept"),
            _rate("cognitive", 2.0, "pull towards a particle's own best place"),
            _rate("social", 2.0, "pull towards the swarm's best place"),
            _DRAWS,
            Setting("restarts", "bool", True, "put particles that come to rest at a random place"),
        ),
        paper="PSO-Merging, https://arxiv.org/abs/2508.19839",
        races_one=True,
        race_place=1.0,
    ),
    OptimizerSpec(
        name="model_swarms",
        title="Model Swarms: particles drawn to the best places and away from the worst one",
        target="evomerge.search.model_swarms:ModelSwarms",
        settings=(
            Setting(
                "population_size",
                "int_or_auto",
                "auto",
                "particles; auto = 20, or an eighth of the budget where that is less, at least 8",
                low=2,
            ),
            _rate("inertia", 0.2, "weight of the velocity"),
            _rate("cognitive", 0.3, "weight of the way to a particle's own best place"),
            _rate("social", 0.4, "weight of the way to the swarm's best place"),
            _rate("repel", 0.05, "weight of the way from the worst place of all"),
            _rate("step", 0.8, "length of the first step, in mean directions"),
            _rate("step_decay", 0.95, "factor of the step length after each move", high=1.0),
            _rate("min_step", 0.1, "least step length"),
            Setting("extrapolate", "bool", False, "let first points lie beyond an expert, as the published code does"),
            _DRAWS,
            Setting(
                "restart_after", "int", 5, "results of a particle without a better place before it returns to it", low=1
            ),
            Setting("patience", "int", 10, "results of each particle without a better merge before the end; 0 = never",
                    low=0),
        ),
        paper="Feng et al. 2025, https://arxiv.org/abs/2410.11163",
        races_one=True,
        race_place=1.0,
    ),
    OptimizerSpec(
        name="genome",
        title="GENOME: fitness-weighted means and mutants of experts; GENOME+ with succession",
        target="evomerge.search.genome:Genome",
        settings=(
            Setting("population_size", "int", 10, "members, and candidates of a generation", low=2),
            Setting("crossover_probability", "float", 0.5, "chance of a child rather than a mutant", low=0, high=1),
            Setting("mutation_rate", "float", 0.1, "chance that a mutant's gene moves; one always does", low=0, high=1),
            Setting("sigma", "float", 0.05, "deviation of a mutation as a fraction of the range", low=0, high=1),
            Setting("elite", "float", 0.1, "share of the population that is kept without a tournament", low=0, high=1),
            Setting("succession", "bool", False, "let every second candidate be a moved member (GENOME+)"),
            _rate("inertia", 0.2, "of succession: weight of the velocity"),
            _rate("cognitive", 0.2, "of succession: weight of the way to a member's own best place"),
            _rate("social", 0.2, "of succession: weight of the way to the best place"),
            _rate("repel", 0.1, "of succession: weight of the way from the worst place"),
            _rate("step", 0.5, "of succession: step length"),
            _rate("step_decay", 0.95, "of succession: factor of the step length after each move", high=1.0),
        ),
        paper="Zhang et al. 2025, https://arxiv.org/abs/2503.01155",
        races_one=True,
        race_place=1.0,
    ),
    OptimizerSpec(
        name="evogm",
        title="EvoGM: networks trained on the fly turn bad merges into good ones",
        target="evomerge.search.evogm:EvoGm",
        settings=(
            Setting(
                "population_size",
                "int_or_auto",
                "auto",
                "candidates of a generation; auto = twice the genes, at least 8, fewer where the rounds would not fit",
                low=4,
            ),
            Setting("iterations", "int", 3, "generations of the networks before the basis shifts", low=1, high=1000),
            Setting("rounds", "int", 2, "rounds until the basis is the genes again, published: until the end", low=1),
            Setting("winners", "float", 0.3, "share of a round's history that is good", low=0.01, high=0.99),
            Setting("fresh_generators", "bool", False, "train new networks in each iteration, not in each round"),
            Setting("width", "int", 128, "of the networks' first layer; the middle ones are twice as wide", low=1,
                    high=4096),
            _rate("cycle_weight", 100.0, "of the loss of going there and back", high=1e6),
            _rate("target_weight", 1.0, "of the distance from the mean of the good ones", high=1e6),
            Setting("learning_rate", "float", 1e-4, "of Adam", low=1e-8, high=1),
            Setting("training_steps", "int", 200, "of Adam in each iteration", low=1, high=100_000),
        ),
        max_genes=128,
        paper="EvoGM, https://arxiv.org/abs/2605.29295",
        objections=_evogm_objections,
        races_one=True,
        race_place=1.0,
    ),
)  # fmt: skip
