"""TIES without the weights that too few experts care about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.methods.consensus import add_agreement
from evomerge.methods.inputs import Values, read_densities, read_number, read_numbers
from evomerge.methods.ranked import RankedMethod, RankedState
from evomerge.methods.sweep import sweep


class ConsensusTies(RankedMethod):
    """``θ0 + λ τ_M ⊙ [Σ_i m_i ≥ k]``: τ_M is the elected sum of the trimmed task vectors (TIES with ``sum``).

    The TALL masks ``m_i = |τ_i| > ζ_i |τ_M - τ_i|`` are those of the whole task vectors. Trimmed per tensor.
    Reference: Wang 2024, https://arxiv.org/abs/2405.07813
    """

    def apply(self, state: RankedState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        inputs = state.inputs
        scale, needed = read_number(values, "lambda"), read_number(values, "min_agreement")
        thresholds = read_numbers(values, "mask_threshold", len(inputs.experts))
        densities = read_densities(values, len(inputs.experts))
        trims = [ranking.trim(densities[index]) for index, ranking in state.rankings.items()]

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, sum_, absolute, agreement, delta, others = buffers
            origin.copy_(pieces[0])
            for buffer in (sum_, absolute, agreement):
                buffer.zero_()
            for trim, piece in zip(trims, pieces[1:], strict=True):
                torch.sub(delta.copy_(piece), origin, out=delta)
                if trim is not None:
                    trim(delta, start, others)
                sum_.add_(delta)
                absolute.add_(delta.abs_())
            # Entries of the sign of S sum to (S + copysign(A, S)) / 2, A the sum of all magnitudes.
            sum_.add_(absolute.copysign_(sum_)).mul_(0.5)
            for index, piece in zip(state.rankings, pieces[1:], strict=True):
                torch.sub(delta.copy_(piece), origin, out=delta)
                add_agreement(agreement, sum_, delta, others, thresholds[index])
            target.copy_(origin.add_(sum_.mul_(agreement >= needed), alpha=scale))

        experts = [inputs.experts[index] for index in state.rankings]
        sweep(kernel, out, [inputs.origin, *experts], num_buffers=6)
