"""Search spaces from presets, files and inline mappings. Each kind is one entry of KINDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.presets import preset_dir
from evomerge.spaces.data_flow import build_data_flow
from evomerge.spaces.data_flow_config import CONFIGS, DataFlowConfig, encoding_problem
from evomerge.spaces.joint_config import JointConfig, load_joint
from evomerge.spaces.joint_space import build_joint
from evomerge.spaces.lineage_space import LineageConfig, build_lineage
from evomerge.spaces.parameter_space import build_parameter_space
from evomerge.spaces.parameter_space_config import ParameterSpaceConfig
from evomerge.spaces.space import SearchSpace, SpaceModels
from evomerge.yaml_files import pydantic_problems, read_yaml_mapping

__all__ = ["KINDS", "SpaceConfig", "SpaceModels", "build_space", "load_space", "space_presets"]

SpaceConfig = ParameterSpaceConfig | DataFlowConfig | JointConfig | LineageConfig
Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Kind:
    """One kind of search space.

    Attributes:
        load: takes a mapping, file and key shown in errors, and what paths are relative to, to a checked configuration.
        build: makes the space of a configuration over given models.
    """

    load: Callable[[dict[str, Any], str, Path], SpaceConfig]
    build: Callable[[Any, SpaceModels], SearchSpace | None]


def _load_parameter_space(entries: dict[str, Any], where: str, folder: Path) -> ParameterSpaceConfig:
    config = _validated(ParameterSpaceConfig, entries, where)
    _refuse(config.problems(where))
    init_from = None if config.init_from is None else str((folder / config.init_from).resolve())
    return config.located(where, init_from)


def _load_data_flow(entries: dict[str, Any], where: str, folder: Path) -> DataFlowConfig:
    problem = encoding_problem(entries, where)
    _refuse([] if problem is None else [problem])
    config = _validated(CONFIGS[entries["encoding"]], entries, where)
    _refuse(config.problems(where))
    return config.located(where)


def _load_joint(entries: dict[str, Any], where: str, folder: Path) -> JointConfig:
    return load_joint(entries, where, lambda part, place: load_space(part, place, folder))


def _load_lineage(entries: dict[str, Any], where: str, folder: Path) -> LineageConfig:
    config = _validated(LineageConfig, entries, where)
    _refuse(config.problems(where))
    return config.located(where)


KINDS: dict[str, Kind] = {
    "parameter_space": Kind(_load_parameter_space, build_parameter_space),
    "data_flow": Kind(_load_data_flow, build_data_flow),
    "joint": Kind(_load_joint, build_joint),
    "lineage": Kind(_load_lineage, build_lineage),
}


def space_presets() -> dict[str, Path]:
    """Name and file of every shipped search space."""
    return {path.stem: path for path in sorted(preset_dir("search_spaces").rglob("*.yaml"))}


def load_space(
    space: str | Path | Mapping[str, Any], where: str = "search_space", folder: Path | None = None
) -> SpaceConfig:
    """The checked configuration of a search space.

    Args:
        space: the name of a preset, a path, or the mapping itself.
        where: file and key shown in errors when ``space`` is not a file of its own.
        folder: what relative paths are relative to; the working directory when None.

    Raises:
        InvalidInput: everything wrong with it that shows without the models.
    """
    folder = folder or Path()
    if isinstance(space, Mapping):
        entries = dict(space)
    else:
        path = _find(str(space), where, folder)
        entries, where, folder = read_yaml_mapping(path), str(path), path.parent
    name = entries.get("kind")
    if name == "sequence":
        message = "stages are written in the experiment's own file, as its search_space; no stage holds further stages"
        raise InvalidInput([Problem(f"{where}: kind", message)])
    if not isinstance(name, str) or name not in KINDS:
        found = "missing; it is required." if name is None else f"unknown kind {name!r}."
        raise InvalidInput([Problem(f"{where}: kind", f"{found} {did_you_mean(str(name), KINDS)}")])
    return KINDS[name].load(entries, where, folder)


def _validated(schema: type[Schema], entries: dict[str, Any], where: str) -> Schema:
    try:
        return schema.model_validate(entries)
    except ValidationError as error:
        raise InvalidInput(pydantic_problems(error, where, schema)) from None


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InvalidInput(problems)


def build_space(config: SpaceConfig, models: SpaceModels) -> SearchSpace | None:
    """The search space over given models.

    Returns:
        The space; None when it depends on the number of blocks and that is not known yet.

    Raises:
        InvalidInput: everything about it that does not fit the models.
    """
    return KINDS[config.kind].build(config, models)


def _find(text: str, where: str, folder: Path) -> Path:
    presets = space_presets()
    if text in presets:
        return presets[text]
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return folder / text
    raise InvalidInput([Problem(where, f"no search space is called {text!r}. {did_you_mean(text, presets)}")])
