"""Staged experiments: searches one after the other, each of which may use what the earlier ones found.

The search space of such an experiment is a sequence::

    search_space:
      kind: sequence
      stages:
        - {name: ps, search_space: dare_ties_whole_model, budget: {evaluations: 1000}}
        - {name: dfs, search_space: {kind: data_flow, pool: [ps, shisa], ...}, optimizer: {name: sep_cma}}

A stage is an ordinary experiment: what it does not say itself, the whole experiment says for it. The winner of a stage
is a model that later stages name like an expert (Akiba et al. 2025, arXiv 2403.13187, section 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from evomerge.engine.sources import SourceStatus
from evomerge.errors import InvalidInput, Problem, ResumeRefused
from evomerge.experiment.config import Strict
from evomerge.experiment.load import CHANGEABLE, Experiment, find_experiment, resolve_experiment
from evomerge.experiment.overrides import apply_overrides
from evomerge.recipes.recipe import Recipe, Source
from evomerge.recipes.recipe_yaml import format_recipe
from evomerge.spaces.lineage_space import LineageSpace
from evomerge.store.manifest import differences
from evomerge.terms import derive_seed
from evomerge.yaml_files import parse_yaml_mapping, pydantic_problems, read_yaml_mapping

# What a stage may say for itself.
OWN_KEYS = ("optimizer", "budget", "fitness", "report", "finish", "scalarisation", "racing", "estimation")

# Stands for what a stage will find while that stage itself cannot be understood.
UNKNOWN = Recipe(Source("?"))


class StageConfig(Strict):
    """One stage; what stands behind its keys is checked as part of the whole experiment."""

    name: str = Field(pattern=r"^[A-Za-z][\w.-]*$")
    search_space: Any
    experts: Any = None
    optimizer: Any = None
    budget: Any = None
    fitness: Any = None
    report: Any = None
    finish: Any = None
    scalarisation: Any = None
    racing: Any = None
    estimation: Any = None

    @property
    def own(self) -> dict[str, Any]:
        """The keys of OWN_KEYS that this stage gives."""
        return {key: getattr(self, key) for key in OWN_KEYS if key in self.model_fields_set}


class SequenceConfig(Strict):
    """A search space of kind ``sequence``."""

    kind: str
    stages: list[StageConfig] = Field(min_length=1)


@dataclass(frozen=True)
class Stage:
    """One stage of a staged experiment.

    Attributes:
        config: the stage as it was written.
        loaded: its experiment, checked; a placeholder stands where an earlier stage's winner will be.
    """

    config: StageConfig
    loaded: Experiment

    @property
    def name(self) -> str:
        """Name of the stage, and of the model it finds."""
        return self.config.name


@dataclass(frozen=True)
class StagedExperiment:
    """A validated experiment of several stages.

    Attributes:
        name: of the run.
        where: what to call the file in messages.
        mapping: the file, overrides applied.
        folder: what relative paths are relative to.
        stages: in running order.
    """

    name: str
    where: str
    mapping: dict[str, Any]
    folder: Path
    stages: tuple[Stage, ...]

    @property
    def sources(self) -> tuple[SourceStatus, ...]:
        """What is known of each model."""
        return self.stages[0].loaded.sources

    @property
    def is_complete(self) -> bool:
        """Whether every stage's search space is known."""
        return all(stage.loaded.space is not None for stage in self.stages)

    @property
    def resolved(self) -> dict[str, Any]:
        """The file with presets written out; what the run directory keeps."""
        mapping = {key: value for key, value in self.stages[0].loaded.resolved.items() if key not in OWN_KEYS}
        mapping |= {key: self.mapping[key] for key in ("name", "seed", "models") if key in self.mapping}
        for key in OWN_KEYS:
            heirs = [stage.loaded.resolved for stage in self.stages if key not in stage.config.own]
            if heirs and key in heirs[0]:
                mapping[key] = heirs[0][key]
        entries = []
        for stage in self.stages:
            own = {key: stage.loaded.resolved[key] for key in stage.config.own if key in stage.loaded.resolved}
            chosen = {} if stage.config.experts is None else {"experts": stage.config.experts}
            space = stage.loaded.resolved["search_space"]
            entries.append({"name": stage.name, "search_space": space, **chosen, **own})
        return mapping | {"search_space": {"kind": "sequence", "stages": entries}}

    def experiment(self, number: int, found: Mapping[str, Recipe]) -> Experiment:
        """The experiment of a stage.

        Args:
            number: which stage, from 0.
            found: what the earlier stages found, by stage.

        Raises:
            InvalidInput: it cannot work with what they found.
        """
        mapping = _stage_mapping(self.mapping, self.stages[number].config, found)
        return resolve_experiment(mapping, f"{self.where} (stage {self.stages[number].name})", self.folder)

    def check_unchanged(self, before: StagedExperiment) -> None:
        """Make sure that a run is resumed as what it was started.

        Raises:
            ResumeRefused: the experiment is another one; the message lists what changed.
        """
        changes = [f"  {path}: {change}" for path, change in differences(before._identity(), self._identity())]
        if changes:
            lines = "\n".join(changes)
            raise ResumeRefused(
                f"{before.where}: this is not the run that was started:\n{lines}\nStart a new run instead."
            )

    def _identity(self) -> dict[str, Any]:
        """Everything that decides which candidates are asked and how they score, by stage."""
        return {
            stage.name: {key: value for key, value in stage.loaded.resolved.items() if key not in CHANGEABLE}
            for stage in self.stages
        }


