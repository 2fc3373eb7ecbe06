"""The keys of ``kind: data_flow``, and what can be wrong with them before any model is known.

All encodings:

- ``pool``: names of experts, ``base``, or extra models; the first one, A, lends the ends (embeddings, final norm, head,
  tokenizer). Default: extra models, then all experts.
- ``scale_target``: ``stream`` or ``branch``, see ``recipes.recipe.Route``.
- ``max_hops``, ``max_parameters`` (``200M``; distinct blocks and the ends): a longer path is cut, by a rule that each
  encoding states, never refused. Not with ``layer_swap``, whose paths are as long as A is deep.
- ``block_size``: hops come in units of so many neighbouring blocks.
- ``depths``: number of blocks of each model, for checking a search whose models are not on this machine.
- ``scale``: ``{form, low, high, init}`` of the searched scales; the first hop's is always 1.

The encodings and their own keys are the classes below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StrictBool, StrictStr

from evomerge.errors import Problem, did_you_mean
from evomerge.spaces.config_types import Count, Number, Positive, Strict


class ScaleConfig(Strict):
    """Searched scales of hops."""

    form: str = "none"
    low: Number = 0.0
    high: Number = 2.0
    init: Number = 1.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of everything wrong."""
        if not self.low < self.high:
            yield "scale", f"low must be below high, got low {self.low:g} and high {self.high:g}"
        elif not self.low <= self.init <= self.high:
            yield "scale.init", f"must lie between low {self.low:g} and high {self.high:g}, got {self.init:g}"


class SlotScaleConfig(ScaleConfig):
    """No scales, or one for each place of a list or each slice."""

    form: Literal["none", "slot"] = "none"


class PositionScaleConfig(ScaleConfig):
    """Scales behind the positions of ``integration``."""

    form: Literal["none", "slot"] = "slot"


class IndicatorScaleConfig(ScaleConfig):
    """Scales of ``indicator``: for each ordered pair of units (matrix), from a small network, or for each slot."""

    form: Literal["none", "matrix", "network", "slot"] = "none"
    hidden: Positive = 8

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of everything wrong."""
        yield from super().problems()
        if self.form != "network" and "hidden" in self.model_fields_set:
            yield "scale.hidden", "only counts with form: network; remove it"
        if self.form == "network" and self.init != 1:
            yield "scale.init", "a network starts at scales of 1; remove it"


class DataFlowConfig(Strict):
    """What all encodings have in common."""

    kind: Literal["data_flow"]
    encoding: str
    pool: Annotated[list[StrictStr], Field(min_length=1)] | None = None
    scale_target: Literal["stream", "branch"] = "stream"
    depths: dict[str, Positive] | None = None
    _where: str = PrivateAttr(default="search space")

    @property
    def where(self) -> str:
        """The file, as shown in errors."""
        return self._where

    @property
    def limits(self) -> tuple[int | None, int | None]:
        """Largest number of hops, and of parameters."""
        return getattr(self, "max_hops", None), getattr(self, "max_parameters", None)

    @property
    def unit_size(self) -> int:
        """Blocks of one unit."""
        return int(getattr(self, "block_size", 1))

    def located(self, where: str) -> DataFlowConfig:
        """The same with its place for error messages."""
        copy = self.model_copy()
        copy._where = where
        return copy

    def problems(self, where: str) -> list[Problem]:
        """Everything wrong that shows without the models."""
        return [Problem(f"{where}: {key}", message) for key, message in self._problems()]

    def _problems(self) -> Iterator[tuple[str, str]]:
        if self.pool is not None:
            if len(set(self.pool)) < len(self.pool):
                yield "pool", "a model is listed twice"
            for name in self.depths or {}:
                if name not in self.pool:
                    yield f"depths.{name}", f"is not in the pool. {did_you_mean(name, self.pool)}"
        scale = getattr(self, "scale", None)
        if isinstance(scale, ScaleConfig):
            yield from scale.problems()


class LimitedConfig(DataFlowConfig):
    """An encoding whose paths have no fixed length."""

    max_hops: Positive | None = None
    max_parameters: Count | None = None


class IndicatorConfig(LimitedConfig):
    """Units of all models, listed ``repeats`` times; a slot runs where its indicator is above 0 (arXiv 2403.13187).

    Over the limits, slots with the smallest indicators do not run.
    """

    encoding: Literal["indicator"]
    repeats: Positive = 3
    fixed_ends: StrictBool = True
    sigma: Annotated[float, Field(strict=True, gt=0, le=0.5)] = 0.1
    scale: IndicatorScaleConfig = Field(default_factory=IndicatorScaleConfig)
    block_size: Positive = 1


class IntegrationConfig(LimitedConfig):
    """At each depth the blocks of some of the models in some order (depth-wise integration, arXiv 2502.04030).

    Over the limits, positions lose their last blocks, beginning with the last position.
    """

    encoding: Literal["integration"]
    scale: PositionScaleConfig = Field(default_factory=PositionScaleConfig)


class SequenceConfig(LimitedConfig):
    """A list of units of any model in any order. Over the limits it is cut at its end."""

    encoding: Literal["sequence"]
    scale: SlotScaleConfig = Field(default_factory=SlotScaleConfig)
    block_size: Positive = 1


class SlicesConfig(LimitedConfig):
    """A few runs of neighbouring units (passthrough, depth up-scaling). Over the limits they are cut at the end."""

    encoding: Literal["slices"]
    num_slices: Positive = 3
    scale: SlotScaleConfig = Field(default_factory=SlotScaleConfig)
    block_size: Positive = 1


class LayerSwapConfig(DataFlowConfig):
    """A donor's first and last blocks around A's, with mixed blocks at the seams (arXiv 2410.01335)."""

    encoding: Literal["layer_swap"]
    seams: StrictBool = True
    outside: StrictBool = False


CONFIGS: dict[str, type[DataFlowConfig]] = {
    "indicator": IndicatorConfig,
    "integration": IntegrationConfig,
    "sequence": SequenceConfig,
    "slices": SlicesConfig,
    "layer_swap": LayerSwapConfig,
}


def encoding_problem(entries: dict[str, Any], where: str) -> Problem | None:
    """Why a mapping names no encoding, None when it does."""
    name = entries.get("encoding")
    if isinstance(name, str) and name in CONFIGS:
        return None
    found = "missing; it is required." if name is None else f"unknown encoding {name!r}."
    return Problem(f"{where}: encoding", f"{found} {did_you_mean(str(name), CONFIGS)}")
