"""The keys of ``kind: parameter_space``, and what can be wrong with them before any model is known.

- ``method``: one merge method, or a list; then the choice is a gene.
- ``groups.blocks``: a number of equal groups of blocks, ``each``, or ranges ``[[0, 9], [10, 29]]`` (both ends included)
  that are all blocks in order. Default 1.
- ``groups.components``: a list of attention, mlp, norms, embeddings, head, other, or a mapping from own names to such a
  component or to a regular expression searched in tensor names. ``other`` takes what is left and is added when missing.
- ``parameters``: each a plain value (fixed) or ``{per, low, high, init, share, choices}``. ``per``: ``expert`` or
  ``merge``. ``init``: a number, ``1/n``, or a number for each expert. ``share``: which of blocks, components, experts
  have one value together. ``choices``: of a category or truth value; the first is the start.
- ``fixed``: plain values, or one for each expert.
- ``smooth``: ``groups.blocks`` is a number of knots, equally spaced from the first to the last block, linear between.
- ``init_from``: a recipe file whose values are the start.
- ``values_from``: an earlier stage, whose winner is the start and gives all that is neither searched nor fixed.
- ``before``, ``after``: lists of ``{method, parameters, fixed}`` put on each expert first, or on the merged model (see
  recipes/modifiers.py); their parameters are searched in the same groups.

Coefficients that the method divides by their sum (``normalize: true``) are searched on the simplex (see simplex.py);
other null directions are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, StrictBool, StrictInt, StrictStr

from evomerge.errors import Problem, UserError, did_you_mean
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.recipe import COMPONENTS
from evomerge.recipes.validate import value_problem
from evomerge.spaces.config_types import Number, Positive, Strict

Block = Annotated[int, Field(strict=True, ge=0)]
Plain = StrictBool | StrictInt | Number | StrictStr
Shared = Literal["blocks", "components", "experts"]


class GroupsConfig(Strict):
    """Which tensors share a gene."""

    blocks: Positive | Literal["each"] | list[tuple[Block, Block]] = 1
    components: list[StrictStr] | dict[str, StrictStr] | None = None


class SearchedConfig(Strict):
    """One searched hyperparameter."""

    per: Literal["expert", "merge"] | None = None
    low: Number | None = None
    high: Number | None = None
    init: Number | Literal["1/n"] | dict[str, Number] | None = None
    share: list[Shared] = Field(default_factory=list)
    choices: list[Plain] | None = None


class ModifierConfig(Strict):
    """A method around the merge."""

    method: StrictStr
    parameters: dict[str, SearchedConfig | Plain] = Field(default_factory=dict)
    fixed: dict[str, Plain | dict[str, Plain]] = Field(default_factory=dict)


class ParameterSpaceConfig(Strict):
    """A search over the numbers of a merge method."""

    kind: Literal["parameter_space"]
    method: StrictStr | Annotated[list[StrictStr], Field(min_length=1)]
    groups: GroupsConfig = Field(default_factory=GroupsConfig)
    parameters: dict[str, SearchedConfig | Plain] = Field(default_factory=dict)
    fixed: dict[str, Plain | dict[str, Plain]] = Field(default_factory=dict)
    smooth: StrictBool = False
    init_from: StrictStr | None = None
    values_from: StrictStr | None = None
    before: list[ModifierConfig] = Field(default_factory=list)
    after: list[ModifierConfig] = Field(default_factory=list)
    _where: str = PrivateAttr(default="search space")

    @property
    def where(self) -> str:
        """The file, as shown in errors."""
        return self._where

    @property
    def methods(self) -> list[str]:
        """The methods, one or several."""
        return [self.method] if isinstance(self.method, str) else list(self.method)

    @property
    def searched(self) -> dict[str, SearchedConfig]:
        """The searched hyperparameters."""
        return {name: entry for name, entry in self.parameters.items() if isinstance(entry, SearchedConfig)}

    @property
    def all_fixed(self) -> dict[str, Plain | dict[str, Plain]]:
        """The fixed hyperparameters, whether written under ``fixed`` or as a plain value under ``parameters``."""
        plain = {name: entry for name, entry in self.parameters.items() if not isinstance(entry, SearchedConfig)}
        return {**plain, **self.fixed}

    @property
    def is_searched(self) -> bool:
        """Whether anything is."""
        modifiers = (*self.before, *self.after)
        return bool(self.searched or len(self.methods) > 1 or any(map(_searched, modifiers)))

    def of_modifier(self, modifier: ModifierConfig) -> ParameterSpaceConfig:
        """The search over the numbers of a method around the merge, in the same groups."""
        return ParameterSpaceConfig(
            kind=self.kind,
            method=modifier.method,
            groups=self.groups,
            parameters=modifier.parameters,
            fixed=modifier.fixed,
            smooth=self.smooth,
        ).located(self.where, None)

    def problems(self, where: str) -> list[Problem]:
        """Everything wrong that shows without the models."""
        found = list(_problems(self))
        if not self.is_searched and not any(key == "method" for key, _ in found):
            found.append(("parameters", "nothing is searched: give at least one parameter low and high"))
        for place in ("before", "after"):
            for index, modifier in enumerate(getattr(self, place)):
                inner = _problems(self.of_modifier(modifier))
                found += [(f"{place}[{index}].{key}", text) for key, text in inner if not key.startswith("groups")]
        return [Problem(f"{where}: {key}", message) for key, message in found]

    def located(self, where: str, init_from: str | None) -> ParameterSpaceConfig:
        """The same with its place for error messages, and ``init_from`` as an absolute path."""
        copy = self.model_copy(update={"init_from": init_from})
        copy._where = where
        return copy


def _searched(modifier: ModifierConfig) -> bool:
    return any(isinstance(entry, SearchedConfig) for entry in modifier.parameters.values())


def specs_of(config: ParameterSpaceConfig) -> list[MethodSpec]:
    """The specs of the methods.

    Raises:
        UserError: unknown method.
    """
    from evomerge.methods.catalogue import get_spec

    return [get_spec(name) for name in config.methods]


def parameter_of(specs: list[MethodSpec], name: str) -> Hyperparameter | None:
    """The hyperparameter of that name in the first method that has it."""
    found = (entry for spec in specs for entry in spec.hyperparameters if entry.name == name)
    return next(found, None)


def uses_simplex(config: ParameterSpaceConfig, spec: MethodSpec) -> bool:
    """Whether only the ratios of this method's searched coefficients count, because it divides by their sum."""
    if "coefficient" not in config.searched or not any(entry.name == "normalize" for entry in spec.hyperparameters):
        return False
    return bool(config.all_fixed.get("normalize", spec.hyperparameter("normalize").default))


