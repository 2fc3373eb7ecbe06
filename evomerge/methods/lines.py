"""Scale a task vector by depth: shallow blocks stay nearer to the base (LiNeS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.task_vectors import check_one_expert, interpolate


@dataclass(frozen=True)
class LinesState:
    """Models and how deep the tensor is.

    Attributes:
        inputs: the models.
        depth: 0 in the first block and outside the blocks, 1 in the last of several.
    """

    inputs: Inputs
    depth: float


class Lines(MergeMethod):
    """``θ0 + (α + β l / (L - 1)) τ`` in block l of L, ``θ0 + α τ`` outside the blocks.

    A modifier of one task vector, most of all of one that another merge made: the expert is that merge. As published,
    one task vector takes ``β = 1 - α``; of several merged ones α is ``‖Σ τ_i‖₁ / (E ‖Δ‖₁)``, and β is searched.
    Reference: Wang 2024, https://arxiv.org/abs/2410.17146
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> LinesState:
        """Keep the models.

        Raises:
            UserError: not exactly one expert.
        """
        check_one_expert("lines", experts)
        depth = (context.block or 0) / max(1, context.num_blocks - 1)
        return LinesState(Inputs.check(base, experts, needs_base=True), depth)

    def apply(self, state: LinesState, values: Values, out: Tensor) -> None:
        """Write the scaled tensor."""
        scale = read_number(values, "alpha") + read_number(values, "beta") * state.depth
        interpolate(out, state.inputs, scale)

    def is_constant(self, state: LinesState) -> bool:
        """Whether the expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: LinesState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes
