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
_PIECE = 1 << 20


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
            _load_selected(state.selection, start, pieces, origin, deltas, (sum_, merged))
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
    for target, origin, *experts in _pieces(found, inputs):
        deltas = torch.stack([expert.float() - origin.float() for expert in experts])
        target.copy_(deltas.sub_(deltas.mean(0)).square_().mean(0))
    return found


def _energies(inputs: Inputs, selection: MagnitudeTrim | None) -> list[float]:
    """Sum of the squares of every expert's selected changes, in fp64 and in an order that no thread changes."""
    energies, start = [0.0] * len(inputs.experts), 0
    for origin, *experts in _pieces(inputs.origin, inputs, with_target=False):
        deltas = list(torch.empty(len(experts), len(origin), dtype=torch.float32, device=origin.device))
        buffers = (torch.empty_like(deltas[0]), torch.empty_like(deltas[0]))
        _load_selected(selection, start, [origin, *experts], torch.empty_like(deltas[0]), deltas, buffers)
        for index, delta in enumerate(deltas):
            energies[index] += float(tree_sum(delta.double().square()))
        start += len(origin)
    return energies


def _pieces(target: Tensor, inputs: Inputs, with_target: bool = True) -> zip[tuple[Tensor, ...]]:
    tensors = [*((target,) if with_target else ()), inputs.origin, *inputs.experts]
    return zip(*(split(tensor, _PIECE) for tensor in tensors), strict=True)


def _load_selected(
    selection: MagnitudeTrim | None,
    start: int,
    pieces: Sequence[Tensor],
    origin: Tensor,
    deltas: list[Tensor],
    buffers: tuple[Tensor, Tensor],
) -> None:
    """Fill ``origin`` and the task vectors' pieces ``(c,)``, 0 where nothing is selected."""
    origin.copy_(pieces[0])
    for delta, piece in zip(deltas, pieces[1:], strict=True):
        torch.sub(delta.copy_(piece), origin, out=delta)
    if selection is None:
        return
    mean, variance = buffers
    variance.copy_(torch.stack(deltas).sub_(torch.mean(torch.stack(deltas), 0)).square_().mean(0))
    selection(variance, start, mean)
    for delta in deltas:
        delta.mul_(variance != 0.0)