def bounds(parameter: Hyperparameter, entry: SearchedConfig) -> tuple[float, float]:
    """Low and high of a number: the user's, else the method's."""
    low = parameter.low if entry.low is None else entry.low
    return low, parameter.high if entry.high is None else entry.high


def _problems(config: ParameterSpaceConfig) -> Iterator[tuple[str, str]]:
    yield from _group_problems(config.groups, config.smooth)
    if len(set(config.methods)) < len(config.methods):
        yield "method", "the same method is listed twice"
    try:
        specs = specs_of(config)
    except UserError as error:
        yield "method", str(error)
        return
    known = sorted({entry.name for spec in specs for entry in spec.hyperparameters})
    for section in ("parameters", "fixed"):
        for name in getattr(config, section):
            if name not in known:
                who = specs[0].name if len(specs) == 1 else "none of the methods"
                verb = "has no such parameter" if len(specs) == 1 else "has such a parameter"
                yield f"{section}.{name}", f"{who} {verb}. {did_you_mean(name, known)}"
            elif section == "fixed" and name in config.parameters:
                yield f"fixed.{name}", "is also under parameters; keep one of them"
    for name, entry in config.searched.items():
        parameter = parameter_of(specs, name)
        if parameter is not None:
            yield from _searched_problems(config, specs, parameter, entry)
    for name, value in config.all_fixed.items():
        parameter = parameter_of(specs, name)
        if parameter is not None:
            yield from _fixed_problems(f"{'fixed' if name in config.fixed else 'parameters'}.{name}", parameter, value)
    yield from _null_directions(config, specs)
    if config.values_from is not None:
        for other in ("init_from", "before", "after"):
            if getattr(config, other):
                yield other, "does not go with values_from, which takes the values of one merge of the same method"
        return
    for spec in specs:
        for parameter in spec.hyperparameters:
            given = parameter.name in config.parameters or parameter.name in config.fixed
            if parameter.default is None and not given:
                yield f"parameters.{parameter.name}", f"missing; {spec.name} needs it"


def _group_problems(groups: GroupsConfig, smooth: bool) -> Iterator[tuple[str, str]]:
    if isinstance(groups.blocks, list):
        position = 0
        for first, last in groups.blocks:
            if first != position or last < first:
                message = f"the ranges must be all blocks in order; expected one from block {position}"
                yield "groups.blocks", f"{message}, got [{first}, {last}]"
                break
            position = last + 1
        if not groups.blocks:
            yield "groups.blocks", "expected at least one range [first, last]"
    if smooth and not (isinstance(groups.blocks, int) and groups.blocks >= 2):
        yield "groups.blocks", f"smooth needs a number of knots, 2 or more, got {groups.blocks!r}"
    names = groups.components or []
    if isinstance(names, list):
        for name in names:
            if name not in COMPONENTS:
                hint = "A pattern needs a name: {my_group: pattern}."
                yield "groups.components", f"unknown component {name!r}. {did_you_mean(name, COMPONENTS)} {hint}"
        if len(set(names)) < len(names):
            yield "groups.components", "a component is listed twice"
        return
    for name, pattern in names.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            yield f"groups.components.{name}", "the name must be a word"
        if name == "other" and pattern != "other":
            yield f"groups.components.{name}", "other is the group that catches everything left; choose another name"
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"groups.components.{name}", f"{pattern!r} is not a regular expression ({error})"
    if len(set(names.values())) < len(names):
        yield "groups.components", "two groups have the same pattern"


