"""What a search space is: a fixed list of genes, and the way between genotypes and recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from evomerge.recipes.recipe import Merge, Node, Recipe, Source, Stack, children
from evomerge.terms import Array, Gene


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model that may lend blocks.

    Attributes:
        num_blocks: depth.
        block_parameters: number of weights of each block ``(num_blocks,)``; empty = unknown.
        outside_parameters: number of weights outside the blocks.
    """

    num_blocks: int
    block_parameters: tuple[int, ...] = ()
    outside_parameters: int = 0


@dataclass(frozen=True)
class SpaceModels:
    """What a search space must know of the models.

    Attributes:
        base: the common ancestor, or None.
        experts: (name, model) in a fixed order.
        num_blocks: number of blocks, None while no model is on this machine.
        seed: seed of random masks, the same for all candidates (common random numbers).
        dtype: dtype of the merged weights; None or ``auto`` = the base model's own.
        tensors: (name, component) of every merged tensor; empty while no model is on this machine.
        shapes: (name, shape) of the models that are on this machine; the base model's name is ``base``.
        extra: (name, node) of further models that can lend blocks: merges, winners of earlier stages.
        sizes: number of entries of each of ``tensors``.
    """

    base: Source | None
    experts: tuple[tuple[str, Node], ...]
    num_blocks: int | None
    seed: int = 0
    dtype: str | None = None
    tensors: tuple[tuple[str, str], ...] = ()
    shapes: tuple[tuple[str, ModelShape], ...] = ()
    extra: tuple[tuple[str, Node], ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts."""
        return tuple(name for name, _ in self.experts)

    @property
    def nodes(self) -> dict[str, Node]:
        """Every model that can lend blocks, by name: extra ones first, then the experts, then the base."""
        found: dict[str, Node] = {**dict(self.extra), **dict(self.experts)}
        if self.base is not None:
            found.setdefault("base", self.base)
        return found

    def shape(self, name: str) -> ModelShape | None:
        """Sizes of a model of ``nodes``, None while unknown."""
        known = dict(self.shapes)
        return known.get(name) or self._shape_of(self.nodes[name])

    def _shape_of(self, node: Node) -> ModelShape | None:
        if isinstance(node, Source):
            names = [name for name, other in self.nodes.items() if other == node]
            return next((shape for name, shape in self.shapes if name in names), None)
        if isinstance(node, Merge):
            return self._shape_of(children(node)[0])
        if not isinstance(node, Stack):
            return None
        shapes = [self._shape_of(part.node) for part in node.parts]
        counts: list[int] = []
        for part, shape in zip(node.parts, shapes):
            counts += () if shape is None else shape.block_parameters[part.start : part.end]
        if shapes[0] is None or len(counts) < node.num_blocks:
            return ModelShape(node.num_blocks)
        return ModelShape(node.num_blocks, tuple(counts), shapes[0].outside_parameters)


class SearchSpace(Protocol):
    """The contract, checked over every shipped space.

    Every genotype within the genes' bounds decodes to a valid recipe. ``encode(decode(g))`` is a fixed point: it
    decodes to the same recipe and encodes to itself. Decoding is deterministic; equal recipes have equal ids. The one
    exception: where scales of a data flow come from a network, a route with scales other than 1 does not tell the
    network's weights, and ``encode`` raises.
    """

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in the order of a genotype."""

    @property
    def gene_groups(self) -> Mapping[str, list[int]]:
        """Readable group name to the indices of its genes, for summaries of long genotypes; disjoint, covers all."""

    @property
    def num_lanes(self) -> int:
        """Most models whose blocks a worker holds at once for routes; 0 where no candidate is a route."""

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a genotype ``(G,)``.

        Raises:
            ValueError: wrong shape or not finite.
        """

    def encode(self, recipe: Recipe) -> Array:
        """The genotype ``(G,)`` nearest to a recipe, exact for recipes that ``decode`` gave.

        Raises:
            UserError: the recipe is of another kind, method or set of experts, lies outside the bounds, or does not
                tell the genes (network scales).
        """

    def describe(self) -> str:
        """A few lines for a person: what is searched, within which bounds, and what is fixed."""
