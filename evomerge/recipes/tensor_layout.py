"""All parameters of a model as one row of numbers: which tensor a place falls into, and the other way round."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from evomerge.recipes.recipe import Stretch, Stretches


class Piece(NamedTuple):
    """Entries ``[start, end)`` of a flattened tensor, and the experts' coefficients ``(E,)`` there."""

    start: int
    end: int
    value: tuple[float, ...]


class TensorLayout:
    """The tensors of a merged model one after the other, each flattened row by row.

    The order is that of the reference model's parameters; tied tensors count once, under their first name.

    Attributes:
        names: of the tensors, in order.
        starts: ``(T + 1,)`` the first parameter of each, and the number of all of them.
    """

    def __init__(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Lay out tensors.

        Args:
            sizes: name and number of entries of each.
        """
        self.names: list[str] = []
        self.starts: list[int] = [0]
        for name, size in sizes:
            self.names.append(name)
            self.starts.append(self.starts[-1] + size)
        self._index = {name: index for index, name in enumerate(self.names)}

    @property
    def size(self) -> int:
        """Number of parameters n."""
        return self.starts[-1]

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of names and places, the same for equal layouts only."""
        text = json.dumps([self.names, self.starts])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def place(self, position: int) -> tuple[str, int]:
        """The tensor that a parameter is in, and its offset there.

        Raises:
            ValueError: there is no such parameter.
        """
        if not 0 <= position < self.size:
            raise ValueError(f"there are parameters 0 to {self.size - 1}, not {position}")
        index = bisect_right(self.starts, position) - 1
        return self.names[index], position - self.starts[index]

    def position(self, tensor: str, offset: int) -> int:
        """The number of a parameter.

        Raises:
            ValueError: there is no such tensor, or it ends before that.
        """
        if tensor not in self._index:
            raise ValueError(f"the model has no tensor {tensor}")
        start, end = self.span(tensor)
        if not 0 <= offset < end - start:
            raise ValueError(f"{tensor} has entries 0 to {end - start - 1}, not {offset}")
        return start + offset

    def span(self, tensor: str) -> tuple[int, int]:
        """First parameter of a tensor, and the one behind its last."""
        index = self._index[tensor]
        return self.starts[index], self.starts[index + 1]

    def stretches(self, boundaries: Sequence[int], rows: Sequence[Sequence[float]]) -> Stretches:
        """Coefficients between positions, as a recipe holds them.

        Args:
            boundaries: ``(S + 1,)`` increasing, from 0 to n.
            rows: ``(S, E)``.
        """
        starts = [self.place(int(position)) for position in boundaries[:-1]]
        parts = [Stretch(*place, tuple(float(v) for v in row)) for place, row in zip(starts, rows, strict=True)]
        return Stretches(self.id, tuple(parts))

    def boundaries(self, stretches: Stretches) -> list[int]:
        """Where stretches begin ``(S + 1,)``, with n at the end.

        Raises:
            ValueError: they were laid over other tensors, or are not in order.
        """
        if stretches.layout != self.id:
            raise ValueError(
                f"stretches were laid over other tensors (layout {stretches.layout}, here it is {self.id}): the "
                "models, or the reference model, have other tensors or another order than where the recipe was made"
            )
        found = [self.position(part.tensor, part.offset) for part in stretches.parts]
        if not found or found[0] != 0 or any(low >= high for low, high in pairwise(found)):
            raise ValueError("stretches must begin at the first parameter, in the order of the model's tensors")
        return [*found, self.size]

    def pieces(self, stretches: Stretches) -> Mapping[str, tuple[Piece, ...]]:
        """Tensor name to its pieces, in order; one piece for a tensor without a boundary inside.

        Raises:
            ValueError: see ``boundaries``.
        """
        bounds = self.boundaries(stretches)
        found: dict[str, tuple[Piece, ...]] = {}
        for index, name in enumerate(self.names):
            start, end = self.starts[index], self.starts[index + 1]
            number = bisect_right(bounds, start) - 1
            pieces: list[Piece] = []
            while number < len(stretches.parts) and (bounds[number] < end or not pieces):
                low, high = max(bounds[number], start), min(bounds[number + 1], end)
                pieces.append(Piece(low - start, high - start, stretches.parts[number].value))
                number += 1
            found[name] = tuple(pieces)
        return found
