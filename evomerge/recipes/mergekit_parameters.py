"""mergekit's levels of parameters as rules.

Precedence is mergekit's: source, output slice, module, top level, default of the method. In every output slice
gradients start anew; embeddings take the first slice and the other tensors outside the blocks the last one, both at
fraction 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.errors import did_you_mean
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.mergekit_dialect import (
    DIALECT,
    IGNORED,
    ONLY_FALSE,
    WITHOUT_EFFECT,
    by_mergekit_name,
    from_mergekit,
)
from evomerge.recipes.recipe import Node, Rule, Scalar, Source
from evomerge.yaml_files import is_finite_number

Parameters = Mapping[str, Any]
YAML_1_1 = {"yes": True, "on": True, "no": False, "off": False}
# Filters that may speak of a block's number: ``layers.3.``, ``.12``.
NUMBERED = re.compile(r"(^|\.)\d+(\.|$)")


@dataclass
class Entry:
    """One source of one output slice."""

    source: Node
    parameters: Parameters
    key: str
    layer_range: tuple[int, int] | None = None


@dataclass
class Slice:
    """One output slice; ``layer_range`` None = the whole depth, or sources with ranges of their own."""

    entries: list[Entry]
    parameters: Parameters
    key: str
    layer_range: tuple[int, int] | None = None
    base: Node | None = None


class Reporter(Protocol):
    """Where problems go."""

    def add(self, key: str, message: str) -> None:
        """Note a problem at a key of the file."""

    def check_keys(self, entries: Mapping[str, Any], known: tuple[str, ...], key: str) -> None:
        """Note every unknown key."""


class ParameterReader:
    """Turns mergekit's levels of parameters into rules."""

    def __init__(
        self,
        reader: Reporter,
        spec: MethodSpec,
        slices: list[Slice],
        outer: Sequence[tuple[Parameters, str]],
        is_renumbered: bool = False,
    ) -> None:
        """Remember the levels.

        Args:
            reader: where problems go.
            spec: the method.
            slices: output slices that one merge stands for.
            outer: levels beyond the slices with their keys, the nearest first.
            is_renumbered: whether the merge counts blocks in its own way, so that names of tensors are not the files'.
        """
        self._reader = reader
        self._spec = spec
        self._dialect = DIALECT[spec.name]
        self._slices = slices
        self._outer = outer
        self._is_renumbered = is_renumbered
        self._known = by_mergekit_name(spec)

    def rules(self, experts: Sequence[Node], names: list[str]) -> tuple[tuple[str, tuple[Rule, ...]], ...]:
        """Rules of every hyperparameter, in evomerge's names."""
        self._check_names()
        found: dict[str, tuple[Rule, ...]] = {}
        for mergekit_name, default in self._dialect.defaults.items():
            parameter = self._known.get(mergekit_name)
            if parameter is None:
                given = [level for level, _, _ in self._levels() if mergekit_name in level]
                if given:
                    self._reader.add(f"parameters.{mergekit_name}", f"is not supported for {self._spec.name}")
                continue
            rules = self._rules_of(mergekit_name, parameter, experts, names)
            if default is not None:
                rules.append(Rule(from_mergekit(parameter, default)))
            found[parameter.name] = _shortened(rules, names)
        for name, value in self._dialect.implied.items():
            if any(parameter.name == name for parameter in self._spec.hyperparameters):
                found[name] = (Rule(value),)
        return tuple(found.items())

    def _levels(self) -> list[tuple[Parameters, str, bool]]:
        """Every mapping of parameters with its key, and whether it stands beside a model."""
        levels = [(level, key, False) for level, key in self._outer]
        for item in self._slices:
            levels.append((item.parameters, f"{item.key}.parameters".lstrip("."), False))
            levels.extend((entry.parameters, f"{entry.key}.parameters", True) for entry in item.entries)
        return levels

    def _check_names(self) -> None:
        without = WITHOUT_EFFECT.get(self._spec.name, ())
        only_false = ONLY_FALSE.get(self._spec.name, ())
        known = (*self._dialect.defaults, *IGNORED)
        for level, key, beside_model in self._levels():
            for name in level:
                if name in without:
                    self._reader.add(f"{key}.{name}", f"has no effect in {self._spec.name}; remove it")
                elif name in only_false and not beside_model:
                    if level[name] not in (False, "no", "off", 0):
                        message = f"evomerge's {self._spec.name} does not rescale; remove it, or merge with mergekit"
                        self._reader.add(f"{key}.{name}", message)
                elif name not in known:
                    message = f"{self._spec.name} has no such parameter in mergekit. {did_you_mean(name, known)}"
                    self._reader.add(f"{key}.{name}", message)
                elif beside_model and name not in self._dialect.per_model:
                    self._reader.add(f"{key}.{name}", "mergekit ignores it beside a model; move it to the top level")

    def _rules_of(self, name: str, parameter: Hyperparameter, experts: Sequence[Node], names: list[str]) -> list[Rule]:
        rules: list[Rule] = []
        default = self._dialect.defaults[name]
        for item in self._slices:
            found: list[Rule] = []
            for source, expert in zip(experts, names):
                own = [entry for entry in item.entries if entry.source == source]
                if name in self._dialect.per_model and own:
                    # A passthrough has a single model, whose scale is the merge's.
                    whose = expert if parameter.per == "expert" else None
                    found += self._level(own[0].parameters, f"{own[0].key}.parameters", name, parameter, whose, item)
            found += self._level(item.parameters, f"{item.key}.parameters", name, parameter, None, item)
            for level, key in self._outer:
                found += self._level(level, key, name, parameter, None, item)
            if default is None:
                self._check_given(name, found, item, dict(zip(names, experts)) if parameter.per == "expert" else {})
            elif len(self._slices) > 1 and item is self._slices[0]:
                # Embeddings that no rule of the first slice names must not fall through to the last slice.
                found.append(Rule(from_mergekit(parameter, default), component="embeddings", outside_blocks=True))
            rules += found
        return rules

    def _check_given(self, name: str, rules: list[Rule], item: Slice, experts: Mapping[str, Node]) -> None:
        key = f"{item.key}.parameters.{name}".lstrip(".")
        if not experts and not rules:
            self._reader.add(key, f"missing; {self._spec.name} needs it")
        for expert, source in experts.items():
            if not any(rule.expert in (None, expert) for rule in rules):
                self._reader.add(
                    key, f"missing for {source if isinstance(source, Source) else expert}; {self._spec.name} needs it"
                )

    def _level(
        self, level: Parameters, key: str, name: str, parameter: Hyperparameter, expert: str | None, item: Slice
    ) -> list[Rule]:
        """Rules of one parameter at one level for one output slice."""
        if level.get(name) is None:
            return []
        rules: list[Rule] = []
        for value, contains in self._conditionals(level[name], f"{key}.{name}", parameter):
            if len(self._slices) == 1:
                rules.append(Rule(value, expert=expert, contains=contains))
                continue
            rules.append(Rule(value, item.layer_range, expert=expert, contains=contains))
            first = value[0] if isinstance(value, tuple) else value
            if item is self._slices[0]:
                rules.append(Rule(first, None, "embeddings", expert, contains, outside_blocks=True))
            elif item is self._slices[-1]:
                rules.append(Rule(first, None, None, expert, contains, outside_blocks=True))
        return rules

    def _conditionals(
        self, value: Any, key: str, parameter: Hyperparameter
    ) -> list[tuple[Scalar | tuple[float, ...], str | None]]:
        if isinstance(value, Mapping):
            value = [value]
        if not (isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value)):
            plain = self._plain(value, key, parameter)
            return [] if plain is None else [(plain, None)]
        found = []
        for index, item in enumerate(value):
            place = f"{key}[{index}]"
            self._reader.check_keys(item, ("filter", "value"), place)
            contains = item.get("filter")
            if not isinstance(contains, str | None):
                self._reader.add(f"{place}.filter", f"expected part of a tensor name, got {contains!r}")
                continue
            if self._is_renumbered and contains and NUMBERED.search(contains):
                message = (
                    "speaks of a block's number, which stacking changes; give the block a slice of its own instead"
                )
                self._reader.add(f"{place}.filter", f"{contains!r} {message}")
                continue
            plain = self._plain(item.get("value"), f"{place}.value", parameter)
            if plain is not None:
                found.append((plain, None if contains in (None, "*", "") else contains))
        return found

    def _plain(self, value: Any, key: str, parameter: Hyperparameter) -> Scalar | tuple[float, ...] | None:
        values = value if isinstance(value, list) else [value]
        if parameter.kind == "bool" or parameter.name == "rescale":  # mergekit's YAML 1.1 has more words for them
            values = [YAML_1_1.get(str(item).lower(), item) if isinstance(item, str) else item for item in values]
        kinds = (parameter.kind == "bool" or parameter.name == "rescale", len(values))
        usable = all(is_finite_number(item) or (kinds[0] and isinstance(item, bool)) for item in values)
        if not values or not usable or (kinds[0] and len(values) > 1):
            expected = "true or false" if kinds[0] else "a finite number or a list of them"
            self._reader.add(key, f"expected {expected}, got {value!r}")
            return None
        return from_mergekit(parameter, values[0]) if len(values) == 1 else tuple(values)


def _shortened(rules: list[Rule], names: list[str]) -> tuple[Rule, ...]:
    """The rules without those that can never be reached."""
    kept: list[Rule] = []
    closed: set[str | None] = set()
    for rule in rules:
        if rule.expert in closed or None in closed or (rule.expert is None and closed.issuperset(names)):
            continue
        if rule not in kept:
            kept.append(rule)
        if rule == Rule(rule.value, expert=rule.expert):
            closed.add(rule.expert)
    return tuple(kept)
