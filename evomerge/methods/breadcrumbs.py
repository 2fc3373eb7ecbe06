"""Task vectors without their largest and their smallest entries."""

from __future__ import annotations

from torch import Tensor

from evomerge.methods.elementwise import Term, add_deltas, add_elected_deltas
from evomerge.methods.inputs import (
    Values,
    normalizer,
    read_densities,
    read_flag,
    read_number,
    read_numbers,
)
from evomerge.methods.ranked import RankedMethod, RankedState


class Breadcrumbs(RankedMethod):
    """Drop the ``int(γ n)`` largest entries of each task vector, keep the ``int(d n)`` next, then task arithmetic.

    Per tensor, as in mergekit; the authors' code ranks along the last dimension. Density 1 keeps all, whatever γ. Where
    γ drops no entry of a small tensor the others stay, unlike in mergekit.
    Reference: Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795
    """

    def apply(self, state: RankedState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        coefficients = read_numbers(values, "coefficient", len(state.inputs.experts))
        scale = read_number(values, "lambda") / normalizer(coefficients, read_flag(values, "normalize"))
        add_deltas(out, state.inputs.origin, _terms(state, values), scale)


class BreadcrumbsTies(RankedMethod):
    """Breadcrumbs' trimmed task vectors, merged with TIES' sign election.

    Reference: Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795; election as in mergekit's breadcrumbs_ties.
    """

    def apply(self, state: RankedState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        scale, normalize = read_number(values, "lambda"), read_flag(values, "normalize")
        add_elected_deltas(out, state.inputs.origin, _terms(state, values), scale, normalize)


def _terms(state: RankedState, values: Values) -> list[Term]:
    """The trimmed task vectors of the experts that count.

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    count = len(state.inputs.experts)
    coefficients = read_numbers(values, "coefficient", count)
    densities, gammas = read_densities(values, count), read_numbers(values, "gamma", count)
    if not all(0.0 <= gamma < 1.0 for gamma in gammas):
        raise ValueError(f"gamma must be in [0, 1), got {list(gammas)}")
    return [
        Term(
            state.inputs.experts[index],
            coefficients[index],
            coefficients[index],
            ranking.band(densities[index], gammas[index]),
        )
        for index, ranking in state.rankings.items()
        if coefficients[index] != 0.0
    ]
