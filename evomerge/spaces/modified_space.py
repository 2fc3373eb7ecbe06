"""A parameter space with methods around the merge, whose numbers are genes behind those of the merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.methods.catalogue import get_spec
from evomerge.recipes.modifiers import EXPERT, MERGED, put_after, put_before, renamed_rules, takes_experts
from evomerge.recipes.recipe import Merge, Node, Recipe, Source
from evomerge.spaces.parameter_space_config import ParameterSpaceConfig
from evomerge.spaces.space import SearchSpace, SpaceModels
from evomerge.terms import Array, Gene

PLACEHOLDER = Source("?")  # a model whose place in a recipe is taken by another node


class InnerSpace(SearchSpace, Protocol):
    """A parameter space that can be started elsewhere."""

    def starting_at(self, recipe: Recipe) -> InnerSpace:
        """The same space with its initial genotype taken from a recipe."""


@dataclass(frozen=True)
class Around:
    """A method around the merge, and the space over its numbers."""

    label: str
    space: InnerSpace
    is_before: bool


def modified_space(
    space: InnerSpace,
    config: ParameterSpaceConfig,
    models: SpaceModels,
    build: Callable[[ParameterSpaceConfig, SpaceModels, str], InnerSpace],
) -> ModifiedSpace:
    """The space with the configured methods around it.

    Args:
        space: over the numbers of the merge.
        config: names the methods before and after it.
        models: of the search.
        build: makes the space of one of them.

    Raises:
        InvalidInput: what does not fit the models.
    """
    around: list[Around] = []
    problems: list[Problem] = []
    for place in ("before", "after"):
        for index, modifier in enumerate(getattr(config, place)):
            key, is_before, spec = f"{place}[{index}]", place == "before", get_spec(modifier.method)
            names: tuple[str, ...] = (EXPERT,) if is_before else (MERGED,)
            if not is_before and takes_experts(spec):
                names = (MERGED, *models.names)
            inner = replace(models, experts=tuple((name, PLACEHOLDER) for name in names))
            try:
                if models.base is None:
                    raise InvalidInput([Problem(f"{config.where}: {key}", "needs models.base in the experiment")])
                around.append(Around(f"{key}.{spec.name}", build(config.of_modifier(modifier), inner, key), is_before))
            except InvalidInput as error:
                problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return ModifiedSpace(space, around, models)


class ModifiedSpace:
    """A search space over a merge and the methods around it: genes of the merge, then of each method in turn."""

    def __init__(self, inner: InnerSpace, around: Sequence[Around], models: SpaceModels) -> None:
        self._inner = inner
        self._around = tuple(around)
        self._models = models
        self._ends = np.cumsum([len(inner.genes), *(len(entry.space.genes) for entry in around)]).tolist()

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in the order of a genotype."""
        genes = list(self._inner.genes)
        for entry in self._around:
            genes += [replace(gene, name=f"{entry.label}.{gene.name}") for gene in entry.space.genes]
        return tuple(genes)

    @cached_property
    def gene_groups(self) -> dict[str, list[int]]:
        """Gene indices by hyperparameter and expert."""
        groups = {name: list(indices) for name, indices in self._inner.gene_groups.items()}
        for entry, start in zip(self._around, self._ends):
            for name, indices in entry.space.gene_groups.items():
                groups[f"{entry.label}.{name}"] = [start + index for index in indices]
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
        if genotype.shape != (len(self.genes),):
            raise ValueError(f"expected {len(self.genes)} finite numbers, got shape {genotype.shape}")
        parts = np.split(genotype, self._ends[:-1])
        recipe = self._inner.decode(parts[0])
        merge = recipe.model
        assert isinstance(merge, Merge)
        experts = merge.experts
        for entry, part in zip(self._around, parts[1:], strict=True):
            outer = entry.space.decode(part).model
            assert isinstance(outer, Merge)
            rest = (outer.base, outer.parameters, outer.seed)
            if entry.is_before:
                merge = put_before(merge, outer.method, *rest)
                experts = merge.experts
            else:
                merge = put_after(merge, experts, get_spec(outer.method), *rest)
        return Recipe(merge, recipe.dtype, None if merge.base is not None else self._models.base)

    def encode(self, recipe: Recipe) -> Array:
        """The genotype ``(G,)`` nearest to a recipe, exact for recipes that ``decode`` gave.

        Raises:
            UserError: another method, other experts, other methods around them, or values outside the bounds.
        """
        node: Node = recipe.model
        parts: list[Array] = []
        for entry in reversed(self._around):
            outer, node = _unwrap(node, entry)
            parts.insert(0, entry.space.encode(Recipe(outer)))
        return np.concatenate([self._inner.encode(replace(recipe, model=node)), *parts])

    def describe(self) -> str:
        """A few lines for a person."""
        lines = [f"{len(self.genes)} genes in all", self._inner.describe()]
        for entry in self._around:
            lines.append(f"{'before, on each expert' if entry.is_before else 'after, on the merged model'}: ")
            lines[-1] += entry.space.describe()
        return "\n".join(lines)

    def starting_at(self, recipe: Recipe) -> ModifiedSpace:
        """The same space with its initial genotype taken from a recipe.

        Raises:
            UserError: the recipe does not belong to this space.
        """
        node: Node = recipe.model
        around: list[Around] = []
        for entry in reversed(self._around):
            outer, node = _unwrap(node, entry)
            around.insert(0, replace(entry, space=entry.space.starting_at(Recipe(outer))))
        return ModifiedSpace(self._inner.starting_at(replace(recipe, model=node)), around, self._models)


def _unwrap(node: Node, entry: Around) -> tuple[Merge, Node]:
    """The method around the merge over placeholders, and what it is put around.

    Raises:
        UserError: the node was not made by that method.
    """
    wanted = entry.label.partition(".")[2]
    if not isinstance(node, Merge):
        raise UserError(f"the recipe has no {wanted} around its merge")
    if not entry.is_before:
        name, inner = node.experts[0]
        if node.method != wanted or name != MERGED:
            raise UserError(f"the recipe has {node.method} where the space has {wanted} after the merge")
        return _over_placeholders(node, {}), inner
    experts, outers = [], []
    for name, expert in node.experts:
        if not isinstance(expert, Merge) or expert.method != wanted or [key for key, _ in expert.experts] != [name]:
            raise UserError(f"the recipe has no {wanted} before the merge on expert {name!r}")
        experts.append((name, expert.experts[0][1]))
        outers.append(_over_placeholders(expert, {name: EXPERT}))
    if any(outer != outers[0] for outer in outers):
        raise UserError(f"the recipe's {wanted} before the merge differs between experts")
    return outers[0], replace(node, experts=tuple(experts))


def _over_placeholders(merge: Merge, renamed: dict[str, str]) -> Merge:
    experts = tuple((renamed.get(name, name), PLACEHOLDER) for name, _ in merge.experts)
    return replace(merge, experts=experts, parameters=renamed_rules(merge.parameters, renamed))
