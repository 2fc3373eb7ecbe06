"""Mean of the changes where experts overlap, the full change where one stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.sweep import split, sweep

COUNTED_AT_ONCE = 1 << 20  # elements


@dataclass(frozen=True)
class RamState:
    """Models, the magnitude that counts as a change, and for RAM+ by active expert shared over lone changes."""

    inputs: Inputs
    epsilon: float
    ratios: tuple[float, ...] = ()


class Ram(MergeMethod):
    """``θ0 + λ Δ``: per element the mean of the τ_i with ``|τ_i| > ε``, so the only one where there is one.

    Reference: Yuan 2026, https://arxiv.org/abs/2601.13572
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> RamState:
        """Keep the models.

        Raises:
            ValueError: a negative epsilon.
        """
        epsilon = read_number(structural, "epsilon")
        if epsilon < 0.0:
            raise ValueError(f"epsilon must not be negative, got {epsilon}")
        return RamState(Inputs.check(base, experts, needs_base=True), epsilon)

    def apply(self, state: RamState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        self._merge(state, read_number(values, "lambda"), [1.0] * len(state.inputs.active), out)

    def _merge(self, state: RamState, scale: float, boosts: Sequence[float], out: Tensor) -> None:
        """Changes that are an expert's alone are multiplied by its boost."""

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin, sum_, count, alone, delta = buffers
            origin.copy_(pieces[0])
            for buffer in (sum_, count, alone):
                buffer.zero_()
            for piece, mask, boost in zip(pieces[1:], _changed(pieces, state.epsilon), boosts, strict=True):
                torch.sub(delta.copy_(piece), origin, out=delta).mul_(mask)
                sum_.add_(delta)
                count.add_(mask)
                alone.add_(mask, alpha=boost)
            merged = sum_.mul_(torch.where(count == 1.0, alone, 1.0 / count.clamp_min(1.0)))
            target.copy_(origin.add_(merged, alpha=scale))

        experts = [state.inputs.experts[index] for index in state.inputs.active]
        sweep(kernel, out, [state.inputs.origin, *experts], num_buffers=5)

    def is_constant(self, state: RamState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: RamState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


class RamPlus(Ram):
    """RAM with lone changes multiplied by ``1 + r min(ρ_i, α)``, ρ_i = shared over unique changes of the tensor.

    Tensor-local, as mergekit's ``ramplus_tl``; the authors' script counts over the whole model.
    Reference: Yuan 2026, https://arxiv.org/abs/2601.13572
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> RamState:
        """Count shared and lone changes."""
        state = super().prepare(base, experts, structural, context)
        models = [state.inputs.origin, *(state.inputs.experts[index] for index in state.inputs.active)]
        shared, alone = [0] * len(state.inputs.active), [0] * len(state.inputs.active)
        for pieces in zip(*(split(model, COUNTED_AT_ONCE) for model in models), strict=True):
            changed = _changed(pieces, state.epsilon)
            together = sum((mask.int() for mask in changed), torch.zeros_like(pieces[0], dtype=torch.int32))
            for index, mask in enumerate(changed):
                shared[index] += int((mask & (together > 1)).sum())
                alone[index] += int((mask & (together == 1)).sum())
        return replace(state, ratios=tuple(many / max(few, 1) for many, few in zip(shared, alone, strict=True)))

    def apply(self, state: RamState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        rate, limit = read_number(values, "r"), read_number(values, "alpha")
        boosts = [1.0 + rate * min(max(ratio, 0.0), limit) for ratio in state.ratios]
        self._merge(state, read_number(values, "lambda"), boosts, out)


def _changed(pieces: Sequence[Tensor], epsilon: float) -> list[Tensor]:
    origin = pieces[0].float()
    return [(piece.float() - origin).abs() > epsilon for piece in pieces[1:]]
