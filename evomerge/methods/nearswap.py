"""Move every weight of the base towards another model, by a bounded step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.methods.base import TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.sweep import sweep
from evomerge.methods.task_vectors import TaskVectorMethod, check_one_expert


class Nearswap(TaskVectorMethod):
    """``θ0 + sign(θ1 - θ0) · min(|θ1 - θ0|, t)``: weights nearer than t become the expert's.

    Reference: alchemonaut 2024, QuartetAnemoi, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Inputs:
        """Keep the models.

        Raises:
            UserError: not exactly one expert.
        """
        check_one_expert("nearswap", experts)
        return super().prepare(base, experts, structural, context)

    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the merged tensor.

        Raises:
            ValueError: t is negative.
        """
        t = read_number(values, "t")
        if t < 0.0:
            raise ValueError(f"t must not be negative, got {t}")

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, delta = buffers
            origin.copy_(pieces[0])
            torch.sub(delta.copy_(pieces[1]), origin, out=delta)
            target.copy_(origin.add_(delta.clamp_(-t, t)))

        sweep(kernel, out, [state.origin, *state.experts], num_buffers=2)
