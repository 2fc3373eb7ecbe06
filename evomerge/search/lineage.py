"""Merged models as what they are made of: coefficients of seed models, constant along stretches of the parameters.

All K seeds have the same n parameters, in one order. A model that was merged from them by crossovers with split points
is ``theta(j) = sum_k c_k(j) seed_k(j)`` with ``c`` constant between the split points used on the way. Spherical
interpolation of two such models is of the same form, and the angle between them follows from inner products of the
seeds alone. So a model is kept as a few hundred numbers, exact up to rounding, and weights are only needed to score it.

Mutations leave that span: a noise vector counts as one more seed, rebuilt from its random seed wherever it is needed.

Reference: Abrantes et al. 2025, Competition and Attraction Improve Model Fusion, https://arxiv.org/abs/2508.16204.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from evomerge.search.seed_gram import Gram, Noise
from evomerge.terms import Array

Positions = npt.NDArray[np.int64]

PARALLEL = 1e-6  # below this sine of the angle, interpolation is linear
_HEADER = 3  # segments, seeds, noises
_HALF = 1 << 32  # random seeds are written as two halves, each exact in a float64


@dataclass(frozen=True, eq=False)
class Lineage:
    """A piecewise constant combination of seeds and noises.

    Attributes:
        boundaries: ``(S + 1,)`` increasing, from 0 to n.
        coefficients: ``(S, K + N)`` of the seeds, then of the noises, on each segment.
        noises: the N noise vectors.
    """

    boundaries: Positions
    coefficients: Array
    noises: tuple[Noise, ...] = ()

    def __post_init__(self) -> None:
        bounds, values = np.asarray(self.boundaries), np.asarray(self.coefficients, dtype=np.float64)
        if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or np.any(np.diff(bounds) <= 0):
            raise ValueError(f"boundaries must increase from 0, got {bounds.tolist()}")
        if values.ndim != 2 or len(values) != len(bounds) - 1 or values.shape[1] <= len(self.noises):
            raise ValueError(f"{len(bounds) - 1} segments and {len(self.noises)} noises do not fit {values.shape}")
        if not np.all(np.isfinite(values)):
            raise ValueError("coefficients must be finite")
        object.__setattr__(self, "boundaries", bounds.astype(np.int64))
        object.__setattr__(self, "coefficients", values)

    @classmethod
    def of_seed(cls, seed: int, num_seeds: int, size: int) -> Lineage:
        """Seed number ``seed`` of K seeds with n = ``size`` parameters."""
        return cls(np.array([0, size]), np.eye(num_seeds)[seed : seed + 1])

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return int(self.boundaries[-1])

    @property
    def num_seeds(self) -> int:
        """K."""
        return int(self.coefficients.shape[1]) - len(self.noises)

    @property
    def num_segments(self) -> int:
        """S."""
        return len(self.coefficients)

    def mutated(self, noise: Noise) -> Lineage:
        """The same with a noise vector added to every parameter."""
        ones = np.ones((self.num_segments, 1))
        return Lineage(self.boundaries, np.hstack([self.coefficients, ones]), (*self.noises, noise))

    def values(self, seeds: Array, start: int = 0, end: int | None = None) -> Array:
        """Parameters ``[start, end)``.

        Args:
            seeds: ``(K, end - start)`` the seeds' parameters there.
            start: first parameter.
            end: one past the last parameter, None = n.
        """
        end = self.size if end is None else end
        found = np.zeros(end - start, dtype=np.result_type(seeds.dtype, np.float32))
        for low, high, row in self._within(start, end):
            part = slice(low - start, high - start)
            # One seed after the other: the same bits whatever piece is read, which a matrix product does not promise.
            for coefficient, seed in zip(row[: self.num_seeds].astype(found.dtype), seeds, strict=True):
                found[part] += coefficient * seed[part]
        for number, noise in enumerate(self.noises):
            drawn = noise.values(start, end)
            for low, high, row in self._within(start, end):
                part = slice(low - start, high - start)
                found[part] += row[self.num_seeds + number] * drawn[part]
        return found

    def genotype(self) -> Array:
        """All of it as one row of numbers, for logs: S, K, N, boundaries, coefficients, and of each noise its random
        seed in two halves and its sigma. ``from_genotype`` gives it back, bit for bit.
        """
        noises = [number for noise in self.noises for number in (*divmod(noise.seed, _HALF), noise.sigma)]
        header = [self.num_segments, self.num_seeds, len(self.noises)]
        return np.concatenate([header, self.boundaries, self.coefficients.ravel(), noises]).astype(np.float64)

    @classmethod
    def from_genotype(cls, genotype: Array) -> Lineage:
        """The lineage that ``genotype`` was made of.

        Raises:
            ValueError: it is no lineage.
        """
        numbers = np.asarray(genotype, dtype=np.float64)
        if numbers.ndim != 1 or len(numbers) < _HEADER or not np.all(np.isfinite(numbers)):
            raise ValueError("a lineage is written as a row of finite numbers")
        segments, seeds, noises = (int(number) for number in numbers[:_HEADER])
        ends = np.cumsum([_HEADER, segments + 1, segments * (seeds + noises), 3 * noises])
        if min(segments, seeds) < 1 or noises < 0 or ends[-1] != len(numbers):
            raise ValueError(f"{segments} segments, {seeds} seeds and {noises} noises are not {len(numbers)} numbers")
        bounds, values, drawn = (numbers[low:high] for low, high in pairwise(ends))
        if np.any(bounds != np.floor(bounds)):
            raise ValueError("boundaries must be whole numbers")
        rows = drawn.reshape(noises, 3)
        made = tuple(Noise(int(high) * _HALF + int(low), float(sigma)) for high, low, sigma in rows)
        return cls(bounds.astype(np.int64), values.reshape(segments, seeds + noises).copy(), made)

    def _within(self, start: int, end: int) -> list[tuple[int, int, Array]]:
        """Segments that meet ``[start, end)``: first and one past last parameter, coefficients."""
        first = int(np.searchsorted(self.boundaries, start, side="right")) - 1
        last = int(np.searchsorted(self.boundaries, end, side="left"))
        cut = self.boundaries[first : last + 1].clip(start, end).tolist()
        rows = self.coefficients[first:last]
        return [(low, high, row) for (low, high), row in zip(pairwise(cut), rows, strict=True)]


@dataclass(frozen=True)
class Chromosome:
    """Parameters that a crossover splits on their own.

    Attributes:
        name: for people.
        stretches: ``(start, end)`` of each, in order; the split point counts along them.
    """

    name: str
    stretches: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of its parameters."""
        return sum(end - start for start, end in self.stretches)


