"""Spherical mean of any number of models in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.gram import gram_matrix
from evomerge.methods.inputs import SMALLEST_SUM, Inputs, Values, read_flag, read_number, read_numbers


@dataclass(frozen=True)
class MultislerpState:
    """Models and the inner products ``(E, E)`` of what is averaged."""

    inputs: Inputs
    gram: npt.NDArray[np.float64]


class Multislerp(MergeMethod):
    """``m / ‖m‖ · Σ w_i ‖x_i‖`` with ``m = Σ w_i x_i / ‖x_i‖``; x is the model, or its task vector with a base.

    The published procedure also moves along the mean of the tangents at m, which is 0 for these weights.
    Reference: Goddard 2025, multi-SLERP, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> MultislerpState:
        """Measure norms and angles."""
        inputs = Inputs.check(base, experts)
        return MultislerpState(inputs, gram_matrix(inputs.experts, inputs.base))

    def apply(self, state: MultislerpState, values: Values, out: Tensor) -> None:
        """Write the mean.

        Raises:
            MergeFailed: coefficients that sum to 0 and are to be normalised, or models whose directions cancel.
        """
        experts, base = state.inputs.experts, state.inputs.base
        weights = read_numbers(values, "coefficient", len(experts))
        eps = read_number(values, "eps")
        if read_flag(values, "normalize"):
            total = sum(weights)
            if abs(total) < SMALLEST_SUM:
                raise MergeFailed(f"multislerp: the coefficients {list(weights)} sum to 0 and cannot be normalized")
            weights = tuple(weight / total for weight in weights)
        if base is not None and not state.inputs.active:
            weighted_sum(out, [base], [1.0])
            return
        factors = _factors(weights, state.gram, eps)
        rest = [] if base is None else [base]
        weighted_sum(out, [*experts, *rest], [*factors, *([1.0 - sum(factors)] if rest else [])])

    def is_constant(self, state: MultislerpState) -> bool:
        """Whether there is a base and every expert equals it."""
        return not state.inputs.active

    def state_bytes(self, state: MultislerpState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


def _factors(weights: Sequence[float], gram: npt.NDArray[np.float64], eps: float) -> list[float]:
    """What multiplies each model."""
    norms = np.sqrt(gram.diagonal())
    if len(weights) == 1 or not norms.any():
        return list(weights) if len(weights) > 1 else [1.0]
    unit = np.divide(weights, norms, out=np.zeros(len(norms)), where=norms > 0)
    length = math.sqrt(max(0.0, float(unit @ gram @ unit)))
    if length < eps:
        if len(weights) == 2:
            return list(weights)
        raise MergeFailed("multislerp: the directions of the models cancel; give them other coefficients")
    return [float(value) for value in unit / length * float(np.dot(weights, norms))]
