"""What methods share that merge matrices once and for all, so that only the scale of the result is left to a search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number
from evomerge.methods.spectral import MatrixInputs, one_thread


@dataclass(frozen=True)
class PreparedDelta:
    """Models, and for a matrix the merged task vector.

    Attributes:
        inputs: the models.
        shares: what multiplies the task vectors of a tensor that is no matrix, ``(E,)``.
        delta: fp32 ``(n,)``; None where there is no matrix.
    """

    inputs: MatrixInputs
    shares: tuple[float, ...]
    delta: Tensor | None


class PreparedDeltaMethod(MergeMethod):
    """``θ0 + λ Δ``: Δ of a linear map, or a stack of them, is made by ``prepare``; other tensors get a weighted sum."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> PreparedDelta:
        """Merge the task vectors of a matrix.

        Raises:
            ValueError: no base, or values out of their range.
            MergeFailed: weights that are not finite.
        """
        inputs = MatrixInputs.check(base, experts, context)
        settings = self._settings(structural, len(experts))
        shares = self._shares(settings, len(experts))
        if inputs.shape is None or 0 in inputs.shape:
            return PreparedDelta(inputs, shares, None)
        with torch.no_grad(), one_thread():
            delta = self._merge(inputs, settings)
        return PreparedDelta(inputs, shares, delta.reshape(-1))

    @abstractmethod
    def _settings(self, structural: Mapping[str, Value], count: int) -> Any:
        """The structural hyperparameters, checked."""

    @abstractmethod
    def _merge(self, inputs: MatrixInputs, settings: Any) -> Tensor:
        """The merged task vector of a matrix, fp32 ``(..., m, n)``."""

    def _shares(self, settings: Any, count: int) -> tuple[float, ...]:
        """What multiplies the task vectors of a tensor that is no matrix: those of their mean."""
        return (1.0 / count,) * count

    def apply(self, state: PreparedDelta, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        models, scale = state.inputs.inputs, read_number(values, "lambda")
        if state.delta is not None:
            weighted_sum(out, [models.origin, state.delta], [1.0, scale])
            return
        weights = [scale * state.shares[index] for index in models.active]
        experts = [models.experts[index] for index in models.active]
        weighted_sum(out, [models.origin, *experts], [1.0 - sum(weights), *weights])

    def is_constant(self, state: PreparedDelta) -> bool:
        """Whether no expert has a part in the tensor."""
        return state.delta is None and not any(state.shares[index] for index in state.inputs.inputs.active)

    def state_bytes(self, state: PreparedDelta) -> int:
        """Bytes of the merged task vector and of copied inputs."""
        return state.inputs.inputs.copied_bytes + (0 if state.delta is None else state.delta.nbytes)
