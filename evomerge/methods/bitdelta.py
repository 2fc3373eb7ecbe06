"""Keep of every change in a matrix its sign only, at the mean size of all (BitDelta)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.inputs import Inputs, Values, read_number
from evomerge.methods.spectral import one_thread
from evomerge.methods.sweep import split, sweep
from evomerge.methods.task_vectors import check_one_expert, interpolate

MODULES = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}
_PIECE = 1 << 20


@dataclass(frozen=True)
class BitdeltaState:
    """Models and the mean sizes.

    Attributes:
        inputs: the models.
        sizes: mean ``|τ|`` of each matrix of a stack, one for a matrix; empty where the expert's values stay.
    """

    inputs: Inputs
    sizes: tuple[float, ...]


class Bitdelta(MergeMethod):
    """``θ0 + m a sign(τ)`` with ``a = mean |τ|`` of the matrix, 0 counting as plus; ``multiplier`` m.

    A modifier of one task vector, before it is merged: the expert is the model. At m = 1 it is the nearest task vector
    of that form. It holds for linear maps of the blocks' attention, mlp or both (``modules``), and for stacks of them
    matrix by matrix; everything else keeps the expert's values.
    Reference: Liu 2024, https://arxiv.org/abs/2402.10193
    """

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> BitdeltaState:
        """Measure the task vector.

        Raises:
            UserError: not exactly one expert.
            ValueError: unknown modules.
        """
        check_one_expert("bitdelta", experts)
        inputs, modules = Inputs.check(base, experts, needs_base=True), str(structural["modules"])
        if modules not in MODULES:
            raise ValueError(f"modules must be one of {', '.join(MODULES)}, got {modules!r}")
        shape, is_meant = experts[0].shape, context.block is not None and context.component in MODULES[modules]
        if not is_meant or len(shape) not in (2, 3) or 0 in shape or not inputs.active:
            return BitdeltaState(inputs, ())
        count = shape[0] if len(shape) == 3 else 1
        pairs = zip(inputs.origin.chunk(count), inputs.experts[0].chunk(count), strict=True)
        with torch.no_grad(), one_thread():
            return BitdeltaState(inputs, tuple(_mean_size(origin, expert) for origin, expert in pairs))

    def apply(self, state: BitdeltaState, values: Values, out: Tensor) -> None:
        """Write the tensor."""
        multiplier, inputs = read_number(values, "multiplier"), state.inputs
        if not state.sizes:
            interpolate(out, inputs, 1.0)
            return
        count = len(state.sizes)
        targets = [out] if out.ndim == 2 else [*out.detach()]
        origins, experts = inputs.origin.chunk(count), inputs.experts[0].chunk(count)
        for target, origin, expert, size in zip(targets, origins, experts, state.sizes, strict=True):
            sweep(_Kernel(multiplier * size), target, [origin, expert], num_buffers=2)

    def is_constant(self, state: BitdeltaState) -> bool:
        """Whether the expert's values stay."""
        return not state.sizes

    def state_bytes(self, state: BitdeltaState) -> int:
        """Bytes of copied inputs."""
        return state.inputs.copied_bytes


@dataclass(frozen=True)
class _Kernel:
    """Adds ``size`` times the sign of the change."""

    size: float

    def __call__(self, start: int, target: Tensor, buffers: list[Tensor], pieces: Sequence[Tensor]) -> None:
        origin, delta = buffers
        origin.copy_(pieces[0])
        torch.ge(torch.sub(delta.copy_(pieces[1]), origin, out=delta), 0.0, out=delta)
        target.copy_(origin.add_(delta.mul_(2.0).sub_(1.0), alpha=self.size))


def _mean_size(origin: Tensor, expert: Tensor) -> float:
    """Mean ``|expert - origin|`` of flat tensors."""
    pieces = zip(split(origin, _PIECE), split(expert, _PIECE), strict=True)
    return sum(float((end.float() - start.float()).abs_().sum(dtype=torch.float64)) for start, end in pieces) / len(
        origin
    )