def _searched_problems(
    config: ParameterSpaceConfig, specs: list[MethodSpec], parameter: Hyperparameter, entry: SearchedConfig
) -> Iterator[tuple[str, str]]:
    key = f"parameters.{parameter.name}"
    if entry.per == "expert" and parameter.per == "merge":
        yield f"{key}.per", f"{parameter.name} is one value per merge, not per expert"
    if "experts" in entry.share and parameter.per == "merge":
        yield f"{key}.share", f"{parameter.name} is one value for all experts already"
    if parameter.kind in ("float", "int"):
        if entry.choices is not None:
            yield f"{key}.choices", f"{parameter.name} is a number; give low and high"
        yield from _number_problems(config, specs, parameter, entry)
        return
    for name in ("low", "high", "init"):
        if getattr(entry, name) is not None:
            yield f"{key}.{name}", f"{parameter.name} is a {parameter.kind}; give choices, the first is the start"
    if config.smooth and "blocks" not in entry.share:
        yield key, f"{parameter.name} is a {parameter.kind} and cannot be interpolated; add share: [blocks]"
    for value in entry.choices or ():
        message = value_problem(parameter, value)
        if message:
            yield f"{key}.choices", message
    if entry.choices is not None and len(set(map(str, entry.choices))) < max(2, len(entry.choices)):
        yield f"{key}.choices", "expected two or more different choices"


def _number_problems(
    config: ParameterSpaceConfig, specs: list[MethodSpec], parameter: Hyperparameter, entry: SearchedConfig
) -> Iterator[tuple[str, str]]:
    key = f"parameters.{parameter.name}"
    low, high = bounds(parameter, entry)
    for name, limit in (("low", entry.low), ("high", entry.high)):
        message = None if limit is None or parameter.kind == "int" else value_problem(parameter, limit)
        if message:
            yield f"{key}.{name}", message
    if not low < high:
        yield key, f"low must be below high, got low {low:g} and high {high:g}"
    if parameter.kind == "int" and (low != int(low) or high != int(high)):
        yield key, f"{parameter.name} is a whole number; low and high must be whole too"
    if parameter.kind == "int" and config.smooth and "blocks" not in entry.share:
        yield key, f"{parameter.name} is a whole number and cannot be interpolated; add share: [blocks]"
    values = entry.init.values() if isinstance(entry.init, dict) else [entry.init]
    for value in values:
        if isinstance(value, float | int) and not low <= value <= high:
            yield f"{key}.init", f"must lie between low {low:g} and high {high:g}, got {value:g}"
    if parameter.name == "coefficient" and any(uses_simplex(config, spec) for spec in specs):
        yield from _simplex_problems(key, entry)


def _simplex_problems(key: str, entry: SearchedConfig) -> Iterator[tuple[str, str]]:
    why = "with normalize: true only the ratios of the coefficients count, so they are searched on the simplex"
    remedy = "or fix normalize: false"
    if (entry.low or 0) != 0 or (entry.high or 1) != 1:
        yield key, f"{why}, each from 0 to 1: remove low and high, {remedy}"
    if isinstance(entry.init, float | int):
        yield f"{key}.init", f"{why}: write init: 1/n or one number for each expert, {remedy}"
    if "experts" in entry.share or entry.per == "merge":
        yield f"{key}.share", f"{why}: one coefficient for all experts would change nothing; remove it, {remedy}"


def _fixed_problems(key: str, parameter: Hyperparameter, value: Plain | dict[str, Plain]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and parameter.per == "merge":
        yield key, f"{parameter.name} is one value per merge, got one for each expert"
    for name, item in value.items() if isinstance(value, dict) else [("", value)]:
        message = value_problem(parameter, item)
        if message:
            yield f"{key}.{name}".rstrip("."), message


def _null_directions(config: ParameterSpaceConfig, specs: list[MethodSpec]) -> Iterator[tuple[str, str]]:
    searched = config.searched
    if "coefficient" not in searched:
        return
    if "normalize" in searched:
        message = "when it is true the common scale of the coefficients changes nothing; fix it to true or false"
        yield "parameters.normalize", f"cannot be searched together with coefficient: {message}"
        return
    having = [spec for spec in specs if any(entry.name == "coefficient" for entry in spec.hyperparameters)]
    on_simplex = {spec.name: uses_simplex(config, spec) for spec in having}
    if len(set(on_simplex.values())) > 1:
        dividing = ", ".join(name for name, divides in on_simplex.items() if divides)
        yield "fixed.normalize", f"missing; {dividing} divides by the sum of the coefficients and the others do not"
    if "lambda" in searched and not all(on_simplex.values()):
        why = "it multiplies every coefficient, so a whole line of genotypes gives one model"
        remedy = "fix lambda to 1, or fix the coefficients"
        yield "parameters.lambda", f"cannot be searched together with coefficient: {why}; {remedy}"
