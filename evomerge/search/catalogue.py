"""All optimizers: what they are, which settings they take, and whether one fits a problem. Imports no such library.

A new optimizer is one file with an ``Optimizer`` subclass and one entry here; the contract tests cover it at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from evomerge.errors import InvalidInput, UserError, did_you_mean
from evomerge.errors import Problem as InputProblem
from evomerge.search.base import Optimizer, OptimizerSpec, Problem, Setting
from evomerge.search.common_settings import (
    BATCH_POPULATION,
    CHECKPOINT_POPULATION,
    CMA_POPULATION,
    CMA_SETTINGS,
    GA_INITIAL,
    GA_POPULATION,
    NSGA_POPULATION,
    NUM_INITIAL_RANDOM,
    PROPOSE_INITIAL,
    nsga_settings,
)
from evomerge.search.gene_box import is_constant
from evomerge.search.map_specs import MAP_SPECS
from evomerge.search.pareto_specs import PARETO_SPECS
from evomerge.search.population import cma_population_size, ga_population_size, nsga_population_size
from evomerge.search.seed_specs import SEED_SPECS
from evomerge.search.setting_values import expected_of, fits
from evomerge.search.swarm_specs import SWARM_SPECS
from evomerge.terms import GeneKind

ALL_KINDS = frozenset(GeneKind)


class SettingProblem(NamedTuple):
    """One reason why an optimizer cannot work as asked.

    Attributes:
        key: where it is in the experiment file, for example ``optimizer.sigma``.
        message: what was expected, what was found, and the likely fix.
    """

    key: str
    message: str


_ALL = (
    OptimizerSpec(
        name="cma_es",
        title="CMA-ES with a full covariance matrix",
        target="evomerge.search.cma_es:CmaEs",
        settings=(
            *CMA_SETTINGS,
            Setting(
                "lr_adapt",
                "bool_or_auto",
                "auto",
                "adapt learning rates to noise; auto = on when candidates are scored on a sample of documents",
            ),
        ),
        max_genes=500,
        paper="Hansen 2016, https://arxiv.org/abs/1604.00772; defaults of https://arxiv.org/abs/2403.13187",
        races_one=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="sep_cma",
        title="CMA-ES with a diagonal covariance, for hundreds to thousands of genes",
        target="evomerge.search.sep_cma:SepCma",
        settings=CMA_SETTINGS,
        min_genes=2,
        paper="Ros and Hansen 2008, https://inria.hal.science/inria-00287367",
        races_one=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="catcma",
        title="CatCMA with margin, for real, integer and category genes together",
        target="evomerge.search.catcma:CatCma",
        settings=CMA_SETTINGS,
        gene_kinds=ALL_KINDS,
        max_genes=500,
        paper="Hamano et al. 2025, https://arxiv.org/abs/2504.07884",
        races_one=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="xnes",
        title="Exponential natural evolution strategy",
        target="evomerge.search.xnes:Xnes",
        settings=CMA_SETTINGS,
        min_genes=2,
        max_genes=256,
        paper="Glasmachers et al. 2010, https://dl.acm.org/doi/10.1145/1830483.1830557",
        races_one=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="random",
        title="Independent uniform draws, the baseline",
        target="evomerge.search.random_search:RandomSearch",
        settings=(CHECKPOINT_POPULATION, PROPOSE_INITIAL),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        paper="Bergstra and Bengio 2012, https://www.jmlr.org/papers/v13/bergstra12a.html",
        races_one=True,
        races_many=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="sobol",
        title="Scrambled Sobol points, evenly spread",
        target="evomerge.search.sobol:Sobol",
        settings=(CHECKPOINT_POPULATION, PROPOSE_INITIAL),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        max_genes=21_201,
        paper="Sobol 1967, https://doi.org/10.1016/0041-5553(67)90144-9",
        races_one=True,
        races_many=True,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="tpe",
        title="Tree-structured Parzen estimator",
        target="evomerge.search.optuna_samplers:Tpe",
        settings=(
            BATCH_POPULATION,
            NUM_INITIAL_RANDOM,
            Setting("multivariate", "bool_or_auto", "auto", "model genes together; auto = with one objective"),
            PROPOSE_INITIAL,
        ),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        max_genes=1000,
        paper="Bergstra et al. 2011; Watanabe 2023, https://arxiv.org/abs/2304.11127",
        warm_start=True,
        races_one=True,
    ),
    OptimizerSpec(
        name="gp",
        title="Gaussian process with expected improvement, for few genes and evaluations",
        target="evomerge.search.optuna_samplers:Gp",
        settings=(BATCH_POPULATION, NUM_INITIAL_RANDOM, PROPOSE_INITIAL),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        max_genes=64,
        paper="Ament et al. 2023, https://arxiv.org/abs/2310.20708",
        warm_start=True,
    ),
    OptimizerSpec(
        name="nsga2",
        title="NSGA-II, for two or three objectives",
        target="evomerge.search.optuna_samplers:Nsga2",
        settings=nsga_settings(20.0, 0.9),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        paper="Deb et al. 2002, https://doi.org/10.1109/4235.996017",
        races_one=True,
        races_many=True,
        race_place=1.0,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="nsga3",
        title="NSGA-III with reference directions, for three objectives and more",
        target="evomerge.search.optuna_samplers:Nsga3",
        settings=nsga_settings(30.0, 1.0),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        paper="Deb and Jain 2014, https://doi.org/10.1109/TEVC.2013.2281535",
        races_one=True,
        races_many=True,
        race_place=1.0,
        takes_estimates=True,
    ),
    OptimizerSpec(
        name="ga",
        title="Genetic algorithm with edits of lists, for routes and for genes of every kind",
        target="evomerge.search.genetic:GeneticAlgorithm",
        settings=(
            GA_POPULATION,
            Setting("crossover_probability", "float", 0.5, "chance that a child has two parents", low=0, high=1),
            Setting("mutations", "float", 1.0, "edits of a child's lists, and of its other genes", low=0, high=1000),
            Setting("tournament", "int", 3, "survivors that compete to be a parent", low=1, high=100),
            GA_INITIAL,
            Setting("crossover_eta", "float", 15.0, "distribution index of the crossover of numbers", low=0, high=1000),
            Setting("mutation_eta", "float", 20.0, "distribution index of the mutation of numbers", low=0, high=1000),
        ),
        gene_kinds=ALL_KINDS,
        multi_objective=True,
        paper="Deb et al. 2002, https://doi.org/10.1109/4235.996017; Goldberg et al. 1989, Complex Systems 3(5)",
        races_one=True,
        races_many=True,
        race_place=1.0,
        takes_estimates=True,
    ),
    *PARETO_SPECS,
    *MAP_SPECS,
    *SEED_SPECS,
    *SWARM_SPECS,
)

SPECS: dict[str, OptimizerSpec] = {spec.name: spec for spec in _ALL}
assert len(SPECS) == len(_ALL), "two optimizers have the same name"


def get_spec(name: str) -> OptimizerSpec:
    """The optimizer of that name.

    Raises:
        UserError: there is none.
    """
    if name not in SPECS:
        raise UserError(_unknown(name))
    return SPECS[name]


def validate_optimizer(name: str, settings: Mapping[str, Any], problem: Problem) -> list[SettingProblem]:
    """Everything that keeps an optimizer from working on a problem; empty when nothing does.

    Args:
        name: as in the experiment file.
        settings: the keys of the file's ``optimizer`` mapping that belong to the optimizer.
        problem: what it shall solve; ``evaluations`` is the budget.
    """
    if name not in SPECS:
        return [SettingProblem("optimizer.name", _unknown(name))]
    spec = SPECS[name]
    problems = [_setting_problem(spec, key, value) for key, value in settings.items()]
    problems += [
        _gene_problem(spec, problem),
        _objective_problem(spec, settings, problem),
        _size_problem(spec, problem),
        _constraint_problem(spec, problem),
    ]
    if not any(problems):
        problems.append(_budget_problem(spec, settings, problem))
        objections = spec.objections(settings, problem) if spec.objections else ()
        problems += [SettingProblem(key, message) for key, message in objections]
    return [found for found in problems if found is not None]


def build_optimizer(name: str, problem: Problem, settings: Mapping[str, Any] | None = None) -> Optimizer:
    """The optimizer, with defaults from its spec for settings that are not given.

    Raises:
        UserError: there is no optimizer of that name.
        InvalidInput: ``validate_optimizer`` has objections.
    """
    spec = get_spec(name)
    given = dict(settings or {})
    problems = validate_optimizer(name, given, problem)
    if problems:
        raise InvalidInput([InputProblem(found.key, found.message) for found in problems])
    module, _, cls = spec.target.partition(":")
    chosen = {setting.name: setting.default for setting in spec.settings} | given
    optimizer: Optimizer = getattr(import_module(module), cls)(problem, **chosen)
    return optimizer


def _unknown(name: str) -> str:
    return f"there is no optimizer {name!r}. {did_you_mean(str(name), SPECS)}"


def _setting_problem(spec: OptimizerSpec, key: str, value: Any) -> SettingProblem | None:
    setting = next((one for one in spec.settings if one.name == key), None)
    where = f"optimizer.{key}"
    if setting is None:
        known = [one.name for one in spec.settings]
        return SettingProblem(where, f"{spec.name} has no setting {key!r}. {did_you_mean(str(key), known)}")
    expected = expected_of(setting)
    if not fits(setting, value):
        return SettingProblem(where, f"expected {expected}, got {value!r}")
    return None


def _gene_problem(spec: OptimizerSpec, problem: Problem) -> SettingProblem | None:
    if spec.merges_seeds:
        message = f"{spec.name} merges seed models as a whole and has no use for genes. Use a `kind: lineage` space."
        return SettingProblem("search_space", message) if problem.genes else None
    if problem.seeds is not None:
        mergers = ", ".join(other.name for other in SPECS.values() if other.merges_seeds)
        message = f"{spec.name} searches genes, and merges of merges have none. Use {mergers}, or another search space."
        return SettingProblem("optimizer.name", message)
    if all(is_constant(gene) for gene in problem.genes):
        return SettingProblem("search_space", "has no gene that can change, so there is nothing to search")
    misfits = [gene for gene in problem.genes if gene.kind not in spec.gene_kinds]
    if not misfits:
        return None
    kinds = {gene.kind for gene in misfits}
    able = [other.name for other in SPECS.values() if kinds <= other.gene_kinds and not other.merges_seeds]
    return SettingProblem(
        "optimizer.name",
        f"{spec.name} handles only {_join(spec.gene_kinds)} genes, but {len(misfits)} of {len(problem.genes)} genes "
        f"are {_join({gene.kind for gene in misfits})} (first: {misfits[0].name!r}). Use {', '.join(able)}.",
    )


def _objective_problem(spec: OptimizerSpec, settings: Mapping[str, Any], problem: Problem) -> SettingProblem | None:
    count = problem.num_objectives
    quality = settings.get("quality", 0)
    if isinstance(quality, int) and quality >= max(count, spec.min_objectives):
        return SettingProblem(
            "optimizer.quality", f"expected the number of an objective, from 0 to {count - 1}, got {quality}"
        )
    if _takes(spec, count):
        return None
    able = [other.name for other in SPECS.values() if _takes(other, count) and not other.merges_seeds]
    hint = "" if count == 1 else "Scalarise them with a single-objective optimizer, or use "
    return SettingProblem(
        "optimizer.name",
        f"{spec.name} handles {_objective_range(spec)}, got {count}. {hint or 'Use '}{', '.join(able)}.",
    )


def _constraint_problem(spec: OptimizerSpec, problem: Problem) -> SettingProblem | None:
    if spec.handles_constraints or not problem.num_constraints:
        return None
    able = [
        other.name for other in SPECS.values() if other.handles_constraints and _takes(other, problem.num_objectives)
    ]
    return SettingProblem(
        "optimizer.name", f"{spec.name} knows nothing of constraints. Drop `constraints`, or use {', '.join(able)}."
    )


def _takes(spec: OptimizerSpec, num_objectives: int) -> bool:
    most = num_objectives if spec.multi_objective else 1
    return spec.min_objectives <= num_objectives <= min(most, spec.max_objectives or most)


def _objective_range(spec: OptimizerSpec) -> str:
    if not spec.multi_objective:
        return "one objective"
    if spec.max_objectives == spec.min_objectives:
        return f"exactly {spec.min_objectives} objectives"
    most = f" and at most {spec.max_objectives}" if spec.max_objectives else ""
    return f"at least {spec.min_objectives}{most} objectives"


def _size_problem(spec: OptimizerSpec, problem: Problem) -> SettingProblem | None:
    count = len(problem.genes)
    if spec.min_genes <= count <= (spec.max_genes or count):
        return None
    if count < spec.min_genes:
        return SettingProblem(
            "optimizer.name", f"{spec.name} needs at least {spec.min_genes} genes, got {count}. Use cma_es."
        )
    only_real = all(gene.kind is GeneKind.REAL for gene in problem.genes)
    hint = "sep_cma" if only_real and problem.num_objectives == 1 else "nsga2"
    return SettingProblem(
        "optimizer.name",
        f"{spec.name} handles up to {spec.max_genes} genes, got {count}. Use {hint}, or search fewer genes.",
    )


def _budget_problem(spec: OptimizerSpec, settings: Mapping[str, Any], problem: Problem) -> SettingProblem | None:
    """Only optimizers that learn from whole generations need a budget of at least one."""
    size = settings.get("population_size", "auto")
    if CMA_POPULATION in spec.settings:
        size = cma_population_size(len(problem.genes)) if size == "auto" else size
    elif NSGA_POPULATION in spec.settings:
        size = nsga_population_size(problem.evaluations) if size == "auto" else size
    elif GA_POPULATION in spec.settings:
        size = ga_population_size(problem.evaluations, problem.num_objectives) if size == "auto" else size
    else:
        return None
    if problem.evaluations is None or problem.evaluations >= size:
        return None
    return SettingProblem(
        "budget.evaluations",
        f"{problem.evaluations} evaluations are fewer than one generation of {spec.name} ({size} candidates). "
        "Allow more evaluations or set a smaller optimizer.population_size.",
    )


def _join(kinds: set[GeneKind] | frozenset[GeneKind]) -> str:
    return " and ".join(sorted(kind.value for kind in kinds))
