"""Where the tensors of a recipe's nodes lie: how deep a node is, and which block of which model a stacked block is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from evomerge.engine.architecture import Architecture, Slot
from evomerge.errors import InvalidInput, Problem, UserError
from evomerge.recipes.recipe import Merge, Modules, Node, Route, Source, Stack, children

# Tensors outside the blocks that belong behind them, although a model may list them first.
BEHIND_WORDS = re.compile(r"(^|[._])(final|out|ln_f|norm_f|lm_head)([._]|$)")


# mergekit's names of modules, and the parts of tensors' names that mean them.
MODULE_WORDS = {
    "text_decoder": ("language_model", "text_model", "lm_head"),
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "vision_model": ("vision_tower", "vision_model", "visual"),
    "multi_modal_projector": ("multi_modal_projector", "merger", "connector"),
    "decoder": ("decoder", "lm_head"),
}
REST = ("default", "text_decoder")  # hold what no other module does


class BlockPlaces:
    """Depths of nodes, and the way from a node's tensor to the tensors of its sources."""

    def __init__(self, depth_of: Callable[[Source], int], architecture: Architecture) -> None:
        """Remember how tensors are named.

        Args:
            depth_of: number of blocks of a source.
            architecture: any model of the sources' kind, whatever its depth.
        """
        self._depth_of = depth_of
        self._names = BlockNames(architecture)
        self._depths: dict[int, tuple[Node, int]] = {}  # by id of the node, which is kept alive

    def forget(self) -> None:
        """Let go of the nodes seen so far."""
        self._depths = {}

    def depth(self, node: Node) -> int:
        """Number of blocks of a node.

        Raises:
            InvalidInput: models of different depths in one merge, or blocks a model does not have; all at once.
        """
        if isinstance(node, Source):
            return self._depth_of(node)
        if id(node) not in self._depths:
            problems: list[Problem] = []
            depth = self._measure(node, "recipe", problems)
            if problems:
                raise InvalidInput(list(dict.fromkeys(problems)))
            self._depths[id(node)] = (node, depth)
        return self._depths[id(node)][1]

    def locate(self, node: Node, slot: Slot) -> tuple[Node, Slot]:
        """The source or merge that holds a node's tensor, and the tensor's place in it.

        Args:
            node: any node.
            slot: a tensor in the node's own count of blocks.
        """
        while isinstance(node, Stack | Modules | Route):
            if isinstance(node, Modules):
                node = self._module(node, slot.name)
                continue
            if isinstance(node, Route):
                if slot.block is None:
                    node = node.node(node.ends)
                else:
                    hop = node.hops[slot.block]
                    node, slot = node.node(hop.model), self._names.moved(slot, hop.block)
                continue
            if slot.block is None:
                node = node.parts[0 if self._names.is_before_blocks(slot) else -1].node
                continue
            block = slot.block
            for part in node.parts:
                if block < part.end - part.start:
                    node, slot = part.node, self._names.moved(slot, part.start + block)
                    break
                block -= part.end - part.start
            else:
                raise AssertionError(f"{slot.name} is behind the end of the stack")
        return node, slot

    def sources(self, node: Node, slot: Slot) -> Iterator[tuple[Source, Slot]]:
        """Every source that a node's tensor is made of, a base first, with the tensor's place in it."""
        node, slot = self.locate(node, slot)
        if isinstance(node, Source):
            yield node, slot
        for inner in children(node):
            yield from self.sources(inner, slot)

    def _module(self, modules: Modules, name: str) -> Node:
        found = module_of(name, [module for module, _ in modules.parts])
        if found is None:
            listed = ", ".join(module for module, _ in modules.parts)
            raise UserError(f"no module of the recipe ({listed}) holds the tensor {name}; add its module")
        return dict(modules.parts)[found]

    def _measure_modules(self, modules: Modules, where: str, problems: list[Problem]) -> int:
        blocks = self._module(modules, self._names.first)
        for name, node in modules.parts:
            if node is not blocks and _counts_blocks(node):
                message = "only the module that holds most blocks can be sliced or have gradients and rules over blocks"
                problems.append(Problem(f"{where}: modules.{name}", message))
        return self._measure(blocks, f"{where}: modules", problems)

    def _measure(self, node: Node, where: str, problems: list[Problem]) -> int:
        if isinstance(node, Source):
            return self._depth_of(node)
        if isinstance(node, Merge):
            depths = [self._measure(inner, f"{where}: {node.method}", problems) for inner in children(node)]
            if len(set(depths)) > 1:
                listed = ", ".join(f"{_name(inner)} has {depth}" for inner, depth in zip(children(node), depths))
                hint = "take the same number of blocks of each (stack: [{from: model, blocks: [first, last]}])"
                problems.append(Problem(f"{where}: {node.method}", f"models of different depth: {listed}; {hint}"))
            return depths[0]
        if isinstance(node, Modules):
            return self._measure_modules(node, where, problems)
        if isinstance(node, Route):
            return self._measure_route(node, where, problems)
        for index, part in enumerate(node.parts):
            depth = self._measure(part.node, f"{where}: stack[{index}].from", problems)
            if not 0 <= part.start < part.end <= depth:
                found = f"names blocks {part.start} to {part.end - 1}, but {_name(part.node)} has 0 to {depth - 1}"
                problems.append(Problem(f"{where}: stack[{index}].blocks", found))
        return node.num_blocks

    def _measure_route(self, route: Route, where: str, problems: list[Problem]) -> int:
        depths = {name: self._measure(inner, f"{where}: route.models.{name}", problems) for name, inner in route.models}
        for index, hop in enumerate(route.hops):
            if not 0 <= hop.block < depths[hop.model]:
                found = f"names block {hop.block} of {hop.model}, which has 0 to {depths[hop.model] - 1}"
                problems.append(Problem(f"{where}: route.hops[{index}]", found))
        return len(route.hops)


