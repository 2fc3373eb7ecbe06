"""Average models by how well each did in its training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Inputs, Values, read_number, read_numbers
from evomerge.methods.task_vectors import TaskVectorMethod


class MetricWeighted(TaskVectorMethod):
    """``θ0 + λ Σ w_i τ_i`` with ``w_i ∝ (1 / loss_i)^p``: p = 0 is the mean, a large p the model of smallest loss.

    evomerge's own formula for what a paper describes only in words; step counts serve as ``1 / loss``.
    Reference: own definition; idea of MWA, 2025, https://arxiv.org/abs/2504.18580
    """

    def apply(self, state: Inputs, values: Values, out: Tensor) -> None:
        """Write the merged tensor.

        Raises:
            ValueError: a loss that is not positive.
        """
        weights = metric_weights(read_numbers(values, "loss", len(state.experts)), read_number(values, "exponent"))
        scale = read_number(values, "lambda")
        experts = [state.experts[index] for index in state.active]
        weights = [scale * weights[index] for index in state.active]
        weighted_sum(out, [state.origin, *experts], [1.0 - sum(weights), *weights])


def metric_weights(losses: Sequence[float], exponent: float) -> list[float]:
    """Weights ``(E,)`` that sum to 1, by the softmax of ``-exponent · ln loss``.

    Raises:
        ValueError: a loss that is not positive.
    """
    if min(losses) <= 0.0:
        raise ValueError(f"loss must be positive, got {list(losses)}")
    logits = [-exponent * math.log(loss) for loss in losses]
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]
