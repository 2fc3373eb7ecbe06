"""Task arithmetic with a shared correction of every matrix, found by projected gradient descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.adam import adam
from evomerge.methods.base import TensorContext, Value
from evomerge.methods.distribution import Distribution, add_each, task_vector_magnitudes
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number
from evomerge.methods.spectral import MatrixInputs, decompose, one_thread
from evomerge.methods.whole_model import WholeModelMethod


@dataclass(frozen=True)
class DogeState:
    """Models, and for a matrix what is added to every task vector and how much each counts.

    Attributes:
        inputs: the models.
        correction: fp32 ``(..., m, n)``; None where there is no matrix.
        weights: by active expert, ``(..., 1, 1)``.
        magnitudes: of each expert's matrices in the whole model.
    """

    inputs: MatrixInputs
    correction: Tensor | None = None
    weights: tuple[Tensor, ...] = ()
    magnitudes: tuple[Distribution, ...] = ()


class DogeTa(WholeModelMethod):
    """``θ0 + λ Σ w_i (τ_i + Δ) ⊙ mask_i`` with ``w_i = η / ‖τ_i‖`` of the matrix.

    One Δ per matrix, shared by all experts, lowers ``Σ_j Σ_rows ⟨τ_j, τ_j - Σ w_i τ_i - (Σ w_i) Δ⟩²`` by Adam along
    gradients without their part in the experts' common left directions: the first ``r / subspace`` of those of the
    ``r / E`` largest of every τ_i side by side. mask_i keeps the share ``keep`` of the largest ``|τ_i|`` over all
    matrices of the model. Tensors that are no linear maps stay the base's. λ is evomerge's.
    Reference: Wei 2025, https://arxiv.org/abs/2501.01230, code of https://github.com/tanganke/fusion_bench
    """

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """One, for the masks."""
        return 1

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> list[Distribution] | None:
        """Magnitudes of each task vector; of matrices only."""
        inputs = MatrixInputs.check(base, experts, context)
        return None if inputs.shape is None else task_vector_magnitudes(inputs.inputs)

    def fold(self, total: list[Distribution] | None, share: list[Distribution] | None) -> list[Distribution] | None:
        """Add a matrix's."""
        return total if share is None else add_each(total, share)

    def conclude(self, total: list[Distribution] | None) -> tuple[Distribution, ...]:
        """Magnitudes of all matrices, by expert."""
        return tuple(counted.finish() for counted in total or ())

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> DogeState:
        """Solve for the correction.

        Raises:
            ValueError: no base, or values out of their range.
            MergeFailed: weights that are not finite.
        """
        inputs = MatrixInputs.check(base, experts, context)
        eta, rate = read_number(structural, "eta"), read_number(structural, "learning_rate")
        steps, subspace = int(read_number(structural, "steps")), int(read_number(structural, "subspace"))
        if eta < 0.0 or rate < 0.0 or steps < 0 or subspace < 1:
            raise ValueError("eta, learning_rate and steps must not be negative, subspace must be 1 or more")
        if inputs.shape is None:
            return DogeState(inputs)
        with torch.no_grad(), one_thread():
            # fp64: Adam makes whole steps of gradients that are rounding alone.
            deltas = [inputs.delta(index).double() for index in inputs.inputs.active]
            weights = [eta / torch.linalg.matrix_norm(delta, keepdim=True) for delta in deltas]
            weights = [torch.where(weight.isfinite(), weight, 0.0) for weight in weights]  # of a stack, a 0 matrix
            basis = _common_directions(deltas, inputs.rank // len(experts), inputs.rank // subspace)
            correction = _solve(deltas, weights, basis, steps, rate)
        weights = [weight.float() for weight in weights]
        return DogeState(inputs, correction.float(), tuple(weights), context.statistics[0])

    @torch.no_grad()
    def apply(self, state: DogeState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        keep, scale = read_number(values, "keep"), read_number(values, "lambda")
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        models = state.inputs.inputs
        if state.correction is None:
            weighted_sum(out, [models.origin], [1.0])
            return
        total = torch.zeros_like(state.correction)
        for index, weight in zip(models.active, state.weights, strict=True):
            delta, counted = state.inputs.delta(index), state.magnitudes[index]
            threshold = counted.kth_largest(int(keep * counted.size)) if keep < 1.0 else 0.0
            total += torch.where(delta.abs() >= threshold, weight * (delta + state.correction), 0.0)
        weighted_sum(out, [models.origin, total.view(-1)], [1.0, scale])

    def is_constant(self, state: DogeState) -> bool:
        """Whether the tensor stays the base's."""
        return state.inputs.shape is None

    def state_bytes(self, state: DogeState) -> int:
        """Bytes of the correction and of copied inputs."""
        return state.inputs.inputs.copied_bytes + (0 if state.correction is None else state.correction.nbytes)


def _common_directions(deltas: Sequence[Tensor], each: int, count: int) -> Tensor:
    """Orthonormal columns ``(..., m, count)`` that the largest left vectors of all task vectors have most in common."""
    left = torch.cat([decompose(delta).first(max(1, each)).left for delta in deltas], dim=-1)
    return decompose(left).left[..., :count]


def _solve(deltas: Sequence[Tensor], weights: Sequence[Tensor], basis: Tensor, steps: int, rate: float) -> Tensor:
    """The correction ``(..., m, n)``."""
    merged = sum((weight * delta for weight, delta in zip(weights, deltas)), torch.zeros_like(deltas[0]))
    total = sum(weights[1:], weights[0])
    # ⟨τ_j, τ_j - Σ w_i τ_i⟩ of each row: what the correction has to make up for.
    gaps = [(delta * (delta - merged)).sum(-1, keepdim=True) for delta in deltas]

    def gradient(point: Tensor) -> Tensor:
        slope = torch.zeros_like(point)
        for delta, gap in zip(deltas, gaps):
            error = gap - total * (delta * point).sum(-1, keepdim=True)
            slope += error * delta
        slope *= -2.0 * total
        return slope - basis @ (basis.transpose(-1, -2) @ slope)

    return adam(gradient, torch.zeros_like(merged), steps, rate)