@dataclass(frozen=True)
class Cut:
    """How one chromosome of a child comes about: ``slerp_weight`` before ``split``, ``slerp_(1 - weight)`` after it.

    Attributes:
        split: parameters of the chromosome before the split, 0 to its size.
        weight: share of the second parent before the split.
    """

    split: int
    weight: float


def whole(size: int) -> tuple[Chromosome, ...]:
    """All n = ``size`` parameters as one chromosome."""
    return (Chromosome("all", ((0, size),)),)


def check_chromosomes(chromosomes: Sequence[Chromosome], size: int) -> None:
    """See that every one of n = ``size`` parameters is in exactly one chromosome.

    Raises:
        ValueError: it is not so.
    """
    stretches = sorted(stretch for one in chromosomes for stretch in one.stretches)
    expected = 0
    for start, end in stretches:
        if start != expected or end <= start:
            raise ValueError(f"chromosomes must cover parameters 0 to {size} once each; look at {start} to {end}")
        expected = end
    if expected != size:
        raise ValueError(f"chromosomes end at parameter {expected}, the models have {size}")


def crossover(
    a: Lineage, b: Lineage, cuts: Sequence[Cut], gram: Gram, chromosomes: Sequence[Chromosome] = ()
) -> Lineage:
    """The child of two parents (M2N2, section 3.1).

    Args:
        a: first parent.
        b: second parent, of the same seeds.
        cuts: one for each chromosome.
        gram: inner products of the seeds; the angle is that between the whole parents.
        chromosomes: cover every parameter once (``check_chromosomes``), empty = ``whole``.
    """
    groups = chromosomes or whole(a.size)
    dot, aa, bb = inner(a, b, gram), inner(a, a, gram), inner(b, b, gram)
    starts, weights = _weights_along(groups, cuts)
    noises = tuple(dict.fromkeys((*a.noises, *b.noises)))
    bounds = _joined(a.boundaries, b.boundaries, np.append(starts, a.size))
    weight_of = weights[_segment_of(starts, bounds[:-1])]
    rows_a, rows_b = (_rows(parent, bounds, noises) for parent in (a, b))
    scales = {float(weight): slerp_scales(float(weight), dot, aa, bb) for weight in np.unique(weight_of)}
    scale_a, scale_b = np.array([scales[float(weight)] for weight in weight_of]).T
    return _simplified(bounds, scale_a[:, None] * rows_a + scale_b[:, None] * rows_b, noises)


