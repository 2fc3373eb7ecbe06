"""Weighted sum of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import SMALLEST_SUM, Inputs, Values, is_equal, read_flag, read_numbers


@dataclass(frozen=True)
class LinearState:
    """Models, the indices of the experts that equal the first one, itself among them, and whether to take a mean."""

    inputs: Inputs
    equal: tuple[int, ...]
    is_mean: bool


class Linear(MergeMethod):
    """``Σ c_i θ_i``, divided by ``Σ c_i`` when normalised (model soups). A base is ignored.

    Equal tensors, of weights that nobody trained, are their own mean whatever the coefficients.

    Reference: Wortsman 2022, https://arxiv.org/abs/2203.05482
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> LinearState:
        """Keep the experts, and find equal ones: a tensor that nobody trained is read once."""
        inputs = Inputs.check(None, experts)
        first = inputs.experts[0]
        equal = (index for index, expert in enumerate(inputs.experts) if expert is first or is_equal(first, expert))
        return LinearState(inputs, tuple(equal), read_flag(structural, "normalize"))

    def apply(self, state: LinearState, values: Values, out: Tensor) -> None:
        """Write the weighted sum.

        Raises:
            MergeFailed: normalised coefficients that sum to 0.
        """
        experts = state.inputs.experts
        coefficients = read_numbers(values, "coefficient", len(experts))
        if self.is_constant(state):
            weighted_sum(out, experts[:1], [1.0])
            return
        total = sum(coefficients) if state.is_mean else 1.0
        if abs(total) < SMALLEST_SUM:
            raise MergeFailed(
                f"linear: the coefficients {list(coefficients)} sum to 0 and cannot be normalized; change them, or set "
                "normalize: false"
            )
        others = [index for index in range(len(experts)) if index not in state.equal]
        first = sum(coefficients[index] for index in state.equal)
        weights = [first, *(coefficients[index] for index in others)]
        weighted_sum(out, [experts[index] for index in (0, *others)], [weight / total for weight in weights])

    def part(self, state: LinearState, start: int, end: int) -> LinearState:
        """The state of entries ``[start, end)`` of the flattened tensor."""
        experts = tuple(expert[start:end] for expert in state.inputs.experts)
        return replace(state, inputs=replace(state.inputs, experts=experts, copied_bytes=0))

    def is_constant(self, state: LinearState) -> bool:
        """Whether it is a mean of equal tensors."""
        return state.is_mean and len(state.equal) == len(state.inputs.experts)

    def state_bytes(self, state: LinearState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes
