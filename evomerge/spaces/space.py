"""What a search space is: a fixed list of genes, and the way between genotypes and recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from evomerge.recipes.recipe import Node, Recipe, Source
from evomerge.terms import Array, Gene


@dataclass(frozen=True)
class SpaceModels:
    """What a search space must know of the models.

    Attributes:
        base: the common ancestor, or None.
        experts: (name, source) in a fixed order.
        num_blocks: number of blocks, None while no model is on this machine.
        seed: seed of random masks, the same for all candidates (common random numbers).
        dtype: dtype of the merged weights; None or ``auto`` = the base model's own.
        tensors: (name, component) of every merged tensor; empty while no model is on this machine.
        extra: (name, node) of further models that a path may use, for example what an earlier stage found.
    """

    base: Source | None
    experts: tuple[tuple[str, Source], ...]
    num_blocks: int | None
    seed: int = 0
    dtype: str | None = None
    tensors: tuple[tuple[str, str], ...] = ()
    extra: tuple[tuple[str, Node], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts."""
        return tuple(name for name, _ in self.experts)


class SearchSpace(Protocol):
    """The contract, checked over every shipped space.

    Every genotype within the genes' bounds decodes to a valid recipe. ``encode(decode(g))`` is a fixed point: it
    decodes to the same recipe and encodes to itself. Decoding is deterministic; equal recipes have equal ids.
    """

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in the order of a genotype."""

    @property
    def gene_groups(self) -> Mapping[str, list[int]]:
        """Readable group name to the indices of its genes, for summaries of long genotypes; disjoint, covers all."""

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a genotype ``(G,)``.

        Raises:
            ValueError: wrong shape or not finite.
        """

    def encode(self, recipe: Recipe) -> Array:
        """The genotype ``(G,)`` nearest to a recipe, exact for recipes that ``decode`` gave.

        Raises:
            UserError: the recipe is of another kind, method or set of experts, or lies outside the bounds.
        """

    def describe(self) -> str:
        """A few lines for a person: what is searched, within which bounds, and what is fixed."""
