"""Scoring one model or recipe outside a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.evaluation.documents import plan_documents
from evomerge.evaluation.evaluator import EvaluatorSettings, build_evaluator
from evomerge.evaluation.fitness_yaml import FitnessSpec, load_fitness
from evomerge.evaluation.statistics import Interval, score_interval
from evomerge.experiment.inspecting import find_candidate, open_run
from evomerge.experiment.merging import as_recipe
from evomerge.recipes.recipe import Recipe, Route, Source
from evomerge.runtime.build import worker_factory
from evomerge.runtime.executor import Job, WorkerPlan
from evomerge.runtime.inline_executor import InlineExecutor
from evomerge.runtime.resources import RuntimeSettings, local_machine, plan_resources
from evomerge.store.stage_list import has_run
from evomerge.terms import Evaluation, Objective, SplitName


@dataclass(frozen=True)
class Scored:
    """One model's scores.

    Attributes:
        recipe: what was scored.
        split: on which documents.
        objectives: in the order of the fitness.
        evaluation: scores and cost.
        intervals: 95 % interval over documents for each objective that has documents, in natural direction.
    """

    recipe: Recipe
    split: SplitName
    objectives: tuple[Objective, ...]
    evaluation: Evaluation
    intervals: dict[str, Interval]


def evaluate(
    model: Recipe | str | Path,
    fitness: FitnessSpec | Sequence[FitnessSpec],
    split: SplitName = "held_out",
    settings: RuntimeSettings | None = None,
) -> Scored:
    """Merge a recipe in memory (or load a model) and score it.

    Args:
        model: a recipe, a recipe file, a run directory (its winner), or a model (hub id, directory, ``zoo:`` name).
        fitness: preset names, files or mappings.
        split: which documents.
        settings: dtype, device, threads and batch size; the executor is always this process, the scorer always exact.

    Raises:
        UserError: the model or the fitness cannot be used, or the model could not be scored.
    """
    recipe = model if isinstance(model, Recipe) else _recipe(model)
    configs = load_fitness(fitness, "--fitness")
    without = [config.name for config in configs if split not in config.roles]
    if without:
        raise InvalidInput([Problem(f"fitness {name}", f"has no {split} documents") for name in without])
    imports = tuple(dict.fromkeys([str(Path.cwd()), *_folders(fitness)]))
    plan = plan_documents(configs, imports)
    objectives = build_evaluator(configs, plan, EvaluatorSettings(import_paths=imports)).objectives
    base, experts = _models(recipe)
    worker_plan = WorkerPlan(
        base=base,
        experts=experts,
        fitness=tuple(config.model_dump(mode="json") for config in configs),
        documents=plan.to_json(),
        import_paths=imports,
        lanes=len(recipe.model.models) if isinstance(recipe.model, Route) else 0,
    )
    chosen = replace(settings or RuntimeSettings(executor="inline"), scorer="exact")
    executor = InlineExecutor(worker_factory(chosen, worker_plan, plan_resources(chosen, local_machine())))
    try:
        executor.submit(Job("evaluate", recipe, split))
        outcome = executor.wait(0.0)[0]
    finally:
        executor.close()
    if outcome.evaluation.failure is not None:
        raise UserError(f"{model}: could not be scored: {outcome.evaluation.failure.message}")
    tables = outcome.evaluation.document_scores
    intervals = {table.objective: interval for table in tables if (interval := score_interval([table])) is not None}
    return Scored(recipe, split, objectives, outcome.evaluation, intervals)


def _folders(fitness: FitnessSpec | Sequence[FitnessSpec]) -> list[str]:
    """Folders of fitness files, where the modules of ``python:`` fitnesses may lie."""
    listed = [fitness] if isinstance(fitness, str | Path | Mapping) else fitness
    files = [Path(spec).expanduser() for spec in listed if not isinstance(spec, Mapping)]
    return [str(path.resolve().parent) for path in files if path.is_file()]


def _recipe(model: str | Path) -> Recipe:
    if not has_run(model):
        return as_recipe(model)
    opened = open_run(model)
    return opened.recipe(find_candidate(opened, "best"))


def _models(recipe: Recipe) -> tuple[Source | None, tuple[tuple[str, Source], ...]]:
    """The live model's base and experts: every source of the recipe, the reference as base."""
    reference = recipe.reference
    others = [source for source in recipe.sources if source != reference]
    return reference, tuple((f"model{index}", source) for index, source in enumerate(others))
