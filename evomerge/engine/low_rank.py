"""Products of two thin matrices: summed exactly, and cut to a smaller rank with the least loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.spectral import one_thread

EXACT_SIZE = 1024  # matrices whose smaller side is longer are decomposed by subspace iteration
OVERSAMPLING, ITERATIONS = 16, 8


@dataclass(frozen=True)
class LowRank:
    """A matrix ``up @ down`` of rank R at most.

    Attributes:
        up: ``(m, R)``.
        down: ``(R, n)``.
        residual: what was cut off as a share of the whole matrix, in the Frobenius norm; 0 for a matrix of zeros.
        norm: Frobenius norm of the whole matrix.
    """

    up: Tensor
    down: Tensor
    residual: float
    norm: float


def sum_of_products(ups: Sequence[Tensor], downs: Sequence[Tensor], rank: int) -> LowRank:
    """``Σ ups_i @ downs_i`` cut to a rank; exact where the ranks of the terms sum to no more.

    QR of the joined factors leaves a small core, whose singular values are those of the sum (methods in fp64).

    Args:
        ups: matrices ``(m, r_i)``, coefficients included.
        downs: matrices ``(r_i, n)``.
        rank: R.
    """
    with one_thread():
        left, left_core = torch.linalg.qr(torch.cat([up.double() for up in ups], 1))
        right, right_core = torch.linalg.qr(torch.cat([down.double() for down in downs], 0).T)
        inner, values, outer = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
        return _cut(left @ inner, values, outer @ right.T, rank, float(values.square().sum()))


def cut_matrix(matrix: Tensor, rank: int, name: str) -> LowRank:
    """The matrix of a rank that is nearest to a dense one. Eckart 1936, https://doi.org/10.1007/BF02288367.

    Large matrices are decomposed by subspace iteration (Halko 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4),
    whose start is drawn from the tensor's name, so that it is always the same.

    Args:
        matrix: ``(m, n)``, fp32.
        rank: R.
        name: the tensor's name.
    """
    total = float(matrix.double().square().sum())
    with one_thread():
        if min(matrix.shape) <= EXACT_SIZE or rank + OVERSAMPLING >= min(matrix.shape):
            left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
            return _cut(left, values, right, rank, total)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        start = torch.randn(matrix.shape[1], rank + OVERSAMPLING, generator=torch.Generator().manual_seed(seed))
        basis = torch.linalg.qr(matrix @ start).Q
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        inner, values, right = torch.linalg.svd((basis.T @ matrix).double(), full_matrices=False)
        return _cut(basis.double() @ inner, values, right, rank, total)


def _cut(left: Tensor, values: Tensor, right: Tensor, rank: int, total: float) -> LowRank:
    """Share the roots of the singular values between both sides; what is missing to the rank is 0."""
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    up = torch.zeros(left.shape[0], rank)
    down = torch.zeros(rank, right.shape[1])
    up[:, :kept], down[:kept] = left[:, :kept] * roots, roots[:, None] * right[:kept]
    lost = max(0.0, total - float(values[:kept].square().sum()))
    if kept == len(values) or lost < 1e-14 * total:  # below what fp64 leaves of the difference
        lost = float(values[kept:].square().sum())
    return LowRank(up, down, (lost / total) ** 0.5 if total else 0.0, total**0.5)
