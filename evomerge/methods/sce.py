"""Select what differs most between experts, weigh experts by their energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.gram import tree_sum
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.magnitude_trim import MagnitudeRanking, MagnitudeTrim
from evomerge.methods.sweep import split, sweep

SMALLEST_ENERGY = 1e-30
SMALLEST_DIVISOR = 1e-6
_LANES = 1 << 14  # a power of two
_PIECE = 1 << 16


@dataclass(frozen=True)
class SceState:
    """Models and what selection found.

    Attributes:
        inputs: the models.
        selection: keeps the variances that are large enough; None keeps all elements.
        shares: by position in ``inputs.experts``, the experts' shares, which sum to 1.
    """

    inputs: Inputs
    selection: MagnitudeTrim | None
    shares: tuple[float, ...]


class Sce(MergeMethod):
    """``θ0 + λ Σ c_i m_i τ_i / Σ c_i m_i`` over the elements where the experts differ most.

    Select: the ``int(k · number of variances that are not 0)`` elements of largest variance between the task vectors,
    lower flat index first among equals; every other element stays the base's. ``select_topk`` 1 takes all. Calculate:
    ``c_i`` is the mean of the selected ``τ_i²``, divided by their sum (all alike where that is below 1e-30; mergekit
    says below 1e-6, which task vectors of language models often are). Erase: ``m_i`` is 1 where ``τ_i`` has the sign of
    ``Σ τ_i``, 0 counting as plus and never agreeing.
    Identical experts have no variance: selecting among them leaves the base.
    Reference: Wan 2024 (FuseChat), section 3.3, https://arxiv.org/abs/2408.07990; selected as in mergekit.
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> SceState:
        """Rank the variances, and measure the energy of what is selected.

        Raises:
            ValueError: no base, or select_topk outside (0, 1].
        """
        inputs = Inputs.check(base, experts, needs_base=True)
        fraction = read_number(structural, "select_topk")
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"select_topk must be in (0, 1], got {fraction}")
        selection, nothing = None, not inputs.active
        if fraction < 1.0 and inputs.active:
            variances = _variances(inputs)
            count = int(fraction * int(variances.count_nonzero()))
            nothing = count == 0
            if count:
                selection = MagnitudeRanking(torch.zeros_like(variances), variances, False).keep_largest(count)
        if nothing:
            return SceState(inputs, selection, ())
        energies = _energies(inputs, selection)
        total = sum(energies)
        shares = (energy / total if total > SMALLEST_ENERGY else 1.0 / len(energies) for energy in energies)
        return SceState(inputs, selection, tuple(shares))

    @torch.no_grad()
    def apply(self, state: SceState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        scale = read_number(values, "lambda")
        if not state.shares:
            out.copy_(state.inputs.origin.view(out.shape))
            return

        def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
            sum_, merged, divisor, agrees, origin, *deltas = buffers
            _load_selected(state.selection, start, pieces, origin, deltas, (sum_, merged, divisor))
            sum_.zero_()
            for delta in deltas:
                sum_.add_(delta)
            sign = torch.copysign(torch.ones_like(sum_), sum_ + 0.0)
            merged.zero_()
            divisor.zero_()
            for delta, share in zip(deltas, state.shares, strict=True):
                torch.eq(torch.sign(delta, out=agrees), sign, out=agrees)
                divisor.add_(agrees, alpha=share)
                merged.addcmul_(delta, agrees, value=share)
            target.copy_(origin.add_(merged.div_(divisor.clamp_min_(SMALLEST_DIVISOR)), alpha=scale))

        sweep(kernel, out, [state.inputs.origin, *state.inputs.experts], num_buffers=5 + len(state.inputs.experts))

    def is_constant(self, state: SceState) -> bool:
        """Whether nothing is selected: every expert equals the base, or all are alike."""
        return not state.shares

    def state_bytes(self, state: SceState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


def _variances(inputs: Inputs) -> Tensor:
    """Population variance ``(n,)`` of the task vectors, fp32."""
    found = torch.empty(len(inputs.origin), dtype=torch.float32, device=inputs.origin.device)

    def kernel(start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        mean, spare, origin, *deltas = buffers
        _load(pieces, origin, deltas)
        _variance(deltas, target, (mean, spare))

    sweep(kernel, found, [inputs.origin, *inputs.experts], num_buffers=3 + len(inputs.experts))
    return found


def _energies(inputs: Inputs, selection: MagnitudeTrim | None) -> list[float]:
    """Sum of the squares of every expert's selected changes, in fp64 and in an order that no thread changes."""
    count, device = len(inputs.experts), inputs.origin.device
    lanes = torch.zeros(count, _LANES, dtype=torch.float64, device=device)
    models = (inputs.origin, *inputs.experts)
    for index, pieces in enumerate(zip(*(split(model, _PIECE) for model in models), strict=True)):
        size = len(pieces[0])
        mean, variance, spare, origin, *deltas = list(torch.empty(4 + count, size, dtype=torch.float32, device=device))
        _load_selected(selection, index * _PIECE, pieces, origin, deltas, (mean, variance, spare))
        whole = size - size % _LANES
        for lane, delta in zip(lanes, deltas, strict=True):
            squares = delta.double().square_()
            lane.add_(squares[:whole].view(-1, _LANES).sum(0))
            lane[: size - whole].add_(squares[whole:])
    return [float(energy) for energy in tree_sum(lanes)]


def _load(pieces: Sequence[Tensor], origin: Tensor, deltas: Sequence[Tensor]) -> None:
    """Fill ``origin`` and the task vectors' pieces ``(c,)``."""
    origin.copy_(pieces[0])
    for delta, piece in zip(deltas, pieces[1:], strict=True):
        torch.sub(delta.copy_(piece), origin, out=delta)


def _variance(deltas: Sequence[Tensor], variance: Tensor, buffers: tuple[Tensor, Tensor]) -> None:
    """Fill ``variance``, by one way only, so that an element has the same bits wherever it is asked."""
    mean, spare = buffers
    mean.copy_(deltas[0])
    for delta in deltas[1:]:
        mean.add_(delta)
    mean.div_(len(deltas))
    variance.zero_()
    for delta in deltas:
        torch.sub(delta, mean, out=spare)
        variance.addcmul_(spare, spare)
    variance.div_(len(deltas))


def _load_selected(
    selection: MagnitudeTrim | None,
    start: int,
    pieces: Sequence[Tensor],
    origin: Tensor,
    deltas: list[Tensor],
    buffers: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill ``origin`` and the task vectors' pieces ``(c,)``, 0 where nothing is selected."""
    _load(pieces, origin, deltas)
    if selection is None:
        return
    mean, variance, spare = buffers
    _variance(deltas, variance, (mean, spare))
    selection(variance, start, spare)
    variance.ne_(0.0)
    for delta in deltas:
        delta.mul_(variance)
