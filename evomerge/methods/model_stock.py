"""Between the base and the mean of the experts, as far as the experts agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_rows, weighted_sum
from evomerge.methods.gram import cosine, gram_matrix, row_grams
from evomerge.methods.inputs import Inputs, Values, as_rows, read_number

POLE = 1e-6  # opposite experts divide by less than this: there the base is kept


@dataclass(frozen=True)
class ModelStockState:
    """Models, and how far to go from the base to the mean.

    Attributes:
        inputs: the models.
        ratio: t.
        ratios: fp32 ``(rows,)``, one t for each row; None when there is one for the tensor.
    """

    inputs: Inputs
    ratio: float
    ratios: Tensor | None = None


class ModelStock(MergeMethod):
    """``t · mean(θ_i) + (1 - t) θ0`` with ``t = N cos φ / (1 + (N - 1) cos φ)``.

    cos φ is the mean over pairs of the cosines between task vectors, at least 0 with ``clamp``: where experts point
    apart the base is the best guess, and without it, as in mergekit, t is negative there. The paper derives t for two
    experts; the mean over pairs is mergekit's reading for more.
    ``filter_wise`` takes one t for each vector along the last dimension.
    Reference: Jang 2024, https://arxiv.org/abs/2403.19522
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> ModelStockState:
        """Measure the angles."""
        inputs = Inputs.check(base, experts, needs_base=True)
        lowest = 0.0 if structural["clamp"] else -1.0
        filter_wise = bool(structural["filter_wise"]) and experts[0].dim() > 1 and experts[0].numel() > 0
        count = len(inputs.experts)
        pairs = [(i, j) for i in range(count) for j in range(i)]
        if not inputs.active or not pairs:
            return ModelStockState(inputs, 1.0 if inputs.active else 0.0)
        if filter_wise:
            columns = experts[0].shape[-1]
            grams = row_grams([as_rows(expert, columns) for expert in inputs.experts], as_rows(inputs.origin, columns))
            norms = grams.diagonal().t().sqrt()
            cosines = [
                torch.where(norms[i] * norms[j] > 0, grams[i, j] / (norms[i] * norms[j]), 0.0).clamp(-1.0, 1.0)
                for i, j in pairs
            ]
            mean = torch.stack(cosines).mean(0).clamp_min(lowest)
            divisors = 1 + (count - 1) * mean
            ratios = torch.where(divisors > POLE, count * mean / divisors, 0.0)
            return ModelStockState(inputs, 0.0, ratios.float())
        gram = gram_matrix(inputs.experts, inputs.origin)
        agreement = max(lowest, sum(cosine(gram, i, j) for i, j in pairs) / len(pairs))
        divisor = 1 + (count - 1) * agreement
        return ModelStockState(inputs, count * agreement / divisor if divisor > POLE else 0.0)

    def apply(self, state: ModelStockState, values: Values, out: Tensor) -> None:
        """Write the interpolation; ``t_scale`` multiplies t."""
        scale, models = read_number(values, "t_scale"), [state.inputs.origin, *state.inputs.experts]
        share = scale / len(state.inputs.experts)
        if state.ratios is None:
            weights = [1.0 - scale * state.ratio, *[share * state.ratio] * len(state.inputs.experts)]
            weighted_sum(out, models, weights)
        else:
            rows = [1.0 - scale * state.ratios, *[share * state.ratios] * len(state.inputs.experts)]
            weighted_rows(out, models, rows)

    def is_constant(self, state: ModelStockState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: ModelStockState) -> int:
        """Bytes of the rows' ratios and of copied inputs."""
        return state.inputs.copied_bytes + (0 if state.ratios is None else state.ratios.nbytes)
