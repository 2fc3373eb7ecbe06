"""Inner products of seed models along stretches of their parameters, and the noise that counts as a further seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from evomerge.terms import Array

NOISE_BLOCK = 1 << 16  # parameters drawn at once, so that a stretch does not need all before it


@dataclass(frozen=True)
class Noise:
    """A normal vector over all parameters.

    Attributes:
        seed: of its draws, 0 to 2^63 - 1.
        sigma: standard deviation.
    """

    seed: int
    sigma: float

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"the seed of a noise must be from 0 to 2^63 - 1, got {self.seed}")

    def values(self, start: int, end: int) -> Array:
        """Its parameters ``[start, end)``."""
        found = np.empty(end - start)
        for block in range(start // NOISE_BLOCK, -(-end // NOISE_BLOCK)):
            first = block * NOISE_BLOCK
            low, high = max(start, first), min(end, first + NOISE_BLOCK)
            drawn = np.random.default_rng([self.seed, block]).standard_normal(high - first)
            found[low - start : high - start] = drawn[low - first :]
        return self.sigma * found


class Gram(Protocol):
    """Inner products of K seed models of n parameters."""

    @property
    def num_seeds(self) -> int:
        """K."""
        ...

    @property
    def size(self) -> int:
        """How many parameters a model has, n."""
        ...

    def gram(self, start: int, end: int, noises: tuple[Noise, ...] = ()) -> Array:
        """Inner products over the parameters ``[start, end)``.

        Args:
            start: first parameter.
            end: one past the last parameter.
            noises: N further vectors.

        Returns:
            ``(K + N, K + N)``, seeds first.
        """
        ...


ReadSeeds = Callable[[int, int], Array]


class CellGram:
    """Inner products from cells that were computed once; a position inside a cell costs reading part of that cell.

    What it gives depends on the seeds and the cells alone, never on what was asked before. Sums are in float64.

    Args:
        read: gives the seeds' parameters ``(K, end - start)`` of ``[start, end)``, in any float type; it is never asked
            for more than a cell.
        edges: ``(C + 1,)`` increasing from 0 to n: where cells begin and end, for example the tensors.
        cells: ``(C, K, K)`` inner products over each cell where they are known; None = they are computed now.
        products: gives the inner products ``(K, K)`` over a part of a cell; None = from what ``read`` gives.
    """

    def __init__(
        self, read: ReadSeeds, edges: Sequence[int], cells: Array | None = None, products: ReadSeeds | None = None
    ) -> None:
        self._read, self._products = read, products
        self._edges = np.array(edges, dtype=np.int64)
        if len(edges) < 2 or edges[0] != 0 or np.any(np.diff(self._edges) <= 0):
            raise ValueError(f"the edges of cells must increase from 0, got {list(edges)}")
        if cells is None:
            cells = np.array([self._direct(int(low), int(high)) for low, high in pairwise(self._edges)])
        if len(cells) != len(self._edges) - 1:
            raise ValueError(f"{len(self._edges) - 1} cells have no {len(cells)} matrices of inner products")
        self._sums = np.concatenate([np.zeros((1, *cells[0].shape)), np.cumsum(cells, axis=0)])
        self._inside: dict[int, Array] = {}

    @classmethod
    def of_vectors(cls, seeds: Array, cell: int = 4096) -> CellGram:
        """Of seeds ``(K, n)`` in memory."""
        size = seeds.shape[1]
        return cls(lambda start, end: seeds[:, start:end], [*range(0, size, cell), size])

    @property
    def num_seeds(self) -> int:
        """K."""
        return int(self._sums.shape[1])

    @property
    def size(self) -> int:
        """How many parameters a model has, n."""
        return int(self._edges[-1])

    def gram(self, start: int, end: int, noises: tuple[Noise, ...] = ()) -> Array:
        """See ``Gram``; with noises every parameter is read."""
        if noises:
            return self._with_noises(start, end, noises)
        found: Array = self._up_to(end) - self._up_to(start)
        return found

    def _up_to(self, position: int) -> Array:
        """Over the parameters before ``position``: whole cells, and the part of the one it falls into."""
        cell = int(np.searchsorted(self._edges, position, side="right")) - 1
        if self._edges[cell] == position:
            found: Array = self._sums[cell]
            return found
        if position not in self._inside:
            self._inside[position] = self._sums[cell] + self._direct(int(self._edges[cell]), position)
        return self._inside[position]

    def _direct(self, start: int, end: int, noises: tuple[Noise, ...] = ()) -> Array:
        if self._products is not None and not noises:
            return self._products(start, end)
        rows = np.asarray(self._read(start, end), dtype=np.float64)
        if noises:
            rows = np.vstack([rows, *(noise.values(start, end) for noise in noises)])
        found: Array = rows @ rows.T
        return found

    def _with_noises(self, start: int, end: int, noises: tuple[Noise, ...]) -> Array:
        inside = self._edges[(self._edges > start) & (self._edges < end)].tolist()
        cuts = [start, *inside, end]
        count = self.num_seeds + len(noises)
        total = np.zeros((count, count))
        for low, high in pairwise(cuts):
            total += self._direct(low, high, noises)
        return total
