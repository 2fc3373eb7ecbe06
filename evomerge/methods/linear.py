"""Weighted sum of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import SMALLEST_SUM, Inputs, Values, read_flag, read_numbers


class Linear(MergeMethod):
    """``Σ c_i θ_i``, divided by ``Σ c_i`` when normalised (model soups). A base is ignored.

    Reference: Wortsman 2022, https://arxiv.org/abs/2203.05482
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Inputs:
        """Keep the experts."""
        return Inputs.check(None, experts)

    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the weighted sum.

        Raises:
            MergeFailed: normalised coefficients that sum to 0.
        """
        coefficients = read_numbers(values, "coefficient", len(state.experts))
        total = sum(coefficients) if read_flag(values, "normalize") else 1.0
        if abs(total) < SMALLEST_SUM:
            raise MergeFailed(f"linear: the coefficients {list(coefficients)} sum to 0 and cannot be normalized")
        weighted_sum(out, state.experts, [coefficient / total for coefficient in coefficients])

    def state_bytes(self, state: Inputs) -> int:
        """Bytes of copied inputs."""
        return state.copied_bytes
