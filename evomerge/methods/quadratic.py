"""Minimise how much a merged matrix disturbs what each task vector does: a quadratic function of the matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.adam import adam
from evomerge.methods.spectral import SMALLEST_SHARE, eigen


@dataclass(frozen=True)
class Quadratic:
    """``Σ_i tr((Δ - T_i) C_i (Δ - T_i)ᵀ)`` over ``Δ = start + X``. Half its gradient is ``X C + slope``.

    In terms of X nothing cancels: where the targets of all experts equal the start, the gradient is exactly 0.

    Attributes:
        start: ``(..., m, n)``.
        curvature: ``C = Σ C_i``, ``(..., n, n)``.
        slope: ``Σ (start - T_i) C_i``, ``(..., m, n)``.
    """

    start: Tensor
    curvature: Tensor
    slope: Tensor

    @classmethod
    def collect(cls, start: Tensor, parts: Iterable[tuple[Tensor, Tensor]]) -> Quadratic:
        """Add up the parts.

        Args:
            start: where Δ begins.
            parts: of each expert the target T ``(..., m, n)``, and P ``(..., k, n)`` with ``C = Pᵀ P``.

        Raises:
            MergeFailed: weights that are not finite.
        """
        size = start.shape[-1]
        curvature, slope = start.new_zeros(*start.shape[:-2], size, size), torch.zeros_like(start)
        for target, inputs in parts:
            part = inputs.transpose(-1, -2) @ inputs
            curvature += part
            slope += (start - target) @ part
        if not slope.isfinite().all():
            raise MergeFailed("task vectors cannot be balanced: weights are NaN or infinite")
        return cls(start, curvature, slope)

    def descend(self, steps: int, rate: float) -> Tensor:
        """Δ after that many steps of Adam, ``(..., m, n)``.

        Args:
            steps: how many.
            rate: the learning rate.
        """

        def gradient(moved: Tensor) -> Tensor:
            return torch.matmul(moved, self.curvature).add_(self.slope).mul_(2.0)

        return adam(gradient, torch.zeros_like(self.start), steps, rate).add_(self.start)

    def flow(self, time: float, share: float) -> Tensor:
        """Δ after following ``-(X C + slope)`` for a time, in closed form, ``(..., m, n)``.

        With ``C = V Λ Vᵀ`` it is ``start - slope V (1 - e^(-Λ time)) / Λ Vᵀ``.

        Args:
            time: how long; the longer, the nearer to the minimum.
            share: fraction of the directions V that is followed, those of the largest Λ.

        Raises:
            MergeFailed: the eigenvalues cannot be computed.
        """
        values, vectors = eigen(self.curvature)
        size = values.shape[-1]
        # Λ is a square: that of a singular value which is not there counts as 0, as does the slope along it.
        follow = values > SMALLEST_SHARE**2 * values[..., -1:]
        follow[..., : size - math.ceil(share * size)] = False
        gain = torch.where(follow, -torch.expm1(-values * time) / torch.where(follow, values, 1.0), 0.0)
        return self.start - ((self.slope @ vectors) * gain[..., None, :]) @ vectors.transpose(-1, -2)
