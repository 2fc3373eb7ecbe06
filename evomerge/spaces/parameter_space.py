"""``kind: parameter_space``: the numbers of a merge method, by groups of tensors, as genes.

A genotype holds, in this order, the method (where several are listed) and every searched hyperparameter in the order of
the file: expert by expert, block group by block group, component by component. Everything a method needs and the space
does not search is written into each recipe, so a recipe never depends on defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError, did_you_mean
from evomerge.methods.base import Hyperparameter, MethodSpec
from evomerge.recipes.recipe import Merge, Recipe, Rule, Scalar, Source
from evomerge.recipes.recipe_yaml import load_recipe
from evomerge.recipes.validate import is_pairwise
from evomerge.spaces.groups import OUTSIDE, Grid, component_groups, equal_block_groups
from evomerge.spaces.modified_space import ModifiedSpace, modified_space
from evomerge.spaces.parameter_space_config import (
    ParameterSpaceConfig,
    SearchedConfig,
    bounds,
    parameter_of,
    specs_of,
    uses_simplex,
)
from evomerge.spaces.searched_parameter import SearchedParameter
from evomerge.spaces.space import SearchSpace, SpaceModels
from evomerge.terms import Array, Gene, GeneKind

NumberedRules = dict[str, tuple[Rule, ...]]


def build_parameter_space(config: ParameterSpaceConfig, models: SpaceModels) -> SearchSpace | None:
    """The space over given models; None while it depends on an unknown number of blocks.

    Raises:
        InvalidInput: everything that does not fit the models.
    """
    specs = specs_of(config)
    problems = [Problem(f"{config.where}: {key}", message) for key, message in _model_problems(config, specs, models)]
    if problems:
        raise InvalidInput(problems)
    if models.num_blocks is None and _needs_blocks(config):
        return None
    searched = [_searched(config, specs, name, entry, models) for name, entry in config.searched.items()]
    space: ParameterSpace | ModifiedSpace = ParameterSpace(config, specs, models, searched)
    if config.before or config.after:
        space = modified_space(space, config, models, _around)
    if not space.genes:
        message = "nothing is left to search with these models; a single expert has no ratio to others"
        raise InvalidInput([Problem(f"{config.where}: parameters", message)])
    if config.values_from is not None and isinstance(space, ParameterSpace):
        return _continued(space, config.values_from, f"{config.where}: values_from", models)
    if config.init_from is None:
        return space
    try:
        return space.starting_at(load_recipe(Path(config.init_from)))
    except InvalidInput:
        raise
    except UserError as error:
        raise InvalidInput([Problem(f"{config.where}: init_from", f"{config.init_from}: {error}")]) from None


def _continued(space: ParameterSpace, stage: str, where: str, models: SpaceModels) -> ParameterSpace:
    """The space with what an earlier stage found in the place of what it neither searches nor fixes.

    Raises:
        InvalidInput: there is no such stage, or it found nothing that belongs here.
    """
    found = dict(models.extra)
    if stage not in found:
        names = did_you_mean(stage, found) if found else "There is no earlier stage."
        raise InvalidInput([Problem(where, f"no earlier stage is called {stage!r}. {names}")])
    node = found[stage]
    if node == Source("?"):
        return space  # a stage that could not be understood, which is told elsewhere
    try:
        return space.continuing(Recipe(node))
    except UserError as error:
        raise InvalidInput([Problem(where, f"what stage {stage} finds does not fit: {error}")]) from None


def _around(config: ParameterSpaceConfig, models: SpaceModels, key: str) -> ParameterSpace:
    """The space over the numbers of a method around the merge, which may have no gene.

    Raises:
        InvalidInput: everything that does not fit the models.
    """
    specs = specs_of(config)
    problems = _model_problems(config, specs, models)
    found = [Problem(f"{config.where}: {key}.{name}", text) for name, text in problems if not name.startswith("groups")]
    if found:
        raise InvalidInput(found)
    searched = [_searched(config, specs, name, entry, models) for name, entry in config.searched.items()]
    return ParameterSpace(config, specs, models, searched)


class ParameterSpace:
    """A search space over the numbers of one merge, or of one of several methods."""

    def __init__(
        self,
        config: ParameterSpaceConfig,
        specs: list[MethodSpec],
        models: SpaceModels,
        searched: list[SearchedParameter],
        initial: Array | None = None,
        inherited: Merge | None = None,
    ) -> None:
        self._config = config
        self._specs = specs
        self._models = models
        self._searched = searched
        self._initial = initial
        self._inherited = inherited
        self._constant = [self._constant_rules(spec) for spec in specs]

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in the order of a genotype."""
        genes = [gene for entry in self._searched for gene in entry.genes()]
        if len(self._specs) > 1:
            names = tuple(spec.name for spec in self._specs)
            genes.insert(0, Gene("method", GeneKind.CATEGORY, 0, len(names) - 1, 0, names))
        if self._initial is None:
            return tuple(genes)
        return tuple(
            Gene(gene.name, gene.kind, gene.low, gene.high, float(start), gene.choices)
            for gene, start in zip(genes, self._initial)
        )

    @cached_property
    def gene_groups(self) -> dict[str, list[int]]:
        """Gene indices by hyperparameter and expert."""
        groups: dict[str, list[int]] = {"method": [0]} if len(self._specs) > 1 else {}
        position = len(groups)
        for entry in self._searched:
            size = len(entry.grid.labels)
            for expert in entry.gene_experts:
                groups[entry.group_name(expert)] = list(range(position, position + size))
                position += size
        return groups

    @property
    def num_lanes(self) -> int:
        """No candidate is a route."""
        return 0

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a genotype ``(G,)``.

        Raises:
            ValueError: wrong shape or not finite.
        """
        genotype = np.asarray(genotype, dtype=np.float64)
        if genotype.shape != (len(self.genes),) or not np.isfinite(genotype).all():
            raise ValueError(f"expected {len(self.genes)} finite numbers, got shape {genotype.shape}")
        values = np.clip(genotype, self._low, self._high).tolist()
        index = round(values.pop(0)) if len(self._specs) > 1 else 0
        spec = self._specs[index]
        rules = dict(self._constant[index])
        position = 0
        for entry in self._searched:
            size = len(entry.gene_experts) * len(entry.grid.labels)
            if _has(spec, entry.name):
                rules[entry.name] = entry.rules(values[position : position + size])
            position += size
        return self._recipe(spec, rules)

    def encode(self, recipe: Recipe) -> Array:
        """The genotype ``(G,)`` nearest to a recipe, exact for recipes that ``decode`` gave.

        Genes that the recipe's method does not use are at their initial value.

        Raises:
            UserError: another method, other experts, or values outside the bounds.
        """
        merge = recipe.model
        if not isinstance(merge, Merge):
            raise UserError("the recipe is one model, not a merge")
        methods = [spec.name for spec in self._specs]
        if merge.method not in methods:
            raise UserError(f"the recipe's method is {merge.method}, the space has {', '.join(methods)}")
        names = [name for name, _ in merge.experts]
        if sorted(names) != sorted(self._models.names):
            raise UserError(f"the recipe's experts are {', '.join(names)}, expected {', '.join(self._models.names)}")
        index = methods.index(merge.method)
        genotype = [gene.initial for gene in self.genes]
        position = 0
        if len(self._specs) > 1:
            genotype[0], position = float(index), 1
        for entry in self._searched:
            size = len(entry.gene_experts) * len(entry.grid.labels)
            if _has(self._specs[index], entry.name):
                genotype[position : position + size] = entry.coordinates(merge.rules(entry.name))
            position += size
        return np.array(genotype, dtype=np.float64)

    def describe(self) -> str:
        """A few lines for a person."""
        lines = [f"{' or '.join(spec.name for spec in self._specs)}: {len(self.genes)} genes"]
        lines += [f"  {entry.describe()}" for entry in self._searched]
        fixed = ", ".join(f"{name} {_shown(value)}" for name, value in self._config.all_fixed.items())
        if fixed:
            lines.append(f"  fixed: {fixed}")
        if self._config.init_from is not None:
            lines.append(f"  starting at {self._config.init_from}")
        if self._config.values_from is not None:
            lines.append(f"  the rest as stage {self._config.values_from} found it")
        return "\n".join(lines)

    def starting_at(self, recipe: Recipe) -> ParameterSpace:
        """The same space with its initial genotype taken from a recipe.

        Raises:
            UserError: the recipe does not belong to this space.
        """
        initial = self.encode(recipe)
        return ParameterSpace(self._config, self._specs, self._models, self._searched, initial, self._inherited)

    def continuing(self, recipe: Recipe) -> ParameterSpace:
        """The same space starting at a recipe, whose values also hold for what is neither searched nor fixed.

        Raises:
            UserError: the recipe does not belong to this space.
        """
        initial, merge = self.encode(recipe), recipe.model
        assert isinstance(merge, Merge)
        return ParameterSpace(self._config, self._specs, self._models, self._searched, initial, merge)

    @cached_property
    def _low(self) -> Array:
        return np.array([gene.low for gene in self.genes])

    @cached_property
    def _high(self) -> Array:
        return np.array([gene.high for gene in self.genes])

    def _constant_rules(self, spec: MethodSpec) -> NumberedRules:
        """Rules of what is not searched: the fixed values, and the method's defaults."""
        rules: NumberedRules = {}
        for parameter in spec.hyperparameters:
            if self._inherited is not None and parameter.name not in self._config.all_fixed:
                rules[parameter.name] = self._inherited.rules(parameter.name)
                continue
            value = self._config.all_fixed.get(parameter.name, parameter.default)
            if isinstance(value, dict):
                names = self._models.names
                rules[parameter.name] = tuple(Rule(_typed(parameter, value[name]), expert=name) for name in names)
            elif value is not None:
                rules[parameter.name] = (Rule(_typed(parameter, value)),)
        return rules

    def _recipe(self, spec: MethodSpec, rules: NumberedRules) -> Recipe:
        models = self._models
        merge = Merge(
            method=spec.name,
            experts=models.experts,
            base=models.base if _takes_base(spec, models) else None,
            parameters=tuple(sorted(rules.items())),
            seed=models.seed if spec.stochastic else 0,
        )
        dtype = None if models.dtype in (None, "auto") else models.dtype
        # A method without base still takes tokenizer and configuration from the base.
        return Recipe(merge, dtype, None if merge.base is not None else models.base)


