"""Average lengths and directions of the columns of task vectors apart (DO-Merging)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.adam import adam
from evomerge.methods.base import Value
from evomerge.methods.inputs import read_number
from evomerge.methods.prepared_delta import PreparedDeltaMethod
from evomerge.methods.spectral import MatrixInputs, decompose

_RATE = 0.01  # of Adam, in units of the factors' root mean square


@dataclass(frozen=True)
class DoSettings:
    """The structural hyperparameters.

    Attributes:
        steps: of making factors orthogonal.
        gamma: weight of the distance from the factors as they were.
        rank: of the factors.
    """

    steps: int
    gamma: float
    rank: int


class DoMerging(PreparedDeltaMethod):
    """``θ0 + λ α ⊙ D``: α is the mean of the lengths of the task vectors' columns, D of the columns at length 1.

    Reproduced as far as verified: no official code is known, and these formulas come from summaries of the paper and
    one independent implementation. λ here is the paper's times E². The paper merges LoRA adapters ``B_i A_i`` and first
    moves their factors apart. With ``steps`` above 0 that is done to ``B = U √S``, ``A = √S Vᵀ`` of the ``rank``
    largest singular triplets of each task vector, which need not be the factors it was trained as: Adam, in fp64, on
    ``Σ_{i≠j} ‖A_i A_jᵀ‖² + γ Σ ‖A_i - A_i⁰‖²``, and on the same of Bᵀ; what the factors do not hold stays. Which
    products the paper takes here is not certain. Linear maps only, and stacks of them matrix by matrix; other task
    vectors are averaged.
    Reference: Zheng 2025, https://arxiv.org/abs/2505.15875
    """

    def _settings(self, structural: Mapping[str, Value], count: int) -> DoSettings:
        steps, gamma, rank = (read_number(structural, name) for name in ("steps", "gamma", "rank"))
        if steps < 0.0 or gamma < 0.0:
            raise ValueError(f"steps and gamma must not be negative, got {steps:g}, {gamma:g}")
        if rank < 1.0:
            raise ValueError(f"rank must be at least 1, got {rank:g}")
        return DoSettings(int(steps), gamma, int(rank))

    def _merge(self, inputs: MatrixInputs, settings: DoSettings) -> Tensor:
        deltas = [inputs.delta(index) for index in inputs.inputs.active]
        if settings.steps:
            deltas = _apart(deltas, settings)
        lengths, directions = torch.zeros((), device=deltas[0].device), torch.zeros_like(deltas[0])
        for delta in deltas:
            length = torch.linalg.vector_norm(delta, dim=-2, keepdim=True)
            directions += delta / torch.where(length > 0.0, length, 1.0)
            lengths = lengths + length
        return directions * (lengths / len(inputs.inputs.experts) ** 2)


def _apart(deltas: list[Tensor], settings: DoSettings) -> list[Tensor]:
    """Task vectors ``(..., m, n)`` with factors more orthogonal to each other's."""
    parts = [decompose(delta).first(settings.rank) for delta in deltas]
    roots = [part.values.double().sqrt() for part in parts]
    rows = [root[..., :, None] * part.right.double() for part, root in zip(parts, roots, strict=True)]
    columns = [
        root[..., :, None] * part.left.double().transpose(-1, -2) for part, root in zip(parts, roots, strict=True)
    ]
    moved = []
    for delta, a, b, a_new, b_new in zip(
        deltas, rows, columns, _orthogonalised(rows, settings), _orthogonalised(columns, settings), strict=True
    ):
        change = b_new.transpose(-1, -2) @ a_new - b.transpose(-1, -2) @ a
        moved.append((delta.double() + change).float())
    return moved


def _orthogonalised(factors: list[Tensor], settings: DoSettings) -> list[Tensor]:
    """Factors ``(..., r, n)`` of all experts, their rows moved away from those of the other experts."""
    rank, start = factors[0].shape[-2], torch.cat(factors, dim=-2)
    owners = torch.arange(len(factors), device=start.device).repeat_interleave(rank)
    others = (owners[:, None] != owners).to(start.dtype)

    def gradient(point: Tensor) -> Tensor:
        products = (point @ point.transpose(-1, -2)) * others
        return (products @ point).mul_(4.0).add_(point - start, alpha=2.0 * settings.gamma)

    rows = start.square().sum(-1, keepdim=True)
    # An expert that did not change this matrix has rows of zeros, which say nothing of the others' size.
    size = (rows.sum(-2, keepdim=True) / (start.shape[-1] * (rows > 0.0).sum(-2, keepdim=True)).clamp_min(1)).sqrt()
    moved = adam(gradient, start, settings.steps, _RATE * size)
    return [moved[..., index * rank : (index + 1) * rank, :] for index in range(len(factors))]
