"""Searched scales of the units of a path: how genes become scales, and scales genes. The first scale is always 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evomerge.errors import UserError
from evomerge.spaces.block_pool import BlockPool
from evomerge.spaces.data_flow_config import IndicatorScaleConfig, ScaleConfig
from evomerge.terms import Array, Gene

NOWHERE = -1  # the slot of a unit that runs without one

Slots = Sequence[int]


class HopScales(Protocol):
    """One form of searched scales."""

    def genes(self) -> list[Gene]:
        """Its genes."""

    def scales(self, genes: Array, path: Sequence[int], slots: Slots) -> list[float]:
        """The scale of each unit of a path.

        Args:
            genes: values ``(S,)``.
            path: units ``(P,)``.
            slots: slot, place or slice ``(P,)`` that each unit runs in, ``NOWHERE`` without one.
        """

    def read(self, scales: Sequence[float], path: Sequence[int], slots: Slots) -> Array:
        """The genes ``(S,)`` that give these scales; genes that do nothing are at their initial values.

        Raises:
            UserError: there are none.
        """

    def describe(self) -> str:
        """One line for a person, empty when nothing is searched."""


class NoScales:
    """All scales are 1."""

    def genes(self) -> list[Gene]:
        """None."""
        return []

    def scales(self, genes: Array, path: Sequence[int], slots: Slots) -> list[float]:
        """Ones."""
        return [1.0] * len(path)

    def read(self, scales: Sequence[float], path: Sequence[int], slots: Slots) -> Array:
        """Nothing.

        Raises:
            UserError: a scale is not 1.
        """
        if any(scale != 1 for scale in scales):
            raise UserError("the recipe has scales other than 1, and the space searches none")
        return np.zeros(0)

    def describe(self) -> str:
        """Nothing."""
        return ""


class _Bounded:
    def __init__(self, config: ScaleConfig, labels: Sequence[str]) -> None:
        """Remember the bounds.

        Args:
            config: low, high and init.
            labels: one for each gene.
        """
        self._labels = labels
        self._low, self._high, self._init = config.low, config.high, config.init

    def genes(self) -> list[Gene]:
        """One for each label."""
        return [Gene(f"scale/{label}", low=self._low, high=self._high, initial=self._init) for label in self._labels]

    def _assigned(self, places: Sequence[int], scales: Sequence[float]) -> Array:
        """Genes with scales put into their places, ``NOWHERE`` = must be 1.

        Raises:
            UserError: a scale outside the bounds, or two in one place.
        """
        genes = np.full(len(self._labels), self._init)
        seen: dict[int, float] = {}
        for place, scale in zip(places, scales, strict=True):
            if place == NOWHERE:
                if scale != 1:
                    raise UserError(f"the recipe has the scale {scale:g} at a hop whose scale is not searched")
                continue
            if not self._low <= scale <= self._high:
                raise UserError(f"the recipe's scale {scale:g} lies outside {self._low:g} to {self._high:g}")
            if seen.setdefault(place, scale) != scale:
                what = f"{self._labels[place]} has the scales {seen[place]:g} and {scale:g}"
                raise UserError(f"the recipe's scales are not of this form: {what}")
            genes[place] = scale
        return genes

    def _span(self) -> str:
        return f"{self._low:g} to {self._high:g}, starting at {self._init:g}"


class SlotScales(_Bounded):
    """A scale for every slot, place of a list, or slice."""

    def scales(self, genes: Array, path: Sequence[int], slots: Slots) -> list[float]:
        """Each unit has its slot's."""
        values = genes.tolist()
        return [1.0 if k == 0 or slot == NOWHERE else values[slot] for k, slot in enumerate(slots)]

    def read(self, scales: Sequence[float], path: Sequence[int], slots: Slots) -> Array:
        """Each slot has its unit's.

        Raises:
            UserError: a scale outside the bounds, or without a slot.
        """
        return self._assigned([NOWHERE if k == 0 else slot for k, slot in enumerate(slots)], scales)

    def describe(self) -> str:
        """One line."""
        return f"{len(self._labels)} scales, one for each slot: {self._span()}"


