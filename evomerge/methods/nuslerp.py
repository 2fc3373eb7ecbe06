"""Spherical interpolation of two models, or of their task vectors, for whole tensors or vector by vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import UserError
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_rows, weighted_sum
from evomerge.methods.gram import cosine, gram_matrix, row_grams
from evomerge.methods.inputs import Inputs, Values, as_rows, read_numbers

SMALLEST_SUM = 1e-6
SMALLEST_SINE = 1e-6
SMALLEST_NORM = 1e-7


@dataclass(frozen=True)
class NuslerpState:
    """Two models and the cosines between them.

    Attributes:
        inputs: the models.
        cosines: fp64 ``(1,)``, or one for each vector.
        by_column: the vectors run along dimension 0.
        columns: elements of a row.
    """

    inputs: Inputs
    cosines: Tensor
    by_column: bool = False
    columns: int = 0


class Nuslerp(MergeMethod):
    """``[sin((1-t)φ) x1 + sin(tφ) x2] / sin φ``, ``t = w2 / (w1 + w2)``.

    x is the model, or its task vector with a base. φ is the angle between the flat tensors; without ``flatten`` that
    between vectors along the last dimension, with ``row_wise`` along dimension 0 (as in mergekit's code; its
    documentation words it the other way round).
    Reference: Goddard 2024, https://github.com/arcee-ai/mergekit (NuSLERP); Shoemake 1985
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> NuslerpState:
        """Measure the angles.

        Raises:
            UserError: not exactly two experts.
        """
        if len(experts) != 2:
            raise UserError(f"nuslerp merges two experts, got {len(experts)}; for more use multislerp or karcher")
        inputs = Inputs.check(base, experts)
        flatten, by_column = bool(structural["flatten"]), bool(structural["row_wise"])
        if flatten or experts[0].dim() < 2 or experts[0].numel() == 0:
            gram = gram_matrix(inputs.experts, inputs.base)
            return NuslerpState(inputs, torch.tensor([cosine(gram, 0, 1)], dtype=torch.float64))
        columns = experts[0].shape[-1]
        rows = [as_rows(tensor, columns) for tensor in inputs.experts]
        origin = None if inputs.base is None else as_rows(inputs.base, columns)
        if by_column:
            rows, origin = [row.t() for row in rows], None if origin is None else origin.t()
        grams = row_grams(rows, origin)
        norms = grams.diagonal().t().sqrt().clamp_min(SMALLEST_NORM)
        return NuslerpState(inputs, (grams[0, 1] / (norms[0] * norms[1])).clamp(-1.0, 1.0), by_column, columns)

    def apply(self, state: NuslerpState, values: Values, out: Tensor) -> None:
        """Write the interpolation."""
        first, second = read_numbers(values, "coefficient", 2)
        if not state.inputs.active and state.inputs.base is not None:
            weighted_sum(out, [state.inputs.base], [1.0])
            return
        t = second / (first + second) if abs(first + second) >= SMALLEST_SUM else 0.5
        angle = state.cosines.arccos()
        sine = angle.sin()
        is_round = sine.abs() >= SMALLEST_SINE
        safe = torch.where(is_round, sine, 1.0)
        factors = [
            torch.where(is_round, ((1.0 - t) * angle).sin() / safe, 1.0 - t),
            torch.where(is_round, (t * angle).sin() / safe, t),
        ]
        models = list(state.inputs.experts)
        if state.inputs.base is not None:
            models.append(state.inputs.base)
            factors.append(1.0 - factors[0] - factors[1])
        if state.columns == 0:
            weighted_sum(out, models, [float(factor) for factor in factors])
        else:
            weighted_rows(out, models, [factor.float() for factor in factors], state.by_column)

    def is_constant(self, state: NuslerpState) -> bool:
        """Whether there is a base and both experts equal it."""
        return not state.inputs.active

    def state_bytes(self, state: NuslerpState) -> int:
        """Bytes of the vectors' cosines and of copied inputs."""
        return state.inputs.copied_bytes + (state.cosines.nbytes if state.columns else 0)
