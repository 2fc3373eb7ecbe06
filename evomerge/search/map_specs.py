"""What is known of the MAP optimizers without importing them: settings, and what must fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.search.base import OptimizerSpec, Problem, Setting
from evomerge.search.expert_genes import expert_genes, free_genes
from evomerge.search.population import num_unknowns

PAPER = "Li et al. 2025, https://arxiv.org/abs/2406.07529"

_POPULATION = Setting(
    "population_size", "int_or_auto", "auto", "candidates between two fits; auto = 8, or the workers if more", low=1
)
_LINK = Setting(
    "link",
    "choice",
    "auto",
    "what stands around each quadratic; auto = sigmoid for values in [0, 1], else what predicts left-out points best",
    choices=("auto", "sigmoid", "softplus", "identity"),
)
_GENERATIONS = Setting(
    "surrogate_generations", "int", 60, "generations of NSGA-III on the quadratics, which costs no evaluation", low=1,
    high=10_000,
)  # fmt: skip
_SAMPLED_BOX = Setting(
    "sampled_box", "numbers_or_auto", "auto", "[low, high] of the first points, for every gene; auto = its range",
    count=2,
)  # fmt: skip
_BOUNDS = Setting(
    "bounds",
    "numbers_or_auto",
    "auto",
    "[low, high] where the front is looked for; auto = sampled_box; beyond it the quadratics are extrapolated",
    count=2,
)
_MAP_SETTINGS = (
    _POPULATION,
    Setting(
        "num_design",
        "int_or_auto",
        "auto",
        "first points, from which the first quadratics are fitted; auto = (genes + 1)(genes + 2), twice the unknowns, "
        "or three quarters of the budget where that is less",
        low=1,
    ),
    _SAMPLED_BOX,
    _BOUNDS,
    _LINK,
    _GENERATIONS,
)


def _map_objections(settings: Mapping[str, Any], problem: Problem) -> Iterator[tuple[str, str]]:
    genes = free_genes(problem.genes)
    needed = num_unknowns(len(genes))
    design = settings.get("num_design", "auto")
    if design != "auto" and design < needed:
        yield "optimizer.num_design", f"expected at least {needed}, the unknowns of a quadratic in {len(genes)} genes"
    if problem.evaluations is not None and problem.evaluations <= needed and not problem.warm_start:
        yield (
            "budget.evaluations",
            (
                f"a quadratic in {len(genes)} genes has {needed} unknowns, so {problem.evaluations} evaluations leave "
                "none to use it. Search fewer genes, allow more evaluations, or use another optimizer."
            ),
        )
    for key in ("sampled_box", "bounds"):
        box = settings.get(key, "auto")
        if box == "auto":
            continue
        outside = [gene for gene in genes if not max(box[0], gene.low) < min(box[1], gene.high)]
        if box[0] >= box[1]:
            yield f"optimizer.{key}", f"expected [low, high] with low below high, got {list(box)}"
        elif outside:
            gene = outside[0]
            yield (
                f"optimizer.{key}",
                (
                    f"[{box[0]:g}, {box[1]:g}] leaves nothing of gene {gene.name!r} ({gene.low:g} to {gene.high:g}); "
                    "widen it, or the gene's range in the search space"
                ),
            )


def _nested_objections(settings: Mapping[str, Any], problem: Problem) -> Iterator[tuple[str, str]]:
    groups = expert_genes(problem.genes)
    if len(groups) < 2:
        yield "optimizer.name", f"nested_map merges experts in pairs and needs at least 2, got {len(groups)}. Use map."
    parameters = list(dict.fromkeys(gene.name.split("/")[0] for gene in problem.genes if "/" in gene.name))
    if len(parameters) > 1:
        yield (
            "optimizer.name",
            (
                f"nested_map mixes experts by one coefficient each, but the space searches {', '.join(parameters)}. "
                "Search one of them, or use map."
            ),
        )
        return
    for gene in free_genes(problem.genes):
        if not (gene.low <= 0.0 < gene.high):
            yield (
                "optimizer.name",
                (
                    "nested_map needs genes that are coefficients of an expert, with 0 in their range and more above; "
                    f"{gene.name!r} goes from {gene.low:g} to {gene.high:g}. Search coefficients only, or use map."
                ),
            )
            return
    preferences = settings.get("preferences", "auto")
    if preferences != "auto" and (len(preferences) != problem.num_objectives or not sum(preferences) > 0):
        yield (
            "optimizer.preferences",
            (
                f"expected {problem.num_objectives} numbers, one for each objective, not all of them zero; "
                f"got {list(preferences)}"
            ),
        )
    first = len(groups) + settings.get("pair_points", 20)
    if problem.evaluations is not None and problem.evaluations < first:
        yield (
            "budget.evaluations",
            (
                f"{problem.evaluations} evaluations are fewer than {len(groups)} experts and one pair take ({first}); "
                f"the whole tree takes up to {nested_evaluations(len(groups), first - len(groups))}"
            ),
        )


def nested_evaluations(num_experts: int, pair_points: int) -> int:
    """Most evaluations of the whole tree: every expert, then for each pair its points and the chosen one."""
    return num_experts + (num_experts - 1) * (pair_points + 1)


MAP_SPECS = (
    OptimizerSpec(
        name="map",
        title="Quadratics fitted to every objective, and the front they predict, evaluated",
        target="evomerge.search.map_search:MapSearch",
        settings=_MAP_SETTINGS,
        multi_objective=True,
        max_genes=64,
        paper=PAPER,
        warm_start=True,
        objections=_map_objections,
        handles_constraints=False,
    ),
    OptimizerSpec(
        name="bayesian_map",
        title="MAP that samples more in the directions where its quadratics are wrong or unsure, for few genes",
        target="evomerge.search.bayesian_map:BayesianMap",
        settings=(
            *_MAP_SETTINGS,
            Setting("temperature", "float", 0.07, "of the softmax that shares points among directions", low=1e-6),
            Setting("doubt", "float", 0.5, "weight of the standard error beside the error of left-out points", low=0),
        ),
        multi_objective=True,
        min_genes=2,
        max_genes=8,
        paper=PAPER,
        warm_start=True,
        objections=_map_objections,
        handles_constraints=False,
    ),
    OptimizerSpec(
        name="nested_map",
        title="MAP on two experts at a time, pair by pair, for many experts",
        target="evomerge.search.nested_map:NestedMap",
        settings=(
            Setting(
                "population_size",
                "int_or_auto",
                "auto",
                "candidates between two fits; auto = 4, or the workers if more",
                low=1,
            ),
            Setting("pair_points", "int", 20, "candidates of each pair of experts or merges", low=7, high=10_000),
            Setting(
                "preferences",
                "numbers_or_auto",
                "auto",
                "weight of each objective when one merge of a pair is chosen; auto = equal",
                low=0,
            ),
            _LINK,
            _GENERATIONS,
        ),
        multi_objective=True,
        min_genes=2,
        max_genes=1000,
        paper=PAPER,
        objections=_nested_objections,
        handles_constraints=False,
    ),
)
