"""Search spaces from presets, files and inline mappings. Each kind is one entry of KINDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.presets import preset_dir
from evomerge.spaces.parameter_space import build_parameter_space
from evomerge.spaces.parameter_space_config import ParameterSpaceConfig
from evomerge.spaces.space import SearchSpace, SpaceModels
from evomerge.yaml_files import pydantic_problems, read_yaml_mapping

__all__ = ["KINDS", "SpaceConfig", "SpaceModels", "build_space", "load_space", "space_presets"]

SpaceConfig = ParameterSpaceConfig


@dataclass(frozen=True)
class Kind:
    """One kind of search space: its schema, and how a space is built from it."""

    config: type[SpaceConfig]
    build: Callable[[SpaceConfig, SpaceModels], SearchSpace | None]


KINDS: dict[str, Kind] = {"parameter_space": Kind(ParameterSpaceConfig, build_parameter_space)}


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
    schema = KINDS[name].config
    try:
        config = schema.model_validate(entries)
    except ValidationError as error:
        raise InvalidInput(pydantic_problems(error, where, schema)) from None
    problems = config.problems(where)
    if problems:
        raise InvalidInput(problems)
    init_from = None if config.init_from is None else str((folder / config.init_from).resolve())
    return config.located(where, init_from)


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
