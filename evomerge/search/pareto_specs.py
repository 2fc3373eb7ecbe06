"""Specs of the optimizers for several objectives. Imports no optimizer library."""

from __future__ import annotations

from evomerge.search.base import OptimizerSpec, Setting
from evomerge.search.common_settings import (
    BATCH_POPULATION,
    CMA_SETTINGS,
    CMA_SIGMA,
    NUM_INITIAL_RANDOM,
    PROPOSE_INITIAL,
)
from evomerge.terms import GeneKind

_ALL_KINDS = frozenset(GeneKind)

PARETO_SPECS = (
    OptimizerSpec(
        name="cma_pareto",
        title="CMA-ES told Pareto rank, then exclusive hypervolume",
        target="evomerge.search.cma_pareto:CmaPareto",
        settings=(
            *CMA_SETTINGS,
            Setting(
                "archive_size",
                "int",
                200,
                "most members of the front that candidates are ranked against",
                low=0,
                high=10_000,
            ),
        ),
        multi_objective=True,
        min_objectives=2,
        paper="after Igel et al. 2007, https://doi.org/10.1162/evco.2007.15.1.1",
        races_many=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="como_catcma",
        title="Several CatCMA distributions that spread along the front of two objectives",
        target="evomerge.search.como_catcma:ComoCatCma",
        settings=(
            Setting(
                "kernels",
                "int_or_auto",
                "auto",
                "points that shall cover the front; auto = as many as the budget updates 12 times, from 3 to 10",
                low=2,
                high=100,
            ),
            Setting(
                "kernel_population",
                "int_or_auto",
                "auto",
                "candidates of one kernel's update; auto = 4 + floor(3 ln genes)",
                low=4,
            ),
            CMA_SIGMA,
            Setting("start_at_initial", "bool", True, "let one kernel start at the search space's initial values"),
            Setting("restarts", "bool", True, "let a converged kernel start again elsewhere"),
        ),
        gene_kinds=_ALL_KINDS,
        multi_objective=True,
        min_objectives=2,
        max_objectives=2,
        max_genes=500,
        paper="Hamano et al. 2025, https://arxiv.org/abs/2504.07884",
    ),
    OptimizerSpec(
        name="map_elites",
        title="MAP-Elites: the best of one objective for every trade-off of the others",
        target="evomerge.search.map_elites:MapElites",
        settings=(
            BATCH_POPULATION,
            NUM_INITIAL_RANDOM,
            PROPOSE_INITIAL,
            Setting("quality", "int", 0, "number of the objective that cells compete in, from 0", low=0),
            Setting("bins", "int", 10, "bins of each other objective", low=1, high=1000),
            Setting(
                "variation",
                "choice",
                "iso_line",
                "iso_line: a step of its own and one towards another elite; sbx: simulated binary crossover and "
                "polynomial mutation",
                choices=("iso_line", "sbx"),
            ),
            Setting("spread", "float", 0.1, "of iso_line: own step as a fraction of the range", low=0, high=1),
            Setting("reach", "float", 0.2, "of iso_line: step as a fraction of the distance", low=0, high=10),
            Setting("crossover_eta", "float", 20.0, "of sbx: larger = nearer to the parents", low=0, high=1000),
            Setting("mutation_eta", "float", 20.0, "of sbx: larger = smaller mutations", low=0, high=1000),
        ),
        gene_kinds=_ALL_KINDS,
        multi_objective=True,
        min_objectives=2,
        uses_experts=True,
        paper="Mouret and Clune 2015, https://arxiv.org/abs/1504.04909",
    ),
    OptimizerSpec(
        name="cycleqd",
        title="CycleQD: an archive of elites for each objective, which take turns",
        target="evomerge.search.cycleqd:CycleQd",
        settings=(
            BATCH_POPULATION,
            NUM_INITIAL_RANDOM,
            PROPOSE_INITIAL,
            Setting("bins", "int", 15, "bins of each axis", low=1, high=1000),
            Setting("alpha_low", "float", 0.5, "weight of the worst score in drawing parents", low=0, high=10),
            Setting("alpha_high", "float", 0.8, "weight of the best score in drawing parents", low=0, high=10),
            Setting("crossover_spread", "float", 0.03, "deviation of the parents' weights around 1", low=0, high=1),
            Setting("mutation_spread", "float", 0.1, "mutation as a fraction of each gene's range", low=0, high=1),
        ),
        gene_kinds=_ALL_KINDS,
        multi_objective=True,
        min_objectives=2,
        uses_experts=True,
        paper="Kuroki et al. 2025, https://arxiv.org/abs/2410.14735",
    ),
)
