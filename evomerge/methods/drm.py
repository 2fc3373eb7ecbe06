"""Decompose all task vectors together, make their parts equally long, merge what agrees (Decom-Renorm-Merge)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number, read_numbers
from evomerge.methods.spectral import SMALLEST_SHARE, MatrixInputs, decompose, eigen, one_thread
from evomerge.methods.sweep import sweep

_SMALLEST_VALUE = 1e-2  # singular values up to this share of the largest are left out


@dataclass(frozen=True)
class DrmState:
    """Models, and for a matrix each expert's part of the merged task vector.

    Attributes:
        inputs: the models.
        elects: whether signs are elected in a tensor without parts.
        deltas: by index of the experts that differ from the base, fp32 ``(n,)``.
    """

    inputs: MatrixInputs
    elects: bool
    deltas: dict[int, Tensor]


class _Drm(MergeMethod):
    """What both directions share. They differ in how the task vectors are laid beside each other."""

    is_vertical: bool

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> DrmState:
        """Decompose the task vectors of a matrix together and elect signs.

        Raises:
            ValueError: no base, or drop outside [0, 1).
            MergeFailed: weights that are not finite.
        """
        inputs, drop = MatrixInputs.check(base, experts, context), read_number(structural, "drop")
        if not 0.0 <= drop < 1.0:
            raise ValueError(f"drop must be in [0, 1), got {drop:g}")
        shape = inputs.shape
        if shape is None or drop == 0.0 or 0 in shape:
            return DrmState(inputs, shape is None, {})
        with torch.no_grad(), one_thread():
            # (E, stack, m, n)
            stacks = torch.stack([inputs.delta(index).reshape(-1, *shape[-2:]) for index in range(len(experts))])
            if self.is_vertical:
                stacks = stacks.transpose(-1, -2)
            parts = torch.stack([_parts(stacks[:, slice_], drop) for slice_ in range(stacks.shape[1])], dim=1)
            if self.is_vertical:
                parts = parts.transpose(-1, -2)
            deltas = {index: parts[index].reshape(-1).clone() for index in inputs.inputs.active}
        return DrmState(inputs, True, deltas)

    def apply(self, state: DrmState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        models = state.inputs.inputs
        coefficients, scale = read_numbers(values, "coefficient", len(models.experts)), read_number(values, "lambda")
        weights = [scale * coefficients[index] for index in models.active]
        if state.deltas:
            weighted_sum(out, [models.origin, *state.deltas.values()], [1.0, *weights])
            return

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, sum_, count, total, delta, agrees = buffers
            origin.copy_(pieces[0])
            total.zero_()
            for piece in pieces[1:]:
                total.add_(torch.sub(delta.copy_(piece), origin, out=delta))
            sum_.zero_()
            count.zero_()
            for weight, piece in zip(weights, pieces[1:], strict=True):
                torch.sub(delta.copy_(piece), origin, out=delta)
                if state.elects:
                    torch.gt(torch.mul(delta.sign(), total.sign(), out=agrees), 0.0, out=agrees)
                else:
                    torch.ne(delta, 0.0, out=agrees)
                count.add_(agrees)
                sum_.addcmul_(delta, agrees, value=weight)
            target.copy_(origin.add_(sum_.div_(count.clamp_min_(1.0))))

        sweep(kernel, out, [models.origin, *(models.experts[index] for index in models.active)], num_buffers=6)

    def is_constant(self, state: DrmState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.inputs.active

    def state_bytes(self, state: DrmState) -> int:
        """Bytes of the parts and of copied inputs."""
        return state.inputs.inputs.copied_bytes + sum(delta.nbytes for delta in state.deltas.values())


class DrmHorizontal(_Drm):
    """``θ0 + λ Σ c_i U R_i``, with ``[τ_1 | … | τ_E] = U S [V_1 | … | V_E]`` over the values above 1 % of the largest.

    The rows of each ``V_i`` are brought to length 1, and of the entries of all of them together the fraction ``drop``
    is dropped, the smallest ones. Weighted with S and their former length they are merged as in TIES: where signs
    differ, those against the sign of the sum are dropped, and ``R_i`` is what stays of expert i over the number of
    experts of whom something stays. Where the sum is exactly 0 nobody is elected. Other tensors are merged so without
    a decomposition, nothing dropped. ``drop`` 0 takes, as published, neither directions nor signs: the mean of the
    ``c_i τ_i`` that are not 0 (the official code also leaves out the coefficients). Stacks are merged matrix by matrix.
    Reference: Chaichana 2025, https://arxiv.org/abs/2505.23117
    """

    is_vertical = False


class DrmVertical(_Drm):
    """``θ0 + λ Σ c_i R_i Vᵀ``: as ``drm_h``, the task vectors standing on each other, with common input directions.

    Left vectors are split among the experts, and their columns brought to length 1.
    Reference: Chaichana 2025, https://arxiv.org/abs/2505.23117
    """

    is_vertical = True


def _parts(deltas: Tensor, drop: float) -> Tensor:
    """Each expert's part ``U R_i`` of a merge, ``(E, m, n)``.

    Args:
        deltas: task vectors ``(E, m, n)``.
        drop: fraction of the entries that is dropped.
    """
    if not deltas.any():
        return deltas
    common = _common_directions(torch.cat([*deltas], dim=1))
    weighted = common.transpose(0, 1) @ deltas  # S V_i, (E, r, n)
    lengths = torch.linalg.vector_norm(weighted, dim=-1, keepdim=True)  # S times that of V_i's rows
    # An expert without a share in a direction has rounding errors there, which must not be blown up.
    is_there = lengths > SMALLEST_SHARE * torch.linalg.vector_norm(lengths, dim=0).amax()
    sizes = (weighted / torch.where(is_there, lengths, 1.0) * is_there).abs()
    dropped = sizes.numel() - round(sizes.numel() * (1.0 - drop))
    floor = float(sizes.view(-1).kthvalue(dropped).values) if dropped else 0.0
    weighted = weighted * (sizes >= max(floor, SMALLEST_SHARE))
    agreeing = weighted * (weighted.sign() == weighted.sum(0).sign())
    voters: Tensor = (agreeing != 0.0).sum(0).clamp_min(1)
    return torch.matmul(common, agreeing / voters)


def _common_directions(joined: Tensor) -> Tensor:
    """Left singular vectors ``(m, r)`` of the values that count of a matrix ``(m, n)``."""
    rows, columns = joined.shape
    if rows > columns:
        svd = decompose(joined)
        return svd.left[:, svd.values > _SMALLEST_VALUE * svd.values[:1]]
    wide = joined.double()  # squares of values down to 1 % are exact enough, and faster than singular values
    values, vectors = eigen(wide @ wide.T)
    return vectors[:, values > _SMALLEST_VALUE**2 * values[-1:]].float()
