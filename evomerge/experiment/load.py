"""From an experiment file to an experiment that is known to make sense, with every problem reported at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evomerge.engine.sources import SourceStatus, describe_source
from evomerge.errors import InvalidInput, Problem, UserError, did_you_mean
from evomerge.evaluation.fitness_yaml import FitnessConfig, load_fitness, objective_names
from evomerge.evaluation.python_fitness import add_import_paths
from evomerge.experiment.backend_problems import backend_problems
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.cost_objectives import cost_problems
from evomerge.experiment.estimation_problems import estimation_problems
from evomerge.experiment.lineage_problems import lineage_problems
from evomerge.experiment.model_facts import ModelFacts, find_model_facts
from evomerge.experiment.objectives import ObjectiveRules, parse_rules
from evomerge.experiment.overrides import apply_overrides
from evomerge.experiment.racing_problems import racing_problems
from evomerge.experiment.score_cache import cache_problems, with_absolute_folder
from evomerge.presets import preset_dir
from evomerge.recipes.recipe import Node, Route, Source
from evomerge.recipes.recipe_yaml import recipe_from_mapping
from evomerge.search import base as search
from evomerge.search.catalogue import SPECS, validate_optimizer
from evomerge.spaces.joint_config import data_flow_of
from evomerge.spaces.lineage_space import LineageSpace
from evomerge.spaces.space import SearchSpace
from evomerge.spaces.space_yaml import SpaceModels, build_space, load_space
from evomerge.terms import derive_seed
from evomerge.yaml_files import pydantic_problems, read_yaml_mapping

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Experiment:
    """A validated experiment.

    Attributes:
        config: the file, validated.
        where: what to call the file in messages.
        base: the base model, or None.
        experts: (name, model) in the file's order.
        space: the search space, None while the number of blocks is unknown because a model is not on this machine.
        fitness: what is searched.
        report: what is only reported on the held-out documents at the end.
        sources: what is known of each model.
        resolved: the file with presets written out; what the run directory keeps.
        notes: lines worth telling, for example what would be downloaded.
        depths: number of blocks of the models that are on this machine, by name (``base``, experts).
        stages: (name, model) of what earlier stages found, in their order.
        rules: what the file says about normalising and constraints.
    """

    config: ExperimentConfig
    where: str
    base: Source | None
    experts: tuple[tuple[str, Source], ...]
    space: SearchSpace | None
    fitness: tuple[FitnessConfig, ...]
    report: tuple[FitnessConfig, ...]
    sources: tuple[SourceStatus, ...]
    resolved: dict[str, Any]
    notes: tuple[str, ...] = field(default=())
    depths: Mapping[str, int] = field(default_factory=dict)
    stages: tuple[tuple[str, Node], ...] = ()
    rules: ObjectiveRules = field(default_factory=ObjectiveRules)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.name

    @property
    def models(self) -> tuple[Source, ...]:
        """The base, where there is one, and the experts."""
        return (*_given(self.base), *(source for _, source in self.experts))

    @property
    def num_objectives(self) -> int:
        """M of the search."""
        return sum(len(objective_names(config)) for config in self.fitness)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which candidates are asked and how they score."""
        identity = {key: value for key, value in self.resolved.items() if key not in CHANGEABLE}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def problem(self) -> search.Problem:
        """What the optimizer is built for."""
        assert self.space is not None
        return _optimizer_problem(self.config, self.space, self.fitness)


# Keys that may change between a run and its resumption.
CHANGEABLE = ("budget", "runtime", "finish", "storage", "description", "import_paths")

# What optimizers without generations propose at once when the number of workers is found at run time.
DEFAULT_BATCH = 4


def find_experiment(name: str | Path) -> Path:
    """The file of an experiment given by path or preset name.

    Raises:
        InvalidInput: neither exists.
    """
    path = Path(name).expanduser()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    presets = {found.stem: found for found in preset_dir("experiments").glob("*.yaml")}
    if str(name) in presets:
        return presets[str(name)]
    raise InvalidInput([Problem(str(name), f"no such experiment file or preset. {did_you_mean(str(name), presets)}")])


def load_experiment(name: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, check and resolve an experiment without touching weights or data sets.

    Args:
        name: path of a YAML file, or the name of a shipped experiment.
        overrides: ``key.path=value`` changes.

    Raises:
        InvalidInput: everything that is wrong, at once.
    """
    path = find_experiment(name)
    mapping = apply_overrides(read_yaml_mapping(path), overrides)
    return resolve_experiment(mapping, str(path), path.resolve().parent)


def resolve_experiment(mapping: dict[str, Any], where: str, folder: Path) -> Experiment:
    """Check and resolve an experiment that is already parsed. See ``load_experiment``."""
    try:
        config = ExperimentConfig.model_validate(mapping)
    except ValidationError as error:
        raise InvalidInput(pydantic_problems(error, where, ExperimentConfig)) from None
    imports = tuple(str((folder / path).resolve()) for path in config.import_paths or (".",))
    config = with_absolute_folder(config.model_copy(update={"import_paths": imports}), folder)
    add_import_paths(imports)  # for the user's merge methods, which the search space names
    problems: list[Problem] = []

    def collect(load: Callable[[], Loaded]) -> Loaded | None:
        try:
            return load()
        except InvalidInput as error:
            problems.extend(error.problems)
        except UserError as error:
            problems.append(Problem(where, str(error)))
        return None

    base = config.models.base.source() if config.models.base else None
    experts = tuple((key, item.source()) for key, item in config.models.experts.items())
    stages = tuple(_found(config, where, problems))
    sources = tuple(describe_source(source) for source in dict.fromkeys([*_given(base), *(s for _, s in experts)]))
    problems += [Problem(f"{where}: models", f"{s.source}: {s.message}") for s in sources if _unusable(s)]
    fitness = collect(lambda: load_fitness(config.fitness, f"{where}: fitness", folder))
    report = collect(lambda: load_fitness(config.report, f"{where}: report", folder)) if config.report else []
    space_config = collect(lambda: load_space(config.search_space, f"{where}: search_space", folder))
    here = [status.source for status in sources if status.ready]
    facts = collect(lambda: find_model_facts(base, experts, here, space_config)) or ModelFacts()
    space = None
    if space_config is not None:
        found = tuple((name, node) for name, node in stages if not isinstance(node, Route))
        seed, shapes = derive_seed(config.seed, "masks"), facts.shapes
        merged = collect(lambda: _merged(config, where, experts, found, space_config)) or experts
        models = SpaceModels(
            base, merged, facts.num_blocks, seed, config.dtype, facts.tensors, shapes, found, facts.sizes
        )
        space = collect(lambda: build_space(space_config, models))
    rules = None if fitness is None else collect(lambda: parse_rules(config, fitness, where))
    problems += _optimizer_problems(config, where, space, fitness)
    problems += lineage_problems(config, where, space_config, fitness or ())
    problems += backend_problems(config, where, [*(fitness or ()), *(report or ())], space, stages)
    problems += _scoring_problems(config, where, fitness or ())
    if problems:
        raise InvalidInput(problems)
    assert fitness is not None
    assert rules is not None
    assert report is not None
    assert space_config is not None
    resolved = _resolved(config, space_config, fitness, report)
    notes = (
        *_late_checks(space_config, space, facts),
        *facts.notes,
        *(f"{s.source}: {s.message}" for s in sources if not s.ready),
    )
    fitnesses = tuple(fitness), tuple(report)
    return Experiment(
        config, where, base, experts, space, *fitnesses, sources, resolved, notes, facts.depths, stages, rules
    )


def _scoring_problems(config: ExperimentConfig, where: str, fitness: Sequence[FitnessConfig]) -> list[Problem]:
    """What is wrong with costs, with ways to score fewer documents, and with the cache."""
    return [
        *cost_problems(config, where, fitness),
        *racing_problems(config, where, fitness),
        *estimation_problems(config, where, fitness),
        *cache_problems(config, where),
    ]


def _found(config: ExperimentConfig, where: str, problems: list[Problem]) -> Iterator[tuple[str, Node]]:
    """What earlier stages found, by name."""
    for name, mapping in config.models.stages.items():
        place = f"{where}: models.stages.{name}"
        if name in config.models.experts or name == "base":
            problems.append(Problem(place, "a model has this name already; names of models and stages must differ"))
        try:
            yield name, recipe_from_mapping(mapping, place).model
        except InvalidInput as error:
            problems.extend(error.problems)


def _merged(
    config: ExperimentConfig,
    where: str,
    experts: tuple[tuple[str, Source], ...],
    found: tuple[tuple[str, Node], ...],
    space: object,
) -> tuple[tuple[str, Node], ...]:
    """The models that a parameter space merges.

    Raises:
        InvalidInput: a name that no model has, or a space whose models are named in another way.
    """
    chosen, known = config.models.merge, {**dict(experts), **dict(found)}
    if chosen is None:
        return experts
    place = f"{where}: models.merge"
    problems = [
        Problem(place, f"there is no model {name!r}. {did_you_mean(name, known)}")
        for name in chosen
        if name not in known
    ]
    if len(set(chosen)) < len(chosen):
        problems.append(Problem(place, "a model is listed twice"))
    if data_flow_of(space) is not None:
        problems.append(Problem(place, "only counts for a parameter space; name the models of a path in its `pool`"))
    if problems:
        raise InvalidInput(problems)
    return tuple((name, known[name]) for name in chosen)


def _given(source: Source | None) -> list[Source]:
    return [] if source is None else [source]


def _unusable(status: SourceStatus) -> bool:
    return status.state in ("missing", "zoo_to_build")


def _late_checks(config: object, space: SearchSpace | None, facts: ModelFacts) -> Iterator[str]:
    """What can be checked only once the models are on this machine."""
    if data_flow_of(config) is None:
        if facts.num_blocks is None:
            yield "block groups are checked once the models are on this machine"
    elif space is None:
        yield "paths are checked once the models are on this machine; give the search space `depths` to check them now"


def _optimizer_problems(
    config: ExperimentConfig, where: str, space: SearchSpace | None, fitness: Sequence[FitnessConfig] | None
) -> list[Problem]:
    place = f"{where}: optimizer"
    name = config.optimizer.name
    if name not in SPECS:
        return [Problem(f"{place}.name", f"no optimizer is called {name!r}. {did_you_mean(name, SPECS)}")]
    spec = SPECS[name]
    if space is None or fitness is None or spec.merges_seeds != isinstance(space, LineageSpace):
        return []  # the last of them is told by `lineage_problems`
    if config.optimizer.mode == "steady_state" and not spec.steady_state:
        return [Problem(f"{place}.mode", f"{name} works in generations only")]
    if config.optimizer.warm_start is not None and not spec.warm_start:
        able = ", ".join(other.name for other in SPECS.values() if other.warm_start)
        return [Problem(f"{place}.warm_start", f"{name} learns only from its own candidates. Use {able}.")]
    found = validate_optimizer(name, config.optimizer.settings, _optimizer_problem(config, space, fitness))
    return [Problem(f"{where}: {key}", message) for key, message in found]


def _optimizer_problem(
    config: ExperimentConfig, space: SearchSpace, fitness: Sequence[FitnessConfig]
) -> search.Problem:
    objectives = sum(len(objective_names(item)) for item in fitness)
    many = SPECS[config.optimizer.name].multi_objective
    return search.Problem(
        genes=space.genes,
        num_objectives=objectives if many else 1,
        seed=derive_seed(config.seed, "optimizer"),
        evaluations=config.budget.evaluations,
        noisy=config.estimation is not None or any(_is_sample(item) for item in fitness),
        workers=config.runtime.workers if isinstance(config.runtime.workers, int) else DEFAULT_BATCH,
        num_constraints=len(config.constraints),
        warm_start=config.optimizer.warm_start is not None,
    )


def _is_sample(config: FitnessConfig) -> bool:
    """Whether a score is an estimate: the search scores a sample of the split, or measures time."""
    if config.cost is not None:
        return config.cost == "latency"
    return config.documents is not None and config.documents.search.limit is not None


def _resolved(
    config: ExperimentConfig, space: BaseModel, fitness: Sequence[FitnessConfig], report: Sequence[FitnessConfig]
) -> dict[str, Any]:
    mapping = config.model_dump(mode="json", exclude_none=True)
    if not config.models.stages:
        del mapping["models"]["stages"]
    mapping["search_space"] = space.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    mapping["fitness"] = [item.model_dump(mode="json", exclude_defaults=True) for item in fitness]
    if report:
        mapping["report"] = [item.model_dump(mode="json", exclude_defaults=True) for item in report]
    else:
        mapping.pop("report", None)
    return mapping
