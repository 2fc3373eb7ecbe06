"""Randomly masked task vectors, merged with sign election."""

from __future__ import annotations

from torch import Tensor

from evomerge.methods.elementwise import add_elected_deltas
from evomerge.methods.inputs import Values, read_densities, read_flag, read_number, read_numbers
from evomerge.methods.random_trim import Dare, DareState


class DareTies(Dare):
    """The masks and rescaling of ``dare_linear``, then the sign election and disjoint merge of ``ties``.

    Reference: Yu 2023, section 3.3, https://arxiv.org/abs/2311.03099
    """

    def apply(self, state: DareState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        count = len(state.inputs.experts)
        terms = state.terms(read_numbers(values, "coefficient", count), read_densities(values, count))
        scale, normalize = read_number(values, "lambda"), read_flag(values, "normalize")
        add_elected_deltas(out, state.inputs.origin, terms, scale, normalize)
