"""WUDI over the largest singular directions, with targets that share what the experts have in common (OptMerge)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from evomerge.methods.base import Value
from evomerge.methods.inputs import read_number
from evomerge.methods.spectral import decompose
from evomerge.methods.wudi import DataFreeDescent, WudiSettings


class Wudi2(DataFreeDescent):
    """``θ0 + λ Δ``, Δ going down ``Σ ‖(Δ - T_i) P_iᵀ‖² / ‖τ_i‖²`` from ``Σ c_i τ_i``.

    ``P_i`` holds the ``k = max(1, int(rank_share · min(m, n) / E))`` largest singular values of ``τ_i`` times their
    right vectors; ``T_i`` is the mean of all ``c_j τ_j`` plus the k largest directions of ``c_i τ_i`` minus that mean.
    The solvers are those of ``wudi``. Linear maps only, and stacks of them matrix by matrix; other tensors get λ times
    the mean. Coefficients and the closed form are evomerge's.
    Reference: Wei 2025, OptMerge, https://arxiv.org/abs/2505.19892
    """

    def _settings(self, structural: Mapping[str, Value], count: int) -> WudiSettings:
        share = read_number(structural, "rank_share")
        if share <= 0.0:
            raise ValueError(f"rank_share must be positive, got {share:g}")
        return replace(WudiSettings.read(structural, count), rank_share=share)

    def _shares(self, settings: WudiSettings, count: int) -> tuple[float, ...]:
        return tuple(coefficient / count for coefficient in settings.coefficients)

    def _part(self, scaled: Tensor, unit: Tensor, mean: Tensor, settings: WudiSettings) -> tuple[Tensor, Tensor]:
        rank = min(mean.shape[-2:])
        kept = min(rank, max(1, int(settings.rank_share * rank / len(settings.coefficients))))
        target = decompose((scaled - mean).float()).first(kept).product().to(mean.dtype).add_(mean)
        own = decompose(unit.float()).first(kept)
        return target, (own.values[..., :, None] * own.right).to(mean.dtype)
