"""Parameter competition balancing: weigh each entry by its importance within and between task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import TensorContext, Value
from evomerge.methods.distribution import Distribution, add_each, task_vector_magnitudes
from evomerge.methods.inputs import Inputs, Values, read_number, read_numbers
from evomerge.methods.sweep import split, sweep
from evomerge.methods.whole_model import WholeModelMethod

VARIANTS = ("scaled", "raw")
CLIPPED = {"scaled": 0.01, "raw": 1e-4}  # share of the magnitudes that is cut at either end
SMALLEST_SUM = 1e-12
_PIECE = 1 << 17

Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PcbState:
    """Models, the variant, and by expert what the whole model says.

    Attributes:
        inputs: the models.
        variant: one of VARIANTS.
        ranges: magnitudes are cut to these.
        balances: how the scores before trimming are distributed.
    """

    inputs: Inputs
    variant: str
    ranges: Ranges
    balances: tuple[Distribution, ...]


class Pcb(WholeModelMethod):
    """``θ0 + λ Σ c_i τ̂_i s_i / Σ s_i``: s_i is what trimming leaves of a score of each entry, in [0, 1].

    τ̂ has its magnitudes cut to their quantiles q and 1 - q. The score is ``exp(E a²) · b``, with a the magnitude
    scaled to [0, 1] over the whole model; all but the largest share ``ratio`` of the scores becomes 0, the rest is
    scaled to [0, 1]. ``scaled`` (of the authors' evolution script): ``b = Σ_j tanh(a_i± a_j±)`` with signed a, q 0.01.
    ``raw`` (of their main script): ``b = tanh(τ_i Σ_j τ_j)``, nearly linear for language models, q 0.0001.
    Reference: Du 2024, https://arxiv.org/abs/2410.02396, code of https://github.com/duguodong7/pcb-merging
    """

    def num_surveys(self, structural: Mapping[str, Value]) -> int:
        """Two: magnitudes, then scores."""
        if structural["variant"] not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {structural['variant']!r}")
        return 2

    def survey(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> tuple[str, list[Distribution]]:
        """Magnitudes by expert, then scores by expert."""
        inputs, variant = Inputs.check(base, experts, needs_base=True), str(structural["variant"])
        if not context.statistics:
            return variant, task_vector_magnitudes(inputs)
        ranges = _ranges(context.statistics[0], variant)
        found = [Distribution() for _ in experts]
        for origin, *pieces in zip(*(split(model, _PIECE) for model in (inputs.origin, *inputs.experts)), strict=True):
            deltas = [piece.float() - origin.float() for piece in pieces]
            for counted, score in zip(found, _scores(deltas, ranges, variant), strict=True):
                counted.add(Distribution.of(score))
        return variant, found

    def fold(self, total: list[Distribution] | None, share: tuple[str, list[Distribution]]) -> list[Distribution]:
        """Add a tensor's values."""
        return add_each(total, share[1])

    def conclude(self, total: list[Distribution]) -> tuple[Distribution, ...]:
        """The distributions of the whole model, by expert."""
        return tuple(counted.finish() for counted in total)

    def prepare_surveyed(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> PcbState:
        """Keep the models."""
        inputs, variant = Inputs.check(base, experts, needs_base=True), str(structural["variant"])
        return PcbState(inputs, variant, _ranges(context.statistics[0], variant), context.statistics[1])

    def apply(self, state: PcbState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        ratio, scale = read_number(values, "ratio"), read_number(values, "lambda")
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"ratio must be in [0, 1], got {ratio}")
        coefficients = read_numbers(values, "coefficient", len(state.inputs.experts))
        limits = [_limits(counted, ratio) for counted in state.balances]

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            origin = pieces[0].to(torch.float32, copy=True)
            deltas = [piece.float() - origin for piece in pieces[1:]]
            scores = _scores(deltas, state.ranges, state.variant)
            sum_, weights = torch.zeros_like(origin), torch.zeros_like(origin)
            for index, (delta, score) in enumerate(zip(deltas, scores, strict=True)):
                low, high = limits[index]
                score = score.sub_(low).clamp_min_(0.0).div_(high - low) if high > low else score.zero_()
                lower, upper = state.ranges[index]
                cut = delta.sign() * delta.abs().clamp_(lower, upper)
                sum_.add_(cut.mul_(score), alpha=coefficients[index])
                weights.add_(score)
            target.copy_(origin.add_(sum_.div_(weights.clamp_min_(SMALLEST_SUM)), alpha=scale))

        sweep(kernel, out, [state.inputs.origin, *state.inputs.experts], num_buffers=0)

    def is_constant(self, state: PcbState) -> bool:
        """Whether every expert equals the base."""
        return not state.inputs.active

    def state_bytes(self, state: PcbState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


def _ranges(magnitudes: Sequence[Distribution], variant: str) -> Ranges:
    """Each expert's magnitudes at the quantiles where they are cut."""
    share, found = CLIPPED[variant], []
    for counted in magnitudes:
        size = counted.size
        lower, upper = int(size * share), max(0, int(size * (1.0 - share) - 1))  # ascending, from 0
        low, high = counted.kth_largest(size - lower), counted.kth_largest(size - upper)
        found.append((min(low, high), high))
    return tuple(found)


def _scores(deltas: Sequence[Tensor], ranges: Ranges, variant: str) -> list[Tensor]:
    """Each expert's score of every entry, fp32 ``(c,)``."""
    scaled = []
    for delta, (low, high) in zip(deltas, ranges, strict=True):
        magnitude = delta.abs().clamp_(low, high)
        scaled.append(magnitude.sub_(low).div_(high - low) if high > low else magnitude.zero_())
    if variant == "raw":
        together = sum(deltas[1:], deltas[0])
        between = [torch.tanh(delta * together) for delta in deltas]
    else:
        signed = [delta.sign() * magnitude for delta, magnitude in zip(deltas, scaled, strict=True)]
        between = [sum((torch.tanh(own * other) for other in signed), torch.zeros_like(own)) for own in signed]
    return [
        torch.exp(magnitude.square_().mul_(float(len(deltas)))).mul_(score)
        for magnitude, score in zip(scaled, between, strict=True)
    ]


def _limits(scores: Distribution, ratio: float) -> tuple[float, float]:
    """What becomes 0 and what becomes 1."""
    index = min(int(scores.size * (1.0 - ratio)), scores.size - 1)  # ascending, from 0
    return scores.kth_largest(scores.size - index), scores.largest
