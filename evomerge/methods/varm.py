"""Task vectors weighted by their energy, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.gram import gram_matrix
from evomerge.methods.inputs import Inputs, Values, read_number


@dataclass(frozen=True)
class VarmState:
    """Models, and the squared norms ``(E,)`` of their task vectors."""

    inputs: Inputs
    energies: tuple[float, ...]


class Varm(MergeMethod):
    """``θ0 + λ Σ c_i τ_i`` with ``c_i`` proportional to ``mean(τ_i²)^exponent`` (variation ratio merge).

    The published exponent is 1; 0 weighs all experts alike, large ones pick the expert that moved the tensor most.
    Reference: Wan 2024, FuseChat, https://arxiv.org/abs/2402.16107
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> VarmState:
        """Measure the task vectors."""
        inputs = Inputs.check(base, experts, needs_base=True)
        gram = gram_matrix(inputs.experts, inputs.origin) if inputs.active else None
        return VarmState(inputs, () if gram is None else tuple(map(float, gram.diagonal())))

    def apply(self, state: VarmState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        exponent, scale = read_number(values, "exponent"), read_number(values, "lambda")
        largest = max(state.energies, default=0.0)
        if not largest:
            weighted_sum(out, [state.inputs.origin], [1.0])
            return
        powers = [(energy / largest) ** exponent for energy in state.energies]
        shares = [scale * power / sum(powers) for power in powers]
        weighted_sum(out, [state.inputs.origin, *state.inputs.experts], [1.0 - sum(shares), *shares])

    def is_constant(self, state: VarmState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: VarmState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes
