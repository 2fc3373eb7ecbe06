"""The keys of ``kind: joint``: ``parameters``, a parameter space, and ``route``, a data flow.

The model that the parameters make is in the route's pool under the name ``merged``. Both parts are written as mappings
(their ``kind`` may be left out), names of presets, or paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from evomerge.errors import InvalidInput, Problem, did_you_mean
from evomerge.spaces.config_types import Strict
from evomerge.spaces.data_flow_config import (
    DataFlowConfig,
    IndicatorConfig,
    IntegrationConfig,
    LayerSwapConfig,
    SequenceConfig,
    SlicesConfig,
)
from evomerge.spaces.parameter_space_config import ParameterSpaceConfig

PARTS = {"parameters": "parameter_space", "route": "data_flow"}

AnyDataFlow = Annotated[
    IndicatorConfig | IntegrationConfig | SequenceConfig | SlicesConfig | LayerSwapConfig,
    Field(discriminator="encoding"),
]


class JointConfig(Strict):
    """A search over the numbers of a merge and a path through the merged model and others."""

    kind: Literal["joint"]
    parameters: ParameterSpaceConfig
    route: AnyDataFlow
    _where: str = PrivateAttr(default="search space")

    @property
    def where(self) -> str:
        """The file, as shown in errors."""
        return self._where


def load_joint(entries: Mapping[str, Any], where: str, load: Callable[[Any, str], Any]) -> JointConfig:
    """The checked configuration of a joint space.

    Args:
        entries: the mapping.
        where: file and key shown in errors.
        load: takes what stands for a part, and the file and key of it, to its configuration.

    Raises:
        InvalidInput: everything wrong with it that shows without the models.
    """
    known = ("kind", *PARTS)
    problems = [
        Problem(f"{where}: {key}", f"unknown key. {did_you_mean(str(key), known)}")
        for key in entries
        if key not in known
    ]
    parts: dict[str, Any] = {}
    for key, kind in PARTS.items():
        place, value = f"{where}: {key}", entries.get(key)
        if isinstance(value, Mapping):
            value = {"kind": kind, **value}
        elif not isinstance(value, str | Path):
            found = "missing; it is required" if value is None else f"expected a mapping or a name, got {value!r}"
            problems.append(Problem(place, found))
            continue
        try:
            parts[key] = load(value, place)
        except InvalidInput as error:
            problems += error.problems
            continue
        if parts[key].kind != kind:
            problems.append(Problem(place, f"expected a search space of kind {kind}, got one of {parts[key].kind}"))
    if problems:
        raise InvalidInput(problems)
    config = JointConfig(kind="joint", **parts)
    config._where = where
    return config


def data_flow_of(config: object) -> DataFlowConfig | None:
    """The data flow of a search space's configuration, None where it has none."""
    if isinstance(config, JointConfig):
        return config.route
    return config if isinstance(config, DataFlowConfig) else None