class BlockNames:
    """How names of tensors count blocks: ``model.layers.<block>.mlp...``."""

    def __init__(self, architecture: Architecture) -> None:
        """Look at the order of the tensors."""
        self._inside = [slot for slot in architecture.slots if slot.block is not None]
        self.first = self._inside[0].name if self._inside else ""
        places = [index for index, slot in enumerate(architecture.slots) if slot.block is not None]
        first = min(places, default=0)
        self._before = {
            slot.name
            for slot in architecture.slots[:first]
            if slot.component != "head" and not BEHIND_WORDS.search(slot.name)
        }

    @cached_property
    def _prefix(self) -> str:
        """The part of the names before the number of the block; an error where the names do not tell it."""
        return _counting_prefix(self._inside)

    def is_before_blocks(self, slot: Slot) -> bool:
        """Whether a tensor outside the blocks is used before them."""
        return slot.name in self._before

    def moved(self, slot: Slot, block: int) -> Slot:
        """The same tensor of another block."""
        return replace(slot, name=self.renamed(slot.name, block), block=block)

    def renamed(self, name: str, block: int) -> str:
        """A tensor's name in another block."""
        rest = name.removeprefix(self._prefix).split(".", 1)[1]
        return f"{self._prefix}{block}.{rest}"

    def block_of(self, name: str) -> int | None:
        """The block a name speaks of, None outside the blocks."""
        number = name.removeprefix(self._prefix).split(".", 1)[0] if name.startswith(self._prefix) else ""
        return int(number) if number.isdecimal() else None


def _counting_prefix(slots: list[Slot]) -> str:
    if not slots:
        return "\0"
    parts = slots[0].name.split(".")
    for index, part in enumerate(parts):
        prefix = ".".join(parts[:index]) + "." if index else ""
        if part.isdecimal() and all(slot.name.startswith(f"{prefix}{slot.block}.") for slot in slots):
            return prefix
    raise UserError(
        f"the names of the blocks' tensors ({slots[0].name}) do not tell the blocks; they cannot be stacked"
    )


def module_of(name: str, modules: Sequence[str]) -> str | None:
    """The module that a tensor belongs to: the one whose word comes last in the tensor's name.

    Args:
        name: the tensor.
        modules: names of modules, in mergekit's words or as they are in tensors' names.
    """
    words = name.split(".")
    found, place = None, -1
    for module in modules:
        for word in MODULE_WORDS.get(module, tuple(module.split("."))[-1:]):
            if word in words and words.index(word) > place:
                found, place = module, words.index(word)
    return found if found is not None else next((module for module in REST if module in modules), None)


def _counts_blocks(node: Node) -> bool:
    """Whether a node speaks of blocks anywhere."""
    if isinstance(node, Stack | Route):
        return True
    rules = [rule for _, given in node.parameters for rule in given] if isinstance(node, Merge) else []
    return any(isinstance(rule.value, tuple) or rule.blocks is not None for rule in rules) or any(
        _counts_blocks(inner) for inner in children(node)
    )


def _name(node: Node) -> str:
    if isinstance(node, Source):
        return str(node)
    return f"the {node.method} merge" if isinstance(node, Merge) else f"the {type(node).__name__.lower()}"
