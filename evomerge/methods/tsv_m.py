"""Merge the largest singular directions of every task vector, made orthogonal to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number, read_numbers
from evomerge.methods.spectral import MatrixInputs, decompose, one_thread, polar


@dataclass(frozen=True)
class TsvState:
    """Models, and for a matrix the orthogonal directions of all experts side by side.

    Attributes:
        inputs: the models.
        left: fp32 ``(..., m, k)``; None where there is no matrix.
        values: fp32 ``(..., k)``, singular values.
        right: fp32 ``(..., k, n)``.
        owners: expert index of each direction, k of them.
    """

    inputs: MatrixInputs
    left: Tensor | None = None
    values: Tensor | None = None
    right: Tensor | None = None
    owners: tuple[int, ...] = ()


class TsvM(MergeMethod):
    """``θ0 + λ U⊥ diag(c_i s) V⊥`` of the ``κ_i min(m, n) / E`` largest singular triplets of each ``τ_i``.

    The triplets stand side by side; U⊥ and V⊥ are the orthogonal factors of all left and right vectors, taken over the
    directions that are there. Linear maps only, and stacks of them matrix by matrix; tables of tokens, norms and
    biases get ``λ`` times the mean of ``c_i τ_i``. With all ``c_i`` and ``κ_i`` 1 it is the published method; others
    are evomerge's.
    Reference: Gargiulo 2024, https://arxiv.org/abs/2412.00081
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> TsvState:
        """Decompose every task vector and both sets of vectors.

        Raises:
            ValueError: no base, or a rank share outside (0, E], or shares whose sum is above E.
            MergeFailed: weights that are not finite.
        """
        inputs = MatrixInputs.check(base, experts, context)
        shares, count = read_numbers(structural, "rank_share", len(experts)), len(experts)
        if min(shares) <= 0.0 or sum(shares) > count + 1e-9:
            raise ValueError(f"rank_share must be positive and sum to at most {count}, got {list(shares)}")
        if inputs.shape is None:
            return TsvState(inputs)
        parts, owners = [], []
        with torch.no_grad(), one_thread():
            for index in inputs.inputs.active:
                rank = max(1, int(shares[index] * inputs.rank / count))
                parts.append(decompose(inputs.delta(index)).first(rank))
                owners += [index] * rank
            left = polar(torch.cat([part.left for part in parts], dim=-1))
            right = polar(torch.cat([part.right for part in parts], dim=-2))
        return TsvState(inputs, left, torch.cat([part.values for part in parts], dim=-1), right, tuple(owners))

    @torch.no_grad()
    def apply(self, state: TsvState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        models = state.inputs.inputs
        coefficients, scale = read_numbers(values, "coefficient", len(models.experts)), read_number(values, "lambda")
        if state.left is None or state.values is None or state.right is None:
            weights = [scale * coefficients[index] / len(coefficients) for index in models.active]
            experts = [models.experts[index] for index in models.active]
            weighted_sum(out, [models.origin, *experts], [1.0 - sum(weights), *weights])
            return
        factors = torch.tensor([scale * coefficients[owner] for owner in state.owners], device=out.device)
        with one_thread():
            delta = (state.left * (state.values * factors)[..., None, :]) @ state.right
        weighted_sum(out, [models.origin, delta.view(-1)], [1.0, 1.0])

    def is_constant(self, state: TsvState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.inputs.active

    def state_bytes(self, state: TsvState) -> int:
        """Bytes of the directions and of copied inputs."""
        tensors = (state.left, state.values, state.right)
        return state.inputs.inputs.copied_bytes + sum(tensor.nbytes for tensor in tensors if tensor is not None)
