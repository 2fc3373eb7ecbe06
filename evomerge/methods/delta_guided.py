"""Weigh every change by how large it is, in its tensor and by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.gram import gram_matrix
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.sweep import sweep


@dataclass(frozen=True)
class GuidedState:
    """Models and the norms of their task vectors, ``(E,)``."""

    inputs: Inputs
    norms: tuple[float, ...]


class DeltaGuided(MergeMethod):
    """``θ0 + λ Σ ((1 - β) c_i + β e_i) τ_i`` with ``c_i = ‖τ_i‖^p / Σ ‖τ_j‖^p`` and ``e_i = |τ_i|^q / Σ |τ_j|^q``.

    The norms are those of the tensor, the magnitudes those of the element; where all are 0 the shares are equal, and
    0^0 is 1. evomerge's own: weights from deviations, after the idea of a paper whose formula is not public; β = 0 and
    p = 2 are ``varm``.
    Reference: own definition; idea of CoDiEmb, 2025, https://arxiv.org/abs/2508.11442
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> GuidedState:
        """Measure the task vectors."""
        inputs = Inputs.check(base, experts, needs_base=True)
        squares = gram_matrix(inputs.experts, inputs.origin).diagonal() if inputs.active else ()
        return GuidedState(inputs, tuple(float(square) ** 0.5 for square in squares))

    @torch.no_grad()
    def apply(self, state: GuidedState, values: Values, out: Tensor) -> None:
        """Write the merged tensor.

        Raises:
            ValueError: a negative exponent, or a mix outside [0, 1].
        """
        names = ("tensor_exponent", "element_exponent", "element_share", "lambda")
        tensor_exponent, element_exponent, mix, scale = (read_number(values, name) for name in names)
        if min(tensor_exponent, element_exponent) < 0.0 or not 0.0 <= mix <= 1.0:
            raise ValueError(
                "exponents must not be negative and element_share must be in [0, 1], got "
                f"{tensor_exponent}, {element_exponent}, {mix}"
            )
        largest = max(state.norms, default=0.0)
        powers = [(norm / largest) ** tensor_exponent if largest else 1.0 for norm in state.norms]
        shares = [(1.0 - mix) * power / sum(powers) for power in powers]

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, merged, top, powered, total, *deltas = buffers
            origin.copy_(pieces[0])
            for buffer in (merged, top, total):
                buffer.zero_()
            for delta, piece in zip(deltas, pieces[1:], strict=True):
                torch.sub(delta.copy_(piece), origin, out=delta)
                torch.maximum(top, delta.abs(), out=top)
            top.clamp_min_(torch.finfo(torch.float32).tiny)
            for delta in deltas:
                torch.div(delta, top, out=powered).abs_().pow_(element_exponent)  # of the largest: no underflow
                total.add_(powered)
                merged.addcmul_(delta, powered)
            merged.div_(total.clamp_min_(torch.finfo(torch.float32).tiny)).mul_(mix)
            for delta, share in zip(deltas, shares, strict=True):
                merged.add_(delta, alpha=share)
            target.copy_(origin.add_(merged, alpha=scale))

        models = state.inputs
        if not state.norms:
            out.copy_(models.origin.view(out.shape))
        else:
            sweep(kernel, out, [models.origin, *models.experts], num_buffers=5 + len(models.experts))

    def is_constant(self, state: GuidedState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: GuidedState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes
