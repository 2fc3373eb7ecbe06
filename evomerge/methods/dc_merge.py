"""Merge task vectors in one space that covers the main directions of all of them (DC-Merge)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import Value
from evomerge.methods.inputs import read_flag, read_number
from evomerge.methods.prepared_delta import PreparedDeltaMethod
from evomerge.methods.spectral import SMALLEST_SHARE, MatrixInputs, Svd, decompose, polar, present

SMOOTHINGS = ("none", "avg", "linear")


@dataclass(frozen=True)
class DcSettings:
    """The structural hyperparameters.

    Attributes:
        keep: fraction of the entries of a core that is kept.
        smoothing: one of SMOOTHINGS.
        rho: the largest ratio between the first and the last of smoothed singular values.
        block_mask: whether only the blocks on the diagonal of the merged core are kept.
    """

    keep: float
    smoothing: str
    rho: float
    block_mask: bool


class DcMerge(PreparedDeltaMethod):
    """``θ0 + λ U⊥ M V⊥``: the task vectors, seen in common orthogonal directions, merged with sign election.

    Of each ``τ_i`` the ``k = max(1, int(min(m, n) / E))`` largest singular triplets are kept, their values smoothed if
    asked for: all equal (``avg``), or falling evenly (``linear``) to the share of the first that the last has, at least
    ``1 / rho``, with the same sum. U⊥ and V⊥ are the orthogonal factors of all their left and right vectors, side by
    side, over the directions that are there. In each core ``U⊥ᵀ τ̂_i V⊥ᵀ`` the ``keep · min(m, n)²`` largest entries
    stay, ties included; M is, entry by entry, the mean of those with the sign of their sum, within the blocks
    ``(k, k)`` on its diagonal (``block_mask``). Linear maps only, and stacks of them matrix by matrix; other task
    vectors are averaged.
    Reference: Zhang 2026, https://arxiv.org/abs/2603.06242
    """

    def _settings(self, structural: Mapping[str, Value], count: int) -> DcSettings:
        keep, rho = read_number(structural, "keep"), read_number(structural, "rho")
        smoothing, block_mask = structural["smoothing"], read_flag(structural, "block_mask")
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], got {keep:g}")
        if smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing must be one of {', '.join(SMOOTHINGS)}, got {smoothing!r}")
        if rho < 1.0:
            raise ValueError(f"rho must be at least 1, got {rho:g}")
        return DcSettings(keep, str(smoothing), rho, block_mask)

    def _merge(self, inputs: MatrixInputs, settings: DcSettings) -> Tensor:
        kept, parts = max(1, inputs.rank // len(inputs.inputs.experts)), []
        for index in inputs.inputs.active:
            svd = decompose(inputs.delta(index))
            there = present(svd)[..., :kept]
            svd = svd.first(kept)
            values = _smoothed(svd.values * there, there, settings)
            parts.append(Svd(svd.left * there[..., None, :], values, svd.right * there[..., :, None]))
        left = polar(torch.cat([part.left for part in parts], dim=-1))
        right = polar(torch.cat([part.right for part in parts], dim=-2))
        count = max(1, int(settings.keep * inputs.rank**2))
        total, cores = torch.zeros((), device=left.device), []
        for part in parts:
            core = ((left.transpose(-1, -2) @ part.left) * part.values[..., None, :]) @ (
                part.right @ right.transpose(-1, -2)
            )
            cores.append(_largest(core, count))
            total = total + cores[-1]
        agreeing = [core * (core.sign() == total.sign()) for core in cores]
        voters = torch.stack([(core != 0.0).float() for core in agreeing]).sum(0)
        merged = torch.stack(agreeing).sum(0) / voters.clamp_min(1.0)
        if settings.block_mask:
            owners = torch.arange(len(parts), device=left.device).repeat_interleave(kept)
            merged = merged * (owners[:, None] == owners)
        return left @ merged @ right


def _smoothed(values: Tensor, there: Tensor, settings: DcSettings) -> Tensor:
    """Singular values ``(..., k)`` of the directions that are there, made more alike; their sum stays."""
    if settings.smoothing == "none":
        return values
    size = there.sum(-1, keepdim=True)
    shape = there
    if settings.smoothing == "linear":
        last = values.gather(-1, (size.long() - 1).clamp_min(0))
        ratio = torch.where(last > 0.0, values[..., :1] / torch.where(last > 0.0, last, 1.0), 1.0)
        ratio = ratio.clamp(max=settings.rho)
        places = torch.arange(values.shape[-1], device=values.device) / (size - 1.0).clamp_min(1.0)
        shape = there * (ratio + (1.0 - ratio) * places)
    return shape * (values.sum(-1, keepdim=True) / shape.sum(-1, keepdim=True).clamp_min(1.0))


def _largest(core: Tensor, count: int) -> Tensor:
    """A core ``(..., k, k)`` with its ``count`` largest entries, and those equal to the last of them, and zeros.

    Entries that only rounding makes differ from 0 are none: their signs must not vote.
    """
    sizes = core.abs().flatten(-2)
    floor = SMALLEST_SHARE * sizes.amax(-1)
    if count < sizes.shape[-1]:
        floor = torch.maximum(floor, sizes.kthvalue(sizes.shape[-1] - count + 1).values)
    return core * (core.abs() >= floor[..., None, None])
