"""What an experiment says about its objectives: normalising, constraints, and the one number of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.evaluation.fitness_yaml import FitnessConfig, objective_names
from evomerge.experiment.config import ExperimentConfig
from evomerge.search.anchors import Anchor, Constraint, parse_anchor, parse_constraint
from evomerge.search.calibration import Calibration, Fitness
from evomerge.search.scalarise import build_scalariser, default_ideal
from evomerge.terms import Objective

if TYPE_CHECKING:
    from evomerge.experiment.load import Experiment

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class ObjectiveRules:
    """What the experiment file says, parsed.

    Attributes:
        normalise: M, whose score each objective is divided by.
        constraints: in the file's order.
    """

    normalise: tuple[Anchor, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """Everybody whose score must be known."""
        used = (*self.normalise, *(constraint.anchor for constraint in self.constraints))
        return tuple(anchor for anchor in dict.fromkeys(used) if anchor.kind != "raw")


def parse_rules(config: ExperimentConfig, fitness: Sequence[FitnessConfig], where: str) -> ObjectiveRules:
    """Read normalising, constraints and ideal values.

    Raises:
        InvalidInput: everything in them that makes no sense.
    """
    experts, has_base = list(config.models.experts), config.models.base is not None
    names = [name for item in fitness for name in objective_names(item)]
    problems: list[Problem] = []

    def read(place: str, parse: Callable[[], Parsed]) -> list[Parsed]:
        try:
            return [parse()]
        except ValueError as error:
            problems.append(Problem(f"{where}: {place}", str(error)))
            return []

    overall = config.objectives.normalise
    read("objectives.normalise", lambda: parse_anchor(overall, experts, has_base))
    normalise: list[Anchor] = []
    for index, item in enumerate(fitness):
        text = item.normalise
        if text is None:
            normalise += [_or_raw(overall, experts, has_base)] * len(objective_names(item))
            continue
        found = read(f"fitness[{index}].normalise", lambda text=text: parse_anchor(text, experts, has_base))  # type: ignore[misc]
        normalise += found * len(objective_names(item))
    constraints: list[Constraint] = []
    for index, text in enumerate(config.constraints):
        constraints += read(
            f"constraints[{index}]",
            lambda text=text: parse_constraint(text, names, experts, has_base),  # type: ignore[misc]
        )
    for name in config.objectives.ideal:
        if name not in names:
            hint = did_you_mean(name, names)
            problems.append(Problem(f"{where}: objectives.ideal", f"no searched objective is called {name!r}. {hint}"))
    if problems:
        raise InvalidInput(problems)
    return ObjectiveRules(tuple(normalise), tuple(constraints))


def _or_raw(text: str, experts: Sequence[str], has_base: bool) -> Anchor:
    try:
        return parse_anchor(text, experts, has_base)
    except ValueError:  # reported once, where it is written
        return Anchor("raw")


def check_directions(config: ExperimentConfig, objectives: Sequence[Objective], where: str) -> None:
    """What can be checked only once the metrics' directions are known.

    Raises:
        InvalidInput: a harmonic mean of metrics of which one is to be lowered.
    """
    lowered = [objective.name for objective in objectives if not objective.higher_is_better and objective.weight > 0]
    if config.scalarisation == "harmonic_mean" and lowered:
        raise InvalidInput(
            [
                Problem(
                    f"{where}: scalarisation",
                    f"a harmonic mean needs scores that are to be raised, but {lowered[0]} is to be lowered. Use "
                    "weighted_mean or tchebycheff, or give it weight 0.",
                )
            ]
        )


@dataclass(frozen=True)
class Judge:
    """From raw fitness to what optimizers are told, for one run.

    Attributes:
        objectives: M.
        constraints: parsed.
        calibration: the numbers.
        one_number: told fitness ``(M,)`` to ``(1,)``.
        many: whether the optimizer takes all objectives.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    calibration: Calibration
    one_number: Callable[[Fitness], Fitness]
    many: bool

    def scalarise(self, fitness: Fitness, scales: Sequence[float] | None = None) -> Fitness:
        """The one number ``(1,)`` of raw fitness, by which candidates are compared for "best".

        Args:
            fitness: ``(M,)``.
            scales: ``(M,)``, what it is divided by on other documents than the search's.
        """
        if scales is None:
            return self.one_number(self.calibration.told(fitness))
        return self.one_number(tuple(value / scale for value, scale in zip(fitness, scales, strict=True)))

    def told(self, fitness: Fitness) -> Fitness:
        """What the optimizer is told of raw fitness."""
        return self.calibration.told(fitness) if self.many else self.scalarise(fitness)

    def constrain(self, fitness: Fitness) -> Fitness:
        """For each constraint by how much raw fitness misses it; zero or less where it is kept."""
        return self.calibration.constraint_values(fitness, self.objectives, self.constraints)


def build_judge(
    loaded: Experiment, objectives: Sequence[Objective], calibration: Calibration, num_objectives: int
) -> Judge:
    """The judge of a run.

    Args:
        loaded: the experiment.
        objectives: M.
        calibration: what fitness is measured against.
        num_objectives: how many the optimizer takes.
    """
    normalised = [anchor.kind != "raw" for anchor in loaded.rules.normalise]
    one_number = build_one_number(loaded.config, objectives, normalised)
    return Judge(tuple(objectives), loaded.rules.constraints, calibration, one_number, num_objectives > 1)


def build_one_number(
    config: ExperimentConfig, objectives: Sequence[Objective], normalised: Sequence[bool]
) -> Callable[[Fitness], Fitness]:
    """From told fitness ``(M,)`` to the one number ``(1,)`` that the experiment compares candidates by.

    Args:
        config: the experiment.
        objectives: M.
        normalised: M, whether each is divided by somebody's score.
    """
    given = config.objectives.ideal
    ideal = [
        objective.natural(given[objective.name]) if objective.name in given else default
        for objective, default in zip(objectives, default_ideal(objectives, normalised))
    ]
    return build_scalariser(config.scalarisation, objectives, ideal)
