"""``kind: data_flow``: a path through the blocks of models, as genes. The weights stay as they are.

A new encoding is a file with its class, a class of keys in ``data_flow_config`` and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from evomerge.recipes.recipe import Recipe, Route
from evomerge.spaces.block_pool import BlockPool, build_pool
from evomerge.spaces.data_flow_config import DataFlowConfig
from evomerge.spaces.hop_sequence import SequenceEncoding
from evomerge.spaces.indicator import IndicatorEncoding
from evomerge.spaces.integration import IntegrationEncoding
from evomerge.spaces.layer_swap_route import LayerSwapEncoding
from evomerge.spaces.slices import SlicesEncoding
from evomerge.spaces.space import SpaceModels
from evomerge.terms import Array, Gene


class Encoding(Protocol):
    """How genes tell a path."""

    @property
    def lanes(self) -> int:
        """Nodes of its routes beside the pool's."""

    def genes(self) -> list[Gene]:
        """The coordinates."""

    def decode(self, values: Array) -> Route:
        """The route of gene values ``(G,)`` within the bounds."""

    def encode(self, recipe: Recipe) -> Array:
        """The gene values ``(G,)`` of a route.

        Raises:
            UserError: no genes give it.
        """

    def describe(self) -> list[str]:
        """Lines for a person."""


ENCODINGS: dict[str, Callable[[Any, BlockPool], Encoding]] = {
    "indicator": IndicatorEncoding,
    "integration": IntegrationEncoding,
    "sequence": SequenceEncoding,
    "slices": SlicesEncoding,
    "layer_swap": LayerSwapEncoding,
}


def build_data_flow(config: DataFlowConfig, models: SpaceModels) -> DataFlowSpace | None:
    """The space over given models; None while a depth or a count of parameters that it needs is unknown.

    Raises:
        InvalidInput: everything that does not fit the models.
    """
    pool = build_pool(config, models)
    if pool is None:
        return None
    return DataFlowSpace(ENCODINGS[config.encoding](config, pool), pool, config, models)


class DataFlowSpace:
    """A search space over the paths of one encoding."""

    def __init__(self, encoding: Encoding, pool: BlockPool, config: DataFlowConfig, models: SpaceModels) -> None:
        self._encoding = encoding
        self._pool = pool
        self._config = config
        self._dtype = None if models.dtype in (None, "auto") else models.dtype

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in the order of a genotype."""
        return tuple(self._encoding.genes())

    @cached_property
    def gene_groups(self) -> dict[str, list[int]]:
        """Gene indices by what they decide: all but the last part of their names."""
        groups: dict[str, list[int]] = {}
        for index, gene in enumerate(self.genes):
            groups.setdefault(gene.name.rpartition("/")[0] or gene.name, []).append(index)
        return groups

    @property
    def ends(self) -> str:
        """Name of the model that lends the ends."""
        return self._pool.ends

    @property
    def num_lanes(self) -> int:
        """How many models' blocks a worker holds at once: the pool's, and mixtures of them."""
        return len(self._pool.nodes) + self._encoding.lanes

    def decode(self, genotype: Array) -> Recipe:
        """The recipe of a genotype ``(G,)``.

        Raises:
            ValueError: wrong shape or not finite.
        """
        genotype = np.asarray(genotype, dtype=np.float64)
        if genotype.shape != (len(self.genes),) or not np.isfinite(genotype).all():
            raise ValueError(f"expected {len(self.genes)} finite numbers, got shape {genotype.shape}")
        return Recipe(self._encoding.decode(np.clip(genotype, self._low, self._high)), self._dtype)

    def encode(self, recipe: Recipe) -> Array:
        """The genotype ``(G,)`` of a route, genes that do nothing at their initial values.

        Raises:
            UserError: another kind of recipe, other models, or a path or scales that no genes give.
        """
        return self._encoding.encode(recipe)

    def describe(self) -> str:
        """A few lines for a person."""
        lines = [f"{self._config.encoding}: {len(self.genes)} genes", *self._encoding.describe()]
        limits = zip(("max_hops", "max_parameters"), self._config.limits)
        lines += [f"{name} {value:,}" for name, value in limits if value is not None]
        return "\n  ".join([*lines, f"scale_target {self._config.scale_target}"])

    @cached_property
    def _low(self) -> Array:
        return np.array([gene.low for gene in self.genes], dtype=np.float64)

    @cached_property
    def _high(self) -> Array:
        return np.array([gene.high for gene in self.genes], dtype=np.float64)
