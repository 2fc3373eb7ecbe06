"""What keeps an experiment from estimating, said before anything is loaded or scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evomerge.errors import InvalidInput, Problem
from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.estimated_fitness import MIN_MODELS, split_count
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.evaluation.rungs import can_be_raced
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.estimation_sizes import layout_of, start_count
from evomerge.search.base import OptimizerSpec
from evomerge.search.catalogue import SPECS

MIN_DOCUMENTS = 8  # scored of each candidate; twice as many must be there


def estimation_problems(config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig]) -> list[Problem]:
    """What is wrong whatever the documents are.

    Args:
        config: the experiment.
        where: what to call its file.
        fitness: the searched fitnesses.
    """
    spec = SPECS.get(config.optimizer.name)
    if config.estimation is None or spec is None:
        return []
    many = spec.multi_objective and sum(len(objective_names(item)) for item in fitness) > 1
    found = [*_combinations(config), *_optimizer(spec, many), *_models(config)]
    if fitness and all(item.task is None for item in fitness):
        found.append(("", "only scores of lm-eval tasks can be estimated, and no fitness is one. Drop `estimation`."))
    return [Problem(f"{where}: estimation{key}", message) for key, message in found]


def _combinations(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    if config.racing is not None:
        yield (
            "",
            "racing compares candidates on all documents, estimation scores only some. Drop `racing` or `estimation`.",
        )
    if config.optimizer.mode == "steady_state":
        yield (
            "",
            (
                "fits change between generations, and `optimizer.mode: steady_state` has none. Use generational, or "
                "drop `estimation`."
            ),
        )


def _optimizer(spec: OptimizerSpec, many: bool) -> Iterator[tuple[str, str]]:
    if spec.takes_estimates:
        return
    able = ", ".join(
        name for name, other in SPECS.items() if other.takes_estimates and (other.multi_objective or not many)
    )
    yield (
        "",
        (
            f"{spec.name} learns from all values it was ever told, which must be of one kind; estimates of different "
            f"fits are not. Drop `estimation`, or use {able}."
        ),
    )


def _models(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    estimation = config.estimation
    assert estimation is not None
    if estimation.estimator == "mp_irt" and not config.finish.baselines:
        yield (
            ".estimator",
            (
                "mp_irt interpolates between the experts, so they must be scored: set `finish.baselines: true`, or use "
                "p_irt."
            ),
        )
    if estimation.estimator == "mean" or estimation.full_generations:
        return
    count = _num_baselines(config)
    if count < MIN_MODELS:
        yield (
            ".full_generations",
            (
                f"{count} models would be scored on all documents before the first estimate (baselines and experts), "
                f"and {estimation.estimator} is fitted to at least {MIN_MODELS}. Set `full_generations: 1` to score "
                "the first generation on all documents, or `estimator: mean`."
            ),
        )


def _num_baselines(config: ExperimentConfig) -> int:
    """Baselines of the experiment, at most; those that cannot be made are only known with the models."""
    if not config.finish.baselines:
        return 0
    experts, has_base = len(config.models.experts), config.models.base is not None
    merged = (experts > 1) + (len(config.finish.task_arithmetic) + 1) * has_base
    return has_base + experts + len(config.models.stages) + merged


def check_estimation(
    config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig], plan: DocumentPlan
) -> list[str]:
    """What can be checked once the documents are known.

    Args:
        config: the experiment.
        where: what to call its file.
        fitness: the searched fitnesses.
        plan: their documents.

    Returns:
        What estimation comes to, a line each.

    Raises:
        InvalidInput: too few documents, or metrics that are no means.
    """
    estimation = config.estimation
    if estimation is None:
        return []
    problems = [
        Problem(
            f"{where}: estimation",
            f"the metric of fitness {item.name!r} ({plan.of(item.name).metric}) is no mean over documents, so some of "
            "them say nothing of the whole. Use a metric that is one, or drop `estimation`.",
        )
        for item in fitness
        if item.task is not None and not can_be_raced(item, plan.of(item.name))
    ]
    layout = layout_of(fitness, plan)
    total = layout.num_documents
    chosen = sum(split_count(layout, start_count(estimation, layout)))
    if not problems and total < 2 * MIN_DOCUMENTS:
        message = (
            f"{total} documents can be chosen from, at least {2 * MIN_DOCUMENTS} are needed. Search more documents, "
        )
        problems.append(Problem(f"{where}: estimation", message + "or drop `estimation`."))
    elif not problems and not MIN_DOCUMENTS <= chosen < total:
        message = (
            f"{chosen} of {total} documents would be scored; expected at least {MIN_DOCUMENTS} and fewer than all. "
            f"Give a number from {MIN_DOCUMENTS} to {total - 1}, or a share."
        )
        problems.append(Problem(f"{where}: estimation.documents", message))
    if problems:
        raise InvalidInput(problems)
    lines = [f"estimation ({estimation.estimator}): candidates are scored on {chosen} of {total} documents"]
    whole = [item.name for item in fitness if item.task is None]
    if whole:
        lines.append(f"estimation: {', '.join(whole)} cannot be estimated and is scored whole")
    return lines
