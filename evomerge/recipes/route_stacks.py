"""Routes that are plain stacks of blocks, which other tools have words for."""

from __future__ import annotations

from dataclasses import replace

from evomerge.recipes.mergekit_writer import NotExpressible
from evomerge.recipes.recipe import Recipe, Route, Stack, StackPart


def stack_of_route(recipe: Recipe) -> Recipe:
    """The same model as a stack: one part for each run of blocks that follow one another in one model.

    Args:
        recipe: of a route.

    Raises:
        NotExpressible: the route scales something, or its ends come from another model than its first and last block.
    """
    route = recipe.model
    assert isinstance(route, Route)
    if route.is_scaled:
        raise NotExpressible("mergekit has no words for scales of the hidden states")
    ends = route.node(route.ends)
    for which, hop in (("first", route.hops[0]), ("last", route.hops[-1])):
        if route.node(hop.model) != ends:
            raise NotExpressible(
                f"mergekit takes what lies outside the blocks from the first and last block's models; the {which} "
                f"block is of {hop.model}, the ends are of {route.ends}"
            )
    parts: list[StackPart] = []
    names: list[str] = []
    for hop in route.hops:
        if parts and names[-1] == hop.model and parts[-1].end == hop.block:
            parts[-1] = replace(parts[-1], end=hop.block + 1)
        else:
            parts.append(StackPart(route.node(hop.model), hop.block, hop.block + 1))
            names.append(hop.model)
    return replace(recipe, model=Stack(tuple(parts)))