def _takes_base(spec: MethodSpec, models: SpaceModels) -> bool:
    """Whether the base is merged: where the method needs it, and as first of two models beside a single expert."""
    return spec.needs_base or (is_pairwise(spec) and len(models.experts) == 1)


def _has(spec: MethodSpec, name: str) -> bool:
    return any(parameter.name == name for parameter in spec.hyperparameters)


def _typed(parameter: Hyperparameter, value: Scalar) -> Scalar:
    return float(value) + 0.0 if parameter.kind == "float" else value


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _needs_blocks(config: ParameterSpaceConfig) -> bool:
    grouped = config.groups.blocks != 1
    entries = list(config.searched.values())
    for modifier in (*config.before, *config.after):
        entries += config.of_modifier(modifier).searched.values()
    return grouped and any("blocks" not in entry.share for entry in entries)


def _searched(
    config: ParameterSpaceConfig, specs: list[MethodSpec], name: str, entry: SearchedConfig, models: SpaceModels
) -> SearchedParameter:
    parameter = parameter_of(specs, name)
    assert parameter is not None
    per_expert = parameter.per == "expert" and entry.per != "merge" and "experts" not in entry.share
    experts: tuple[str | None, ...] = models.names if per_expert else (None,)
    low, high = bounds(parameter, entry)
    on_simplex = name == "coefficient" and any(uses_simplex(config, spec) for spec in specs)
    choices: tuple[Scalar, ...] = ()
    if parameter.kind == "bool":
        choices = tuple(entry.choices or (False, True))
    elif parameter.kind == "choice":
        choices = tuple(entry.choices or parameter.choices)
    initial: dict[str | None, Scalar] = {}
    for expert in experts:
        if choices:
            initial[expert] = choices[0] if entry.choices or parameter.default is None else parameter.default
        else:
            initial[expert] = _initial(parameter, entry, expert, len(models.experts), on_simplex)
    grid = _grid(config, entry, models.num_blocks)
    return SearchedParameter(parameter, grid, experts, on_simplex, low, high, choices, initial)


