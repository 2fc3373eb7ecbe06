"""Where a model's blocks are: one list of them in most models, one for each tower or side in others.

Blocks of all lists are numbered on: a model with a stack of 12 and one of 6 blocks has blocks 0 to 17.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

NUMBERED = re.compile(r"(?P<list>.*?)(?:^|\.)(?P<index>\d+)\.(?P<inside>.+)")


@dataclass(frozen=True)
class Stack:
    """One list of blocks.

    Attributes:
        name: module path of the list, empty where the model itself is one.
        start: number of its first block.
        count: how many blocks it has.
    """

    name: str
    start: int
    count: int

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile((re.escape(self.name) + r"\." if self.name else "") + r"(\d+)\.(.+)")

    def place(self, name: str) -> tuple[int, str] | None:
        """Number of the block a tensor is in and the tensor's name inside it, None outside the stack."""
        found = self._pattern.fullmatch(name)
        if found is None or int(found[1]) >= self.count:
            return None
        return self.start + int(found[1]), found[2]


def find_place(stacks: Iterable[Stack], name: str) -> tuple[int, str] | None:
    """As ``Stack.place``, over all stacks."""
    return next((place for stack in stacks if (place := stack.place(name)) is not None), None)


def module_stacks(model: nn.Module) -> tuple[Stack, ...]:
    """The stacks of a model: its largest outermost list of modules, and every other such list of composite modules.

    Of each module only the largest list counts. The stack beside the token embeddings comes first, the others in the
    model's order, so that a language model with a vision tower has its blocks where it has them without the tower.
    """
    modules = model.named_modules()
    lists = [(name, module) for name, module in modules if isinstance(module, nn.ModuleList) and len(module)]
    # A list inside a block (routed experts) may be longer than the list of blocks.
    outermost = [
        (name, module) for name, module in lists if not any(name.startswith(other + ".") for other, _ in lists)
    ]
    if not outermost:
        return ()
    largest = max(outermost, key=lambda entry: (_size(entry[1]), len(entry[1])))
    by_parent: dict[str, tuple[str, nn.ModuleList]] = {}
    for name, module in outermost:
        parent = name.rpartition(".")[0]
        if name != largest[0] and not all(_is_composite(item) for item in module):
            continue
        if parent not in by_parent or _size(module) > _size(by_parent[parent][1]):
            by_parent[parent] = (name, module)
    return _numbered(_language_first(list(by_parent.values()), _embeddings_name(model)))


def name_stacks(names: Sequence[str]) -> tuple[Stack, ...]:
    """The stacks that tensor names show by their numbers, in the order of the names.

    A list counts where its numbers run from 0 without a gap, there are two or more, and most tensors lie deeper than
    directly in its items (a list of plain layers is no list of blocks).
    """
    inside: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if found := NUMBERED.fullmatch(name):
            inside.setdefault(found["list"], {}).setdefault(int(found["index"]), []).append(found["inside"])
    found_lists = []
    for name, items in inside.items():
        tensors = [tensor for item in items.values() for tensor in item]
        is_composite = 2 * sum("." in tensor for tensor in tensors) > len(tensors)
        if len(items) > 1 and sorted(items) == list(range(len(items))) and is_composite:
            found_lists.append((name, len(items)))
    return _numbered(found_lists)


def _numbered(lists: Iterable[tuple[str, nn.ModuleList | int]]) -> tuple[Stack, ...]:
    stacks, start = [], 0
    for name, blocks in lists:
        count = blocks if isinstance(blocks, int) else len(blocks)
        stacks.append(Stack(name, start, count))
        start += count
    return tuple(stacks)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_composite(module: nn.Module) -> bool:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules()) > 1


def _embeddings_name(model: nn.Module) -> str:
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return ""
    return next((name for name, module in model.named_modules() if module is embeddings), "")


def _language_first(lists: list[tuple[str, nn.ModuleList]], embeddings: str) -> list[tuple[str, nn.ModuleList]]:
    shared = [_shared_parts(name, embeddings) for name, _ in lists]
    if len(lists) > 1 and shared.count(max(shared)) == 1:
        first = shared.index(max(shared))
        return [lists[first], *lists[:first], *lists[first + 1 :]]
    return lists


def _shared_parts(left: str, right: str) -> int:
    count = 0
    for one, other in zip(left.split(".")[:-1], right.split(".")[:-1]):
        if one != other:
            break
        count += 1
    return count
