"""Inner products of seed models along their flattened parameters, read tensor by tensor from their files.

Products are summed in float64, by cells of at most ``CELL`` parameters that never reach over two tensors, always in the
same order: the same bits for any number of threads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from evomerge.engine.architecture import Slot
from evomerge.engine.model_tensors import OpenModels
from evomerge.engine.stretch_merge import layout_of
from evomerge.errors import UserError
from evomerge.recipes.recipe import Source
from evomerge.terms import Array

CELL = 1 << 22  # parameters; what a split inside costs at most to read
_CHUNK = 1 << 15  # parameters that are float64 at once

Told = Callable[[int, int], None]


class SeedModels:
    """Seed models as rows of parameters.

    Attributes:
        layout: where their tensors lie.
        edges: ``(C + 1,)`` where cells begin, and n.
    """

    def __init__(self, reference: Source, others: Iterable[Source], seeds: Sequence[tuple[str, Source]]) -> None:
        """Open the models, headers only.

        Args:
            reference: lends the architecture, and so the order of the tensors.
            others: all further models of the experiment.
            seeds: name and model of the K seeds.

        Raises:
            InvalidInput: models that are missing, or whose tensors or shapes differ.
        """
        self._models = OpenModels(reference, [*others, *(source for _, source in seeds)])
        self._seeds = tuple(seeds)
        self._slots = tuple(slot for slot in self._models.architecture.slots if slot.num_elements)
        self.layout = layout_of(self._models.architecture)
        edges: list[int] = []
        for slot in self._slots:
            start, end = self.layout.span(slot.name)
            edges += range(start, end, CELL)
        self.edges = [*edges, self.layout.size]

    def cells(self, told: Told | None = None, threads: int | None = None) -> Array:
        """Inner products ``(C, K, K)`` over every cell, in one pass over the files.

        Args:
            told: called with (parameters read, parameters in total).
            threads: how many read at once; None = torch's number.

        Raises:
            UserError: a seed holds NaN or infinite values.
        """
        found, done = [], 0
        with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
            for slot, products in zip(self._slots, pool.map(self._cells_of, self._slots), strict=True):
                found += products
                done += slot.num_elements
                if told is not None:
                    told(done, self.layout.size)
        return np.array(found)

    def products(self, start: int, end: int) -> Array:
        """Inner products ``(K, K)`` over the parameters ``[start, end)`` of one tensor."""
        slot, first = self._slot_at(start)
        return _products([row[start - first : end - first] for row in self._rows(slot)])

    def read(self, start: int, end: int) -> Array:
        """The seeds' parameters ``(K, end - start)`` of a range inside one tensor, in float64."""
        slot, first = self._slot_at(start)
        rows = [row[start - first : end - first].to(torch.float64).numpy() for row in self._rows(slot)]
        return np.stack(rows)

    def _slot_at(self, position: int) -> tuple[Slot, int]:
        name, offset = self.layout.place(position)
        return self._models.architecture.by_name[name], position - offset

    def _rows(self, slot: Slot) -> list[Tensor]:
        return [self._models.tensor(source, slot.name).reshape(-1) for _, source in self._seeds]

    def _cells_of(self, slot: Slot) -> list[Array]:
        start, end = self.layout.span(slot.name)
        first = bisect_right(self.edges, start) - 1
        rows, found = self._rows(slot), []
        for low in range(start, end, CELL):
            found.append(_products([row[low - start : min(low + CELL, end) - start] for row in rows]))
        assert self.edges[first] == start
        wrong = [
            name for number, (name, _) in enumerate(self._seeds) if not np.isfinite(found)[:, number, number].all()
        ]
        if wrong:
            raise UserError(
                f"model {wrong[0]}: tensor {slot.name} holds NaN or infinite values, which cannot be merged. The "
                "checkpoint is damaged or its training diverged: download it again or leave it out."
            )
        self._models.release(slot)
        return found


def _products(rows: Sequence[Tensor]) -> Array:
    """``(K, K)`` of K rows, a chunk at a time; no matrix library, whose sums depend on its threads."""
    count, size = len(rows), rows[0].numel()
    total = np.zeros((count, count))
    buffer = torch.empty((count, min(size, _CHUNK)), dtype=torch.float64)
    for start in range(0, size, _CHUNK):
        width = min(_CHUNK, size - start)
        for number, row in enumerate(rows):
            buffer[number, :width].copy_(row[start : start + width])
        values = buffer[:, :width].numpy()
        for left in range(count):
            for right in range(left, count):
                total[left, right] += np.einsum("i,i->", values[left], values[right])
    return np.triu(total) + np.triu(total, 1).T