def _initial(
    parameter: Hyperparameter, entry: SearchedConfig, expert: str | None, num_experts: int, on_simplex: bool
) -> float:
    low, high = bounds(parameter, entry)
    if isinstance(entry.init, dict):
        return float(entry.init[str(expert)])
    if isinstance(entry.init, float | int):
        return float(entry.init)
    if entry.init == "1/n" or on_simplex:
        return 1 / num_experts
    default = parameter.default
    if isinstance(default, float | int) and not isinstance(default, bool) and low <= default <= high:
        return float(default)
    middle = (low + high) / 2
    return float(round(middle)) if parameter.kind == "int" else middle


def _grid(config: ParameterSpaceConfig, entry: SearchedConfig, num_blocks: int | None) -> Grid:
    groups = component_groups(None if "components" in entry.share else config.groups.components)
    blocks: tuple[tuple[int, int], ...] = ()
    if "blocks" not in entry.share and num_blocks is not None:
        wanted = config.groups.blocks
        if isinstance(wanted, list):
            blocks = tuple((first, last + 1) for first, last in wanted)
        else:
            blocks = equal_block_groups(num_blocks if wanted == "each" else wanted, num_blocks)
    return Grid(
        blocks=blocks if len(blocks) > 1 else (),
        components=tuple(group for group in groups if group.match not in OUTSIDE),
        own=tuple(group for group in groups if group.match in OUTSIDE),
        smooth=config.smooth,
        num_blocks=num_blocks or 0,
    )


