"""Inner products of tensors: all that is to be known of them where a merge only weighs them against each other.

Sums are fp64 and added in an order that depends neither on threads nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evomerge.methods.sweep import split

_LANES = 1 << 14  # a power of two, below what torch would split over threads
_ROWS_AT_ONCE = 1 << 20  # elements


def gram_matrix(tensors: Sequence[Tensor], origin: Tensor | None = None) -> npt.NDArray[np.float64]:
    """Inner products ``(E, E)`` of flat tensors.

    Args:
        tensors: E tensors ``(n,)``.
        origin: ``(n,)``, subtracted from each; None subtracts nothing.
    """
    count = len(tensors)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    lanes = torch.zeros(len(pairs), _LANES, dtype=torch.float64, device=tensors[0].device)
    for pieces in zip(*(split(tensor, _LANES) for tensor in (*tensors, *([] if origin is None else [origin])))):
        wide = [piece.double() for piece in pieces]
        vectors = wide if origin is None else [vector.sub_(wide[-1]) for vector in wide[:-1]]
        for lane, (i, j) in zip(lanes[:, : len(vectors[0])], pairs, strict=True):
            lane.add_(vectors[i] * vectors[j])
    found = np.zeros((count, count))
    for (i, j), value in zip(pairs, tree_sum(lanes).tolist(), strict=True):
        found[i, j] = found[j, i] = value
    return found


def row_grams(tensors: Sequence[Tensor], origin: Tensor | None = None) -> Tensor:
    """Inner products of the rows of matrices.

    Args:
        tensors: E tensors ``(rows, columns)``.
        origin: ``(rows, columns)``, subtracted from each; None subtracts nothing.

    Returns:
        fp64 ``(E, E, rows)``.
    """
    rows, columns = tensors[0].shape
    found = torch.zeros(len(tensors), len(tensors), rows, dtype=torch.float64, device=tensors[0].device)
    step = max(1, _ROWS_AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        vectors = [tensor[part].double() for tensor in tensors]
        if origin is not None:
            vectors = [vector.sub_(origin[part].double()) for vector in vectors]
        for i, left in enumerate(vectors):
            for j in range(i, len(vectors)):
                found[i, j, part] = found[j, i, part] = tree_sum(left * vectors[j])
    return found


def tree_sum(values: Tensor) -> Tensor:
    """Sums over the last dimension, halved again and again."""
    if values.shape[-1] == 0:
        return values.sum(-1)
    while (size := values.shape[-1]) > 1:
        half = (size + 1) // 2
        summed = values[..., :half].clone()
        summed[..., : size - half] += values[..., half:]
        values = summed
    return values[..., 0]


def cosine(gram: npt.NDArray[np.float64], i: int, j: int) -> float:
    """Cosine of the angle between two of the tensors, in [-1, 1]; 0 where one is 0."""
    norm = float(np.sqrt(gram[i, i]) * np.sqrt(gram[j, j]))
    return min(1.0, max(-1.0, float(gram[i, j]) / norm)) if norm > 0.0 else 0.0
