"""Task arithmetic without the weights that too few experts care about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.methods.inputs import Inputs, Values, read_number, read_numbers
from evomerge.methods.sweep import sweep
from evomerge.methods.task_vectors import TaskVectorMethod


class Consensus(TaskVectorMethod):
    """``θ0 + λ Στ ⊙ [Σ_i m_i ≥ k]`` with TALL masks ``m_i = |τ_i| > ζ_i |Στ - τ_i|``.

    k = 2 drops what one expert alone wants and what none wants; k = 0 is task arithmetic.
    Reference: Wang 2024, https://arxiv.org/abs/2405.07813
    """

    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        scale, needed = read_number(values, "lambda"), read_number(values, "min_agreement")
        thresholds = read_numbers(values, "mask_threshold", len(state.experts))

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, sum_, agreement, delta, others = buffers
            origin.copy_(pieces[0])
            sum_.zero_()
            agreement.zero_()
            for piece in pieces[1:]:
                sum_.add_(torch.sub(delta.copy_(piece), origin, out=delta))
            for index, piece in zip(state.active, pieces[1:], strict=True):
                torch.sub(delta.copy_(piece), origin, out=delta)
                add_agreement(agreement, sum_, delta, others, thresholds[index])
            target.copy_(origin.add_(sum_.mul_(agreement >= needed), alpha=scale))

        experts = [state.experts[index] for index in state.active]
        sweep(kernel, out, [state.origin, *experts], num_buffers=5)


def add_agreement(agreement: Tensor, merged: Tensor, delta: Tensor, others: Tensor, threshold: float) -> None:
    """Count one expert where it cares: where ``|τ_i| > ζ |τ_M - τ_i|``.

    Args:
        agreement: counts ``(c,)``, added to.
        merged: τ_M ``(c,)``.
        delta: τ_i ``(c,)``, overwritten.
        others: ``(c,)`` to write on.
        threshold: ζ.
    """
    torch.sub(merged, delta, out=others)
    agreement.add_(delta.abs_() > others.abs_().mul_(threshold))
