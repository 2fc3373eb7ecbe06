"""Base plus a weighted sum of task vectors."""

from __future__ import annotations

from torch import Tensor

from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Inputs, Values, normalizer, read_flag, read_number, read_numbers
from evomerge.methods.task_vectors import TaskVectorMethod


class TaskArithmetic(TaskVectorMethod):
    """``θ0 + λ Σ c_i (θ_i - θ0)``; normalised, the sum is divided by ``Σ c_i``.

    Computed as ``(1 - Σ w_i) θ0 + Σ w_i θ_i``, one pass for each model and exact for one expert at weight 1.
    Reference: Ilharco 2022, https://arxiv.org/abs/2212.04089
    """

    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        coefficients = read_numbers(values, "coefficient", len(state.experts))
        scale = read_number(values, "lambda") / normalizer(coefficients, read_flag(values, "normalize"))
        weights = [scale * coefficients[index] for index in state.active]
        experts = [state.experts[index] for index in state.active]
        weighted_sum(out, [state.origin, *experts], [1.0 - sum(weights), *weights])
