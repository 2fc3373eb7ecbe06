"""What keeps an experiment from racing, said before anything is loaded or scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evomerge.errors import InvalidInput, Problem
from evomerge.evaluation.documents import DocumentPlan
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.evaluation.rungs import can_be_raced, lay_rungs
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.rung_sizes import rung_settings
from evomerge.search.base import OptimizerSpec
from evomerge.search.catalogue import SPECS

LINEAR = ("weighted_mean", "first")


def racing_problems(config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig]) -> list[Problem]:
    """What is wrong whatever the documents are.

    Args:
        config: the experiment.
        where: what to call its file.
        fitness: the searched fitnesses.
    """
    spec = SPECS.get(config.optimizer.name)
    if config.racing is None or spec is None:
        return []
    objectives = sum(len(objective_names(item)) for item in fitness)
    many = spec.multi_objective and objectives > 1
    found = [*_optimizer(spec, many), *_scalar(config, many), *_parts(fitness)]
    return [Problem(f"{where}: racing{key}", message) for key, message in found]


def _optimizer(spec: OptimizerSpec, many: bool) -> Iterator[tuple[str, str]]:
    if spec.races_many if many else spec.races_one:
        return
    able = ", ".join(name for name, other in SPECS.items() if (other.races_many if many else other.races_one))
    count = "several objectives" if many else "one objective"
    yield (
        "",
        (
            f"{spec.name} needs the real fitness of every candidate and cannot learn from stopped ones. Drop `racing`, "
            f"or use an optimizer that ranks candidates; with {count}: {able}."
        ),
    )


def _scalar(config: ExperimentConfig, many: bool) -> Iterator[tuple[str, str]]:
    assert config.racing is not None
    if config.constraints:
        yield (
            "",
            (
                "whether a candidate keeps the constraints is known only once all documents are scored, so stopped "
                "ones could not be ranked. Drop `racing` or `constraints`."
            ),
        )
    if many and config.racing.rule == "halving":
        yield (
            ".rule",
            "halving compares one number, but the optimizer sees several objectives. Use betting or wilcoxon.",
        )
    if not many and config.scalarisation not in LINEAR:
        yield (
            "",
            (
                f"`scalarisation: {config.scalarisation}` is no sum over documents, so nothing can be said before the "
                f"last one. Use {' or '.join(LINEAR)}, or drop `racing`."
            ),
        )


def _parts(fitness: Sequence[FitnessConfig]) -> Iterator[tuple[str, str]]:
    if fitness and all(item.task is None for item in fitness):
        yield "", "only lm-eval tasks can be scored by parts, and no fitness is one. Drop `racing`."


def check_racing(
    config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig], plan: DocumentPlan
) -> list[str]:
    """What can be checked once the documents are known.

    Args:
        config: the experiment.
        where: what to call its file.
        fitness: the searched fitnesses.
        plan: their documents.

    Returns:
        What racing comes to, a line each.

    Raises:
        InvalidInput: too few documents, or metrics that are no means.
    """
    racing = config.racing
    settings = rung_settings(config, fitness, plan)
    if racing is None or settings is None:
        return []
    corpus = [item.name for item in fitness if item.task is not None and not can_be_raced(item, plan.of(item.name))]
    problems = [
        Problem(
            f"{where}: racing",
            f"the metric of fitness {name!r} ({plan.of(name).metric}) is no mean over documents, so a part of them "
            "says nothing of the whole. Use a metric that is one, or drop `racing`.",
        )
        for name in corpus
    ]
    layout = lay_rungs(fitness, plan, settings)
    raced = layout.num_raced
    if not corpus and raced < 2 * racing.min_documents:
        message = (
            f"{raced} documents can be scored by parts, and {racing.min_documents} decide nothing yet "
            f"(racing.min_documents); {2 * racing.min_documents} are needed. Search more documents, or drop `racing`."
        )
        problems.append(Problem(f"{where}: racing", message))
    if settings.first >= raced > 0 and not corpus:
        problems.append(Problem(f"{where}: racing.first", f"expected fewer than all {raced} documents"))
    if problems:
        raise InvalidInput(problems)
    whole = [item.name for item in fitness if not can_be_raced(item, plan.of(item.name))]
    steps = ", ".join(map(str, layout.documents))
    lines = [f"racing ({racing.rule}): candidates may stop after {steps} documents"]
    if whole:
        lines.append(f"racing: {', '.join(whole)} cannot be scored by parts and is scored whole, first")
    return lines
