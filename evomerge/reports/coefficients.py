"""The numbers of a recipe's merges as tables: block groups by experts, one for each component."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.recipes.recipe import Merge, Node, Recipe, Route, Rule, children
from evomerge.recipes.resolve import knot_value
from evomerge.terms import Array

OUTSIDE = ("embeddings", "head")
CATCH_ALL = "other"


@dataclass(frozen=True)
class HeatPanel:
    """One component: ``values`` is ``(rows, columns)``."""

    title: str
    rows: tuple[str, ...]
    values: Array


@dataclass(frozen=True)
class HeatMap:
    """One hyperparameter of one merge.

    Attributes:
        parameter: its name.
        merge: which merge of the recipe it belongs to, empty where there is only one.
        columns: the experts, or ``all`` where they share the value.
        panels: the components inside the blocks, then what lies outside where that has values of its own.
    """

    parameter: str
    merge: str
    columns: tuple[str, ...]
    panels: tuple[HeatPanel, ...]


def heat_maps(recipe: Recipe, num_blocks: Mapping[str, int], searched: Collection[str] = ()) -> list[HeatMap]:
    """The numbers of every merge of a recipe that differ from place to place, or that are searched.

    Args:
        recipe: any recipe; a route's models are looked into.
        num_blocks: depth of the models, by their text; the largest counts where a merge's own is not known.
        searched: hyperparameters that are shown even where all values are equal.
    """
    merges = dict.fromkeys(_merges(recipe.model, "merged" if isinstance(recipe.model, Route) else ""))
    alone = len({merge for _, merge in merges}) == 1
    found = []
    for label, merge in merges:
        depth = _depth(merge, num_blocks)
        for name, rules in merge.parameters:
            values = _heat_map(name, "" if alone else label or merge.method, merge, rules, depth)
            if values is not None and (_varies(values) or name in searched):
                found.append(values)
    return found


def value_at(rules: Sequence[Rule], block: int | None, component: str, expert: str, num_blocks: int) -> float | None:
    """What the first matching rule says for a tensor of a block (None = outside) and component.

    Args:
        rules: of one hyperparameter; those for parts of tensor names are passed over.
        block: index of the block.
        component: as rules name it.
        expert: whose value.
        num_blocks: depth of the model.

    Returns:
        None where no rule matches, or the value is no number.
    """
    for rule in rules:
        if rule.contains is not None or rule.expert not in (None, expert) or rule.component not in (None, component):
            continue
        if block is None and rule.blocks is not None:
            continue
        start, end = rule.blocks or (0, num_blocks)
        if block is not None and (rule.outside_blocks or not start <= block < end):
            continue
        if isinstance(rule.value, tuple):
            return knot_value(rule.value, None if block is None else block - start, end - start)
        return None if isinstance(rule.value, bool | str) else float(rule.value)
    return None


def _heat_map(name: str, label: str, merge: Merge, rules: Sequence[Rule], num_blocks: int) -> HeatMap | None:
    experts = tuple(expert for expert, _ in merge.experts)
    columns = experts if any(rule.expert is not None for rule in rules) else experts[:1]
    named = dict.fromkeys(rule.component for rule in rules if rule.component is not None)
    inside = [*(component for component in named if component not in OUTSIDE), CATCH_ALL]
    inside = list(dict.fromkeys(inside))
    blocks = list(range(max(1, num_blocks)))
    grids: dict[str, list[list[float]]] = {}
    for component in inside:
        grid = [[value_at(rules, block, component, expert, num_blocks) for expert in columns] for block in blocks]
        known = [[value for value in row if value is not None] for row in grid]
        if any(len(row) < len(columns) for row in known):
            return None
        grids[component] = known
    groups = list(_equal_runs(list(zip(*grids.values()))))
    rows = tuple(_block_label(first, last, len(blocks)) for first, last in groups)
    titles = {component: component.removeprefix("regex:") if len(inside) > 1 else "" for component in inside}
    panels = [
        HeatPanel(titles[component], rows, np.array([grids[component][first] for first, _ in groups]))
        for component in inside
    ]
    # Beside the blocks only what has a value of its own: else embeddings go with the first, the head with the last.
    ends = {"embeddings": grids[CATCH_ALL][0], "head": grids[CATCH_ALL][-1]}
    outside = {}
    for component, usual in ends.items():
        found = [value_at(rules, None, component, expert, num_blocks) for expert in columns]
        values = [value for value in found if value is not None]
        if len(values) == len(columns) and values != usual:
            outside[component] = values
    if outside:
        panels.append(HeatPanel("outside the blocks", tuple(outside), np.array(list(outside.values()))))
    shared = len(columns) < len(experts) or (len(columns) == 1 and all(rule.expert is None for rule in rules))
    return HeatMap(name, label, ("all",) if shared else columns, tuple(panels))


def _merges(node: Node, label: str) -> Iterator[tuple[str, Merge]]:
    if isinstance(node, Merge):
        yield label, node
        for name, inner in node.experts:
            yield from _merges(inner, name)
    elif isinstance(node, Route):
        for name, inner in node.models:
            yield from _merges(inner, name)
    else:
        for inner in children(node):
            yield from _merges(inner, label)


def _depth(node: Node, num_blocks: Mapping[str, int]) -> int:
    """Blocks of the first model below a node whose depth is known."""
    if str(node) in num_blocks:
        return num_blocks[str(node)]
    known = [depth for depth in (_depth(inner, {**num_blocks, "": 0}) for inner in children(node)) if depth]
    return known[0] if known else num_blocks.get("", max(num_blocks.values(), default=0))


def _equal_runs(rows: Sequence[object]) -> Iterator[tuple[int, int]]:
    """First and last index of each run of equal rows."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[start]:
            yield start, index - 1
            start = index


def _block_label(first: int, last: int, count: int) -> str:
    if first == 0 and last == count - 1:
        return "all blocks"
    return f"block {first}" if first == last else f"{first}-{last}"


def _varies(values: HeatMap) -> bool:
    numbers = np.concatenate([panel.values.ravel() for panel in values.panels])
    return bool(numbers.min() < numbers.max())
