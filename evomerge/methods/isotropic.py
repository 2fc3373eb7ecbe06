"""Sum task vectors and make all singular values of the sum equal (isotropic merging)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number, read_numbers
from evomerge.methods.spectral import MatrixInputs, Svd, decompose, one_thread, polar, present


@dataclass(frozen=True)
class IsotropicState:
    """Models, and for a matrix the two ends between which isotropy interpolates.

    Attributes:
        inputs: the models.
        means: what multiplies the experts of a tensor that is no matrix, ``(E,)``.
        plain: fp32 ``(n,)``, the merged task vector with its own singular values; None where there is no matrix.
        flat: fp32 ``(n,)``, with equal ones.
    """

    inputs: MatrixInputs
    means: tuple[float, ...]
    plain: Tensor | None = None
    flat: Tensor | None = None


class _Isotropic(MergeMethod):
    """What both isotropic methods share. They differ in the directions they keep."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> IsotropicState:
        """Decompose the sum of the task vectors.

        Raises:
            ValueError: no base, or values out of their range.
            MergeFailed: weights that are not finite.
        """
        inputs = MatrixInputs.check(base, experts, context)
        coefficients = read_numbers(structural, "coefficient", len(experts))
        means = tuple(coefficient / len(experts) for coefficient in coefficients)
        with torch.no_grad(), one_thread():
            directions = self._directions(inputs, coefficients, structural)
            if directions is None:
                return IsotropicState(inputs, means)
            kept = present(directions)
            mean = (directions.values * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(1.0)
            flat = directions._replace(values=mean * kept).product()
            plain = directions._replace(values=directions.values * kept).product()
        return IsotropicState(inputs, means, plain.reshape(-1), flat.reshape(-1))

    @abstractmethod
    def _directions(
        self, inputs: MatrixInputs, coefficients: Sequence[float], structural: Mapping[str, Value]
    ) -> Svd | None:
        """Orthogonal directions with their singular values, None where the tensor is no matrix."""

    def apply(self, state: IsotropicState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        models = state.inputs.inputs
        scale, isotropy = read_number(values, "lambda"), read_number(values, "isotropy")
        if state.plain is None or state.flat is None:
            weights = [scale * state.means[index] for index in models.active]
            experts = [models.experts[index] for index in models.active]
            weighted_sum(out, [models.origin, *experts], [1.0 - sum(weights), *weights])
        else:
            weighted_sum(
                out, [models.origin, state.plain, state.flat], [1.0, scale * (1.0 - isotropy), scale * isotropy]
            )

    def is_constant(self, state: IsotropicState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.inputs.active

    def state_bytes(self, state: IsotropicState) -> int:
        """Bytes of both ends and of copied inputs."""
        tensors = (state.plain, state.flat)
        return state.inputs.inputs.copied_bytes + sum(tensor.nbytes for tensor in tensors if tensor is not None)


class IsoC(_Isotropic):
    """``θ0 + λ s̄ U Vᵀ`` with ``U diag(s) Vᵀ = Σ c_i τ_i`` and s̄ the mean of s over the directions that are there.

    ``isotropy`` ψ below 1 takes ``(1 - ψ) s + ψ s̄`` instead of s̄. Linear maps only, and stacks of them one by one;
    tables of tokens, norms and biases get λ times the mean of ``c_i τ_i``. The coefficients and ψ are evomerge's.
    Reference: Marczak 2025, https://arxiv.org/abs/2502.04959
    """

    def _directions(
        self, inputs: MatrixInputs, coefficients: Sequence[float], structural: Mapping[str, Value]
    ) -> Svd | None:
        return None if inputs.shape is None else decompose(_sum(inputs, coefficients))


class IsoCts(_Isotropic):
    """The common directions of ``Σ c_i τ_i``, some of each expert's own, made orthogonal, with equal singular values.

    Of ``r = min(m, n)`` directions ``int(f r)`` are the largest of the sum; the rest, rounded to a multiple of E, is
    shared among the experts: the largest of ``τ_i - U Uᵀ τ_i``, U holding the common left vectors. All stand side by
    side, are replaced by their orthogonal factors, and get the mean singular value. ``f = 1`` is ``iso_c``.
    Reference: Marczak 2025, https://arxiv.org/abs/2502.04959
    """

    def _directions(
        self, inputs: MatrixInputs, coefficients: Sequence[float], structural: Mapping[str, Value]
    ) -> Svd | None:
        fraction = read_number(structural, "common_share")
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"common_share must be in [0, 1], got {fraction}")
        if inputs.shape is None:
            return None
        rank, count = inputs.rank, len(coefficients)
        own = min(round((rank - int(rank * fraction)) / count) * count, rank // count * count)
        common = decompose(_sum(inputs, coefficients)).first(rank - own)
        if not own:
            return common
        parts = []
        for index, coefficient in enumerate(coefficients):
            delta = inputs.delta(index) * coefficient
            rest = delta - common.left @ (common.left.transpose(-1, -2) @ delta)
            parts.append(decompose(rest).first(own // count))
        parts.append(common)
        return Svd(
            polar(torch.cat([part.left for part in parts], dim=-1)),
            torch.cat([part.values for part in parts], dim=-1),
            polar(torch.cat([part.right for part in parts], dim=-2)),
        )


def _sum(inputs: MatrixInputs, coefficients: Sequence[float]) -> Tensor:
    total = inputs.delta(0) * coefficients[0]
    for index, coefficient in enumerate(coefficients[1:], start=1):
        total += inputs.delta(index) * coefficient
    return total
