"""Task vectors weighted by their energy in the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evomerge.methods.base import TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.gram import gram_matrix
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.whole_model import WholeModelMethod

Energies = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetaGptState:
    """Models, and the squared norms ``(E,)`` of the whole task vectors."""

    inputs: Inputs
    energies: Energies


class MetaGpt(WholeModelMethod):
    """``θ0 + λ Σ w_i τ_i`` with ``w_i`` proportional to ``‖τ_i‖^p``, norms over the whole model.

    The closed form is p = 2; 0 weighs all experts alike, -1 makes their shares equally long. An expert that equals the
    base has weight 0. p and λ are evomerge's.
    Reference: Zhou 2024, https://arxiv.org/abs/2406.11385; as in the baselines of https://github.com/IBM/STAR
    """

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """One, for the norms."""
        return 1

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Energies:
        """Squared norms ``(E,)`` of one tensor's task vectors."""
        inputs = Inputs.check(base, experts, needs_base=True)
        if not inputs.active:
            return np.zeros(len(experts))
        return gram_matrix(inputs.experts, inputs.origin).diagonal().copy()

    def fold(self, total: Energies | None, share: Energies) -> Energies:
        """Add a tensor's."""
        return share if total is None else total + share

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> MetaGptState:
        """Keep the models."""
        return MetaGptState(Inputs.check(base, experts, needs_base=True), context.statistics[0])

    def apply(self, state: MetaGptState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        exponent, scale = read_number(values, "exponent"), read_number(values, "lambda")
        largest = float(state.energies.max())
        powers = [(energy / largest) ** (exponent / 2.0) if energy > 0.0 else 0.0 for energy in state.energies]
        total = sum(powers)
        weights = [scale * powers[index] / total for index in state.inputs.active]
        experts = [state.inputs.experts[index] for index in state.inputs.active]
        weighted_sum(out, [state.inputs.origin, *experts], [1.0 - sum(weights), *weights])

    def is_constant(self, state: MetaGptState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: MetaGptState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes
