"""Groups of tensors that share a gene: block groups times component groups.

Tensors outside the blocks belong to a group of their own where ``embeddings`` or ``head`` is listed. Else embeddings go
with the first block group and the final norm, the head and the rest with the last one, as mergekit-evolve has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evomerge.recipes.recipe import COMPONENTS, Rule, Scalar
from evomerge.recipes.resolve import knot_value

OUTSIDE = ("embeddings", "head")
CATCH_ALL = "other"


@dataclass(frozen=True)
class Component:
    """A component group: its name, and what a rule matches it by (a component or ``regex:``; None = everything)."""

    name: str
    match: str | None

    def holds(self, tensor_name: str, component: str) -> bool:
        """Whether a tensor of that name and component belongs to it."""
        if self.match is None or self.match == component:
            return True
        return self.match.startswith("regex:") and re.search(self.match[6:], tensor_name) is not None


def component_groups(components: Sequence[str] | Mapping[str, str] | None) -> tuple[Component, ...]:
    """Component groups in listed order, with the catch-all ``other`` last."""
    if components is None:
        return (Component(CATCH_ALL, None),)
    named = components if isinstance(components, Mapping) else {name: name for name in components}
    groups = [
        Component(name, match if match in COMPONENTS else f"regex:{match}")
        for name, match in named.items()
        if match != CATCH_ALL
    ]
    rest = next((name for name, match in named.items() if match == CATCH_ALL), CATCH_ALL)
    return (*groups, Component(rest, None))


def equal_block_groups(num_groups: int, num_blocks: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of nearly equal length that tile the blocks."""
    edges = [index * num_blocks // num_groups for index in range(num_groups + 1)]
    return tuple(pairwise(edges))


@dataclass(frozen=True)
class Grid:
    """The cells one parameter has a value in.

    Attributes:
        blocks: half-open ranges that tile the blocks; empty = all blocks are one group. With ``smooth`` only their
            number counts: they are knots at equally spaced places from the first to the last block.
        components: in-block component groups, the catch-all last.
        own: ``embeddings`` and ``head`` where these are groups of their own.
        smooth: values between the knots are interpolated.
        num_blocks: number of blocks, 0 while unknown.
    """

    blocks: tuple[tuple[int, int], ...]
    components: tuple[Component, ...]
    own: tuple[Component, ...]
    smooth: bool
    num_blocks: int

    @property
    def num_groups(self) -> int:
        """Number of block groups."""
        return max(1, len(self.blocks))

    @property
    def labels(self) -> tuple[str, ...]:
        """Readable names of the cells, in the order of their values: block groups, in each its components, then own."""
        cells = []
        for index in range(self.num_groups):
            for component in self.components:
                parts = [self._block_label(index)] if self.num_groups > 1 else []
                only = len(self.components) == 1 and (self.num_groups > 1 or not self.own)
                parts += [] if only else [component.name]
                cells.append("/".join(parts))
        return (*cells, *(component.name for component in self.own))

    def _block_label(self, index: int) -> str:
        if self.smooth:
            return f"knot{index + 1}of{self.num_groups}"
        start, end = self.blocks[index]
        return f"block{start}" if end == start + 1 else f"blocks{start}-{end - 1}"

    def rules(self, values: Mapping[str | None, Sequence[Scalar]]) -> Iterator[Rule]:
        """Rules that give each expert its values in the cells.

        Args:
            values: expert name (None = all experts) to its values ``(num_cells,)``.
        """
        for rule_of in self._matchers():
            for expert, cells in values.items():
                yield rule_of(expert, cells)

    def _matchers(self) -> Iterator[_Matcher]:
        """Every place a rule is for, first match first; the last block group and component catch what is left."""
        last, rest = self.num_groups - 1, len(self.components) - 1
        for index, component in enumerate(self.own):
            yield _Matcher((self.num_groups * len(self.components) + index,), component=component.match)
        if self.smooth and last:
            yield from self._smooth_matchers()
            return
        for group in range(last):
            for index, component in enumerate(self.components):
                yield _Matcher((self._cell(group, index),), self.blocks[group], component.match)
        for index, component in enumerate(self.components[:-1]):
            yield _Matcher((self._cell(last, index),), component=component.match)
        if last and not self._owns("embeddings"):
            yield _Matcher((self._cell(0, rest),), component="embeddings")
        yield _Matcher((self._cell(last, rest),))

    def _smooth_matchers(self) -> Iterator[_Matcher]:
        last, rest = self.num_groups - 1, len(self.components) - 1
        for index, component in enumerate(self.components):
            if index == rest and not self._owns("embeddings"):
                yield _Matcher((self._cell(0, rest),), component="embeddings")
            if component.match not in ("attention", "mlp"):
                # A gradient would give the tensors after the blocks its first knot; they belong with the last.
                yield _Matcher((self._cell(last, index),), component=component.match, outside=True)
            yield _Matcher(tuple(self._cell(group, index) for group in range(last + 1)), component=component.match)

    def _owns(self, component: str) -> bool:
        return any(own.match == component for own in self.own)

    def _cell(self, group: int, component: int) -> int:
        return group * len(self.components) + component

    def values(self, rules: Sequence[Rule], expert: str | None) -> list[Scalar | None]:
        """The values of one expert in the cells, read from rules; None where no rule says anything."""
        found: list[Scalar | None] = []
        rules = [
            rule
            for rule in rules
            if rule.contains is None and (rule.expert is None or expert is None or rule.expert == expert)
        ]
        for group in range(self.num_groups):
            for component in self.components:
                found.append(self._value(rules, group, component.match or CATCH_ALL))
        for component in self.own:
            rule = next((rule for rule in rules if _reaches(rule, None, component.match)), None)
            value = None if rule is None else rule.value
            found.append(value[0] if isinstance(value, tuple) else value)
        return found

    def _value(self, rules: Sequence[Rule], group: int, match: str) -> Scalar | None:
        block: float
        if self.smooth and self.num_groups > 1:
            block = group * (self.num_blocks - 1) / (self.num_groups - 1)
        else:
            start, end = self.blocks[group] if self.blocks else (0, self.num_blocks)
            block = (start + max(start, end - 1)) // 2
        rule = next((rule for rule in rules if _reaches(rule, int(block), match)), None)
        if rule is None:
            return None
        if not isinstance(rule.value, tuple):
            return rule.value
        if self.smooth and rule.blocks is None and len(rule.value) == self.num_groups:
            return rule.value[group]
        start, end = rule.blocks or (0, self.num_blocks)
        return knot_value(rule.value, int(block) - start, end - start)


@dataclass(frozen=True)
class _Matcher:
    """Where a rule applies, and which cells make its value: one, or several knots."""

    cells: tuple[int, ...]
    blocks: tuple[int, int] | None = None
    component: str | None = None
    outside: bool = False

    def __call__(self, expert: str | None, values: Sequence[Scalar]) -> Rule:
        if len(self.cells) == 1:
            value: Scalar | tuple[float, ...] = values[self.cells[0]]
        else:
            value = tuple(float(values[cell]) for cell in self.cells)
        return Rule(value, self.blocks, self.component, expert, outside_blocks=self.outside)


def _reaches(rule: Rule, block: int | None, match: str | None) -> bool:
    """Whether a rule is one for a block (None = outside) and a component, as far as names allow."""
    if rule.component is not None and rule.component != match:
        return False
    if block is None:
        return rule.blocks is None
    return not rule.outside_blocks and (rule.blocks is None or rule.blocks[0] <= block < rule.blocks[1])
