"""What keeps an experiment from searching merges of merges, said before anything is loaded or scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evomerge.errors import InvalidInput, Problem
from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.experiment.config import ExperimentConfig
from evomerge.search.catalogue import SPECS
from evomerge.search.seed_specs import archive_problem
from evomerge.spaces.lineage_space import LineageConfig


def lineage_problems(
    config: ExperimentConfig, where: str, space: object, fitness: Sequence[FitnessConfig]
) -> list[Problem]:
    """What is wrong whatever the models and documents are.

    Args:
        config: the experiment.
        where: what to call its file.
        space: configuration of the search space, None where it is not valid.
        fitness: the searched fitnesses.
    """
    spec = SPECS.get(config.optimizer.name)
    if spec is None or space is None:
        return []
    found: list[tuple[str, str]] = []
    if isinstance(space, LineageConfig):
        if not spec.merges_seeds:
            able = ", ".join(name for name, other in SPECS.items() if other.merges_seeds)
            message = f"{spec.name} searches genes, and a `kind: lineage` space has none. Use {able}."
            found.append(("optimizer.name", message))
        seeds = space.seeds or list(config.models.merge or config.models.experts)
        if spec.merges_seeds and (message := archive_problem(config.optimizer.settings, len(seeds)) or ""):
            found.append(("optimizer.population_size", message))
    elif spec.merges_seeds:
        message = f"{spec.name} merges whole models and has no use for genes. Write `search_space: {{kind: lineage}}`."
        found.append(("search_space", message))
    if spec.uses_document_scores:
        found += _fitness(spec.name, fitness)
    return [Problem(f"{where}: {key}", message) for key, message in found]


def _fitness(optimizer: str, fitness: Sequence[FitnessConfig]) -> Iterator[tuple[str, str]]:
    needs = f"{optimizer} compares models document by document"
    for index, item in enumerate(fitness):
        if item.cost is not None:
            yield f"fitness[{index}]", f"{needs}, and {item.cost} has no documents. Drop it, or use another optimizer."
        elif item.python is not None and item.documents is None:
            yield (
                f"fitness[{index}]",
                f"{needs}: give {item.name} `documents`, and let its function return one number for each.",
            )
        if item.higher_is_better is False:
            yield f"fitness[{index}].higher_is_better", _lowered(optimizer, item.name)


def check_document_scores(
    config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig], plan: DocumentPlan
) -> None:
    """What can be checked once the tasks are known.

    Args:
        config: the experiment.
        where: what to call its file.
        fitness: the searched fitnesses.
        plan: their documents.

    Raises:
        InvalidInput: metrics that are to be lowered, or that are no means over documents.
    """
    if not SPECS[config.optimizer.name].uses_document_scores:
        return
    problems = []
    for item in fitness:
        planned = plan.of(item.name)
        if not planned.higher_is_better:
            problems.append(_lowered(config.optimizer.name, item.name))
        elif item.task is not None and not planned.is_mean:
            problems.append(
                f"the metric of fitness {item.name!r} ({planned.metric}) is no mean over documents, and "
                f"{config.optimizer.name} compares models document by document. Use a metric that is one."
            )
    if problems:
        raise InvalidInput([Problem(f"{where}: fitness", message) for message in problems])


def _lowered(optimizer: str, name: str) -> str:
    return (
        f"{optimizer} shares out what is won on each document, so scores must be 0 or more and higher ones better; "
        f"those of {name!r} are to be lowered. Use a metric such as accuracy or exact match."
    )
