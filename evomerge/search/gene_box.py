"""Coordinates: between genotypes (natural units) and the unit cube the optimizers work in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.terms import Array, Gene, GeneKind


def num_values(gene: Gene) -> int:
    """How many values an integer or category gene can take."""
    if gene.kind is GeneKind.CATEGORY:
        return len(gene.choices)
    return round(gene.high - gene.low) + 1


def is_constant(gene: Gene) -> bool:
    """Whether the gene can take only one value."""
    return gene.width == 0 if gene.kind is GeneKind.REAL else num_values(gene) == 1


def reflect(unit: Array) -> Array:
    """Fold any real coordinates into [0, 1] by mirroring at the walls; the identity inside.

    Mirroring keeps neighbours neighbours, so an optimizer that is told the unfolded point sees a continuous function.

    Args:
        unit: coordinates ``(G,)``.
    """
    folded = np.mod(unit, 2.0)
    return np.where(folded > 1.0, 2.0 - folded, folded)


class GeneBox:
    """The box of G genes.

    A real gene's unit coordinate is ``(value - low) / width``. A category gene's low and high are taken from its
    choices, whatever the gene says.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        self.genes = tuple(genes)
        category = np.array([gene.kind is GeneKind.CATEGORY for gene in genes], dtype=bool)
        self.low: Array = np.where(category, 0.0, [gene.low for gene in genes])
        self.high: Array = np.where(
            category, [len(gene.choices) - 1.0 for gene in genes], [gene.high for gene in genes]
        )
        self._discrete = np.array([gene.kind is not GeneKind.REAL for gene in genes], dtype=bool)
        self._width = self.high - self.low
        self._span = np.where(self._width > 0, self._width, 1.0)  # divisor that leaves constant genes at 0

    @property
    def initial(self) -> Array:
        """The genes' initial values ``(G,)``, inside the box and whole where they must be."""
        start: Array = np.clip(np.array([gene.initial for gene in self.genes], dtype=np.float64), self.low, self.high)
        return np.where(self._discrete, np.rint(start), start)

    def to_unit(self, genotype: Array) -> Array:
        """Unit coordinates ``(G,)`` of a genotype ``(G,)``."""
        unit: Array = (genotype - self.low) / self._span
        return unit

    def from_unit(self, unit: Array) -> Array:
        """Genotype ``(G,)`` of unit coordinates in [0, 1], rounded to whole numbers where the gene needs it."""
        genotype: Array = np.clip(self.low + unit * self._width, self.low, self.high)
        return np.where(self._discrete, np.rint(genotype), genotype)

    def from_uniform(self, unit: Array) -> Array:
        """Genotype ``(G,)`` of uniform draws in [0, 1): every whole number or choice is equally likely."""
        whole = self.low + np.floor(unit * (self._width + 1.0))
        return np.clip(np.where(self._discrete, whole, self.low + unit * self._width), self.low, self.high)
