"""Keep the largest changes of each sign, all at one size (T-Switch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import MergeFailed
from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.spectral import one_thread
from evomerge.methods.sweep import sweep
from evomerge.methods.task_vectors import check_one_expert, interpolate


@dataclass(frozen=True)
class TswitchState:
    """Models and three numbers.

    Attributes:
        inputs: the models.
        size: what every kept change becomes; None where the expert's values stay.
        smallest_up: the smallest positive change that is kept.
        smallest_down: the smallest magnitude of a negative one.
    """

    inputs: Inputs
    size: float | None = None
    smallest_up: float = math.inf
    smallest_down: float = math.inf


class Tswitch(MergeMethod):
    """``θ0 + m c sign(τ')``: τ' has the ``int((1 - drop) · number)`` largest changes of each sign, c is their RMS.

    A modifier of one task vector, before it is merged: the expert is the model. Changes as large as the last one kept
    are kept too; a sign of which none would be left keeps all. One c for a tensor, as in the official code; the paper
    has one for the task. ``multiplier`` m is evomerge's. Single numbers keep the expert's value. The switch between
    tasks at inference is not part of it.
    Reference: Qi 2024, https://arxiv.org/abs/2412.00054
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> TswitchState:
        """Select the changes.

        Raises:
            UserError: not exactly one expert.
            ValueError: drop outside [0, 1).
            MergeFailed: weights that are not finite.
        """
        check_one_expert("tswitch", experts)
        inputs, drop = Inputs.check(base, experts, needs_base=True), read_number(structural, "drop")
        if not 0.0 <= drop < 1.0:
            raise ValueError(f"drop must be in [0, 1), got {drop:g}")
        if not inputs.active or experts[0].ndim == 0:
            return TswitchState(inputs)
        with torch.no_grad(), one_thread():
            delta = inputs.experts[0].float() - inputs.origin.float()
            if not delta.isfinite().all():
                raise MergeFailed("changes cannot be ranked: weights are NaN or infinite")
            smallest_up, up = _largest(delta[delta > 0.0], drop)
            smallest_down, down = _largest(-delta[delta < 0.0], drop)
            kept = torch.cat([up, down])
            energy = float(kept.double().square().sum())
        return TswitchState(inputs, math.sqrt(energy / len(kept)), smallest_up, smallest_down)

    def apply(self, state: TswitchState, values: Values, out: Tensor) -> None:
        """Write the tensor."""
        multiplier, inputs = read_number(values, "multiplier"), state.inputs
        if state.size is None:
            interpolate(out, inputs, 1.0)
            return
        step = multiplier * state.size

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, delta, is_kept = buffers
            origin.copy_(pieces[0])
            torch.sub(delta.copy_(pieces[1]), origin, out=delta)
            origin.add_(torch.ge(delta, state.smallest_up, out=is_kept), alpha=step)
            target.copy_(origin.sub_(torch.le(delta, -state.smallest_down, out=is_kept), alpha=step))

        sweep(kernel, out, [inputs.origin, *inputs.experts], num_buffers=3)

    def is_constant(self, state: TswitchState) -> bool:
        """Whether the expert's values stay."""
        return state.size is None

    def state_bytes(self, state: TswitchState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


def _largest(sizes: Tensor, drop: float) -> tuple[float, Tensor]:
    """The smallest of the positive numbers ``(n,)`` that are kept, and all of these."""
    if not len(sizes):
        return math.inf, sizes
    count = int(len(sizes) * (1.0 - drop) + 1e-9)  # (1 - 0.9) * 10 is not quite 1
    smallest = sizes.kthvalue(len(sizes) - count + 1).values if count else sizes.min()
    return float(smallest), sizes[sizes >= smallest]
