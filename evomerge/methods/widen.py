"""Weigh changes by how far they move the length and the direction of each weight vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import weighted_rows
from evomerge.methods.gram import row_grams
from evomerge.methods.inputs import Inputs, Values, read_number


@dataclass(frozen=True)
class WidenState:
    """Models, and how significant each expert's changes are.

    Attributes:
        inputs: the models.
        columns: length of the last dimension.
        by_row: whether the weight vectors of a matrix are its rows.
        ranks: by index of the experts that differ from the base, fp32 ``(2, vectors)``: shares of the vectors whose
            length, and whose direction, changed less. Empty where the tensor is no matrix.
    """

    inputs: Inputs
    columns: int
    by_row: bool
    ranks: dict[int, Tensor]


class Widen(MergeMethod):
    """``θ0 + λ Σ w_i ⊙ τ_i``, one weight for every weight vector of an expert: its significance among experts.

    A weight vector is a column of a linear map, or a token's row in the embeddings. In each expert they are ranked by
    the change of their length, and again by ``1 - cos`` of the change of their direction; the share of vectors that
    changed less is the significance. Scores are its softmax over the experts, but ``calibration`` where it exceeds
    ``ratio`` times the expert's mean; ``w`` is the mean of both scores. Tensors that are no matrices take ``|τ_i|`` as
    significance of each element.
    Reference: Yu 2024, section 3, https://arxiv.org/abs/2408.03092
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> WidenState:
        """Rank the weight vectors of every expert that differs from the base."""
        inputs = Inputs.check(base, experts, needs_base=True)
        shape, by_row = experts[0].shape, context.component == "embeddings"
        columns, ranks = shape[-1] if shape else 1, {}
        if len(shape) == 2 and inputs.active:
            origin = _vectors(inputs.origin.view(shape), by_row)
            for index in inputs.active:
                gram = row_grams([origin, _vectors(inputs.experts[index].view(shape), by_row)])
                before, after = gram[0, 0].sqrt(), gram[1, 1].sqrt()
                cosine = torch.where(before * after > 0.0, gram[0, 1] / (before * after), 1.0)
                ranks[index] = torch.stack([_ranks((after - before).abs()), _ranks(1.0 - cosine)])
        return WidenState(inputs, columns, by_row, ranks)

    @torch.no_grad()
    def apply(self, state: WidenState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        inputs, names = state.inputs, ("ratio", "calibration", "lambda")
        ratio, calibration, scale = (read_number(values, name) for name in names)
        if not inputs.active:
            out.copy_(inputs.origin.view(out.shape))
            return
        if not state.ranks:
            origin = inputs.origin.float()
            deltas = torch.stack([expert.float() - origin for expert in inputs.experts])
            merged = (deltas * _scores(deltas.abs(), ratio, calibration)).sum(0)
            out.copy_(torch.add(origin, merged, alpha=scale).view(out.shape))
            return
        unmoved = _ranks(torch.zeros_like(next(iter(state.ranks.values()))[0])).expand(2, -1)
        ranks = torch.stack([state.ranks.get(index, unmoved) for index in range(len(inputs.experts))])
        weights = _scores(ranks, ratio, calibration).mean(1) * scale
        kept = [weights[index] for index in inputs.active]
        experts = [inputs.experts[index] for index in inputs.active]
        weighted_rows(
            out, [inputs.origin, *experts], [1.0 - torch.stack(kept).sum(0), *kept], by_column=not state.by_row
        )

    def is_constant(self, state: WidenState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: WidenState) -> int:
        """Bytes of the ranks and of copied inputs."""
        return state.inputs.copied_bytes + sum(ranks.nbytes for ranks in state.ranks.values())


def _vectors(matrix: Tensor, by_row: bool) -> Tensor:
    return matrix if by_row else matrix.t()


def _ranks(changes: Tensor) -> Tensor:
    """Share of the changes ``(n,)`` that are smaller, or equal and earlier."""
    ranks = torch.empty(len(changes), dtype=torch.float32, device=changes.device)
    places = torch.arange(len(changes), dtype=torch.float32, device=changes.device)
    ranks[changes.argsort(stable=True)] = places / max(1, len(changes))
    return ranks


def _scores(significance: Tensor, ratio: float, calibration: float) -> Tensor:
    """Scores of ``(E, ..., n)`` significances: softmax over experts, calibrated where above an expert's mean."""
    above = significance > ratio * significance.mean(-1, keepdim=True)
    return torch.where(above, calibration, significance.softmax(0))
