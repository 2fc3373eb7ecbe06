"""Keep a random fraction of a task vector's entries (DARE): each entry has a fixed uniform number, kept if below d.

The uniforms have 16 bits and depend only on (seed, expert key, tensor name), so masks of growing density are nested,
equal for every method, device and order of experts, and a density costs one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import Term
from evomerge.methods.inputs import Inputs
from evomerge.methods.sweep import split
from evomerge.methods.trim import RANDOM, Rule
from evomerge.terms import derive_seed

LEVELS = 1 << 16
SMALLEST_MASS = 1e-7
_PIECE = 1 << 20

RESCALES = ("inv_density", "l1", "none")


@dataclass(frozen=True)
class RandomTrim:
    """Zeroes the entries whose uniform is not below a level.

    Attributes:
        codes: int16 ``(n,)``; the uniform of an entry is ``(32767 - code) / 65536``.
        level: 65536 times the probability of keeping an entry.
    """

    codes: Tensor
    level: int

    def __call__(self, delta: Tensor, start: int, scratch: Tensor) -> None:
        """Zero the dropped entries of ``delta``, which starts at flat index ``start``."""
        codes = scratch.copy_(self.codes[start : start + len(delta)])
        # The one vectorised "first where second > limit, else 0".
        torch.ops.aten.threshold_backward.grad_input(delta, codes, 32767 - self.level, grad_input=delta)

    @property
    def rule(self) -> Rule:
        """The same as numbers."""
        return Rule(RANDOM, 32767 - self.level, codes=self.codes)


@dataclass(frozen=True)
class Mass:
    """How much ``Σ |τ|`` a level keeps: ``kept[j]`` up to and including ``levels[j]``."""

    levels: npt.NDArray[np.int32]
    kept: npt.NDArray[np.float64]

    @classmethod
    def measure(cls, base: Tensor, expert: Tensor, codes: Tensor) -> Mass:
        """Add up ``|expert - base|`` by level, on the CPU and in flat order so that it is the same everywhere."""
        mass = np.zeros(LEVELS)
        for pieces in zip(*(split(tensor, _PIECE) for tensor in (base, expert, codes)), strict=True):
            origin, end, code = (piece.cpu() for piece in pieces)
            weights = (end.float() - origin.float()).abs().numpy()
            mass += np.bincount(32767 - code.numpy().astype(np.int32), weights=weights, minlength=LEVELS)
        levels = np.flatnonzero(mass)
        return cls(levels.astype(np.int32), np.cumsum(mass[levels]))

    def factor(self, level: int) -> float:
        """Total over kept mass; 1 where either is next to nothing."""
        position = int(np.searchsorted(self.levels, level))
        kept = float(self.kept[position - 1]) if position else 0.0
        return float(self.kept[-1]) / kept if kept > SMALLEST_MASS else 1.0


@dataclass(frozen=True)
class DareState:
    """Models, the uniforms of the experts that differ from the base, and what rescaling needs.

    Attributes:
        inputs: the models.
        rescale: one of RESCALES.
        codes: by expert index, int16 ``(n,)``.
        mass: by expert index, for ``l1``.
    """

    inputs: Inputs
    rescale: str
    codes: dict[int, Tensor]
    mass: dict[int, Mass]

    def terms(self, coefficients: Sequence[float], densities: Sequence[float]) -> list[Term]:
        """The masked and rescaled task vectors of the experts that count.

        Args:
            coefficients: ``(E,)``.
            densities: ``(E,)`` in (0, 1], rounded to 16 bits.
        """
        terms = []
        for index, codes in self.codes.items():
            if coefficients[index] == 0.0:
                continue
            level = min(max(round(densities[index] * LEVELS), 1), LEVELS)
            factor = LEVELS / level if self.rescale == "inv_density" else 1.0
            if self.rescale == "l1":
                factor = self.mass[index].factor(level)
            trim = RandomTrim(codes, level) if level < LEVELS else None
            terms.append(Term(self.inputs.experts[index], coefficients[index] * factor, coefficients[index], trim))
        return terms


class Dare(MergeMethod):
    """What the DARE methods share: masks and rescaling. They differ in how the masked task vectors are joined."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> DareState:
        """Draw the uniforms of every expert that differs from the base.

        Raises:
            ValueError: no base, or an unknown way to rescale.
        """
        rescale = str(structural["rescale"])
        if rescale not in RESCALES:
            raise ValueError(f"rescale must be one of {', '.join(RESCALES)}, got {rescale!r}")
        inputs = Inputs.check(base, experts, needs_base=True)
        origin = inputs.origin
        codes, mass = {}, {}
        for index in inputs.active:
            code = draw_codes(len(origin), context, index)
            codes[index] = code.to(origin.device)
            if rescale == "l1":
                mass[index] = Mass.measure(origin, inputs.experts[index], code)
        return DareState(inputs, rescale, codes, mass)

    def is_constant(self, state: DareState) -> bool:
        """Whether every expert equals the base."""
        return not state.codes

    def state_bytes(self, state: DareState) -> int:
        """Bytes of the uniforms, of what rescaling needs, and of copied inputs."""
        tables = sum(mass.levels.nbytes + mass.kept.nbytes for mass in state.mass.values())
        return state.inputs.copied_bytes + sum(codes.nbytes for codes in state.codes.values()) + tables


def draw_codes(size: int, context: TensorContext, index: int) -> Tensor:
    """The uniforms of one expert's entries, see RandomTrim.

    Args:
        size: how many.
        context: the tensor.
        index: of the expert.
    """
    seed = derive_seed(context.seed, "dare", context.expert_keys[index], context.name)
    generator = torch.Generator().manual_seed(seed)
    words = torch.empty((size + 3) // 4, dtype=torch.int64)
    words.random_(-(1 << 63), None, generator=generator)  # four codes a draw
    return words.view(torch.int16)[:size]
