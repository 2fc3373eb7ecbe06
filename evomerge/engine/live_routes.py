"""Routes in a live model: which blocks lie in which lane, and the list of hops the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from evomerge.engine.architecture import Slot
from evomerge.engine.block_places import BlockNames, BlockPlaces
from evomerge.engine.depth_groups import DepthGroups, first_stack_depth
from evomerge.engine.hop_shells import HopStep, RouteList, set_depth
from evomerge.engine.lanes import BlockMaker, Lane, LaneShape
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.prefix_cache import PrefixCache
from evomerge.engine.residual_anatomy import residual_anatomy
from evomerge.engine.tensor_merge import DTYPES, TensorMerger
from evomerge.engine.tensor_writer import DtypeOf, TensorWriter
from evomerge.recipes.recipe import Node, Recipe, Route, Source


@dataclass
class _Part:
    """A source or merge that a route takes tensors from."""

    node: Node
    first: Source  # the first model it is made of, which decides what its blocks look like
    group: OpenModels
    content: tuple[Node, str | None]
    wanted: list[int] = field(default_factory=list)
    ends: list[Slot] = field(default_factory=list)
    lane: Lane | None = None


@dataclass(frozen=True)
class _Running:
    """The route that the model runs: its blocks, what they hold, and what the configuration lists of them."""

    route: Route
    steps: list[HopStep]
    content: list[tuple[int, int]]
    lists: dict[str, list[Any]]


class LiveRoutes:
    """Makes a live model run routes.

    The live model's own blocks are the lane of the reference, or of a merge while a route does without the reference.
    Lanes of other sources stay; those of merges take the next candidate's merges.
    """

    def __init__(
        self,
        model: Any,
        groups: DepthGroups,
        writer: TensorWriter,
        merger: Callable[[OpenModels], TensorMerger],
        new_writer: Callable[[dict[str, torch.Tensor]], TensorWriter],
        prefix_cache_bytes: int = 0,
    ) -> None:
        """Take the place of the model's list of blocks.

        Args:
            model: the live model.
            groups: the opened models.
            writer: of the live model's parameters.
            merger: the merger of a group of models.
            new_writer: gives the writer of further parameters.
            prefix_cache_bytes: cap on what is kept of hops for routes that begin alike.
        """
        self._model, self._groups, self._writer = model, groups, writer
        self._merger, self._new_writer = merger, new_writer
        architecture = groups.main.architecture
        self._stack = stack = architecture.stacks[0].name
        self._maker = BlockMaker(model, groups, stack, next(model.parameters()).dtype)
        self._names = BlockNames(architecture)
        self._inside = next(slot for slot in architecture.slots if slot.block is not None)
        self._of_hops: list[Slot] = []  # one tensor of each hop's block, as the route counts blocks
        depth = first_stack_depth(architecture)
        self._outside = [slot for slot in architecture.slots if slot.block is None or slot.block >= depth]
        self._blocks = RouteList.take_place(model, stack)
        self._own = Lane(self._maker.own, writer, self._no_more_blocks, self._blocks.stored)
        self._of_sources: dict[Source, Lane] = {groups.reference: self._own}
        self._of_merges: list[Lane] = []
        self.prefixes = PrefixCache(model, self._blocks, prefix_cache_bytes)
        self._slots: dict[int, dict[int, list[Slot]]] = {}  # by id of the group
        self._ends: list[tuple[Node, str | None]] | None = None
        self._ends_version = 0
        self._plain = (depth, self._own.shape.tables)  # what the configuration tells outside routes
        self._running: _Running | None = None

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Every lane but the live model's own blocks."""
        return (*(lane for lane in self._of_sources.values() if lane is not self._own), *self._of_merges)

    def apply(self, recipe: Recipe) -> None:
        """Make the live model run a route.

        Raises:
            MergeFailed: hyperparameters or weights of blocks that run are NaN or infinite.
            UserError: a block that is not there, a model that is not there or does not fit.
        """
        route = recipe.model
        assert isinstance(route, Route)
        places = BlockPlaces(self._groups.depth, self._groups.main.architecture)
        places.depth(route)
        parts: dict[int, _Part] = {}

        def part_of(node: Node) -> _Part:
            if id(node) not in parts:
                first, _ = next(places.sources(node, self._inside))
                parts[id(node)] = _Part(node, first, self._groups.of(first), (node, recipe.dtype))
            return parts[id(node)]

        path: list[tuple[_Part, int]] = []
        while len(self._of_hops) < len(route.hops):
            self._of_hops.append(self._names.moved(self._inside, len(self._of_hops)))
        for index in range(len(route.hops)):
            node, place = places.locate(route, self._of_hops[index])
            assert place.block is not None
            path.append((part_of(node), place.block))
            path[-1][0].wanted.append(place.block)
        for slot in self._outside:
            part_of(places.locate(route, slot)[0] if slot.block is None else route.node(route.ends)).ends.append(slot)
        self._assign([part for part in parts.values() if part.wanted])
        self._write(list(parts.values()), places, recipe.dtype)
        self._run(route, path)

    def leave(self) -> None:
        """Run the live model's own blocks in their own order; they are about to be written."""
        self._own.forget()
        self._ends = None
        self._show(None)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the live model's own blocks in their own order, and the route again when the context ends."""
        running = self._running
        self._show(None)
        try:
            yield
        finally:
            self._show(running)

    def _assign(self, parts: list[_Part]) -> None:
        """Choose the lane of every part; lanes that hold the right thing already go first."""
        for part in parts:
            if isinstance(part.node, Source):
                if part.node not in self._of_sources:
                    self._of_sources[part.node] = self._new_lane(self._maker.shape(part.node), part.node)
                part.lane = self._of_sources[part.node]
        merges = [part for part in parts if part.lane is None]
        free = [*([] if any(part.lane is self._own for part in parts) else [self._own]), *self._of_merges]
        for part in merges:
            part.lane = next((lane for lane in free if lane.content == part.content), None)
        free = [lane for lane in free if all(part.lane is not lane for part in merges)]
        for part in merges:
            if part.lane is None:
                shape = self._maker.shape(part.first)
                part.lane = next((lane for lane in free if lane.shape.key == shape.key), None)
                if part.lane is None:
                    part.lane = self._new_lane(shape, part.first)
                    self._of_merges.append(part.lane)
                else:
                    free.remove(part.lane)

    def _new_lane(self, shape: LaneShape, like: Source) -> Lane:
        parameters: dict[str, torch.Tensor] = {}
        writer = self._new_writer(parameters)
        return Lane(shape, writer, lambda number: self._maker.make(shape, number, like, parameters))

    def _write(self, parts: list[_Part], places: BlockPlaces, dtype: str | None) -> None:
        """Write what the lanes and the tensors outside the blocks do not hold yet."""
        ends = [part.content for part in parts if part.ends]
        keeps_ends, self._ends = ends == self._ends, None
        self._ends_version += not keeps_ends
        for part in parts:
            missing: list[int] = []
            if part.lane is not None:
                part.lane.hold(part.content)
                missing = part.lane.missing(part.wanted)
            end_slots = [] if keeps_ends else part.ends
            if not missing and not end_slots:
                continue
            merger, output = self._merger(part.group), _dtypes(part, places, dtype)
            merger.start_candidate(part.node)
            if part.lane is not None and missing:
                part.lane.fill(missing, merger, part.node, self._block_slots(part.group), output)
            if end_slots:
                self._writer.write(merger, part.node, end_slots, output)
        self._ends = ends

    def _block_slots(self, group: OpenModels) -> dict[int, list[Slot]]:
        if id(group) not in self._slots:
            found: dict[int, list[Slot]] = {}
            for slot in group.architecture.slots:
                if slot.block is not None:
                    found.setdefault(slot.block, []).append(slot)
            self._slots[id(group)] = found
        return self._slots[id(group)]

    def _run(self, route: Route, path: list[tuple[_Part, int]]) -> None:
        steps, content = [], []
        lists: dict[str, list[Any]] = {name: [] for name in self._own.shape.tables}
        for hop, (part, block) in zip(route.hops, path, strict=True):
            assert part.lane is not None
            steps.append(HopStep(part.lane.blocks[block], hop.scale))
            content.append((part.lane.version, block))
            for name, values in lists.items():
                values.append(part.lane.shape.tables[name][block])
        self._show(_Running(route, steps, content, lists))

    def _show(self, running: _Running | None) -> None:
        """Run a route, or the live model's own blocks."""
        self._running = running
        if running is None:
            set_depth(self._model.config, *self._plain)
            self._blocks.reset()
            self.prefixes.stop()
            return
        route, steps = running.route, running.steps
        set_depth(self._model.config, len(steps), running.lists)
        in_branch = route.scale_target == "branch" and route.is_scaled
        self._blocks.run(steps, route.scale_target, route.output_scale, self._last_write if in_branch else None)
        # With branch scales a hop's output holds what the next one's scale does to its last write.
        behind = [*((step.scale for step in steps[1:]) if in_branch else [1.0] * (len(steps) - 1)), route.output_scale]
        path = [(*content, step.scale, scale) for content, step, scale in zip(running.content, steps, behind)]
        self.prefixes.start(path, (self._ends_version, route.scale_target if in_branch else "stream"))

    @cached_property
    def _last_write(self) -> str:
        """The module inside a block whose output the last sublayer adds to the stream."""
        return residual_anatomy(self._maker.own.model, self._stack).writes[-1]

    def _no_more_blocks(self, number: int) -> Any:
        raise AssertionError(f"the live model has no block {number}")


def _dtypes(part: _Part, places: BlockPlaces, dtype: str | None) -> DtypeOf:
    """The recipe's dtype, else that of each tensor in the first model it is made of."""
    if dtype is not None:
        return lambda slot: DTYPES[dtype]

    def of(slot: Slot) -> torch.dtype:
        for source, place in places.sources(part.node, slot):
            model = part.group.get(source)
            if model.has(place.name):
                return model.dtype(place.name)
        return torch.float32

    return of
