"""Keep large entries of a task vector more often than small ones (DELLA): the masks of DARE, shifted by rank.

An entry with uniform u and rank share r̂ (0 for the smallest of its row, 1 for the largest) is kept if
``u < d - ε + 2 ε r̂``, which is ``(u + 2 ε (1 - r̂)) / (1 + 2 ε) < (d + ε) / (1 + 2 ε)``: the left side is drawn once and
takes the place of DARE's uniform, and a density still costs one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.methods.base import MergeMethod, TensorContext, Value
from evomerge.methods.elementwise import Term, add_deltas, add_elected_deltas
from evomerge.methods.inputs import (
    Inputs,
    Values,
    normalizer,
    read_densities,
    read_flag,
    read_number,
    read_numbers,
)
from evomerge.methods.random_trim import LEVELS, Mass, RandomTrim, draw_codes
from evomerge.methods.trim import Rule

RESCALES = ("inv_prob", "l1", "none")
_ROWS_AT_ONCE = 1 << 22  # elements that are ranked together


@dataclass(frozen=True)
class RankedTrim:
    """Zeroes what a random trim drops and divides the rest by the probability of keeping it.

    Attributes:
        trim: drops entries.
        ranks: int16 ``(n,)``; the rank share of an entry is ``(32768 + rank) / 65535``.
        low: probability of keeping the smallest entry of a row, before it is cut to [2^-16, 1].
        span: what is added to it for the largest.
    """

    trim: RandomTrim
    ranks: Tensor
    low: float
    span: float

    def __call__(self, delta: Tensor, start: int, scratch: Tensor) -> None:
        """Zero the dropped entries of ``delta``, which starts at flat index ``start``, and divide the others."""
        self.trim(delta, start, scratch)
        kept = scratch.copy_(self.ranks[start : start + len(delta)])
        kept.add_(32768.0).mul_(self.span / 65535.0).add_(self.low)
        delta.div_(kept.clamp_(1.0 / LEVELS, 1.0))

    @property
    def rule(self) -> Rule | None:
        """None: what is kept is not multiplied by one number."""
        return None


@dataclass(frozen=True)
class DellaState:
    """Models, and by expert index what masks and rescaling need.

    Attributes:
        inputs: the models.
        epsilons: ``(E,)``.
        codes: int16 ``(n,)``, see RandomTrim.
        mass: for ``l1``.
        ranks: int16 ``(n,)``, for ``inv_prob``.
    """

    inputs: Inputs
    epsilons: tuple[float, ...]
    codes: dict[int, Tensor]
    mass: dict[int, Mass]
    ranks: dict[int, Tensor]

    def terms(self, coefficients: Sequence[float], densities: Sequence[float]) -> list[Term]:
        """The masked and rescaled task vectors of the experts that count.

        Args:
            coefficients: ``(E,)``.
            densities: ``(E,)`` in (0, 1].
        """
        terms = []
        for index, codes in self.codes.items():
            if coefficients[index] == 0.0:
                continue
            density, epsilon, coefficient = densities[index], self.epsilons[index], coefficients[index]
            term = Term(self.inputs.experts[index], coefficient, coefficient)
            level = min(max(round((density + epsilon) / (1.0 + 2.0 * epsilon) * LEVELS), 1), LEVELS)
            if density < 1.0 and level < LEVELS:
                trim = RandomTrim(codes, level)
                if index in self.ranks:
                    term = replace(term, trim=RankedTrim(trim, self.ranks[index], density - epsilon, 2.0 * epsilon))
                else:
                    factor = self.mass[index].factor(level) if index in self.mass else 1.0
                    term = replace(term, weight=coefficient * factor, trim=trim)
            terms.append(term)
        return terms


class _Della(MergeMethod):
    """What the DELLA methods share. They differ in how the masked task vectors are joined."""

    def prepare(
        self,
        base: Tensor | None,
        experts: Sequence[Tensor],
        structural: Mapping[str, Value],
        context: TensorContext,
    ) -> DellaState:
        """Rank every row of every task vector that is not 0, and draw which entries go first.

        Raises:
            ValueError: no base, an unknown way to rescale, or an epsilon outside [0, 0.5].
        """
        rescale = str(structural["rescale"])
        if rescale not in RESCALES:
            raise ValueError(f"rescale must be one of {', '.join(RESCALES)}, got {rescale!r}")
        epsilons = read_numbers(structural, "epsilon", len(experts))
        if not all(0.0 <= epsilon <= 0.5 for epsilon in epsilons):
            raise ValueError(f"epsilon must be in [0, 0.5], got {list(epsilons)}")
        inputs = Inputs.check(base, experts, needs_base=True)
        shape, origin = experts[0].shape, inputs.origin
        columns = max(1, origin.numel() // shape[0] if len(shape) > 1 and shape[0] else origin.numel())
        codes, mass, kept_ranks = {}, {}, {}
        for index in inputs.active:
            drawn = draw_codes(len(origin), context, index)
            ranks = _rank_rows(origin, inputs.experts[index], columns)
            codes[index] = _shift(drawn, ranks, epsilons[index])
            if rescale == "l1":
                mass[index] = Mass.measure(origin, inputs.experts[index], codes[index])
            if rescale == "inv_prob":
                kept_ranks[index] = ranks.to(origin.device)
            codes[index] = codes[index].to(origin.device)
        return DellaState(inputs, epsilons, codes, mass, kept_ranks)

    def is_constant(self, state: DellaState) -> bool:
        """Whether every expert equals the base."""
        return not state.codes

    def state_bytes(self, state: DellaState) -> int:
        """Bytes of codes and ranks, of what rescaling needs, and of copied inputs."""
        tables = sum(mass.levels.nbytes + mass.kept.nbytes for mass in state.mass.values())
        tensors = (*state.codes.values(), *state.ranks.values())
        return state.inputs.copied_bytes + sum(tensor.nbytes for tensor in tensors) + tables


class DellaLinear(_Della):
    """Drop entries with probabilities that fall with their rank, rescale the rest, then task arithmetic.

    Per row of a tensor (all of it, for one dimension) the entries are ranked by magnitude, equal ones by index, and
    kept with probability ``d - ε + 2 ε r̂``, cut to [0, 1]; ``inv_prob`` divides by it, ``l1`` keeps the L1 norm of the
    tensor as mergekit does. With ε = 0 it is DARE, mask for mask.
    Reference: Deep 2024, section 3, https://arxiv.org/abs/2406.11617
    """

    def apply(self, state: DellaState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        count = len(state.inputs.experts)
        coefficients = read_numbers(values, "coefficient", count)
        terms = state.terms(coefficients, read_densities(values, count))
        scale = read_number(values, "lambda") / normalizer(coefficients, read_flag(values, "normalize"))
        add_deltas(out, state.inputs.origin, terms, scale)


class Della(_Della):
    """The masks and rescaling of ``della_linear``, then the sign election and disjoint merge of ``ties``.

    Reference: Deep 2024, section 3, https://arxiv.org/abs/2406.11617
    """

    def apply(self, state: DellaState, values: Values, out: Tensor) -> None:
        """Write the merged tensor."""
        count = len(state.inputs.experts)
        terms = state.terms(read_numbers(values, "coefficient", count), read_densities(values, count))
        scale, normalize = read_number(values, "lambda"), read_flag(values, "normalize")
        add_elected_deltas(out, state.inputs.origin, terms, scale, normalize)


def _rank_rows(base: Tensor, expert: Tensor, columns: int) -> Tensor:
    """Rank shares ``(n,)`` in 16 bits, on the CPU the same everywhere; a row of one is in the middle."""
    ranks = torch.empty(len(base), dtype=torch.int16)
    step = max(1, _ROWS_AT_ONCE // columns) * columns
    shares = torch.linspace(-32768.0, 32767.0, columns).round_() if columns > 1 else torch.zeros(1)
    for start in range(0, len(base), step):
        part = slice(start, start + step)
        magnitudes = (expert[part].cpu().float() - base[part].cpu().float()).abs_().view(-1, columns)
        order = magnitudes.argsort(dim=1, stable=True)
        target = ranks[part].view(-1, columns)
        target.scatter_(1, order, shares.to(torch.int16).expand_as(order))
    return ranks


def _shift(codes: Tensor, ranks: Tensor, epsilon: float) -> Tensor:
    """Codes of ``(u + 2 ε (1 - r̂)) / (1 + 2 ε)`` instead of u."""
    shifted = torch.empty_like(codes)
    for start in range(0, len(codes), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        late = (32767.0 - ranks[part].double()).mul_(2.0 * epsilon * LEVELS / 65535.0)
        drawn = (32767.0 - codes[part].double()).add_(late).div_(1.0 + 2.0 * epsilon)
        shifted[part] = (32767.0 - drawn.floor_().clamp_(0.0, LEVELS - 1.0)).to(torch.int16)
    return shifted
