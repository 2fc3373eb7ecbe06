"""Token sequences packed into trees: what several begin with alike is computed once, and nothing is padded away.

A row of a pass holds one tree, its tokens in depth-first order. A token sees itself, its ancestors and the shared
prefix before the row; so each sequence is computed as if it were alone.
Shapes: R rows of a pass, L tokens of a row, P tokens of the prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from evomerge.evaluation.likelihood_pass import PassSize

Sequences = Sequence[tuple[int, ...]]
Place = tuple[int, ...]  # where the tokens of one sequence lie in its row


@dataclass(frozen=True)
class TreeRow:
    """One tree in depth-first order.

    Attributes:
        tokens: its tokens.
        depths: number of tokens above each one.
        ends: the last descendant of each one, itself where it has none.
        places: where the tokens of each sequence lie.
        members: (group, sequence) of each entry of ``places``.
    """

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    places: tuple[Place, ...]
    members: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TreePass:
    """Rows that go through the model together.

    Attributes:
        input_ids: ``(R, L)``.
        position_ids: ``(R, L)``, counted from the beginning of the prefix.
        ends: ``(R, L)`` last descendant of each token; padding has none but itself.
        prefix_length: P, 0 = the rows begin with nothing before them.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    ends: torch.Tensor
    prefix_length: int

    @classmethod
    def of(cls, rows: Sequence[TreeRow], prefix_length: int, device: torch.device) -> TreePass:
        """Rows side by side, the short ones padded on the right."""
        width = max(len(row.tokens) for row in rows)
        shape = (len(rows), width)
        input_ids = torch.zeros(shape, dtype=torch.long)
        position_ids = torch.zeros(shape, dtype=torch.long)
        ends = torch.arange(width).repeat(len(rows), 1)
        for line, row in enumerate(rows):
            size = len(row.tokens)
            input_ids[line, :size] = torch.tensor(row.tokens)
            position_ids[line, :size] = torch.tensor(row.depths) + prefix_length
            ends[line, :size] = torch.tensor(row.ends)
        return cls(input_ids.to(device), position_ids.to(device), ends.to(device), prefix_length)

    def attention_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the attention scores ``(R, 1, L, P + L)``: 0 where a token sees another, else the least.

        A sum rather than a choice: some models add whatever mask they are given.
        """
        num_rows, width = self.ends.shape
        places = torch.arange(width, device=self.ends.device)
        seen = (places[None, None, :] <= places[None, :, None]) & (self.ends[:, None, :] >= places[None, :, None])
        mask = torch.zeros((num_rows, 1, width, self.prefix_length + width), dtype=dtype, device=self.ends.device)
        mask[:, 0, :, self.prefix_length :].masked_fill_(~seen, torch.finfo(dtype).min)
        return mask


def grow_rows(groups: Sequence[Sequences], row_tokens: int) -> Iterator[TreeRow]:
    """Trees of whole groups, in order, of about the same size.

    Args:
        groups: sequences that belong together; equal ones share their place.
        row_tokens: about how many tokens a row may have; a larger group gets a row of its own.
    """
    whole = _Tree()
    largest = 0
    for number, group in enumerate(groups):
        before = len(whole)
        whole.add(number, group)
        largest = max(largest, len(whole) - before)
    num_rows = -(-len(whole) // row_tokens)
    max_tokens = min(row_tokens, len(whole) // num_rows + largest) if num_rows > 1 else row_tokens
    tree = _Tree()
    for number, group in enumerate(groups):
        kept = len(tree)
        tree.add(number, group)
        if len(tree) > max_tokens and kept:
            tree.cut(kept, len(group))
            yield tree.row()
            tree = _Tree()
            tree.add(number, group)
    if len(tree):
        yield tree.row()


class _Tree:
    """Nodes by number in the order they came; each knows its children by token."""

    def __init__(self) -> None:
        self._roots: dict[int, int] = {}
        self._children: list[dict[int, int]] = []
        self._tokens: list[int] = []
        self._siblings: list[dict[int, int]] = []  # of each node: the mapping that holds it
        self._paths: list[tuple[int, ...]] = []
        self._members: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, number: int, group: Sequences) -> None:
        """Grow the paths of a group."""
        for index, sequence in enumerate(group):
            siblings = self._roots
            path = []
            for token in sequence:
                node = siblings.get(token)
                if node is None:
                    node = siblings[token] = len(self._tokens)
                    self._tokens.append(token)
                    self._children.append({})
                    self._siblings.append(siblings)
                path.append(node)
                siblings = self._children[node]
            self._paths.append(tuple(path))
            self._members.append((number, index))

    def cut(self, size: int, num_paths: int) -> None:
        """Take back the last paths and all nodes from the ``size``-th on."""
        for siblings, token in zip(self._siblings[size:], self._tokens[size:], strict=True):
            siblings.pop(token, None)
        del self._tokens[size:], self._children[size:], self._siblings[size:]
        del self._paths[-num_paths:], self._members[-num_paths:]

    def row(self) -> TreeRow:
        """The tree in depth-first order."""
        order: list[int] = []
        depths: list[int] = []
        waiting = [(node, 0) for node in reversed(self._roots.values())]
        while waiting:
            node, depth = waiting.pop()
            order.append(node)
            depths.append(depth)
            waiting += [(child, depth + 1) for child in reversed(self._children[node].values())]
        place = [0] * len(order)
        for index, node in enumerate(order):
            place[node] = index
        ends = list(range(len(order)))
        for index in range(len(order) - 1, -1, -1):  # children lie behind their parent
            for child in self._children[order[index]].values():
                ends[index] = max(ends[index], ends[place[child]])
        return TreeRow(
            tokens=tuple(self._tokens[node] for node in order),
            depths=tuple(depths),
            ends=tuple(ends),
            places=tuple(tuple(place[node] for node in path) for path in self._paths),
            members=tuple(self._members),
        )


def rows_of_passes(groups: Sequence[Sequences], size: PassSize) -> list[list[TreeRow]]:
    """The rows of each packed forward pass, long rows together.

    Args:
        groups: sequences that belong together, at least one.
        size: of the passes.
    """
    longest = max(len(tokens) for group in groups for tokens in group)
    rows = sorted(grow_rows(groups, min(size.row_tokens, size.packed_limit(longest))), key=lambda row: -len(row.tokens))
    return [rows[first:last] for first, last in size.cut_packed([len(row.tokens) for row in rows], longest)]
