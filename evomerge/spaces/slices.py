"""``encoding: slices``: a few runs of neighbouring units, one behind the other.

Depth up-scaling (Kim 2024, https://arxiv.org/abs/2312.15166) is two slices of one model that overlap; a passthrough
frankenmerge is several slices of several models. A slice of length 0 is absent; without any slice A's first and last
unit run. A slice that reaches over the end of its model ends there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Recipe, Route
from evomerge.spaces.block_pool import BlockPool
from evomerge.spaces.data_flow_config import SlicesConfig
from evomerge.spaces.hop_scales import NOWHERE, slot_scales
from evomerge.terms import Array, Gene, GeneKind


class SlicesEncoding:
    """Source, start and length of each slice, in units, and the scale of its first unit."""

    def __init__(self, config: SlicesConfig, pool: BlockPool) -> None:
        """Lay out the slices.

        Raises:
            InvalidInput: limits that A's first and last unit exceed.
        """
        what = f"the first and last of {pool.ends}'s units"
        problems = [Problem(f"{config.where}: {key}", text) for key, text in pool.limit_problems(pool.outer_path, what)]
        if problems:
            raise InvalidInput(problems)
        self._pool, self._count = pool, config.num_slices
        self._longest = max(pool.counts)
        self._scales = slot_scales(config.scale, [f"slice{index + 1}" for index in range(self._count)])

    @property
    def lanes(self) -> int:
        """Nodes beside the pool's: none."""
        return 0

    @property
    def _fields(self) -> list[str]:
        # A gene that could take only one value is left out.
        return [*(["source"] if len(self._pool.nodes) > 1 else []), *(["start"] if self._longest > 1 else []), "length"]

    def genes(self) -> list[Gene]:
        """Slice by slice, then the scales."""
        found = []
        for index in range(self._count):
            for name in self._fields:
                label = f"slice{index + 1}/{name}"
                if name == "source":
                    found.append(Gene(label, GeneKind.CATEGORY, 0, len(self._pool.names) - 1, 0, self._pool.names))
                elif name == "start":
                    found.append(Gene(label, GeneKind.INTEGER, 0, self._longest - 1, 0))
                else:
                    length = 0 if index else self._pool.counts[0]
                    found.append(Gene(label, GeneKind.INTEGER, 0, self._longest, length))
        return [*found, *self._scales.genes()]

    def decode(self, values: Array) -> Route:
        """The route of gene values ``(G,)``."""
        width = len(self._fields) * self._count
        path: list[int] = []
        slots: list[int] = []
        for index, row in enumerate(np.rint(values[:width]).astype(int).reshape(self._count, -1).tolist()):
            entry = dict(zip(self._fields, row))
            source = entry.get("source", 0)
            start = min(entry.get("start", 0), self._pool.counts[source] - 1)
            length = min(entry["length"], self._pool.counts[source] - start)
            first = self._pool.offsets[source] + start
            path += range(first, first + length)
            slots += [index, *[NOWHERE] * (length - 1)] if length else []
        path = self._pool.fitting_start(path)
        slots = slots[: len(path)]
        if not path:
            path = self._pool.outer_path
            slots = [NOWHERE] * len(path)
        return self._pool.route(path, self._scales.scales(values[width:], path, slots))

    def encode(self, recipe: Recipe) -> Array:
        """The gene values ``(G,)`` of a route, in as few slices as it has runs and scales.

        Raises:
            UserError: a path or scales that no genes give.
        """
        _, path, scales = self._pool.read(recipe)
        runs = self._runs(path, scales)
        if len(runs) > self._count and path == self._pool.outer_path:
            runs = []
        elif len(runs) > self._count:
            raise UserError(f"the recipe's path has {len(runs)} runs of neighbouring units, the space {self._count}")
        elif not self._pool.fits(path):
            raise UserError("the recipe's path is over the space's max_hops or max_parameters")
        genes = np.zeros((self._count, len(self._fields)))
        slots = [NOWHERE] * len(path)
        for index, (place, length) in enumerate(runs):
            source = max(k for k, offset in enumerate(self._pool.offsets) if offset <= path[place])
            start = path[place] - self._pool.offsets[source]
            row = {"source": source, "start": start, "length": length}
            genes[index] = [row[name] for name in self._fields]
            slots[place] = index
        return np.concatenate([genes.ravel(), self._scales.read(scales, path, slots)])

    def _runs(self, path: Sequence[int], scales: Sequence[float]) -> list[tuple[int, int]]:
        """First place and length of each run; a scale begins a new one."""
        starts = []
        last_units = {offset + count - 1 for offset, count in zip(self._pool.offsets, self._pool.counts)}
        for place, unit in enumerate(path):
            is_next = place > 0 and unit == path[place - 1] + 1 and path[place - 1] not in last_units
            if not is_next or scales[place] != 1:
                starts.append(place)
        return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(path)])]

    def describe(self) -> list[str]:
        """Lines for a person."""
        sources = ", ".join(f"{name} ({count} units)" for name, count in zip(self._pool.names, self._pool.counts))
        line = f"up to {self._count} slices of {sources}, starting at {self._pool.ends} itself"
        return [line, *filter(None, [self._scales.describe()])]
