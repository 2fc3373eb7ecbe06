"""Merge experts one after the other, each without what its predecessors already span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evomerge.methods.base import TensorContext, Value
from evomerge.methods.elementwise import weighted_sum
from evomerge.methods.gram import gram_matrix
from evomerge.methods.inputs import Values, read_number
from evomerge.methods.spectral import MatrixInputs, decompose, one_thread, present
from evomerge.methods.whole_model import WholeModelMethod

Energies = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OpcmState:
    """Models, the summed task vector ``(n,)`` in fp32, and what scales it to the experts' mean length."""

    inputs: MatrixInputs
    merged: Tensor | None
    factor: float


class Opcm(WholeModelMethod):
    """Orthogonal projection-based continual merging, in the order of the experts.

    With M the merge so far, an expert's matrix τ is added without its part in M's leading singular directions (those
    before more than ``alpha`` of the sum of singular values) and without its diagonal in M's singular bases; other
    tensors are added as they are. At the end the task vector gets the mean length of the experts', over the whole
    model. The published loop scales after every expert, which the next step undoes: one scaling at the end is the same.
    Directions of which M has none are left alone.
    Reference: Tang 2025, https://arxiv.org/abs/2501.09522
    """

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """One, for the lengths."""
        return 1

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> Energies:
        """Squared norms ``(E + 1,)`` of one tensor's task vectors and of their projected sum."""
        inputs, merged = _merge(base, experts, structural, context)
        energies = np.zeros(len(experts) + 1)
        if merged is not None:
            models = inputs.inputs
            for index in models.active:
                delta = models.experts[index].float() - models.origin.float()
                energies[index] = gram_matrix([delta])[0, 0]
            energies[-1] = gram_matrix([merged])[0, 0]
        return energies

    def fold(self, total: Energies | None, share: Energies) -> Energies:
        """Add a tensor's."""
        return share if total is None else total + share

    def conclude(self, total: Energies) -> float:
        """Mean length of the task vectors over that of their projected sum."""
        lengths = np.sqrt(total)
        return float(lengths[:-1].mean() / lengths[-1]) if lengths[-1] > 0.0 else 0.0

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> OpcmState:
        """Project and add up.

        Raises:
            ValueError: no base, or alpha outside [0, 1].
            MergeFailed: weights that are not finite.
        """
        return OpcmState(*_merge(base, experts, structural, context), context.statistics[0])

    def apply(self, state: OpcmState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        scale, origin = read_number(values, "lambda"), state.inputs.inputs.origin
        if state.merged is None:
            weighted_sum(out, [origin], [1.0])
        else:
            weighted_sum(out, [origin, state.merged], [1.0, scale * state.factor])

    def is_constant(self, state: OpcmState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.inputs.active

    def state_bytes(self, state: OpcmState) -> int:
        """Bytes of the summed task vector and of copied inputs."""
        return state.inputs.inputs.copied_bytes + (0 if state.merged is None else state.merged.nbytes)


def _merge(
    base: Tensor | None, experts: Sequence[Tensor], structural: Mapping[str, Value], context: TensorContext
) -> tuple[MatrixInputs, Tensor | None]:
    """The projected sum ``(n,)`` of the task vectors, None where all are 0."""
    inputs, alpha = MatrixInputs.check(base, experts, context), read_number(structural, "alpha")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    models, merged = inputs.inputs, None
    with torch.no_grad(), one_thread():
        for index in models.active:
            delta = models.experts[index].float() - models.origin.float()
            if merged is None:
                merged = delta
            elif inputs.shape is None:
                merged += delta
            else:
                merged += _without(merged.view(inputs.shape), delta.view(inputs.shape), alpha).reshape(-1)
    return inputs, merged


def _without(before: Tensor, delta: Tensor, alpha: float) -> Tensor:
    """``delta`` without what lies in the directions of ``before``, both ``(..., m, n)``."""
    svd = decompose(before)
    there, total = present(svd), svd.values.sum(-1, keepdim=True)
    # The leading block ends before the first value with which the sum exceeds its share.
    leading = (svd.values.cumsum(-1) <= alpha * total).to(delta.dtype) * there
    within = svd.left.transpose(-1, -2) @ delta @ svd.right.transpose(-1, -2)
    block = leading[..., :, None] * leading[..., None, :]
    removed = within * torch.maximum(block, torch.diag_embed(there))
    return delta - svd.left @ removed @ svd.right
