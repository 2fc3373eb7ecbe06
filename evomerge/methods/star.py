"""Drop the small singular values of every task vector and keep its nuclear norm, then average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, normalizer, read_flag, read_number, read_numbers
from evomerge.methods.spectral import MatrixInputs, decompose, one_thread


@dataclass(frozen=True)
class StarState:
    """Models, and for a matrix the truncated task vectors.

    Attributes:
        inputs: the models.
        deltas: by index of the experts that differ from the base, fp32 ``(n,)``; empty where there is no matrix.
    """

    inputs: MatrixInputs
    deltas: dict[int, Tensor]


class Star(MergeMethod):
    """``θ0 + λ Σ c_i τ̂_i / Σ c_i``, ``τ̂_i`` with the largest singular values that make up η % of the sum.

    They are scaled up to the sum of all. Linear maps only, and stacks of them matrix by matrix; other task vectors are
    averaged as they are.
    Reference: Lee 2025, https://arxiv.org/abs/2502.10339
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> StarState:
        """Truncate every task vector.

        Raises:
            ValueError: no base, or eta outside (0, 100].
            MergeFailed: weights that are not finite.
        """
        inputs = MatrixInputs.check(base, experts, context)
        eta = read_number(structural, "eta")
        if not 0.0 < eta <= 100.0:
            raise ValueError(f"eta must be in (0, 100], got {eta}")
        deltas = {}
        if inputs.shape is not None and eta < 100.0:
            with torch.no_grad(), one_thread():
                deltas = {index: _truncate(inputs.delta(index), eta / 100.0) for index in inputs.inputs.active}
        return StarState(inputs, deltas)

    def apply(self, state: StarState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        models = state.inputs.inputs
        coefficients = read_numbers(values, "coefficient", len(models.experts))
        scale = read_number(values, "lambda") / normalizer(coefficients, read_flag(values, "normalize"))
        weights = [scale * coefficients[index] for index in models.active]
        if state.deltas:
            weighted_sum(out, [models.origin, *state.deltas.values()], [1.0, *weights])
        else:
            experts = [models.experts[index] for index in models.active]
            weighted_sum(out, [models.origin, *experts], [1.0 - sum(weights), *weights])

    def is_constant(self, state: StarState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.inputs.active

    def state_bytes(self, state: StarState) -> int:
        """Bytes of the truncated task vectors and of copied inputs."""
        return state.inputs.inputs.copied_bytes + sum(delta.nbytes for delta in state.deltas.values())


def _truncate(delta: Tensor, share: float) -> Tensor:
    svd = decompose(delta)
    before = svd.values.cumsum(-1) - svd.values  # what the values before each one sum to
    total = svd.values.sum(-1, keepdim=True)
    kept = svd.values * (before < share * total)
    factor = total / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return svd._replace(values=kept * factor).product().reshape(-1)
