"""``kind: joint``: the numbers of a merge, and a path through the blocks of the merged model and of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Merge, Node, Recipe, Route
from evomerge.spaces.data_flow import DataFlowSpace, build_data_flow
from evomerge.spaces.joint_config import JointConfig
from evomerge.spaces.modified_space import PLACEHOLDER
from evomerge.spaces.parameter_space import build_parameter_space
from evomerge.spaces.space import SearchSpace, SpaceModels
from evomerge.terms import Array, Gene

MERGED = "merged"


def build_joint(config: JointConfig, models: SpaceModels) -> JointSpace | None:
    """The space over given models; None while a part of it depends on what is not known yet.

    Raises:
        InvalidInput: everything that does not fit the models.
    """
    problems: list[Problem] = []
    if MERGED in models.nodes:
        message = f"the name {MERGED!r} is taken by the merge of the parameters; give the model another one"
        problems.append(Problem(f"{config.where}: parameters", message))
    if config.route.pool is not None and MERGED not in config.route.pool:
        message = f"lacks {MERGED!r}, the model that the parameters make; without it they would change nothing"
        problems.append(Problem(f"{config.where}: route: pool", message))
    if problems:
        raise InvalidInput(problems)
    shape = models.shape("base" if models.base is not None and "base" not in models.names else models.names[0])
    pool_models = replace(
        models,
        extra=((MERGED, PLACEHOLDER), *models.extra),
        shapes=models.shapes if shape is None else (*models.shapes, (MERGED, shape)),
    )
    depth = models.num_blocks or (config.route.depths or {}).get(MERGED)
    parts: list[SearchSpace | None] = []
    builds: list[Callable[[], SearchSpace | None]] = [
        lambda: build_parameter_space(config.parameters, replace(models, num_blocks=depth)),
        lambda: build_data_flow(config.route, pool_models),
    ]
    for build in builds:
        try:
            parts.append(build())
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    parameters, route = parts
    if parameters is None or route is None:
        return None
    assert isinstance(route, DataFlowSpace)
    return JointSpace(parameters, route)


class JointSpace:
    """A search space over a merge and a route through it: genes of the merge, then of the route."""

    def __init__(self, parameters: SearchSpace, route: DataFlowSpace) -> None:
        self._parameters = parameters
        self._route = route
        self._split = len(parameters.genes)

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in the order of a genotype."""
        parts = (("parameters", self._parameters), ("route", self._route))
        return tuple(replace(gene, name=f"{label}.{gene.name}") for label, space in parts for gene in space.genes)

    @cached_property
    def gene_groups(self) -> dict[str, list[int]]:
        """Gene indices by part and what they decide."""
        groups = {f"parameters.{name}": list(members) for name, members in self._parameters.gene_groups.items()}
        for name, members in self._route.gene_groups.items():
            groups[f"route.{name}"] = [self._split + index for index in members]
        return groups

    @property
    def num_lanes(self) -> int:
        """How many models' blocks a worker holds at once: the route's, the merged model among them."""
        return self._route.num_lanes

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a genotype ``(G,)``.

        Raises:
            ValueError: wrong shape or not finite.
        """
        genotype = np.asarray(genotype, dtype=np.float64)
        if genotype.shape != (len(self.genes),) or not np.isfinite(genotype).all():
            raise ValueError(f"expected {len(self.genes)} finite numbers, got shape {genotype.shape}")
        merged = self._parameters.decode(genotype[: self._split])
        recipe = self._route.decode(genotype[self._split :])
        assert isinstance(recipe.model, Route)
        model = _exchanged(recipe.model, PLACEHOLDER, merged.model)
        return replace(recipe, model=model, tokenizer=merged.tokenizer if self._route.ends == MERGED else None)

    def encode(self, recipe: Recipe) -> Array:
        """The genotype ``(G,)`` of a route, genes that do nothing at their initial values.

        Raises:
            UserError: another kind of recipe, other models, or a merge, path or scales that no genes give.
        """
        if not isinstance(recipe.model, Route):
            raise UserError("the recipe has no route")
        node = _merged_node(recipe.model)
        if node is None:  # no hop runs the merged model, so nothing tells its numbers
            first = np.array([gene.initial for gene in self._parameters.genes], dtype=np.float64)
            return np.concatenate([first, self._route.encode(recipe)])
        route = _exchanged(recipe.model, node, PLACEHOLDER)
        first = self._parameters.encode(replace(recipe, model=node))
        return np.concatenate([first, self._route.encode(replace(recipe, model=route))])

    def describe(self) -> str:
        """A few lines for a person."""
        lines = [f"{len(self.genes)} genes in all", self._parameters.describe()]
        return "\n".join([*lines, f"route through the merged model and others, {self._route.describe()}"])


def _exchanged(route: Route, old: Node, new: Node) -> Route:
    """A route with one node in the place of another, also inside the merges of its models."""

    def exchange(node: Node) -> Node:
        if node == old:
            return new
        if not isinstance(node, Merge):
            return node
        return replace(node, experts=tuple((name, exchange(inner)) for name, inner in node.experts))

    return replace(route, models=tuple((name, exchange(node)) for name, node in route.models))


def _merged_node(route: Route) -> Node | None:
    """The merge of the parameters in a route, as one of its models or in a mixture with it."""
    models = dict(route.models)
    if MERGED in models:
        return models[MERGED]
    inside = (dict(node.experts).get(MERGED) for node in models.values() if isinstance(node, Merge))
    return next((node for node in inside if node is not None), None)
