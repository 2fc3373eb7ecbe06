"""Randomly masked task vectors, summed."""

from __future__ import annotations

from torch import Tensor

from evomerge.methods.elementwise import add_deltas
from evomerge.methods.inputs import Values, normalizer, read_densities, read_flag, read_number, read_numbers
from evomerge.methods.random_trim import Dare, DareState


class DareLinear(Dare):
    """Drop each entry of a task vector with probability ``1 - d``, rescale the rest, then task arithmetic.

    Reference: Yu 2023, eq. 2-4, https://arxiv.org/abs/2311.03099
    """

    def apply(self, state: DareState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        count = len(state.inputs.experts)
        coefficients = read_numbers(values, "coefficient", count)
        terms = state.terms(coefficients, read_densities(values, count))
        scale = read_number(values, "lambda") / normalizer(coefficients, read_flag(values, "normalize"))
        add_deltas(out, state.inputs.origin, terms, scale)
