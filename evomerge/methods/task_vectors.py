"""What methods over task vectors share that prepare nothing but their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs


class TaskVectorMethod(MergeMethod):
    """A method that gives the base where every expert equals it, and whose state is base and experts."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Inputs:
        """Keep the models and find the experts that differ from the base."""
        return Inputs.check(base, experts, needs_base=True)

    def is_constant(self, state: Inputs) -> bool:
        """Whether every expert equals the base."""
        return not state.active

    def state_bytes(self, state: Inputs) -> int:
        """Bytes of copied inputs."""
        return state.copied_bytes
