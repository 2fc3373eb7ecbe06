"""``encoding: integration``: at each depth the blocks of some of the models, in some order (depth-wise integration).

Su 2025, https://arxiv.org/abs/2502.04030. Each position has a choice per model, an order of the models, and
a scale of the stream behind its last block, which is the input scale of the next position, or behind the last position
the route's output scale. A position that no model is chosen for runs A's block.

Over the limits, positions lose their last blocks until one is left, the last position first; then, where models have
blocks of different sizes, positions take A's block, again the last first.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Recipe, Route
from evomerge.spaces.block_pool import BlockPool
from evomerge.spaces.data_flow_config import IntegrationConfig
from evomerge.spaces.hop_scales import NOWHERE, slot_scales
from evomerge.terms import Array, Gene, GeneKind

MAX_MODELS = 5
DEFAULT_HOPS = 50  # published


class IntegrationEncoding:
    """Choices, orders and scales of the positions."""

    def __init__(self, config: IntegrationConfig, pool: BlockPool) -> None:
        """Lay out the positions.

        Raises:
            InvalidInput: models of different depths, too many models, or limits that A exceeds.
        """
        problems = [Problem(f"{config.where}: {key}", text) for key, text in _problems(pool)]
        if problems:
            raise InvalidInput(problems)
        self._pool, self._depth, self._models = pool, pool.depths[0], len(pool.nodes)
        self._max_hops = pool.max_hops or max(DEFAULT_HOPS, self._depth)
        self._orders = list(permutations(range(self._models)))
        # With `branch` there is no scale behind the last block.
        positions = self._depth - (pool.scale_target == "branch")
        self._scales = slot_scales(config.scale, [f"position{place}" for place in range(positions)])

    @property
    def lanes(self) -> int:
        """Nodes beside the pool's: none."""
        return 0

    def genes(self) -> list[Gene]:
        """Position by position the choices and the order, then the scales."""
        found = []
        orders = tuple(",".join(self._pool.names[model] for model in order) for order in self._orders)
        for place in range(self._depth):
            for index, name in enumerate(self._pool.names):
                found.append(
                    Gene(f"use/{name}/position{place}", GeneKind.CATEGORY, 0, 1, float(index == 0), ("off", "on"))
                )
            if len(orders) > 1:
                found.append(Gene(f"order/position{place}", GeneKind.CATEGORY, 0, len(orders) - 1, 0, orders))
        return [*found, *self._scales.genes()]

    @property
    def _width(self) -> int:
        return self._models + (self._models > 1)

    def decode(self, values: Array) -> Route:
        """The route of gene values ``(G,)``."""
        size = self._depth * self._width
        chosen: list[list[int]] = []
        for row in np.rint(values[:size]).astype(int).reshape(self._depth, -1).tolist():
            order = self._orders[row[self._models] if self._models > 1 else 0]
            chosen.append([model for model in order if row[model]] or [0])
        self._repair(chosen)
        path, slots = self._flat(chosen)
        genes = values[size:]
        output = float(genes[self._depth - 1]) if len(genes) == self._depth else 1.0
        return self._pool.route(path, self._scales.scales(genes, path, slots), output)

    def _flat(self, chosen: list[list[int]]) -> tuple[list[int], list[int]]:
        """Path, and for the first unit of a position the position before, whose scale it has."""
        path, slots = [], []
        for place, models in enumerate(chosen):
            path += [self._pool.offsets[model] + place for model in models]
            slots += [place - 1 if place else NOWHERE, *[NOWHERE] * (len(models) - 1)]
        return path, slots

    def _repair(self, chosen: list[list[int]]) -> None:
        for models in reversed(chosen):
            while len(models) > 1 and not self._fits(chosen):
                models.pop()
        for models in reversed(chosen):
            if not self._fits(chosen):
                models[:] = [0]

    def _fits(self, chosen: list[list[int]]) -> bool:
        if sum(map(len, chosen)) > self._max_hops:
            return False
        return self._pool.max_parameters is None or self._pool.fits(self._flat(chosen)[0])

    def encode(self, recipe: Recipe) -> Array:
        """The gene values ``(G,)`` of a route.

        Raises:
            UserError: a path or scales that no genes give.
        """
        route, path, scales = self._pool.read(recipe, reads_output=True)
        chosen: list[list[int]] = []
        for number in path:
            model = max(k for k, offset in enumerate(self._pool.offsets) if offset <= number)
            place = number - self._pool.offsets[model]
            if place == len(chosen):
                chosen.append([])
            if place != len(chosen) - 1 or model in chosen[-1]:
                raise UserError("the recipe's path does not run through the depths one after the other")
            chosen[-1].append(model)
        if len(chosen) < self._depth or not self._fits(chosen):
            raise UserError("the recipe's path leaves depths out, or is over the space's limits")
        rows = np.zeros((self._depth, self._width))
        for place, models in enumerate(chosen):
            rows[place, models] = 1
            if self._models > 1:
                rest = [model for model in range(self._models) if model not in models]
                rows[place, -1] = self._orders.index((*models, *rest))
        genes = np.append(scales, route.output_scale)
        slots = [*self._flat(chosen)[1], self._depth - 1 if self._has_output_scale else NOWHERE]
        return np.concatenate([rows.ravel(), self._scales.read(genes.tolist(), [*path, 0], slots)])

    @property
    def _has_output_scale(self) -> bool:
        return len(self._scales.genes()) == self._depth

    def describe(self) -> list[str]:
        """Lines for a person."""
        names = ", ".join(self._pool.names)
        line = f"at each of {self._depth} depths any of {names} in any order, up to {self._max_hops} hops"
        start = f"starting at {self._pool.ends} itself"
        return [f"{line}, {start}", *filter(None, [self._scales.describe()])]


def _problems(pool: BlockPool) -> list[tuple[str, str]]:
    found = []
    if len(set(pool.depths)) > 1:
        listed = ", ".join(f"{name} has {depth}" for name, depth in zip(pool.names, pool.depths))
        found.append(("pool", f"integration needs models of equal depth: {listed} blocks; use sequence or slices"))
    if len(pool.nodes) > MAX_MODELS:
        found.append(("pool", f"integration takes at most {MAX_MODELS} models, got {len(pool.nodes)}"))
    return [*found, *pool.limit_problems(pool.whole_path, f"all of {pool.ends}'s blocks")]