def load_any(name: str | Path, overrides: Sequence[str] = ()) -> Experiment | StagedExperiment:
    """Read, check and resolve an experiment, staged or not, without touching weights or data sets.

    Args:
        name: path of a YAML file, or the name of a shipped experiment.
        overrides: ``key.path=value`` changes.

    Raises:
        InvalidInput: everything that is wrong, at once.
    """
    path = find_experiment(name)
    mapping = read_yaml_mapping(path)
    taken_over = _take_over(mapping, overrides)
    mapping = apply_overrides(mapping, overrides)
    for key in taken_over:
        if all(key in stage for stage in _stage_entries(mapping)):
            mapping.pop(key, None)  # nothing inherits it any more
    return resolve_any(mapping, str(path), path.resolve().parent)


def _take_over(mapping: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Give stages what they inherit before a value inside it is changed for them alone; the keys concerned."""
    found = []
    for override in overrides:
        keys = override.partition("=")[0].strip().split(".")
        if keys[:2] != ["search_space", "stages"] or len(keys) < 5 or not isinstance(mapping.get(keys[3]), dict):
            continue
        for number, stage in enumerate(_stage_entries(mapping)):
            if keys[2] in (stage.get("name"), str(number)) and keys[3] in OWN_KEYS:
                stage.setdefault(keys[3], dict(mapping[keys[3]]))
                found.append(keys[3])
    return found


def _stage_entries(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages as the file writes them, as far as they are mappings."""
    space = mapping.get("search_space")
    stages = space.get("stages") if isinstance(space, Mapping) else None
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def resolve_any(mapping: dict[str, Any], where: str, folder: Path) -> Experiment | StagedExperiment:
    """Check and resolve an experiment, staged or not, that is already parsed. See ``load_any``."""
    space = mapping.get("search_space")
    if isinstance(space, Mapping) and space.get("kind") == "sequence":
        return resolve_stages(mapping, where, folder)
    return resolve_experiment(mapping, where, folder)


def resolve_stages(mapping: dict[str, Any], where: str, folder: Path) -> StagedExperiment:
    """Check and resolve a staged experiment that is already parsed.

    Raises:
        InvalidInput: everything that is wrong with any stage.
    """
    try:
        configs = SequenceConfig.model_validate(mapping["search_space"]).stages
    except ValidationError as error:
        raise InvalidInput(pydantic_problems(error, f"{where}: search_space", SequenceConfig)) from None
    problems = [*_name_problems(mapping, configs, where), *_idle_key_problems(mapping, configs, where)]
    stages: list[Stage] = []
    found: dict[str, Recipe] = {}
    for number, config in enumerate(configs):
        try:
            loaded = resolve_experiment(_stage_mapping(mapping, config, found), where, folder)
        except InvalidInput as error:
            problems += [_located(problem, config, number, where) for problem in error.problems]
            found.setdefault(config.name, UNKNOWN)
            continue
        stages.append(Stage(config, loaded))
        found.setdefault(config.name, _placeholder(loaded))
    if problems:
        raise InvalidInput(list(dict.fromkeys(problems)))
    return StagedExperiment(str(mapping["name"]), where, mapping, folder, tuple(stages))


def _stage_mapping(mapping: Mapping[str, Any], config: StageConfig, found: Mapping[str, Recipe]) -> dict[str, Any]:
    """The experiment of one stage as a file would hold it."""
    entries = {**mapping, "search_space": config.search_space, **config.own}
    if isinstance(entries.get("name"), str):
        entries["name"] = f"{entries['name']}.{config.name}"
    if type(seed := entries.get("seed", 0)) is int:
        entries["seed"] = derive_seed(seed, "stage", config.name) if seed >= 0 else seed
    models = entries.get("models")
    if config.experts is not None and isinstance(models, Mapping):
        entries["models"] = models = {**models, "merge": config.experts}
    if found and isinstance(models, Mapping):
        recipes = {name: parse_yaml_mapping(format_recipe(recipe), name) for name, recipe in found.items()}
        entries["models"] = {**models, "stages": {**models.get("stages", {}), **recipes}}
    return entries


def _placeholder(loaded: Experiment) -> Recipe:
    """A model of the kind that a stage will find: where its search begins."""
    if loaded.space is None:
        return Recipe(loaded.base or loaded.experts[0][1])
    if isinstance(loaded.space, LineageSpace):
        return Recipe(loaded.space.seeds[0][1])
    return loaded.space.decode(np.array([gene.initial for gene in loaded.space.genes]))


def _name_problems(mapping: Mapping[str, Any], configs: Sequence[StageConfig], where: str) -> list[Problem]:
    """Stages are named like models; no two things may have one name."""
    models = mapping.get("models")
    experts = models.get("experts", ()) if isinstance(models, Mapping) else ()
    taken = {str(name): "an expert" for name in experts} | {"base": "the base model"}
    problems = []
    for number, config in enumerate(configs):
        if config.name in taken:
            message = f"{config.name!r} is the name of {taken[config.name]}; names of models and stages must differ"
            problems.append(Problem(f"{where}: search_space.stages[{number}].name", message))
        taken.setdefault(config.name, "an earlier stage")
    return problems


def _idle_key_problems(mapping: Mapping[str, Any], configs: Sequence[StageConfig], where: str) -> list[Problem]:
    """A value that every stage replaces does nothing, which nobody wants who writes it."""
    return [
        Problem(
            f"{where}: {key}",
            f"every stage has its own {key}, so this one has no effect; remove it, or change "
            f"search_space.stages.{configs[0].name}.{key}",
        )
        for key in OWN_KEYS
        if key in mapping and all(key in config.own for config in configs)
    ]


def _located(problem: Problem, config: StageConfig, number: int, where: str) -> Problem:
    """The problem of a stage's experiment, told by the key of the file that holds it."""
    place = problem.where.removeprefix(where).removeprefix(": ")
    if place.startswith("models.merge"):
        return Problem(f"{where}: search_space.stages[{number}].experts", problem.message)
    key = re.match(r"\w*", place)
    own = key is not None and (key[0] == "search_space" or key[0] in config.own)
    if not problem.where.startswith(f"{where}: ") or not own:
        return problem
    return Problem(f"{where}: search_space.stages[{number}].{place}", problem.message)
