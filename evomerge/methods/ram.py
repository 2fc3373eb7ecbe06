"""Mean of the changes where experts overlap, the full change where one stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.sweep import split, sweep
from evomerge.methods.whole_model import WholeModelMethod

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


class RamPlusTl(Ram):
    """RAM with lone changes multiplied by ``1 + r min(ρ_i, α)``, ρ_i = shared over unique changes of the tensor.

    Tensor-local, as mergekit's ``ramplus_tl``; the authors' script counts over the whole model, see ``ramplus``.
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
        shared, alone = _count(state)
        return replace(state, ratios=_ratios(state, shared, alone))

    def apply(self, state: RamState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        self._merge(state, read_number(values, "lambda"), _boosts(state, values), out)


class RamPlus(WholeModelMethod, Ram):
    """RAM with lone changes multiplied by ``1 + r min(ρ_i, α)``, ρ_i = shared over unique changes of the model.

    An expert without unique changes has ρ = 0. The authors' script has α = 1 and gives ``1 + r``, 1.2 in its examples.
    Reference: Yuan 2026, https://arxiv.org/abs/2601.13572, script of https://github.com/xiangchi-yuan/mrl
    """

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """One, for the counts."""
        return 1

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> tuple[list[int], list[int]]:
        """Shared and lone changes by expert in one tensor."""
        return _count(Ram.prepare(self, base, experts, structural, context))

    def fold(
        self, total: tuple[list[int], list[int]] | None, share: tuple[list[int], list[int]]
    ) -> tuple[list[int], list[int]]:
        """Add a tensor's."""
        if total is None:
            return share
        shared, alone = ([a + b for a, b in zip(*pair, strict=True)] for pair in zip(total, share, strict=True))
        return shared, alone

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> RamState:
        """Keep the models."""
        state = Ram.prepare(self, base, experts, structural, context)
        shared, alone = context.statistics[0]
        counted = [many if few else 0 for many, few in zip(shared, alone, strict=True)]
        return replace(state, ratios=_ratios(state, counted, alone))

    def apply(self, state: RamState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        self._merge(state, read_number(values, "lambda"), _boosts(state, values), out)


def _count(state: RamState) -> tuple[list[int], list[int]]:
    """How many changes of each of the E experts others share, and how many are its own."""
    models = [state.inputs.origin, *(state.inputs.experts[index] for index in state.inputs.active)]
    shared, alone = [0] * len(state.inputs.experts), [0] * len(state.inputs.experts)
    for pieces in zip(*(split(model, COUNTED_AT_ONCE) for model in models), strict=True):
        changed = _changed(pieces, state.epsilon)
        together = sum((mask.int() for mask in changed), torch.zeros_like(pieces[0], dtype=torch.int32))
        for index, mask in zip(state.inputs.active, changed, strict=True):
            shared[index] += int((mask & (together > 1)).sum())
            alone[index] += int((mask & (together == 1)).sum())
    return shared, alone


def _ratios(state: RamState, shared: Sequence[int], alone: Sequence[int]) -> tuple[float, ...]:
    return tuple(shared[index] / max(alone[index], 1) for index in state.inputs.active)


def _boosts(state: RamState, values: Values) -> list[float]:
    rate, limit = read_number(values, "r"), read_number(values, "alpha")
    return [1.0 + rate * min(max(ratio, 0.0), limit) for ratio in state.ratios]


def _changed(pieces: Sequence[Tensor], epsilon: float) -> list[Tensor]:
    origin = pieces[0].float()
    return [(piece.float() - origin).abs() > epsilon for piece in pieces[1:]]