def inner(a: Lineage, b: Lineage, gram: Gram) -> float:
    """Inner product of two models, ``sum over segments c_a^T G c_b``."""
    noises = tuple(dict.fromkeys((*a.noises, *b.noises)))
    bounds = _joined(a.boundaries, b.boundaries)
    rows_a, rows_b = (_rows(one, bounds, noises) for one in (a, b))
    parts = [
        float(left @ gram.gram(low, high, noises) @ right)
        for (low, high), left, right in zip(pairwise(bounds.tolist()), rows_a, rows_b, strict=True)
    ]
    return math.fsum(parts)


def slerp_scales(weight: float, dot: float, aa: float, bb: float) -> tuple[float, float]:
    """What spherical interpolation multiplies two vectors with, from their inner products.

    Args:
        weight: share of the second vector, 0 to 1.
        dot: of the two.
        aa: of the first with itself.
        bb: of the second with itself.
    """
    norms = math.sqrt(max(aa, 0.0)) * math.sqrt(max(bb, 0.0))
    angle = math.acos(min(1.0, max(-1.0, dot / norms))) if norms > 0 else 0.0
    sine = math.sin(angle)
    if sine <= PARALLEL:
        return 1.0 - weight, weight
    return math.sin((1.0 - weight) * angle) / sine, math.sin(weight * angle) / sine


def _weights_along(groups: Sequence[Chromosome], cuts: Sequence[Cut]) -> tuple[Positions, Array]:
    """Starts of stretches of one weight, in order of the parameters, and their weights."""
    found: list[tuple[int, float]] = []
    for group, cut in zip(groups, cuts, strict=True):
        if not 0 <= cut.split <= group.size or not 0 <= cut.weight <= 1:
            raise ValueError(f"chromosome {group.name!r} of {group.size} parameters cannot be cut by {cut}")
        left = cut.split
        for start, end in group.stretches:
            middle = start + min(left, end - start)
            left -= middle - start
            found += [(start, cut.weight)] if middle > start else []
            found += [(middle, 1.0 - cut.weight)] if end > middle else []
    found.sort()
    return np.array([start for start, _ in found], dtype=np.int64), np.array([weight for _, weight in found])


def _joined(*positions: Positions) -> Positions:
    return np.unique(np.concatenate(positions))


def _segment_of(starts: Positions, positions: Positions) -> Positions:
    return np.searchsorted(starts, positions, side="right") - 1


def _rows(lineage: Lineage, bounds: Positions, noises: tuple[Noise, ...]) -> Array:
    """Coefficients ``(len(bounds) - 1, K + N)`` on finer segments, with columns for ``noises``."""
    fine = lineage.coefficients[_segment_of(lineage.boundaries[:-1], bounds[:-1])]
    if lineage.noises == noises:
        return fine
    count = lineage.num_seeds
    found = np.zeros((len(fine), count + len(noises)))
    found[:, :count] = fine[:, :count]
    columns = [count + noises.index(noise) for noise in lineage.noises]
    found[:, columns] = fine[:, count:]
    return found


def _simplified(bounds: Positions, rows: Array, noises: tuple[Noise, ...]) -> Lineage:
    """Equal neighbours joined, noises that vanished left out."""
    count = rows.shape[1] - len(noises)
    kept = [number for number in range(len(noises)) if np.any(rows[:, count + number])]
    rows = rows[:, [*range(count), *(count + number for number in kept)]]
    changes = np.flatnonzero(np.any(rows[1:] != rows[:-1], axis=1)) + 1
    first = np.concatenate([[0], changes])
    return Lineage(np.append(bounds[first], bounds[-1]), rows[first], tuple(noises[number] for number in kept))