def _model_problems(
    config: ParameterSpaceConfig, specs: list[MethodSpec], models: SpaceModels
) -> Iterator[tuple[str, str]]:
    count = len(models.experts)
    for group in component_groups(config.groups.components) if models.tensors else ():
        if not any(group.holds(name, component) for name, component in models.tensors):
            tied = " (their head is tied to the embeddings)" if group.match == "head" else ""
            yield "groups.components", f"{group.name} holds no tensor of these models{tied}; take it out"
    for spec in specs:
        if count < spec.min_experts:
            yield "method", f"{spec.name} needs at least {spec.min_experts} experts, the experiment has {count}"
        if spec.max_experts is not None and count > spec.max_experts:
            yield "method", f"{spec.name} takes at most {spec.max_experts} experts, the experiment has {count}"
        if _takes_base(spec, models) and models.base is None:
            yield "method", f"{spec.name} needs a base model; give models.base in the experiment"
    for name, entry in config.searched.items():
        if isinstance(entry.init, dict) and set(entry.init) != set(models.names):
            yield f"parameters.{name}.init", _names_message(entry.init, models)
        low, high = bounds(parameter_of(specs, name) or specs[0].hyperparameters[0], entry)
        on_simplex = name == "coefficient" and any(uses_simplex(config, spec) for spec in specs)
        if entry.init == "1/n" and not on_simplex and not low <= 1 / count <= high:
            yield f"parameters.{name}.init", f"1/n is {1 / count:g} here, outside {low:g} to {high:g}"
        if isinstance(entry.init, dict) and on_simplex and sum(entry.init.values()) <= 0:
            yield f"parameters.{name}.init", "the start coefficients must have a positive sum"
    for name, value in config.all_fixed.items():
        if isinstance(value, dict) and set(value) != set(models.names):
            yield f"fixed.{name}", _names_message(value, models)
    wanted, num_blocks = config.groups.blocks, models.num_blocks
    if num_blocks is None:
        return
    if isinstance(wanted, int) and wanted > num_blocks:
        yield "groups.blocks", f"{wanted} groups of blocks are more than the model's {num_blocks} blocks"
    if isinstance(wanted, list) and wanted[-1][1] != num_blocks - 1:
        yield "groups.blocks", f"the ranges end at block {wanted[-1][1]}, the model's last block is {num_blocks - 1}"


def _names_message(given: dict[str, float] | dict[str, Scalar], models: SpaceModels) -> str:
    return f"expected one value for each of {', '.join(models.names)}; got {', '.join(given) or 'none'}"
