"""Trim, elect signs, merge the agreeing entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evomerge.methods.base import TensorContext, Value
from evomerge.methods.distribution import Distribution, add_each, task_vector_magnitudes
from evomerge.methods.elementwise import Term, add_elected_deltas, add_largest_deltas
from evomerge.methods.inputs import Inputs, Values, read_densities, read_flag, read_number, read_numbers
from evomerge.methods.magnitude_trim import MagnitudeTrim
from evomerge.methods.ranked import RankedState
from evomerge.methods.whole_model import WholeModelMethod

MERGE_FUNCS = ("mean", "sum", "max")


class Ranking(Protocol):
    """What finds the trim of one task vector for any density."""

    def trim(self, density: float) -> MagnitudeTrim | None:
        """What keeps that fraction of the entries; None when it keeps every entry that is not 0."""


@dataclass(frozen=True)
class WholeModelRanking:
    """Ranks the entries of a whole task vector; entries as large as the last one kept are all kept."""

    magnitudes: Distribution

    def trim(self, density: float) -> MagnitudeTrim | None:
        """What keeps that fraction of the model's entries; None when it keeps every entry that is not 0."""
        threshold = self.magnitudes.kth_largest(int(density * self.magnitudes.size))
        return MagnitudeTrim(threshold, self.magnitudes.size) if threshold > 0.0 else None


@dataclass(frozen=True)
class TiesState:
    """Models, and by expert index what ranks each task vector that is not 0: in its tensor or in the whole model."""

    inputs: Inputs
    rankings: Mapping[int, Ranking]
    num_bytes: int = 0


class Ties(WholeModelMethod):
    """Keep each task vector's largest entries, elect a sign per element, merge the entries of that sign.

    Trimmed per tensor, the ``max(1, int(d n))`` largest entries are kept, lower flat index first among equals (exactly
    so up to 65536 elements, see MagnitudeRanking). Trimmed over the whole model, as published, those that are at least
    as large as the ``int(d n)``-th (see Distribution), which leaves little of norms and biases. Signs are elected on
    weighted entries, 0 counts as plus, entries that are 0 never agree. ``merge_func``: ``mean`` divides the sum of the
    weighted entries of that sign by the coefficients of the agreeing experts, unless ``normalize`` is false; ``sum``
    does not; ``max`` takes the largest of them.
    Reference: Yadav 2023, section 4, https://arxiv.org/abs/2306.01708; weights as in mergekit.
    """

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """One for a trim over the whole model."""
        scope = structural["trim_scope"]
        if scope not in ("tensor", "global"):
            raise ValueError(f"trim_scope must be tensor or global, got {scope!r}")
        return int(scope == "global")

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> list[Distribution]:
        """Magnitudes of each task vector's entries."""
        return task_vector_magnitudes(Inputs.check(base, experts, needs_base=True))

    def fold(self, total: list[Distribution] | None, share: list[Distribution]) -> list[Distribution]:
        """Add a tensor's magnitudes."""
        return add_each(total, share)

    def conclude(self, total: list[Distribution]) -> list[Distribution]:
        """Magnitudes of the whole model, by expert."""
        return [counted.finish() for counted in total]

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> TiesState:
        """Rank the entries of every task vector by magnitude."""
        inputs = Inputs.check(base, experts, needs_base=True)
        if structural["trim_scope"] == "tensor":
            ranked = RankedState.of(inputs, context.reused)
            return TiesState(inputs, ranked.rankings, ranked.num_bytes)
        return TiesState(
            inputs, {i: WholeModelRanking(context.statistics[0][i]) for i in inputs.active}, inputs.copied_bytes
        )

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
        return state.num_bytes
