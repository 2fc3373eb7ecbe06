"""Of every weight, the change of the expert that changed it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.sweep import sweep


@dataclass(frozen=True)
class MagmaxState:
    """Models, and the experts that differ from the base in the order of their keys."""

    inputs: Inputs
    order: tuple[int, ...]


class Magmax(MergeMethod):
    """``θ0 + λ τ`` with the entry of largest magnitude among the experts', element by element.

    Among equal magnitudes the later expert wins. Later is by name, not by position, so that the order of a file changes
    nothing. In the paper the experts are stages of sequential fine-tuning, measured from the common base.
    Reference: Marczak 2024, https://arxiv.org/abs/2407.06322
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> MagmaxState:
        """Keep the models."""
        inputs = Inputs.check(base, experts, needs_base=True)
        return MagmaxState(inputs, tuple(sorted(inputs.active, key=lambda index: context.expert_keys[index])))

    def apply(self, state: MagmaxState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        scale = read_number(values, "lambda")

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, largest, delta = buffers
            origin.copy_(pieces[0])
            largest.zero_()
            for piece in pieces[1:]:
                torch.sub(delta.copy_(piece), origin, out=delta)
                torch.where(delta.abs() >= largest.abs(), delta, largest, out=largest)
            target.copy_(origin.add_(largest, alpha=scale))

        experts = [state.inputs.experts[index] for index in state.order]
        sweep(kernel, out, [state.inputs.origin, *experts], num_buffers=3)

    def is_constant(self, state: MagmaxState) -> bool:
        """Whether every expert equals the base."""
        return not state.order

    def state_bytes(self, state: MagmaxState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes
