"""Rescale the singular values of one task vector by random factors (the mutation of CycleQD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.inputs import Values, read_number
from evomerge.methods.spectral import MatrixInputs, Svd, decompose, one_thread
from evomerge.terms import derive_seed


@dataclass(frozen=True)
class MutationState:
    """One expert, and for a linear map the decomposition of its task vector.

    Attributes:
        inputs: base and expert.
        svd: of the task vector ``(..., m, n)``; None where the expert stays as it is.
        seed: of the merge.
        name: of the tensor.
    """

    inputs: MatrixInputs
    svd: Svd | None
    seed: int
    name: str


class SvdMutation(MergeMethod):
    """``θ0 + U (w ∘ Σ) Vᵀ`` with ``τ = U Σ Vᵀ`` and each of the r numbers w uniform between ``w_min`` and ``w_max``.

    ``draw`` says which numbers: they come from it, the recipe's seed and the tensor's name, so that a recipe gives the
    same bits anywhere. 0 draws none and leaves the expert as it is, as do ``w_min`` and ``w_max`` of 1. Linear maps
    only, and stacks of them matrix by matrix; vectors and tables of tokens keep the expert's values. The published
    mutation has ``w_min`` 0 and ``w_max`` 0.3, and so shrinks the task vector to 0.15 of its size on average.
    Reference: Kuroki 2025, CycleQD, https://arxiv.org/abs/2410.14735
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> MutationState:
        """Decompose the task vector.

        Raises:
            ValueError: no base, or not one expert.
            MergeFailed: weights that are not finite.
        """
        if len(experts) != 1:
            raise ValueError("svd_mutation changes one task vector")
        inputs = MatrixInputs.check(base, experts, context)
        svd = None
        if inputs.shape is not None and 0 not in inputs.shape:
            with torch.no_grad(), one_thread():
                svd = decompose(inputs.delta(0))
        return MutationState(inputs, svd, context.seed, context.name)

    @torch.no_grad()
    def apply(self, state: MutationState, values: Values, out: Tensor) -> None:
        """Write the mutated tensor.

        Raises:
            ValueError: numbers that are not finite, or a draw that is no whole number of at least 0.
        """
        low, high, draw = (read_number(values, name) for name in ("w_min", "w_max", "draw"))
        if draw < 0 or draw != int(draw):
            raise ValueError(f"draw must be a whole number of at least 0, got {draw:g}")
        inputs = state.inputs.inputs
        if state.svd is None or draw == 0 or low == high == 1.0:
            out.copy_(inputs.experts[0].view(out.shape))
            return
        with one_thread():
            factors = factors_of(state, int(draw), low, high).to(state.svd.values.device)
            change = state.svd._replace(values=state.svd.values * factors).product()
        weighted_sum(out, [inputs.origin, change.reshape(-1)], [1.0, 1.0])

    def is_constant(self, state: MutationState) -> bool:
        """Whether the expert stays as it is."""
        return state.svd is None

    def state_bytes(self, state: MutationState) -> int:
        """Bytes of the decomposition and of copied inputs."""
        svd = () if state.svd is None else state.svd
        return state.inputs.inputs.copied_bytes + sum(tensor.nbytes for tensor in svd)


def factors_of(state: MutationState, draw: int, low: float, high: float) -> Tensor:
    """The numbers ``(..., r)`` of one draw, on the CPU, whatever the device."""
    assert state.svd is not None
    seed = derive_seed(state.seed, "svd_mutation", draw, state.name)
    uniform = torch.rand(state.svd.values.shape, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * uniform
