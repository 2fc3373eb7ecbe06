"""Damp the directions of a merged task vector that several experts share (SVC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number
from evomerge.methods.spectral import SMALLEST_SHARE, MatrixInputs, decompose, one_thread, present


@dataclass(frozen=True)
class SvcState:
    """Models, and for a matrix the directions of the merged task vector.

    Attributes:
        inputs: the models; the first is the merged one.
        left: fp32 ``(..., m, r)``, left vectors; None where the merged model stays as it is.
        rows: fp32 ``(..., r, n)``, singular values times right vectors.
        amplified: fp32 ``(E - 1, ..., r)``, how much of each expert the merge has in each direction.
    """

    inputs: MatrixInputs
    left: Tensor | None = None
    rows: Tensor | None = None
    amplified: Tensor | None = None


class Svc(MergeMethod):
    """``θ0 + Σ_r γ_r u_r u_rᵀ Δ``, Δ the merged task vector with left vectors u, ``γ_r = N / Σ_i max(α, s_ir)``.

    The first expert is the merged model, the N others are those it was made of. With ``a = u_rᵀ Δ`` and
    ``b = u_rᵀ τ_i``, ``s_ir = ⟨a, b⟩ / ‖b‖²`` says how far the merge amplifies expert i along ``u_r``; 0 where b is
    next to nothing. Directions that several experts share are damped; with α = 1 none grows. Linear maps only, and
    stacks of them matrix by matrix; other tensors keep the merged model's values.
    Reference: Li 2026, https://arxiv.org/abs/2602.05536
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> SvcState:
        """Decompose the merged task vector and compare it with the experts.

        Raises:
            ValueError: no base, or no expert beside the merged model.
            MergeFailed: weights that are not finite.
        """
        if len(experts) < 2:
            raise ValueError("svc needs the merged model and, after it, the experts that it was made of")
        inputs = MatrixInputs.check(base, experts, context)
        if inputs.shape is None or 0 in inputs.shape or 0 not in inputs.inputs.active:
            return SvcState(inputs)
        with torch.no_grad(), one_thread():
            svd = decompose(inputs.delta(0))
            there = present(svd)
            left, rows = svd.left * there[..., None, :], (svd.values * there)[..., :, None] * svd.right
            amplified = torch.zeros(len(experts) - 1, *there.shape, device=there.device)
            for index in inputs.inputs.active[1:]:
                delta = inputs.delta(index)
                along = left.transpose(-1, -2) @ delta
                energy = along.square().sum(-1)
                # What is below this are rounding errors, of which the merge would seem to have endlessly much.
                floor = (SMALLEST_SHARE * torch.linalg.vector_norm(delta, dim=(-2, -1)))[..., None]
                is_there = energy > floor**2
                amplified[index - 1] = (rows * along).sum(-1) / torch.where(is_there, energy, 1.0) * is_there
        return SvcState(inputs, left, rows, amplified)

    @torch.no_grad()
    def apply(self, state: SvcState, values: Values, out: Tensor) -> None:
        """Write the calibrated tensor.

        Raises:
            ValueError: alpha is not positive.
        """
        alpha, merged = read_number(values, "alpha"), state.inputs.inputs.experts[0]
        if alpha <= 0.0:
            raise ValueError(f"alpha must be positive, got {alpha:g}")
        if state.left is None or state.rows is None or state.amplified is None:
            out.copy_(merged.view(out.shape))
            return
        with one_thread():
            factors = len(state.amplified) / state.amplified.clamp_min(alpha).sum(0)
            change = (state.left * (factors - 1.0)[..., None, :]) @ state.rows
        weighted_sum(out, [merged, change.view(-1)], [1.0, 1.0])

    def is_constant(self, state: SvcState) -> bool:
        """Whether the merged model stays as it is."""
        return state.left is None

    def state_bytes(self, state: SvcState) -> int:
        """Bytes of the directions and of copied inputs."""
        tensors = (state.left, state.rows, state.amplified)
        return state.inputs.inputs.copied_bytes + sum(tensor.nbytes for tensor in tensors if tensor is not None)
