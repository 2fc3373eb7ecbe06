"""The models of a data flow and their blocks: paths over units of blocks, their cost, and routes of them.

A path is a list of unit numbers. Units are counted model by model in the order of the pool; model 0 is A.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from evomerge.errors import InvalidInput, Problem, UserError, did_you_mean
from evomerge.recipes.recipe import Hop, Node, Recipe, Route, route_through
from evomerge.spaces.data_flow_config import DataFlowConfig
from evomerge.spaces.space import ModelShape, SpaceModels


@dataclass(frozen=True)
class Unit:
    """Neighbouring blocks that run together.

    Attributes:
        model: name of their model.
        start: the first one.
        end: the block behind the last one.
        parameters: number of their weights, 0 while unknown.
    """

    model: str
    start: int
    end: int
    parameters: int

    @property
    def label(self) -> str:
        """Name in genes: ``math:3`` or ``math:4-7``."""
        return f"{self.model}:{self.start}" + (f"-{self.end - 1}" if self.end > self.start + 1 else "")


@dataclass(frozen=True)
class BlockPool:
    """The models of a data flow.

    Attributes:
        nodes: (name, node), A first.
        shapes: their sizes, in the same order.
        unit_size: blocks of one unit; the last unit of a model may have fewer.
        scale_target: of every route.
        max_hops: most hops of a path.
        max_parameters: most weights in the distinct blocks of a path and A's ends.
    """

    nodes: tuple[tuple[str, Node], ...]
    shapes: tuple[ModelShape, ...]
    unit_size: int = 1
    scale_target: str = "stream"
    max_hops: int | None = None
    max_parameters: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(name for name, _ in self.nodes)

    @property
    def ends(self) -> str:
        """Name of A."""
        return self.nodes[0][0]

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each model."""
        return tuple(shape.num_blocks for shape in self.shapes)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units."""
        found = []
        for name, shape in zip(self.names, self.shapes):
            for start in range(0, shape.num_blocks, self.unit_size):
                end = min(start + self.unit_size, shape.num_blocks)
                found.append(Unit(name, start, end, sum(shape.block_parameters[start:end])))
        return tuple(found)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of units of each model."""
        return tuple(-(-depth // self.unit_size) for depth in self.depths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Number of each model's first unit."""
        return (0, *accumulate(self.counts))[:-1]

    @property
    def outer_path(self) -> list[int]:
        """A's first and last unit: what runs where nothing else would."""
        return list(dict.fromkeys((0, self.counts[0] - 1)))

    @property
    def whole_path(self) -> list[int]:
        """A itself."""
        return list(range(self.counts[0]))

    def cost(self, path: Sequence[int]) -> tuple[int, int]:
        """Number of hops, and of weights in distinct blocks and A's ends."""
        hops = sum(self.units[unit].end - self.units[unit].start for unit in path)
        weights = sum(self.units[unit].parameters for unit in dict.fromkeys(path))
        return hops, weights + self.shapes[0].outside_parameters

    def fits(self, path: Sequence[int]) -> bool:
        """Whether a path keeps the limits."""
        return self._keeps(*self.cost(path))

    def _keeps(self, hops: int, weights: int) -> bool:
        return (self.max_hops is None or hops <= self.max_hops) and (
            self.max_parameters is None or weights <= self.max_parameters
        )

    def fitting_start(self, path: Sequence[int]) -> list[int]:
        """The longest start of a path that keeps the limits."""
        hops, weights, seen = 0, self.shapes[0].outside_parameters, set[int]()
        for index, number in enumerate(path):
            unit = self.units[number]
            hops += unit.end - unit.start
            weights += 0 if number in seen else unit.parameters
            seen.add(number)
            if not self._keeps(hops, weights):
                return list(path[:index])
        return list(path)

    def without_least(self, path: Sequence[int], order: Sequence[int]) -> list[int]:
        """The places of a path that stay when places are taken out in a given order until it keeps the limits.

        Args:
            path: units.
            order: places that may go, the first to go first.
        """
        left = Counter(path)
        hops, weights = self.cost(path)
        gone: set[int] = set()
        for place in order:
            if self._keeps(hops, weights):
                break
            unit = self.units[path[place]]
            gone.add(place)
            hops -= unit.end - unit.start
            left[path[place]] -= 1
            weights -= 0 if left[path[place]] else unit.parameters
        return [place for place in range(len(path)) if place not in gone]

    def limit_problems(self, path: Sequence[int], what: str) -> Iterator[tuple[str, str]]:
        """(key, message) where a path that must be possible is over a limit."""
        hops, weights = self.cost(path)
        if self.max_hops is not None and hops > self.max_hops:
            yield "max_hops", f"must allow {what}, which is {hops} hops; got {self.max_hops}"
        if self.max_parameters is not None and weights > self.max_parameters:
            yield "max_parameters", f"must allow {what}, which is {weights:,} parameters; got {self.max_parameters:,}"

    def route(self, path: Sequence[int], scales: Sequence[float], output_scale: float = 1.0) -> Route:
        """The route of a path.

        Args:
            path: units.
            scales: of the first hop of each unit; its other hops have scale 1.
            output_scale: of the stream behind the last block.
        """
        hops: list[Hop] = []
        for number, scale in zip(path, scales, strict=True):
            plain = self._hops[number]
            hops += plain if scale == 1 else (Hop(plain[0].model, plain[0].block, scale + 0.0), *plain[1:])
        return route_through(dict(self.nodes), hops, self.ends, self.scale_target, output_scale + 0.0)

    @cached_property
    def _hops(self) -> tuple[tuple[Hop, ...], ...]:
        return tuple(tuple(Hop(unit.model, block) for block in range(unit.start, unit.end)) for unit in self.units)

    def read(self, recipe: Recipe, reads_output: bool = False) -> tuple[Route, list[int], list[float]]:
        """The route of a recipe, its path in units, and the scale of each unit.

        Args:
            recipe: any recipe.
            reads_output: whether the route may have an output scale.

        Raises:
            UserError: another kind of recipe, other models, or a path that is not one of whole units.
        """
        route = self.checked(recipe)
        if route.output_scale != 1 and not reads_output:
            raise UserError(f"the recipe has the output scale {route.output_scale:g}, which the space does not search")
        starts = {(unit.model, unit.start): number for number, unit in enumerate(self.units)}
        path: list[int] = []
        scales: list[float] = []
        place = 0
        while place < len(route.hops):
            hop = route.hops[place]
            number = starts.get((hop.model, hop.block))
            rest = () if number is None else self._hops[number][1:]
            if number is None or route.hops[place + 1 : place + 1 + len(rest)] != rest:
                raise UserError(f"hop {place} of the recipe ({hop.model} block {hop.block}) is not a unit of the space")
            path.append(number)
            scales.append(hop.scale)
            place += 1 + len(rest)
        return route, path, scales

    def checked(self, recipe: Recipe, own: Sequence[str] = ()) -> Route:
        """The route of a recipe, if it is one over these models.

        Args:
            recipe: any recipe.
            own: names of nodes that an encoding adds itself.

        Raises:
            UserError: it is not.
        """
        route = recipe.model
        if not isinstance(route, Route):
            raise UserError("the recipe has no route")
        if route.scale_target != self.scale_target:
            raise UserError(f"the recipe's scale_target is {route.scale_target}, the space's {self.scale_target}")
        nodes = dict(self.nodes)
        for name, node in route.models:
            if name not in own and nodes.get(name) != node:
                raise UserError(f"the recipe's model {name!r} is not in the pool ({', '.join(self.names)})")
        if route.ends != self.ends and route.ends not in own:
            raise UserError(f"the recipe's ends are {route.ends}'s, the space's {self.ends}'s")
        return route


def build_pool(config: DataFlowConfig, models: SpaceModels) -> BlockPool | None:
    """The pool of a configuration; None while a depth or a count of parameters that it needs is unknown.

    Raises:
        InvalidInput: everything that does not fit the models.
    """
    nodes = models.nodes
    default = [name for name in nodes if name != "base" or "base" in models.names]
    names = default if config.pool is None else config.pool
    problems = [
        Problem(f"{config.where}: pool", f"there is no model {name!r}. {did_you_mean(name, nodes)}")
        for name in names
        if name not in nodes
    ]
    given = config.depths or {}
    problems += [
        Problem(f"{config.where}: depths.{name}", f"is not in the pool. {did_you_mean(name, names)}")
        for name in given
        if name not in names and config.pool is None
    ]
    shapes: list[ModelShape | None] = []
    for name in names:
        shape = models.shape(name) if name in nodes else None
        if shape is not None and given.get(name, shape.num_blocks) != shape.num_blocks:
            message = f"says {given[name]} blocks, the model has {shape.num_blocks}"
            problems.append(Problem(f"{config.where}: depths.{name}", message))
        shapes.append(shape or (ModelShape(given[name]) if name in given else None))
    if problems:
        raise InvalidInput(problems)
    known = [shape for shape in shapes if shape is not None]
    max_hops, max_parameters = config.limits
    if len(known) < len(names) or (max_parameters is not None and not all(s.block_parameters for s in known)):
        return None
    pairs = tuple((name, nodes[name]) for name in names)
    return BlockPool(pairs, tuple(known), config.unit_size, config.scale_target, max_hops, max_parameters)
