"""Checking files before anything is loaded, downloaded or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.engine.sources import describe_source
from evomerge.errors import DataNotHere, InvalidInput, Problem
from evomerge.evaluation.documents import DocumentPlan, plan_documents
from evomerge.evaluation.fitness_yaml import load_fitness
from evomerge.experiment.backend_check import check_backend
from evomerge.experiment.estimation_problems import check_estimation
from evomerge.experiment.lineage_problems import check_document_scores
from evomerge.experiment.load import Experiment, find_experiment
from evomerge.experiment.racing_problems import check_racing
from evomerge.experiment.stages import StagedExperiment, load_any
from evomerge.recipes.recipe_yaml import recipe_from_mapping
from evomerge.spaces.space_yaml import load_space
from evomerge.store.run_dir import RunDir
from evomerge.terms import SPLITS
from evomerge.yaml_files import read_yaml_mapping

_RECIPE_ROOTS = {"route", "stack", "modules", "model", "preset"}  # what a recipe that is no merge begins with


@dataclass(frozen=True)
class Validation:
    """What a valid file says.

    Attributes:
        path: the file.
        kind: ``experiment``, ``recipe``, ``search space`` or ``fitness``.
        lines: what it amounts to, for a person.
        downloads: what a run would fetch.
    """

    path: Path
    kind: str
    lines: tuple[str, ...] = ()
    downloads: tuple[str, ...] = field(default=())


def validate(name: str | Path, overrides: Sequence[str] = (), documents: bool = True) -> Validation:
    """Check an experiment, recipe, search space or fitness file.

    Args:
        name: path, or the name of a shipped experiment.
        overrides: ``key.path=value`` changes of an experiment.
        documents: also build the tasks' documents where their data is on this machine.

    Raises:
        InvalidInput: everything that is wrong with it.
    """
    path = find_experiment(name)
    mapping = read_yaml_mapping(path)
    if "search_space" in mapping or ("models" in mapping and "merge_method" not in mapping):
        loaded = load_any(path, overrides)
        if isinstance(loaded, StagedExperiment):
            return _validate_stages(loaded, path, documents)
        return _validate_experiment(loaded, path, documents)
    if "merge_method" in mapping or ("method" in mapping and "experts" in mapping) or _RECIPE_ROOTS & mapping.keys():
        recipe = recipe_from_mapping(mapping, str(path))
        statuses = [describe_source(source) for source in recipe.sources]
        missing = [Problem(str(path), f"{s.source}: {s.message}") for s in statuses if s.state == "missing"]
        if missing:
            raise InvalidInput(missing)
        lines = (f"recipe {recipe.recipe_id}", *(f"{status.source}: {status.message}" for status in statuses))
        return Validation(path, "recipe", lines)
    if "kind" in mapping:
        load_space(str(path.resolve()), str(path))
        return Validation(path, "search space")
    if "task" in mapping or "python" in mapping:
        configs = load_fitness([path.resolve()], str(path))
        plan = plan_documents(configs, (str(path.resolve().parent),))
        return Validation(path, "fitness", _document_lines(plan))
    raise InvalidInput(
        [
            Problem(
                str(path),
                "neither an experiment (models), a recipe (method), a search space (kind) nor a fitness (task)",
            )
        ]
    )


def _validate_stages(staged: StagedExperiment, path: Path, documents: bool) -> Validation:
    lines: list[str] = []
    downloads: dict[str, None] = {}
    told = {f"{status.source}: {status.message}" for status in staged.sources}
    for number, stage in enumerate(staged.stages, start=1):
        found = _validate_experiment(stage.loaded, path, documents)
        lines.append(f"stage {number}/{len(staged.stages)} {stage.name}:")
        lines += [f"  {line}" for text in found.lines if text not in told for line in text.splitlines()]
        downloads |= dict.fromkeys(found.downloads)
    lines += [f"{status.source}: {status.message}" for status in staged.sources if status.state != "to_download"]
    return Validation(path, "experiment", tuple(lines), tuple(downloads))


def _validate_experiment(loaded: Experiment, path: Path, documents: bool) -> Validation:
    lines = []
    if loaded.config.optimizer.warm_start is not None:
        RunDir.open(loaded.config.optimizer.warm_start)
    if loaded.space is not None:
        lines.append(loaded.space.describe())
    lines.append(
        f"optimizer {loaded.config.optimizer.name} ({loaded.config.optimizer.mode}), budget "
        + ", ".join(f"{key} {value:g}" for key, value in loaded.config.budget.model_dump(exclude_none=True).items())
    )
    downloads = [f"{status.source}: {status.message}" for status in loaded.sources if status.state == "to_download"]
    lines += [f"{status.source}: {status.message}" for status in loaded.sources if status.state != "to_download"]
    if documents:
        from evomerge.evaluation.lm_eval_tasks import without_downloads

        try:
            with without_downloads():
                plan = plan_documents([*loaded.fitness, *loaded.report], loaded.config.import_paths)
            lines += _document_lines(plan)
            lines += plan.notes
            lines += check_racing(loaded.config, loaded.where, loaded.fitness, plan)
            check_document_scores(loaded.config, loaded.where, loaded.fitness, plan)
            lines += check_estimation(loaded.config, loaded.where, loaded.fitness, plan)
            lines += check_backend(loaded, plan)
        except DataNotHere as error:
            downloads += [str(problem) for problem in error.problems]
    return Validation(path, "experiment", tuple(lines), tuple(downloads))


def _document_lines(plan: DocumentPlan) -> tuple[str, ...]:
    lines = []
    for fitness in plan.fitness:
        counts = {role: len(fitness.document_ids(role)) for role in SPLITS}
        shown = ", ".join(f"{count} {role.replace('_', '-')}" for role, count in counts.items() if count)
        metric = ",".join(filter(None, (fitness.metric, fitness.filter)))
        lines.append(f"fitness {fitness.name}: {metric} on {shown} documents")
    return tuple(lines)
