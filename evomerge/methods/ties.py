"""Trim, elect signs, merge the agreeing entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.cores import run_all
from evomerge.methods.elementwise import Term, add_elected_deltas, add_largest_deltas
from evomerge.methods.inputs import Inputs, Values, read_densities, read_flag, read_number, read_numbers
from evomerge.methods.magnitude_trim import MagnitudeRanking

MERGE_FUNCS = ("mean", "sum", "max")


@dataclass(frozen=True)
class TiesState:
    """Models, and by expert index the ranking of each task vector that is not 0."""

    inputs: Inputs
    rankings: dict[int, MagnitudeRanking]


class Ties(MergeMethod):
    """Keep each task vector's largest entries, elect a sign per element, merge the entries of that sign.

    Per tensor: the ``max(1, int(d n))`` largest entries are kept, lower flat index first among equals (exactly so up to
    65536 elements, see MagnitudeRanking). Signs are elected on weighted entries, 0 counts as plus, entries that are 0
    never agree. ``merge_func``: ``mean`` divides the sum of the weighted entries of that sign by the coefficients of
    the agreeing experts, unless ``normalize`` is false, ``sum`` does not, and ``max`` takes the largest of them.
    Reference: Yadav 2023, section 4, https://arxiv.org/abs/2306.01708; scope and weights as in mergekit.
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> TiesState:
        """Rank the entries of every task vector by magnitude."""
        inputs = Inputs.check(base, experts, needs_base=True)
        tasks = [partial(MagnitudeRanking, inputs.origin, inputs.experts[i], context.reused) for i in inputs.active]
        return TiesState(inputs, dict(zip(inputs.active, run_all(tasks), strict=True)))

    def apply(self, state: TiesState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        count = len(state.inputs.experts)
        coefficients = read_numbers(values, "coefficient", count)
        densities = read_densities(values, count)
        terms = [
            Term(state.inputs.experts[index], coefficients[index], coefficients[index], ranking.trim(densities[index]))
            for index, ranking in state.rankings.items()
            if coefficients[index] != 0.0
        ]
        scale, normalize = read_number(values, "lambda"), read_flag(values, "normalize")
        merge_func = values["merge_func"]
        if merge_func not in MERGE_FUNCS:
            raise ValueError(f"merge_func must be one of {', '.join(MERGE_FUNCS)}, got {merge_func!r}")
        if merge_func == "max":
            add_largest_deltas(out, state.inputs.origin, terms, scale)
        else:
            add_elected_deltas(out, state.inputs.origin, terms, scale, normalize and merge_func == "mean")

    def is_constant(self, state: TiesState) -> bool:
        """Whether every expert equals the base."""
        return not state.rankings

    def state_bytes(self, state: TiesState) -> int:
        """Bytes of the rankings and of copied inputs."""
        return state.inputs.copied_bytes + sum(ranking.table_bytes for ranking in state.rankings.values())