class MatrixScales(_Bounded):
    """A scale ``W[i, j]`` for every ordered pair: of unit j when it runs right after unit i (arXiv 2403.13187)."""

    def __init__(self, config: ScaleConfig, pool: BlockPool) -> None:
        """Name the pairs, row by row."""
        names = [unit.label for unit in pool.units]
        super().__init__(config, [f"{before}>{after}" for before in names for after in names])
        self._size = len(names)

    def scales(self, genes: Array, path: Sequence[int], slots: Slots) -> list[float]:
        """Looked up by the unit before and the unit itself."""
        values: list[float] = genes[self._pairs(path)[1:]].tolist()
        return [1.0, *values]

    def read(self, scales: Sequence[float], path: Sequence[int], slots: Slots) -> Array:
        """Each pair has the scale of the units that follow each other.

        Raises:
            UserError: a scale outside the bounds, or two scales of one pair.
        """
        return self._assigned(self._pairs(path).tolist(), scales)

    def _pairs(self, path: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        units = np.asarray(path, dtype=np.int64)
        pairs = np.full(len(units), NOWHERE, dtype=np.int64)
        pairs[1:] = units[:-1] * self._size + units[1:]
        return pairs

    def describe(self) -> str:
        """One line."""
        return f"{len(self._labels)} scales, one for each ordered pair of {self._size} units: {self._span()}"


class NetworkScales:
    """Scales from a small network of the unit before, the unit, and the step (arXiv 2403.13187).

    ``1 + w2 · tanh(W1 (i/M, j/M, t/T) + b1) + b2``, clipped: M units, T slots, t the step in the path. Weights of 0
    give scales of 1.
    """

    def __init__(self, config: IndicatorScaleConfig, pool: BlockPool, num_slots: int) -> None:
        """Remember the sizes."""
        self._low, self._high, self._hidden = config.low, config.high, config.hidden
        self._divisors = np.array([[len(pool.units)], [len(pool.units)], [num_slots]], dtype=np.float64)

    def genes(self) -> list[Gene]:
        """Weights of the first layer row by row, its biases, the weights and the bias of the second."""
        names = [f"{name}/{unit}" for unit in range(self._hidden) for name in ("before", "unit", "step")]
        names += [f"bias/{unit}" for unit in range(self._hidden)]
        names += [f"out/{unit}" for unit in range(self._hidden)]
        return [Gene(f"scale/{name}", low=-1.0, high=1.0, initial=0.0) for name in (*names, "out/bias")]

    def scales(self, genes: Array, path: Sequence[int], slots: Slots) -> list[float]:
        """The network's outputs."""
        count = self._hidden
        first, bias, second = np.split(genes[:-1], (3 * count, 4 * count))
        steps = np.arange(1, len(path))
        inputs = np.array([path[:-1], path[1:], steps], dtype=np.float64) / self._divisors
        hidden = np.tanh(first.reshape(count, 3) @ inputs + bias[:, None])
        values: list[float] = np.clip(1 + second @ hidden + genes[-1], self._low, self._high).tolist()
        return [1.0, *values]

    def read(self, scales: Sequence[float], path: Sequence[int], slots: Slots) -> Array:
        """Weights of 0.

        Raises:
            UserError: a scale is not 1; scales do not tell the network's weights.
        """
        if any(scale != 1 for scale in scales):
            raise UserError("the recipe's scales come from a network; its weights cannot be read back from them")
        return np.zeros(5 * self._hidden + 1)

    def describe(self) -> str:
        """One line."""
        count = 5 * self._hidden + 1
        return f"scales from a network of {count} weights, {self._low:g} to {self._high:g}, starting at 1"


def slot_scales(config: ScaleConfig, labels: Sequence[str]) -> HopScales:
    """The scales of encodings that know no other forms than one for each slot."""
    return SlotScales(config, labels) if config.form == "slot" else NoScales()
