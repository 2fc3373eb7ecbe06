"""The unified task vector of EMR-Merging: elected signs with the largest magnitudes that agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.sweep import sweep
from evomerge.methods.task_vectors import TaskVectorMethod


class Emr(TaskVectorMethod):
    """``θ0 + λ γ ⊙ ε``: γ = 1 where ``Σ τ_i > 0``, else -1; ε the largest ``|τ_i|`` among entries of that sign.

    Only the unified vector. The paper's masks and rescalers restore each task's own model at inference and make no
    single checkpoint. The unified vector is longer than any task vector: λ below 1 is usual.
    Reference: Huang 2024, https://arxiv.org/abs/2405.17461
    """

    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        scale = read_number(values, "lambda")

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, sum_, highest, lowest, delta = buffers
            origin.copy_(pieces[0])
            for buffer in (sum_, highest, lowest):
                buffer.zero_()
            for piece in pieces[1:]:
                torch.sub(delta.copy_(piece), origin, out=delta)
                sum_.add_(delta)
                torch.maximum(highest, delta, out=highest)
                torch.minimum(lowest, delta, out=lowest)
            unified = torch.where(sum_ > 0.0, highest, lowest)
            target.copy_(origin.add_(unified, alpha=scale))

        experts = [state.experts[index] for index in state.active]
        sweep(kernel, out, [state.origin, *experts], num_buffers=5)
