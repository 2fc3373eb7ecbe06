"""``encoding: sequence``: a list of units of any model, in any order, of any length up to the number of places."""

from __future__ import annotations

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Recipe, Route
from evomerge.spaces.block_pool import BlockPool
from evomerge.spaces.data_flow_config import SequenceConfig
from evomerge.spaces.hop_scales import NOWHERE, slot_scales
from evomerge.terms import Array, Gene, GeneKind

NOTHING = "-"
LIST = "hops"


class SequenceEncoding:
    """What stands in each place of the list, and the scale of each place.

    An empty list runs A's first and last unit.
    """

    def __init__(self, config: SequenceConfig, pool: BlockPool) -> None:
        """Lay out the places: as many units as ``max_hops`` allows, twice A's where it says nothing.

        Raises:
            InvalidInput: limits that A's first and last unit exceed.
        """
        outer = pool.outer_path
        what = f"the first and last of {pool.ends}'s units"
        problems = [Problem(f"{config.where}: {key}", text) for key, text in pool.limit_problems(outer, what)]
        wanted = 2 * pool.counts[0] if pool.max_hops is None else pool.max_hops // pool.unit_size
        if wanted < len(outer) and not problems:
            message = f"must allow {what}, which is {len(outer) * pool.unit_size} hops; got {pool.max_hops}"
            problems.append(Problem(f"{config.where}: max_hops", message))
        if problems:
            raise InvalidInput(problems)
        self._pool, self._places = pool, wanted
        self._scales = slot_scales(config.scale, [f"place{place + 1}" for place in range(wanted)])

    @property
    def lanes(self) -> int:
        """Nodes beside the pool's: none."""
        return 0

    def genes(self) -> list[Gene]:
        """The list, then the scales."""
        choices = (*(unit.label for unit in self._pool.units), NOTHING)
        start = self._pool.whole_path
        if len(start) > self._places:  # a list too short for all of A keeps its last unit
            start = [*start[: self._places - 1], start[-1]]
        start = [*start, *[len(choices) - 1] * (self._places - len(start))]
        last = len(choices) - 1
        genes = [
            Gene(f"{LIST}/{place + 1}", GeneKind.CATEGORY, 0, last, unit, choices, LIST)
            for place, unit in enumerate(start)
        ]
        return [*genes, *self._scales.genes()]

    def decode(self, values: Array) -> Route:
        """The route of gene values ``(G,)``."""
        numbers = np.rint(values[: self._places]).astype(int).tolist()
        slots = [place for place, number in enumerate(numbers) if number < len(self._pool.units)]
        path = self._pool.fitting_start([numbers[place] for place in slots])
        slots = slots[: len(path)]
        if not path:
            path = self._pool.outer_path
            slots = [NOWHERE] * len(path)
        return self._pool.route(path, self._scales.scales(values[self._places :], path, slots))

    def encode(self, recipe: Recipe) -> Array:
        """The gene values ``(G,)`` of a route, the list without gaps.

        Raises:
            UserError: a path or scales that no genes give.
        """
        _, path, scales = self._pool.read(recipe)
        if len(path) > self._places or not self._pool.fits(path):
            raise UserError("the recipe's path is over the space's max_hops or max_parameters")
        numbers = np.full(self._places, float(len(self._pool.units)))
        numbers[: len(path)] = path
        return np.concatenate([numbers, self._scales.read(scales, path, range(len(path)))])

    def describe(self) -> list[str]:
        """Lines for a person."""
        units = len(self._pool.units)
        line = f"a list of up to {self._places} of {units} units, starting at {self._pool.ends} itself"
        return [line, *filter(None, [self._scales.describe()])]
