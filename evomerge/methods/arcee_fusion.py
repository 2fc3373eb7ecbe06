"""Take over only the changes of one expert that stand out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, as_rows, read_number
from evomerge.methods.task_vectors import check_one_expert

_PIECE = 1 << 20  # elements
EPS = 1e-8


@dataclass(frozen=True)
class FusionState:
    """Models, and how important their differences are.

    Attributes:
        inputs: the models.
        columns: length of the last dimension.
        divergences: fp32 ``(rows,)``, KL divergence of each row's softmax from the base's.
        median: of the importance of all elements.
        spread: third minus first quartile.
    """

    inputs: Inputs
    columns: int
    divergences: Tensor
    median: float
    spread: float


class ArceeFusion(MergeMethod):
    """``θ0 + λ (θ1 - θ0) ⊙ [importance ≥ median + κ (Q3 - Q1)]``.

    The importance of an element is ``|θ1 - θ0|`` times the KL divergence of ``softmax(θ1)`` from ``softmax(θ0)`` along
    its row, with 1e-8 added to each probability. Quartiles are elements of the sorted importance, ``int(q (n - 1))``,
    exact for any size where mergekit samples a million. Divergences of weights are tiny: they are computed in fp64.
    Reference: Arcee Fusion, https://www.arcee.ai; formula as in mergekit
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> FusionState:
        """Measure the divergence of every row and the quartiles of the importance.

        Raises:
            UserError: not exactly one expert.
        """
        check_one_expert("arcee_fusion", experts)
        inputs = Inputs.check(base, experts, needs_base=True)
        columns = experts[0].shape[-1] if experts[0].dim() else 1
        rows = inputs.origin.numel() // columns if columns else 0
        divergences = torch.zeros(rows, device=inputs.origin.device)
        if not inputs.active:
            return FusionState(inputs, columns, divergences, 0.0, 0.0)
        importance = torch.empty(rows, columns, device=inputs.origin.device)
        for part, origin, expert in _rows(inputs, columns):
            new, old = ((matrix.double().softmax(-1) + EPS) for matrix in (expert, origin))
            divergences[part] = (new * (new / old).log()).sum(-1).float()
            importance[part] = (expert.float() - origin.float()).abs() * divergences[part, None]
        first, median, third = _quartiles(importance.view(-1))
        return FusionState(inputs, columns, divergences, median, third - first)

    @torch.no_grad()
    def apply(self, state: FusionState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        threshold = state.median + read_number(values, "iqr_factor") * state.spread
        scale = read_number(values, "lambda")
        whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        target = as_rows(whole.view(-1), state.columns)
        for part, origin, expert in _rows(state.inputs, state.columns):
            delta = expert.float() - origin.float()
            is_kept = delta.abs() * state.divergences[part, None] >= threshold
            target[part] = torch.add(origin.float(), delta.mul_(is_kept), alpha=scale)
        if whole is not out:
            out.copy_(whole)

    def is_constant(self, state: FusionState) -> bool:
        """Whether the expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: FusionState) -> int:
        """Bytes of the divergences and of copied inputs."""
        return state.inputs.copied_bytes + state.divergences.nbytes


def _rows(inputs: Inputs, columns: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, base, expert) for a few rows at a time."""
    origin, expert = as_rows(inputs.origin, columns), as_rows(inputs.experts[0], columns)
    step = max(1, _PIECE // columns) if columns else 1
    for start in range(0, len(origin), step):
        part = slice(start, start + step)
        yield part, origin[part], expert[part]


def _quartiles(values: Tensor) -> tuple[float, float, float]:
    places = [int(share * (len(values) - 1)) for share in (0.25, 0.5, 0.75)]
    if values.device.type == "cpu":
        array = values.numpy()
        array.partition(places)
        found = [float(array[place]) for place in places]
    else:
        found = [float(values.kthvalue(place + 1).values) for place in places]
    return found[0], found[1], found[2]
