"""``encoding: indicator``: the units of all models, listed several times; a slot runs where its gene is above 0.

Akiba 2025, https://arxiv.org/abs/2403.13187. Slot t holds unit ``t mod M``. The path is A's first unit, the slots that
run, and A's last unit (``fixed_ends``). Indicators start at 0, those of A's units in the first repetition at two sigma.
The published start would run A's first and last unit twice, as slots and as fixed ends; here these two slots start at
0, so that the initial genotype is A itself. With units of several blocks the ends are whole units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Recipe, Route
from evomerge.spaces.block_pool import BlockPool
from evomerge.spaces.data_flow_config import IndicatorConfig
from evomerge.spaces.hop_scales import NOWHERE, HopScales, MatrixScales, NetworkScales, NoScales, SlotScales
from evomerge.terms import Array, Gene


class IndicatorEncoding:
    """Which slots run, and their scales."""

    def __init__(self, config: IndicatorConfig, pool: BlockPool) -> None:
        """Lay out the slots.

        Raises:
            InvalidInput: limits that A's first and last unit exceed.
        """
        outer = pool.outer_path
        what = f"the first and last of {pool.ends}'s units"
        problems = [Problem(f"{config.where}: {key}", text) for key, text in pool.limit_problems(outer, what)]
        if problems:
            raise InvalidInput(problems)
        self._pool, self._repeats, self._on = pool, config.repeats, 2 * config.sigma
        self._units = np.tile(np.arange(len(pool.units)), config.repeats)
        self._head = outer[:1] if config.fixed_ends else []
        self._tail = outer[1:] if config.fixed_ends else []
        self._scales = self._scale_form(config)

    def _scale_form(self, config: IndicatorConfig) -> HopScales:
        if config.scale.form == "matrix":
            return MatrixScales(config.scale, self._pool)
        if config.scale.form == "network":
            return NetworkScales(config.scale, self._pool, len(self._units))
        return SlotScales(config.scale, self._labels) if config.scale.form == "slot" else NoScales()

    @property
    def _labels(self) -> list[str]:
        return [f"{repeat}/{unit.label}" for repeat in range(1, self._repeats + 1) for unit in self._pool.units]

    @property
    def lanes(self) -> int:
        """Nodes beside the pool's: none."""
        return 0

    def genes(self) -> list[Gene]:
        """The indicators, then the scales."""
        start = np.zeros(len(self._units))
        start[self._pool.whole_path] = self._on
        start[[*self._head, *self._tail]] = 0.0
        names = [f"run/{label}" for label in self._labels]
        genes = [Gene(name, low=-1.0, high=1.0, initial=float(value)) for name, value in zip(names, start)]
        return [*genes, *self._scales.genes()]

    def decode(self, values: Array) -> Route:
        """The route of gene values ``(G,)``."""
        count = len(self._units)
        path, slots = self._path(values[:count])
        return self._pool.route(path, self._scales.scales(values[count:], path, slots))

    def _path(self, indicators: Array) -> tuple[list[int], list[int]]:
        running = np.flatnonzero(indicators > 0).tolist()
        path = [*self._head, *self._units[running].tolist(), *self._tail]
        slots = [*[NOWHERE] * len(self._head), *running, *[NOWHERE] * len(self._tail)]
        if not self._pool.fits(path):
            order = [place for place, slot in enumerate(slots) if slot != NOWHERE]
            order.sort(key=lambda place: (indicators[slots[place]], -slots[place]))
            kept = self._pool.without_least(path, order)
            path, slots = [path[place] for place in kept], [slots[place] for place in kept]
        if not path:
            path = self._pool.outer_path
            slots = [NOWHERE] * len(path)
        return path, slots

    def encode(self, recipe: Recipe) -> Array:
        """The gene values ``(G,)`` of a route: each unit in the first slot it can have.

        Raises:
            UserError: a path or scales that no genes give.
        """
        _, path, scales = self._pool.read(recipe)
        inner = path[len(self._head) : len(path) - len(self._tail)]
        if path != [*self._head, *inner, *self._tail]:
            raise UserError(f"the recipe's path does not begin and end with those of {self._pool.ends}")
        running = self._slots(inner)
        indicators = np.zeros(len(self._units))
        indicators[running] = self._on
        slots = [*[NOWHERE] * len(self._head), *running, *[NOWHERE] * len(self._tail)]
        if not self._pool.fits(path):
            raise UserError("the recipe's path is over the space's max_hops or max_parameters")
        return np.concatenate([indicators, self._scales.read(scales, path, slots)])

    def _slots(self, path: Sequence[int]) -> list[int]:
        found: list[int] = []
        slot, size = -1, len(self._pool.units)
        for unit in path:
            ahead = slot + 1
            slot = ahead + (unit - ahead) % size
            found.append(slot)
        if slot >= len(self._units):
            raise UserError(f"the recipe's path needs {slot // size + 1} repetitions, the space has {self._repeats}")
        return found

    def describe(self) -> list[str]:
        """Lines for a person."""
        ends = f" between the first and last of {self._pool.ends}" if self._head else ""
        line = f"{len(self._units)} slots ({len(self._pool.units)} units, {self._repeats} times){ends}"
        start = f"run where the indicator is above 0: -1 to 1, starting at {self._on:g} for {self._pool.ends} itself"
        return [line, start, *filter(None, [self._scales.describe()])]
