"""One model's tensors as they are, or scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.errors import UserError
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Inputs, Values, read_number


class Passthrough(MergeMethod):
    """``scale · θ1``, bit for bit at scale 1. Which layers run in which order is not its business.

    Reference: Goddard 2024, https://arxiv.org/abs/2403.13257
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Inputs:
        """Keep the model.

        Raises:
            UserError: not exactly one expert.
        """
        if len(experts) != 1:
            raise UserError(f"passthrough takes one model, got {len(experts)}")
        return Inputs.check(None, experts)

    @torch.no_grad()
    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the scaled tensor."""
        scale = read_number(values, "scale")
        if scale == 1.0:
            out.copy_(state.experts[0].view(out.shape))
        else:
            weighted_sum(out, state.experts, [scale])

    def state_bytes(self, state: Inputs) -> int:
        """Bytes of copied inputs."""
        return state.copied_bytes
