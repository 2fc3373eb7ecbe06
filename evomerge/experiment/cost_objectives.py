"""Costs among the objectives: which searches they make sense in, and from where hypervolume is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evomerge.engine.model_cost import source_cost
from evomerge.errors import Problem, did_you_mean
from evomerge.evaluation.cost_fitness import DEFAULT_CONTEXT
from evomerge.evaluation.fitness_yaml import FitnessConfig
from evomerge.evaluation.python_objectives import said_of
from evomerge.experiment.config import ExperimentConfig
from evomerge.methods.catalogue import ALL_SPECS as METHODS
from evomerge.recipes.recipe import Source
from evomerge.search.catalogue import SPECS
from evomerge.terms import Objective

# Models that cost more than this many times the costliest of the experiment's models add no hypervolume.
REFERENCE_FACTOR = 2.0


def cost_problems(config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig]) -> Iterator[Problem]:
    """Costs that no search could use sensibly.

    Args:
        config: the experiment.
        where: what to call its file in messages.
        fitness: what is searched, resolved.
    """
    costs = [item for item in fitness if item.cost is not None]
    if not costs:
        return
    yield from _parameter_problems(config, where, costs)
    first = costs[0].name
    if len(costs) == len(fitness):
        yield Problem(
            f"{where}: fitness",
            f"there are only costs ({', '.join(item.name for item in costs)}), and the cheapest model need not be any "
            "good. Add a task or a python fitness.",
        )
        return
    if config.scalarisation == "first" and fitness[0].cost is not None:
        yield Problem(
            f"{where}: scalarisation",
            f"`first` takes {first} alone, the cheapest model. Write a fitness that scores models before it.",
        )
    spec = SPECS.get(config.optimizer.name)
    unweighted = [item.name for item in costs if item.weight == 0]
    if spec is None or spec.multi_objective or config.scalarisation == "first" or not unweighted:
        return
    able = ", ".join(name for name, other in SPECS.items() if other.multi_objective)
    yield Problem(
        f"{where}: optimizer.name",
        f"{spec.name} sees one number, the weighted mean of the objectives, and {', '.join(unweighted)} is in a unit "
        f"of its own. Use an optimizer of several objectives ({able}); or say what one unit is worth, for example "
        f"{{cost: num_hops, weight: 0.001}}; or `scalarisation: first`, then it is only recorded.",
    )


def _parameter_problems(config: ExperimentConfig, where: str, costs: Sequence[FitnessConfig]) -> Iterator[Problem]:
    """Penalties on what no method has; a user's own methods may have anything."""
    if ":" in str(config.search_space.get("method", "") if isinstance(config.search_space, dict) else ""):
        return
    known = sorted({parameter.name for spec in METHODS.values() for parameter in spec.hyperparameters})
    for item in costs:
        if item.parameter is not None and item.parameter not in known:
            message = f"no method has such a hyperparameter. {did_you_mean(item.parameter, known)}"
            yield Problem(f"{where}: fitness: {item.name}: parameter", message)


def reference_point_of(
    objectives: Sequence[Objective], fitness: Sequence[FitnessConfig], models: Sequence[Source]
) -> tuple[float, ...]:
    """The corner from which hypervolume is measured, on the maximised scale; empty where an objective has none.

    A fitness may name its own (``reference``). Metrics that are to be raised (accuracy, match, F1) start at zero.
    Counted costs start at twice what the costliest model costs. A measured cost, or another metric that is to be
    lowered, has no natural worst value.

    Args:
        objectives: of all of ``fitness``, in order.
        fitness: what is searched.
        models: the experiment's, on this machine.

    Raises:
        UserError: a model cannot be read.
    """
    values: list[float] = []
    for config in fitness:
        for key in config.objectives or ("",):
            objective = objectives[len(values)]
            said = said_of(config.objectives, key)
            natural = config.reference if said is None else said.reference
            if natural is None:
                natural = 0.0 if objective.higher_is_better else _worst_cost(config, models)
            if natural is None:
                return ()
            values.append(objective.natural(natural) + 0.0)
    return tuple(values)


def _worst_cost(config: FitnessConfig, models: Sequence[Source]) -> float | None:
    if config.cost in (None, "latency", "mean_magnitude"):
        return None
    costs = [source_cost(source, config.context or DEFAULT_CONTEXT) for source in dict.fromkeys(models)]
    known = [float(getattr(cost, config.cost)) for cost in costs if cost is not None]
    return REFERENCE_FACTOR * max(known) if known else None
