"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evomerge.errors import UserError
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.gram import cosine, gram_matrix
from evomerge.methods.inputs import Inputs, Values, read_number

NEARLY_PARALLEL = 0.9995  # |cosine| above which the interpolation is linear


@dataclass(frozen=True)
class SlerpState:
    """Two flat tensors and the cosine of the angle between them; None when they are equal."""

    start: Tensor
    end: Tensor
    cosine: float | None
    copied_bytes: int


class Slerp(MergeMethod):
    """``[sin((1-t)φ) v0 + sin(tφ) v1] / sin φ`` with φ the angle between the whole tensors.

    v0 is the base and v1 the expert; without a base, v0 and v1 are the two experts.
    Reference: Shoemake 1985, https://doi.org/10.1145/325165.325242
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> SlerpState:
        """Measure the angle.

        Raises:
            UserError: not exactly two models.
        """
        models = [*experts] if base is None else [base, *experts]
        if len(models) != 2:
            raise UserError(
                f"slerp merges two models: a base and one expert, or two experts without a base; got {len(models)}. "
                "For more models use linear, or nest slerps."
            )
        inputs = Inputs.check(models[0], models[1:])
        start, end = inputs.origin, inputs.experts[0]
        angle = cosine(gram_matrix((start, end)), 0, 1) if inputs.active else None
        return SlerpState(start, end, angle, inputs.copied_bytes)

    def apply(self, state: SlerpState, values: Values, out: Tensor) -> None:
        """Write the interpolated tensor: v0 at t = 0, v1 at t = 1."""
        t = read_number(values, "t")
        if state.cosine is None:
            weights = (1.0, 0.0)
        elif abs(state.cosine) > NEARLY_PARALLEL:
            weights = (1.0 - t, t)
        else:
            angle = math.acos(state.cosine)
            weights = (math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
        weighted_sum(out, (state.start, state.end), weights)

    def is_constant(self, state: SlerpState) -> bool:
        """Whether the two models are equal."""
        return state.cosine is None

    def state_bytes(self, state: SlerpState) -> int:
        """Bytes of copied inputs."""
        return state.copied_bytes
