"""What methods over task vectors share that prepare nothing but their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.errors import UserError
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Inputs


class TaskVectorMethod(MergeMethod):
    """A method that gives the base where every expert equals it, and whose state is base and experts."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Inputs:
        """Keep the models and find the experts that differ from the base."""
        return Inputs.check(base, experts, needs_base=True)

    def is_constant(self, state: Inputs) -> bool:
        """Whether every expert equals the base."""
        return not state.active

    def state_bytes(self, state: Inputs) -> int:
        """Bytes of copied inputs."""
        return state.copied_bytes


def check_one_expert(method: str, experts: Sequence[Tensor]) -> None:
    """Check that there is a single expert.

    Raises:
        UserError: there are several, or none.
    """
    if len(experts) != 1:
        raise UserError(f"{method} merges a base and one expert, got {len(experts)} experts; nest merges for more")


@torch.no_grad()
def interpolate(out: Tensor, inputs: Inputs, weight: float) -> None:
    """Write ``(1 - weight) · base + weight · expert`` of a single expert; at 0 and 1 bit for bit the model.

    Args:
        out: any float dtype; must not share memory with base or expert.
        inputs: the models.
        weight: any number; where both models are equal it does not matter.
    """
    (expert,) = inputs.experts
    if weight == 0.0 or not inputs.active:
        out.copy_(inputs.origin.view(out.shape))
    elif weight == 1.0:
        out.copy_(expert.view(out.shape))
    else:
        weighted_sum(out, [inputs.origin, expert], [1.0 - weight, weight])
