"""``encoding: layer_swap``: a donor's first and last blocks around A's, with mixed blocks at the seams.

Bandarkar 2024, https://arxiv.org/abs/2410.01335. The first ``bottom`` and the last ``top`` blocks are the donor's, as
they are. The ``seam_bottom`` and ``seam_top`` blocks of A beside them are ``(1 - v) A + v donor``; where no block is
swapped there is no seam. What lies outside the blocks is A's, or with ``outside`` weighted in the same way.
"""

from __future__ import annotations

import numpy as np

from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Hop, Merge, Node, Recipe, Route, Rule, route_through
from evomerge.spaces.block_pool import BlockPool
from evomerge.spaces.data_flow_config import LayerSwapConfig
from evomerge.terms import Array, Gene, GeneKind

SEAM, OUTSIDE = "seam", "outside"
MAX_SEAM = 3


class LayerSwapEncoding:
    """Donor, how many blocks it lends, and the weights of what is mixed."""

    def __init__(self, config: LayerSwapConfig, pool: BlockPool) -> None:
        """Remember what is searched.

        Raises:
            InvalidInput: a single model, models of different or no depth, or a model called like a node of the route.
        """
        problems = [Problem(f"{config.where}: pool", text) for text in _problems(pool)]
        if problems:
            raise InvalidInput(problems)
        self._pool, self._depth = pool, pool.depths[0]
        self._donors = pool.names[1:]
        self._seams, self._outside = config.seams, config.outside
        self._genes = self.genes()

    @property
    def lanes(self) -> int:
        """Nodes beside the pool's: the seams and the ends."""
        return self._seams + self._outside

    def genes(self) -> list[Gene]:
        """Donor (of several), bottom, top, seams, weights."""
        half, donors = self._depth // 2, self._donors
        found = [Gene("donor", GeneKind.CATEGORY, 0, len(donors) - 1, 0, donors)] if len(donors) > 1 else []
        found += [Gene(name, GeneKind.INTEGER, 0, half, 0) for name in ("bottom", "top")]
        if self._seams:
            found += [Gene(name, GeneKind.INTEGER, 0, MAX_SEAM, 1) for name in ("seam_bottom", "seam_top")]
            found.append(Gene("seam_weight", initial=0.5))
        if self._outside:
            found.append(Gene("outside_weight", initial=0.0))
        return found

    def decode(self, values: Array) -> Route:
        """The route of gene values ``(G,)``."""
        entry = {gene.name: float(value) for gene, value in zip(self._genes, values)}
        donor = self._donors[round(entry.get("donor", 0))]
        bottom, top = round(entry["bottom"]), round(entry["top"])
        low = bottom + (round(entry.get("seam_bottom", 0)) if bottom else 0)
        high = self._depth - top - (round(entry.get("seam_top", 0)) if top else 0)
        hops = []
        for block in range(self._depth):
            if block < bottom or block >= self._depth - top:
                model = donor
            else:
                model = SEAM if block < low or block >= high else self._pool.ends
            hops.append(Hop(model, block))
        nodes = dict(self._pool.nodes)
        if any(hop.model == SEAM for hop in hops):
            nodes[SEAM] = self._mixed(donor, entry["seam_weight"])
        if weight := entry.get("outside_weight", 0.0):
            nodes[OUTSIDE] = self._mixed(donor, weight)
        ends = OUTSIDE if OUTSIDE in nodes else self._pool.ends
        return route_through(nodes, hops, ends, self._pool.scale_target)

    def _mixed(self, donor: str, weight: float) -> Merge:
        nodes, ends = dict(self._pool.nodes), self._pool.ends
        rules = (Rule(1 - weight, expert=ends), Rule(weight + 0.0, expert=donor))
        parameters = (("coefficient", rules), ("normalize", (Rule(True),)))
        return Merge("linear", ((ends, nodes[ends]), (donor, nodes[donor])), None, parameters)

    def encode(self, recipe: Recipe) -> Array:
        """The gene values ``(G,)`` of a route.

        Raises:
            UserError: a path or weights that no genes give.
        """
        route = self._pool.checked(recipe, [SEAM] * self._seams + [OUTSIDE] * self._outside)
        entry = {gene.name: gene.initial for gene in self._genes}
        nodes = dict(route.models)
        donors = {name for name in nodes if name in self._donors}
        for name, gene in ((SEAM, "seam_weight"), (OUTSIDE, "outside_weight")):
            if name in nodes:
                donor, entry[gene] = self._read_mixed(nodes[name], name)
                donors.add(donor)
        if len(donors) > 1:
            raise UserError(f"the recipe's blocks come from several donors: {', '.join(sorted(donors))}")
        if donors and "donor" in entry:
            entry["donor"] = float(self._donors.index(donors.pop()))
        self._read_counts([hop.model for hop in route.hops], entry)
        found = np.array([entry[gene.name] for gene in self._genes])
        if self.decode(found) != route:
            raise UserError("the recipe's path is not one of a donor's first and last blocks around A's")
        return found

    def _read_mixed(self, node: Node, name: str) -> tuple[str, float]:
        """Donor and weight of a mixed node."""
        if isinstance(node, Merge) and len(node.experts) == 2 and node.experts[1][0] in self._donors:
            donor = node.experts[1][0]
            values = [rule.value for rule in node.rules("coefficient") if rule.expert == donor]
            if values and isinstance(values[0], float | int) and node == self._mixed(donor, values[0]):
                return donor, float(values[0])
        raise UserError(f"the recipe's model {name!r} is not a weighted sum of {self._pool.ends} and a donor")

    def _read_counts(self, models: list[str], entry: dict[str, float]) -> None:
        """How many blocks are the donor's and how many at seams, into the entry."""
        swapped = [model in self._donors for model in models]
        bottom = min(_leading(swapped), self._depth // 2)
        top = min(_leading(swapped[::-1]), len(models) - bottom)
        entry["bottom"], entry["top"] = bottom, min(top, self._depth // 2)
        mixed = [model == SEAM for model in models[bottom : len(models) - top]]
        if not self._seams:
            return
        width = min(_leading(mixed), MAX_SEAM)
        if bottom:
            entry["seam_bottom"] = width
            mixed = mixed[width:]
        if top:
            entry["seam_top"] = min(_leading(mixed[::-1]), MAX_SEAM)

    def describe(self) -> list[str]:
        """Lines for a person."""
        donors = " or ".join(self._donors)
        lines = [
            f"up to {self._depth // 2} first and last blocks of {donors} around {self._pool.ends}'s, starting at 0"
        ]
        if self._seams:
            lines.append(f"up to {MAX_SEAM} mixed blocks at each seam, of a weight from 0 to 1, starting at 0.5")
        if self._outside:
            lines.append("weight of the donor outside the blocks: 0 to 1, starting at 0")
        return lines


def _leading(flags: list[bool]) -> int:
    return next((index for index, flag in enumerate(flags) if not flag), len(flags))


def _problems(pool: BlockPool) -> list[str]:
    found = []
    if len(pool.nodes) < 2:
        found.append("layer_swap needs a donor: at least 2 models")
    if len(set(pool.depths)) > 1:
        listed = ", ".join(f"{name} has {depth}" for name, depth in zip(pool.names, pool.depths))
        found.append(f"layer_swap needs models of equal depth: {listed} blocks; use slices")
    elif pool.depths[0] < 2:
        found.append(f"layer_swap needs 2 blocks or more, {pool.ends} has {pool.depths[0]}")
    for name in (SEAM, OUTSIDE):
        if name in pool.names:
            found.append(f"the name {name!r} is taken by layer_swap; give the model another one")
    return found
