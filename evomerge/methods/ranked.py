"""What methods share that rank the entries of every task vector by magnitude, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.cores import run_all
from evomerge.methods.inputs import Inputs
from evomerge.methods.magnitude_trim import MagnitudeRanking


@dataclass(frozen=True)
class RankedState:
    """Models, and by expert index the ranking of each task vector that is not 0."""

    inputs: Inputs
    rankings: dict[int, MagnitudeRanking]

    @classmethod
    def of(cls, inputs: Inputs, with_tables: bool) -> RankedState:
        """Rank the entries of every task vector, see MagnitudeRanking."""
        tasks = [partial(MagnitudeRanking, inputs.origin, inputs.experts[i], with_tables) for i in inputs.active]
        return cls(inputs, dict(zip(inputs.active, run_all(tasks), strict=True)))

    @property
    def num_bytes(self) -> int:
        """Bytes of the rankings and of copied inputs."""
        return self.inputs.copied_bytes + sum(ranking.table_bytes for ranking in self.rankings.values())


class RankedMethod(MergeMethod):
    """A method whose state ranks the entries of every task vector by magnitude, tensor by tensor."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> RankedState:
        """Rank the entries of every task vector by magnitude."""
        return RankedState.of(Inputs.check(base, experts, needs_base=True), context.reused)

    def is_constant(self, state: RankedState) -> bool:
        """Whether every expert equals the base."""
        return not state.rankings

    def state_bytes(self, state: RankedState) -> int:
        """Bytes of the rankings and of copied inputs."""
        return state.num_bytes
